"""How far a model's outputs are from the original's: where they are looked at, what is told, and what it means."""
