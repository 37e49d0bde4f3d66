"""What each expert of a mixture gives on the samples: the sum of the norms of its answers, as they count.

    use_e = Σ_t w_te ‖f_e(x_t)‖        over the positions t that are sent to e, w as the operator weights answers

An expert that few positions are sent to, with a small weight or a small answer, has a small use: what the mixture
gives changes least without it (the criterion of REAP, Lasby et al. 2025, summed instead of averaged over positions).

The model itself computes it, with nodes behind each mixture: every position once for each of its experts, with logits
that leave no other choice, is sent through the mixture again with k = 1. So it costs another pass at most, knows every
kind of expert that onnxruntime runs, and needs no expert's weights by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.data.samples import Samples
from onnxprune.errors import UsageError
from onnxprune.graph.bodies import copy_node
from onnxprune.graph.names import tensors_of, unused
from onnxprune.graph.protobuf import copied, int_attribute, opset_of
from onnxprune.measures.padding import padding_of
from onnxprune.numerics.arrays import Array, Doubles, Ints
from onnxprune.runtime.session import Session
from onnxprune.surgery.mixtures import ROUTERS, Mixture

# From this opset on operators read their axes, as they are written here.
_OPSET = 13
_BATCH = 8
# Softmax of one such logit among zeros is 1, in half precision too.
_SURE = 1e4
# Attributes of the mixture that is asked for one expert at a time.
_OWN = {"k": 1, "normalize_routing_weights": 0, "use_sparse_mixer": 0}


@dataclass(frozen=True, eq=False)
class Given:
    """Of each expert (count,): its use, and how many positions are sent to it."""

    use: Doubles
    positions: Ints


def use_of(
    proto: onnx.ModelProto, mixtures: Sequence[Mixture], samples: Samples, types: Mapping[str, int]
) -> dict[str, Given]:
    """By name of a mixture, what each of its experts gives; positions that are padding count nothing.

    types: ONNX's numbers of the element types, float32 where there is none. Raises UsageError for an old opset.
    """
    if opset_of(proto) < _OPSET:
        raise UsageError(
            f"what experts give cannot be measured in opset {opset_of(proto)}: name them (--drop-experts NODE=3,5), or "
            f"convert the model to opset {_OPSET} with onnx.version_converter"
        )
    probe = _Probe(proto, mixtures, types)
    session = Session(probe.proto)
    found = {m.name: Given(np.zeros(m.count), np.zeros(m.count, np.int64)) for m in mixtures}
    start = 0
    for feeds in samples.batches(_BATCH):
        count = samples.count(feeds)
        outputs = session.run(feeds)
        part = samples.take(range(start, start + count))
        start += count
        for m, (given, places) in zip(mixtures, probe.outputs, strict=True):
            norms = _without_padding(proto, part, outputs[given], count)
            own, chosen = found[m.name], outputs[places].ravel()
            own.use[:] += np.bincount(chosen, norms.ravel(), minlength=m.count)
            own.positions[:] += np.bincount(chosen[norms.ravel() > 0], minlength=m.count)
    return found


def _without_padding(proto: onnx.ModelProto, samples: Samples, given: Array, count: int) -> Array:
    """What each position's choices give (positions, k), with nothing at padding."""
    values = given.astype(np.float64)
    if len(values) % count:
        return values
    by_sample = {"given": values.reshape(count, -1, values.shape[-1])}
    return padding_of(proto, samples, by_sample).filled("given", by_sample["given"], 0.0)


class _Probe:
    """The model with what its mixtures give in place of its outputs; outputs: (norms, experts) of each mixture."""

    def __init__(self, proto: onnx.ModelProto, mixtures: Sequence[Mixture], types: Mapping[str, int]) -> None:
        self.proto = copied(proto)
        self._taken = tensors_of(self.proto)
        self._nodes: list[onnx.NodeProto] = []
        self._stored: list[onnx.TensorProto] = []
        every = list(self.proto.graph.node)
        self.outputs = [self._of(every[m.node], m, types) for m in mixtures]
        graph = self.proto.graph
        graph.node.extend(self._nodes)
        graph.initializer.extend(self._stored)
        del graph.output[:]
        for given, places in self.outputs:
            graph.output.append(helper.make_tensor_value_info(given, TensorProto.FLOAT, [None, None]))
            graph.output.append(helper.make_tensor_value_info(places, TensorProto.INT64, [None, None]))

    def _of(self, node: onnx.NodeProto, m: Mixture, types: Mapping[str, int]) -> tuple[str, str]:
        element = helper.tensor_dtype_to_np_dtype(types.get(node.input[1], TensorProto.FLOAT))
        k = m.chosen
        weights, places = self._op("TopK", self._op("Softmax", node.input[1], axis=-1), self._const([k]), outputs=2)
        other = node.input[ROUTERS[1]] if len(node.input) > ROUTERS[1] else ""
        if other:
            [weights] = self._op("GatherElements", other, places, axis=1)
        [sure] = self._op("OneHot", places, self._const(m.count), self._const([0, _SURE], element), axis=-1)
        [logits] = self._op("Reshape", sure, self._const([-1, m.count]))
        [shape] = self._op("Shape", node.input[0])
        [width] = self._op("Gather", shape, self._const([-1]), axis=0)
        [flat] = self._op("Concat", self._const([-1]), width, axis=0)
        [rows] = self._op("Reshape", node.input[0], flat)
        [apart] = self._op("Unsqueeze", rows, self._const([1]))
        [each] = self._op("Tile", apart, self._const([1, k, 1]))
        [x] = self._op("Reshape", each, flat)
        again = copy_node(node)
        again.name = unused(f"{m.name}__again", self._taken)
        again.input[0], again.input[1] = x, logits
        if other:
            again.input[ROUTERS[1]] = ""
        kept = [a for a in again.attribute if a.name not in _OWN]
        del again.attribute[:]
        again.attribute.extend([*kept, *(helper.make_attribute(name, v) for name, v in _OWN.items())])
        again.output[0] = unused(f"{m.name}__answers", self._taken)
        self._nodes.append(again)
        [answers] = self._op("Cast", again.output[0], to=TensorProto.FLOAT)
        [squares] = self._op("Mul", answers, answers)
        [sums] = self._op("ReduceSum", squares, self._const([-1]), keepdims=0)
        [norms] = self._op("Sqrt", sums)
        [by_position] = self._op("Reshape", norms, self._const([-1, k]))
        if int_attribute(node, "normalize_routing_weights", 0) or (node.op_type == "QMoE" and not other):
            [total] = self._op("ReduceSum", weights, self._const([-1]), keepdims=1)
            [weights] = self._op("Div", weights, total)
        [counted] = self._op("Cast", weights, to=TensorProto.FLOAT)
        [given] = self._op("Mul", by_position, counted)
        return given, places

    def _op(self, kind: str, *inputs: str | list[str], outputs: int = 1, **attributes: Any) -> list[str]:
        names = [unused(f"experts_{kind}", self._taken) for _ in range(outputs)]
        read = [i if isinstance(i, str) else i[0] for i in inputs]
        self._nodes.append(helper.make_node(kind, read, names, name=names[0], **attributes))
        return names

    def _const(self, value: float | Sequence[float], dtype: type[np.generic] | np.dtype[Any] = np.int64) -> str:
        name = unused("experts_constant", self._taken)
        self._stored.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name
