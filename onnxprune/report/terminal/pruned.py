"""The report of a pruning run as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxprune.intake.figures import InputFigures, text_of
from onnxprune.measures.figures import percent
from onnxprune.methods import BUDGETS
from onnxprune.options import exact_percent
from onnxprune.report.devices import device_line
from onnxprune.report.summary import Alignment, Effort, Report
from onnxprune.report.terminal.axes import pinned_axes
from onnxprune.report.terminal.checks import check_facts
from onnxprune.report.terminal.facts import in_threads, output_facts, ratio_of_times, removed, samples
from onnxprune.report.terminal.fewer_bits import fewer_bits_facts
from onnxprune.report.terminal.groups import (
    any_cut,
    changed_groups,
    experts_gone,
    layers_gone,
    patterns,
    reasons_to_stay,
    what_cuts_do,
    whole_groups,
)
from onnxprune.report.terminal.screen import Grid, Part, Screen, line, listed, note
from onnxprune.report.units import count, duration, latency, size
from onnxprune.report.visible import made_visible

_SHOWN_INPUTS = 8
# Columns of a window that is large enough for what each cut saves and does by itself.
_WIDE = 120


def prune_report(report: Report, screen: Screen, *, verbose: bool = False) -> str:
    """The report of a pruning run as text. verbose: with every group, and what each saves and costs."""
    report = made_visible(report)
    gone = *experts_gone(report, screen), *layers_gone(report, screen)
    # Where no channels were asked for, the table of those that lost some says nothing.
    cut = [changed_groups(report, screen)] if report.requested != 0.0 or any_cut(report) else []
    parts: list[Part] = [_sizes(report, screen), *gone, *cut]
    if verbose:
        parts += [*([what_cuts_do(report, screen)] * bool(cut)), *whole_groups(report, screen)]
    elif cut and screen.width >= _WIDE and not screen.piped:
        parts.append(what_cuts_do(report, screen))
    parts += [line(f"{n} unchanged: {reason}") for reason, n in reasons_to_stay(report).items() if not verbose]
    parts += [] if verbose else [line()]
    if report.patterns:
        parts += [patterns(report.patterns, screen), line()]
    if report.pinned:
        parts += pinned_axes(report.pinned, screen)
    parts.append(listed(_run_facts(report)))
    parts += [line(f"warning: {w}", "bold yellow") for w in report.warnings]
    parts += [note(n) for n in report.notes]
    if report.dry_run:
        parts.append(line("dry run: no model was written", "bold"))
    if report.files:
        parts.append(line(f"written: {', '.join(report.files)}", "bold green"))
    return screen.render(parts)


def _sizes(report: Report, screen: Screen) -> Grid:
    before, after = report.before, report.after
    table = screen.table("", "before", "after", "removed", title=report.model)
    rows: list[tuple[str, ...]] = [
        ("MACs per sample", count(before.macs), count(after.macs), removed(before.macs, after.macs)),
    ]
    weights = (before.parameters, after.parameters)
    rows.append(("parameters", *map(count, weights), removed(*weights)))
    if after.bytes:
        rows.append(("file size", size(before.bytes), size(after.bytes), removed(before.bytes, after.bytes)))
    if report.latency is not None:
        first, second = (latency(x["median"]) for x in report.latency["models"])
        rows.append((f"latency, {_where(report.latency)}", first, second, f"{1.0 - _ratio(report.latency):.1%}"))
    for row in rows:
        table.add_row(*row)
    return table


def _where(bench: Mapping[str, Any]) -> str:
    return str(bench["provider"]).removesuffix("ExecutionProvider")


def _ratio(bench: Mapping[str, Any]) -> float:
    return float(bench["comparison"]["ratio"])


def _run_facts(report: Report) -> list[tuple[str, str]]:
    unit = BUDGETS.get(str(report.config.get("budget")), "cost")
    unit, of = ("channels", " of every group") if report.config.get("uniform") is not None else (unit, "")
    wanted = _tolerance(report) if report.requested is None else f"{_requested(report.requested)}{of}"
    facts = [
        (f"{unit} removed", f"{report.achieved:.1%}, {wanted}"),
        *_timing_facts(report),
        ("alignment", _alignment(report.alignment)),
    ]
    if report.verdict is not None:
        facts += output_facts(report.output_error, report.error, report.outputs)
        if report.agreement is not None:
            facts.append(("agreement", f"{percent(report.agreement)} get the same class"))
        facts.append(("verdict", str(report.verdict["text"])))
    if report.fewer_bits is not None:
        facts += fewer_bits_facts(report.fewer_bits)
    facts += check_facts(report)
    if report.latency is not None:
        b = report.latency
        spread = ratio_of_times(_ratio(b), b["comparison"]["interval"])
        facts.append(
            ("latency", f"{spread} of the original's, median of {b['rounds']} rounds in turns, {b['library']}")
        )
    facts += [("build an engine", report.engine)] if report.engine else []
    c = report.calibration
    labels = f", with the labels {c['labels']!r}" if c.get("labels") is not None else ""
    facts.append(("calibration", f"{c['origin']}: {samples(c['samples'])}{labels}, {c['held_out']} of them held out"))
    facts += [("prepared", c["prepared"])] if c.get("prepared") else []
    facts += _input_facts(c)
    facts += [("options from" if i == 0 else "", f"{k}: {v}") for i, (k, v) in enumerate(report.sources.items())]
    facts.append(("seed", f"{report.config.get('seed')}"))
    e = report.effort
    stages = " · ".join(f"{name} {duration(s)}" for name, s in e.stages.items())
    facts.append(("time", f"{duration(e.seconds)} ({stages})"))
    if e.plain_pass_seconds:
        facts.append(("", f"{e.passes:.0f} × one plain pass over the data ({duration(e.plain_pass_seconds)})"))
    if e.workers or e.provider != "cpu":
        facts.append(("calibrated by", _by_whom(e)))
    v = report.versions
    facts.append(("computed by", f"{v['processor']}, onnxruntime {v['onnxruntime']}, {v['blas']}"))
    if e.peak_memory_bytes is not None:
        facts.append(("peak memory", size(e.peak_memory_bytes) + (" without the workers" if e.workers else "")))
    return facts


def _requested(share: float) -> str:
    if not share:
        return "nothing requested but what is named"
    return f"requested {share:.1%}" if round(share, 3) == share else f"requested {exact_percent(share)}"


def _tolerance(report: Report) -> str:
    each = report.config.get("layer_tolerance")
    if each is not None:
        return f"within a tolerance of {each} on what each layer computes"
    of = "the outputs" if report.config.get("labels") is None else "the loss that is added"
    return f"within a tolerance of {report.config.get('tolerance')} on {of}"


def _alignment(a: Alignment) -> str:
    return (
        f"{a.aligned} of {a.widths} layer inputs and outputs are multiples of {a.multiple}, {a.aligned_before} were "
        f"(--round-to {a.requested}, {a.target})"
    )


def _input_facts(calibration: Mapping[str, Any]) -> list[tuple[str, str]]:
    inputs = calibration.get("inputs", ())
    lines = [text_of(InputFigures(**f)) for f in inputs[:_SHOWN_INPUTS]]
    more = len(inputs) - len(lines)
    lines += [f"and {more} more"] if more else []
    return [("input" if i == 0 else "", line) for i, line in enumerate(lines)]


def _timing_facts(report: Report) -> list[tuple[str, str]]:
    timing = report.timing
    if timing is None:
        return []
    if timing.get("targets"):
        return [("time of a run" if i == 0 else "", device_line(t)) for i, t in enumerate(timing["targets"])]
    machine = timing["machine"]
    per = samples(timing["batch"])
    threads = in_threads(int(machine.get("threads", "0")))
    change = f"{latency(timing['before_seconds'])} → {latency(timing['after_seconds'])}"
    facts = [("time of a run", f"{change} ({per}, {machine.get('providers')}{threads}, {machine.get('processor')})")]
    if timing["predicted"] is not None:
        ratios = f"{timing['predicted']:.1%} of the original predicted, {timing['measured']:.1%} measured"
        from_cache = f"{timing['kinds_from_cache']} of {timing['kinds']} from earlier runs"
        facts.append(("", f"{ratios} (kinds of layers: {from_cache})"))
    return facts


def _by_whom(e: Effort) -> str:
    return e.scheduler + (f", on {e.provider}" if e.provider != "cpu" else "")
