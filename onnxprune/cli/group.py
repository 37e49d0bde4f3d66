"""The group of commands, of which the main one needs no name, and what they run in."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import click
from click.exceptions import Exit
from click.shell_completion import CompletionItem

from onnxprune.cli.configuration import Configuration, configuration
from onnxprune.cli.log import Log
from onnxprune.cli.options.section import PREFIX, Grouped
from onnxprune.cli.origins import PLACES
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


# No first sentence of a command is longer: click cuts what is, and puts dots behind it.
_LINE = 200


@dataclass(frozen=True)
class Surroundings:
    """What a command has of the process that it runs in: click's `obj`. command: what was typed."""

    interrupts: Interrupts
    scratch: Scratch
    command: tuple[str, ...] = ()
    log: Log = field(default_factory=Log)

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
        if extra.get("resilient_parsing"):  # a shell asks how a line may go on
            if not args or args[0] in self.commands:
                return super().make_context(info_name, args, parent, **extra)
            return self.main_command.make_context(info_name, args, parent, **extra)
        if not args:
            for line in _SHORT.splitlines():
                say(line)
            raise Exit(UsageError.exit_code)  # an empty variable of a script is no success
        named = args[0] in self.commands
        command = self.commands[args[0]] if named else self.main_command
        found = _configured(command, self.commands, args[named:])
        if named:
            ctx = super().make_context(info_name, args, parent, default_map={args[0]: found.values}, **extra)
        else:
            ctx = command.make_context(info_name, args, parent, default_map=found.values, **extra)
        ctx.meta[PLACES] = found.places
        return ctx

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands, and files, as the main command needs no name."""
        files = [] if incomplete.startswith("-") else [CompletionItem(incomplete, type="file")]
        options = self.main_command.shell_complete(ctx, incomplete) if incomplete.startswith("-") else []
        return [*super().shell_complete(ctx, incomplete), *options, *files]

    def invoke(self, ctx: click.Context) -> Any:
        """Run whatever the context is for."""
        ctx.obj.begin()
        try:
            return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)
        except KeyboardInterrupt:  # of whoever else listens to Ctrl-C; click would begin a new line
            raise Interruption(signal.SIGINT) from None
        except BrokenPipeError as e:  # of which click would say nothing; that of stdout does not come here
            raise RunError(f"a process or a machine that worked for this one has gone: {e.strerror}") from e


def _configured(command: click.Command, commands: Mapping[str, click.Command], args: list[str]) -> Configuration:
    """What files say of a command's options. Raises UsageError."""
    ctx = click.Context(command, **command.context_settings)
    try:
        options, _, _ = command.make_parser(ctx).parse_args(list(args))
    except click.UsageError:  # said again when the command reads its words
        return Configuration({}, {})
    asked = command.get_help_option(ctx)
    if options.get("version") or (asked is not None and options.get(str(asked.name))):
        return Configuration({}, {})
    file, chosen = (options.get(k) or os.environ.get(f"{PREFIX}_{k.upper()}") or None for k in ("config", "settings"))
    return configuration(command, commands, file, chosen)


class WithSubcommands(Grouped):
    """The main command: its help lists the subcommands too."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The subcommands, then the epilog."""
        with formatter.section("Subcommands"):
            formatter.write_dl(
                [(name, c.get_short_help_str(_LINE)) for name, c in cli.commands.items() if c is not self]
            )
        super().format_epilog(ctx, formatter)


@click.group(cls=Main)
def cli() -> None:
    """Make an ONNX model slimmer by removing whole channels."""
