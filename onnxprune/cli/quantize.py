"""`onnxprune quantize`: a model as it is, in fewer bits."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.group import Surroundings
from onnxprune.cli.options.data import TEST
from onnxprune.cli.options.names import DEFAULTS
from onnxprune.cli.options.precision import HOW
from onnxprune.cli.options.prepared import PREPARED, SCRIPT, about, data_of
from onnxprune.cli.options.section import Grouped, Section, files, flag, option, with_default
from onnxprune.cli.options.shared import (
    ALLOW_LINKS,
    CUSTOM_OPS,
    JSON,
    NO_PICTURES,
    REPORT,
    SINGLE_FILE,
    STATE,
)
from onnxprune.cli.screen import screen_of, warn
from onnxprune.cli.start import start
from onnxprune.cli.values import ERROR, SHARE, Choice
from onnxprune.errors import UsageError
from onnxprune.process import streams
from onnxprune.targets.alignment import TARGETS
from onnxprune.targets.precision import INT8, PRECISIONS

if TYPE_CHECKING:
    from onnxprune.report.live import Show
    from onnxprune.report.quantized import QuantizeReport


@click.command(
    "quantize",
    cls=Grouped,
    sections=(
        Section(
            "Data",
            option("--calib", metavar="PATH", help="Calibration data, as --calib of prune; required."),
            SCRIPT,
            option("--samples", type=int, show_default="all", help="Use at most this many samples."),
            STATE,
            TEST,
            option(
                "--labels",
                metavar="KEY",
                show_default="the only key of integers",
                help="Key of the classes in --test.",
            ),
        ),
        *PREPARED,
        Section(
            "How",
            option("--to", type=Choice(PRECISIONS), **with_default(INT8), help="8-bit integers, or half precision."),
            option(
                "--target",
                type=Choice(tuple(TARGETS)),
                **with_default(DEFAULTS.target),
                help="Where OUT will run, which decides where pairs of QuantizeLinear and DequantizeLinear stand; for "
                "tensorrt-* the result is also held against what TensorRT's ONNX parser accepts.",
            ),
            *HOW,
            option("--seed", type=int, **with_default(DEFAULTS.seed), help="Of which samples are held out."),
        ),
        Section(
            "Gates on OUT: exit code 4 where one does not hold, and nothing is written",
            option(
                "--max-drop",
                type=float,
                metavar="POINTS",
                show_default="no limit",
                help="Top-1 on --test may be so many percentage points below IN's at most.",
            ),
            option(
                "--min-agreement",
                type=SHARE,
                metavar="SHARE",
                show_default="no limit",
                help="So many samples get IN's class at least, of --test or of those held out: 0.99 or 99%.",
            ),
            option(
                "--max-error",
                type=ERROR,
                metavar="ERROR",
                show_default="no limit",
                help="No output differs from IN's by more, on --test or on samples held out: squared error over "
                "spread, 0.05 or 5%.",
            ),
        ),
        Section("Where it runs", CUSTOM_OPS, ALLOW_LINKS),
        Section(
            "Output",
            flag("--bench", "Also time IN and OUT in turns, one sample at a time, for the report."),
            JSON,
            REPORT,
            NO_PICTURES,
            SINGLE_FILE,
            flag("--overwrite", "Replace OUT and --report files that exist."),
            flag("--quiet", "No report, no progress; warnings and errors stay.", "-q"),
        ),
    ),
)
@click.argument("model", metavar="IN", shell_complete=files)
@click.argument("output", metavar="OUT", shell_complete=files)
@click.pass_obj
def quantize_command(
    surroundings: Surroundings,
    /,
    model: str,
    output: str,
    calib: str | None,
    test: str | None,
    labels: str | None,
    report_files: tuple[str, ...],
    no_pictures: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Store the ONNX model IN in 8-bit integers or half precision, and write it to OUT.

    Ranges are found by what the outputs do, channels are brought to one scale where that helps, and layers that cost
    more than they give stay in float. `onnxprune IN OUT --ratio R --then int8` prunes first, in one run.
    """
    options["test"] = (
        None if test is None else data_of(test, "--test", {**about(test, options, False), "data_script": None})
    )
    options["calibration"] = data_of(calib, "--calib", options)
    if options["calibration"] is None:
        raise UsageError("--calib is missing: the samples that ranges are found by, as a path (or --data-script)")
    if labels is not None and test is None:
        raise UsageError("--labels names a key of the test data: give that too, with --test")
    start()
    from onnxprune.report import terminal
    from onnxprune.report.live import bars, silent
    from onnxprune.sentence.quantize import quantize

    interrupts = surroundings.interrupts
    with ExitStack() as stack:
        show: Show = silent
        if not quiet and sys.stderr.isatty():
            show = stack.enter_context(bars())

        def ready(report: QuantizeReport) -> None:
            stack.close()
            if as_json:
                streams.show(report.to_json())
            elif not quiet:
                streams.show(terminal.quantize_report(report, screen_of()))
            interrupts.hold()

        quantize(
            model,
            output,
            test_labels=labels,
            report_file=report_files,
            pictures=not no_pictures,
            watch=show,
            warn=warn,
            ready=ready,
            command=surroundings.command,
            **options,
        )
