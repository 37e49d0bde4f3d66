"""What reviewers asked of the paper that this project implements, answered by measurements: see `__main__`."""
