"""Accuracy after pruning: runs over models, tools, methods and data, and tables and plots made from them."""
