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

_LOGITS = 1


def never_chosen(
    proto: onnx.ModelProto, kept: Mapping[str, tuple[int, Sequence[int]]], types: Mapping[str, int]
) -> onnx.ModelProto:
    """The model with other logits at experts that are not kept.

    kept: by the first output of the operator, how many experts it has and which of them stay. types: ONNX's numbers of
    the element types, float32 where there is none.
    """
    result = copied(proto)
    taken = tensors_of(result)
    nodes: list[onnx.NodeProto] = []
    for node in result.graph.node:
        if node.output and node.output[0] in kept:
            count, staying = kept[node.output[0]]
            logits = node.input[_LOGITS]
            element = helper.tensor_dtype_to_np_dtype(types.get(logits, onnx.TensorProto.FLOAT))
            mask = np.zeros((1, count), bool)
            mask[:, list(staying)] = True
            stays, least, masked = (unused(f"{logits}__{what}", taken) for what in ("stays", "lowest", "masked"))
            result.graph.initializer.append(numpy_helper.from_array(mask, stays))
            result.graph.initializer.append(numpy_helper.from_array(np.array(lowest(element), element), least))
            nodes.append(helper.make_node("Where", [stays, logits, least], [masked], name=masked))
            node.input[_LOGITS] = masked
        nodes.append(copy_node(node))
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result
