"""The group of commands, of which the main one needs no name, and what their options share."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from onnxprune.config import PruneConfig
from onnxprune.errors import RunError
from onnxprune.process.scratch import Scratch
from onnxprune.process.signals import Interruption, Interrupts

F = TypeVar("F", bound=Callable[..., Any])
DEFAULTS = PruneConfig()


@dataclass(frozen=True)
class Surroundings:
    """What a command has of the process that it runs in: click's `obj`."""

    interrupts: Interrupts
    scratch: Scratch

    def begin(self) -> None:
        """Make the folder for temporary files, uninterrupted: half made, it would stay."""
        self.interrupts.held = True
        self.scratch.make()
        self.interrupts.held = False
        self.interrupts.check()


class Main(click.Group):
    """A group whose main command needs no name: a first word that is no subcommand belongs to it."""

    main_command: click.Command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The main command's context unless the first word is a subcommand."""
        if args and args[0] in self.commands:
            return super().make_context(info_name, args, parent, **extra)
        return self.main_command.make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run whatever the context is for."""
        ctx.obj.begin()
        try:
            return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)
        except KeyboardInterrupt:  # of whoever else listens to Ctrl-C; click would begin a new line
            raise Interruption(signal.SIGINT) from None
        except BrokenPipeError as e:  # of which click would say nothing; that of stdout does not come here
            raise RunError(f"a process or a machine that worked for this one has gone: {e.strerror}") from e


class WithSubcommands(click.Command):
    """The main command: its help lists the subcommands too."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The subcommands, then the epilog."""
        with formatter.section("Subcommands"):
            formatter.write_dl([(name, c.get_short_help_str(90)) for name, c in cli.commands.items()])
        super().format_epilog(ctx, formatter)


@click.group(cls=Main)
def cli() -> None:
    """Make an ONNX model slimmer by removing whole channels."""


def with_default(default: Any) -> dict[str, Any]:
    """The default of an option, which `--help` shows."""
    return {"default": default, "show_default": True}


def flag(name: str, help_: str, *names: str) -> Callable[[F], F]:
    """A switch that is off unless it is given."""
    return click.option(name, *names, is_flag=True, default=False, show_default="off", help=help_)


ALLOW_LINKS = flag(
    "--allow-links",
    "Weights beside a model may be links to anywhere. Without it only to the folder in which the model's own file "
    "lies, as in the caches of model hubs.",
)
CUSTOM_OPS = click.option(
    "--custom-ops",
    multiple=True,
    metavar="LIBRARY",
    show_default="none",
    help="A shared library of operators, which onnxruntime registers in every session; it runs with all of your "
    "rights. Repeatable.",
)
STATE = click.option(
    "--state",
    multiple=True,
    metavar="OUT=IN",
    show_default="none",
    help="The output OUT is the input IN of the next step. Then the samples of one file are steps of a sequence, and "
    "data for IN, if any, are what it starts with (else zeros). Repeatable.",
)
JSON = flag("--json", "Print JSON instead of tables.", "as_json")
