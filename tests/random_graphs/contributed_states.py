"""Operators of onnxruntime's own that carry a state: with and without activations, decays and rates."""

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


def _linear(b: Build, op: str) -> None:
    """Keys of a length of at most 1 and rates below 1: a state that the delta rules write to does not grow."""
    x = b.bounded(b.sequence())
    states, shared = b.choice((2, 1, 3)), b.choice((1, 2, 3))
    size, value = b.choice((4, 2, 3)), b.choice((4, 3, 2))
    rule = b.choice(("gated_delta", "linear", "gated", "delta"))
    heads = states * shared

    def read(width: int) -> Live:
        return b.linear(x, 2, width, hidden=True)

    def opened(width: int) -> Live:
        projected = read(width)
        return b.node("Sigmoid", [projected], projected.dims, peak=1.0, hidden=True)

    def once(past: Live | str) -> tuple[Live, Live]:
        keys = b.tame(read(states * size), "bounded")
        short = b.node("Mul", [keys, b.floats(0.5)], keys.dims, peak=0.5, hidden=True)
        given: list[Live | str] = [b.tame(read(heads * size), "bounded"), short, values := read(states * value), past]
        if rule.startswith("gated"):
            gate = opened(states * b.choice((1, size)))
            given.append(b.node("Neg", [gate], gate.dims, peak=1.0, hidden=True))
        if rule.endswith("delta"):
            given += ["", opened(b.choice((states, 1)))][len(given) - 4 :]
        y = b.out("LinearAttention", (*x.dims[:2], heads * value), peak=3 * values.peak)
        state = b.out("LinearAttention", (x.dims[0], states, size, value), peak=3 * values.peak)
        scale = {"scale": 0.4} if b.chance(25) else {}
        attrs = {"q_num_heads": heads, "kv_num_heads": states, "update_rule": rule, **scale}
        b.nodes_of("LinearAttention", given, [y, state], domain=_DOMAIN, **attrs)
        return y, state

    y, state = once("")
    if b.chance(25):  # what one of them leaves, another starts with
        b.live.append(y)
        y, state = once(state)
    if b.chance(25):
        b.live.append(state)
    b.live.append(y)


# Beside other operators they would change what every other row draws.
MAKERS: Mapping[str, Maker] = {
    f"{_DOMAIN}.CausalConvWithState": Maker(_conv, weight=0, first=13),
    f"{_DOMAIN}.LinearAttention": Maker(_linear, weight=0, first=13),
}
