"""`onnxprune sweep`: what several ratios save and lose."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from onnxprune.cli.options.budget import COUNTED, GROUPS, limits
from onnxprune.cli.options.data import DATA
from onnxprune.cli.options.experts import EXPERTS
from onnxprune.cli.options.machine import MACHINE
from onnxprune.cli.options.names import SETTINGS
from onnxprune.cli.options.precision import PRECISION
from onnxprune.cli.options.prepared import PREPARED
from onnxprune.cli.options.section import Grouped, Section, flag, option, with_default
from onnxprune.cli.options.shared import JSON, NO_PICTURES, SINGLE_FILE, report_option
from onnxprune.cli.options.stays import STAYS
from onnxprune.cli.prune import check_effect, labels_of, read_data
from onnxprune.cli.screen import screen_of, warn
from onnxprune.cli.start import start
from onnxprune.errors import BudgetUnreachable
from onnxprune.process import streams
from onnxprune.report.visible import visible

if TYPE_CHECKING:
    from onnxprune.report.live import Show
    from onnxprune.report.progress import Progress
    from onnxprune.report.sweep import Sweep

# As `onnxprune.sentence.sweep` has them, which is loaded on first use.
_KEEP, _RATIOS = ("all", "best", "none"), "0.1:0.7:0.1"
OUTPUT = Section(
    "Output",
    option(
        "--keep",
        type=click.Choice(_KEEP),
        **with_default(_KEEP[0]),
        help="Which models FOLDER gets: all, the best (the largest cut that holds --max-drop, --min-agreement and "
        "--max-error, or without any has a good verdict), or none. sweep.json and sweep.md it gets always.",
    ),
    flag("--bench", "Also time each model against IN in turns, one sample at a time."),
    SINGLE_FILE,
    NO_PICTURES,
    report_option(
        "report_file",
        "Save a report too, of a sweep that is refused as well: by the suffix as .html (a page, with the front "
        "and a slider over the ratios), .md, .json (that of FOLDER) or .xml (JUnit). Repeatable.",
    ),
    JSON,
    flag("--overwrite", "Replace files of FOLDER, and --report files, that exist."),
    flag("--quiet", "No table, no status; warnings and errors stay.", "-q"),
)
RATIOS = Section(
    "Budget",
    option(
        "--ratios",
        metavar="RATIOS",
        **with_default(_RATIOS),
        help="Shares of the budget to remove: FIRST:LAST:STEP, or a list such as 0.2,0.4 or 20%,40%.",
    ),
    *COUNTED,
    *GROUPS,
    *limits(
        "A limit: cuts that do not hold it say so in the table, and where none holds all limits the exit code is 3."
    ),
)


@click.command(
    "sweep",
    cls=Grouped,
    sections=(RATIOS, DATA, *PREPARED, STAYS, PRECISION, MACHINE, OUTPUT, EXPERTS),
)
@click.argument("model", metavar="IN")
@click.argument("folder", metavar="FOLDER")
@click.pass_context
def sweep_command(ctx: click.Context, /, model: str, folder: str, *, quiet: bool, as_json: bool, **given: Any) -> None:
    """Prune IN by several ratios, and say what each saves and loses.

    The data is run, channels are selected and cuts are tried once; each ratio then has a cut, a refit, a recovery (not
    with --fast) and checks of its own. Every model in FOLDER is what `onnxprune IN OUT --ratio` makes of its ratio, and
    so are the figures, with --then those of models in fewer bits.

    Limits (--max-drop, --min-agreement, --max-error) mark cuts here: exit 3 says that none holds them. The table is in
    FOLDER all the same. A ratio that cannot be met, or whose model fails a check, is a row that says why; where there
    is no other row, the command ends with the first reason (exit 3 or 4), and nothing is written.
    """
    explicit = {k for k in given if ctx.get_parameter_source(k) is not ParameterSource.DEFAULT}
    read_data(given)
    labels_of(explicit, given)
    check_effect(explicit, {**given, "from_plan": None})
    arguments = {k: v for k, v in given.items() if k in explicit or k not in SETTINGS}
    arguments["calibration"] = arguments.pop("calib")
    arguments["pictures"] = not arguments.pop("no_pictures")
    arguments["bench"] = given["bench"] and (given["provider"] or "cpu")
    start()
    from onnxprune.report import terminal
    from onnxprune.report.live import bars, silent
    from onnxprune.sentence.sweep import sweep

    interrupts = ctx.obj.interrupts
    with ExitStack() as stack:
        show: Show = silent
        if not quiet and sys.stderr.isatty():
            show = stack.enter_context(bars())

        def watch(progress: Progress) -> None:
            interrupts.check()
            show(progress)

        def ready(result: Sweep) -> None:
            stack.close()
            if as_json or not quiet:
                streams.show(result.to_json() if as_json else terminal.sweep(result, screen_of()))
            interrupts.hold()

        command = ctx.obj.command
        result = sweep(model, folder, watch=watch, warn=warn, ready=ready, command=command, **arguments)
    if result.best is None and any(v is not None for v in result.limits.values()):
        raise BudgetUnreachable(f"no cut of the sweep holds the limits; why each does not is in {visible(folder)}")
