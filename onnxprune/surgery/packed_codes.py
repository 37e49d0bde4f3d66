"""Operators on weights in packed codes put back, in place of DequantizeLinear and the operator on numbers.

Whatever codes, scales and zero points a weight has by then, cut or fitted anew, are packed again as the operator stores
them: the codes of an output side by side, block by block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import onnx

from onnxprune.graph import bodies, external, packed_codes, spill
from onnxprune.graph.bodies import main_output
from onnxprune.graph.protobuf import int_attribute
from onnxprune.graph.quantized import DEQUANTIZE
from onnxprune.normalise.unfused import Fused
from onnxprune.numerics.arrays import Array

_DOMAIN = "com.microsoft"
_CODES, _SCALES, _ZEROS, _ORDER, _BIAS = 1, 2, 3, 4, 5
_DEFAULT_BITS = 4


def put_back(proto: onnx.ModelProto, packed: Sequence[Fused]) -> int:
    """Put, in place, those of `packed` back whose nodes are there; how many.

    Bodies hold no weights, and names are unique. A layer that disappeared with its branch is no longer there.
    """
    if not packed:
        return 0
    model = _Model.of(proto)
    done = sum(_in_graph(g, packed, model) for g in (proto.graph, *bodies.every_body(proto.graph)))
    if done and _DOMAIN not in {o.domain for o in proto.opset_import}:
        proto.opset_import.add(domain=_DOMAIN, version=1)
    if done:
        read = {i for n in bodies.every_node(proto.graph) for i in n.input} | {*model.returned}
        kept = [t for t in proto.graph.initializer if t.name in read or not model.reads[t.name]]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend([*kept, *model.made.values()])
    return done


def implied(packed: Sequence[Fused]) -> frozenset[str]:
    """The constants of the standard form that such operators leave out: zero points in the middle of the codes."""
    return frozenset(f.nodes[0].input[2] for f in packed if not any(f.node.input[_ZEROS : _ZEROS + 1]))


@dataclass(frozen=True, eq=False)
class _Model:
    """How often each tensor is read, what graphs return, the weights, and those that are made, by name."""

    reads: Mapping[str, int]
    returned: Collection[str]
    stored: Mapping[str, onnx.TensorProto]
    taken: set[str]
    made: dict[str, onnx.TensorProto] = field(default_factory=dict)
    names: dict[object, str] = field(default_factory=dict)

    @classmethod
    def of(cls, proto: onnx.ModelProto) -> _Model:
        every = [*bodies.every_node(proto.graph)]
        graphs = (proto.graph, *bodies.every_body(proto.graph))
        stored = bodies.weights_of(proto)
        taken = {*stored, *(p for n in every for p in (*n.input, *n.output))}
        taken |= {v.name for g in graphs for v in (*g.input, *g.output)}
        reads = Counter(i for n in every for i in n.input if i)
        return cls(reads, {v.name for g in graphs for v in g.output}, stored, taken)

    def weight(self, key: object, wanted: str, make: Callable[[], Array], like: onnx.TensorProto) -> str:
        """The name of a new constant, which all layers share that ask for it by this key; `wanted` where that is free.

        like: what it is made of, which says whether it lies in a file.
        """
        if key not in self.names:
            name, k = wanted, 0
            while name in self.taken:
                k += 1
                name = f"{wanted}_{k}"
            self.taken.add(name)
            self.names[key] = name
            self.made[name] = spill.tensor_of(make(), name, outside=external.is_external(like))
        return self.names[key]


def _in_graph(graph: onnx.GraphProto, packed: Sequence[Fused], model: _Model) -> int:
    places = {main_output(n): k for k, n in enumerate(graph.node)}
    instead: dict[int, onnx.NodeProto] = {}
    gone: set[int] = set()
    for f in packed:
        held = [places.get(main_output(n), -1) for n in f.nodes]
        if min(held) < 0:
            continue
        nodes = [graph.node[k] for k in held]
        if _is_whole(f, nodes, model):
            gone.update(held)
            instead[max(held)] = _matmul(f.node, nodes, model)
    if instead:
        nodes = [instead.get(k, n) for k, n in enumerate(graph.node) if k in instead or k not in gone]
        copies = [_copy(n) for n in nodes]
        del graph.node[:]
        graph.node.extend(copies)
    return len(instead)


def _is_whole(fused: Fused, nodes: Sequence[onnx.NodeProto], model: _Model) -> bool:
    """Whether `nodes` are those that were written for a node, which nothing else reads, with constants to pack."""
    if any(was.op_type != now.op_type for was, now in zip(fused.nodes, nodes, strict=True)):
        return False
    for before, behind in pairwise(nodes):
        out = before.output[0]
        if (
            behind.input[0 if behind.op_type != "MatMul" else 1] != out
            or model.reads[out] != 1
            or out in model.returned
        ):
            return False
    codes = nodes[0]
    return codes.op_type == DEQUANTIZE and len(codes.input) > 2 and all(i in model.stored for i in codes.input)


def _matmul(was: onnx.NodeProto, nodes: Sequence[onnx.NodeProto], model: _Model) -> onnx.NodeProto:
    """MatMulNBits of what a DequantizeLinear of codes (K, N) and a MatMul read by now, and the bias behind it."""
    dequantize, product = nodes[:2]
    names = tuple(dequantize.input[:3])
    codes, scales, zeros = (model.stored[name] for name in names)
    bits, block = int_attribute(was, "bits", _DEFAULT_BITS), int_attribute(dequantize, "block_size", 0)
    k, n = codes.dims
    node = _copy(was)
    node.input[0], node.output[0] = product.input[0], nodes[-1].output[0]
    given = [*was.input, *[""] * (_BIAS + 1)][: _BIAS + 1]

    def packed() -> Array:
        q = np.zeros((n, -(-k // block) * block), np.uint8)
        q[:, :k] = external.array_of(codes).astype(np.uint8).T
        return packed_codes.packed(q.reshape(n, -1, block), bits)

    def packed_zeros() -> Array:
        return packed_codes.packed(external.array_of(zeros).astype(np.uint8).T, bits)

    given[0] = product.input[0]
    given[_CODES] = model.weight(("codes", names[0], bits, block), was.input[_CODES], packed, codes)
    given[_SCALES] = model.weight(
        ("scales", names[1]), was.input[_SCALES], lambda: np.ascontiguousarray(external.array_of(scales).T), scales
    )
    if given[_ZEROS]:
        given[_ZEROS] = model.weight(("zeros", names[2], bits), given[_ZEROS], packed_zeros, zeros)
    given[_BIAS] = nodes[2].input[1] if len(nodes) > 2 else ""
    while not given[-1]:
        given.pop()
    node.input[:] = given
    for name, value in (("K", k), ("N", n)):
        next(a for a in node.attribute if a.name == name).i = value
    return node


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
