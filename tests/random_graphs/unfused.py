"""Operators of onnxruntime's own that are written in standard ones: weights in packed codes, mixtures, attention.

Only their own rows make them: they stand in no table of rules, and other graphs are drawn as without them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from tests.random_graphs.build import Array, Build, Dims, Live
from tests.random_graphs.maker import Maker
from tests.topologies.quantization import Packer

_DOMAIN = "com.microsoft"
# Whole blocks of inputs go together, so there is something to cut from two of them on.
_BLOCK = 16
_WIDTHS = (32, 48, 24, 16)
_FROM_BLOCKS = 21


def _values(b: Build, *shape: int, fan: int) -> tuple[str, Array]:
    """(a name, seeded numbers that nothing holds yet)."""
    name = b.out("packed", ()).name
    rng = np.random.default_rng(zlib.crc32(f"{name}{shape}".encode()))
    return name, np.asarray(rng.standard_normal(shape) * fan**-0.5, np.float32)


def _stored(b: Build, name: str, *arrays: Array | None) -> list[str]:
    """The names of these constants, "" for None; none behind the last that is there."""
    names = [f"{name}_{k}" if a is not None else "" for k, a in enumerate(arrays)]
    b.weights.update({n: a for n, a in zip(names, arrays, strict=True) if a is not None})
    while not names[-1]:
        names.pop()
    return names


def _product(b: Build, op: str) -> None:
    x = b.sequence() if b.chance(60) else b.matrix()
    inputs, outputs = b.choice(_WIDTHS), b.width()
    a = b.linear(x, x.rank - 1, inputs, hidden=True)
    a = b.bounded(a)
    packer = Packer((), bits=b.choice((4, 8)), block=_BLOCK, zeros=b.chance(50))
    name, w = _values(b, inputs, outputs, fan=inputs)
    codes, scales, zeros = packer.codes(w)
    bias = b.weight(outputs) if b.chance(30) else ""
    given = [a, *_stored(b, name, codes, scales, zeros if packer.zeros else None)]
    if bias:
        given += ["", "", bias][len(given) - 3 :]
    attrs = {"K": inputs, "N": outputs, "bits": packer.bits, "block_size": _BLOCK}
    b.node("MatMulNBits", given, (*x.dims[:-1], outputs), peak=3 * a.peak, domain=_DOMAIN, **attrs)


def _rows(b: Build, op: str) -> None:
    x = b.sequence() if b.chance(60) else b.matrix()
    count, width = int(x.dims[-1]), b.choice(_WIDTHS)
    ids = b.node("ArgMax", [x], x.dims[:-1], "long", hidden=True, axis=x.rank - 1, keepdims=0)
    packer = Packer((), bits=b.choice((4, 8)), block=_BLOCK, zeros=b.chance(50))
    name, w = _values(b, width, count, fan=1)
    codes, scales, zeros = packer.codes(w)
    table = np.ascontiguousarray(codes.reshape(count, -1)[:, : -(-width * packer.bits // 8)])
    first, *rest = _stored(b, name, table, scales, zeros if packer.zeros else None)
    attrs = {"bits": packer.bits, "block_size": _BLOCK, "quantize_axis": 1, "gather_axis": 0}
    y = b.node("GatherBlockQuantized", [first, ids, *rest], (*ids.dims, width), peak=3.0, domain=_DOMAIN, **attrs)
    b.linear(y, y.rank - 1, b.width())


def _mixture(b: Build, op: str) -> None:
    """Of a matrix, a row of which is a position. In codes, the sizes are whole blocks."""
    packed = op == f"{_DOMAIN}.QMoE"
    x = b.matrix()
    stream, inner = (b.choice((32, 16)), b.choice((32, 48))) if packed else (b.choice((6, 8)), b.choice((5, 8, 4)))
    experts, chosen = b.choice((3, 2, 4)), b.choice((1, 2))
    a = b.bounded(b.linear(x, 1, stream, hidden=True))
    router = b.linear(a, 1, experts, hidden=True)
    kind = b.choice(("relu", "silu", "swiglu", "gelu", "identity"))
    first = 2 * inner if kind == "swiglu" else inner
    biases = [b.weight(experts, n) if b.chance(60) else "" for n in (first, stream)]
    given: list[Live | str] = [a, router]
    attrs: dict[str, object] = {"k": chosen, "activation_type": kind}
    attrs |= {"swiglu_fusion": 1} if kind == "swiglu" else {}
    zeros: list[str] = []
    for (outputs, inputs), bias in zip(((first, stream), (stream, inner)), biases, strict=True):
        name, w = _values(b, experts, outputs, inputs, fan=inputs)
        if packed:
            packer = Packer((), block=_BLOCK)
            every = [packer.codes(one.T) for one in w]
            codes, scales, points = (np.stack([e[k] for e in every]) for k in range(3))
            names = _stored(b, name, codes.reshape(experts, outputs, -1), scales, points)
            given += [*names[:2], bias]
            zeros.append(names[2])
        else:
            given += [*_stored(b, name, w), bias]
    if packed:
        attrs |= {"block_size": _BLOCK, "expert_weight_bits": 4}
        given += ["", "", "", *zeros]
    elif b.chance(50):
        attrs["normalize_routing_weights"] = 1
    own = op.rpartition(".")[2]
    y = b.node(own, given, a.dims, peak=4 * a.peak, hidden=True, domain=_DOMAIN, **attrs)
    # The stream goes on beside it. Where nothing reads `a` behind MoE, onnxruntime 1.31's kernel for the CPU puts its
    # result where that is before it has read all of it; that of QMoE does not.
    if not packed or b.chance(70):
        y = b.node("Add", [a, y], a.dims, peak=5 * a.peak, hidden=True)
    b.linear(b.bounded(y), 1, b.width())


def _attention(b: Build, op: str) -> None:
    """Queries, keys and values in one weight."""
    x = b.bounded(b.sequence())
    heads, size = b.choice((2, 3)), b.choice((4, 2, 8))
    width = heads * size
    a = b.linear(x, 2, b.width(), hidden=True) if b.chance(70) else x
    inputs = int(a.dims[2])
    a = b.bounded(a)
    w, bias = b.weight(inputs, 3 * width, fan=inputs), b.weight(3 * width)
    attrs = {"num_heads": heads, **({"unidirectional": 1} if b.chance(40) else {})}
    dims: Dims = (*x.dims[:2], width)
    y = b.node("Attention", [a, w, bias], dims, peak=3 * a.peak, hidden=True, domain=_DOMAIN, **attrs)
    b.linear(y, 2, b.width())


MAKERS: Mapping[str, Maker] = {
    f"{_DOMAIN}.MatMulNBits": Maker(_product, weight=0, first=_FROM_BLOCKS),
    f"{_DOMAIN}.GatherBlockQuantized": Maker(_rows, weight=0, first=_FROM_BLOCKS),
    f"{_DOMAIN}.MoE": Maker(_mixture, weight=0, first=13),
    f"{_DOMAIN}.QMoE": Maker(_mixture, weight=0, first=_FROM_BLOCKS),
    f"{_DOMAIN}.Attention": Maker(_attention, weight=0, first=13),
}
