"""MoE and QMoE put back, in place of the layers of their experts, whose weights are stored in one again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx

from onnxprune.graph import bodies, external, packed_codes, tensor_files
from onnxprune.graph.bodies import copy_node, main_output
from onnxprune.graph.names import tensors_of, unused
from onnxprune.graph.protobuf import int_attribute
from onnxprune.normalise.constants import returned
from onnxprune.normalise.unfused import Fused
from onnxprune.normalise.unfused.experts import (
    BIAS,
    DOWN,
    GATED,
    GATED_BIAS,
    INNER,
    SCALES,
    SIZES,
    UP,
    UP_BIAS,
    ZEROS,
    bits_of,
)
from onnxprune.numerics.arrays import Array
from onnxprune.surgery.unread import drop_unread

_DOMAIN = "com.microsoft"
# Slots of the operators.
_MOE = {UP: 2, UP_BIAS: 3, DOWN: 4, BIAS: 5}
_QMOE = {
    UP: 2,
    UP + SCALES: 3,
    UP_BIAS: 4,
    DOWN: 5,
    DOWN + SCALES: 6,
    BIAS: 7,
    UP + ZEROS: 11,
    DOWN + ZEROS: 12,
}
# What lies in turns in one weight.
_PAIRS = {
    UP: GATED,
    UP + SCALES: GATED + SCALES,
    UP + ZEROS: GATED + ZEROS,
    UP_BIAS: GATED_BIAS,
    DOWN: "",
    DOWN + SCALES: "",
    DOWN + ZEROS: "",
}


def put_back(proto: onnx.ModelProto, experts: Sequence[Fused]) -> int:
    """Put, in place, those of `experts` back whose nodes are there with weights of one size; how many.

    Bodies hold no weights, and names are unique.
    """
    if not experts:
        return 0
    stored, reads = bodies.weights_of(proto), _reads(proto)
    given, taken = returned(proto), tensors_of(proto)
    made: list[onnx.TensorProto] = []
    done = 0
    # The innermost first: a graph whose nodes are replaced has new bodies.
    for graph in reversed((proto.graph, *bodies.every_body(proto.graph))):
        for f in experts:
            node = _again(f, graph, stored, reads, given)
            weights = None if node is None else _weights(f, stored)
            if node is None or weights is None:
                continue
            for slot, values in weights.items():
                node.input[slot] = unused(f.node.input[slot], taken)
                made.append(tensor_files.tensor_of(values, node.input[slot], outside=True))
            gone = {o for n in f.nodes for o in n.output}
            kept = [n for n in graph.node if main_output(n) == node.output[0] or main_output(n) not in gone]
            copies = [node if main_output(n) == node.output[0] else copy_node(n) for n in kept]
            del graph.node[:]
            graph.node.extend(copies)
            done += 1
    if done:
        _drop_unread_nodes(proto, reads, given)
        drop_unread(proto, reads)
        proto.graph.initializer.extend(made)
        if _DOMAIN not in {o.domain for o in proto.opset_import}:
            proto.opset_import.add(domain=_DOMAIN, version=1)
    return done


def _again(
    fused: Fused,
    graph: onnx.GraphProto,
    stored: Mapping[str, onnx.TensorProto],
    reads: Mapping[str, int],
    given: Collection[str],
) -> onnx.NodeProto | None:
    """The fused node with what its parts read by now; None where these are not all there, or something else reads them.

    How the sizes of its input are computed does not matter.
    """
    sizes = fused.roles.get(SIZES, ())
    were = [n for n in fused.nodes if n.output[0] not in sizes]
    there = {main_output(n): n for n in graph.node}
    nodes = [there[main_output(n)] for n in were if main_output(n) in there]
    if len(nodes) < len(were):
        return None
    inside = {o for n in were for o in n.output if o} - set(fused.node.output)
    own = Counter(i for n in nodes for i in n.input)
    names: dict[str, str] = {}
    for was, now in zip(were, nodes, strict=True):
        if (was.op_type, was.domain, len(was.input)) != (now.op_type, now.domain, len(now.input)):
            return None
        for a, b in zip(was.input, now.input, strict=True):
            if a in sizes:
                continue
            if (a in inside or b in inside) and a != b:
                return None
            if names.setdefault(a, b) != b:
                return None
    if any(reads[t] != own[t] or t in given for t in inside):
        return None
    node = copy_node(fused.node)
    node.input[0], node.input[1] = (names[i] for i in fused.node.input[:2])
    return node


def _weights(fused: Fused, stored: Mapping[str, onnx.TensorProto]) -> dict[int, Array] | None:
    """The weights of all experts, by the slot of the operator; None where they cannot be stored in one."""
    parts: dict[str, list[Array]] = {}
    for role, names in fused.roles.items():
        if role in (INNER, SIZES):
            continue
        if any(name not in stored for name in names):
            return None
        parts[role] = [external.array_of(stored[name]) for name in names]
        if len({v.shape for v in parts[role]}) > 1:
            return None
    packed = UP + SCALES in parts
    slots = _QMOE if packed else _MOE
    joined = {role: _stacked(parts[role], parts.get(pair, [])) for role, pair in _PAIRS.items() if role in parts}
    weights = {slots[role]: joined[role] for role in (UP, UP_BIAS, DOWN) if role in joined}
    if BIAS in parts:
        weights[slots[BIAS]] = parts[BIAS][0]
    for role in (UP, DOWN) if packed else ():
        bits = bits_of(role, lambda name, default: int_attribute(fused.node, name, default))
        codes, scales, zeros = (joined[role + what] for what in ("", SCALES, ZEROS))
        if codes.shape[-1] * bits % 8:
            return None  # each row has to end with a byte
        blocks = int_attribute(fused.node, "block_size", 0) > 0
        weights[slots[role]] = packed_codes.packed(codes.astype(np.uint8), bits)
        weights[slots[role + SCALES]] = scales if blocks else scales[..., 0]
        if any(fused.node.input[slots[role + ZEROS] : slots[role + ZEROS] + 1]):
            points = (zeros if blocks else zeros[..., 0]).astype(np.uint8)
            weights[slots[role + ZEROS]] = packed_codes.packed(points, bits)
    return weights


def implied(experts: Sequence[Fused]) -> frozenset[str]:
    """The constants of the standard form that such operators leave out: zero points in the middle of the codes."""
    names: set[str] = set()
    for f in experts:
        for role in (UP, GATED, DOWN):
            slot = _QMOE[(DOWN if role == DOWN else UP) + ZEROS]
            if not any(f.node.input[slot : slot + 1]):
                names.update(f.roles.get(role + ZEROS, ()))
    return frozenset(names)


def _stacked(first: Sequence[Array], second: Sequence[Array]) -> Array:
    """(experts, outputs, inputs) of matrices (inputs, outputs), or (experts, outputs); two of each lie in turns."""
    if not second:
        return np.stack([np.ascontiguousarray(v.T) for v in first])
    pairs = [np.stack([a.T, b.T], axis=1) for a, b in zip(first, second, strict=True)]
    return np.stack([p.reshape(-1, *p.shape[2:]) for p in pairs])


def _drop_unread_nodes(proto: onnx.ModelProto, before: Mapping[str, int], given: Collection[str]) -> None:
    """Take out, in place, the nodes that nothing reads any more, and something did `before`."""
    while True:
        reads = _reads(proto)
        count = 0
        for graph in (proto.graph, *bodies.every_body(proto.graph)):
            unread = [
                k
                for k, n in enumerate(graph.node)
                if any(before[o] for o in n.output if o) and not any(reads[o] or o in given for o in n.output if o)
            ]
            for k in reversed(unread):
                del graph.node[k]
            count += len(unread)
        if not count:
            return


def _reads(proto: onnx.ModelProto) -> Counter[str]:
    return Counter(i for n in bodies.every_node(proto.graph) for i in n.input if i)
