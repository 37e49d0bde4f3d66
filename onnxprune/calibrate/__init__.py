"""Calibration: data, and streaming statistics of what each linear layer reads."""
