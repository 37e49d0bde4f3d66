"""Limits that no size which was measured has reached: "at most 200 rows" says nothing where there are 16.

What such an operator leaves changes with the size that it reads, and what is taken from it afterwards (how many rows
are missing? none) stays the same until the limit is reached. So what it leaves is treated as a window that stands: made
longer by hand, and what follows from that is measured (`windows.widened`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx

from onnxprune.graph import bodies, external, protobuf
from onnxprune.normalise.steps import in_front_of, slices
from onnxprune.normalise.windows import Window
from onnxprune.numerics.arrays import Array

# From here on an end means "to the end", as exporters write it.
_ENDLESS = 1 << 30
# A start this far from the front may leave nothing at the sizes that are measured.
_FAR = 16
# What has a limit in a body shows in what comes out of it.
_INSIDE = {"Compress", "SequenceAt", "Slice"}


def limited(proto: onnx.ModelProto, before: Collection[str]) -> list[Window]:
    """The limits of what the tensors `before` are computed from."""
    stored = {t.name: t for t in proto.graph.initializer}
    producer = {o: n for n in proto.graph.node for o in n.output}
    cut = {c.output: c for c in slices(proto)}
    limits: list[Window] = []
    for n in in_front_of(proto, before):
        if n.op_type == "Slice" and n.output[0] in cut:
            bounds = cut[n.output[0]].bounds
            axes = {a for a, start, end in bounds if 0 < end < _ENDLESS or -_ENDLESS < start < -1 or start > _FAR}
            limits += [Window(n.input[0], n.output[0], frozenset(axes), limit=True)] if axes else []
        elif n.op_type == "Range" and _leaves_a_rest(n, stored):
            limits.append(Window("", n.output[0], frozenset({0}), limit=True))
        elif n.op_type == "ConcatFromSequence" and n.input[0] in producer:
            if producer[n.input[0]].op_type == "SplitToSequence":  # into so many parts
                limits.append(Window("", n.output[0], frozenset({protobuf.int_attribute(n, "axis", 0)}), limit=True))
        elif n.op_type == "SequenceAt" or any(i.op_type in _INSIDE for i in _within(n)):
            limits += [Window("", o, limit=True) for o in n.output if o]
    others = protobuf.no_tensors(protobuf.inferred(proto)) if limits else set()
    return [w for w in limits[::-1] if w.output not in others]


def _within(n: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    for _, body in bodies.bodies_of(n):
        yield from bodies.every_node(body)


def _leaves_a_rest(n: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a Range may be shorter than its end less its start: it takes larger steps, or may be empty."""

    def value(name: str) -> Array | None:
        return external.array_of(stored[name]) if name in stored else None

    start, end, step = (value(i) for i in n.input)
    return step is None or bool((np.abs(step) != 1).any()) or end is not None or (start is not None and start.max() > 1)
