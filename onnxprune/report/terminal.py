"""Reports as text for a terminal or a log: the only user of rich.

Everything is rendered to a string, so that the caller decides where it goes and what a closed pipe means.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from onnxprune.benchmark.measure import Bench, Latency
from onnxprune.benchmark.profile import NodeTime, by_operator
from onnxprune.channels.describe import AxisUse, Description, GroupDescription
from onnxprune.evaluation import Evaluation
from onnxprune.intake.figures import InputFigures, text_of
from onnxprune.intake.preview import Preview
from onnxprune.measures.by_output import OutputFigures
from onnxprune.measures.figures import ERROR, percent
from onnxprune.measures.gates import Gate
from onnxprune.measures.verdict import verdict_of
from onnxprune.methods import BUDGETS
from onnxprune.options import exact_percent
from onnxprune.report.summary import Alignment, Effort, GroupRow, PatternRow, PinnedRow, Report
from onnxprune.report.sweep import Sweep, said_of, table_of
from onnxprune.report.units import count, duration, latency, size
from onnxprune.report.visible import made_visible
from onnxprune.tasks.answered import SHARE, Score
from onnxprune.tasks.known import ASKED
from onnxprune.tasks.names import CLASSIFICATION

PLAIN_WIDTH = 100
_COSTS_MORE = "a cut here would cost more accuracy than elsewhere"
_PROSE = "reason"
_SHORTEST = 12
_UNLIMITED = 100_000
_HEIGHT = 25
_SHOWN_PLACES = 3
_SHOWN_NODES = 10
_SHOWN_LAYERS = 12
_SHOWN_INPUTS = 8
_ASCII = str.maketrans({"→": "->", "×": "x", "·": "-", "≤": "<=", "…": "..."})


@dataclass(frozen=True)
class Screen:
    """Where text goes: columns, whether colours are wanted, and whether the encoding knows more than ASCII.

    piped: nobody's window limits it, so tables are as wide as their names; else names are shortened to the width.
    """

    width: int = PLAIN_WIDTH
    colour: bool = False
    unicode: bool = True
    piped: bool = False

    def render(self, parts: Iterable[RenderableType]) -> str:
        """The parts as text, without trailing spaces; control codes only with `colour`."""
        console = Console(
            file=io.StringIO(),
            width=_UNLIMITED if self.piped else self.width,
            height=_HEIGHT,  # without one, rich takes a dumb terminal for one of 80 columns
            force_terminal=self.colour,
            force_interactive=False,
            legacy_windows=False,
            safe_box=not self.unicode,
            emoji=False,
            highlight=False,
            markup=False,
        )
        with console.capture() as capture:
            for part in parts:
                console.print(part, width=None if isinstance(part, Grid) else self.width)
        text = capture.get() if self.unicode else capture.get().translate(_ASCII)
        return "".join(f"{line.rstrip()}\n" for line in text.splitlines())

    def table(self, *columns: str, title: str = "") -> Grid:
        """An empty table whose columns after the first are numbers, aligned right, unless they start with a space."""
        return Grid(self, columns, title)


class Grid:
    """A table with a line for each row: where the screen is too narrow, names lose their middle and reasons fold."""

    def __init__(self, screen: Screen, columns: Sequence[str], title: str) -> None:
        self._screen, self._columns, self._title = screen, columns, title
        self._rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        """One cell for each column."""
        self._rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """rich's way to ask for what is drawn."""
        rows, widest = self._rows, self._built(self._rows)
        named = [i for i in range(len(self._columns)) if self._named(i)]
        least = {i: max(_SHORTEST, len(self._columns[i].strip())) for i in named}
        while (over := widest.__rich_measure__(console, options).maximum - options.max_width) > 0:
            lengths = {i: max((len(r[i]) for r in rows), default=0) for i in named}
            lengths = {i: n for i, n in lengths.items() if n > least[i]}
            if not lengths:
                break
            longest = max(lengths, key=lengths.__getitem__)
            others = [n for i, n in lengths.items() if i != longest]
            most = max(lengths[longest] - over, max(others, default=0) - 1, least[longest])
            rows = [tuple(_shortened(c, most) if i == longest else c for i, c in enumerate(r)) for r in rows]
            widest = self._built(rows)
        yield widest

    def _named(self, column: int) -> bool:
        """Whether a column holds names, and neither numbers nor prose."""
        name = self._columns[column]
        return (column == 0 or name.startswith(" ")) and name.strip() != _PROSE

    def _built(self, rows: Sequence[Sequence[str]]) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD if self._screen.unicode else box.ASCII_DOUBLE_HEAD,
            title=self._title or None,
            title_justify="left",
            title_style="bold",
            header_style="bold",
            show_header=any(c.strip() for c in self._columns),
            pad_edge=False,
        )
        for i, name in enumerate(self._columns):
            left = i == 0 or name.startswith(" ")
            table.add_column(name.strip(), justify="left" if left else "right", overflow="fold")
        for r in rows:
            table.add_row(*r)
        return table


def _shortened(name: str, most: int) -> str:
    """A name without its middle, where it has more letters: its ends tell names apart."""
    front = (most - 1) // 2
    return name if len(name) <= most else f"{name[:front]}…{name[len(name) - (most - 1 - front) :]}"


# prune


def prune_report(report: Report, screen: Screen, *, verbose: bool = False, also: Sequence[str] = ()) -> str:
    """The report of a pruning run, as text. verbose: with every group that stays whole. also: files beside the model
    that are written."""
    report = made_visible(report)
    parts: list[RenderableType] = [_sizes(report, screen), _channels(report, screen)]
    parts += [_unchanged(report.groups, screen)] if verbose else []
    parts += [Text(f"{n} unchanged: {reason}") for reason, n in _why_whole(report.groups).items() if not verbose]
    parts.append(Text())
    if report.patterns:
        parts += [_patterns(report.patterns, screen), Text()]
    if report.pinned:
        parts += _pinned(report.pinned, screen)
    parts.append(_facts(_run_facts(report), screen))
    parts += [Text(f"warning: {w}", "bold yellow") for w in report.warnings]
    parts += [_note(n) for n in report.notes]
    if report.dry_run:
        parts.append(Text("dry run: no model was written", "bold"))
    elif report.output:
        parts.append(Text(f"written: {', '.join((report.output, *also))}", "bold green"))
    return screen.render(parts)


def _sizes(report: Report, screen: Screen) -> Grid:
    before, after = report.before, report.after
    table = screen.table("", "before", "after", "removed", title=report.model)
    rows: list[tuple[str, ...]] = [
        ("MACs per sample", count(before.macs), count(after.macs), _removed(before.macs, after.macs)),
    ]
    weights = (before.parameters, after.parameters)
    rows.append(("parameters", *map(count, weights), _removed(*weights)))
    if after.bytes:
        rows.append(("file size", size(before.bytes), size(after.bytes), _removed(before.bytes, after.bytes)))
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


def _channels(report: Report, screen: Screen) -> Grid:
    changed = [g for g in report.groups if g.channels_after != g.channels_before]
    table = screen.table("group", "channels", "producers", "consumers", " ", title="channels")
    for g in changed:
        gone = "" if g.channels_after else " (branch removed)"
        width = f"{g.channels_before} → {g.channels_after}{gone}"
        narrow = f"multiples of {g.alignment}" if g.alignment != report.alignment.multiple else ""
        remarks = ", ".join(filter(None, ("mixing" if g.mixing else "", narrow)))
        table.add_row(g.name, width, str(g.producers), str(g.consumers), remarks)
    return table


def _why_whole(groups: Sequence[GroupRow]) -> dict[str, int]:
    whole = [g for g in groups if g.channels_after == g.channels_before]
    return dict(Counter(g.note or _COSTS_MORE for g in whole).most_common())


def _unchanged(groups: Sequence[GroupRow], screen: Screen) -> Grid:
    """The groups that stay whole, each with its reason."""
    table = screen.table("group", "channels", " reason", title="unchanged")
    for g in groups:
        if g.channels_after == g.channels_before:
            table.add_row(g.name, str(g.channels_before), g.note or _COSTS_MORE)
    return table


def _patterns(rows: Sequence[PatternRow], screen: Screen) -> Grid:
    table = screen.table("pattern", "nodes", "tensors", "groups", " layers", title="what the patterns match")
    for p in rows:
        shown = ", ".join(p.layers[:_SHOWN_LAYERS]) or "none"
        more = len(p.layers) - _SHOWN_LAYERS
        shown += f", and {more} more (--report lists them)" if more > 0 else ""
        table.add_row(f"{p.option} {p.pattern}", str(len(p.nodes)), str(len(p.tensors)), str(len(p.groups)), shown)
    return table


def _pinned(rows: Sequence[PinnedRow], screen: Screen) -> list[RenderableType]:
    """The pinned axes, counted by reason and operator."""
    axes: Counter[tuple[str, str, str]] = Counter()
    channels: Counter[tuple[str, str, str]] = Counter()
    for p in rows:
        axes[p.reason, p.operator, p.remedy] += 1
        channels[p.reason, p.operator, p.remedy] += p.channels
    table = screen.table("reason", " operator", "axes", "channels", title="axes that stay")
    order = axes.most_common()
    numbers = _numbered(remedy for (_, _, remedy), _ in order)
    for (reason, operator, remedy), n in order:
        row = reason, operator, remedy
        table.add_row(f"{reason} [{numbers[remedy]}]", operator, str(n), str(channels[row]))
    return [table, _remedies(numbers, screen)]


def _requested(share: float) -> str:
    return f"{share:.1%}" if round(share, 3) == share else exact_percent(share)


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


def _run_facts(report: Report) -> list[tuple[str, str]]:
    unit = BUDGETS.get(str(report.config.get("budget")), "cost")
    unit, of = ("channels", " of every group") if report.config.get("uniform") is not None else (unit, "")
    wanted = f"requested {_requested(report.requested)}{of}" if report.requested is not None else _tolerance(report)
    facts = [
        (f"{unit} removed", f"{report.achieved:.1%}, {wanted}"),
        *_timing_facts(report),
        ("alignment", _alignment(report.alignment)),
    ]
    if report.verdict is not None:
        facts += _figures(report.output_error, report.error, report.outputs)
        if report.agreement is not None:
            facts.append(("agreement", f"{report.agreement:.2%} get the same class"))
        facts.append(("verdict", str(report.verdict["text"])))
    facts += _check_facts(report)
    if report.latency is not None:
        b = report.latency
        spread = _spread(_ratio(b), b["comparison"]["interval"])
        facts.append(
            ("latency", f"{spread} of the original's, median of {b['rounds']} rounds in turns, {b['library']}")
        )
    c = report.calibration
    labels = f", with the labels {c['labels']!r}" if c.get("labels") is not None else ""
    facts.append(("calibration", f"{c['origin']}: {_samples(c['samples'])}{labels}, {c['held_out']} of them held out"))
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


def _input_facts(calibration: Mapping[str, Any]) -> list[tuple[str, str]]:
    inputs = calibration.get("inputs", ())
    lines = [text_of(InputFigures(**f)) for f in inputs[:_SHOWN_INPUTS]]
    more = len(inputs) - len(lines)
    lines += [f"and {more} more"] if more else []
    return [("input" if i == 0 else "", line) for i, line in enumerate(lines)]


def _figures(
    error: float | None, summary: Mapping[str, Any], outputs: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """The error of the outputs, and each part's where there are several, or one is not the output itself.

    outputs: `measures.figures.Figure` as dictionaries. summary: as in `Report.error`; held_out is None for data that
    no run has read.
    """
    where = {True: ", held out", False: ", on the calibration samples", None: ""}[summary["held_out"]]
    told = _error(error, summary.get("interval")) if error is not None else f"not measured ({summary.get('why')})"
    facts = [(f"output error{where}", f"{told}, {_samples(summary.get('samples', 0))}")]
    alone = len(outputs) == 1 and not outputs[0]["at"] and outputs[0]["value"] is not None
    return facts + ([] if alone else [("", _figure(f)) for f in outputs if f["value"] is not None or f["counts"]])


def _figure(f: Mapping[str, Any]) -> str:
    name = ", ".join(f["outputs"]) + (f" at {f['at']}" if f["at"] else "")
    if f["value"] is None:
        return f"{name}: not measured ({f['why']})"
    return f"{name}: {percent(f['value'])}" + ("" if f["kind"] == ERROR else " of the entries differ")


def _samples(n: int) -> str:
    return "1 sample" if n == 1 else f"{n} samples"


def _threads(n: int) -> str:
    """The number of threads as the end of a list of facts; empty for onnxruntime's own choice."""
    return "" if n == 0 else ", 1 thread" if n == 1 else f", {n} threads"


def _timing_facts(report: Report) -> list[tuple[str, str]]:
    timing = report.timing
    if timing is None:
        return []
    machine = timing["machine"]
    per = _samples(timing["batch"])
    threads = _threads(int(machine.get("threads", "0")))
    change = f"{latency(timing['before_seconds'])} → {latency(timing['after_seconds'])}"
    facts = [("time of a run", f"{change} ({per}, {machine.get('providers')}{threads}, {machine.get('processor')})")]
    if timing["predicted"] is not None:
        ratios = f"{timing['predicted']:.1%} of the original predicted, {timing['measured']:.1%} measured"
        from_cache = f"{timing['kinds_from_cache']} of {timing['kinds']} from earlier runs"
        facts.append(("", f"{ratios} (kinds of layers: {from_cache})"))
    return facts


def _by_whom(e: Effort) -> str:
    return e.scheduler + (f", on {e.provider}" if e.provider != "cpu" else "")


def _check_facts(report: Report) -> list[tuple[str, str]]:
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
        others = " · ".join(f"{k} {v:.2%}" for k, v in finite.items()) if measured else ""
        facts.append(("refit", checks["refit"] + (f" (output error: {others})" if others else "")))
    if checks.get("recovery"):
        r = checks["recovery"]
        kept = f"epoch {r['epoch']}" if r["epoch"] else "the start"
        change = f": {r['before']:.2%} → {r['after']:.2%}" if report.output_error is not None else ""
        facts.append(("recovery", f"{r['steps']} steps; {kept} kept{change}"))
    return facts


# sweep


def sweep(s: Sweep, screen: Screen) -> str:
    """The points of a sweep, as text."""
    s = made_visible(s)
    heads, rows = table_of(s)
    table = screen.table(*heads)
    for row in rows:
        table.add_row(*row)
    parts: list[RenderableType] = [
        Text(s.model),
        Text(),
        table,
        Text(f"* on the Pareto front; judged on {s.judged}"),
        Text(),
    ]
    parts += [_note(text) for text in (*said_of(s), *s.notes)]
    written = [p.output for p in s.points if p.output]
    if written:
        parts += [Text(), Text(f"written: {', '.join(written)}")]
    return screen.render(parts)


# inspect


def inspection(d: Description, screen: Screen) -> str:
    """The description of a model, as text: what can be pruned, and why the rest cannot."""
    d = made_visible(d)
    share = min(d.share, 0.999) if d.prunable < d.parameters else 1.0
    groups = "1 group" if len(d.groups) == 1 else f"{len(d.groups)} groups"
    share_of_macs = min(d.share_of_macs, 0.999) if d.prunable_macs < d.macs else 1.0
    head = (
        f"{share:.1%} of {count(d.parameters)} parameters and {share_of_macs:.1%} of {count(d.macs)} MACs can be "
        f"pruned, in {groups}"
    )
    parts: list[RenderableType] = [Text(d.model, "bold"), Text(head if d.groups else "no channel can be removed")]
    if d.groups:
        table = screen.table("group", "units", "channels each", "parameters", " producers => consumers")
        for g in d.groups:
            name = g.name + (" (mixing)" if g.mixing else "")
            table.add_row(name, str(g.units), str(g.channels_per_unit), count(g.elements), _flow(g))
        parts.append(table)
    if d.pinned:
        table = screen.table("tensor", "axis", "channels", " operator", " reason", title="axes that stay")
        numbers = _numbered(p.remedy for p in d.pinned)
        for p in d.pinned:
            reason = f"{p.reason} [{numbers[p.remedy]}]"
            table.add_row(p.tensor, str(p.axis), str(p.channels), p.operator, reason)
        parts += [table, _remedies(numbers, screen)]
    parts += [_note(n) for n in d.notes]
    return screen.render(parts)


def _flow(g: GroupDescription) -> str:
    return f"{_nodes(g.producers)} => {_nodes(g.consumers)}"


def _nodes(places: Sequence[AxisUse]) -> str:
    names = list(dict.fromkeys(p.node or p.weight for p in places))
    more = len(names) - _SHOWN_PLACES
    return ", ".join(names[:_SHOWN_PLACES]) + (f" and {more} more" if more > 0 else "") if names else "nothing"


# data


def preview(p: Preview, screen: Screen) -> str:
    """What a model would be calibrated on, as text."""
    p = made_visible(p)
    facts = [("data", f"{p.origin}, {_samples(p.samples)}")]
    facts += [("prepared", p.prepared)] if p.prepared else []
    facts += [("also", text) for text in p.labels]
    table = screen.table("input", " type", " shape", "min", "max", "mean", "std", " looks like")
    for v in p.inputs:
        f = v.figures
        shape = "x".join("?" if n < 0 else str(n) for n in f.shape) or "scalar"
        table.add_row(f.name, f.dtype, shape, *map(_number, (f.least, f.most, f.mean, f.std)), v.looks)
        for i, c in enumerate(v.channels if len(v.channels) > 1 else ()):
            table.add_row(f"  channel {i}", "", "", *map(_number, (c.least, c.most, c.mean, c.std)), "")
    return screen.render([Text(p.model, "bold"), _facts(facts, screen), table, *(_note(n) for n in p.notes)])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


# eval


def evaluation(e: Evaluation, screen: Screen, gates: Sequence[Gate] = ()) -> str:
    """The figures of an evaluation, and what became of limits, as text."""
    e, gates = made_visible(e), made_visible(gates)
    facts = [("data", f"{e.data}, {_samples(e.samples)}")]
    facts += [("prepared", e.prepared)] if e.prepared else []
    if e.task is not None:
        facts.append(("task", f"{e.task} ({e.task_why}" + (")" if e.task_why == ASKED else "; --task says otherwise)")))
    if e.accuracy is not None:
        facts.append(("top-1", f"{e.accuracy:.2%}"))
    if e.original_accuracy is not None and e.drop is not None:
        facts.append(("top-1 of the original", f"{e.original_accuracy:.2%} (drop: {e.drop:.2f} points)"))
    facts += [_score(x) for x in e.scores if x.name not in ("top-1", "agreement")]
    if e.agreement is not None and (e.task in (None, CLASSIFICATION)):
        facts.append(("agreement", f"{e.agreement:.2%} get the same class"))
    if e.figures is not None:
        figures = e.figures
        facts += _figures(figures.error, figures.summary() | {"held_out": None}, figures.as_dicts())
        facts += _output_facts(e.by_output)
        facts.append(("verdict", verdict_of(figures).text))
    facts += _gate_facts(gates)
    title = e.model if e.against is None else f"{e.model} against {e.against}"
    table = [_by_output(e.by_output, screen)] if len(e.by_output) > 1 else []
    return screen.render([Text(title, "bold"), _facts(facts, screen), *table, *(_note(n) for n in e.notes)])


def _score(score: Score) -> tuple[str, str]:
    """A score and what it is, beside the original's by the same labels."""
    if score.value is None:
        return score.name, f"not measured ({score.why})"
    shown = "{:.2%}" if score.unit == SHARE else "{:.5g}"
    original = "" if score.original is None else f" (original: {shown.format(score.original)})"
    return score.name, f"{shown.format(score.value)} {score.about}{original}"


def _output_facts(outputs: Sequence[OutputFigures]) -> list[tuple[str, str]]:
    """What else is told of a single output; several have a table."""
    if len(outputs) != 1 or outputs[0].largest is None:
        return []
    facts = [("largest difference", f"{outputs[0].largest:.3g}")]
    return facts + ([] if outputs[0].cosine is None else [("cosine", f"{outputs[0].cosine:.4f}, a mean over samples")])


def _by_output(outputs: Sequence[OutputFigures], screen: Screen) -> Grid:
    table = screen.table("output", "error", "largest difference", "cosine", "agreement", title="outputs")
    for o in outputs:
        table.add_row(
            o.output,
            "-" if o.error is None else percent(o.error),
            "-" if o.largest is None else f"{o.largest:.3g}",
            "-" if o.cosine is None else f"{o.cosine:.4f}",
            "-" if o.agreement is None else f"{o.agreement:.2%}",
        )
    return table


def _gate_facts(gates: Sequence[Gate]) -> list[tuple[str, str]]:
    told = [f"{'held' if g.held else 'FAILED'}: {g.text}" for g in gates]
    return [("gate" if len(told) == 1 else "gates" if i == 0 else "", t) for i, t in enumerate(told)]


# bench


def benchmark(b: Bench, screen: Screen, gates: Sequence[Gate] = ()) -> str:
    """The timings of one model or two, as text: how long they take, where the time goes, what became of limits."""
    b, gates = made_visible(b), made_visible(gates)
    names = [f"[{i}]" for i in range(1, len(b.models) + 1)] if len(b.models) > 1 else [""]
    parts: list[RenderableType] = [
        Text(f"{n} {x.model}".lstrip(), "bold") for n, x in zip(names, b.models, strict=True)
    ]
    table = screen.table("", *(n or " " for n in names))
    rows: list[tuple[str, Callable[[Latency], str]]] = [
        ("median", lambda x: latency(x.median)),
        ("p90", lambda x: latency(x.p90)),
        ("samples per second", lambda x: count(x.throughput)),
        ("file size", lambda x: size(x.bytes)),
        ("engine built in" if b.provider == "tensorrt" else "session started in", lambda x: duration(x.start)),
    ]
    for name, text in rows:
        table.add_row(name, *map(text, b.models))
    parts += [table, _facts(_bench_facts(b) + _gate_facts(gates), screen)]
    if any(x.nodes for x in b.models):
        parts += [_operators(b.models, names, screen), *_slowest(b.models, names, screen)]
    return screen.render([*parts, *(_note(n) for n in b.notes)])


def _bench_facts(b: Bench) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    if b.comparison is not None:
        c = b.comparison
        facts.append(("time of [2]", f"{_spread(c.ratio, c.interval)} that of [1]"))
        facts.append(("", f"half of the rounds: {c.quartiles[0]:.3f} to {c.quartiles[1]:.3f}"))
        if not c.clear:
            facts.append(("", "too close, or too noisy, to tell the models apart; more --seconds narrow the interval"))
    turns = "rounds, in turns" if len(b.models) > 1 else "runs"
    facts.append(("measured", f"{b.rounds} {turns}, after {b.warmup} to warm up"))
    inputs = ", ".join(f"{k} {'x'.join(map(str, v)) or 'scalar'}" for k, v in b.inputs.items())
    facts.append(("inputs", f"{inputs} (batch {b.batch}; {b.data})"))
    types = "" if b.precision == "model" else f", a copy in {b.precision}"
    facts.append(("run by", f"{b.library}, {b.provider}{_threads(b.threads)}{types}"))
    return facts


def _spread(ratio: float, interval: Sequence[float] | None) -> str:
    bounds = f" (95% interval in this run: {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    return f"{ratio:.3f} ×{bounds}"


def _operators(models: Sequence[Latency], names: Sequence[str], screen: Screen) -> Grid:
    """Time per operator, that of the models beside each other."""
    columns = [f"{c} {n}".rstrip() for n in names for c in ("time", "share", "calls")]
    table = screen.table("operator", *columns, title="operators")
    times = [{o.operator: o for o in by_operator(x.nodes)} for x in models]
    for op in _slowest_first([{k: o.seconds for k, o in x.items()} for x in times]):
        row: list[str] = []
        for x in times:
            o = x.get(op)
            row += [latency(o.seconds), f"{o.share:.1%}", f"{o.calls:.4g}"] if o else ["", "", ""]
        table.add_row(op, *row)
    return table


def _slowest(models: Sequence[Latency], names: Sequence[str], screen: Screen) -> list[RenderableType]:
    """The nodes that take longest; of two models those with the same name in one row."""
    table = screen.table("node", " operator", *(f"time {n}".rstrip() for n in names), title="slowest nodes")
    times: list[dict[str, NodeTime]] = [{n.name: n for n in x.nodes} for x in models]
    order = _slowest_first([{k: n.seconds for k, n in x.items()} for x in times])
    for name in order[:_SHOWN_NODES]:
        rows = [x.get(name) for x in times]
        operator = next(n.operator for n in rows if n is not None)
        table.add_row(name, operator, *(latency(n.seconds) if n else "" for n in rows))
    more = len(order) - _SHOWN_NODES
    return [table, *([Text(f"and {more} more\n")] if more > 0 else [])]


def _slowest_first(seconds: Sequence[Mapping[str, float]]) -> list[str]:
    names = dict.fromkeys(k for x in seconds for k in x)
    return sorted(names, key=lambda k: -max(x.get(k, 0.0) for x in seconds))


# shared


def _facts(rows: Iterable[tuple[str, str]], screen: Screen) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return Padding(table, (0, 0, 1, 0))


def _numbered(remedies: Iterable[str]) -> dict[str, int]:
    """Remedy → the number that its reasons refer to it by, in order of appearance."""
    return {remedy: i for i, remedy in enumerate(dict.fromkeys(remedies), start=1)}


def _remedies(numbers: Mapping[str, int], screen: Screen) -> RenderableType:
    """What would free the axes that stay: once for all those with the same remedy, which may be most of them."""
    return Group(Text("what would free them", "bold"), _facts([(f"[{i}]", r) for r, i in numbers.items()], screen))


def _error(value: float, interval: Sequence[float] | None) -> str:
    bounds = f"; 95% interval: {percent(interval[0])} to {percent(interval[1])}" if interval else ""
    return f"{percent(value)} (squared error over spread of the outputs{bounds})"


def _note(text: str) -> Text:
    return Text(f"note: {text}", "yellow")


def _removed(before: int, after: int) -> str:
    return f"{1.0 - after / before:.1%}" if before else ""
