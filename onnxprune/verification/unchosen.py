"""What it means that experts go: a model whose routers never choose them, with all weights where they were.

The logits of such experts are the lowest finite number of their type in front of the operator that chooses. This file
and `surgery.mixtures` share no code; the model without the experts must equal it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph.bodies import copy_node
from onnxprune.graph.names import tensors_of, unused
from onnxprune.graph.protobuf import copied
from onnxprune.numerics.arrays import lowest


def never_chosen(
    proto: onnx.ModelProto, kept: Mapping[tuple[int, int], tuple[int, Sequence[int]]], types: Mapping[str, int]
) -> onnx.ModelProto:
    """The model with the lowest number as logits of experts that are not kept.

    kept: by the place of a node of the main graph and of its input, for how many experts that has an entry on its last
    axis, and which of them stay. types: ONNX's numbers of the element types, float32 where there is none.
    """
    result = copied(proto)
    taken = tensors_of(result)
    nodes: list[onnx.NodeProto] = []
    for k, original in enumerate(result.graph.node):
        node = copy_node(original)
        for slot, logits in enumerate(original.input):
            if (k, slot) not in kept:
                continue
            count, staying = kept[k, slot]
            element = helper.tensor_dtype_to_np_dtype(types.get(logits, onnx.TensorProto.FLOAT))
            mask = np.zeros((1, count), bool)
            mask[:, list(staying)] = True
            stays, least, masked = (unused(f"{logits}__{what}", taken) for what in ("stays", "lowest", "masked"))
            result.graph.initializer.append(numpy_helper.from_array(mask, stays))
            result.graph.initializer.append(numpy_helper.from_array(np.array(lowest(element), element), least))
            nodes.append(helper.make_node("Where", [stays, logits, least], [masked], name=masked))
            node.input[slot] = masked
        nodes.append(node)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result
