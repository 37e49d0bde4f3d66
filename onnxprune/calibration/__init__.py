"""What one pass over the data tells: statistics of what each layer reads, gradients, and the branches taken."""
