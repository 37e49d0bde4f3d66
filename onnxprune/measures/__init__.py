"""What outputs differ by, and what is said of it."""
