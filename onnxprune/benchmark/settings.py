"""What `bench` does unless it is told otherwise: this is read before anything heavy is loaded."""

from __future__ import annotations

# What `bench` runs: the types that a model has, or a copy in float16. Seconds of rounds that count, and rounds before.
PRECISIONS = ("model", "fp16")
SECONDS, WARMUP = 5.0, 10
