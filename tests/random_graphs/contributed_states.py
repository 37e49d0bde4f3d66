"""Operators of onnxruntime's own that carry a state, with and without activations, gates and rates."""

from __future__ import annotations

from collections.abc import Mapping

from tests.random_graphs.build import Build, Live
from tests.random_graphs.maker import Maker

_DOMAIN = "com.microsoft"


def _conv(b: Build, op: str) -> None:
    x = b.bounded(b.sequence())
    channels, kernel = b.choice((6, 4, 8)), b.choice((3, 2, 4))
    a = b.linear(x, 2, channels, hidden=True)
    turned = b.node("Transpose", [a], (x.dims[0], channels, x.dims[1]), peak=a.peak, hidden=True, perm=[0, 2, 1])
    inputs: list[Live | str] = [turned, b.weight(channels, 1, kernel), *([b.weight(channels)] if b.chance(60) else [])]
    attrs = {"activation": "silu"} if b.chance(50) else {}
    peak = (kernel + 1) * a.peak + 2.0
    moved = b.out("CausalConvWithState", turned.dims, peak=peak)
    state = b.out("CausalConvWithState", (x.dims[0], channels, kernel - 1), peak=a.peak)
    b.nodes_of("CausalConvWithState", inputs, [moved, state], domain=_DOMAIN, **attrs)
    b.node("Transpose", [moved], (x.dims[0], x.dims[1], channels), peak=peak, perm=[0, 2, 1])


MAKERS: Mapping[str, Maker] = {f"{_DOMAIN}.CausalConvWithState": Maker(_conv, weight=0, first=13)}
