"""The names of the tasks, for the command line, which loads what measures them on first use."""

from __future__ import annotations

CLASSIFICATION = "classification"
NAMES = (CLASSIFICATION, "embedding", "segmentation", "sequence")
