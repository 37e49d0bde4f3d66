"""`onnxprune IN OUT`: the main command."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.group import Surroundings, WithSubcommands, cli
from onnxprune.cli.options.budget import BUDGET
from onnxprune.cli.options.data import DATA
from onnxprune.cli.options.experts import EXPERTS
from onnxprune.cli.options.machine import MACHINE
from onnxprune.cli.options.names import DECIDED, SETTINGS, flag_of
from onnxprune.cli.options.output import OUTPUT
from onnxprune.cli.options.precision import PRECISION
from onnxprune.cli.options.prepared import PREPARED, about, data_of, tokens_listed
from onnxprune.cli.options.section import files
from onnxprune.cli.options.stays import STAYS
from onnxprune.cli.origins import Origins
from onnxprune.cli.screen import screen_of, tell, warn
from onnxprune.cli.start import start
from onnxprune.config import GOALS, PROVIDERS, READ_BY, names_all_that_goes
from onnxprune.errors import UsageError
from onnxprune.methods import reading_labels
from onnxprune.options import nearest
from onnxprune.process import streams
from onnxprune.targets.alignment import AUTO
from onnxprune.version import __version__

LIMITS = ("max_drop", "min_agreement", "max_error")

if TYPE_CHECKING:
    from onnxprune.report.live import Show
    from onnxprune.report.progress import Progress
    from onnxprune.report.summary import Report

_DEAF = (
    "this process was started with SIGINT (Ctrl-C) ignored, as scripts start background jobs: --on-interrupt keep has "
    "no effect; `kill -TERM` ends the run"
)
_KEPT = "recovery ends here, with the best state so far; Ctrl-C again ends the run"
_HINT = " (--on-interrupt keep would have gone on with the best state so far)"


@click.command(
    "prune",
    cls=WithSubcommands,
    sections=(BUDGET, DATA, *PREPARED, STAYS, PRECISION, MACHINE, OUTPUT, EXPERTS),
    epilog="Exit codes: 0 done and verified; 1 cannot read, run or write; 2 usage; 3 nothing prunable, or the budget "
    "cannot be met; 4 a check failed; 130 interrupted (128 and the signal's number). After anything but 0, nothing was "
    "written. A model whose file is called like a subcommand is given as ./inspect.",
)
@click.argument("model", metavar="IN", shell_complete=files)
@click.argument("output", metavar="OUT", required=False, shell_complete=files)
@click.argument("more", nargs=-1, metavar="")
@click.version_option(__version__, "-V", "--version", prog_name="onnxprune", allow_from_autoenv=False)
@click.pass_context
def prune_command(
    ctx: click.Context,
    /,
    model: str,
    output: str | None,
    more: Sequence[str],
    *,
    quiet: bool,
    verbose: bool,
    progress: str,
    log_file: str | None,
    on_interrupt: str,
    **given: Any,
) -> None:
    """Make the ONNX model IN slimmer by removing whole channels, and write it to OUT.

    No training framework, no labels, no training code. OUT keeps IN's inputs and outputs. A file appears only when
    every check on it held.
    """
    _check_files(model, more)
    arguments = _arguments(ctx, output, given)
    start()
    ctx.obj.log.open(log_file)
    _run(
        model,
        output,
        arguments,
        ctx.obj,
        Shown(quiet, verbose, "none" if quiet else progress, on_interrupt == "keep"),
    )


def _check_files(model: str, more: Sequence[str]) -> None:
    """Raises UsageError for files beyond IN and OUT, and for what looks like the name of a command."""
    if not Path(model).suffix and not Path(model).exists() and (near := nearest(model, cli.commands)):
        raise UsageError(f"there is no command {model!r}, and no such file; did you mean {near}?")
    if more:
        raise UsageError(f"the files are IN and OUT, nothing else: leave out {' '.join(more)}")


def _arguments(ctx: click.Context, output: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """What `prune` is called with, by name: of the settings those that were given, of the rest everything.

    Raises UsageError for options that are missing or contradict each other.
    """
    origins = Origins.of(ctx).settle(given)
    read_data(given)
    explicit = origins.explicit()
    labels_of(explicit, given)
    limited = any(given[k] is not None for k in LIMITS)
    largest = given["ratio"] == AUTO or (limited and not explicit & {*GOALS, "from_plan"})
    if largest and not limited:
        raise UsageError(
            f"--ratio auto is the largest that holds a limit: give one of {', '.join(map(flag_of, LIMITS))}"
        )
    if largest:
        explicit.discard("ratio")
    if given["from_plan"] is not None:
        refused = [flag_of(k) for k in DECIDED if k in explicit]
        if refused:
            raise UsageError(f"--from-plan has decided what stays: leave out {', '.join(refused)}")
    elif instead := next((k for k in GOALS[1:] if given[k] is not None), None):
        refused = [flag_of(k) for k in ("ratio", "budget") if k in explicit]
        if refused:
            raise UsageError(f"{flag_of(instead)} takes the place of a budget: leave out {', '.join(refused)}")
    elif given["ratio"] is None and not largest:
        check_ratio(given)
    check_effect(explicit, given)
    if given["jobs"] > 1 and given["scheduler"] is not None:
        raise UsageError("--jobs are processes of this machine, --scheduler has workers of its own: leave out one")
    if given["labels"] is not None and given["calib"] is None:
        raise UsageError("--labels names a key of the calibration data: give that too, with --calib")
    if output is None and not given["dry_run"]:
        raise UsageError("OUT is missing: name the file to write, or use --dry-run")
    if given["bench"] and given["dry_run"]:
        raise UsageError("--dry-run makes no model that --bench could time: leave out one of them")
    judging = next((k for k in (*LIMITS, "min_speedup") if given[k] is not None), None)
    if judging is not None and given["dry_run"]:
        raise UsageError(f"--dry-run makes no model that {flag_of(judging)} could judge: leave out one of them")
    arguments = {k: v for k, v in given.items() if k in explicit or k not in SETTINGS}
    arguments["calibration"] = arguments.pop("calib")
    arguments["pictures"] = not arguments.pop("no_pictures")
    arguments["largest"] = largest
    arguments["sources"] = origins.told()
    arguments["bench"] = given["bench"] and (given["provider"] or PROVIDERS[0])
    return arguments


@dataclass(frozen=True)
class Shown:
    """What of a run is shown, and whether Ctrl-C during recovery keeps what there is."""

    quiet: bool
    verbose: bool
    progress: str
    keeps: bool


def _run(
    model: str, output: str | None, arguments: Mapping[str, Any], surroundings: Surroundings, shown: Shown
) -> None:
    """Run the pipeline with its progress on stderr, and show the report before anything appears.

    What cannot be shown ends the run, and what interrupts it comes before: from there on it goes through.
    """
    from onnxprune.pipeline import prune
    from onnxprune.report import terminal
    from onnxprune.report.live import bars, lines, silent

    interrupts, log = surroundings.interrupts, surroundings.log
    if shown.keeps and interrupts.deaf:
        warn(_DEAF)
    with ExitStack() as stack:
        show: Show = silent
        if shown.progress == "auto" and sys.stderr.isatty():
            show = stack.enter_context(bars())
        elif shown.progress == "lines" or (shown.progress == "auto" and shown.verbose):
            show = lines(tell, parts=shown.verbose)
        told: list[str] = []
        write = lines(log.write, parts=shown.verbose)

        def watch(progress: Progress) -> None:
            interrupts.check()
            recovers = progress.stage == "recover"
            interrupts.soft = recovers and shown.keeps
            interrupts.hint = _HINT if recovers and not shown.keeps else ""
            show(progress)
            write(progress)

        def stop() -> bool:
            if interrupts.asked and not told:
                told.append(_KEPT)
                tell(_KEPT)
            return interrupts.asked

        def doubt(text: str) -> None:
            warn(text)
            log.write(f"warning: {text}")

        def ready(report: Report) -> None:
            stack.close()
            if log.opened:
                log.write(terminal.prune_report(report, terminal.Screen(piped=True), verbose=shown.verbose))
            if not shown.quiet:
                streams.show(terminal.prune_report(report, screen_of(), verbose=shown.verbose))
            interrupts.hold()

        prune(
            model,
            output,
            watch=watch,
            warn=doubt,
            ready=ready,
            stop=stop,
            command=surroundings.command,
            **arguments,
        )


def check_ratio(given: Mapping[str, Any]) -> None:
    """Raises UsageError where nothing says how much goes, and not all that goes is named."""
    asked = {**given, "keep_tokens": given["keep_tokens"] or ()}
    if names_all_that_goes(asked):
        return
    if given["drop_branches"]:
        raise UsageError(
            "--ratio is missing: --drop-branches says that branches may go, not how much; give it too, or name whole "
            "layers with --drop-layers, which needs none"
        )
    also = ""
    if (asked["drop_experts"] or asked["keep_tokens"] or asked["drop_layers"]) and AUTO not in asked["drop_layers"]:
        also = "; --ratio 0 where nothing goes but what is named"
    raise UsageError(
        "--ratio is missing: the share of the MACs to remove, such as --ratio 0.5 (or --uniform, --tolerance, "
        f"--layer-tolerance, or a limit such as --max-error 5%, for the largest cut that holds it){also}"
    )


def check_effect(explicit: Collection[str], given: Mapping[str, Any]) -> None:
    """Raises UsageError for an option that was given and would do nothing."""
    for name, methods in READ_BY.items():
        if name in explicit and given["method"] not in methods:
            option, shown = f"--{name}", ", ".join(methods)
            raise UsageError(
                f"{option} does nothing with --method {given['method']}: leave it out, or choose one of {shown}"
            )
    for name in ("ranges", "reduce_range", "keep_float", "float_share"):
        if name in explicit and given["then"] is None and given["from_plan"] is None:
            raise UsageError(f"{flag_of(name)} says how --then stores the result: give that too, or leave it out")
    for name in ("batch", "threads"):
        if name in explicit and given["from_plan"] is None and given["budget"] != "latency":
            raise UsageError(f"--{name} says what --budget latency times: leave it out, or choose that budget")
        if name in explicit and given["timing"]:
            raise UsageError(f"--{name} is what a --timing file says itself: leave it out")


def labels_of(explicit: set[str], given: dict[str, Any]) -> None:
    """Sort --labels: beside --test they are those of the test data too, or alone where the method reads none."""
    given["test_labels"] = None if given["test"] is None else given["labels"]
    if given["test"] is not None and given["method"] not in reading_labels():
        given["labels"] = None
        explicit.discard("labels")


def read_data(given: dict[str, Any]) -> None:
    """The data of --calib and of --test, as the options of images and texts say of both, and listed tokens."""
    listed = given["keep_tokens"] is not None
    if listed:
        given["keep_tokens"] = tokens_listed(given["keep_tokens"], given["tokenizer"], given["text"])
    if given["test"] is not None:
        given["test"] = data_of(given["test"], "--test", {**about(given["test"], given, listed), "data_script": None})
    given.update(about(given["calib"], given, listed))
    given["calib"] = data_of(given["calib"], "--calib", given)
