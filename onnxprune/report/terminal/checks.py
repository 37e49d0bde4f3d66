"""What holds the result of a run against the original, as lines."""

from __future__ import annotations

from math import isfinite

from onnxprune.measures.figures import percent
from onnxprune.report.summary import Report
from onnxprune.report.view import refusals


def check_facts(report: Report) -> list[tuple[str, str]]:
    """Exactness, sizes of the inputs that ran, what was chosen, and what refit and recovery did."""
    facts: list[tuple[str, str]] = []
    checks = report.checks
    tolerance = checks.get("tolerance")
    for key, name in (
        ("normalised_against_original", "normalised against original"),
        ("slice_against_oracle", "slice against masked original"),
    ):
        if checks.get(key) is not None:
            sizes = checks.get("input_sizes_compared") or 1
            at_sizes = f", at {sizes} sizes of the inputs" if sizes > 1 else ""
            facts.append((name, f"{checks[key]:.1e} ≤ {tolerance:.0e}{at_sizes}"))
    if checks.get("input_sizes_run"):
        facts.append(("input sizes run", str(checks["input_sizes_run"])))
    if checks.get("tensorrt") is not None:
        facts.append(("TensorRT's parser", refusals(checks["tensorrt"])))
    limit, labelled = report.config.get("tolerance"), report.config.get("labels") is not None
    if checks.get("chosen") is not None and limit is not None:
        of = "loss added" if labelled else "error of all outputs"
        count = report.calibration.get("chosen_by")
        where = "on the samples of the figures" if count is None else f"on {count} samples that only chose"
        facts.append(("tolerance", f"{of} {checks['chosen']:.4g} ≤ {limit:g}, {where}"))
    if checks.get("discrepancy") is not None and labelled:
        facts.append(("loss added", f"{checks['discrepancy']:.4g}, against the labels of the judging samples"))
    if checks.get("refit"):
        errors = checks.get("held_out_error", {})
        finite = {k: v for k, v in errors.items() if v is not None and isfinite(v)}
        measured = len(finite) > 1 and report.output_error is not None
        others = " · ".join(f"{k} {percent(v)}" for k, v in finite.items()) if measured else ""
        facts.append(("refit", checks["refit"] + (f" (output error: {others})" if others else "")))
    if checks.get("recovery"):
        r = checks["recovery"]
        kept = f"epoch {r['epoch']}" if r["epoch"] else "the start"
        change = f": {percent(r['before'])} → {percent(r['after'])}" if report.output_error is not None else ""
        took = _what_it_took(report, r["before"] - r["after"]) if change else ""
        facts.append(("recovery", f"{r['steps']} steps; {kept} kept{change}{took}"))
    return facts


def _what_it_took(report: Report, gain: float) -> str:
    """The time of recovery in plain passes, and by how much it lowered the error in a minute."""
    e = report.effort
    seconds = e.stages.get("recover", 0.0)
    if not seconds or not e.plain_pass_seconds:
        return ""
    points = 100 * gain * 60 / seconds
    number = f"{points:.0f}" if points >= 10 else f"{points:.2g}"
    a_minute = f", {number} points of error a minute" if gain > 0 and isfinite(gain) else ""
    return f", in {seconds / e.plain_pass_seconds:.0f} plain passes{a_minute}"
