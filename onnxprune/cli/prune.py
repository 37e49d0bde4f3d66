"""`onnxprune IN OUT`: the main command, and its options."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from onnxprune.cli.group import (
    ALLOW_LINKS,
    CUSTOM_OPS,
    DEFAULTS,
    STATE,
    Surroundings,
    WithSubcommands,
    flag,
    with_default,
)
from onnxprune.cli.screen import screen_of, warn
from onnxprune.cli.values import parse_alignment, parse_error, parse_size
from onnxprune.config import ATTENTIONS, COEFFICIENTS, GOALS, METRICS, PROVIDERS, READ_BY, RECOVER, UNTRIED
from onnxprune.errors import UsageError
from onnxprune.methods import BUDGETS, METHODS, REFITS, reading_labels
from onnxprune.process import streams
from onnxprune.runtime import child
from onnxprune.targets.alignment import TARGETS
from onnxprune.version import __version__

if TYPE_CHECKING:
    from onnxprune.report.summary import Report
    from onnxprune.report.terminal import Screen

_READERS = reading_labels()
# What a plan has decided already: these have no effect on a replay.
_DECIDED = tuple(
    "ratio budget uniform tolerance layer_tolerance method metric coefficients probes labels round_to attention "
    "min_channels drop_branches untried_branches include exclude exclude_after".split()
)
_SETTINGS = (*_DECIDED, *"target batch threads refit recover fast state keep_fused seed samples memory force".split())
_ALIGNMENTS = ", ".join(f"{t.alignment} for {name}" for name, t in TARGETS.items())


def _flag(name: str) -> str:
    """The option of a field of PruneConfig."""
    return f"--{name.replace('_', '-')}"


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
    help="Share of the budget to remove, in (0, 1). Required without --uniform, --tolerance, --layer-tolerance and "
    "--from-plan.",
)
@click.option(
    "--budget",
    type=click.Choice(tuple(BUDGETS)),
    **with_default(DEFAULTS.budget),
    help="What --ratio counts: multiply-accumulates, parameters, or the time of a run on this machine (latency): on "
    "the CPU, on a GPU for --target ort-cuda, with TensorRT for tensorrt-*, or where --provider says.",
)
@click.option(
    "--batch", type=int, **with_default(DEFAULTS.batch), help="Samples in the run whose time --budget latency counts."
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
    "--layer-tolerance",
    type=float,
    metavar="ERROR",
    show_default="none",
    help="Instead of a budget: of every group the fewest channels stay with which the outputs of the layers that read "
    "it, or what --method looks at, differ by at most this share of what removing all of them would do, in (0, 1).",
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
    f"output. Then --method {', '.join(_READERS[:-1])} and {_READERS[-1]} measure the loss instead of the change of "
    "the outputs.",
)
@click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    **with_default(DEFAULTS.method),
    help="How channels are selected: by block OBS; by greedy imitation of each layer's output (local), of the "
    "network's (global), or of the better of both (combined); by greedy forward selection towards the former (gfs) or "
    "the latter (gfs-outputs); by Taylor score, magnitude, or at random.",
)
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    **with_default(DEFAULTS.metric),
    help="How --method global, combined and gfs-outputs measure the network's outputs: to second order in the channels "
    "(gates) or in each layer's outputs (kronecker), or by running it for the best few candidates of each step (exact; "
    "slow).",
)
@click.option(
    "--coefficients",
    type=click.Choice(COEFFICIENTS),
    **with_default(DEFAULTS.coefficients),
    help="What the scales of --method local, global and combined add up to: whatever serves best, up to the number of "
    "channels (free), or that number at every step, by the letter of the paper (convex).",
)
@click.option(
    "--probes",
    type=int,
    **with_default(DEFAULTS.probes),
    help="Random projections of the outputs that are differentiated for every sample.",
)
@click.option(
    "--refit",
    type=click.Choice(list(REFITS)),
    **with_default(DEFAULTS.refit),
    help="How the remaining weights are adapted.",
)
@click.option(
    "--recover",
    type=int,
    metavar="EPOCHS",
    show_default=f"{RECOVER} after lockstep, else 0",
    help="Passes over the data in which the refitted model learns from the original, without labels; the state that "
    "does best on held-out samples stays. Takes several times as long as the rest.",
)
@flag("--fast", "Leave recovery out: many times quicker, for the last points of accuracy.")
@click.option(
    "--target",
    type=click.Choice(tuple(TARGETS)),
    **with_default(DEFAULTS.target),
    help="Where OUT will run. It decides what --round-to auto means; for tensorrt-* the model is also held against "
    "what TensorRT's ONNX parser accepts. --budget latency times there, unless --provider says where.",
)
@click.option(
    "--round-to",
    type=parse_alignment,
    metavar="auto|N",
    **with_default(DEFAULTS.round_to),
    help=f"New widths are multiples of this. auto: of {_ALIGNMENTS}; less where a group is too narrow for it, or the "
    "budget cannot be met with it.",
)
@click.option(
    "--attention",
    type=click.Choice(ATTENTIONS),
    **with_default(DEFAULTS.attention),
    help="What goes in attention: whole heads, or the same positions of every head.",
)
@click.option("--min-channels", type=int, **with_default(DEFAULTS.min_channels), help="No width goes below this.")
@click.option(
    "--drop-branches/--keep-branches",
    default=None,
    show_default="keep; drop with --budget latency",
    help="Whether a residual branch may go as a whole, where that costs less than narrowing it does.",
)
@flag(
    "--keep-fused",
    "Operators that onnxruntime had fused are written as they were, where nothing stands in the way. Without it they "
    "are written in standard ones, which onnxruntime fuses again when it loads the result.",
)
@click.option(
    "--untried-branches",
    type=click.Choice(UNTRIED),
    **with_default(DEFAULTS.untried_branches),
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
@STATE
@click.option(
    "--exclude-after",
    multiple=True,
    metavar="TENSOR",
    show_default="nothing",
    help="Leave all layers behind this tensor (a name, or a shell pattern) whole, with what they read. Repeatable. The "
    "report lists what each pattern matched; one that matches nothing is refused.",
)
@click.option("--seed", type=int, **with_default(DEFAULTS.seed), help="Of every random choice.")
@flag("--dry-run", "Stop after the plan: no model is written, OUT is optional.")
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
    f"what stays, so {', '.join(map(_flag, _DECIDED[:-1]))} and {_flag(_DECIDED[-1])} are refused beside it. --target, "
    "--refit, --recover, --fast, --seed, --samples and --memory come from the plan unless given here; --calib, "
    "--force, --jobs, --scheduler, --provider, --allow-links and --custom-ops never do.",
)
@click.option("--report", "report_file", metavar="FILE", show_default="not saved", help="Save the report as JSON.")
@click.option(
    "--jobs",
    type=int,
    **with_default(1),
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
    **with_default(f"{DEFAULTS.memory >> 20}M"),
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
@ALLOW_LINKS
@CUSTOM_OPS
@flag("--overwrite", "Replace OUT, --plan and --report files that exist.")
@flag(
    "--bench",
    "Also time IN and OUT in turns, one sample at a time, for the report; `onnxprune bench` measures anything else.",
)
@flag(
    "--force",
    "Write the model even where a check failed, that of --max-error excepted; replay a plan with other data.",
)
@flag("--quiet", "No report, no status; warnings and errors stay.")
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
    screen = None if run.quiet else screen_of()
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
    allow_links: bool
    custom_ops: tuple[str, ...]
    options: dict[str, Any]

    @classmethod
    def of(cls, ctx: click.Context, given: dict[str, Any]) -> Run:
        """Sort the options. Raises UsageError for those that are missing or contradict each other."""
        explicit = {k for k in _SETTINGS if ctx.get_parameter_source(k) is not ParameterSource.DEFAULT}
        if given["from_plan"] is not None:
            refused = [_flag(k) for k in _DECIDED if k in explicit]
            if refused:
                raise UsageError(f"--from-plan has decided what stays: leave out {', '.join(refused)}")
        elif instead := next((k for k in GOALS[1:] if given[k] is not None), None):
            refused = [_flag(k) for k in ("ratio", "budget") if k in explicit]
            if refused:
                raise UsageError(f"{_flag(instead)} takes the place of a budget: leave out {', '.join(refused)}")
        elif given["ratio"] is None:
            raise UsageError(
                "--ratio is missing: the share of the MACs to remove, such as --ratio 0.5 (or --uniform, --tolerance, "
                "--layer-tolerance)"
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
                warn=warn,
                ready=ready,
                jobs=self.jobs,
                scheduler=self.scheduler,
                provider=self.provider,
                max_error=self.max_error,
                allow_links=self.allow_links,
                custom_ops=self.custom_ops,
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
