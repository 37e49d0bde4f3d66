"""The checks on a result: the masked original as an oracle, and what runs are held against it."""
