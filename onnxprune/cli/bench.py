"""`onnxprune bench`: the time of one model or two."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from onnxprune.benchmark.settings import PRECISIONS, SECONDS, WARMUP
from onnxprune.cli.group import Surroundings
from onnxprune.cli.options.names import DEFAULTS, flag_of
from onnxprune.cli.options.prepared import PREPARED, SCRIPT, data_of
from onnxprune.cli.options.section import Grouped, Section, files, flag, option, with_default
from onnxprune.cli.options.shared import ALLOW_LINKS, CUSTOM_OPS, JSON, OVERWRITE, REPORT, STATE
from onnxprune.cli.screen import screen_of
from onnxprune.cli.start import start
from onnxprune.cli.values import ERROR, Choice, parse_alignment, parse_shape
from onnxprune.errors import UsageError
from onnxprune.process import streams
from onnxprune.targets.alignment import TARGETS

if TYPE_CHECKING:
    from onnxprune.sentence.against import Expected

# What says how whole models are timed, and what does with --layers.
_TIMED_WHOLE = (
    *("other", "shapes", "seconds", "runs", "warmup", "max_ratio", "min_speedup", "profile"),
    *("report_files", "against", "timing_target"),
)
_RECORDED = ("save", "name", "target", "round_to", "from_trtexec", "trtexec_layers")


@click.command(
    "bench",
    cls=Grouped,
    sections=(
        Section(
            "What is timed",
            option(
                "--data",
                metavar="PATH",
                show_default="seeded random inputs",
                help="Inputs, as --calib of prune; the first samples are used.",
            ),
            SCRIPT,
            option(
                "--batch", type=int, metavar="N", show_default="1, or what --shape says", help="Samples in each run."
            ),
            option(
                "--shape",
                "shapes",
                multiple=True,
                metavar="NAME:DIMS",
                show_default="sizes that run",
                help="Shape of an input with symbolic dimensions: x:1,3,224,224, x:[1,3,224,224] or x:1x3x224x224. "
                "Repeatable.",
            ),
            STATE,
            ALLOW_LINKS,
        ),
        *PREPARED,
        Section(
            "Where it runs",
            option(
                "--provider",
                metavar="NAME",
                **with_default("cpu"),
                help="cpu, cuda, or any other execution provider of the installed onnxruntime, by its name or the part "
                "before ExecutionProvider. tensorrt builds an engine with the package tensorrt, without onnxruntime.",
            ),
            option(
                "--precision",
                type=Choice(PRECISIONS),
                **with_default(PRECISIONS[0]),
                help="The types that the model has (quantized ones too), or a copy that computes in float16.",
            ),
            option("--threads", type=int, metavar="N", **with_default(0), help="Of onnxruntime; 0 leaves them to it."),
            CUSTOM_OPS,
        ),
        Section(
            "For a budget of latency on another machine (--budget latency --timing FILE)",
            flag(
                "--layers",
                "Time MODEL at some twenty combinations of widths, whole and layer by layer, and write that to the "
                "file of --save, which says elsewhere what narrower models take here.",
            ),
            option(
                "--save",
                metavar="FILE",
                show_default="none",
                help="The timing file of --layers. Where there is one of this model, the target is added to it.",
            ),
            option(
                "--name",
                metavar="NAME",
                show_default="the machine, the provider and --threads",
                help="What the target is called in the timing file.",
            ),
            option(
                "--target",
                type=Choice(tuple(TARGETS)),
                **with_default(DEFAULTS.target),
                help="As that of prune: its alignment decides which widths --layers measures.",
            ),
            option(
                "--round-to",
                type=parse_alignment,
                metavar="auto|N",
                **with_default(DEFAULTS.round_to),
                help="As that of prune: --layers measures multiples of N channels.",
            ),
            option(
                "--from-trtexec",
                metavar="FILE",
                show_default="none: layers are timed here",
                help="For --layers, instead of timing anything: the --exportProfile of trtexec for an engine of MODEL. "
                "Times at other widths are extrapolated from it.",
            ),
            option(
                "--trtexec-layers",
                metavar="FILE",
                show_default="names of nodes in those of layers",
                help="The --exportLayerInfo of that engine, built with --profilingVerbosity=detailed.",
            ),
        ),
        Section(
            "How long",
            option("--seconds", type=float, metavar="S", **with_default(SECONDS), help="Run rounds for so long."),
            option(
                "--runs", type=int, metavar="N", show_default="what --seconds allows", help="So many rounds instead."
            ),
            option("--warmup", type=int, metavar="N", **with_default(WARMUP), help="Rounds before those that count."),
        ),
        Section(
            "Gates on OTHER: exit code 4 where one does not hold",
            option(
                "--max-ratio",
                type=ERROR,
                metavar="SHARE",
                show_default="no limit",
                help="Of OTHER's time to MODEL's: 0.8 or 80%. The upper end of the interval must not exceed it.",
            ),
            option(
                "--min-speedup",
                type=float,
                metavar="FACTOR",
                show_default="no limit",
                help="The same the other way round: 1.2 is a ratio of 0.833.",
            ),
            option(
                "--against",
                metavar="FILE",
                show_default="no limit",
                help="The timing file by which OTHER was made of MODEL: the ratio may be at most a tenth above what it "
                "predicts. Provider, threads, precision and batch are those of the file unless they are given.",
            ),
            option(
                "--timing-target",
                metavar="NAME",
                show_default="the only one",
                help="Which target of the file of --against this machine is.",
            ),
        ),
        Section(
            "Output",
            flag("--profile", "Also the time of every operator and of the slowest nodes, in runs of their own."),
            JSON,
            REPORT,
            OVERWRITE,
        ),
    ),
)
@click.argument("model", metavar="MODEL", shell_complete=files)
@click.argument("other", metavar="[OTHER]", required=False, shell_complete=files)
@click.pass_obj
def bench_command(
    surroundings: Surroundings,
    /,
    model: str,
    other: str | None,
    shapes: tuple[str, ...],
    max_ratio: float | None,
    min_speedup: float | None,
    report_files: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
    against: str | None,
    timing_target: str | None,
    layers: bool,
    save: str | None,
    name: str | None,
    target: str,
    round_to: int | str,
    from_trtexec: str | None,
    trtexec_layers: str | None,
    **options: Any,
) -> None:
    """Time MODEL, or MODEL and OTHER in turns, on the same inputs.

    Of two models the ratio is that of OTHER's time to MODEL's in the same round, so that a busy machine slows both. On
    a GPU the inputs and outputs stay there: copies are not timed.

    With --max-ratio or --min-speedup this is a gate for CI, which goes by the unfavourable end of the interval.
    """
    given = [parse_shape(s) for s in shapes]
    if len(dict(given)) < len(given):
        raise UsageError("--shape is given twice for one input")
    options["data"] = data_of(options["data"], "--data", options)
    given_names = _given()
    if layers:
        idle = next((k for k in _TIMED_WHOLE if k in given_names), None)
        if idle is not None or save is None:
            raise UsageError(
                "--layers needs a timing file to write: name it with --save"
                if idle is None
                else f"--layers times the layers of one model: leave out {_called(idle)}"
            )
        recorded = {"name": name, "target": target, "round_to": round_to, "overwrite": overwrite}
        recorded |= {"from_trtexec": from_trtexec, "trtexec_layers": trtexec_layers}
        recorded |= {k: v for k, v in options.items() if k not in _TIMED_WHOLE}
        _record(model, save, recorded, as_json=as_json)
        return
    idle = next((k for k in _RECORDED if k in given_names), None)
    if idle is not None:
        raise UsageError(f"{flag_of(idle)} belongs to --layers: give that too, or leave it out")
    if against is not None and other is None:
        raise UsageError("--against compares OTHER with what was predicted of it: name MODEL and OTHER")
    if timing_target is not None and against is None:
        raise UsageError("--timing-target belongs to --against: give that too, or leave it out")
    start()
    from onnxprune.benchmark import gates
    from onnxprune.benchmark.measure import bench
    from onnxprune.data.sources import files_of
    from onnxprune.measures.gates import demand_all
    from onnxprune.output.destination import check_outputs
    from onnxprune.report import terminal
    from onnxprune.report.environment import versions
    from onnxprune.report.files import Reports, keeping
    from onnxprune.report.live import bars, silent
    from onnxprune.report.progress import Progress

    gates.check(max_ratio=max_ratio, min_speedup=min_speedup, two=other is not None)
    reports = Reports.of(report_files, overwrite=overwrite)
    check_outputs((None, *reports.paths), (model, other, *files_of(options["data"]), against), overwrite)
    with keeping(reports, "bench", {"versions": versions()}, surroundings.command) as tell:
        with bars() if sys.stderr.isatty() else nullcontext(silent) as show:
            said = _expected(model, other, against, timing_target, options)
            if said is not None:
                options |= {k: v for k, v in _as_recorded(said).items() if k not in given_names}
            result = bench(model, other, shapes=dict(given), watch=lambda name: show(Progress(name)), **options)
        found = gates.gates(result, max_ratio=max_ratio, min_speedup=min_speedup)
        if said is not None:
            found = (*found, said.gate(result))
            result = replace(result, notes=(*result.notes, *_about(said, options)))
        tell(result.as_dict() | {"gates": [asdict(g) for g in found]})
        streams.show(result.to_json(found) if as_json else terminal.benchmark(result, screen_of(), found))
        demand_all(found)


def _given() -> set[str]:
    """The names of what was typed; of what comes from elsewhere, that which does nothing gives way."""
    ctx = click.get_current_context()
    names = [str(p.name) for p in ctx.command.params]
    return {k for k in names if ctx.get_parameter_source(k) is ParameterSource.COMMANDLINE}


def _expected(
    model: str, other: str | None, against: str | None, target: str | None, options: Mapping[str, Any]
) -> Expected | None:
    """What the timing file of --against says of OTHER; None without one."""
    from onnxprune.sentence.against import expected

    if against is None or other is None:
        return None
    given = {k: options[k] for k in ("allow_links", "custom_ops")}
    return expected(model, other, against, target=target, **given)


def _as_recorded(said: Expected) -> dict[str, Any]:
    """How a target was measured, as options; a batch of one is that of a model which knows no other."""
    options = {"provider": said.provider, "threads": said.threads, "precision": said.precision}
    return options | ({"batch": said.batch} if said.batch > 1 else {})


def _about(said: Expected, options: Mapping[str, Any]) -> tuple[str, ...]:
    """What is to say of a prediction, and of a machine that is not the one of the file."""
    from onnxprune.benchmark.measure import provider_named
    from onnxprune.sentence.against import elsewhere
    from onnxprune.sentence.recording import machine_of

    machine, _, _ = machine_of(provider_named(options["provider"]), options["threads"], options["precision"])
    return (*said.notes, *elsewhere(said.machine, machine.identity()))


def _called(name: str) -> str:
    """What a user calls an argument."""
    return {"other": "OTHER", "shapes": "--shape", "report_files": "--report"}.get(name, flag_of(name))


def _record(model: str, save: str, given: dict[str, Any], *, as_json: bool) -> None:
    """Time the layers of MODEL, with their progress on stderr, and show what was written."""
    start()
    from onnxprune.report import terminal
    from onnxprune.report.live import bars, silent
    from onnxprune.sentence.recording import record_layers

    with bars() if sys.stderr.isatty() else nullcontext(silent) as show:
        recording = record_layers(model, save, watch=show, **given)
    streams.show(recording.to_json() if as_json else terminal.recording(recording.as_dict(), screen_of()))
