"""Accuracy after pruning: runs over models, tools, methods and calibration data, and tables and plots made from them."""
