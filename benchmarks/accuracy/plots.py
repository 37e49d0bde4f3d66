"""Plots as SVG from rows of results. Needs matplotlib (the extra `bench`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.accuracy.runs import DEFAULT, OURS, OWN, Row
from benchmarks.accuracy.tables import by_seed, calibrated, combined, compared, grouped, succeeded, variant_of

# Equal results give equal files: names in an SVG are random otherwise. Text as text, not as outlines of its letters.
_STYLE = {"svg.hashsalt": "onnxprune", "font.size": 8, "svg.fonttype": "none"}
_COLOURS = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]


def methods(rows: Sequence[Row], folder: Path) -> Iterator[tuple[str, Path]]:
    """Top-1 against MACs removed, a line per selection, each with its best refit at every ratio."""
    for model, named in sorted(grouped(succeeded(combined(rows)), lambda r: r["model"]).items()):
        figure, axes = plt.subplots(figsize=(5, 3.4))
        before = mean(r["top1_before"] for r in named)
        for colour, (method, of) in zip(_cycle(), sorted(grouped(named, lambda r: r["method"]).items()), strict=False):
            best = [(100 * ratio, _best(at)) for ratio, at in sorted(grouped(of, lambda r: r["ratio"]).items())]
            x, y = zip((0.0, before), *best, strict=True)
            axes.plot(x, y, marker="o", markersize=3, linewidth=1.2, color=colour, label=method)
        axes.set(xlabel="MACs removed, %", ylabel="top-1, %", title=model)
        axes.legend(fontsize=7)
        yield f"Top-1 against MACs removed, {model}", _saved(figure, folder / f"methods-{model}.svg")


def _best(rows: Sequence[Row]) -> float:
    return max(mean(by_seed(of, _after)) for of in grouped(rows, lambda r: r["refit"]).values())


def calibration(rows: Sequence[Row], folder: Path) -> Iterator[tuple[str, Path]]:
    """Points lost against the number of samples, with what other sources cost as marks at theirs."""
    for model, found in sorted(grouped(succeeded(calibrated(rows)), lambda r: r["model"]).items()):
        figure, axes = plt.subplots(figsize=(5, 3.4))
        kinds = grouped(found, lambda r: (r["source"] != OWN, r["source"], variant_of(r)))
        for colour, (_, source, variant) in zip(_cycle(), sorted(kinds), strict=False):
            points = sorted(grouped(kinds[source != OWN, source, variant], lambda r: r["given"]).items())
            lost = [by_seed(of, lambda r: r["top1_before"] - r["top1_after"]) for _, of in points]
            errors = [stdev(v) if len(v) > 1 else 0.0 for v in lost]
            style: dict[str, Any] = {"fmt": "o-" if source == OWN else "s", "markersize": 4, "capsize": 2}
            x, y = [n for n, _ in points], [mean(v) for v in lost]
            axes.errorbar(x, y, errors, color=colour, label=f"{source}, {variant}", linewidth=1.2, **style)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="calibration samples", ylabel="points of top-1 lost", title=model)
        axes.legend(fontsize=7)
        yield f"Points lost against calibration samples, {model}", _saved(figure, folder / f"calibration-{model}.svg")


def peers(rows: Sequence[Row], folder: Path) -> Iterator[tuple[str, Path]]:
    """Top-1 of every tool and selection, a bar each."""
    points = grouped(succeeded(compared(rows)), lambda r: (r["model"], r["ratio"]))
    for (model, ratio), found in sorted(points.items()):
        kinds = grouped(found, lambda r: (r["tool"] != OURS, r["tool"], variant_of(r) or r["method"], r["refit"]))
        figure, axes = plt.subplots(figsize=(5, 0.6 + 0.24 * len(kinds)))
        names = [" ".join((t, *(p for p in (m, r) if p != DEFAULT))) for _, t, m, r in sorted(kinds)]
        values = [by_seed(of, _after) for _, of in sorted(kinds.items())]
        colours = [_COLOURS[0] if t == OURS else _COLOURS[7] for _, t, _, _ in sorted(kinds)]
        errors = [stdev(v) if len(v) > 1 else 0.0 for v in values]
        axes.barh(names, [mean(v) for v in values], xerr=errors, color=colours)
        axes.axvline(mean(r["top1_before"] for r in found), color="black", linewidth=0.8, linestyle=":")
        axes.invert_yaxis()
        axes.set(xlabel="top-1, %", title=f"{model}, {ratio:.0%} of the MACs removed")
        title = f"Top-1 of each tool, {model}, {ratio:.0%} of the MACs removed"
        yield title, _saved(figure, folder / f"peers-{model}-{100 * ratio:.0f}.svg")


def _after(row: Row) -> float:
    return float(row["top1_after"])


def _cycle() -> list[Any]:
    return [*_COLOURS, *_COLOURS]


def _saved(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    return path
