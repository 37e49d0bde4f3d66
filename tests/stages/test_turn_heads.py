"""Runs that turn positions inside heads before they select."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxprune import PruneConfig, PruneResult, prune
from onnxprune.calibration import input_moments
from onnxprune.calibration.input_moments import grams
from onnxprune.calibration.logits import logit_regressions
from onnxprune.errors import UsageError
from onnxprune.numerics.rotation import balanced
from onnxprune.stages import turn_heads
from onnxprune.stages.couple import couple
from onnxprune.stages.load import load
from tests.topologies.text import Topology

HEADS, SIZE, WIDTH = 3, 8, 24
_DIRECTIONS = 2
_KEYS = "kt = Transpose <perm=[0,2,3,1]> (kh)"
# One head of keys and values serves all queries.
_REPEATED = f"""kp = Transpose <perm=[0,2,3,1]> (kh)
    kt = Expand(kp, many{{1,{HEADS},1,1}})"""


def _text(keys: str = _KEYS, queries: str = "qs = Mul(qt, f)", kv: int = HEADS) -> str:
    """Attention by parts, with biases and a scale; `kv` heads of keys, as many of values as of queries."""
    return f"""(float[N,6,10] x) => (float[N,6,5] y) {{
    qm = MatMul(x, wq[10,{WIDTH}])
    q = Add(qm, bq[{WIDTH}])
    km = MatMul(x, wk[10,{kv * SIZE}])
    k = Add(bk[{kv * SIZE}], km)
    v = MatMul(x, wv[10,{WIDTH}])
    qh = Reshape(q, to{{0,-1,{HEADS},{SIZE}}})
    kh = Reshape(k, kto{{0,-1,{kv},{SIZE}}})
    vh = Reshape(v, to)
    qt = Transpose <perm=[0,2,1,3]> (qh)
    vt = Transpose <perm=[0,2,1,3]> (vh)
    {keys}
    f = Constant <value = float {{0.7}}> ()
    {queries}
    s = MatMul(qs, kt)
    p = Softmax <axis=-1> (s)
    m = MatMul(p, vt)
    mt = Transpose <perm=[0,2,1,3]> (m)
    o = Reshape(mt, back{{0,-1,{WIDTH}}})
    y = MatMul(o, wo[{WIDTH},5])
}}"""


# Queries, keys and values from one weight.
_FUSED = f"""(float[N,6,10] x) => (float[N,6,5] y) {{
    a = MatMul(x, wq[10,{3 * WIDTH}])
    b = Add(a, bq[{3 * WIDTH}])
    h = Reshape(b, to{{0,-1,3,{HEADS},{SIZE}}})
    t = Transpose <perm=[2,0,3,1,4]> (h)
    q = Gather <axis=0> (t, i0{{:0}})
    k = Gather <axis=0> (t, i1{{:1}})
    v = Gather <axis=0> (t, i2{{:2}})
    kt = Transpose <perm=[0,1,3,2]> (k)
    s = MatMul(q, kt)
    p = Softmax <axis=-1> (s)
    m = MatMul(p, v)
    mt = Transpose <perm=[0,2,1,3]> (m)
    o = Reshape(mt, back{{0,-1,{WIDTH}}})
    y = MatMul(o, wo[{WIDTH},5])
}}"""
# The same rows taken by Slice and Squeeze, as Paddle does.
_SLICED = re.sub(
    r"(\w) = Gather <axis=0> \(t, i(\d)\{:\d\}\)",
    lambda m: (
        f"{m[1]}s = Slice(t, st{m[2]}{{{m[2]}}}, en{m[2]}{{{int(m[2]) + 1}}}, at{{0}})\n"
        f"    {m[1]} = Squeeze({m[1]}s, at)"
    ),
    _FUSED,
)


def _operator(attention: str, kv: int) -> str:
    """An operator for attention that reads packed heads, `kv` of keys and values."""
    return f"""(float[N,6,10] x) => (float[N,6,5] y) {{
    q = MatMul(x, wq[10,{WIDTH}])
    km = MatMul(x, wk[10,{kv * SIZE}])
    k = Add(km, bk[{kv * SIZE}])
    v = MatMul(x, wv[10,{kv * SIZE}])
    o = {attention} (q, k, v)
    y = MatMul(o, wo[{WIDTH},5])
}}"""


def _in_few(model: onnx.ModelProto) -> None:
    """In every head queries lie in few directions, none of them a position, and hardly in any other."""
    for t in model.graph.initializer:
        if t.name in ("wq", "bq"):
            array = np.array(onnx.numpy_helper.to_array(t), np.float64)
            for h in range(HEADS):
                spanned = np.random.default_rng(h).standard_normal((SIZE, _DIRECTIONS))
                project = 0.95 * spanned @ np.linalg.pinv(spanned) + 0.05 * np.eye(SIZE)
                own = slice(h * SIZE, (h + 1) * SIZE)
                array[..., own] = 3.0 * array[..., own] @ project.T
            t.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), t.name))


PLAIN, SHARED, FUSED, SLICED = (
    Topology(text, (), edit=_in_few) for text in (_text(), _text(_REPEATED, kv=1), _FUSED, _SLICED)
)
OPERATOR = Topology(
    _operator(f"Attention <q_num_heads={HEADS}, kv_num_heads=1, is_causal=1>", 1), (), opset=23, ir_version=10
)
CONTRIBUTED = Topology(
    _operator(f"com.microsoft.MultiHeadAttention <num_heads={HEADS}>", HEADS), (), domains=("com.microsoft",)
)
# Of queries and keys six of eight positions go, of values none.
QUICK = PruneConfig(ratio=0.2, round_to=1, fast=True, attention="rank", exclude=("wv",), max_ratio=0.75)


def data(count: int = 96, seed: int = 0) -> dict[str, NDArray[Any]]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 6, 10)).astype(np.float32)}


@pytest.fixture(scope="module")
def turned() -> PruneResult:
    return prune(PLAIN.model(), None, data(), config=QUICK)


def test_heads_of_few_directions_keep_these(turned: PruneResult):
    """Fails where turning does not concentrate queries and keys, or positions that say little are kept."""
    assert turned.plan.rotated == ("wq",)
    assert 0 < turned.report.checks["normalised_against_original"] < 1e-5
    assert any("--attention rank" in n and "wq" in n for n in turned.report.notes)
    plain = prune(PLAIN.model(), None, data(), config=QUICK, attention="head-dim")
    assert plain.plan.rotated == ()
    assert [g.kept for g in plain.plan.groups] != [g.kept for g in turned.plan.groups]
    assert turned.report.output_error is not None and plain.report.output_error is not None
    assert turned.report.output_error < 0.3 * plain.report.output_error
    # The first directions stay, as they say most.
    (kept,) = (g.kept for g in turned.plan.groups if g.name == "wq")
    assert kept == tuple(range(len(kept))) and len(kept) < SIZE


def test_a_replay_turns_the_same(turned: PruneResult, tmp_path: Path):
    """Fails where a plan says nothing of it, or its numbers are taken for positions of the model as it is."""
    file = tmp_path / "plan.json"
    file.write_text(turned.plan.to_json(), encoding="utf-8")
    again = prune(PLAIN.model(), None, data(), from_plan=file)
    assert again.model is not None and turned.model is not None
    assert again.model.SerializeToString() == turned.model.SerializeToString()
    with pytest.raises(UsageError, match="that only that data tells"):
        prune(PLAIN.model(), None, data(seed=5), from_plan=file, force=True)


@pytest.mark.parametrize(
    ("topology", "groups"),
    [(SHARED, 2), (FUSED, 1), (SLICED, 1), (OPERATOR, 2), (CONTRIBUTED, 2)],
    ids=["shared", "fused", "sliced", "operator", "contributed"],
)
def test_turned_heads_compute_what_they_did(topology: Topology, groups: int):
    """Fails where heads that share keys are turned apart, or columns of one weight are taken for those of another."""
    result = prune(topology.model(), None, data(), config=QUICK, exclude=(), dry_run=True)
    assert len(result.plan.rotated) == groups
    assert not any("no head was turned" in n for n in result.report.notes)


@pytest.mark.parametrize("topology", [PLAIN, SHARED, FUSED, OPERATOR], ids=["plain", "shared", "fused", "operator"])
def test_logits_are_judged_by_what_was_collected_before_the_turn(topology: Topology):
    """Fails where another pass over the turned model would find other moments of its queries and keys."""
    settings = QUICK.with_options(exclude=())
    loaded = load(topology.model(), data(), settings)
    coupled = couple(loaded, settings)
    turned = turn_heads.turn_heads(loaded, coupled, turn_heads.heads_to_turn(loaded, coupled, settings), settings)
    again, seen = couple(turned.loaded, settings), turned.loaded.normalised
    assert turned.moments
    asked = (again.taken.proto, again.taken.channels, loaded.fit, seen.shapes, settings.seed)
    by_pass, by_turn = logit_regressions(*asked), logit_regressions(*asked, known=turned.moments)
    assert by_pass.keys() == by_turn.keys()
    for group, own in by_pass.items():
        for a, b in zip(own, by_turn[group], strict=True):
            spread = np.abs(a.p).max()
            np.testing.assert_allclose(a.p, b.p, rtol=0, atol=1e-5 * spread)
            np.testing.assert_allclose(a.w @ a.w.T, b.w @ b.w.T, rtol=0, atol=1e-5 * np.abs(a.w @ a.w.T).max())


def test_heads_that_stay_are_told_as_sentences():
    settings = QUICK.with_options(exclude=())
    loaded = load(PLAIN.model(), data(), settings)
    coupled = couple(loaded, settings)
    found = turn_heads.heads_to_turn(loaded, coupled, settings)
    stays = tuple(f"those of {k}: a, b" for k in range(5))
    notes = turn_heads.turn_heads(loaded, coupled, replace(found, stays=stays), settings).loaded.notes
    told = "those of 0: a, b; those of 1: a, b; those of 2: a, b and 2 more"
    assert f"--attention rank leaves some positions as they are: {told}" in notes


def test_no_pass_is_spent_on_what_is_known(monkeypatch: pytest.MonkeyPatch):
    passed: list[int] = []

    def counted(proto: Any, layers: Any, *rest: Any) -> Any:
        passed.append(len(layers))
        return grams(proto, layers, *rest)

    monkeypatch.setattr(input_moments, "grams", counted)
    prune(PLAIN.model(), None, data(), config=QUICK.with_options(exclude=()), dry_run=True)
    assert passed == [3, 0]  # queries, keys and what the layer behind reads; then nothing is left to ask


def test_a_wrong_turn_is_found_before_anything_is_cut(monkeypatch: pytest.MonkeyPatch):
    """Fails where the turned model is not held against the original: with other matrices it differs."""

    def wrong(left: NDArray[Any], right: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        a, b = balanced(left, right)
        return 1.01 * a, b

    monkeypatch.setattr(turn_heads, "balanced", wrong)
    result = prune(PLAIN.model(), None, data(), config=QUICK, dry_run=True)
    assert result.plan.rotated == ()
    assert any(n.startswith("no head was turned (--attention rank): ") for n in result.report.notes)


_SQUARED = "qs = Mul(qt, qt)"
_NORMALIZED = "qs = LayerNormalization(qt, scale[8])"


@pytest.mark.parametrize(
    ("text", "options", "given", "why"),
    [
        (_text(queries=_SQUARED), {}, data(), "Mul 'qs' lies between|Mul '.*' lies between"),
        (_text(queries=_NORMALIZED), {}, data(), "lies between"),
        (_text(), {"refit": "none", "fast": False}, data(), "needs a method"),
        (_text(), {}, None, "needs calibration data"),
    ],
    ids=["squared", "normalized", "unfitted", "random"],
)
def test_what_cannot_be_turned_is_refused_in_one_line(text: str, options: dict[str, Any], given: Any, why: str):
    """Fails where something is turned that does not commute with it, or nobody hears that nothing was."""
    with pytest.raises(UsageError, match=why):
        prune(Topology(text, ()).model(), None, given, config=QUICK.with_options(**options), dry_run=True)


def test_turned_signals_have_equal_diagonal_moments():
    """Fails where the product changes, or terms of the product stay correlated."""
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)) for _ in range(2))
    a, b = balanced(q.T @ q / 500, k.T @ k / 500)
    np.testing.assert_allclose((q @ a.T) @ (k @ b.T).T, q @ k.T, rtol=0, atol=1e-8)
    left, right = a @ (q.T @ q / 500) @ a.T, b @ (k.T @ k / 500) @ b.T
    np.testing.assert_allclose(left, np.diag(np.diag(left)), atol=1e-8)
    np.testing.assert_allclose(left, right, atol=1e-8)
    assert (np.diff(np.diag(left)) <= 0).all()
