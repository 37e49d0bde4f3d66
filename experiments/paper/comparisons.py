"""Section 9's rows held against each other: means over seeds, the bar of `combined`, one selection against another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from experiments.paper.ablation import SECTION, unpacked
from experiments.paper.records import Records, Row

# `combined`, and the two that it takes the better of.
BAR = ("local", "global", "combined")
# Points of top-1 that `combined` may be below the better of its parts.
ALLOWED = 0.5
# Standard errors that a difference must exceed to be more than noise.
CLEAR = 2.0


@dataclass(frozen=True)
class Cell:
    """A network, the share of its MACs that goes, and a refit: what is equal in a comparison."""

    network: str
    ratio: float
    refit: str


def cells(records: Records) -> dict[Cell, dict[str, dict[int, Row]]]:
    """By cell: label of the selection → seed → row."""
    found: dict[Cell, dict[str, dict[int, Row]]] = {}
    for _, r in records.rows(SECTION):
        cell = Cell(r["network"], r["ratio"], r["refit"])
        found.setdefault(cell, {}).setdefault(r["label"], {})[r["seed"]] = r
    return found


@dataclass(frozen=True)
class Comparison:
    """Means of local, global and combined over the seeds that all three have, in the order of BAR."""

    cell: Cell
    seeds: int
    top1: tuple[float, ...]
    error: tuple[float, ...]

    @property
    def difference(self) -> float:
        """Top-1 of `combined` over the better of the other two, in points."""
        return self.top1[2] - max(self.top1[:2])

    @property
    def holds(self) -> bool:
        """Whether the bar of top-1 is met."""
        return self.difference >= -ALLOWED - 1e-9

    @property
    def excess(self) -> float:
        """The error of `combined` over the smaller of the other two, less 1."""
        return self.error[2] / min(self.error[:2]) - 1


def bar(records: Records) -> list[Comparison]:
    """Every comparison of local, global and combined that there are results for."""
    found = []
    for cell, rows in sorted(cells(records).items(), key=lambda c: (c[0].network, c[0].ratio, c[0].refit)):
        seeds = set.intersection(*(set(rows.get(m, {})) for m in BAR))
        if seeds:
            top1, error = (
                tuple(float(np.mean([rows[m][s][k] for s in seeds])) for m in BAR) for k in ("top1", "output_error")
            )
            found.append(Comparison(cell, len(seeds), top1, error))
    return found


@dataclass(frozen=True)
class Difference:
    """One selection less another in one cell, over the seeds that both have.

    top1: in points, with its standard error: over test images, whose answers of both are paired, and over seeds where
    there are several. error: that of the first over that of the second, the geometric mean; lower: in how many seeds it
    is below 1.
    """

    cell: Cell
    seeds: int
    top1: float
    noise: float
    error: float
    lower: int

    @property
    def clear(self) -> bool:
        """Whether the difference in top-1 is beyond noise."""
        return abs(self.top1) > CLEAR * self.noise


def against(records: Records, first: str, second: str) -> list[Difference]:
    """Two selections in every cell that has both."""
    found = []
    for cell, rows in sorted(cells(records).items(), key=lambda c: (c[0].network, c[0].ratio, c[0].refit)):
        seeds = sorted(set(rows.get(first, {})) & set(rows.get(second, {})))
        if seeds:
            found.append(_difference(cell, [rows[first][s] for s in seeds], [rows[second][s] for s in seeds]))
    return found


def _difference(cell: Cell, first: Sequence[Row], second: Sequence[Row]) -> Difference:
    digits = [r["right"] for r in (*first, *second)]
    count = min(r["images"] for r in (*first, *second))
    right = np.array([unpacked(d, count) for d in digits])
    gained = 100 * (right[: len(first)] - right[len(first) :])
    images = float(gained.mean(axis=0).std(ddof=1)) / np.sqrt(count)
    by_seed = gained.mean(axis=1)
    seeds = float(by_seed.std(ddof=1)) / np.sqrt(len(by_seed)) if len(by_seed) > 1 else 0.0
    ratios = np.array([a["output_error"] / b["output_error"] for a, b in zip(first, second, strict=True)])
    return Difference(
        cell,
        len(first),
        float(gained.mean()),
        float(np.hypot(images, seeds)),
        float(np.exp(np.log(ratios).mean())),
        int((ratios < 1).sum()),
    )


def averaged(rows: Sequence[Row]) -> list[Row]:
    """One row per network, ratio, selection and refit."""

    def place(r: Row) -> tuple[str, float, str, str]:
        return r["network"], r["ratio"], r["label"], r["refit"]

    return [_mean(list(same)) for _, same in groupby(sorted(rows, key=place), key=place)]


def _mean(same: Sequence[Row]) -> Row:
    keep = ("top1_before", "top1", "agreement", "output_error", "macs_left", "parameters_left", "seconds", "passes")
    mean: Mapping[str, float] = {k: float(np.mean([r[k] for r in same])) for k in keep}
    return {**same[0], **mean, "seeds": sorted(r["seed"] for r in same)}
