"""What stays whole, and which widths the rest may get."""

from __future__ import annotations

from onnxprune.cli.options.names import DEFAULTS
from onnxprune.cli.options.section import Section, flag, option, with_default
from onnxprune.cli.options.shared import RESIZE_IO
from onnxprune.cli.values import Choice, parse_alignment
from onnxprune.config import ATTENTIONS, ROTATIONS, UNTRIED
from onnxprune.targets.alignment import TARGETS

_ALIGNMENTS = ", ".join(f"{t.alignment} for {name}" for name, t in TARGETS.items())

STAYS = Section(
    "What stays",
    option(
        "--include",
        multiple=True,
        metavar="PATTERN",
        show_default="everything",
        help="Cut only the outputs of nodes, and tensors, whose name matches this shell pattern. Repeatable.",
    ),
    option(
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        show_default="nothing",
        help="Leave matching layers whole: an excluded layer keeps its outputs AND its inputs, so what is coupled to "
        "either stays too. Repeatable.",
    ),
    option(
        "--exclude-after",
        multiple=True,
        metavar="TENSOR",
        show_default="nothing",
        help="Leave all layers behind this tensor (a name, or a shell pattern) whole, with what they read. Repeatable. "
        "The report lists what each pattern matched; one that matches nothing is refused.",
    ),
    RESIZE_IO,
    option(
        "--keep-tokens",
        metavar="FILE",
        show_default="all",
        help="Rows of embeddings and logits stay for these tokens alone: ids in a .npy or .npz, or texts (with "
        "--tokenizer, whose special tokens stay too). The same ids go in, and logits keep their places; those of other "
        "tokens are the lowest number there is. Goes before --ratio counts.",
    ),
    option(
        "--round-to",
        type=parse_alignment,
        metavar="auto|N",
        **with_default(DEFAULTS.round_to),
        help=f"New widths are multiples of this. auto: of {_ALIGNMENTS}; less where a group is too narrow for it, or "
        "the budget cannot be met with it.",
    ),
    option("--min-channels", type=int, **with_default(DEFAULTS.min_channels), help="No width goes below this."),
    option(
        "--drop-branches/--keep-branches",
        default=None,
        show_default="keep; drop with --budget latency",
        help="Whether a residual branch may go as a whole, where that costs less than narrowing it does.",
    ),
    option(
        "--drop-layers",
        multiple=True,
        metavar="auto|N|PATTERN",
        show_default="none; auto with --drop-branches",
        help="Whole layers of a transformer that go, attention and feed-forward block: by number, or numbers with "
        "commas between them, or by a pattern of their names, as inspect shows them. auto: those without which the "
        "outputs change least, where that costs less than narrowing does. --exclude keeps one. Repeatable.",
    ),
    option(
        "--drop-experts",
        multiple=True,
        metavar="N|PATTERN=I,J",
        show_default="none",
        help="Experts of mixtures (MoE, QMoE) that go as a whole, with the router's column: so many of each mixture, "
        "those that give least on the samples, or these of the mixtures whose node matches. Goes before --ratio "
        "counts: MACs stay nearly as they are, as each position goes to as many experts as before. Repeatable.",
    ),
    option(
        "--attention",
        type=Choice(ATTENTIONS),
        **with_default(DEFAULTS.attention),
        help="What goes in attention: whole heads, or the same positions of every head (head-dim). rank: the latter, "
        "turned first, exactly, to the directions that say most of logits and outputs, where no rotary table or "
        "normalization lies between. auto: rank where all attention can be turned (of weights in half precision "
        "none can), there is data that the method looks at, weights are refitted, and no branch or layer may go, as "
        "with --budget latency; for TensorRT and --then int8, and elsewhere, heads.",
    ),
    option(
        "--untried-branches",
        type=Choice(UNTRIED),
        **with_default(DEFAULTS.untried_branches),
        help="What is done with the channels that a branch of an If reads or writes which no sample takes: nothing "
        "measures what a cut does there.",
    ),
    option(
        "--rotate",
        type=Choice(ROTATIONS),
        **with_default(DEFAULTS.rotate),
        help="Whether a stream that linear layers alone write and read, as between the bottlenecks of MobileNetV2, is "
        "turned, exactly, to the directions that tell its readers most, before channels are selected. auto: where "
        "there is data, weights are refitted, and --target does not compute with integers.",
    ),
    flag(
        "--keep-fused",
        "Operators that onnxruntime had fused are written as they were, where nothing stands in the way. Without it "
        "they are written in standard ones, which onnxruntime fuses again when it loads the result.",
    ),
)
