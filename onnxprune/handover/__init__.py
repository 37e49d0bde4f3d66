"""Back to the framework that the model came from: weights and kept indices by the names of its parameters."""
