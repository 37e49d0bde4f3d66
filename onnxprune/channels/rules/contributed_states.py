"""Operators of onnxruntime's own that carry a state from position to position: as the standard ones of their names.

CausalConvWithState: x (B, C, L), each channel by itself, with the last positions of x as the state (B, C, k - 1).
LinearAttention: packed heads, and a state (B, heads, d, e). What onnxruntime adds to the standard operators stays
whole: states of several steps at once, channels behind the positions, and images.
"""

from __future__ import annotations

from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.rules.attention import linear_attention
from onnxprune.channels.rules.contraction import causal_conv
from onnxprune.channels.trace import Rule, Trace
from onnxprune.graph.view import Node

_SEVERAL = Reason("it keeps the states of several steps at once, whose channels are not followed", Remedy.NO_RULE)
_LAST = Reason("it has its channels behind the positions, where they are not followed", Remedy.NO_RULE)
_IMAGES = Reason("it moves over images, whose channels are not followed", Remedy.NO_RULE)
_INVERSE = Reason("several of its states share a query head, which is not followed", Remedy.NO_RULE)


def convolution(node: Node, t: Trace) -> None:
    """CausalConvWithState."""
    whys = {"state_window": _SEVERAL, "channels_last": _LAST}
    why = next((why for name, why in whys.items() if node.attrs.get(name, 0)), None)
    if int(node.attrs.get("ndim", 1)) != 1:
        why = _IMAGES
    if why is not None:
        t.pin_all(node, why)
    else:
        causal_conv(node, t)


def attention(node: Node, t: Trace) -> None:
    """LinearAttention."""
    if node.attrs.get("state_window", 0):
        t.pin_all(node, _SEVERAL)
    elif int(node.attrs["q_num_heads"]) < int(node.attrs["kv_num_heads"]):
        t.pin_all(node, _INVERSE)
    else:
        linear_attention(node, t)


TABLE: dict[str, Rule] = {
    "com.microsoft.CausalConvWithState": convolution,
    "com.microsoft.LinearAttention": attention,
}
