"""Tables in Markdown from rows of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.accuracy.tables import table
from benchmarks.fits import exponent
from benchmarks.performance.measure import RATIO, Row
from benchmarks.performance.networks import MODELS

MOST_PASSES = 10.0
MODEL_SIZES, BYTES_BESIDE = 3, 1.5e9
LEAST_SHARE, CLOSE = 0.85, 0.1
STAGES = ("load", "couple", "calibrate", "select", "allocate", "rewrite", "refit", "verify")
MISSING = "*Not measured yet: `python -m benchmarks.performance WORK --out FILE --suite {}`.*"
# What is varied, and what stays at its least.
VARIED = ("width", "depth", "samples")
MEASURES: dict[str, Callable[[Row], float]] = {
    "plain pass": lambda r: r["plain_pass_seconds"],
    "whole run": lambda r: r["seconds"],
    "calibrate": lambda r: r["stages"]["calibrate"],
    "select": lambda r: r["stages"]["select"],
    "allocate": lambda r: r["stages"]["allocate"],
    "refit": lambda r: r["stages"]["refit"],
    "peak memory": lambda r: r["peak_memory_bytes"],
}


def networks(rows: Sequence[Row]) -> str:
    """Time as passes and peak memory, against the bars."""
    mine = _of_networks(rows, timed=False)
    if not mine:
        return MISSING.format("networks")
    lines = []
    for r in mine:
        start = [_name(r), f"{r['samples']:,}"]
        if "failure" in r:
            lines.append([*start, r["failure"], *[""] * 6])
            continue
        limit = MODEL_SIZES * r["model_bytes"] + BYTES_BESIDE
        lines.append(
            [
                *start,
                f"{r['plain_pass_seconds']:.1f}",
                f"{r['seconds']:.1f}",
                f"{r['passes']:.1f}",
                _met(r["passes"] <= MOST_PASSES),
                f"{r['peak_memory_bytes'] / 1e6:,.0f}",
                f"{limit / 1e6:,.0f}",
                _met(r["peak_memory_bytes"] <= limit),
            ]
        )
    head = ["network", "samples", "plain pass, s", "whole run, s", "passes", "≤ 10", "peak memory, MB", "limit, MB", ""]
    return table(head, lines)


def stages(rows: Sequence[Row]) -> str:
    """Where the time goes, in plain passes."""
    mine = [r for r in _of_networks(rows, timed=False) if "failure" not in r]
    if not mine:
        return MISSING.format("networks")
    lines = [
        [
            _name(r),
            f"{r['samples']:,}",
            *(f"{r['stages'].get(s, 0.0) / r['plain_pass_seconds']:.2f}" for s in STAGES),
        ]
        for r in mine
    ]
    return table(["network", "samples", *STAGES], lines)


def speed(rows: Sequence[Row]) -> str:
    """What of the MACs and of the time is left, and how many times faster that is."""
    mine = _of_networks(rows, timed=True)
    if not mine:
        return MISSING.format("speed")
    lines = []
    for r in mine:
        budget = r["options"][r["options"].index("--budget") + 1]
        if "failure" in r:
            lines.append([r["network"], budget, r["failure"], *[""] * 7])
            continue
        time, macs = r["latency"]["ratio"], r["macs_left"]
        met = macs / time >= LEAST_SHARE if budget == "macs" else abs(time - RATIO) <= CLOSE * RATIO
        timed = r.get("timing") or {}
        lines.append(
            [
                *(r["network"], budget, f"{r['latency']['before_ms']:.1f}", f"{r['latency']['after_ms']:.1f}"),
                *(f"{timed[k]:.1%}" if timed.get(k) else "" for k in ("predicted", "measured")),
                *(f"{time:.1%}", f"{macs:.1%}", f"{macs / time:.2f}", _met(met)),
            ]
        )
    head = ["network", "half of the", "before, ms", "after, ms", "predicted", "measured", "`--bench`", "MACs left"]
    return table([*head, "MACs left / time left", "bar"], lines)


def growth(rows: Sequence[Row]) -> str:
    """Exponents p of cost ~ sizeᵖ for the plain residual CNN, one size varied at a time."""
    mine = [r for r in rows if r["network"] == "cnn" and "failure" not in r]
    lines = []
    for varied in VARIED:
        points = series(mine, varied)
        if len(points) < 2:
            continue
        sizes = list(points)
        cells = []
        for measured in MEASURES.values():
            values = [median(measured(r) for r in points[s]) for s in sizes]
            cells.append(f"{exponent(sizes, values):.2f}" if min(values) > 0 else "")
        lines.append([varied, ", ".join(f"{s:,}" for s in sizes), *cells])
    return table(["varied", "sizes", *MEASURES], lines) if lines else MISSING.format("growth")


def growth_points(rows: Sequence[Row]) -> str:
    """What the exponents are fitted to."""
    mine = [r for r in rows if r["network"] == "cnn" and "failure" not in r]
    lines = []
    for size in sorted({(r["width"], r["depth"], r["samples"]) for r in mine}):
        same = [r for r in mine if (r["width"], r["depth"], r["samples"]) == size]
        values = [median(measured(r) for r in same) for measured in MEASURES.values()]
        seconds = [f"{v:.2f}" for v in values[:-1]]
        lines.append([*(f"{s:,}" for s in size), *seconds, f"{values[-1] / 1e6:,.0f}", str(len(same))])
    units = [f"{m}, s" for m in MEASURES if m != "peak memory"]
    head = [*VARIED, *units, "peak memory, MB", "runs"]
    return table(head, lines) if lines else MISSING.format("growth")


def series(rows: Sequence[Row], varied: str) -> dict[int, list[Row]]:
    """The rows by the size that is varied, with the other sizes at their least, ascending."""
    least = {v: min((r[v] for r in rows), default=0) for v in VARIED}
    chosen = [r for r in rows if all(r[v] == least[v] for v in VARIED if v != varied)]
    return {s: [r for r in chosen if r[varied] == s] for s in sorted({r[varied] for r in chosen})}


def _of_networks(rows: Sequence[Row], *, timed: bool) -> list[Row]:
    """The runs of well-known networks, sorted. timed: those whose results were timed, or the others."""
    mine = [r for r in rows if r["network"] in MODELS and ("--bench" in r["options"]) is timed]
    return sorted(mine, key=lambda r: (MODELS.index(r["network"]), r["options"], r["samples"]))


def _name(row: Row) -> str:
    return " ".join([row["network"], *row["options"]])


def _met(held: bool) -> str:
    return "met" if held else "**missed**"


TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "networks": networks,
    "stages": stages,
    "speed": speed,
    "growth": growth,
    "growth-points": growth_points,
}
