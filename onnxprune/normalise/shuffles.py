"""Channel shuffles: Reshape → Transpose → Reshape that only permutes one axis becomes a Gather."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
import onnx
import onnx.inliner
from onnx import helper

from onnxprune.graph import bodies
from onnxprune.graph.view import Shape
from onnxprune.numerics.arrays import Array


def with_gathers(
    part: onnx.ModelProto, shapes: Mapping[str, Shape], free: Mapping[str, Collection[int]], replaced: Counter[str]
) -> onnx.ModelProto:
    """`part` with its shuffles replaced; counts them. free: axes whose size changes: no constant orders them."""
    replaced["shuffles"] += _shuffles_to_gathers(part, shapes, free)
    return part


def _shuffles_to_gathers(
    proto: onnx.ModelProto, shapes: Mapping[str, Shape], free: Mapping[str, Collection[int]]
) -> int:
    """Replace each Reshape → Transpose → Reshape that permutes a single axis by a Gather; the number replaced."""
    uses = Counter(i for n in proto.graph.node for i in (*n.input, *bodies.captured_names(n)))
    uses.update(o.name for o in proto.graph.output)
    producer = {o: n for n in proto.graph.node for o in n.output}
    done = 0
    for last in proto.graph.node:
        chain = _chain_back(last, producer, uses)
        if chain is None:
            continue
        first, middle = chain
        permutation = _axis_permutation(
            shapes.get(first.input[0]), shapes.get(first.output[0]), _permutation(middle), shapes.get(last.output[0])
        )
        if permutation is None or permutation[0] in free.get(first.input[0], ()):
            continue
        axis, order = permutation
        name = f"{last.output[0]}__order"
        proto.graph.initializer.append(onnx.numpy_helper.from_array(order.astype(np.int64), name))
        gather = helper.make_node("Gather", [first.input[0], name], [last.output[0]], name=last.name, axis=axis)
        last.CopyFrom(gather)
        done += 1
    return done


def _permutation(node: onnx.NodeProto) -> tuple[int, ...]:
    return next((tuple(int(i) for i in a.ints) for a in node.attribute if a.name == "perm"), ())


def _chain_back(
    last: onnx.NodeProto, producer: Mapping[str, onnx.NodeProto], uses: Mapping[str, int]
) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """The Reshape and the Transpose before the Reshape `last`, where nothing else reads what is between them."""
    if last.op_type != "Reshape":
        return None
    middle = producer.get(last.input[0])
    if middle is None or middle.op_type != "Transpose" or uses[middle.output[0]] != 1:
        return None
    first = producer.get(middle.input[0])
    if first is None or first.op_type != "Reshape" or uses[first.output[0]] != 1:
        return None
    return first, middle


def _axis_permutation(
    before: Shape | None, split: Shape | None, perm: tuple[int, ...], after: Shape | None
) -> tuple[int, Array] | None:
    """(axis, order) such that the chain equals take(x, order, axis); None where it does anything else."""
    if before is None or split is None or before != after or len(perm) != len(split) or len(split) <= len(before):
        return None
    extra = len(split) - len(before)
    for axis in range(len(before)):
        inner = split[axis : axis + extra + 1]
        if split[:axis] != before[:axis] or split[axis + extra + 1 :] != before[axis + 1 :]:
            continue
        if int(np.prod(inner)) != before[axis]:
            continue
        moved = perm[axis : axis + extra + 1]
        outside = (*perm[:axis], *perm[axis + extra + 1 :])
        if outside != (*range(axis), *range(axis + extra + 1, len(split))):
            continue
        order = np.arange(before[axis]).reshape(inner).transpose([p - axis for p in moved]).ravel()
        return axis, order
    return None
