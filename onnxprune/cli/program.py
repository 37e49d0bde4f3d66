"""The commands put together, and what becomes of their errors.

`onnxprune IN OUT --ratio 0.5` is the main command, with or without its name `prune`; the others stand beside it.
Reports go to stdout; warnings, errors and the status of the current stage go to stderr. Exit codes are those of
`errors`.
"""

from __future__ import annotations

import atexit
import os
import sys
import warnings
from collections.abc import Sequence

import click

from onnxprune.cli.bench import bench_command
from onnxprune.cli.data import data_command
from onnxprune.cli.eval import eval_command
from onnxprune.cli.export_plan import export_plan_command
from onnxprune.cli.group import Surroundings, cli
from onnxprune.cli.inspect import inspect_command
from onnxprune.cli.log import Log
from onnxprune.cli.prune import prune_command
from onnxprune.cli.quantize import quantize_command
from onnxprune.cli.report import report_command
from onnxprune.cli.screen import say
from onnxprune.cli.sweep import sweep_command
from onnxprune.errors import EXIT_OK, OnnxPruneError, UsageError
from onnxprune.process import streams
from onnxprune.process.scratch import Scratch
from onnxprune.process.signals import Interruption, Interrupts
from onnxprune.report.visible import one_line, visible

TRACEBACK = "ONNXPRUNE_TRACEBACK"


cli.main_command = prune_command
_COMMANDS = (
    prune_command,
    sweep_command,
    quantize_command,
    inspect_command,
    data_command,
    eval_command,
    bench_command,
    report_command,
    export_plan_command,
)
for _command in _COMMANDS:
    cli.add_command(_command)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. An error is one line on stderr."""
    streams.open_closed()
    typed = sys.argv[1:] if args is None else args
    surroundings = Surroundings(Interrupts(), Scratch(), ("onnxprune", *typed))
    interrupts = surroundings.interrupts
    try:
        try:
            interrupts.listen()
            code = _outcome(args, surroundings)
            interrupts.check()
        finally:
            interrupts.held = True  # first of all, so that nothing comes between the end and cleaning up
            surroundings.scratch.remove()
    except Interruption as e:
        code = _fail(surroundings.log, str(e), e.exit_code)
    surroundings.log.close()
    streams.settle()
    interrupts.exit_code = code
    if args is None:  # the process ends with this
        atexit.register(interrupts.ignore)
    else:
        interrupts.unlisten()
    return code


def _outcome(args: Sequence[str] | None, surroundings: Surroundings) -> int:
    given = None if args is None else list(args)
    try:
        try:
            with warnings.catch_warnings():
                if not sys.warnoptions:  # a library's warnings are for developers, who ask for them with -W
                    warnings.simplefilter("ignore")
                code = cli.main(
                    given,
                    prog_name="onnxprune",
                    standalone_mode=False,
                    windows_expand_args=False,  # click would take patterns of layers for files of the folder
                    obj=surroundings,
                )
            return code if isinstance(code, int) else EXIT_OK
        except Exception:
            surroundings.interrupts.check()  # an ImportError, say, may be what an interrupt became on its way
            raise
    except OnnxPruneError as e:
        return _fail(surroundings.log, str(e), e.exit_code)
    except click.ClickException as e:
        context = e.ctx if isinstance(e, click.UsageError) else None
        command = context.command_path if context is not None else "onnxprune"
        return _fail(
            surroundings.log, f"{e.format_message()} ({command} --help shows the options)", UsageError.exit_code
        )
    except SystemExit:  # click's, where nobody reads its help
        return EXIT_OK
    except MemoryError as e:
        return _unexpected(surroundings.log, e, "out of memory: use a smaller --memory or fewer --samples")
    except OSError as e:
        if _printing(e):
            streams.give_up(sys.stdout)
            return _fail(surroundings.log, f"the output cannot be printed: {e.strerror or e}", 1)
        from onnxprune.output.destination import GONE, folder_is_gone

        if folder_is_gone():
            return _fail(surroundings.log, GONE, 1)
        return _unexpected(surroundings.log, e, f"{e.strerror or e}" + (f": {e.filename}" if e.filename else ""))
    except Exception as e:  # noqa: BLE001  whatever it is, the user gets one line
        return _unexpected(surroundings.log, e, f"{type(e).__name__}: {e}: this is a defect, please report it")


def _printing(error: BaseException) -> bool:
    """Whether this is of click's help or version, on a stdout that takes no more; reports say so themselves."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__") != click.echo.__module__:
        trace = trace.tb_next
    return trace is not None


def _unexpected(log: Log, error: BaseException, message: str) -> int:
    if os.environ.get(TRACEBACK):
        import traceback

        for line in "".join(traceback.format_exception(error)).splitlines():
            click.echo(visible(line), err=True)
    return _fail(log, f"{message}; set {TRACEBACK}=1 for the traceback", 1)


def _fail(log: Log, message: str, code: int) -> int:
    say(f"onnxprune: error: {one_line(message)}")
    log.write(f"error: {one_line(message)}")
    return code
