"""Sizes that data decide: how many entries are not zero, how many boxes are left, how often a Loop turns.

That such a size came out the same at every size of the inputs says nothing of other samples. It is treated as that of
a window which stands still: made longer by hand, and what follows from it is measured (`windows.widened`). An If whose
condition is computed from data is run the other way round as well (`other_ways`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import onnx
from onnx import helper

from onnxprune.graph import bodies, protobuf
from onnxprune.graph.protobuf import copied
from onnxprune.normalise.measured import Measured, as_far_as_it_runs, untold
from onnxprune.normalise.steps import behind, in_front_of
from onnxprune.normalise.windows import Window

_STANDARD = ("", "ai.onnx")
# The inputs whose values say how large an output is, whatever the domain: some have such operators of the same name.
_SIZED_BY = {
    **dict.fromkeys(("AffineGrid", "CenterCropPad", "DFT", "Expand", "OneHot", "Reshape", "SequenceAt", "Split"), (1,)),
    **dict.fromkeys(("Tile", "TopK", "Upsample"), (1,)),
    **dict.fromkeys(("BlackmanWindow", "ConstantOfShape", "HammingWindow", "HannWindow"), (0,)),
    **dict.fromkeys(("Range",), (0, 1, 2)),
    **dict.fromkeys(("Resize", "Slice"), (1, 2, 3, 4)),
    **{"Col2Im": (1, 2), "MaxUnpool": (2,), "MelWeightMatrix": (0, 1), "Pad": (1, 3), "STFT": (1, 3)},
    "ConvTransposeWithDynamicPads": (2,),
}
# Those that pass a sequence on.
_SEQUENCES = {"Identity", "SequenceErase", "SequenceInsert"}
# Those that make a tensor longer or shorter, and those that give one as long as they get.
_LENGTHENING = {"Compress", "Concat", "Expand", "Pad", "Slice", "Tile"}
_KEEPING = {
    *("Abs", "Add", "Cast", "Clip", "Div", "Identity", "LeakyRelu", "Max", "Min", "Mul", "Neg", "Relu"),
    *("ScatterElements", "ScatterND", "Sigmoid", "Softmax", "Sub", "Tanh", "Where"),
}
# More such conditions are turned at once only.
_MOST_ALONE = 8


def sizes_by_data(proto: onnx.ModelProto, before: Collection[str], static: Collection[str]) -> list[Window]:
    """The tensors with axes whose size data may decide, as windows that stand whatever they read.

    before: tensors; those that they are computed from are looked at. static: what follows from sizes alone.
    """
    independent = {*static, *(t.name for t in proto.graph.initializer)}
    decided: list[Window] = []
    producer = {o: n for n in proto.graph.node for o in n.output}
    axes_of: _Inferred | None = None
    for n in in_front_of(proto, before):
        windows = _windows_of(n, independent, producer)
        if windows and axes_of is None:
            axes_of = _inferred(proto)
        for w in windows:
            assert axes_of is not None
            if w.output not in axes_of.others:
                free = axes_of.open.get(w.output)
                decided.append(w if w.axes is not None or w.source else replace(w, axes=free))
    return decided[::-1]


def _windows_of(
    n: onnx.NodeProto, independent: Collection[str], producer: Mapping[str, onnx.NodeProto]
) -> list[Window]:
    """The outputs of one node whose size data may decide; without axes where shape inference has to say which.

    independent (here and below): the tensors whose values do not depend on data.
    """
    outputs = [o for o in n.output if o]
    if _decides(n, independent):
        return [Window("", o, by_data=True) for o in outputs]
    if n.op_type == "Loop" and n.domain in _STANDARD:
        return _turned(n, independent)
    counted = _counted(n)
    if counted is not None:
        return [Window("", o, frozenset({a}), by_data=True) for o, a in zip(n.output, counted, strict=False) if o]
    split = producer.get(n.input[0]) if n.op_type == "SequenceAt" else None
    if split is not None and split.op_type == "SplitToSequence" and not all(i in independent for i in split.input[1:]):
        return [Window("", outputs[0], frozenset({protobuf.int_attribute(split, "axis", 0)}), by_data=True)]
    if n.op_type == "ConcatFromSequence" and _grown(n.input[0], producer):
        return [Window("", o, frozenset({protobuf.int_attribute(n, "axis", 0)}), by_data=True) for o in outputs]
    return []


def _decides(n: onnx.NodeProto, independent: Collection[str]) -> bool:
    """Whether values that depend on data say how large what a node gives is, or how large a tensor in its bodies is."""
    if any(k < len(n.input) and n.input[k] and n.input[k] not in independent for k in _SIZED_BY.get(n.op_type, ())):
        return True
    return any(_decides_inside(body, independent, turns=n.op_type == "Loop") for _, body in bodies.bodies_of(n))


def _decides_inside(body: onnx.GraphProto, independent: Collection[str], *, turns: bool) -> bool:
    inner = {*independent, *(t.name for t in body.initializer), *(v.name for v in body.input[: int(turns)])}
    for n in body.node:
        turned = n.op_type == "Loop" and bool(_turned(n, inner))
        if turned or _counted(n) is not None or _decides(n, inner) or (n.op_type == "If" and n.input[0] not in inner):
            return True
        if n.op_type in ("Shape", "Size") or (not bodies.bodies_of(n) and all(i in inner for i in n.input if i)):
            inner.update(n.output)
    return False


def _grown(name: str, producer: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a sequence comes from outside, or out of a body, where data may decide how much is in it."""
    while name in producer and producer[name].op_type in _SEQUENCES:
        name = producer[name].input[0]
    return name not in producer or bool(bodies.bodies_of(producer[name]))


def _counted(n: onnx.NodeProto) -> tuple[int, ...] | None:
    """The axis of each output along which an operator gives what it has counted; None for others."""
    axis = next((int(a.i) for a in n.attribute if a.name == "axis"), 0)
    counted = {"NonZero": (1,), "NonMaxSuppression": (0,), "Compress": (axis,), "Unique": (axis, 0, 0, 0)}
    counted |= {"DynamicTimeWarping": (1,), "StringSplit": (-1,)}
    return counted.get(n.op_type)


def _turned(n: onnx.NodeProto, independent: Collection[str]) -> list[Window]:
    """What a Loop gives, where data decide how often it turns: along its turns, and where a state has grown; and a
    state that may grow in later turns, however often it turns."""
    ((_, body),) = bodies.bodies_of(n)
    as_often = all(i in independent for i in n.input[:2] if i) and _goes_on(body, independent)
    grown = growing_states(body)
    states = len(body.input) - 2
    windows: list[Window] = []
    for k, o in enumerate(n.output):
        if o and k in grown:
            windows.append(Window("", o, grown[k], by_data=True))
        elif o and k < states and not as_often:
            windows.append(Window(n.input[2 + k], o, by_data=True))
        elif o and k >= states and not as_often:
            windows.append(Window("", o, frozenset({0}), by_data=True))
    return windows


def growing_states(body: onnx.GraphProto) -> dict[int, frozenset[int] | None]:
    """The states of a Loop that a turn may give back at another length, by place, with the axes; None for any."""
    grown: dict[int, frozenset[int] | None] = {}
    for k in range(len(body.input) - 2):
        ends = list(_lengthened((body.output[1 + k].name, False, None), body.input[2 + k].name, body, {}))
        if ends:
            grown[k] = None if None in ends else frozenset(a for a in ends if a is not None)
    return grown


# A tensor, whether it may be longer on its way from here on, and along which axis: None for any.
_Way = tuple[str, bool, int | None]


def _lengthened(
    end: _Way, state: str, body: onnx.GraphProto, outer: Mapping[str, onnx.NodeProto]
) -> Iterator[int | None]:
    """The axes of the operators that make the state longer on its way to `end`; None for one that names none."""
    producer = {**outer, **{o: n for n in body.node for o in n.output}}
    left, seen = [end], set[_Way]()
    while left:
        here = left.pop()
        if here in seen:
            continue
        seen.add(here)
        tensor, longer, axis = here
        if tensor == state:
            if longer:
                yield axis
            continue
        n = producer.get(tensor)
        if n is None:
            continue
        if n.op_type == "If":
            for _, branch in bodies.bodies_of(n):
                branch_end = branch.output[list(n.output).index(tensor)].name
                yield from _lengthened((branch_end, longer, axis), state, branch, producer)
        elif n.op_type in _LENGTHENING:
            concatenated = n.op_type == "Concat"
            to = protobuf.int_attribute(n, "axis", 0) if concatenated else None
            left += [(i, True, to) for i in (n.input if concatenated else n.input[:1])]
        elif n.op_type in _KEEPING:
            left += [(i, longer, axis) for i in n.input if i]


def _goes_on(body: onnx.GraphProto, independent: Collection[str]) -> bool:
    """Whether the condition that a body gives is the one that it gets, or does not depend on data."""
    producer = {o: n for n in body.node for o in n.output}
    name = body.output[0].name
    while name in producer and producer[name].op_type == "Identity":
        name = producer[name].input[0]
    by = producer.get(name)
    constant = name in {t.name for t in body.initializer} or (by is not None and by.op_type == "Constant")
    return constant or name == body.input[1].name or name in independent


@dataclass(frozen=True)
class _Inferred:
    """open: the axes of each tensor whose size shape inference finds neither as a number nor as one of the inputs';
    none for a tensor of which it does not find how many axes there are. others: what is no tensor."""

    open: Mapping[str, frozenset[int]]
    others: Set[str]


def _inferred(proto: onnx.ModelProto) -> _Inferred:
    proto = protobuf.inferred(proto)
    named = {d.dim_param for v in proto.graph.input for d in v.type.tensor_type.shape.dim if d.dim_param}
    every = [*proto.graph.input, *proto.graph.value_info, *proto.graph.output]
    open_axes: dict[str, frozenset[int]] = {}
    for v in every:
        t = v.type.tensor_type
        if t.HasField("shape"):
            dims = enumerate(t.shape.dim)
            open_axes[v.name] = frozenset(
                a for a, d in dims if not d.HasField("dim_value") and d.dim_param not in named
            )
    return _Inferred(open_axes, protobuf.no_tensors(proto))


def other_ways(
    proto: onnx.ModelProto, run: Measured, names: Sequence[str], before: Collection[str], static: Collection[str]
) -> tuple[list[Measured], set[str]]:
    """Runs like `run` in which Ifs whose conditions data decide go the other way: all at once, and each alone; and the
    names that cannot be computed so."""
    independent = {*static, *(t.name for t in proto.graph.initializer)}
    ifs = (n for n in in_front_of(proto, before) if n.op_type == "If" and n.domain in _STANDARD)
    turned = [bodies.main_output(n) for n in ifs if n.input[0] not in independent]
    ways = [turned, *([t] for t in turned if 1 < len(turned) <= _MOST_ALONE)] if turned else []
    after = behind(proto, turned)
    asked = [n for n in names if n in after]
    runs: list[Measured] = []
    missing: list[set[str]] = []
    for way in ways:
        copy = _turned_round(proto, way)
        values = as_far_as_it_runs(copy, asked, run.feeds)
        missing.append(set(asked) - values.keys())
        runs.append(Measured(copy, run.feeds, {**run.values, **values}))
    return runs, untold(missing)


def _turned_round(proto: onnx.ModelProto, which: Sequence[str]) -> onnx.ModelProto:
    """A copy in which the Ifs with these main outputs take the other branch."""
    copy = copied(proto)
    nodes: list[onnx.NodeProto] = []
    for n in proto.graph.node:
        node = bodies.copy_node(n)
        if n.op_type == "If" and bodies.main_output(n) in which:
            node.input[0] = f"{bodies.main_output(n)}__other_way"
            nodes.append(helper.make_node("Not", [n.input[0]], [node.input[0]]))
        nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy
