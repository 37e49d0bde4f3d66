"""MatMulNBits and GatherBlockQuantized put back, in place of DequantizeLinear and the operator on numbers.

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

from onnxprune.graph import bodies, external, packed_codes, tensor_files
from onnxprune.graph.bodies import copy_node, main_output
from onnxprune.graph.names import tensors_of, unused
from onnxprune.graph.protobuf import int_attribute
from onnxprune.graph.quantized import DEQUANTIZE
from onnxprune.normalise.constants import returned
from onnxprune.normalise.unfused import Fused
from onnxprune.numerics.arrays import Array
from onnxprune.surgery.unread import drop_unread

_DOMAIN = "com.microsoft"
_CODES, _SCALES, _ZEROS, _BIAS = 1, 2, 3, 5
_DEFAULT_BITS = 4


def put_back(proto: onnx.ModelProto, packed: Sequence[Fused]) -> int:
    """Put, in place, those of `packed` back whose nodes are there; how many.

    Bodies hold no weights, and names are unique. A layer that disappeared with its branch is no longer there.
    """
    if not packed:
        return 0
    model = _Model.of(proto)
    # The innermost first: a graph whose nodes are replaced has new bodies.
    graphs = (proto.graph, *bodies.every_body(proto.graph))
    done = sum(_in_graph(g, packed, model) for g in reversed(graphs))
    if done and _DOMAIN not in {o.domain for o in proto.opset_import}:
        proto.opset_import.add(domain=_DOMAIN, version=1)
    if done:
        drop_unread(proto, model.reads)
        proto.graph.initializer.extend(model.made.values())
    return done


def implied(packed: Sequence[Fused]) -> frozenset[str]:
    """The constants of the standard form that such operators leave out: zero points in the middle of the codes."""
    left_out = (f.nodes[0] for f in packed if not any(f.node.input[_ZEROS : _ZEROS + 1]))
    return frozenset(n.input[2] for n in left_out if len(n.input) > 2)


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
        reads = Counter(i for n in bodies.every_node(proto.graph) for i in n.input if i)
        return cls(reads, returned(proto), bodies.weights_of(proto), tensors_of(proto))

    def weight(
        self, key: object, wanted: str, make: Callable[[], Array], *, like: onnx.TensorProto | None = None
    ) -> str:
        """The name of a new constant, which all layers share that ask for it by this key; `wanted` where that is free.

        like: what it is made of, which says whether it lies in a file.
        """
        if key not in self.names:
            name = self.names[key] = unused(wanted, self.taken)
            self.made[name] = tensor_files.tensor_of(
                make(), name, outside=like is not None and external.is_external(like)
            )
        return self.names[key]


def _in_graph(graph: onnx.GraphProto, packed: Sequence[Fused], model: _Model) -> int:
    places = {main_output(n): k for k, n in enumerate(graph.node)}
    instead: dict[int, list[onnx.NodeProto]] = {}
    gone: set[int] = set()
    for f in packed:
        held = [places.get(main_output(n), -1) for n in f.nodes]
        if min(held) < 0:
            continue
        nodes = [graph.node[k] for k in held]
        if _is_whole(f, nodes, model):
            gone.update(held)
            product = f.node.op_type == packed_codes.PRODUCT
            instead[max(held)] = [_product(f.node, nodes, model)] if product else _look_up(f, nodes, model)
    if instead:
        nodes = [copy_node(n) for k, was in enumerate(graph.node) for n in instead.get(k, [] if k in gone else [was])]
        del graph.node[:]
        graph.node.extend(nodes)
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
    return nodes[0].op_type == DEQUANTIZE and all(i in model.stored for i in nodes[0].input if i)


def _product(was: onnx.NodeProto, nodes: Sequence[onnx.NodeProto], model: _Model) -> onnx.NodeProto:
    """MatMulNBits of what a DequantizeLinear of codes (K, N) and a MatMul read by now, and the bias behind it."""
    k, n = model.stored[nodes[0].input[0]].dims
    given = _filled(was, _BIAS + 1)
    codes, scales, zeros = _constants(was, nodes[0], given[_CODES], given[_SCALES], given[_ZEROS], model)
    bias = nodes[2].input[1] if len(nodes) > 2 else ""
    node = _again(was, nodes, [nodes[1].input[0], codes, scales, zeros, "", bias])
    for name, value in (("K", k), ("N", n)):
        next(a for a in node.attribute if a.name == name).i = value
    return node


def _look_up(fused: Fused, nodes: Sequence[onnx.NodeProto], model: _Model) -> list[onnx.NodeProto]:
    """GatherBlockQuantized of what a DequantizeLinear and a Gather read by now.

    Where its table was the weight of a product in another shape, so it is again.
    """
    was, dequantize, indices = fused.node, nodes[0], nodes[1].input[1]
    if len(nodes) == len(("DequantizeLinear", "Gather")):
        codes, scales, zeros = _filled(dequantize, _ZEROS)
        return [_again(was, nodes, [codes, indices, scales, zeros])]
    data, _, scales, zeros = _filled(was, _ZEROS + 1)
    origin = fused.origins.get(data, "")
    codes, scales, zeros = _constants(was, dequantize, origin or data, scales, zeros, model, flat=not origin)
    if not origin:
        return [_again(was, nodes, [codes, indices, scales, zeros])]
    sizes = model.weight(("sizes", codes), f"{data}__sizes", lambda: np.array([0, -1], np.int64))
    name = unused(data, model.taken)
    table = onnx.helper.make_node("Reshape", [codes, sizes], [name], was.name and f"{was.name}/table")
    return [table, _again(was, nodes, [name, indices, scales, zeros])]


def _constants(
    was: onnx.NodeProto,
    dequantize: onnx.NodeProto,
    codes: str,
    scales: str,
    zeros: str,
    model: _Model,
    *,
    flat: bool = False,
) -> tuple[str, str, str]:
    """The names of packed codes, scales and zero points ("" for none), by outputs, of a DequantizeLinear of (K, N).

    codes, scales, zeros: the names that are wanted. flat: each output's codes stand side by side, whatever the blocks.
    """
    q, s, z = (model.stored[name] for name in dequantize.input[:3])
    bits, block = int_attribute(was, "bits", _DEFAULT_BITS), int_attribute(dequantize, "block_size", 0)
    k, n = q.dims

    def packed() -> Array:
        values = external.array_of(q).astype(np.uint8).T
        if flat:
            return packed_codes.packed(values, bits)
        whole = np.zeros((n, -(-k // block) * block), np.uint8)
        whole[:, :k] = values
        return packed_codes.packed(whole.reshape(n, -1, block), bits)

    def packed_zeros() -> Array:
        return packed_codes.packed(external.array_of(z).astype(np.uint8).T, bits)

    return (
        model.weight(("codes", q.name, bits, block, flat), codes, packed, like=q),
        model.weight(("scales", s.name), scales, lambda: np.ascontiguousarray(external.array_of(s).T), like=s),
        model.weight(("zeros", z.name, bits), zeros, packed_zeros, like=z) if zeros else "",
    )


def _again(was: onnx.NodeProto, nodes: Sequence[onnx.NodeProto], inputs: list[str]) -> onnx.NodeProto:
    """A node as it was, with these inputs, that gives what the last of `nodes` gives."""
    node = copy_node(was)
    while not inputs[-1]:
        inputs.pop()
    node.input[:] = inputs
    node.output[0] = nodes[-1].output[0]
    return node


def _filled(node: onnx.NodeProto, count: int) -> list[str]:
    return [*node.input, *[""] * count][:count]
