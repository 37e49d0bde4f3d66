"""What is run beside the package: checks, and the picture of the house."""
