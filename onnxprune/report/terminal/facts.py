"""What several reports tell in the same words: numbers of samples, errors of outputs, limits, ratios of times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxprune.measures.figures import ERROR, percent
from onnxprune.measures.gates import Gate


def output_facts(
    error: float | None, summary: Mapping[str, Any], outputs: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """The error of the outputs, and each part's where there are several, or one is not the output itself.

    outputs: `measures.figures.Figure` as dictionaries. summary: as in `Report.error`; held_out is None for data that
    no run has read.
    """
    where = {True: ", held out", False: ", on the calibration samples", None: ""}[summary["held_out"]]
    told = _error(error, summary.get("interval")) if error is not None else f"not measured ({summary.get('why')})"
    facts = [(f"output error{where}", f"{told}, {samples(summary.get('samples', 0))}")]
    alone = len(outputs) == 1 and not outputs[0]["at"] and outputs[0]["value"] is not None
    return facts + ([] if alone else [("", _figure(f)) for f in outputs if f["value"] is not None or f["counts"]])


def _figure(f: Mapping[str, Any]) -> str:
    name = ", ".join(f["outputs"]) + (f" at {f['at']}" if f["at"] else "")
    if f["value"] is None:
        return f"{name}: not measured ({f['why']})"
    return f"{name}: {percent(f['value'])}" + ("" if f["kind"] == ERROR else " of the entries differ")


def _error(value: float, interval: Sequence[float] | None) -> str:
    bounds = f"; 95% interval: {percent(interval[0])} to {percent(interval[1])}" if interval else ""
    return f"{percent(value)} (squared error over spread of the outputs{bounds})"


def gate_facts(gates: Sequence[Gate]) -> list[tuple[str, str]]:
    """What became of each limit."""
    told = [f"{'held' if g.held else 'FAILED'}: {g.text}" for g in gates]
    return [("gate" if len(told) == 1 else "gates" if i == 0 else "", t) for i, t in enumerate(told)]


def ratio_of_times(ratio: float, interval: Sequence[float] | None) -> str:
    """A ratio of two times, with the bounds of its interval where they are known."""
    bounds = f" (95% interval in this run: {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    return f"{ratio:.3f} ×{bounds}"


def samples(n: int) -> str:
    """A number of samples in words."""
    return "1 sample" if n == 1 else f"{n} samples"


def in_threads(n: int) -> str:
    """The number of threads as the end of a list of facts; empty for onnxruntime's own choice."""
    return "" if n == 0 else ", 1 thread" if n == 1 else f", {n} threads"


def removed(before: int, after: int) -> str:
    """The share that went; empty where there was nothing."""
    return f"{1.0 - after / before:.1%}" if before else ""


def number(value: float | None) -> str:
    """A figure in four digits; empty where it was not measured."""
    return "" if value is None else f"{value:.4g}"
