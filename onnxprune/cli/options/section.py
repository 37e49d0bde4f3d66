"""Groups of options, as `--help` shows them under their headings.

A group is a list: an option more is a line more in it. What a command does with it, it does by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from onnxprune.cli.options.names import as_typed
from onnxprune.errors import UsageError

MAIN = "prune"
PREFIX = "ONNXPRUNE"

# One that lines are not broken at.
_HYPHEN = "\N{NON-BREAKING HYPHEN}"
_FILES = ("PATH", "FILE", "LIBRARY", "ORIGINAL")


def files(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Leave the completion of a file's name to the shell."""
    return [CompletionItem(incomplete, type="file")]


class _Option(click.Option):
    """An option whose default `--help` shows in the words of `show_default` alone; click puts them in parentheses."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option's names, and what it does."""
        record = super().get_help_record(ctx)
        if record is None or not isinstance(self.show_default, str):
            return record
        names, text = record
        before, found, behind = text.rpartition(f"({self.show_default})")
        return names, f"{before}{self.show_default}{behind}" if found else text


def option(*names: str, **attributes: Any) -> click.Option:
    """An option, with the arguments of `click.option`; a shell completes what is a file."""
    if attributes.get("metavar") in _FILES:
        attributes.setdefault("shell_complete", files)
    return _Option(names, **attributes)


def flag(name: str, help_: str, *names: str) -> click.Option:
    """A switch that is off unless it is given; `names` are further ones."""
    return option(name, *names, is_flag=True, default=False, show_default="off", help=help_)


def with_default(default: Any) -> dict[str, Any]:
    """The default of an option, which `--help` shows."""
    return {"default": default, "show_default": True}


def _configuration() -> list[click.Option]:
    """The options that say which file options come from; `group` reads them before all others."""
    return [
        option(
            "--config",
            metavar="FILE",
            envvar=f"{PREFIX}_CONFIG",
            expose_value=False,
            show_default="onnxprune.toml here, else [tool.onnxprune] in pyproject.toml",
            help="A file with options. The command line goes before the environment, that before the file.",
        ),
        option(
            "--settings",
            metavar="NAME",
            envvar=f"{PREFIX}_SETTINGS",
            expose_value=False,
            show_default="none",
            help="Options under [settings.NAME] of that file, over the rest of it.",
        ),
    ]


class Section:
    """Options under one heading, in the order of `--help`."""

    def __init__(self, title: str, *options: click.Option) -> None:
        self.title = title
        self.options = options


class _Unbroken(click.HelpFormatter):
    """Help whose lines end between words alone: click would break --max-drop behind one of its hyphens."""

    def write_text(self, text: str) -> None:
        """A paragraph."""
        super().write_text(text.replace("-", _HYPHEN))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Names and what they mean, side by side."""
        super().write_dl([(name, text.replace("-", _HYPHEN)) for name, text in rows], col_max, col_spacing)

    def getvalue(self) -> str:
        """All of it, as it was given."""
        return super().getvalue().replace(_HYPHEN, "-")


class _Context(click.Context):
    """What `Grouped` runs in."""

    formatter_class = _Unbroken


class Grouped(click.Command):
    """A command whose options stand in sections; what belongs to none, as --help, comes last."""

    context_class = _Context

    def __init__(
        self,
        name: str | None,
        *,
        sections: Sequence[Section] = (),
        params: Sequence[click.Parameter] = (),
        **extra: Any,
    ) -> None:
        prefix = PREFIX if name == MAIN else f"{PREFIX}_{str(name).upper()}"
        own = {"help_option_names": ["-h", "--help"], "auto_envvar_prefix": prefix}
        extra["context_settings"] = own | (extra.get("context_settings") or {})
        params = [*params, *(p for s in sections for p in s.options), *_configuration()]
        super().__init__(name, params=params, **extra)
        self.sections: tuple[Section, ...] = tuple(sections)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what the library says of its parameters is said of the options that were typed."""
        try:
            return super().invoke(ctx)
        except UsageError as e:
            options = {str(p.name): o for p in self.params for o in reversed(p.opts) if o.startswith("--")}
            said = as_typed(str(e), options)
            if said == str(e):
                raise
            raise UsageError(said) from e

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """That of click, which no variable of the environment sets."""
        found = super().get_help_option(ctx)
        if found is not None:
            found.allow_from_autoenv = False
        return found

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each section under its heading."""
        own = {id(p) for s in self.sections for p in s.options}
        rest = tuple(p for p in self.get_params(ctx) if isinstance(p, click.Option) and id(p) not in own)
        for section in (*self.sections, Section("Other", *rest)):
            records = [r for p in section.options if (r := p.get_help_record(ctx)) is not None]
            if records:
                with formatter.section(section.title):
                    formatter.write_dl(records)
