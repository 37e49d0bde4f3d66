"""Small graphs in families; `tests.graphs` is the one table of them all."""
