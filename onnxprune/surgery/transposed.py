"""A weight that two places read, one of them transposed, is stored once: rows of a vocabulary, say, in both directions.

Folding makes a weight of its own of the transposed one. Where it still is the other one turned, it is turned again.
"""

from __future__ import annotations

import numpy as np
import onnx

from onnxprune.graph import external


def copies(proto: onnx.ModelProto, original: onnx.ModelProto) -> dict[str, tuple[str, tuple[int, ...] | None]]:
    """The weights of a model that the original makes by a Transpose of others: of which, and the order of the axes."""
    stored = {t.name for t in proto.graph.initializer}
    found: dict[str, tuple[str, tuple[int, ...] | None]] = {}
    for n in original.graph.node:
        if n.op_type == "Transpose" and n.domain in ("", "ai.onnx") and {n.input[0], n.output[0]} <= stored:
            order = next((tuple(a.ints) for a in n.attribute if a.name == "perm"), None)
            found[n.output[0]] = n.input[0], order
    return found


def put_back(proto: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Make, in place, by a Transpose again what the original makes so, where the numbers are still the same."""
    stored = {t.name: t for t in proto.graph.initializer}
    returned = {o.name for o in proto.graph.output}
    made: dict[str, onnx.NodeProto] = {}
    for name, (source, order) in copies(proto, original).items():
        if name in returned or source in made:
            continue
        now, other = external.array_of(stored[name]), external.array_of(stored[source])
        turned = np.transpose(other, order)
        if now.dtype == turned.dtype and np.array_equal(now, turned):
            node = onnx.helper.make_node("Transpose", [source], [name], name=f"{name}/Transpose")
            if order is not None:
                node.attribute.append(onnx.helper.make_attribute("perm", order))
            made[name] = node
    if not made:
        return
    nodes = [*made.values(), *proto.graph.node]
    kept = [t for t in proto.graph.initializer if t.name not in made]
    copied = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(copied)
    proto.graph.initializer.extend(kept)
