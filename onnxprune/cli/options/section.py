"""Groups of options, as `--help` shows them under their headings.

A group is a list: an option more is a line more in it. What a command does with it, it does by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click


def option(*names: str, **attributes: Any) -> click.Option:
    """An option, with the arguments of `click.option`."""
    return click.Option(names, **attributes)


def flag(name: str, help_: str, *names: str) -> click.Option:
    """A switch that is off unless it is given; `names` are further ones."""
    return option(name, *names, is_flag=True, default=False, show_default="off", help=help_)


def with_default(default: Any) -> dict[str, Any]:
    """The default of an option, which `--help` shows."""
    return {"default": default, "show_default": True}


class Section:
    """Options under one heading, in the order of `--help`."""

    def __init__(self, title: str, *options: click.Option) -> None:
        self.title = title
        self.options = options


class Grouped(click.Command):
    """A command whose options stand in sections; what belongs to none, as --help, comes last."""

    def __init__(
        self,
        name: str | None,
        *,
        sections: Sequence[Section] = (),
        params: Sequence[click.Parameter] = (),
        **extra: Any,
    ) -> None:
        extra["context_settings"] = {"help_option_names": ["-h", "--help"]} | (extra.get("context_settings") or {})
        super().__init__(name, params=[*params, *(p for s in sections for p in s.options)], **extra)
        self.sections = tuple(sections)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each section under its heading."""
        own = {id(p) for s in self.sections for p in s.options}
        rest = tuple(p for p in self.get_params(ctx) if isinstance(p, click.Option) and id(p) not in own)
        for section in (*self.sections, Section("Other", *rest)):
            records = [r for p in section.options if (r := p.get_help_record(ctx)) is not None]
            if records:
                with formatter.section(section.title):
                    formatter.write_dl(records)
