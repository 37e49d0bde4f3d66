"""Tables in Markdown from rows of results: means over seeds, with the standard deviation where there are several."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from statistics import mean, stdev
from typing import Any

from benchmarks.accuracy.bars import BARS, MEASURES, Bar, Bound
from benchmarks.accuracy.runs import DEFAULT, OURS, OWN, Row
from benchmarks.accuracy.suites import (
    CALIBRATION_POINTS,
    FAST,
    METHODS,
    PEER_POINTS,
    REFITS,
    SIZES,
    TRANSFORMER_POINTS,
    VARIANTS,
)

MISSING = "*Not measured yet: `python -m benchmarks.accuracy KIT --out FILE --suite {}`.*"


def bars(rows: Sequence[Row]) -> str:
    """Each measure that a bar bounds, met or missed, by the mean over the seeds; a line per bound, variant, version."""
    head = ["model", "MACs removed", "samples", "options", "measure", "before", "measured", "bar", "", "agreement, %"]
    head += ["seeds", "seconds", "passes", "version"]
    mine = [r for r in rows if r["source"] == OWN and variant_of(r)]
    if not any(_at(r, bar) for r in mine for bar in BARS):
        return MISSING.format("bars")
    lines = []
    for bar in BARS:
        at = [r for r in mine if _at(r, bar)]
        for variant in VARIANTS:
            fitting = [r for r in succeeded(at) if variant_of(r) == variant]
            by_model = grouped(fitting, lambda r, pooled=bar.pooled: ("" if pooled else r["model"], _version(r)))
            for (model, _), found in sorted(by_model.items()):
                lines += [[model or _pooled(found), *_bound(bar, bound, variant, found)] for bound in bar.bounds]
            if not fitting:
                for bound in bar.bounds:
                    goal = [f"{bar.ratio:.0%}", _samples(bar), variant, MEASURES[bound.measure].title, ""]
                    lines.append([f"`{bar.pattern}`", *goal, "not measured", bound.shown(), *("",) * 6])
    return table(head, lines) + failures(r for r in mine if any(_at(r, b) for b in BARS))


def _bound(bar: Bar, bound: Bound, variant: str, found: Sequence[Row]) -> list[str]:
    """The cells behind the model."""
    measure = MEASURES[bound.measure]
    values = by_seed(found, measure.value)
    agreement = by_seed([r for r in found if "agreement" in r], lambda r: r["agreement"])
    verdict = "" if bound.allowed is None else "met" if bound.met(mean(values)) else "**missed**"
    return [
        f"{bar.ratio:.0%}",
        _samples(bar),
        variant,
        measure.title,
        f"{mean(map(measure.before, found)):.2f}" if measure.before else "",
        spread(values),
        bound.shown(),
        verdict,
        spread(agreement),
        str(len(values)),
        f"{mean(r['seconds'] for r in found):.1f}",
        f"{mean(r['passes'] for r in found):.1f}",
        found[0].get("version", ""),
    ]


def _samples(bar: Bar) -> str:
    return f"{bar.samples:,}" + (f" (bar: {bar.wanted:,})" if bar.wanted else "")


def _pooled(found: Sequence[Row]) -> str:
    names = {r["model"] for r in found}
    return f"{min(names).partition('_')[0]}: mean over {len(names)} networks"


def _at(row: Row, bar: Bar) -> bool:
    return bar.fits(row["model"]) and row["ratio"] == bar.ratio and row["samples"] == bar.samples


def methods(rows: Sequence[Row]) -> str:
    """Points of top-1 lost by selection (lines) and refit (columns)."""
    chosen = combined(rows)
    lines = []
    for (model, ratio), found in sorted(grouped(succeeded(chosen), lambda r: (r["model"], r["ratio"])).items()):
        cells = grouped(found, _how)
        for method in sorted({r["method"] for r in found}, key=_order(METHODS)):
            values = [by_seed(cells.get((method, refit), ()), _lost) for refit in REFITS]
            lines.append([model, f"{ratio:.0%}", method, *(spread(v) for v in values)])
    head = ["model", "MACs removed", "selection", *REFITS]
    return (table(head, lines) if lines else MISSING.format("methods")) + failures(chosen)


def calibration(rows: Sequence[Row]) -> str:
    """Points of top-1 lost by the number of calibration samples."""
    chosen = [r for r in calibrated(rows) if r["source"] == OWN]
    sizes = [s for s in SIZES if any(r["samples"] == s for r in chosen)]
    lines = []
    kinds = grouped(succeeded(chosen), lambda r: (r["model"], r["ratio"], variant_of(r)))
    for (model, ratio, variant), found in sorted(kinds.items()):
        of = grouped(found, lambda r: r["samples"])
        lines.append([model, f"{ratio:.0%}", variant, *(spread(by_seed(of.get(s, ()), _lost)) for s in sizes)])
    head = ["model", "MACs removed", "options", *(f"{s:,}" for s in sizes)]
    return (table(head, lines) if lines else MISSING.format("calibration")) + failures(chosen)


def sources(rows: Sequence[Row]) -> str:
    """Points of top-1 lost by where the calibration samples come from."""
    chosen = [r for r in calibrated(rows) if r["source"] != OWN]
    good = succeeded(chosen)
    lines = []
    points = {(r["model"], r["ratio"], r["samples"]) for r in good}
    own = [r for r in calibrated(rows) if r["source"] == OWN and (r["model"], r["ratio"], r["samples"]) in points]
    kinds = grouped(
        succeeded([*own, *good]),
        lambda r: (r["model"], r["ratio"], r["source"] != OWN, r["source"], r["given"], variant_of(r)),
    )
    for (model, ratio, _, source, given, variant), found in sorted(kinds.items()):
        agreement = spread(by_seed(found, lambda r: r["agreement"]))
        lines.append([model, f"{ratio:.0%}", source, f"{given:,}", variant, spread(by_seed(found, _lost)), agreement])
    head = ["model", "MACs removed", "samples from", "samples", "options", "points lost", "agreement, %"]
    return (table(head, lines) if lines else MISSING.format("calibration")) + failures(chosen)


def peers(rows: Sequence[Row]) -> str:
    """The library and its peers, with what each left of the MACs."""
    chosen = compared(rows)
    lines = []
    kinds = grouped(
        succeeded(chosen),
        lambda r: (r["model"], r["ratio"], r["tool"] != OURS, r["tool"], *_how(r), variant_of(r)),
    )
    for (model, ratio, _, tool, method, refit, variant), every in sorted(kinds.items()):
        found = fullest(every)
        lines.append(
            [
                model,
                f"{ratio:.0%}",
                tool,
                method if tool != OURS else variant,
                refit if tool != OURS else "",
                f"{mean(r['macs_left'] for r in found):.3f}",
                f"{mean(r['params_left'] for r in found):.3f}",
                spread(by_seed(found, lambda r: r["top1_after"])),
                spread(by_seed(found, _lost)),
                spread(by_seed(found, lambda r: r["agreement"])),
                f"{mean(r['seconds'] for r in found):.0f}",
            ]
        )
    head = ["model", "MACs removed", "tool", "selection", "refit", "MACs left", "parameters left", "top-1, %"]
    head += ["points lost", "agreement, %", "seconds"]
    return (table(head, lines) if lines else MISSING.format("peers")) + failures(chosen)


def transformers(rows: Sequence[Row]) -> str:
    """The library and its peers on networks that are no image classifiers of the kit, by what their bars bound."""
    chosen = compared(rows, TRANSFORMER_POINTS)
    lines = []
    kinds = grouped(
        succeeded(chosen),
        lambda r: (r["model"], r["ratio"], r["tool"] != OURS, r["tool"], *_how(r), variant_of(r)),
    )
    for (model, ratio, _, tool, method, refit, variant), found in sorted(kinds.items()):
        bounds = next(bar.bounds for bar in BARS if bar.fits(model))
        measured = (f"{MEASURES[b.measure].title}: {spread(by_seed(found, MEASURES[b.measure].value))}" for b in bounds)
        cells = [variant, ""] if tool == OURS else [method, refit]
        cells += [f"{mean(r[k] for r in fullest(found)):.3f}" for k in ("macs_left", "params_left")]
        cells += ["; ".join(measured), f"{mean(r['seconds'] for r in fullest(found)):.0f}"]
        lines.append([model, f"{ratio:.0%}", tool, *cells])
    head = [
        "model",
        "MACs removed",
        "tool",
        "selection",
        "refit",
        "MACs left",
        "parameters left",
        "measured",
        "seconds",
    ]
    return (table(head, lines) if lines else MISSING.format("peers")) + failures(chosen)


# which rows


def combined(rows: Iterable[Row]) -> list[Row]:
    """Rows of the library whose selection and refit were both named, with nothing after the refit."""
    plain = [r for r in rows if r["tool"] == OURS and r["source"] == OWN and r["options"] == FAST]
    return [r for r in plain if DEFAULT not in _how(r)]


def calibrated(rows: Iterable[Row]) -> list[Row]:
    """Rows of the library's variants at the points of the suite `calibration`."""
    points = [(pattern, ratio) for pattern, ratio, _ in CALIBRATION_POINTS]
    fits = [Bar(pattern, ratio, 0, ()) for pattern, ratio in points]
    return [r for r in rows if variant_of(r) and any(b.fits(r["model"]) and b.ratio == r["ratio"] for b in fits)]


def compared(rows: Iterable[Row], points: Sequence[tuple[str, str, float, int]] = PEER_POINTS) -> list[Row]:
    """Rows at those of the points where a peer was run, and of the library's variants there."""

    def point(r: Row) -> tuple[Any, ...]:
        return (r["model"], r["ratio"], r["samples"], r["source"])

    rows = list(rows)
    fits = [Bar(pattern, ratio, samples, (), but) for pattern, but, ratio, samples in points]
    there = {point(r) for r in rows if r["tool"] != OURS and any(_at(r, b) for b in fits)}
    seeds = {(point(r), r["seed"]) for r in rows if r["tool"] != OURS}
    kept = [r for r in rows if point(r) in there and (r["tool"] != OURS or variant_of(r))]
    # As many seeds of the library as of its peers.
    return [r for r in kept if (point(r), r["seed"]) in seeds]


def succeeded(rows: Iterable[Row]) -> list[Row]:
    """Those with figures."""
    return [r for r in rows if "failure" not in r]


def failures(rows: Iterable[Row]) -> str:
    """What failed, in words, below a table; "" where nothing did."""
    said = sorted({f"- {r['key']}: {r['failure']}" for r in rows if "failure" in r})
    return "\n\nWithout a result:\n\n" + "\n".join(said) if said else ""


def variant_of(row: Row) -> str:
    """The name of the variant that a row of the library is of, with its own method and refit; "" of another."""
    if row["tool"] != OURS or _how(row) != (DEFAULT, DEFAULT):
        return ""
    return next((name for name, options in VARIANTS.items() if row["options"] == dict(options)), "")


def _how(row: Row) -> tuple[str, str]:
    return row["method"], row["refit"]


def _lost(row: Row) -> float:
    return float(row["top1_before"] - row["top1_after"])


def _order(names: Sequence[str]) -> Callable[[str], int]:
    return lambda name: names.index(name) if name in names else len(names)


# numbers and marks


def grouped(rows: Iterable[Row], key: Callable[[Row], Hashable]) -> dict[Any, list[Row]]:
    """Rows by a key."""
    found: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return dict(found)


def by_seed(rows: Iterable[Row], value: Callable[[Row], float]) -> list[float]:
    """The mean over the rows of each seed, of one version alone, so that what is left to vary is the seed."""
    return [mean(map(value, found)) for _, found in sorted(grouped(fullest(rows), lambda r: r["seed"]).items())]


def fullest(rows: Iterable[Row]) -> list[Row]:
    """Those of the version that made most seeds, of several the newest: what a version changes is no spread."""
    by_version = grouped(rows, _version)
    seeds = {version: len({r["seed"] for r in found}) for version, found in by_version.items()}
    return by_version[max(by_version, key=lambda v: (seeds[v], v))] if by_version else []


def _version(row: Row) -> tuple[int, ...]:
    return tuple(map(int, row.get("version", "0").split(".")))


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation of the sample; "" of nothing."""
    if not values:
        return ""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    marks = ["---"] * len(head)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, marks, *lines))
