"""A small decoder, trained here: perplexity before and after pruning, beside other ways of choosing what goes."""
