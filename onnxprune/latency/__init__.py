"""Measured time: of whole models, of single layers, and of a model as a function of its widths."""
