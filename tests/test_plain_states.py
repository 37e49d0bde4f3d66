"""Operators that carry a state against the same networks in plain operators, the steps one after the other.

In front stands a layer whose gradients go through the operator, or through quite different nodes. Both forms are cut
alike: by what layers read, and by these gradients.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from onnxprune import PruneResult, prune
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Session
from tests.compare import assert_same
from tests.prepared import prepare, sliced
from tests.topologies.text import Topology

_HEADS, _GROUPS, _KEY, _VALUE, _LENGTH = 8, 4, 2, 3, 4
_RULES = ("linear", "gated", "delta", "gated_delta")
_PORTS = f"(float[N,{_LENGTH},6] x) => (float[N,{_LENGTH},5] y)"


def _projected(rule: str, decays: int) -> list[str]:
    """The lines of q, k and v; of the decay d where the rule has one, and of the rate r."""
    lines = [
        "front = MatMul(x, w0[6,6])",
        "h = Relu(front)",
        f"q = MatMul(h, wq[6,{_HEADS * _KEY}])",
        f"k = MatMul(h, wk[6,{_GROUPS * _KEY}])",
        f"v = MatMul(h, wv[6,{_GROUPS * _VALUE}])",
    ]
    if rule.startswith("gated"):
        lines += [f"g = MatMul(h, wg[6,{_GROUPS * decays}])", "open = Sigmoid(g)", "d = Neg(open)"]
    if rule.endswith("delta"):
        lines += [f"b = MatMul(h, wb[6,{_GROUPS}])", "r = Sigmoid(b)"]
    return lines


def _topology(lines: list[str]) -> Topology:
    last = f"y = MatMul(o, wo[{_HEADS * _VALUE},5])"
    return Topology(_PORTS + "{\n" + "\n".join([*lines, last]) + "\n}", (), opset=17, domains=("com.microsoft",))


def attention(rule: str, decays: int) -> Topology:
    """One LinearAttention; decays: of each head, 1 or _KEY."""
    d, r = "d" if rule.startswith("gated") else '""', "r" if rule.endswith("delta") else '""'
    attrs = f'q_num_heads={_HEADS}, kv_num_heads={_GROUPS}, update_rule="{rule}", scale=0.7'
    node = f'o, s = com.microsoft.LinearAttention <{attrs}> (q, k, v, "", {d}, {r})'
    return _topology([*_projected(rule, decays), node])


def unrolled(rule: str, decays: int) -> Topology:
    """The same, position by position, from the equations of the recurrence."""
    lines = [
        *_projected(rule, decays),
        f"qs = Reshape(q, for_q{{0,0,{_GROUPS},{_HEADS // _GROUPS},{_KEY}}})",
        f"ks = Reshape(k, for_k{{0,0,{_GROUPS},{_KEY},1}})",
        f"vs = Reshape(v, for_v{{0,0,{_GROUPS},1,{_VALUE}}})",
    ]
    if rule.startswith("gated"):
        lines += ["kept = Exp(d)", f"ds = Reshape(kept, for_d{{0,0,{_GROUPS},{decays},1}})"]
    if rule.endswith("delta"):
        lines += [f"rs = Reshape(r, for_r{{0,0,{_GROUPS},1,1}})"]

    def add(name: str, call: str) -> str:
        lines.append(f"{name} = {call}")
        return name

    def at(name: str, t: int) -> str:
        return add(f"{name}{t}", f"Gather <axis=1> ({name}, step{t}{{:{t}}})")

    state = ""
    for t in range(_LENGTH):
        if state and rule.startswith("gated"):
            state = add(f"decayed{t}", f"Mul({at('ds', t)}, {state})")
        key, written = at("ks", t), at("vs", t)
        if rule.endswith("delta"):
            if state:
                seen = add(f"seen{t}", f"MatMul({add(f'row{t}', f'Transpose <perm=[0,1,3,2]> ({key})')}, {state})")
                written = add(f"error{t}", f"Sub({written}, {seen})")
            written = add(f"written{t}", f"Mul({at('rs', t)}, {written})")
        new = add(f"outer{t}", f"MatMul({key}, {written})")
        state = add(f"state{t}", f"Add({state}, {new})") if state else new
        read = add(f"read{t}", f"MatMul({at('qs', t)}, {state})")
        add(f"row_of_y{t}", f"Unsqueeze({read}, first{{1}})")
    rows = ", ".join(f"row_of_y{t}" for t in range(_LENGTH))
    lines += [f"all = Concat <axis=1> ({rows})", f"flat = Reshape(all, packed{{0,0,{_HEADS * _VALUE}}})"]
    return _topology([*lines, "o = Mul(flat, scale{:0.7})"])


def convolution(*, fused: bool) -> Topology:
    """A causal convolution with its activation as one operator, or as Pad, Conv, Sigmoid and Mul."""
    node = 'm, s = com.microsoft.CausalConvWithState <activation="silu", dilation=2> (a, w2[8,1,3], b2[8])'
    plain = """padded = Pad (a, pads{0,0,4,0,0,0})
        z = Conv <group=8, dilations=[2]> (padded, w2[8,1,3], b2[8])
        gate = Sigmoid(z)
        m = Mul(z, gate)"""
    text = f"""(float[N,3,L] x) => (float[N,5,L] y) {{
        front = Conv (x, w0[6,3,1])
        h = Relu(front)
        a = Conv (h, w1[8,6,1], b1[8])
        {node if fused else plain}
        y = Conv (m, w3[5,8,1])
    }}"""
    return Topology(text, (8,), opset=17, domains=("com.microsoft",))


PAIRS = {
    "convolution": (convolution(fused=True), convolution(fused=False)),
    **{rule: (attention(rule, 1), unrolled(rule, 1)) for rule in _RULES},
    **{f"{rule} by key": (attention(rule, _KEY), unrolled(rule, _KEY)) for rule in _RULES if "gated" in rule},
}


def weights(model: object) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in model.graph.initializer if t.name.startswith("w")}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_function_with_the_same_units(name: str):
    """Fails where the recurrence is another, or the fused operator couples other channels than its equations do."""
    row, plain = PAIRS[name]
    feeds = row.feeds(3)
    pair = [prepare(r.model(), feeds) for r in (row, plain)]
    assert_same(*(Session(p.original).run(feeds)["y"] for p in pair), rtol=1e-5, atol=0.0)
    sizes = [[g.size for g in p.channels.groups] for p in pair]
    assert sizes[0] == sizes[1]
    assert sorted(sizes[0]) == sorted((6, 8 if name == "convolution" else _GROUPS))
    for group, unit in ((g.index, unit) for g in pair[0].channels.groups for unit in range(g.size)):
        cut = []
        for p in pair:
            kept = np.arange(p.channels.groups[group].size) != unit
            cut.append(sliced(p, p.channels.keep_classes({group: kept})))
        assert weights(cut[0]) == weights(cut[1])
        assert_same(*(Session(c).run(feeds)["y"] for c in cut), rtol=1e-5, atol=0.0)


@cache
def pruned(name: str, form: int, method: str) -> PruneResult:
    row = PAIRS[name][form]
    options = {"method": method, "refit": "least-squares", "ratio": 0.3, "budget": "params", "round_to": 1}
    return prune(row.model(), None, row.feeds(48), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["obs", "taylor"])
@pytest.mark.parametrize("name", ["convolution", "gated_delta by key"])
def test_the_same_cut(name: str, method: str):
    """Fails where statistics or gradients of the fused operator are not those of its equations."""
    fused, plain = (pruned(name, form, method) for form in range(2))
    assert [g.kept for g in fused.plan.groups] == [g.kept for g in plain.plan.groups]
    feeds = PAIRS[name][0].feeds(3, seed=5)
    outputs: list[Array] = []
    for result in (fused, plain):
        assert result.model is not None
        outputs.append(Session(result.model).run(feeds)["y"])
        assert not [n for n in result.report.notes if "have no gradient" in n]
    assert_same(*outputs, rtol=1e-3, atol=0.0)
