"""Activations: those that are operators of their own, with or without a bias, and those that a layer has taken in.

    Gelu        x · Φ(x) = x · (1 + erf(x / √2)) / 2
    FastGelu    x · (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2
    QuickGelu   x · σ(α x)

In the forms that onnxruntime finds again when it loads the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import pi, sqrt
from typing import Any

from onnxprune.normalise.unfused.site import Refusal, Rows, Site

# Since when the standard has Gelu, and demands to know into how many parts it splits.
_GELU_OPSET, _SPLIT_OPSET = 20, 18


def gelu(site: Site, x: str, like: str, to: str) -> str:
    """Gelu with the error function, of the tensor `x`, which has the type of `like`."""
    if site.opset >= _GELU_OPSET:
        return site.op("Gelu", x, to=to)
    scaled = site.op("Div", x, site.scalar(sqrt(2.0), like))
    grown = site.op("Add", site.op("Erf", scaled), site.scalar(1.0, like))
    return site.op("Mul", site.op("Mul", x, grown), site.scalar(0.5, like), to=to)


def fast_gelu(site: Site, x: str, like: str, to: str) -> str:
    """Gelu with the hyperbolic tangent."""
    if site.opset >= _GELU_OPSET:
        return site.op("Gelu", x, to=to, approximate="tanh")
    cube = site.op("Mul", site.op("Pow", x, site.scalar(3.0, like)), site.scalar(0.044715, like))
    scaled = site.op("Mul", site.op("Add", x, cube), site.scalar(sqrt(2.0 / pi), like))
    grown = site.op("Add", site.op("Tanh", scaled), site.scalar(1.0, like))
    return site.op("Mul", site.op("Mul", x, site.scalar(0.5, like)), grown, to=to)


def quick_gelu(site: Site, x: str, alpha: float, like: str, to: str) -> str:
    """x · σ(α x)."""
    scaled = x if alpha == 1.0 else site.op("Mul", x, site.scalar(alpha, like))
    return site.op("Mul", x, site.op("Sigmoid", scaled), to=to)


def _gelu(site: Site) -> None:
    gelu(site, site.input(0), site.input(0), site.output())


def _bias_gelu(site: Site) -> None:
    gelu(site, site.op("Add", site.input(0), site.input(1)), site.input(0), site.output())


def _bias_add(site: Site) -> None:
    """x + bias + what is skipped."""
    site.op("Add", site.op("Add", site.input(0), site.input(1)), site.input(2), to=site.output())


def _bias_split_gelu(site: Site) -> None:
    """The first half of x + bias, times Gelu of the second."""
    x, last = site.input(0), site.rank_of(site.input(0)) - 1
    biased = site.op("Add", x, site.input(1))
    if site.opset >= _SPLIT_OPSET:
        site.op("Split", biased, count=2, axis=last, num_outputs=2)
    else:
        site.op("Split", biased, count=2, axis=last)
    left, right = site.nodes[-1].output
    site.op("Mul", left, gelu(site, right, x, ""), to=site.output())


def _fast_gelu(site: Site) -> None:
    x = site.input(0)
    biased = site.op("Add", x, site.input(1)) if site.input(1) else x
    fast_gelu(site, biased, x, site.output())


def _quick_gelu(site: Site) -> None:
    x = site.input(0)
    quick_gelu(site, x, float(site.attribute("alpha", 1.702)), x, site.output())


# what a layer has taken in: (site, tensor, its parameters, a tensor of its type, the name to give)
Taken = Callable[[Site, str, Sequence[float], str, str], str]


def _plain(operator: str) -> Taken:
    def build(site: Site, x: str, given: Sequence[float], like: str, to: str) -> str:
        return site.op(operator, x, to=to)

    return build


def _with(operator: str, *names: str) -> Taken:
    def build(site: Site, x: str, given: Sequence[float], like: str, to: str) -> str:
        attributes: dict[str, Any] = dict(zip(names, given, strict=False))
        return site.op(operator, x, to=to, **attributes)

    return build


def clip(site: Site, x: str, given: Sequence[float], like: str, to: str) -> str:
    """Clip to the least and the greatest number that are given."""
    low, high = given
    if site.opset < 11:
        return site.op("Clip", x, to=to, min=low, max=high)
    return site.op("Clip", x, site.scalar(low, like, "least"), site.scalar(high, like, "most"), to=to)


def _scaled_tanh(site: Site, x: str, given: Sequence[float], like: str, to: str) -> str:
    """α · tanh(β x)."""
    alpha, beta = given
    inner = site.op("Mul", x, site.scalar(beta, like))
    return site.op("Mul", site.op("Tanh", inner), site.scalar(alpha, like), to=to)


# Name of the activation → (its parameters in their order, what builds it).
TAKEN: Mapping[str, tuple[tuple[str, ...], Taken]] = {
    **{name: ((), _plain(name)) for name in ("HardSwish", "Relu", "Sigmoid", "Softplus", "Softsign", "Tanh")},
    **{name: (("alpha",), _with(name, "alpha")) for name in ("Celu", "Elu", "LeakyRelu", "ThresholdedRelu")},
    "HardSigmoid": (("alpha", "beta"), _with("HardSigmoid", "alpha", "beta")),
    "Selu": (("alpha", "gamma"), _with("Selu", "alpha", "gamma")),
    "Clip": (("alpha", "beta"), clip),
    "ScaledTanh": (("alpha", "beta"), _scaled_tanh),
}
# Since which opset the standard has those that are newer than the oldest opset that graphs are written in.
_SINCE: Mapping[str, int] = {"Celu": 12, "HardSwish": 14, "ThresholdedRelu": 10}


def taken_in(site: Site) -> tuple[Taken, tuple[str, ...]] | Refusal:
    """What builds the activation that a layer names, and the names of its parameters."""
    name = site.attribute("activation", "")
    if name not in TAKEN or site.opset < _SINCE.get(name, 0):
        return Refusal(f"its activation {name!r} has no standard form in opset {site.opset}")
    return TAKEN[name][1], TAKEN[name][0]


TABLE: Rows = {
    "com.microsoft.Gelu": _gelu,
    "com.microsoft.BiasAdd": _bias_add,
    "com.microsoft.BiasGelu": _bias_gelu,
    "com.microsoft.BiasSplitGelu": _bias_split_gelu,
    "com.microsoft.FastGelu": _fast_gelu,
    "com.microsoft.QuickGelu": _quick_gelu,
}
