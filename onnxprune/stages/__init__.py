"""The words of the sentence in `pipeline`: one verb per file, each with what it hands over.

Stages alone see options and what other stages hand over; the engines that they call see neither.
"""
