"""The axes that stay, and what would free them: each remedy once, under a number that reasons refer to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from onnxprune.report.summary import PinnedRow
from onnxprune.report.terminal.screen import Part, Screen, line, listed


def pinned_axes(rows: Sequence[PinnedRow], screen: Screen) -> list[Part]:
    """The pinned axes, counted by reason and operator."""
    axes: Counter[tuple[str, str, str]] = Counter()
    channels: Counter[tuple[str, str, str]] = Counter()
    for p in rows:
        axes[p.reason, p.operator, p.remedy] += 1
        channels[p.reason, p.operator, p.remedy] += p.channels
    table = screen.table("reason", " operator", "axes", "channels", title="axes that stay")
    order = axes.most_common()
    numbers = numbered(remedy for (_, _, remedy), _ in order)
    for (reason, operator, remedy), n in order:
        row = reason, operator, remedy
        table.add_row(f"{reason} [{numbers[remedy]}]", operator, str(n), str(channels[row]))
    return [table, *remedies(numbers)]


def numbered(remedies: Iterable[str]) -> dict[str, int]:
    """Remedy → the number that its reasons refer to it by, in order of appearance."""
    return {remedy: i for i, remedy in enumerate(dict.fromkeys(remedies), start=1)}


def remedies(numbers: Mapping[str, int]) -> list[Part]:
    """What would free the axes that stay: once for all those with the same remedy, which may be most of them."""
    return [line("what would free them", "bold"), listed([(f"[{i}]", r) for r, i in numbers.items()])]
