"""What a command shows: on stdout as wide as the terminal, on stderr line by line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from onnxprune.process import streams
from onnxprune.report.visible import one_line

if TYPE_CHECKING:
    from onnxprune.report.terminal import Screen


def screen_of() -> Screen:
    """What stdout can show: its own width and colours on a terminal, a fixed width and none elsewhere."""
    import shutil

    from onnxprune.report.terminal import PLAIN_WIDTH, Screen

    tty = sys.stdout.isatty()
    width = shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns if tty else PLAIN_WIDTH
    unicode = (getattr(sys.stdout, "encoding", None) or "ascii").lower().startswith("utf")
    return Screen(width, tty, unicode, piped=not tty)


def warn(text: str) -> None:
    """One line on stderr, also with --quiet."""
    say(f"onnxprune: warning: {one_line(text)}", bold=True, fg="yellow")


def tell(text: str) -> None:
    """One line of progress on stderr."""
    say(f"onnxprune: {one_line(text)}")


def say(line: str, **style: Any) -> None:
    """A line on stderr; where nobody reads that, nothing."""
    try:
        click.secho(line, err=True, **style)
    except (OSError, ValueError):
        streams.give_up(sys.stderr)
