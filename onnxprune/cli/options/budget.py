"""How much goes, and what that may cost."""

from __future__ import annotations

import click

from onnxprune.cli.options.names import DEFAULTS
from onnxprune.cli.options.section import Section, files, flag, option, with_default
from onnxprune.cli.values import ERROR, SHARE, Choice, Ratio
from onnxprune.config import EPOCH_PASSES, RECOVER
from onnxprune.methods import BUDGETS

# What several commands have: what a ratio counts, what single groups lose, and what may be lost in all.
COUNTED = (
    option(
        "--budget",
        type=Choice(tuple(BUDGETS)),
        **with_default(DEFAULTS.budget),
        help="What --ratio counts: multiply-accumulates, parameters, or the time of a run on this machine (latency): "
        "on the CPU, on a GPU for --target ort-cuda, with TensorRT for tensorrt-*, or where --provider says; with "
        "--timing on other devices.",
    ),
    option(
        "--timing",
        multiple=True,
        metavar="FILE",
        shell_complete=files,
        show_default="none: this machine is timed",
        help="With --budget latency: what layers take on another device, as bench --layers --save wrote it there. "
        "Nothing is timed here. Repeatable; the share holds on every device.",
    ),
    option(
        "--timing-target",
        multiple=True,
        metavar="NAME",
        show_default="all",
        help="The target in the --timing files that counts. Repeatable.",
    ),
)
GROUPS = (
    option(
        "--ratio-of",
        multiple=True,
        metavar="PATTERN=SHARE",
        show_default="none",
        help="Groups whose producers match this shell pattern lose that share of their channels, 0.2 or 20%, whatever "
        "--ratio or --uniform say of the others; 0 keeps them whole. Repeatable; the last that matches counts.",
    ),
    option(
        "--max-ratio",
        type=SHARE,
        metavar="SHARE",
        show_default="no cap",
        help="No other group loses more than this share of its channels, 0.8 or 80%, and no branch goes as a whole.",
    ),
    option(
        "--same-widths",
        multiple=True,
        metavar="PATTERN",
        show_default="none",
        help="The groups that this shell pattern matches, equally wide in IN, stay equally wide. Repeatable: each "
        "pattern is a width of its own.",
    ),
)
EFFORT = option(
    "--effort",
    type=int,
    metavar="N",
    show_default=f"{EPOCH_PASSES * RECOVER} after lockstep, else none",
    help="Recovery takes about N times as long as a plain pass of IN over the data: learning from it once counts as "
    f"{EPOCH_PASSES}. It ends earlier where the error on held-out samples no longer falls.",
)
FAST = flag("--fast", "Leave recovery out: many times quicker, for the last points of accuracy.")


def limits(comes: str) -> tuple[click.Option, ...]:
    """The limits on what may be lost. comes: what comes of a limit in a command."""
    return (
        option(
            "--max-drop",
            type=float,
            metavar="POINTS",
            show_default="no limit",
            help=f"Top-1 on --test may be so many percentage points below IN's at most. {comes}",
        ),
        option(
            "--min-agreement",
            type=SHARE,
            metavar="SHARE",
            show_default="no limit",
            help="A limit too: so many samples get IN's class at least, of --test or of those held out: 0.99 or 99%.",
        ),
        option(
            "--max-error",
            type=ERROR,
            metavar="ERROR",
            show_default="no limit",
            help="A limit too, which does not hold either where it cannot be measured: no output, or part of one, "
            "differs from IN's by more than this, on --test or on samples held out: squared error over spread, and of "
            "answers such as a class map the share that changes; 0.05 or 5%.",
        ),
        EFFORT,
        FAST,
    )


LIMITS = limits(
    "A limit: without --ratio the largest cut that holds it is made (exit 3 where none does), beside one nothing is "
    "written where it does not hold (exit 4)."
)
BUDGET = Section(
    "Budget",
    option(
        "--ratio",
        type=Ratio(),
        metavar="SHARE|auto",
        help="Share of the budget to remove: 0.4 or 40%. auto, or left out beside --max-drop, --min-agreement or "
        "--max-error: the largest that holds these. 0: nothing goes but what is named, as where --drop-experts, "
        "--keep-tokens or named --drop-layers stand alone. Required without all these, --uniform, --tolerance, "
        "--layer-tolerance and --from-plan.",
    ),
    *COUNTED,
    option(
        "--uniform",
        type=SHARE,
        metavar="SHARE",
        show_default="none",
        help="Instead of a budget: every group that can be cut loses this share of its channels, in (0, 1). Widths are "
        "rounded down to what --round-to allows; a group too narrow for that keeps its least width.",
    ),
    option(
        "--tolerance",
        type=ERROR,
        metavar="ERROR",
        show_default="none",
        help="Instead of a budget: remove what can go until the outputs, on held-out samples, differ from the "
        "original's by this much: squared error over spread, 0.01 or 1%; with --labels the loss that is added.",
    ),
    option(
        "--layer-tolerance",
        type=SHARE,
        metavar="SHARE",
        show_default="none",
        help="Instead of a budget: of every group the fewest channels stay with which the outputs of the layers that "
        "read it, or what --method looks at, differ by at most this share of what removing all of them would do, in "
        "(0, 1).",
    ),
    *GROUPS,
    *LIMITS,
    option(
        "--min-speedup",
        type=float,
        metavar="FACTOR",
        show_default="no limit",
        help="Write nothing, and exit with 4, where OUT is not surely so many times as fast as IN, such as 1.2: both "
        "are timed in turns, as by --bench, and the lower end of the 95% interval counts.",
    ),
)
