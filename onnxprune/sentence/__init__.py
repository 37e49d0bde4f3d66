"""The sentence of a run, in two halves, and what says its second half several times: a sweep, and the largest cut."""
