"""Reports as text for a terminal or a log: the only user of rich.

Everything is rendered to a string, so that the caller decides where it goes and what a closed pipe means.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from onnxprune.channels.describe import Description, GroupDescription, Place
from onnxprune.evaluation import Evaluation
from onnxprune.report.summary import Effort, GroupRow, PinnedRow, Report

PLAIN_WIDTH = 100
_SHOWN_PLACES = 3
_ASCII = str.maketrans({"→": "->", "×": "x", "·": "-", "≤": "<=", "…": "..."})


@dataclass(frozen=True)
class Screen:
    """Where text goes: columns, whether colours are wanted, and whether the encoding knows more than ASCII."""

    width: int = PLAIN_WIDTH
    colour: bool = False
    unicode: bool = True

    def render(self, parts: Iterable[RenderableType]) -> str:
        """The parts as text, without trailing spaces; control codes only with `colour`."""
        console = Console(
            file=io.StringIO(),
            width=self.width,
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
                console.print(part)
        text = capture.get() if self.unicode else capture.get().translate(_ASCII)
        return "".join(f"{line.rstrip()}\n" for line in text.splitlines())

    def table(self, *columns: str, title: str = "") -> Table:
        """An empty table whose columns after the first are numbers, aligned right, unless they start with a space."""
        table = Table(
            box=box.SIMPLE_HEAD if self.unicode else box.ASCII_DOUBLE_HEAD,
            title=title or None,
            title_justify="left",
            title_style="bold",
            header_style="bold",
            show_header=any(c.strip() for c in columns),
            pad_edge=False,
        )
        for i, name in enumerate(columns):
            left = i == 0 or name.startswith(" ")
            table.add_column(name.strip(), justify="left" if left else "right", overflow="fold")
        return table


@contextmanager
def status(enabled: bool) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr with the name of the current stage; nothing unless `enabled`."""
    if not enabled:
        yield lambda _: None
        return
    with Console(stderr=True).status("starting") as spinner:
        yield lambda stage: spinner.update(f"{stage} …")


# prune


def prune_report(report: Report, screen: Screen) -> str:
    """What a run did."""
    parts: list[RenderableType] = [_sizes(report, screen), _channels(report, screen)]
    parts += [Text(f"{n} unchanged: {reason}") for reason, n in _why_whole(report.groups).items()]
    parts.append(Text())
    if report.pinned:
        parts += _pinned(report.pinned, screen)
    parts.append(_facts(_run_facts(report), screen))
    parts += [_note(n) for n in report.notes]
    if report.dry_run:
        parts.append(Text("dry run: no model was written", "bold"))
    elif report.output:
        parts.append(Text(f"written: {report.output}", "bold green"))
    return screen.render(parts)


def _sizes(report: Report, screen: Screen) -> Table:
    before, after = report.before, report.after
    table = screen.table("", "before", "after", "removed", title=report.model)
    rows: list[tuple[str, ...]] = [
        ("MACs per sample", count(before.macs), count(after.macs), _removed(before.macs, after.macs)),
    ]
    weights = (before.parameters, after.parameters)
    rows.append(("parameters", *map(count, weights), _removed(*weights)))
    if after.bytes:
        rows.append(("file size", size(before.bytes), size(after.bytes), _removed(before.bytes, after.bytes)))
    for row in rows:
        table.add_row(*row)
    return table


def _channels(report: Report, screen: Screen) -> Table:
    changed = [g for g in report.groups if g.channels_after != g.channels_before]
    table = screen.table("group", "channels", "producers", "consumers", " ", title="channels")
    for g in changed:
        width = f"{g.channels_before} → {g.channels_after}"
        table.add_row(g.name, width, str(g.producers), str(g.consumers), "mixing" if g.mixing else "")
    return table


def _why_whole(groups: Sequence[GroupRow]) -> dict[str, int]:
    whole = [g for g in groups if g.channels_after == g.channels_before]
    return dict(Counter(g.note or "a cut here would cost more accuracy than elsewhere" for g in whole).most_common())


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


def _tolerance(report: Report) -> str:
    return f"as much as a tolerance of {report.config.get('tolerance')} on the outputs allows"


def _run_facts(report: Report) -> list[tuple[str, str]]:
    unit = {"macs": "MACs", "params": "parameters"}.get(str(report.config.get("budget")), "cost")
    unit, of = ("channels", " of every group") if report.config.get("uniform") is not None else (unit, "")
    wanted = f"requested {report.requested:.1%}{of}" if report.requested is not None else _tolerance(report)
    facts = [(f"{unit} removed", f"{report.achieved:.1%}, {wanted}")]
    if report.output_error is not None:
        facts.append(("output error, held out", _error(report.output_error)))
    facts += _check_facts(report)
    c = report.calibration
    labels = f", with the labels {c['labels']!r}" if c.get("labels") is not None else ""
    facts.append(("calibration", f"{c['origin']}: {c['samples']} samples{labels}, {c['held_out']} of them held out"))
    facts.append(("seed", f"{report.config.get('seed')}"))
    e = report.effort
    stages = " · ".join(f"{name} {duration(s)}" for name, s in e.stages.items())
    facts.append(("time", f"{duration(e.seconds)} ({stages})"))
    if e.plain_pass_seconds:
        facts.append(("", f"{e.passes:.0f} × one plain pass over the data ({duration(e.plain_pass_seconds)})"))
    if e.workers or e.provider != "cpu":
        facts.append(("calibrated by", _by_whom(e)))
    if e.peak_memory_bytes is not None:
        facts.append(("peak memory", size(e.peak_memory_bytes) + (" without the workers" if e.workers else "")))
    return facts


def _by_whom(e: Effort) -> str:
    return e.scheduler + (f", on {e.provider}" if e.provider != "cpu" else "")


def _check_facts(report: Report) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    checks = report.checks
    tolerance = checks.get("tolerance")
    for key, name in (
        ("normalised_against_original", "normalised against original"),
        ("slice_against_oracle", "slice against masked original"),
    ):
        if checks.get(key) is not None:
            found.append((name, f"{checks[key]:.1e} ≤ {tolerance:.0e}"))
    if checks.get("input_sizes_run"):
        found.append(("input sizes run", str(checks["input_sizes_run"])))
    if checks.get("refit"):
        errors = checks.get("held_out_error", {})
        others = " · ".join(f"{k} {v:.2%}" for k, v in errors.items()) if len(errors) > 1 else ""
        found.append(("refit", checks["refit"] + (f" (output error: {others})" if others else "")))
    if checks.get("recovery"):
        r = checks["recovery"]
        kept = f"epoch {r['epoch']}" if r["epoch"] else "the start"
        found.append(("recovery", f"{r['steps']} steps; {kept} kept: {r['before']:.2%} → {r['after']:.2%}"))
    return found


# inspect


def inspection(d: Description, screen: Screen) -> str:
    """What can be pruned, and why the rest cannot."""
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


def _nodes(places: Sequence[Place]) -> str:
    names = list(dict.fromkeys(p.node or p.weight for p in places))
    more = len(names) - _SHOWN_PLACES
    return ", ".join(names[:_SHOWN_PLACES]) + (f" and {more} more" if more > 0 else "") if names else "nothing"


# eval


def evaluation(e: Evaluation, screen: Screen) -> str:
    """What was measured."""
    facts = [("data", f"{e.data}, {e.samples} samples")]
    if e.accuracy is not None:
        facts.append(("top-1", f"{e.accuracy:.2%}"))
    if e.original_accuracy is not None and e.drop is not None:
        facts.append(("top-1 of the original", f"{e.original_accuracy:.2%} (drop: {e.drop:.2f} points)"))
    if e.agreement is not None:
        facts.append(("agreement", f"{e.agreement:.2%} of the samples get the same class"))
    if e.output_error is not None:
        facts.append(("output error", _error(e.output_error)))
    title = e.model if e.against is None else f"{e.model} against {e.against}"
    return screen.render([Text(title, "bold"), _facts(facts, screen), *(_note(n) for n in e.notes)])


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


def _error(value: float) -> str:
    return f"{value:.2%} (squared error over spread of the outputs)"


def _note(text: str) -> Text:
    return Text(f"note: {text}", "yellow")


def _removed(before: int, after: int) -> str:
    return f"{1.0 - after / before:.1%}" if before else ""


def count(n: float) -> str:
    """A number in human units: 9500, 12.3 k, 4.56 M, 950 G."""
    for start, divisor, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if n >= start:
            value = n / divisor
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{n:.0f}"


def size(n: float) -> str:
    """Bytes in human units, powers of 1024."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if n >= 1024**power:
            return f"{n / 1024**power:.1f} {unit}"
    return f"{n:.0f} B"


def duration(seconds: float) -> str:
    """Seconds in human units: 12 ms, 3.4 s, 2 min 05 s."""
    if seconds < 1.0:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60.0:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
