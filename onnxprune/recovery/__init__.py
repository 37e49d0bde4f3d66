"""Learning from the original, without labels: the network as a student, and how it descends."""
