"""The samples that channels are chosen and weights fitted by."""

from __future__ import annotations

from onnxprune.cli.options.prepared import SCRIPT
from onnxprune.cli.options.section import Section, option
from onnxprune.cli.options.shared import STATE
from onnxprune.methods import reading_labels

_READERS = reading_labels()

# What judges what comes of a run.
TEST = option(
    "--test",
    metavar="PATH",
    show_default="samples held out from --calib",
    help="Test data that limits are asked of, as --calib takes it. Top-1 needs classes in it: --labels names their "
    "key, where there is more than one key of integers.",
)
DATA = Section(
    "Data",
    option(
        "--calib",
        type=str,
        metavar="PATH",
        show_default="seeded random inputs",
        help="Calibration data, a few hundred samples: a .npz keyed by input names, a .npy, a folder of "
        "these, images, texts, or what `polygraphy run --save-inputs` wrote.",
    ),
    SCRIPT,
    option(
        "--samples",
        type=int,
        show_default="all; 64 random ones without --calib",
        help="Use at most this many samples.",
    ),
    option(
        "--labels",
        metavar="KEY",
        show_default="none",
        help="Key of the samples' labels in the calibration data: integer classes, or floating-point targets of the "
        f"first output. Then --method {', '.join(_READERS[:-1])} and {_READERS[-1]} measure the loss instead of the "
        "change of the outputs. With --test: the key of the classes in that.",
    ),
    STATE,
    TEST,
)
