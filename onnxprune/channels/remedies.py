"""Why channels stay, and what would make them prunable: the one list of what a user can do about a pin.

Every pin takes a `Reason`, whose remedy has no default: whoever writes a rule decides what can be done. A remedy reads
behind "what would free it:"; it starts with an imperative, or with "nothing".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique


@unique
class Remedy(Enum):
    """What would make a pinned axis prunable, or that nothing can."""

    # The model's outside.
    OUTPUT = "nothing in the model can: the size of an output is part of its interface"
    INPUT = (
        "nothing in the model can: the size of an input is part of its interface (name a state with --state, or let it "
        "change with --resize-io)"
    )
    OUTSIDE = "prune the network without this step (pre- or post-processing, a loss), and put it back afterwards"
    CACHE = "let the cache change its size, as an input and as an output, with --resize-io"
    # What is only known when the model runs.
    RUN_TIME = "make the value constant: export with fixed sizes, or fold constants with a simplifier first"
    INVALID = "mend the node: no runtime can compute it as it stands"
    SHAPES = "make the shapes known: export with fixed sizes, or run onnx.shape_inference on the model"
    PICKED = (
        "nothing while the data decide what is picked; export a fixed choice as Slice, Split, Concat or Gather with "
        "constant indices"
    )
    TOKENS = (
        "list the tokens that texts need with --keep-tokens, where these are rows of a vocabulary: others go; nothing "
        "while the data decide what is picked"
    )
    LISTED = (
        "list fewer tokens with --keep-tokens, where these are the rows of those that are listed; nothing while the "
        "data decide what is picked"
    )
    # What the network computes.
    COMPARED = "nothing: without one entry of this axis all the others would come out differently"
    POSITIONS = "nothing: here the axis serves as positions, samples or steps, and every one of them is needed"
    MEANING = "nothing: each entry has a meaning of its own (a position, an offset, a coefficient)"
    LAST = "nothing: it is the only one that is left there, and one has to stay"
    PAIR = "nothing: positions of a head go in pairs, and this one has no partner"
    NEIGHBOURS = "nothing as the network is built: only one without LRN, with BatchNormalization say, can lose channels"
    TOO_MANY = "make the tensor smaller: only so many positions are followed, more where the model has more weights"
    NO_CHANNELS = "nothing: this is no axis of channels"
    # Units that are not single channels.
    WHOLE_GROUPS = "nothing needs to be done: whole groups go, and each that stays keeps its channels"
    INSIDE_GROUPS = "nothing needs to be done: channels go inside every group, and the groups stay"
    ANY_UNIT = "nothing needs to be done: it serves whichever units stay"
    HEADS = "choose --attention heads: then whole heads go, where there are several"
    HEAD_DIM = "choose --attention head-dim: then the same positions of every head go"
    # How the model was exported.
    COUPLED = "nothing while they are coupled; where several layers share a weight, export it once for each"
    PARTNER = "free the channels of what it meets; nothing can where that axis is one of positions or samples"
    LAYOUT = "export so that channels keep an axis of their own, apart from positions and from other channels"
    PADDING = "pad channels with a constant only, and cut them with Slice"
    UNPOOL = "export without the indices of MaxPool: upsample with Resize or ConvTranspose"
    SEQUENCE = "export with Split, Concat and Slice in place of sequences"
    OPTIONAL = "export the model with the optional input present"
    INFERENCE = "export for inference, without random numbers"
    UNROLL = "export the loop unrolled, so that the tensors of each step have shapes of their own"
    BRANCH = "export only the branch that is used, or make the condition constant"
    UNREAD = "remove the output that nothing reads from the model"
    OPSET = "convert the model to opset 9 or newer, with onnx.version_converter"
    AXIS = "quantize again with an axis that the tensor has"
    QUANTIZE_LATER = "prune the float model first, then quantize the result"
    FUSED = "prune the model before onnxruntime's optimizer fuses operators, or export it with standard ones"
    UNKNOWN = "nothing: what onnxruntime does not know may do anything with it, so it gets what it got"
    NO_RULE = "export with standard operators in its place, or ask for a rule for it"


@dataclass(frozen=True)
class Reason:
    """Why an axis stays, as a clause for the report, and what would free it."""

    text: str
    remedy: Remedy
