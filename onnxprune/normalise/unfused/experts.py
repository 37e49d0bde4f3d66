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

import numpy as np

from onnxprune.normalise.unfused.activations import fast_gelu
from onnxprune.normalise.unfused.site import Refusal, Rows, Site
from onnxprune.numerics.arrays import Array

# By expert: the tensor that the first product gives, and constants; the last bias is one of all.
INNER, UP, GATED, UP_BIAS, GATED_BIAS, DOWN, BIAS = "inner", "up", "gated", "up_bias", "gated_bias", "down", "bias"
# Tensors that hold the sizes of x, which may be computed in another way later on.
SIZES = "sizes"
# From this opset on Split and Unsqueeze read sizes and axes.
_OPSET = 13
_SWIGLU, _INTERLEAVED = "swiglu", 1


def _mixture(site: Site) -> Refusal | None:
    x, router, up, up_bias, down, down_bias, third, third_bias = (site.input(k) for k in range(8))
    kind = str(site.attribute("activation_type", "relu")).lower()
    why = _unread(site, kind, third or third_bias)
    if why:
        return Refusal(why)
    first, second = site.constant(up), site.constant(down)
    experts, hidden, inner = second.shape if second.ndim == 3 else (0, 0, 0)
    if first.shape != (experts, inner * (2 if kind == _SWIGLU else 1), hidden) or experts < 1:
        return Refusal("its weights are not of the sizes that it expects")
    b = site.constant(up_bias) if up_bias else None
    c = site.constant(down_bias) if down_bias else None
    shares = _shares(site, router, experts, site.rank_of(x))
    built = [
        _expert(site, x, shares[e], kind, first[e], None if b is None else b[e], second[e]) for e in range(experts)
    ]
    terms = [term for term, _ in built]
    roles: dict[str, list[str]] = {}
    for _, constants in built:
        for role, name in constants.items():
            roles.setdefault(role, []).append(name)
    if c is not None:
        every = site.op("Concat", *shares, axis=-1)
        roles[BIAS] = [site.weight(c, "bias")]
        terms.append(site.op("MatMul", every, roles[BIAS][0]))
    site.op("Sum", *terms, to=site.output(), main=True)
    site.roles |= {role: tuple(names) for role, names in roles.items()}
    return None


def _unread(site: Site, kind: str, third: str) -> str:
    """Why a node is not written anew; "" where all of it is understood."""
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


def _shares(site: Site, router: str, experts: int, rank: int) -> list[str]:
    """What each expert's answer counts at every position, (..., 1) with the axes of x; of a router (T, experts)."""
    p = site.op("Softmax", router, axis=-1)
    top, places = site.unused(f"{site.output()}__top"), site.unused(f"{site.output()}__places")
    site.node("TopK", [p, site.integers([int(site.attribute("k", 1))], "count")], [top, places], axis=-1)
    if site.attribute("normalize_routing_weights", 0):
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
    site: Site, x: str, share: str, kind: str, up: Array, bias: Array | None, down: Array
) -> tuple[str, dict[str, str]]:
    """(its answer, counted; the names of its constants, and of what the first product gives)."""
    roles: dict[str, str] = {}

    def product(weight: Array, b: Array | None, role: str, bias_role: str) -> str:
        roles[role] = site.weight(weight.T, role)
        y = site.op("MatMul", x, roles[role])
        if role == UP:
            roles[INNER] = y
        if b is None:
            return y
        roles[bias_role] = site.weight(b, bias_role)
        return site.op("Add", y, roles[bias_role])

    if kind == _SWIGLU:
        even, odd = (None if bias is None else bias[k::2] for k in (0, 1))
        g, y = product(up[0::2], even, UP, UP_BIAS), product(up[1::2], odd, GATED, GATED_BIAS)
        h = _swiglu(site, x, g, y)
    else:
        h = _ACTIVATIONS[kind](site, x, product(up, bias, UP, UP_BIAS))
    roles[DOWN] = site.weight(down.T, DOWN)
    return site.op("MatMul", site.op("Mul", h, share), roles[DOWN]), roles


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
TABLE: Rows = {"com.microsoft.MoE": _mixture}
