"""The group of commands, of which the main one needs no name, and what they run in."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

import click
from click.exceptions import Exit

from onnxprune.cli.options.section import Grouped
from onnxprune.cli.screen import say
from onnxprune.errors import RunError, UsageError
from onnxprune.process.scratch import Scratch
from onnxprune.process.signals import Interruption, Interrupts
from onnxprune.version import __version__

_SHORT = f"""\
onnxprune {__version__} makes an ONNX model slimmer by removing whole channels.

  onnxprune inspect in.onnx                                   what can go, and why the rest cannot
  onnxprune in.onnx out.onnx --calib data.npz --ratio 50%     half of the work goes, the rest is refitted
  onnxprune bench in.onnx out.onnx                            what that is worth in time

onnxprune --help shows all commands and options, onnxprune COMMAND --help those of one."""


@dataclass(frozen=True)
class Surroundings:
    """What a command has of the process that it runs in: click's `obj`. command: what was typed."""

    interrupts: Interrupts
    scratch: Scratch
    command: tuple[str, ...] = ()

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
        """The main command's context unless the first word is a subcommand; without any word a short help."""
        if not args:
            for line in _SHORT.splitlines():
                say(line)
            raise Exit(UsageError.exit_code)  # an empty variable of a script is no success
        if args[0] in self.commands:
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


class WithSubcommands(Grouped):
    """The main command: its help lists the subcommands too."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The subcommands, then the epilog."""
        with formatter.section("Subcommands"):
            formatter.write_dl([(name, c.get_short_help_str(90)) for name, c in cli.commands.items() if c is not self])
        super().format_epilog(ctx, formatter)


@click.group(cls=Main)
def cli() -> None:
    """Make an ONNX model slimmer by removing whole channels."""
