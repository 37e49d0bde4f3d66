"""Broken models, plans and data: how they are made, run and judged. Every case is its seed."""
