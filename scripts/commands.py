"""The help of every command as Markdown, for the site: what `--help` says, in its sections."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from onnxprune.cli.group import cli
from onnxprune.cli.program import main as _program  # the module puts the commands together

MARK = "<!-- commands -->"
PROGRAM = "onnxprune"
assert _program


class Markdown(click.HelpFormatter):
    """Writes what click writes to a terminal as Markdown."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        """The form of a call."""
        self.write(f"```text\n{prog} {args}\n```\n\n")

    def write_heading(self, heading: str) -> None:
        """The title of a section."""
        self.write(f"### {heading}\n\n")

    def write_text(self, text: str) -> None:
        """Paragraphs."""
        self.write("\n\n".join(escaped(" ".join(p.split())) for p in text.split("\n\n")) + "\n\n")

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Options, or subcommands, with what they do."""
        for term, text in rows:
            self.write(f"- `{term}`: {escaped(' '.join(text.split()))}\n")
        self.write("\n")

    def write_paragraph(self) -> None:
        """Nothing: each part ends with an empty line."""

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """A section, without indentation."""
        self.write_heading(name)
        yield

    @contextmanager
    def indentation(self) -> Iterator[None]:
        """None: Markdown would take it for code."""
        yield


def escaped(text: str) -> str:
    """Text of which Markdown leaves every sign as it stands, those in backticks as code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if i % 2 else re.sub(r"([\\*_<>\[\]|~])", r"\\\1", p) for i, p in enumerate(parts))


def commands() -> dict[str, click.Command]:
    """Each command once, under the words that call it: the main one first."""
    main = cli.main_command
    return {PROGRAM: main} | {f"{PROGRAM} {name}": c for name, c in cli.commands.items() if c is not main}


def as_markdown() -> str:
    """A section per command."""
    parts: list[str] = []
    for words, command in commands().items():
        formatter = Markdown(width=10_000)
        command.format_help(click.Context(command, info_name=words), formatter)
        parts.append(f"## `{words}`\n\n{formatter.getvalue()}")
    return "\n".join(parts)
