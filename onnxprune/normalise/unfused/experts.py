"""Mixtures of experts, expert by expert, as onnxruntime's kernel for the CPU computes them.

    p = softmax(router);  w = p at the k greatest of each row, else 0, divided by their sum where the node says so
    y = Σ_e w_e (act(x U_eᵀ + b_e) V_eᵀ + c_e)

act is ReLU, the tanh approximation of GELU, SiLU, nothing, or SwiGLU of pairs of neighbours: with g and l the numbers
at even and odd places, G = min(g, limit) and L = l within ±limit, G · sigmoid(α G) · (L + β).

Each expert has layers of its own here, so that each keeps the inner units that it needs: equally many, as the operator
stores the weights of all in one (`Normalised.balanced`). w_e stands in front of V_e: then a layer's statistics are
those of the positions that are sent to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onnxprune.graph import packed_codes
from onnxprune.graph.quantized import DEQUANTIZE
from onnxprune.normalise.unfused.activations import fast_gelu
from onnxprune.normalise.unfused.packed_codes import FROM_OPSET
from onnxprune.normalise.unfused.site import Refusal, Rows, Site
from onnxprune.numerics.arrays import Array

# By expert: the tensor that the first product gives, and constants; the last bias is one of all.
INNER, UP, GATED, UP_BIAS, GATED_BIAS, DOWN, BIAS = "inner", "up", "gated", "up_bias", "gated_bias", "down", "bias"
# What goes with weights in codes, behind the name of the weight.
SCALES, ZEROS = "_scales", "_zeros"
# Tensors that hold the sizes of x, which may be computed in another way later on.
SIZES = "sizes"
# From this opset on Split and Unsqueeze read sizes and axes.
_OPSET = 13
_SWIGLU, _INTERLEAVED = "swiglu", 1


def _mixture(site: Site) -> Refusal | None:
    """MoE: weights and biases of the first and the second product, and of a third one."""
    up, up_bias, down, down_bias = (site.input(k) for k in range(2, 6))
    why = _unread(site, any(site.input(k) for k in (6, 7)))
    if why:
        return Refusal(why)
    normal = bool(site.attribute("normalize_routing_weights", 0))
    return _apart(site, _Plain(site, up), _Plain(site, down), up_bias, down_bias, sums_to_one=normal)


def _packed_mixture(site: Site) -> Refusal | None:
    """QMoE: the same of codes, with scales for each output or for blocks of its inputs, and zero points."""
    up_bias, down_bias = site.input(4), site.input(7)
    why = _unread(site, any(site.input(k) for k in (8, 9, 10, 13)))
    block = int(site.attribute("block_size", 0))
    if site.opset < FROM_OPSET:
        why = f"blocks of codes have no standard form in opset {site.opset}"
    elif any(site.input(k) for k in range(14, len(site.inputs))):
        why = "it reads more than the weights of its experts and one router"
    elif str(site.attribute("quant_type", "int")) != "int":
        why = "its codes are small floats, for which onnxruntime has no kernel on the CPU"
    if why:
        return Refusal(why)
    parts = []
    for role, slots in ((UP, (2, 3, 11)), (DOWN, (5, 6, 12))):
        bits = bits_of(role, site.attribute)
        if bits not in packed_codes.WIDTHS:
            return Refusal(f"its codes have {bits} bits, for which onnxruntime has no kernel on the CPU")
        if block and bits == max(packed_codes.WIDTHS):
            return Refusal("its kernel rounds what it multiplies by blocks of eight bits, at every accuracy")
        parts.append(_Codes.of(site, [site.input(k) for k in slots], bits, block))
    if any(p is None for p in parts):
        return Refusal("its weights are not of the sizes that it expects")
    first, second = (p for p in parts if p is not None)
    # Whatever `normalize_routing_weights` says: the kernel for the CPU does not ask.
    return _apart(site, first, second, up_bias, down_bias, sums_to_one=True)


def bits_of(role: str, attribute: Callable[[str, int], Any]) -> int:
    """The bits of the codes of a product of QMoE, given what tells its attributes."""
    return int(attribute(f"fc{1 if role == UP else 2}_expert_weight_bits", 0) or attribute("expert_weight_bits", 4))


class _Matrices(Protocol):
    """The matrices (outputs, inputs) of all experts."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(experts, outputs, inputs)."""

    def give(self, expert: int, rows: slice, role: str, roles: dict[str, str]) -> str:
        """The tensor of one of them, or of some of its rows, as (inputs, outputs); its constants go to `roles`."""


class _Plain:
    def __init__(self, site: Site, name: str) -> None:
        self._site, self._values = site, site.constant(name)
        self.shape = self._values.shape

    def give(self, expert: int, rows: slice, role: str, roles: dict[str, str]) -> str:
        roles[role] = self._site.weight(self._values[expert, rows].T, role)
        return roles[role]


@dataclass(frozen=True)
class _Codes:
    """codes (experts, outputs, inputs), scales and zero points (experts, outputs, blocks)."""

    site: Site
    codes: Array
    scales: Array
    zeros: Array
    bits: int
    block: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, site: Site, names: list[str], bits: int, block: int) -> _Codes | None:
        """What these constants hold; None where they are not of the sizes that go together."""
        stored, scales = site.constant(names[0]), site.constant(names[1])
        if stored.ndim != 3 or stored.dtype != np.uint8 or scales.ndim != (3 if block else 2):
            return None
        experts, outputs, inputs = *stored.shape[:2], stored.shape[2] * 8 // bits
        blocks = inputs // block if block else 1
        shape = experts, outputs, blocks
        if scales.size != np.prod(shape) or (block and inputs % block):
            return None
        zeros: Array = np.full(shape, 1 << (bits - 1), np.uint8)
        if names[2]:
            points = site.constant(names[2])
            if points.dtype != np.uint8 or points.ndim != scales.ndim or points.shape[-1] * 8 < scales.shape[-1] * bits:
                return None
            zeros = packed_codes.unpacked(points, bits, scales.shape[-1]).reshape(shape)
        codes = packed_codes.unpacked(stored, bits, inputs)
        return cls(site, codes, scales.reshape(shape), zeros, bits, block or inputs, (experts, outputs, inputs))

    def give(self, expert: int, rows: slice, role: str, roles: dict[str, str]) -> str:
        roles[role] = self.site.weight(packed_codes.as_stored(self.codes[expert, rows].T, self.bits), role)
        roles[role + SCALES] = self.site.weight(self.scales[expert, rows].T, role + SCALES)
        zeros = packed_codes.as_stored(self.zeros[expert, rows].T, self.bits)
        roles[role + ZEROS] = self.site.weight(zeros, role + ZEROS)
        names = [roles[role], roles[role + SCALES], roles[role + ZEROS]]
        real = self.site.unused(f"{roles[role]}__real")
        return self.site.node(DEQUANTIZE, names, [real], axis=0, block_size=self.block)


def _apart(
    site: Site, first: _Matrices, second: _Matrices, up_bias: str, down_bias: str, *, sums_to_one: bool
) -> Refusal | None:
    """Build the experts, each with its own part of these weights."""
    x, kind = site.input(0), _activation(site)
    experts, hidden, inner = second.shape if len(second.shape) == 3 else (0, 0, 0)
    if tuple(first.shape) != (experts, inner * (2 if kind == _SWIGLU else 1), hidden) or experts < 1:
        return Refusal("its weights are not of the sizes that it expects")
    b = site.constant(up_bias) if up_bias else None
    c = site.constant(down_bias) if down_bias else None
    shares = _shares(site, site.input(1), experts, site.rank_of(x), sums_to_one=sums_to_one)
    terms: list[str] = []
    roles: dict[str, list[str]] = {}
    for e in range(experts):
        term, constants = _expert(site, x, shares[e], e, first, None if b is None else b[e], second)
        terms.append(term)
        for role, name in constants.items():
            roles.setdefault(role, []).append(name)
    if c is not None:
        every = site.op("Concat", *shares, axis=-1)
        roles[BIAS] = [site.weight(c, "bias")]
        terms.append(site.op("MatMul", every, roles[BIAS][0]))
    site.op("Sum", *terms, to=site.output(), main=True)
    site.roles |= {role: tuple(names) for role, names in roles.items()}
    return None


def _activation(site: Site) -> str:
    return str(site.attribute("activation_type", "relu")).lower()


def _unread(site: Site, third: bool) -> str:
    """Why a node is not written anew; "" where all of it is understood."""
    kind = _activation(site)
    if site.opset < _OPSET:
        return f"opset {site.opset} takes the axes of what is split in another way"
    if site.attribute("use_sparse_mixer", 0):
        return "it chooses its experts by a sparse mixer"
    if third:
        return "it has a third weight, for which onnxruntime has no kernel on the CPU"
    if kind != _SWIGLU and kind not in _ACTIVATIONS:
        return f"its activation {kind!r} is not known"
    if kind == _SWIGLU and int(site.attribute("swiglu_fusion", 0)) != _INTERLEAVED:
        return "its two halves do not lie in turns, for which onnxruntime has no kernel on the CPU"
    return ""


def _shares(site: Site, router: str, experts: int, rank: int, *, sums_to_one: bool) -> list[str]:
    """What each expert's answer counts at every position, (..., 1) with the axes of x; of a router (T, experts)."""
    p = site.op("Softmax", router, axis=-1)
    top, places = site.unused(f"{site.output()}__top"), site.unused(f"{site.output()}__places")
    site.node("TopK", [p, site.integers([int(site.attribute("k", 1))], "count")], [top, places], axis=-1)
    if sums_to_one:
        top = site.op("Div", top, site.op("ReduceSum", top, site.integers([-1], "last"), keepdims=1))
    none = site.op("Sub", p, p)
    shares = site.op("ScatterElements", none, places, top, axis=-1)
    if rank > 2:  # the router has one row for each position, whatever the axes of x
        sizes = site.op("Shape", site.input(0))
        front = site.op("Slice", sizes, *(site.integers([v], what) for v, what in ((0, "start"), (-1, "end"))))
        target = site.op("Concat", front, site.integers([experts], "experts"), axis=0)
        shares = site.op("Reshape", shares, target)
        site.roles[SIZES] = (sizes, front, target)
    if experts == 1:
        return [shares]
    parts = [site.unused(f"{site.output()}__share{e}") for e in range(experts)]
    site.node("Split", [shares, site.integers([1] * experts, "each")], parts, axis=-1)
    return parts


def _expert(
    site: Site, x: str, share: str, number: int, first: _Matrices, bias: Array | None, second: _Matrices
) -> tuple[str, dict[str, str]]:
    """(its answer, counted; the names of its constants, and of what the first product gives)."""
    roles: dict[str, str] = {}
    kind = _activation(site)

    def product(rows: slice, role: str, bias_role: str) -> str:
        y = site.op("MatMul", x, first.give(number, rows, role, roles))
        if role == UP:
            roles[INNER] = y
        if bias is None:
            return y
        roles[bias_role] = site.weight(bias[rows], bias_role)
        return site.op("Add", y, roles[bias_role])

    if kind == _SWIGLU:
        g, y = product(slice(0, None, 2), UP, UP_BIAS), product(slice(1, None, 2), GATED, GATED_BIAS)
        h = _swiglu(site, x, g, y)
    else:
        h = _ACTIVATIONS[kind](site, x, product(slice(None), UP, UP_BIAS))
    weight = second.give(number, slice(None), DOWN, roles)
    return site.op("MatMul", site.op("Mul", h, share), weight), roles


def _swiglu(site: Site, x: str, g: str, y: str) -> str:
    limit = float(site.attribute("swiglu_limit", np.inf))
    alpha, beta = (float(site.attribute(f"activation_{k}", v)) for k, v in (("alpha", 1.0), ("beta", 0.0)))
    if np.isfinite(limit):
        g = site.op("Min", g, site.scalar(limit, x, "limit"))
        y = site.op("Clip", y, site.scalar(-limit, x, "least"), site.scalar(limit, x, "most"))
    gate = site.op("Sigmoid", site.op("Mul", g, site.scalar(alpha, x, "alpha")) if alpha != 1.0 else g)
    if beta:
        y = site.op("Add", y, site.scalar(beta, x, "beta"))
    return site.op("Mul", site.op("Mul", g, gate), y)


def _silu(site: Site, x: str, h: str) -> str:
    return site.op("Mul", h, site.op("Sigmoid", h))


_ACTIVATIONS: dict[str, Callable[[Site, str, str], str]] = {
    "relu": lambda site, x, h: site.op("Relu", h),
    "gelu": lambda site, x, h: fast_gelu(site, h, x, ""),
    "silu": _silu,
    "identity": lambda site, x, h: h,
}
TABLE: Rows = {"com.microsoft.MoE": _mixture, "com.microsoft.QMoE": _packed_mixture}
