"""The command line: the only user of click.

`onnxprune IN OUT --ratio 0.5` is the main command; `inspect`, `eval` and `bench` are subcommands beside it. Reports go
to stdout; warnings, errors and the status of the current stage go to stderr. Exit codes are those of `errors`.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from onnxprune import __version__
from onnxprune.config import (
    ATTENTIONS,
    BUDGETS,
    COEFFICIENTS,
    LABELLED,
    METHODS,
    METRICS,
    PRECISIONS,
    PROVIDERS,
    READ_BY,
    RECOVER,
    REFITS,
    SECONDS,
    UNTRIED,
    WARMUP,
    PruneConfig,
)
from onnxprune.errors import EXIT_OK, OnnxPruneError, RunError, UsageError
from onnxprune.intake import child
from onnxprune.process import streams
from onnxprune.process.scratch import Scratch
from onnxprune.process.signals import Interruption, Interrupts
from onnxprune.report.visible import one_line, visible
from onnxprune.targets import AUTO, TARGETS

if TYPE_CHECKING:
    from onnxprune.report.summary import Report
    from onnxprune.report.terminal import Screen

F = TypeVar("F", bound=Callable[..., Any])

TRACEBACK = "ONNXPRUNE_TRACEBACK"
_DEFAULTS = PruneConfig()
# What a plan has decided already: these have no effect on a replay.
_DECIDED = tuple(
    "ratio budget uniform tolerance method metric coefficients probes labels round_to attention min_channels "
    "drop_branches untried_branches include exclude".split()
)
_SETTINGS = (*_DECIDED, "target", "batch", "threads", "refit", "recover", "fast", "seed", "samples", "memory", "force")
_ALIGNMENTS = ", ".join(f"{t.alignment} for {name}" for name, t in TARGETS.items())


# option values


def parse_size(text: str) -> int:
    """A number of bytes such as 512M or 2G (powers of 1024). Raises click.BadParameter."""
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    power = "KMGT".find(number[-1:]) + 1 if number else 0
    try:
        size = int(float(number[:-1] if power else number) * 1024**power)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is not a size; write 512M or 2G") from None
    if size < 1:
        raise click.BadParameter(f"{text!r} is too small; write 512M or 2G")
    return size


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """An input's name and shape: x:1,3,224,224, x:[1,3,224,224] or x:1x3x224x224. Raises click.BadParameter."""
    name, found, dims = text.rpartition(":")  # a name may hold colons itself
    inner = dims.strip().removeprefix("[").removesuffix("]").strip()
    try:
        shape = tuple(int(d) for d in inner.replace("x", ",").split(",")) if inner else ()
    except ValueError:
        shape = (0,)
    if not (found and name and dims.strip()) or any(d < 1 for d in shape):
        raise click.BadParameter(f"{text!r} is not a name and a shape; write x:1,3,224,224 or x:1x3x224x224")
    return name, shape


def parse_share(text: str) -> float:
    """A share as 0.99, 99 or 99%; a bare number above 1 is percent. Raises click.BadParameter."""
    try:
        number = float(text.strip().removesuffix("%"))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a share; write 0.99 or 99%") from None
    share = number / 100.0 if text.strip().endswith("%") or number > 1.0 else number
    if not 0.0 <= share <= 1.0:
        raise click.BadParameter(f"{text!r} is not between 0 and 100%")
    return share


def parse_error(text: str) -> float:
    """An error relative to a spread, as 0.05 or 5%. Raises click.BadParameter."""
    try:
        number = float(text.strip().removesuffix("%"))
    except ValueError:
        number = -1.0
    if not 0.0 <= number < float("inf"):
        raise click.BadParameter(f"{text!r} is not an error; write 0.05 or 5%")
    return number / 100.0 if text.strip().endswith("%") else number


def parse_alignment(text: str) -> int | str:
    """A number of channels, or "auto". Raises click.BadParameter."""
    if text.strip().lower() == AUTO:
        return AUTO
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number of channels; write 8, or {AUTO}") from None


# the commands


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


def _shown(default: Any) -> dict[str, Any]:
    return {"default": default, "show_default": True}


def _flag(name: str, help_: str, *names: str) -> Callable[[F], F]:
    return click.option(name, *names, is_flag=True, default=False, show_default="off", help=help_)


_JSON = _flag("--json", "Print JSON instead of tables.", "as_json")


@click.command(
    cls=WithSubcommands,
    epilog="Exit codes: 0 done and verified; 1 cannot read, run or write; 2 usage; 3 nothing prunable, or the budget "
    "cannot be met; 4 a check failed; 130 interrupted (128 and the signal's number). After anything but 0, nothing was "
    "written. A model whose file is called like a subcommand is given as ./inspect.",
)
@click.argument("model", metavar="IN")
@click.argument("output", metavar="OUT", required=False)
@click.argument("more", nargs=-1, metavar="")
@click.option(
    "--ratio",
    type=float,
    help="Share of the budget to remove, in (0, 1). Required without --uniform, --tolerance and --from-plan.",
)
@click.option(
    "--budget",
    type=click.Choice(tuple(BUDGETS)),
    **_shown(_DEFAULTS.budget),
    help="What --ratio counts: multiply-accumulates, parameters, or the time of a run on this machine (latency): on "
    "the CPU, on a GPU for --target ort-cuda, with TensorRT for tensorrt-*, or where --provider says.",
)
@click.option(
    "--batch", type=int, **_shown(_DEFAULTS.batch), help="Samples in the run whose time --budget latency counts."
)
@click.option(
    "--threads",
    type=int,
    show_default="onnxruntime's own choice",
    help="Threads of onnxruntime in the run whose time --budget latency counts.",
)
@click.option(
    "--uniform",
    type=float,
    metavar="RATIO",
    show_default="none",
    help="Instead of a budget: every group that can be cut loses this share of its channels, in (0, 1). Widths are "
    "rounded down to what --round-to allows; a group too narrow for that keeps its least width.",
)
@click.option(
    "--tolerance",
    type=float,
    metavar="ERROR",
    show_default="none",
    help="Instead of a budget: remove what can go until the outputs, on held-out samples, differ from the original's "
    "by this much: squared error over spread, such as 0.01; with --labels the loss that is added.",
)
@click.option(
    "--calib",
    type=str,
    metavar="PATH",
    show_default="seeded random inputs",
    help="Calibration data, a few hundred samples: a .npz keyed by input names, a .npy, or a folder.",
)
@click.option(
    "--samples", type=int, show_default="all; 64 random ones without --calib", help="Use at most this many samples."
)
@click.option(
    "--labels",
    metavar="KEY",
    show_default="none",
    help="Key of the samples' labels in the calibration data: integer classes, or floating-point targets of the first "
    f"output. Then --method {', '.join(LABELLED[:-1])} and {LABELLED[-1]} measure the loss instead of the change of "
    "the outputs.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    **_shown(_DEFAULTS.method),
    help="How channels are selected: by block OBS; by greedy imitation of each layer's output (local), of the "
    "network's (global), or of the better of both (combined); by greedy forward selection (gfs); by Taylor score, "
    "magnitude, or at random.",
)
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    **_shown(_DEFAULTS.metric),
    help="How --method global and combined measure the network's outputs: to second order in the channels (gates) or "
    "in each layer's outputs (kronecker), or by running it for the best few candidates of each step (exact; slow).",
)
@click.option(
    "--coefficients",
    type=click.Choice(COEFFICIENTS),
    **_shown(_DEFAULTS.coefficients),
    help="What the scales of --method local, global and combined add up to: the number of channels, as in the paper "
    "(convex), or whatever serves best (free).",
)
@click.option(
    "--probes",
    type=int,
    **_shown(_DEFAULTS.probes),
    help="Random projections of the outputs that are differentiated for every sample.",
)
@click.option(
    "--refit", type=click.Choice(REFITS), **_shown(_DEFAULTS.refit), help="How the remaining weights are adapted."
)
@click.option(
    "--recover",
    type=int,
    metavar="EPOCHS",
    show_default=f"{RECOVER} after lockstep, else 0",
    help="Passes over the data in which the refitted model learns from the original, without labels; the state that "
    "does best on held-out samples stays. Takes several times as long as the rest.",
)
@_flag("--fast", "Leave recovery out: many times quicker, for the last points of accuracy.")
@click.option(
    "--target",
    type=click.Choice(tuple(TARGETS)),
    **_shown(_DEFAULTS.target),
    help="Where OUT will run. It decides what --round-to auto means; for tensorrt-* the model is also held against "
    "what TensorRT's ONNX parser accepts. --budget latency times there, unless --provider says where.",
)
@click.option(
    "--round-to",
    type=parse_alignment,
    metavar="auto|N",
    **_shown(_DEFAULTS.round_to),
    help=f"New widths are multiples of this. auto: of {_ALIGNMENTS}; less where a group is too narrow for it, or the "
    "budget cannot be met with it.",
)
@click.option(
    "--attention",
    type=click.Choice(ATTENTIONS),
    **_shown(_DEFAULTS.attention),
    help="What goes in attention: whole heads, or the same positions of every head.",
)
@click.option("--min-channels", type=int, **_shown(_DEFAULTS.min_channels), help="No width goes below this.")
@click.option(
    "--drop-branches/--keep-branches",
    default=None,
    show_default="keep; drop with --budget latency",
    help="Whether a residual branch may go as a whole, where that costs less than narrowing it does.",
)
@click.option(
    "--untried-branches",
    type=click.Choice(UNTRIED),
    **_shown(_DEFAULTS.untried_branches),
    help="What is done with the channels that a branch of an If reads or writes which no sample takes: nothing "
    "measures what a cut does there.",
)
@click.option(
    "--include",
    multiple=True,
    metavar="PATTERN",
    show_default="everything",
    help="Cut only the outputs of nodes, and tensors, whose name matches this shell pattern. Repeatable.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    show_default="nothing",
    help="Leave matching layers whole: an excluded layer keeps its outputs AND its inputs, so what is coupled to "
    "either stays too. Repeatable.",
)
@click.option("--seed", type=int, **_shown(_DEFAULTS.seed), help="Of every random choice.")
@_flag("--dry-run", "Stop after the plan: no model is written, OUT is optional.")
@click.option(
    "--plan",
    "plan_file",
    metavar="FILE",
    show_default="not saved",
    help="Save the plan (which channels stay) as JSON; also with --dry-run.",
)
@click.option(
    "--from-plan",
    metavar="FILE",
    show_default="none",
    help="Replay a saved plan: same model, data and seed give the same bytes, on the same processor, with the same "
    "versions and --jobs; without the data, or with other data, it is refused unless --force. The plan has decided "
    "what stays, so --ratio, --budget, --uniform, --tolerance, --method, --metric, --coefficients, --probes, --labels, "
    "--round-to, --attention, --min-channels, --drop-branches, --untried-branches, --include and --exclude are refused "
    "beside it. --target, --refit, --recover, --fast, --seed, --samples and --memory come from the plan unless given "
    "here; --calib, --force, --jobs, "
    "--scheduler and --provider never do.",
)
@click.option("--report", "report_file", metavar="FILE", show_default="not saved", help="Save the report as JSON.")
@click.option(
    "--jobs",
    type=int,
    **_shown(1),
    metavar="N",
    help="Processes that calibrate, select and try cuts. They share the cores of this machine: at most 4 to a core, "
    "and 8 anywhere.",
)
@click.option(
    "--scheduler",
    metavar="URL",
    show_default="none",
    help="A Dask scheduler, such as tcp://host:8786, whose workers calibrate, select and try cuts instead.",
)
@click.option(
    "--provider",
    type=click.Choice(PROVIDERS),
    show_default=f"{PROVIDERS[0]}; for --budget latency that of --target",
    help="Where calibration runs (on a GPU only the statistics come back from it), and what --bench and --budget "
    "latency time. Not given, --budget latency is timed on what stands for --target.",
)
@click.option(
    "--memory",
    type=parse_size,
    metavar="SIZE",
    **_shown(f"{_DEFAULTS.memory >> 20}M"),
    help="What cached activations of one model may take, such as 512M or 2G.",
)
@click.option(
    "--max-error",
    type=parse_error,
    metavar="ERROR",
    show_default="no limit",
    help="Write nothing, and exit with 4, where an output, or a part of one, differs from the original's by more than "
    "this on held-out samples, or where that cannot be measured: squared error over spread, and of answers such as a "
    "class map the share that changes; 0.05 or 5%.",
)
@_flag("--overwrite", "Replace OUT, --plan and --report files that exist.")
@_flag(
    "--bench",
    "Also time IN and OUT in turns, one sample at a time, for the report; `onnxprune bench` measures anything else.",
)
@_flag(
    "--force",
    "Write the model even where a check failed, that of --max-error excepted; replay a plan with other data.",
)
@_flag("--quiet", "No report, no status; warnings and errors stay.")
@click.version_option(__version__, prog_name="onnxprune")
@click.pass_context
def prune_command(ctx: click.Context, /, **given: Any) -> None:
    """Make the ONNX model IN slimmer by removing whole channels, and write it to OUT.

    No training framework, no labels, no training code. OUT keeps IN's inputs and outputs. A file appears only when
    every check on it held.
    """
    _check_files(given["model"], given["output"], given.pop("more"))
    run = Run.of(ctx, given)
    child.warm()
    screen = None if run.quiet else _screen()
    run.execute(ctx.obj, screen)


def _check_files(model: str, output: str | None, more: Sequence[str]) -> None:
    """Raises UsageError for files beyond IN and OUT, and for the name of a command that there is not."""
    if model == "prune" and output is not None and not Path(model).exists():
        files = " ".join((output, *more))
        raise UsageError(f"there is no subcommand prune, as the main command needs no name: onnxprune {files}")
    if more:
        raise UsageError(f"the files are IN and OUT, nothing else: leave out {' '.join(more)}")


@dataclass(frozen=True)
class Run:
    """The main command's options, as `prune` wants them."""

    model: str
    output: str | None
    calib: str | None
    from_plan: str | None
    plan_file: str | None
    report_file: str | None
    jobs: int
    scheduler: str | None
    provider: str | None
    dry_run: bool
    overwrite: bool
    quiet: bool
    bench: bool
    max_error: float | None
    options: dict[str, Any]

    @classmethod
    def of(cls, ctx: click.Context, given: dict[str, Any]) -> Run:
        """Sort the options. Raises UsageError for those that are missing or contradict each other."""
        explicit = {k for k in _SETTINGS if ctx.get_parameter_source(k) is not ParameterSource.DEFAULT}
        if given["from_plan"] is not None:
            refused = [f"--{k.replace('_', '-')}" for k in _DECIDED if k in explicit]
            if refused:
                raise UsageError(f"--from-plan has decided what stays: leave out {', '.join(refused)}")
        elif given["uniform"] is not None:
            refused = [f"--{k}" for k in ("ratio", "budget") if k in explicit]
            if refused:
                raise UsageError(f"--uniform takes the place of a budget: leave out {', '.join(refused)}")
        elif given["tolerance"] is not None:
            refused = [f"--{k}" for k in ("ratio", "budget") if k in explicit]
            if refused:
                raise UsageError(f"--tolerance takes the place of a budget: leave out {', '.join(refused)}")
        elif given["ratio"] is None:
            raise UsageError(
                "--ratio is missing: the share of the MACs to remove, such as --ratio 0.5 (or --uniform, --tolerance)"
            )
        _check_effect(explicit, given)
        if given["jobs"] > 1 and given["scheduler"] is not None:
            raise UsageError("--jobs are processes of this machine, --scheduler has workers of its own: leave out one")
        if given["labels"] is not None and given["calib"] is None:
            raise UsageError("--labels names a key of the calibration data: give that too, with --calib")
        if given["output"] is None and not given["dry_run"]:
            raise UsageError("OUT is missing: name the file to write, or use --dry-run")
        if given["bench"] and given["dry_run"]:
            raise UsageError("--dry-run makes no model that --bench could time: leave out one of them")
        if given["max_error"] is not None and given["dry_run"]:
            raise UsageError("--dry-run makes no model whose error --max-error could limit: leave out one of them")
        options = {k: given.pop(k) for k in _SETTINGS}
        return cls(**given, options={k: v for k, v in options.items() if k in explicit})

    def execute(self, surroundings: Surroundings, screen: Screen | None) -> None:
        """Run the pipeline with a status on a terminal, and show the report before anything appears.

        What cannot be shown ends the run, and what interrupts it comes before: from there on it goes through.
        """
        from onnxprune.pipeline import prune
        from onnxprune.report import terminal

        interrupts = surroundings.interrupts
        with ExitStack() as stack:
            spin = stack.enter_context(terminal.status(not self.quiet and sys.stderr.isatty()))

            def watch(stage: str) -> None:
                interrupts.check()
                spin(stage)

            def ready(report: Report) -> None:
                stack.close()
                if screen is not None:
                    streams.show(terminal.prune_report(report, screen))
                interrupts.hold()

            prune(
                self.model,
                self.output,
                self.calib,
                from_plan=self.from_plan,
                dry_run=self.dry_run,
                overwrite=self.overwrite,
                plan_file=self.plan_file,
                report_file=self.report_file,
                bench=self.bench and (self.provider or PROVIDERS[0]),
                watch=watch,
                warn=_warn,
                ready=ready,
                jobs=self.jobs,
                scheduler=self.scheduler,
                provider=self.provider,
                max_error=self.max_error,
                **self.options,
            )


def _check_effect(explicit: Collection[str], given: Mapping[str, Any]) -> None:
    """Raises UsageError for an option that was given and would do nothing."""
    for name, methods in READ_BY.items():
        if name in explicit and given["method"] not in methods:
            option, shown = f"--{name}", ", ".join(methods)
            raise UsageError(
                f"{option} does nothing with --method {given['method']}: leave it out, or choose one of {shown}"
            )
    for name in ("batch", "threads"):
        if name in explicit and given["from_plan"] is None and given["budget"] != "latency":
            raise UsageError(f"--{name} says what --budget latency times: leave it out, or choose that budget")


cli.main_command = prune_command


@cli.command("inspect")
@click.argument("model", metavar="MODEL")
@click.option(
    "--calib",
    metavar="PATH",
    show_default="random inputs",
    help="Data that fixes the sizes of symbolic dimensions, where random inputs do not fit.",
)
@click.option(
    "--attention",
    type=click.Choice(ATTENTIONS),
    **_shown(_DEFAULTS.attention),
    help="What would go in attention: whole heads, or the same positions of every head.",
)
@click.option(
    "--target",
    type=click.Choice(tuple(TARGETS)),
    **_shown(_DEFAULTS.target),
    help="For tensorrt-*: also say what TensorRT's ONNX parser refuses.",
)
@_JSON
def inspect_command(model: str, calib: str | None, attention: str, target: str, as_json: bool) -> None:
    """Show what of MODEL can be pruned, and why the rest cannot.

    Groups of channels that stand or fall together, with the layers that produce and read them, and every axis of a
    weight that stays, with the operator and the reason.
    """
    child.warm()
    from onnxprune.pipeline import inspect
    from onnxprune.report import terminal

    found = inspect(model, calib, attention=attention, target=target)
    streams.show(found.to_json() if as_json else terminal.inspection(found, _screen()))


@cli.command("eval")
@click.argument("model", metavar="MODEL")
@click.option("--data", metavar="PATH", required=True, help="Test data: a .npz, a .npy, or a folder of these.")
@click.option("--against", metavar="ORIGINAL", show_default="none", help="The original model to compare with.")
@click.option("--labels", metavar="KEY", show_default="none", help="Key of the samples' classes in the data.")
@click.option(
    "--min-agreement",
    type=parse_share,
    metavar="SHARE",
    show_default="no limit",
    help="Fail with exit code 4 where fewer samples get ORIGINAL's class: 0.99, 99 or 99%.",
)
@click.option(
    "--max-drop",
    type=float,
    metavar="POINTS",
    show_default="no limit",
    help="Fail with exit code 4 where top-1 is more percentage points below ORIGINAL's. Needs --labels.",
)
@click.option(
    "--max-error",
    type=parse_error,
    metavar="ERROR",
    show_default="no limit",
    help="Fail with exit code 4 where an output, or a part of one, differs from ORIGINAL's by more, or where that "
    "cannot be measured: squared error over spread, 0.05 or 5%.",
)
@_JSON
def eval_command(
    model: str,
    data: str,
    against: str | None,
    labels: str | None,
    min_agreement: float | None,
    max_drop: float | None,
    max_error: float | None,
    as_json: bool,
) -> None:
    """Measure MODEL on test data: top-1, and agreement and output error against the original.

    With --min-agreement, --max-drop or --max-error this is a gate for CI.
    """
    if min_agreement is not None and against is None:
        raise UsageError("--min-agreement needs --against")
    if max_error is not None and against is None:
        raise UsageError("--max-error needs --against")
    if max_drop is not None and (against is None or labels is None):
        raise UsageError("--max-drop needs --against and --labels")
    if max_drop is not None and not 0.0 <= max_drop <= 100.0:
        raise UsageError(f"--max-drop is {max_drop}; it is a number of points, from 0 to 100")
    child.warm()
    from onnxprune.evaluation import evaluate, gate
    from onnxprune.report import terminal

    result = evaluate(model, data, against=against, labels=labels)
    streams.show(result.to_json() if as_json else terminal.evaluation(result, _screen()))
    gate(result, min_agreement=min_agreement, max_drop=max_drop, max_error=max_error)


@cli.command("bench")
@click.argument("model", metavar="MODEL")
@click.argument("other", metavar="[OTHER]", required=False)
@click.option(
    "--data",
    metavar="PATH",
    show_default="seeded random inputs",
    help="Inputs: a .npz keyed by input names, a .npy, or a folder; the first samples are used.",
)
@click.option(
    "--provider",
    metavar="NAME",
    **_shown("cpu"),
    help="cpu, cuda, or any other execution provider of the installed onnxruntime, by its name or the part before "
    "ExecutionProvider. tensorrt builds an engine with the package tensorrt, without onnxruntime.",
)
@click.option("--batch", type=int, metavar="N", show_default="1, or what --shape says", help="Samples in each run.")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME:DIMS",
    show_default="sizes that run",
    help="Shape of an input with symbolic dimensions: x:1,3,224,224, x:[1,3,224,224] or x:1x3x224x224. Repeatable.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    **_shown(PRECISIONS[0]),
    help="The types that the model has (quantized ones too), or a copy that computes in float16.",
)
@click.option("--threads", type=int, metavar="N", **_shown(0), help="Of onnxruntime; 0 leaves them to it.")
@click.option("--seconds", type=float, metavar="S", **_shown(SECONDS), help="Run rounds for so long.")
@click.option("--runs", type=int, metavar="N", show_default="what --seconds allows", help="So many rounds instead.")
@click.option("--warmup", type=int, metavar="N", **_shown(WARMUP), help="Rounds before those that count.")
@_flag("--profile", "Also the time of every operator and of the slowest nodes, in runs of their own.")
@_JSON
def bench_command(model: str, other: str | None, shapes: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Time MODEL, or MODEL and OTHER in turns, on the same inputs.

    Of two models the ratio is that of OTHER's time to MODEL's in the same round, so that a busy machine slows both. On
    a GPU the inputs and outputs stay there: copies are not timed.
    """
    given = [parse_shape(s) for s in shapes]
    if len(dict(given)) < len(given):
        raise UsageError("--shape is given twice for one input")
    child.warm()
    from onnxprune.latency.bench import bench
    from onnxprune.report import terminal

    with terminal.status(sys.stderr.isatty()) as show:
        result = bench(model, other, shapes=dict(given), watch=show, **options)
    streams.show(result.to_json() if as_json else terminal.benchmark(result, _screen()))


# output


def _screen() -> Screen:
    """What stdout can show: its own width and colours on a terminal, a fixed width and none elsewhere."""
    import shutil

    from onnxprune.report.terminal import PLAIN_WIDTH, Screen

    tty = sys.stdout.isatty()
    width = shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns if tty else PLAIN_WIDTH
    return Screen(width, tty, (getattr(sys.stdout, "encoding", None) or "ascii").lower().startswith("utf"))


def _warn(text: str) -> None:
    """One line on stderr, also with --quiet."""
    _say(f"onnxprune: warning: {one_line(text)}", bold=True, fg="yellow")


def _say(line: str, **style: Any) -> None:
    try:
        click.secho(line, err=True, **style)
    except (OSError, ValueError):
        streams.give_up(sys.stderr)


# errors


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. An error is one line on stderr."""
    streams.open_closed()
    surroundings = Surroundings(Interrupts(), Scratch())
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
        code = _fail(str(e), e.exit_code)
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
                code = cli.main(given, prog_name="onnxprune", standalone_mode=False, obj=surroundings)
            return code if isinstance(code, int) else EXIT_OK
        except Exception:
            surroundings.interrupts.check()  # an ImportError, say, may be what an interrupt became on its way
            raise
    except OnnxPruneError as e:
        return _fail(str(e), e.exit_code)
    except click.ClickException as e:
        context = e.ctx if isinstance(e, click.UsageError) else None
        command = context.command_path if context is not None else "onnxprune"
        return _fail(f"{e.format_message()} ({command} --help shows the options)", UsageError.exit_code)
    except SystemExit:  # click's, where nobody reads its help
        return EXIT_OK
    except MemoryError as e:
        return _unexpected(e, "out of memory: use a smaller --memory or fewer --samples")
    except OSError as e:
        if _printing(e):
            streams.give_up(sys.stdout)
            return _fail(f"the output cannot be printed: {e.strerror or e}", 1)
        from onnxprune.destination import GONE, folder_is_gone

        if folder_is_gone():
            return _fail(GONE, 1)
        return _unexpected(e, f"{e.strerror or e}" + (f": {e.filename}" if e.filename else ""))
    except Exception as e:  # noqa: BLE001  whatever it is, the user gets one line
        return _unexpected(e, f"{type(e).__name__}: {e}: this is a defect, please report it")


def _printing(error: BaseException) -> bool:
    """Whether this is of click's help or version, on a stdout that takes no more; reports say so themselves."""
    at = error.__traceback__
    while at is not None and at.tb_frame.f_globals.get("__name__") != click.echo.__module__:
        at = at.tb_next
    return at is not None


def _unexpected(error: BaseException, message: str) -> int:
    if os.environ.get(TRACEBACK):
        import traceback

        for line in "".join(traceback.format_exception(error)).splitlines():
            click.echo(visible(line), err=True)
    return _fail(f"{message}; set {TRACEBACK}=1 for the traceback", 1)


def _fail(message: str, code: int) -> int:
    _say(f"onnxprune: error: {one_line(message)}")
    return code
