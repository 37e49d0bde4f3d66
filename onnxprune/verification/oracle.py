"""The masked oracle: what removal *means*, computed without removing anything.

The normalised model, at its full shapes, with a 0/1 mask applied to every input that is read across a channel axis:
a removed channel contributes zero to every contraction (masked at the consumer, not the producer: a bias behind a
zeroed weight would still be read), and mixing operators take their statistics over the kept channels by explicit
masked sums. Where a contraction takes place inside an operator (the state of a recurrent net), the columns of its
weights are masked instead, which is the same. Nothing here slices; `surgery` and this file share no code. The sliced
model must equal it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.channels import ChannelGraph
from onnxprune.channels.trace import Read
from onnxprune.graph.bodies import bodies_of
from onnxprune.graph.protobuf import copied
from onnxprune.graph.view import Node
from onnxprune.numerics.arrays import Mask, is_float, lowest


class _Builder:
    """Appends nodes and constants under fresh names."""

    def __init__(self, dtype: np.dtype[np.generic], prefix: str) -> None:
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._prefix = prefix
        self._masks: dict[tuple[tuple[int, ...], bytes], str] = {}

    def op(self, kind: str, *inputs: str, **attrs: Any) -> str:
        out = f"{self._prefix}_{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attrs))
        return out

    def constant(self, values: object, dtype: object = None) -> str:
        name = f"{self._prefix}_const{len(self.constants)}"
        array = np.asarray(values, dtype=dtype or self.dtype)  # type: ignore[call-overload]
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def total(self, x: str, axes: Sequence[int], opset: int, kind: str = "ReduceSum") -> str:
        if opset >= (13 if kind == "ReduceSum" else 18):
            return self.op(kind, x, self.constant(list(axes), np.int64), keepdims=1)
        return self.op(kind, x, axes=list(axes), keepdims=1)

    def where(self, mask: Mask, x: str, otherwise: float) -> str:
        if is_float(self.dtype):
            # The neutral element of a maximum is the least number of the type: what is below it would be infinite.
            least = lowest(self.dtype)
            otherwise = min(max(otherwise, least), -least)
        key = mask.shape, np.packbits(mask).tobytes()
        if key not in self._masks:
            self._masks[key] = self.mask(mask, x)
        return self.op("Where", self._masks[key], x, self.constant(otherwise))

    def mask(self, mask: Mask, x: str) -> str:
        """The name of a tensor that holds `mask` at the sizes that `x` has in the run.

        Where every channel fills as many places of an axis as the next (a feature map behind Reshape), it is stored
        once per channel and spread over the places that there are.
        """
        runs = [_run(mask, axis) for axis in range(mask.ndim)]
        if max(runs, default=1) == 1:  # without axes in front, which a run may not have (Squeeze without axes)
            return self.constant(mask.reshape(_without_front(mask.shape)), np.bool_)
        shape = self.op("Shape", x)
        once = mask[tuple(slice(None, None, r) for r in runs)]
        pairs, spread, joined = [], [], []
        for axis, (run, entries) in enumerate(zip(runs, once.shape, strict=True)):
            size = self.op("Gather", shape, self.constant([axis], np.int64), axis=0)
            each = self.op("Div", size, self.constant([entries], np.int64))
            one = self.constant([1], np.int64)
            pairs += [entries, 1]
            spread += [self.constant([entries], np.int64), each if run > 1 else one]
            joined.append(size if run > 1 else self.constant([entries], np.int64))
        folded = self.constant(once.reshape(pairs), np.bool_)
        wide = self.op("Expand", folded, self.op("Concat", *spread, axis=0))
        return self.op("Reshape", wide, self.op("Concat", *joined, axis=0))


def _without_front(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the sizes of 1 that it begins with."""
    return shape[next((a for a, s in enumerate(shape) if s > 1), 0) :]


def _run(mask: Mask, axis: int) -> int:
    """The length of the runs of equal entries along an axis: every run starts at a multiple of it."""
    size = mask.shape[axis]
    if size < 2:
        return 1
    moved = np.moveaxis(mask, axis, 0)
    starts = np.flatnonzero((moved[1:] != moved[:-1]).reshape(size - 1, -1).any(axis=1)) + 1
    return int(np.gcd.reduce([*starts.tolist(), size]))


def masked_model(
    proto: onnx.ModelProto, channels: ChannelGraph, keep: Mask, types: Mapping[str, int]
) -> onnx.ModelProto:
    """The oracle of removing every class that `keep` (classes,) marks False from the normalised model `proto`."""
    by_node: dict[int, list[Read]] = {}
    for r in channels.reads:
        by_node.setdefault(r.node.index, []).append(r)
    result = copied(proto)
    del result.graph.node[:]
    del result.graph.value_info[:]
    _mask_nodes(proto.graph, result.graph, result.graph, count(), by_node, channels, keep, types)
    return result


def _mask_nodes(
    source: onnx.GraphProto,
    target: onnx.GraphProto,
    main: onnx.GraphProto,
    numbers: Iterator[int],
    by_node: Mapping[int, Sequence[Read]],
    channels: ChannelGraph,
    keep: Mask,
    types: Mapping[str, int],
) -> None:
    """Fill `target`, the main graph or a body, with the nodes of `source` and their masks; constants go to `main`."""
    for original in source.node:
        index = next(numbers)
        node = onnx.NodeProto()
        node.CopyFrom(original)
        for (_, body), (_, masked) in zip(bodies_of(original), bodies_of(node), strict=True):
            del masked.node[:], masked.value_info[:]
            _mask_nodes(body, masked, main, numbers, by_node, channels, keep, types)
        replaced = False
        reads = by_node.get(index, ())
        for r in reads:
            name = r.node.inputs[r.slot]
            stored = channels.graph.constants.get(name)
            if stored is not None and _masked_elsewhere(r, reads, channels):
                continue
            of_weights = stored is not None and r.kind not in ("mixing", "state")
            mask = mask_of(channels, name, keep, r.axes if of_weights else None)
            # Statistics of what is kept are those of all of it where each is taken of channels that go together: heads
            # behind one another with positions, say, each with its own.
            if mask is None or (r.kind == "mixing" and r.axes and all(mask.shape[a] == 1 for a in r.axes)):
                continue
            element = helper.tensor_dtype_to_np_dtype(types.get(name, onnx.TensorProto.FLOAT))
            b = _Builder(element if stored is None else stored.dtype, f"__oracle{index}_{r.slot}")
            if r.kind == "state":
                node.input[r.slot] = _without_unit(b, r, mask)
            elif r.kind != "mixing":
                node.input[r.slot] = b.where(mask, name, 0.0)
            else:
                MIXING[r.node.op](b, r, mask, channels)
                replaced = True
            target.node.extend(b.nodes)
            main.initializer.extend(b.constants)
        if not replaced:
            target.node.append(node)


def _without_unit(b: _Builder, r: Read, mask: Mask) -> str:
    """What an LSTM on codes reads at a slot, with zero for all that belongs to units that are removed.

    Of weights that is their zero point. With all of a unit's weights zero its state is 0 from the first step on.
    """
    zero = r.node.input(_ZERO_POINTS[r.slot]) if r.slot in _ZERO_POINTS else ""
    if not zero:
        return b.where(mask, r.node.inputs[r.slot], 0.0)
    by_gate = b.op("Reshape", zero, b.constant([0, 1, -1], np.int64))
    return b.op("Where", b.constant(mask, np.bool_), r.node.inputs[r.slot], by_gate)


def _masked_elsewhere(read: Read, reads: Sequence[Read], channels: ChannelGraph) -> bool:
    """Whether what a node reads of a weight needs no mask: an activation carries the same channels to the product.

    An index of Einsum may be of weights alone; of the other products' operands each has the channels of the other.
    """
    if read.kind != "contraction" or read.node.op == "Einsum":
        return False
    return any(r.kind == read.kind and r.node.inputs[r.slot] not in channels.graph.constants for r in reads)


def mask_of(channels: ChannelGraph, name: str, keep: Mask, axes: Sequence[int] | None = None) -> Mask | None:
    """Which elements of a tensor are kept, broadcastable to its shape; None where all are.

    axes: count only the channels that one of these axes tracks.
    """
    mask: Mask | None = None
    for f in channels.factors.get(name, ()):
        if axes is not None and all(f.shape[a] == 1 for a in axes):
            continue
        m: Mask = keep[f]
        if not m.all():
            mask = m if mask is None else mask & m
    return mask


def _ones(b: _Builder, x: str, mask: Mask) -> str:
    """1 where an element of `x` is kept, else 0, at the sizes of the run: they need not be those of the trace."""
    one = numpy_helper.from_array(np.ones(1, b.dtype))
    return b.where(mask, b.op("ConstantOfShape", b.op("Shape", x), value=one), 0.0)


def _standardise(b: _Builder, r: Read, mask: Mask, channels: ChannelGraph, *, centre: bool, epsilon: float) -> str:
    x = r.node.inputs[r.slot]
    opset = channels.graph.opset
    n = b.total(_ones(b, x, mask), r.axes, opset)
    if centre:
        mean = b.op("Div", b.total(b.where(mask, x, 0.0), r.axes, opset), n)
        x = b.op("Sub", x, mean)
    kept = b.where(mask, x, 0.0)
    variance = b.op("Div", b.total(b.op("Mul", kept, kept), r.axes, opset), n)
    return b.op("Div", x, b.op("Sqrt", b.op("Add", variance, b.constant(epsilon))))


def _affine(b: _Builder, y: str, node: Node, shape: tuple[int, ...] | None) -> None:
    for kind, slot in (("Mul", 1), ("Add", 2)):
        name = node.input(slot)
        if not name:
            continue
        if shape is not None:
            name = b.op("Reshape", name, b.constant(list(shape), np.int64))
        y = b.op(kind, y, name)
    b.nodes.append(helper.make_node("Identity", [y], [node.outputs[0]]))


def _layer_norm(b: _Builder, r: Read, mask: Mask, channels: ChannelGraph) -> None:
    epsilon = float(r.node.attrs.get("epsilon", 1e-5))
    centre = r.node.op != "RMSNormalization"
    _affine(b, _standardise(b, r, mask, channels, centre=centre, epsilon=epsilon), r.node, None)
    if any(r.node.outputs[1:]):
        x, opset = r.node.inputs[0], channels.graph.opset
        n = b.total(_ones(b, x, mask), r.axes, opset)
        mean = b.op("Div", b.total(b.where(mask, x, 0.0), r.axes, opset), n)
        apart = b.where(mask, b.op("Sub", x, mean), 0.0)
        variance = b.op("Div", b.total(b.op("Mul", apart, apart), r.axes, opset), n)
        deviation = b.op("Sqrt", b.op("Add", variance, b.constant(epsilon)))
        for kind, value, out in zip(("Identity", "Reciprocal"), (mean, deviation), r.node.outputs[1:], strict=False):
            if out:
                b.nodes.append(helper.make_node(kind, [value], [out]))


def _instance_norm(b: _Builder, r: Read, mask: Mask, channels: ChannelGraph) -> None:
    rank = len(channels.graph.shapes[r.node.inputs[0]])
    y = _standardise(b, r, mask, channels, centre=True, epsilon=float(r.node.attrs.get("epsilon", 1e-5)))
    _affine(b, y, r.node, (1, -1, *(1,) * (rank - 2)))


def _group_norm(b: _Builder, r: Read, mask: Mask, channels: ChannelGraph) -> None:
    x = r.node.inputs[0]
    rank, c = len(channels.graph.shapes[x]), channels.graph.shapes[x][1]
    groups = int(r.node.attrs["num_groups"])
    opset = channels.graph.opset
    by_group = b.constant([0, groups, -1], np.int64)
    rows, ones = b.op("Reshape", x, by_group), b.op("Reshape", _ones(b, x, mask), by_group)
    count = b.total(ones, [2], opset)
    centred = b.op("Sub", rows, b.op("Div", b.total(b.op("Mul", rows, ones), [2], opset), count))
    kept = b.op("Mul", centred, ones)
    variance = b.op("Div", b.total(b.op("Mul", kept, kept), [2], opset), count)
    epsilon = b.constant(float(r.node.attrs.get("epsilon", 1e-5)))
    y = b.op("Div", centred, b.op("Sqrt", b.op("Add", variance, epsilon)))
    y = b.op("Reshape", y, b.op("Shape", x))
    per_channel = (1, c, *(1,) * (rank - 2))
    for kind, slot in (("Mul", 1), ("Add", 2)):
        name = r.node.inputs[slot]
        size = (channels.graph.shape(name) or (1,))[0]
        v = b.op("Reshape", name, b.constant([size, 1], np.int64))
        v = b.op("Expand", v, b.constant([size, c // size], np.int64))
        y = b.op(kind, y, b.op("Reshape", v, b.constant(list(per_channel), np.int64)))
    b.nodes.append(helper.make_node("Identity", [y], [r.node.outputs[0]]))


def _lp_norm(b: _Builder, r: Read, mask: Mask, channels: ChannelGraph) -> None:
    x = r.node.inputs[0]
    kept = b.where(mask, x, 0.0)
    p = int(r.node.attrs.get("p", 2))
    norm = b.total(kept, r.axes, channels.graph.opset, "ReduceL1" if p == 1 else "ReduceL2")
    # Where all are 0, so is what is divided: by definition the result, too.
    some = b.op("Cast", norm, to=TensorProto.BOOL)
    divisor = b.op("Where", some, norm, b.constant(1.0))
    b.nodes.append(helper.make_node("Div", [x, divisor], [r.node.outputs[0]]))


def _mean_variance_norm(b: _Builder, r: Read, mask: Mask, channels: ChannelGraph) -> None:
    # The epsilon is the one of the operator's reference definition: it is added to the deviation.
    y = _standardise(b, r, mask, channels, centre=True, epsilon=0.0)
    b.nodes.append(helper.make_node("Identity", [y], [r.node.outputs[0]]))


def _reduction(neutral: float, *, mean: bool = False) -> Callable[[_Builder, Read, Mask, ChannelGraph], None]:
    def build(b: _Builder, r: Read, mask: Mask, channels: ChannelGraph) -> None:
        opset, node = channels.graph.opset, r.node
        outside = neutral
        if abs(neutral) == -_LOWEST and np.issubdtype(b.dtype, np.integer):
            limits = np.iinfo(b.dtype.name)
            outside = limits.min if neutral < 0 else limits.max
        y = b.total(b.where(mask, node.inputs[0], outside), r.axes, opset, "ReduceSum" if mean else node.op)
        if mean:
            y = b.op("Div", y, b.total(_ones(b, node.inputs[0], mask), r.axes, opset))
        if node.keepdims:
            b.nodes.append(helper.make_node("Identity", [y], [node.outputs[0]]))
        elif opset >= 13:
            axes = b.constant(list(r.axes), np.int64)
            b.nodes.append(helper.make_node("Squeeze", [y, axes], [node.outputs[0]]))
        else:
            b.nodes.append(helper.make_node("Squeeze", [y], [node.outputs[0]], axes=list(r.axes)))

    return build


_LOWEST = float(np.finfo(np.float32).min)

# Of DynamicQuantizeLSTM: the slot of a weight and that of its zero point.
_ZERO_POINTS = {1: 9, 2: 11}

MIXING: dict[str, Callable[[_Builder, Read, Mask, ChannelGraph], None]] = {
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LpNormalization": _lp_norm,
    "MeanVarianceNormalization": _mean_variance_norm,
    "ReduceMean": _reduction(0.0, mean=True),
    "ReduceSum": _reduction(0.0),
    "ReduceL1": _reduction(0.0),
    "ReduceL2": _reduction(0.0),
    "ReduceSumSquare": _reduction(0.0),
    "ReduceLogSum": _reduction(0.0),
    "ReduceLogSumExp": _reduction(_LOWEST),
    "ReduceMax": _reduction(_LOWEST),
    "ReduceMin": _reduction(-_LOWEST),
    "ReduceProd": _reduction(1.0),
}
