"""Attention as onnxruntime's own operators: grouped queries, turned or not, and heads with biases."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import TensorProto

from tests.random_graphs.attention import bias_of_scores
from tests.random_graphs.build import Build, Live
from tests.random_graphs.maker import Maker

_DOMAIN = "com.microsoft"


def _lengths(b: Build, x: Live) -> tuple[Live, Live]:
    """Of a prompt: the length of each sample less one, and the length of all."""
    sizes = b.node("Shape", [x], (3,), "long", hidden=True)
    length = b.node("Gather", [sizes, b.ints(1)], (), "long", hidden=True)
    last = b.node("Sub", [length, b.ints(1)], (), "long", hidden=True)
    many = b.node("Gather", [sizes, b.ints([0])], (1,), "long", hidden=True)
    total, short = (b.node("Cast", [v], (), "int", hidden=True, to=TensorProto.INT32) for v in (length, last))
    return b.node("Expand", [short, many], (x.dims[0],), "int", hidden=True), total


def _grouped(b: Build, op: str) -> None:
    x = b.bounded(b.sequence())
    groups, shared, turns = b.choice((2, 1, 3)), b.choice((1, 2, 3)), b.chance(50)
    size, heads = 16 if turns else 8, groups * shared
    attrs: dict[str, object] = {"num_heads": heads, "kv_num_heads": groups}
    for name, setting, percent in (
        ("softcap", 4.0, 20),
        ("scale", 0.4, 20),
        ("local_window_size", 2, 20),
        ("causal", 0, 15),
        ("smooth_softmax", 1, 15),
    ):
        if b.chance(percent) and not (name == "causal" and "local_window_size" in attrs):
            attrs[name] = setting
    widths = [heads * size, groups * size, groups * size]
    if b.chance(50):
        projected: list[Live | str] = [b.linear(x, 2, sum(widths), hidden=True), "", ""]
    else:
        projected = [b.linear(x, 2, width, hidden=True) for width in widths]
    angles: list[Live | str] = ["", ""]
    if turns:
        attrs.update(do_rotary=1, rotary_interleaved=int(b.chance(40)))
        angles = [b.weight(24, size // 2), b.weight(24, size // 2)]
    added: list[Live | str] = ["", bias_of_scores(b, x, x, heads)] if b.chance(25) else []
    if b.chance(20):
        added = [*(added or ["", ""]), b.weight(heads)]
    inputs = [*projected, "", "", *_lengths(b, x), *angles, *added]
    dims = (*x.dims[:2], heads * size)
    b.node("GroupQueryAttention", inputs, dims, peak=2.5 * x.peak, domain=_DOMAIN, **attrs)


def _multi_head(b: Build, op: str) -> None:
    x = b.bounded(b.sequence())
    heads, size, value = b.choice((2, 1, 3)), b.choice((4, 2, 3)), b.choice((4, 3, 2))
    other = x
    if b.chance(25):
        other = b.pick(lambda t: t.rank == 3 and t.dims[0] == x.dims[0] and isinstance(t.dims[2], int)) or x
    q, k = (b.tame(b.linear(t, 2, heads * size, hidden=True), "bounded") for t in (x, other))
    v = b.linear(other, 2, heads * value, hidden=True)
    attrs: dict[str, object] = {"num_heads": heads}
    if b.chance(25):
        attrs["scale"] = 0.4
    if other is x and b.chance(25):
        attrs["unidirectional"] = 1
    bias: Live | str = b.weight(heads * (2 * size + value)) if b.chance(40) else ""
    added: list[Live | str] = ["", bias_of_scores(b, x, other, heads)] if b.chance(30) else []
    b.node(
        "MultiHeadAttention",
        [q, k, v, bias, *added],
        (*x.dims[:2], heads * value),
        peak=v.peak,
        domain=_DOMAIN,
        **attrs,
    )


# Beside other operators they would change what every other row draws.
MAKERS: Mapping[str, Maker] = {
    f"{_DOMAIN}.GroupQueryAttention": Maker(_grouped, weight=0, first=13),
    f"{_DOMAIN}.MultiHeadAttention": Maker(_multi_head, weight=0, first=13),
}
