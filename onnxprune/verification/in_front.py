"""Models compared in front of operators that list positions, where rounding decides how many rows there are.

NonZero, NonMaxSuppression and their kin give as many rows as the values make it: one value that is rounded across a
threshold adds a row, and outputs have other shapes. What such an operator reads can be compared, and what lies behind
it computes the same where it is the same nodes with the same weights.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping

import onnx

from onnxprune.graph import external, protobuf
from onnxprune.graph.bodies import captured_names, copy_node, rename
from onnxprune.graph.protobuf import copied

LISTS = frozenset(("NonZero", "NonMaxSuppression", "Unique", "Compress"))
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)


def cut_in_front(
    models: Mapping[str, onnx.ModelProto], reference: onnx.ModelProto
) -> tuple[dict[str, onnx.ModelProto], onnx.ModelProto] | None:
    """The models and the reference with what lists read in place of the outputs behind; None where that does not do.

    It does where all have the same tensors in front, and the same behind these.
    """
    front = _read_by_lists(reference)
    outputs = [o.name for o in reference.graph.output]
    behind = _behind(reference, front)
    wanted = [*dict.fromkeys([*(o for o in outputs if o not in behind), *front])]
    if not front or any(not set(wanted) <= _tensors(m) for m in models.values()):
        return None
    expected = _computed(reference, behind)
    if any(_computed(m, _behind(m, front)) != expected for m in models.values()):
        return None
    return {what: _giving(m, wanted) for what, m in models.items()}, _giving(reference, wanted)


def _read_by_lists(proto: onnx.ModelProto) -> list[str]:
    """The tensors of floating-point numbers that lists are made of, those that they read through masks included."""
    types = protobuf.inferred_shapes(proto)[1]
    return sorted(_up_to(proto, lambda name: types.get(name) in _FLOATS)[0])


def _up_to(proto: onnx.ModelProto, stops: Callable[[str], bool]) -> tuple[set[str], set[str]]:
    """What nodes compute for lists, followed from these towards the inputs: (where that stops, what lies between)."""
    producer = {o: n for n in proto.graph.node for o in n.output if o}
    stack = [i for n in proto.graph.node if n.op_type in LISTS for i in n.input if i]
    stopped: set[str] = set()
    between: set[str] = set()
    while stack:
        name = stack.pop()
        if name in stopped or name in between or name not in producer:
            continue
        if stops(name):
            stopped.add(name)
        else:
            between.add(name)
            stack.extend(i for i in producer[name].input if i)
    return stopped, between


def _behind(proto: onnx.ModelProto, front: list[str]) -> set[str]:
    """What is computed from lists: all that follows from an operator that makes one, or from masks in front of it."""
    behind: set[str] = set()
    masks = _up_to(proto, lambda name: name in front)[1]
    for n in proto.graph.node:
        if n.op_type in LISTS or masks & set(n.output) or behind & {*n.input, *captured_names(n)}:
            behind.update(o for o in n.output if o)
    return behind


def _computed(proto: onnx.ModelProto, behind: set[str]) -> Counter[bytes]:
    """The nodes behind, with the tensors that they read and give, and weights by value: equal ones compute the same."""
    stored = {t.name: t for t in proto.graph.initializer}
    values: dict[str, str] = {}
    nodes: Counter[bytes] = Counter()
    for n in proto.graph.node:
        if not behind & set(n.output):
            continue
        for name in {*n.input, *captured_names(n)} & stored.keys() - values.keys():
            array = external.array_of(stored[name])
            values[name] = f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
        bare = copy_node(n)
        for field in ("name", "doc_string", "metadata_props"):
            bare.ClearField(field)
        rename([bare], values)
        nodes[bare.SerializeToString(deterministic=True)] += 1
    return nodes


def _tensors(proto: onnx.ModelProto) -> set[str]:
    return {o for n in proto.graph.node for o in n.output if o} | {v.name for v in proto.graph.input}


def _giving(proto: onnx.ModelProto, wanted: list[str]) -> onnx.ModelProto:
    """A model with these outputs."""
    result = copied(proto)
    del result.graph.output[:]
    result.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted)
    return result
