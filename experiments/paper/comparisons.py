"""Section 9's rows held against each other: means over seeds, the bar of `combined`, method against method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.paper.ablation import BAR
from experiments.paper.records import Records, Row

# Points of top-1 that `combined` may be below the better of local and global.
ALLOWED = 0.5


@dataclass(frozen=True)
class Comparison:
    """One network, ratio and refit: means over the seeds that all three methods have, in the order of BAR."""

    network: str
    ratio: float
    refit: str
    seeds: int
    top1: tuple[float, ...]
    error: tuple[float, ...]

    @property
    def difference(self) -> float:
        """Top-1 of `combined` over the better of the other two, in points."""
        return self.top1[2] - max(self.top1[:2])

    @property
    def holds(self) -> bool:
        """Whether the bar is met."""
        return self.difference >= -ALLOWED - 1e-9


def bar(records: Records) -> list[Comparison]:
    """Every comparison of local, global and combined that there are results for."""
    cells: dict[tuple[str, float, str], dict[str, dict[int, Row]]] = {}
    for _, r in records.rows("ablation"):
        if r["label"] in BAR:
            cells.setdefault((r["network"], r["ratio"], r["refit"]), {}).setdefault(r["label"], {})[r["seed"]] = r
    found = []
    for (network, ratio, refit), methods in sorted(cells.items()):
        seeds = set.intersection(*(set(methods.get(m, {})) for m in BAR))
        if seeds:
            top1, error = (
                tuple(float(np.mean([methods[m][s][k] for s in seeds])) for m in BAR) for k in ("top1", "output_error")
            )
            found.append(Comparison(network, ratio, refit, len(seeds), top1, error))
    return found


def against(records: Records, first: str, second: str) -> list[Row]:
    """Rows of two methods with all else equal: the differences, first less second."""
    rows = {(r["network"], r["ratio"], r["refit"], r["seed"], r["label"]): r for _, r in records.rows("ablation")}
    found = []
    for (*same, label), r in sorted(rows.items()):
        other = rows.get((*same, second)) if label == first else None
        if other is not None:
            found.append({k: r[k] - other[k] for k in ("top1", "agreement", "output_error")})
    return found


def averaged(rows: list[Row]) -> list[Row]:
    """One row per network, ratio, method and refit."""
    cells: dict[tuple[str, float, str, str], list[Row]] = {}
    for r in rows:
        cells.setdefault((r["network"], r["ratio"], r["label"], r["refit"]), []).append(r)
    keep = ("top1_before", "top1", "agreement", "output_error", "macs_left", "parameters_left", "seconds", "passes")
    return [
        {**same[0], **{k: float(np.mean([r[k] for r in same])) for k in keep}, "seeds": sorted(r["seed"] for r in same)}
        for same in cells.values()
    ]
