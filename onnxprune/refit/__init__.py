"""The weights that stay: fitted layer by layer, then in a walk through the pruned network."""
