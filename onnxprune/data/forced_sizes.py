"""Sizes of free axes that what is behind them demands: the channels of a convolution, the rows of a product, a window.

Exporters declare whole inputs as free. An axis is followed through operators that keep it, as far as a weight whose
size it has to have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from onnxprune.graph import kept_inputs
from onnxprune.graph.protobuf import int_attribute

_KEEP = frozenset(
    "Identity Cast Relu LeakyRelu Sigmoid Tanh Gelu Elu Selu Erf Exp Log Sqrt Abs Neg Clip Softplus HardSigmoid "
    "HardSwish Dropout QuantizeLinear DequantizeLinear Softmax LogSoftmax Floor Ceil Sign Not Mish Softsign".split()
)
_BROADCAST = frozenset("Add Sub Mul Div Pow Max Min PRelu".split())
_RECURRENT = frozenset("LSTM GRU RNN".split())
_OF_CHANNELS = frozenset("BatchNormalization InstanceNormalization".split())

# The key of each axis; None where it is not followed.
Labels = tuple[str | None, ...]


def forced(proto: onnx.ModelProto, axes: Mapping[tuple[str, int], str]) -> dict[str, int]:
    """The sizes that weights demand, by the key of the axis.

    axes: the key of every free axis, by input and axis. An axis that two weights demand differently has the first size:
    it is tried, not trusted.
    """
    weights = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    labels: dict[str, Labels] = {}
    for v in proto.graph.input:
        rank = len(v.type.tensor_type.shape.dim)
        if v.name not in weights and any((v.name, a) in axes for a in range(rank)):
            labels[v.name] = tuple(axes.get((v.name, a)) for a in range(rank))
    found: dict[str, int] = {}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            weights.update((node.output[0], tuple(a.t.dims)) for a in node.attribute if a.name == "value")
            continue
        if node.input and node.input[0] in weights and node.op_type in ("DequantizeLinear", "Cast", "Identity"):
            weights[node.output[0]] = weights[node.input[0]]
        if not any(k in labels for k in node.input):
            continue
        for key, size in _demands(node, labels, weights):
            if key is not None and size > 0:
                found.setdefault(key, size)
        after = _behind(node, labels, weights)
        if after is not None and node.output:
            labels[node.output[0]] = after
    return found


def _demands(
    node: onnx.NodeProto, labels: Mapping[str, Labels], weights: Mapping[str, tuple[int, ...]]
) -> list[tuple[str | None, int]]:
    """(axis, the size that it has to have here)."""
    kind, names = node.op_type, list(node.input)
    own = [labels.get(k) for k in names]
    given = [weights.get(k) for k in names]
    first = own[0]
    if kind in _BROADCAST and len(names) == 2:
        return _broadcast(own, given)
    if kind == kept_inputs.GROUPED:
        # A cache of a window may have more rows; every kernel takes as many as the window is wide.
        caches = [own[k] for k in kept_inputs.PAST if k < len(own)]
        return [(axes[kept_inputs.ROWS], kept_inputs.window_of(node)) for axes in caches if axes and len(axes) == 4]
    if kind in ("MatMul", "Gemm") and len(names) >= 2:
        return _product(node, own, given)
    if first is None or len(names) < 2 or given[1] is None:
        return []
    weight = given[1]
    if kind == "Conv" and len(first) == len(weight) > 2:
        return [(first[1], weight[1] * int_attribute(node, "group", 1))]
    if kind == "ConvTranspose" and len(first) == len(weight) > 2:
        return [(first[1], weight[0])]
    if kind in _OF_CHANNELS and len(first) > 1 and len(weight) == 1:
        return [(first[1], weight[0])]
    if kind in ("LayerNormalization", "RMSNormalization") and len(weight) <= len(first):
        return list(zip(reversed(first), reversed(weight), strict=False))
    if kind in _RECURRENT and len(first) == 3 == len(weight):
        states: list[tuple[str | None, int]] = [(first[2], weight[2])]
        layout = int_attribute(node, "layout", 0)
        recurrent = given[2] if len(given) > 2 else None
        for state in own[5:7]:
            if state is not None and len(state) == 3 and recurrent is not None and len(recurrent) == 3:
                states += [(state[layout], weight[0]), (state[2], recurrent[2])]
        return states
    return []


def _broadcast(own: Sequence[Labels | None], given: Sequence[tuple[int, ...] | None]) -> list[tuple[str | None, int]]:
    for axes, weight in ((own[0], given[1]), (own[1], given[0])):
        if axes is not None and weight is not None:
            return [(a, d) for a, d in zip(reversed(axes), reversed(weight), strict=False) if d > 1]
    return []


def _product(
    node: onnx.NodeProto, own: Sequence[Labels | None], given: Sequence[tuple[int, ...] | None]
) -> list[tuple[str | None, int]]:
    left, right = own[0], own[1]
    if left is not None and given[1] is not None and len(given[1]) > 1 and left:
        rows = given[1][-1 if node.op_type == "Gemm" and int_attribute(node, "transB", 0) else -2]
        return [(left[0 if node.op_type == "Gemm" and int_attribute(node, "transA", 0) else -1], rows)]
    if right is not None and given[0] is not None and given[0] and len(right) > 1 and node.op_type == "MatMul":
        return [(right[-2], given[0][-1])]
    return []


def _behind(
    node: onnx.NodeProto, labels: Mapping[str, Labels], weights: Mapping[str, tuple[int, ...]]
) -> Labels | None:
    """The axes of the first output."""
    kind = node.op_type
    axes = labels.get(node.input[0]) if node.input else None
    if kind in _KEEP or kind in _OF_CHANNELS or kind == "LayerNormalization":
        return axes
    if kind in _BROADCAST:
        found = [labels[k] for k in node.input if k in labels]
        longest = max(len(weights.get(k, ())) for k in node.input)
        most = max(found, key=len)
        return (None,) * (longest - len(most)) + most
    if axes is None:
        return None
    if kind == "Transpose":
        perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), None) or range(len(axes))[::-1]
        return tuple(axes[p] for p in perm) if sorted(perm) == list(range(len(axes))) else None
    if kind in ("Conv", "ConvTranspose"):
        return (axes[0], *(None,) * (len(axes) - 1))
    if kind == "MatMul" and len(weights.get(node.input[1], ())) == 2:
        return (*axes[:-1], None)
    return None
