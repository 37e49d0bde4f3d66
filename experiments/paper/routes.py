"""Section 10: what distilling the uncut network into a cut one changes, from the rows of docs/accuracy.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.paper.networks import Kit
from experiments.paper.records import Records, Row
from experiments.paper.scope import RESNET56

SECTION = "distilled"
ROWS = Path(__file__).resolve().parents[2] / "docs" / "accuracy" / "results.jsonl"
RATIO = 0.5


def lost(rows: list[dict[str, Any]], *, fast: bool) -> Row:
    """Points of top-1 that the program's defaults lose on ResNet-56, over all seeds; fast: without recovery."""
    options = {"fast": True} if fast else {}
    some = [
        r
        for r in rows
        if (r["model"], r["ratio"], r["tool"], r["source"]) == (RESNET56, RATIO, "onnxprune", "own")
        and (r["method"], r["refit"], r["options"]) == ("default", "default", options)
        and r["samples"] == 1024
    ]
    points = [r["top1_before"] - r["top1_after"] for r in some]
    return {
        "points": points,
        "mean": float(np.mean(points)),
        "deviation": float(np.std(points, ddof=1)),
        "passes": float(np.mean([r["passes"] for r in some])),
        "samples": 1024,
        "seeds": sorted(r["seed"] for r in some),
    }


def measure_all(kit: Kit, records: Records, quick: bool) -> None:
    """With and without; nothing is run anew."""
    del kit, quick
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    for name, fast in (("none", True), ("recovery", False)):
        records.add(SECTION, name, lambda fast=fast: lost(rows, fast=fast))
