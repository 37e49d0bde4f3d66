"""In how many bits the result is stored."""

from __future__ import annotations

from onnxprune.cli.options.names import DEFAULTS
from onnxprune.cli.options.section import Section, option, with_default
from onnxprune.cli.values import SHARE, Choice
from onnxprune.targets.precision import PRECISIONS, RANGES, REDUCE_RANGE

# What several commands have.
HOW = (
    option(
        "--ranges",
        type=Choice(RANGES),
        **with_default(DEFAULTS.ranges),
        help="How the range of each activation is found: its least and greatest number, where it loses least of its "
        "entropy, or without the last 0.005% at either end. auto: the one of these that leaves the least error.",
    ),
    option(
        "--reduce-range",
        type=Choice(REDUCE_RANGE),
        **with_default(DEFAULTS.reduce_range),
        help="Whether weights have 7 bits, which x86 processors without VNNI need. auto: where this one does, unless "
        "--target is TensorRT.",
    ),
    option(
        "--keep-float",
        multiple=True,
        metavar="PATTERN",
        show_default="none",
        help="Layers that stay in float, by a shell pattern of node or tensor names; one that matches nothing is "
        "refused. Repeatable.",
    ),
    option(
        "--float-share",
        type=SHARE,
        metavar="SHARE",
        **with_default(DEFAULTS.float_share),
        help="Layers that take a larger share of the added error than of the multiplications stay in float too, up to "
        "this share of these in all; 0 for none.",
    ),
)
PRECISION = Section(
    "Then: fewer bits",
    option(
        "--then",
        type=Choice(PRECISIONS),
        show_default="float, as IN",
        help="Store the pruned model in 8-bit integers, as --target wants it: pairs of QuantizeLinear and "
        "DequantizeLinear, with ranges of the same samples; or in half precision (fp16), but for what would overflow. "
        "Limits, --bench and the report are of that result.",
    ),
    *HOW,
)
