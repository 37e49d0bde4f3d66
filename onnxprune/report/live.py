"""What a run shows while it runs: a bar on a terminal, a line for each stage elsewhere.

stderr is where it goes. What that does not take changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from onnxprune.process.streams import unbreakable
from onnxprune.report.progress import Progress, clock
from onnxprune.report.visible import visible

Show = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Nothing is shown."""


@contextmanager
def bars() -> Iterator[Show]:
    """A bar on stderr for the present stage: how far, the error so far, elapsed and left. Gone in the end."""
    console = Console(file=unbreakable(sys.stderr), markup=False, emoji=False, highlight=False)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[told]}", markup=False),
        _Elapsed(),
    )
    with Bars(*columns, console=console, transient=True, expand=True) as shown:
        task = shown.add_task("start", total=None, told="", left=None)

        def show(p: Progress) -> None:
            told = ", ".join(filter(None, (p.far, p.errors)))
            shown.update(
                task,
                description=visible(p.stage),
                total=p.count or None,
                completed=p.done,
                told=told,
                left=p.left if p.done < p.count else None,
            )

        yield show


class _Elapsed(ProgressColumn):
    """The time since the run began, and what is left of the stage."""

    def render(self, task: Task) -> Text:
        """Drawn anew as time goes by, also where a stage says nothing."""
        left = task.fields.get("left")
        return Text(clock(task.elapsed or 0.0) + (f", {clock(left)} left" if left is not None else ""))


def lines(write: Callable[[str], None], *, parts: bool = False) -> Show:
    """A line for each stage when it begins, and with `parts` for each part that is done."""
    last = ""

    def show(p: Progress) -> None:
        nonlocal last
        if p.stage != last or (parts and p.count):
            last = p.stage
            write(f"{clock(p.elapsed)} {p if parts else p.stage}")

    return show
