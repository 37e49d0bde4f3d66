"""The names of the tasks, for the command line, which loads what measures them on first use."""

from __future__ import annotations

CLASSIFICATION, DETECTION = "classification", "detection"
NAMES = (CLASSIFICATION, DETECTION, "embedding", "segmentation", "sequence")
