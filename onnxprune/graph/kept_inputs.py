"""Inputs that operators of onnxruntime read as what an earlier run left: caches of a window, and states.

GroupQueryAttention with `sliding_window_cache` keeps past keys and values (B, g, C, d) in C rows at least as many as
its window, whatever the number of positions so far; how many of them hold anything follows from the total length.
States of a fixed size (CausalConvWithState, LinearAttention) are zeros where nothing was before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

from onnxprune.graph import bodies
from onnxprune.graph.protobuf import int_attribute

GROUPED = "GroupQueryAttention"
PAST = (3, 4)
# The slot of the state that operators carry from run to run.
STATES: Mapping[str, int] = {"CausalConvWithState": 3, "LinearAttention": 3}
# The axes of a cache that count its rows, and what is in one.
ROWS, _WITHIN = 2, 3


def window_of(node: onnx.NodeProto) -> int:
    """The rows that the caches of a node have at least, whatever came before; 0 where they hold every position."""
    if node.op_type != GROUPED or not int_attribute(node, "sliding_window_cache", 0):
        return 0
    return max(int_attribute(node, "local_window_size", 0), 0)


def windows(proto: onnx.ModelProto) -> dict[str, int]:
    """The tensors that are read as caches of a window, with the rows that each has at least."""
    found: dict[str, int] = {}
    for node in bodies.every_node(proto.graph):
        least = window_of(node)
        for name in _at(node, PAST) if least else ():
            found[name] = max(found.get(name, 0), least)
    return found


def unspecified(proto: onnx.ModelProto) -> frozenset[str]:
    """The outputs that are caches of a window as they are: rows that no position has come to hold anything at all."""
    given = {o for n in proto.graph.node if window_of(n) for o in n.output[1:3]}
    return frozenset(v.name for v in proto.graph.output if v.name in given)


def sized_by_heads(proto: onnx.ModelProto) -> frozenset[tuple[str, int]]:
    """The axes of tensors, (name, axis), that have the size of the heads of an attention inside the model."""
    own = (n for n in bodies.every_node(proto.graph) if n.op_type == GROUPED)
    return frozenset((name, _WITHIN) for n in own for name in _at(n, PAST))


def states(proto: onnx.ModelProto) -> frozenset[str]:
    """The tensors that are read as states of a fixed size."""
    own = (n for n in bodies.every_node(proto.graph) if n.op_type in STATES)
    return frozenset(name for n in own for name in _at(n, (STATES[n.op_type],)))


def _at(node: onnx.NodeProto, slots: tuple[int, ...]) -> Iterator[str]:
    return (node.input[k] for k in slots if k < len(node.input) and node.input[k])
