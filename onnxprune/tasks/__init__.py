"""Metrics of tasks: what the outputs mean to whoever uses them, by a row in `known.py` and a file for each."""
