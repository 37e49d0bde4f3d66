"""How many units each group keeps: what is allowed, what a trial cut costs, and what a budget leaves."""
