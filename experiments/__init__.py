"""What is run once to learn something, and written down in docs/: not part of the benchmarks."""
