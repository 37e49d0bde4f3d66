"""Time and memory of whole runs on networks of full size, and how both grow with the size of a network."""
