"""The refit, against least squares on the data itself and against what the network outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from numpy.typing import NDArray
from scipy import linalg, optimize

from onnxprune import pipeline
from onnxprune.calibration import input_moments
from onnxprune.calibration.input_moments import InputMoments
from onnxprune.calibration.layers import Layer, layers_of
from onnxprune.channels import branches
from onnxprune.channels.names import called
from onnxprune.data.samples import Samples
from onnxprune.numerics.least_squares import JITTER
from onnxprune.refit import reference as reference_module
from onnxprune.refit.layerwise import in_place
from onnxprune.refit.lockstep import Fit, lockstep
from onnxprune.refit.reference import SharedPoints, reference_points
from onnxprune.refit.targets import Target, latest_layers, target_of
from onnxprune.runtime import walker
from onnxprune.runtime.session import Session
from onnxprune.runtime.taps import Tap
from onnxprune.runtime.walker import Walker
from onnxprune.surgery import cut, replace_initializers
from tests.calibrated import every_position, moments_of, prepare_text, samples_of, values
from tests.compare import assert_same
from tests.prepared import Keep, Prepared, random_keep

Array = NDArray[Any]
Lookup = Callable[[str], Prepared]

# Moments are float32 products; the systems have condition numbers up to 1 / ridge = 1e3.
RTOL = 1e-3

# Maps of at most 16 positions, so that calibration leaves no row out.
LAYERS = {
    "conv": """(float[N,3,6,6] x) => (float[N,5,2,2] y) {
        a = Conv (x, w1[8,3,3,3], b1[8])
        r = Relu(a)
        y = Conv (r, w2[5,8,3,3], b2[5])
    }""",
    "grouped": """(float[N,3,6,6] x) => (float[N,6,3,3] y) {
        a = Conv (x, w1[8,3,3,3], b1[8])
        r = Relu(a)
        y = Conv <group=2> (r, w2[6,4,2,2], b2[6])
    }""",
    "gemm": """(float[N,7] x) => (float[N,5] y) {
        a = Gemm (x, w1[7,8], b1[8])
        r = Relu(a)
        y = Gemm <transB=1, alpha=0.5, beta=2.0> (r, w2[5,8], b2[5])
    }""",
    "flatten": """(float[N,3,4,4] x) => (float[N,5] y) {
        a = Conv (x, w1[8,3,3,3], b1[8])
        r = Relu(a)
        f = Flatten(r)
        y = Gemm (f, w2[32,5], b2[5])
    }""",
    "transposed": """(float[N,3,4,4] x) => (float[N,5,4,4] y) {
        a = Conv (x, w1[8,3,3,3], b1[8])
        r = Relu(a)
        y = ConvTranspose <strides=[2,2]> (r, w2[8,5,2,2], b2[5])
    }""",
    "no_bias": """(float[N,7] x) => (float[N,5] y) {
        a = MatMul (x, w1[7,8])
        r = Relu(a)
        y = MatMul (r, w2[8,5])
    }""",
    "input_gates": """(float[N,4,7] x) => (float[4,2,N,5] y) {
        t = Transpose <perm=[1,0,2]> (x)
        a = MatMul (t, w1[7,8])
        y = LSTM <hidden_size=5, direction="bidirectional"> (a, w2[2,20,8], r2[2,20,5], b2[2,40])
    }""",
    "state_gates": """(float[N,4,7] x) => (float[4,N,5] y) {
        t = Transpose <perm=[1,0,2]> (x)
        a = GRU <hidden_size=6, direction="bidirectional", linear_before_reset=1> (t, w1[2,18,7], w2[2,18,6], b1[2,36])
        r = Transpose <perm=[0,2,1,3]> (a)
        f = Reshape (r, to{0,0,-1})
        y = MatMul (f, w3[12,5])
    }""",
}


def refitted(name: str, level: str) -> tuple[Prepared, Layer, InputMoments, Keep, Array, Array, dict[str, Array]]:
    """(model, layer, its moments, what stays, rows, original outputs, new weights) of the layer w2."""
    p = prepare_text(LAYERS[name])
    samples = samples_of(p, 300)
    layers, moments = moments_of(p, samples)
    layer = next(x for x in layers if x.weight == "w2")
    keep = random_keep(p.channels, 3, shares=(0.5,))
    found = values(p.normalised.proto, [n for n in (layer.data, layer.output) if n], samples.arrays)
    if layer.output:
        at = every_position(layer, found[layer.output])
        outputs = layer.targets(found[layer.output], at).astype(np.float64)
    else:
        at = np.arange(layer.output_shape(found[layer.data].shape)[1])
        outputs = layer.rows(found[layer.data], at).astype(np.float64) @ layer.matrix(p.channels.graph.constants)
    rows = layer.rows(found[layer.data], at).astype(np.float64)
    return (
        p,
        layer,
        moments["w2"],
        keep,
        rows,
        outputs,
        in_place(layers, moments, p.channels.graph.constants, keep, level),
    )


@pytest.mark.parametrize("name", LAYERS)
def test_least_squares_equals_lstsq_on_the_kept_columns(name: str) -> None:
    """Fails where the refit uses other columns, another target or another ridge than it says."""
    p, layer, known, keep, rows, outputs, found = refitted(name, "least-squares")
    constants = p.channels.graph.constants
    # What reads the state of a recurrent net behind it is refitted too.
    assert set(found) - {"w3"} == {n for n in (layer.weight, layer.bias) if n}
    w, new = layer.matrix(constants), layer.matrix({**constants, **found})
    for g in range(layer.groups):
        stays = layer.kept_columns(keep)[g]
        assert 1 < stays.sum() < stays.size
        x = rows[g] / np.sqrt(rows.shape[1])
        root = np.sqrt((JITTER + known.ridge) * (x[:, stays] ** 2).sum(axis=0))
        a = np.vstack([x[:, stays], np.diag(root)])
        b = np.vstack([outputs[g] / np.sqrt(rows.shape[1]), root[:, None] * w[g][stays]])
        expected = np.zeros_like(w[g])
        expected[stays] = linalg.lstsq(a, b)[0]
        assert_same(rows[g] @ new[g], rows[g] @ expected, rtol=RTOL, atol=0.0)
        assert not new[g][~stays].any()


@pytest.mark.parametrize("name", LAYERS)
def test_scale_is_the_best_scalar_per_channel(name: str) -> None:
    """Fails where a channel's scalar is not the one that a numeric minimiser finds, or the bias is scaled too."""
    p, layer, _, keep, rows, outputs, found = refitted(name, "scale")
    constants = p.channels.graph.constants
    w, new = layer.matrix(constants), layer.matrix({**constants, **found})
    for g in range(layer.groups):
        classes = layer.columns(g)
        kept = [c for c in np.unique(classes[classes >= 0]) if keep[c]]
        parts = np.stack([(rows[g][:, classes == c] @ w[g][classes == c]).ravel() for c in kept], axis=1)
        fixed = (rows[g][:, classes < 0] @ w[g][classes < 0]).ravel()
        root = np.sqrt(JITTER * (parts**2).sum(axis=0))
        a, b = np.vstack([parts, np.diag(root)]), np.concatenate([outputs[g].ravel() - fixed, root])
        best = optimize.least_squares(lambda s, a=a, b=b: a @ s - b, np.ones(len(kept)), xtol=1e-12, ftol=1e-12).x
        expected = w[g].copy()
        expected[(classes >= 0) & ~keep[np.maximum(classes, 0)]] = 0.0
        for c, s in zip(kept, best, strict=True):
            expected[classes == c] *= s
        assert_same(new[g], expected, rtol=RTOL, atol=0.0)


def test_wide_layers_are_rescaled_at_every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a layer whose Gram was never taken is refitted from something else."""
    _, _, _, _, _, _, expected = refitted("flatten", "scale")
    monkeypatch.setattr(input_moments, "WIDE", 20)
    _, _, known, _, _, _, found = refitted("flatten", "least-squares")
    assert known.classes is not None
    assert_same(found["w2"], expected["w2"], rtol=RTOL, atol=0.0)


def test_layers_that_lose_nothing_are_left_out() -> None:
    """Fails where weights of layers upstream, or of a model that keeps everything, are touched."""
    p = prepare_text(LAYERS["conv"])
    layers, moments = moments_of(p, samples_of(p, 40))
    constants = p.channels.graph.constants
    everything = np.ones(p.channels.classes.pinned.size, bool)
    assert in_place(layers, moments, constants, everything, "least-squares") == {}
    keep = random_keep(p.channels, 0)
    assert set(in_place(layers, moments, constants, keep, "least-squares")) == {"w2", "b2"}
    assert in_place(layers, {}, constants, keep, "least-squares") == {}


@pytest.mark.parametrize("level", ["scale", "least-squares"])
def test_a_refit_is_better_than_none_and_least_squares_than_scale(level: str) -> None:
    """Fails where a refit raises the error that it minimises."""
    _, layer, _, keep, rows, outputs, found = refitted("conv", level)
    p, *_ = refitted("conv", level)
    constants = p.channels.graph.constants
    w = layer.matrix(constants)
    w[~layer.kept_columns(keep)] = 0.0
    before = ((rows @ w - outputs) ** 2).sum()
    after = ((rows @ layer.matrix({**constants, **found}) - outputs) ** 2).sum()
    assert after < (1.0 if level == "scale" else 0.5) * before


RESIDUAL = """(float[N,3,8,8] x) => (float[N,5] y) {
    a = Conv <pads=[1,1,1,1]> (x, w1[12,3,3,3], b1[12])
    r = Relu(a)
    c = Conv <pads=[1,1,1,1]> (r, w2[16,12,3,3], b2[16])
    d = Relu(c)
    e = Conv <pads=[1,1,1,1]> (d, w3[12,16,3,3], b3[12])
    s = Add(e, r)
    t = Relu(s)
    f = Conv <pads=[1,1,1,1]> (t, w4[16,12,3,3], b4[16])
    g = Relu(f)
    h = Conv <pads=[1,1,1,1]> (g, w5[12,16,3,3], b5[12])
    i = Add(t, h)
    j = Relu(i)
    p = GlobalAveragePool(j)
    q = Flatten(p)
    y = Gemm (q, w6[12,5], b6[5])
}"""
NORMALISED = """(float[N,3,8,8] x) => (float[N,5] y) {
    a = Conv <pads=[1,1,1,1]> (x, w1[12,3,3,3], b1[12])
    r = Relu(a)
    c = Conv <pads=[1,1,1,1]> (r, w2[16,12,3,3], b2[16])
    d = Relu(c)
    e = Conv <pads=[1,1,1,1]> (d, w3[12,16,3,3])
    n = BatchNormalization (e, s3[12], o3[12], m3[12], var3[12])
    s = Add(n, r)
    t = Relu(s)
    f = Conv <pads=[1,1,1,1]> (t, w4[16,12,3,3], b4[16])
    g = Relu(f)
    h = Conv <pads=[1,1,1,1]> (g, w5[12,16,3,3])
    o = BatchNormalization (h, s5[12], o5[12], m5[12], var5[12])
    i = Add(t, o)
    j = Relu(i)
    p = GlobalAveragePool(j)
    q = Flatten(p)
    y = Gemm (q, w6[12,5], b6[5])
}"""
DEPTHWISE = """(float[N,3,8,8] x) => (float[N,5] y) {
    a = Conv <pads=[1,1,1,1]> (x, w1[16,3,3,3], b1[16])
    r = Relu(a)
    c = Conv <group=16, pads=[1,1,1,1]> (r, w2[16,1,3,3], b2[16])
    d = Relu(c)
    e = Conv (d, w3[16,16,1,1], b3[16])
    s = Add(e, r)
    f = Conv <group=4, pads=[1,1,1,1]> (s, w4[16,4,3,3], b4[16])
    g = Relu(f)
    p = GlobalAveragePool(g)
    q = Flatten(p)
    y = Gemm (q, w6[16,5], b6[5])
}"""
# Both products lose channels; the hidden units are outputs and stay, so that each gate's target is exact.
RECURRENT = """(float[N,6,7] x) => (float[6,2,N,10] y) {
    t = Transpose <perm=[1,0,2]> (x)
    a = MatMul (t, w1[7,16])
    c = Add (a, b1[16])
    r = Relu (c)
    d = MatMul (r, w2[16,16])
    e = Add (d, b2[16])
    s = Relu (e)
    y = LSTM <hidden_size=10, direction="bidirectional"> (s, w3[2,40,16], r3[2,40,10], b3[2,80])
}"""
NETWORKS = {"residual": RESIDUAL, "batch_norm": NORMALISED, "depthwise": DEPTHWISE}


def step_by_step(
    p: Prepared, samples: Samples, keep: Keep, memory: int = 1 << 40, shared: SharedPoints | None = None
) -> tuple[onnx.ModelProto, onnx.ModelProto, list[Fit]]:
    """(after least squares, after lockstep, what it did)."""
    layers, moments = moments_of(p, samples)
    weights = in_place(layers, moments, p.channels.graph.constants, keep, "least-squares")
    plain = cut(replace_initializers(p.normalised.proto, weights), p.channels, keep)
    slim = onnx.ModelProto()
    slim.CopyFrom(plain)
    fits = lockstep(
        p.normalised.proto,
        slim,
        p.channels,
        layers,
        samples,
        keep,
        types=p.normalised.types,
        seed=0,
        memory=memory,
        shared=shared,
    )
    return plain, slim, fits


def output_error(model: onnx.ModelProto, p: Prepared, feeds: Mapping[str, Array]) -> float:
    """||y - y0||² / ||y0 - mean||² over the outputs."""
    y0 = Session(p.normalised.proto).run(feeds)["y"].astype(np.float64)
    y = Session(model).run(feeds)["y"].astype(np.float64)
    return float(((y - y0) ** 2).sum() / ((y0 - y0.mean(axis=0)) ** 2).sum())


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", [*NETWORKS, "recurrent"])
def test_lockstep_lowers_the_output_error(name: str, seed: int) -> None:
    """Fails where later layers do not repair what earlier ones lost: on the data of the fit, and on other data.

    Each layer is judged on held-out batches, the whole network on none: so a gain on other data is only certain where
    every position is one more row of the same regression, not for the few columns of a depthwise layer.
    """
    p = prepare_text(NETWORKS.get(name, RECURRENT))
    keep = random_keep(p.channels, seed, shares=(0.5,))
    plain, slim, fits = step_by_step(p, samples_of(p, 320), keep)
    assert any(np.isfinite(f.ridge) for f in fits)
    for f in fits:
        assert f.after <= f.before
    fresh = Samples(samples_of(p, 1).specs, samples_of(p, 400).slice(320, 400))
    fitted = samples_of(p, 320).arrays
    assert output_error(slim, p, fitted) < output_error(plain, p, fitted)
    if name != "depthwise":
        assert output_error(slim, p, fresh.arrays) < output_error(plain, p, fresh.arrays)


def test_lockstep_needs_no_memory() -> None:
    """Fails where the fit depends on how much of the walk is kept.

    1e-3: sessions that are cut at other places may fuse other pairs of operators.
    """
    p = prepare_text(RESIDUAL)
    keep = random_keep(p.channels, 0, shares=(0.5,))
    samples = samples_of(p, 260)
    _, much, _ = step_by_step(p, samples, keep)
    _, none, _ = step_by_step(p, samples, keep, memory=0)
    for a, b in zip(much.graph.initializer, none.graph.initializer, strict=True):
        assert_same(onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("most", "walks"), [(1 << 30, 1), (1 << 10, 6)])
def test_cuts_that_share_the_original_are_fitted_as_alone(
    most: int, walks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where a cut is fitted to what another one left of other layers or channels, or where the original walks
    again although there is room for what it gave."""
    p = prepare_text(RESIDUAL)
    samples = samples_of(p, 70)
    keeps = [random_keep(p.channels, seed, shares=(0.5,)) for seed in range(4)]
    last = max(range(len(p.channels.groups)), key=lambda g: min(first_reader(p, g), default=-1))
    half = np.arange(p.channels.groups[last].size) % 2 == 0
    keeps[1:1] = [p.channels.keep_classes({last: half}), p.channels.keep_classes({last: ~half})]
    alone = [step_by_step(p, samples, keep) for keep in keeps]
    gathered: list[int] = []
    real = reference_module.reference_points
    monkeypatch.setattr(
        reference_module, "reference_points", lambda *a, **k: (gathered.append(len(a[0])), real(*a, **k))[1]
    )
    shared = SharedPoints(most)
    together = [step_by_step(p, samples, keep, shared=shared) for keep in keeps]
    assert len(gathered) == walks
    for (_, a, fits), (_, b, same) in zip(alone, together, strict=True):
        assert a.SerializeToString() == b.SerializeToString()
        assert fits == same


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_that_read_nothing_changed_keep_their_bytes(name: str) -> None:
    """Fails where lockstep touches layers before the first cut; the cut model's own types and shapes stay as well."""
    p = prepare_text(NETWORKS[name])
    last = max(range(len(p.channels.groups)), key=lambda g: min(first_reader(p, g), default=-1))
    mask = np.ones(p.channels.groups[last].size, bool)
    mask[::2] = False
    keep = p.channels.keep_classes({last: mask})
    plain, slim, _ = step_by_step(p, samples_of(p, 260), keep)
    before = {t.name: t.SerializeToString() for t in plain.graph.initializer}
    after = {t.name: t.SerializeToString() for t in slim.graph.initializer}
    start = min(first_reader(p, last))
    early = [n for layer in layers_of(p.channels) if layer.node.index < start for n in (layer.weight, layer.bias) if n]
    assert early
    assert all(before[n] == after[n] for n in early)
    assert before != after
    assert list(plain.graph.node) == list(slim.graph.node)


def first_reader(p: Prepared, group: int) -> list[int]:
    """Indices of the layers that read a group."""
    return [
        x.node.index for x in layers_of(p.channels) if (p.channels.group_of[x.inputs[x.inputs >= 0]] == group).any()
    ]


def test_one_layer_is_fitted_to_the_original_target() -> None:
    """Fails where lockstep solves another problem than ridge towards the least-squares weights: lstsq on the rows."""
    p = prepare_text(LAYERS["gemm"])
    samples = samples_of(p, 400)
    keep = random_keep(p.channels, 3, shares=(0.5,))
    plain, slim, fits = step_by_step(p, samples, keep)
    (fit,) = fits
    y = values(p.normalised.proto, ["y"], samples.arrays)["y"].astype(np.float64)
    x = values(plain, ["r"], samples.arrays)["r"].astype(np.float64)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    weights = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in plain.graph.initializer}
    prior = np.concatenate([0.5 * weights["w2"].T, 2.0 * weights["b2"].reshape(1, -1)])
    held = np.arange(400) // 50 % 4 == 3

    def solve(rows: NDArray[np.bool_], strength: float) -> Array:
        root = np.sqrt((JITTER + strength) * (x[rows] ** 2).sum(axis=0))
        found: Array = linalg.lstsq(np.vstack([x[rows], np.diag(root)]), np.vstack([y[rows], root[:, None] * prior]))[0]
        return found

    def held_error(w: Array) -> float:
        return float(((y[held] - x[held] @ w) ** 2).sum())

    assert_same(np.float64(fit.before), np.float64(held_error(prior)), rtol=RTOL, atol=0.0)
    expected = prior
    if np.isfinite(fit.ridge):
        assert_same(np.float64(fit.after), np.float64(held_error(solve(~held, fit.ridge))), rtol=RTOL, atol=0.0)
        expected = solve(np.ones(400, bool), fit.ridge)
    found = values(slim, ["y"], samples.arrays)["y"].astype(np.float64)
    assert_same(found, x @ expected, rtol=RTOL, atol=0.0)


def targets_in(text: str) -> dict[str, tuple[str, str]]:
    """layer → (source, other) of its target."""
    p = prepare_text(text)
    layers = layers_of(p.channels)
    latest = latest_layers(p.channels.graph, layers)
    found = {x.weight: target_of(x, p.channels.graph, latest) for x in layers}
    return {k: (t.source, t.other) for k, t in found.items()}


def test_residual_targets_are_read_behind_the_add() -> None:
    """Fails where the last layer of a branch is not fitted to the sum, or another layer is."""
    found = targets_in(RESIDUAL)
    assert found["w3"] == ("s", "r")
    assert found["w5"] == ("i", "t")
    assert {k: v for k, v in found.items() if k not in ("w3", "w5")} == {
        "w1": ("a", ""),
        "w2": ("c", ""),
        "w4": ("f", ""),
        "w6": ("y", ""),
    }
    assert targets_in(NORMALISED)["w3"] == ("s", "r")


HEAD = "(float[N,3,8,8] x) => (float[N,4,8,8] y"


@pytest.mark.parametrize(
    "body",
    [
        # A second reader; the output itself an output; a constant; broadcasting; the same tensor twice.
        ", float[N,4,8,8] z) { a = Conv(x, w1[4,3,1,1])\n b = Conv(x, w2[4,3,1,1])\n y = Add(b, a)\n z = Relu(b) }",
        ", float[N,4,8,8] b) { a = Conv(x, w1[4,3,1,1])\n b = Conv(x, w2[4,3,1,1])\n y = Add(b, a) }",
        ") { b = Conv(x, w2[4,3,1,1])\n y = Add(b, k[1,4,8,8]) }",
        ") { p = GlobalAveragePool(x)\n a = Conv(p, w1[4,3,1,1])\n b = Conv(x, w2[4,3,1,1])\n y = Add(b, a) }",
        ") { b = Conv(x, w2[4,3,1,1])\n y = Add(b, b) }",
        # A product instead of a sum; statistics that are computed.
        ") { a = Conv(x, w1[4,3,1,1])\n b = Conv(x, w2[4,3,1,1])\n y = Mul(b, a) }",
        """) { a = Conv(x, w1[4,3,1,1])
            v = Exp(var[4])
            u = ReduceMean <keepdims=0> (a, ax{0,2,3})
            b = Conv(x, w2[4,3,1,1])
            n = BatchNormalization(b, s[4], o[4], u, v)
            y = Add(n, a) }""",
    ],
)
def test_other_layers_keep_their_own_target(body: str) -> None:
    """Fails where a target is read behind an Add that does not determine the layer's output."""
    assert targets_in(HEAD + body)["w2"][1] == ""


def test_of_two_branches_only_the_later_one_takes_the_sum() -> None:
    """Fails where the earlier branch is fitted against one that is not refitted yet."""
    found = targets_in(HEAD + ") { a = Conv(x, w1[4,3,1,1])\n b = Conv(x, w2[4,3,1,1])\n y = Add(a, b) }")
    assert found == {"w1": ("a", ""), "w2": ("y", "a")}


def test_a_normalisation_over_tokens_is_no_gain_of_the_outputs() -> None:
    """Fails where BatchNormalization on axis 1 of a product with tokens is inverted along the product's last axis."""
    text = """(float[N,6,5] x) => (float[N,6,6] y) {
        a = MatMul(x, w1[5,6])
        b = MatMul(x, w2[5,6])
        n = BatchNormalization(b, s[6], o[6], m[6], var[6])
        y = Add(n, a)
    }"""
    assert targets_in(text) == {"w1": ("a", ""), "w2": ("b", "")}


def test_one_refitted_weight_off_by_a_hundredth_is_seen() -> None:
    """The mutation check: the comparison with lstsq notices one refitted weight that is 1 % off."""
    p, layer, _, _, rows, _, found = refitted("conv", "least-squares")
    constants = p.channels.graph.constants
    right = layer.matrix({**constants, **found})
    wrong = right.copy()
    power = np.abs(rows).max(axis=1)[:, :, None] * np.abs(right)
    wrong.flat[power.argmax()] *= 1.01
    with pytest.raises(AssertionError, match="times the bound"):
        assert_same(rows @ wrong, rows @ right, rtol=RTOL, atol=0.0)


def test_one_gram_entry_off_by_a_hundredth_is_seen() -> None:
    """The mutation check: moments that are 1 % off at one entry give weights that the comparison refuses."""
    p, layer, known, keep, rows, _, found = refitted("gemm", "least-squares")
    constants = p.channels.graph.constants
    moments = known.p.copy()
    stays = layer.kept_columns(keep)[0]
    i = int(np.flatnonzero(stays)[0])
    j = int(np.flatnonzero(~stays)[0])
    moments[0, i, j] *= 1.01
    moments[0, j, i] *= 1.01
    wrong = in_place([layer], {layer.weight: InputMoments(moments, known.ridge)}, constants, keep, "least-squares")
    with pytest.raises(AssertionError, match="times the bound"):
        assert_same(
            rows @ layer.matrix({**constants, **wrong}),
            rows @ layer.matrix({**constants, **found}),
            rtol=1e-4,
            atol=0.0,
        )


# Channels first and last; layers without a map, and those whose output is no tensor of the model.
POINTS = {
    "residual": RESIDUAL,
    "transposed": LAYERS["transposed"],
    "flatten": LAYERS["flatten"],
    "state_gates": LAYERS["state_gates"],
    "tokens": """(float[N,5,7,6] x) => (float[N,5,7,4] y) {
        a = MatMul(x, w1[6,8])
        r = Relu(a)
        b = MatMul(r, w2[8,8])
        s = Add(b, r)
        y = MatMul(s, w3[8,4])
    }""",
}


def points_of(
    p: Prepared, *, stay: bool = False, memory: int = 1 << 40
) -> tuple[tuple[Layer, ...], list[Target], Keep, list[list[tuple[Array, Array]]]]:
    """(layers, targets, what stays, positions and values of every batch), for all layers at once."""
    graph = p.channels.graph
    layers = tuple(x for x in layers_of(p.channels) if x.data not in x.node.outputs)
    latest = latest_layers(graph, layers)
    targets = [target_of(x, graph, latest) for x in layers]
    keep = random_keep(p.channels, 0, shares=(0.5,))
    w = Walker(p.normalised.proto, samples_of(p, 70), p.normalised.types, p.normalised.shapes, memory)
    before = w.frontier
    found = reference_points(layers, targets, graph, w, keep, 5, stay=stay)
    assert (w.frontier == before) is stay
    return layers, targets, keep, [[(at, y.load()) for at, y in of_layer] for of_layer in found]


def assert_equal_points(found: list[list[tuple[Array, Array]]], expected: list[list[tuple[Array, Array]]]) -> None:
    """The same positions, and the same values bit for bit."""
    for of_layer, those in zip(found, expected, strict=True):
        assert len(of_layer) == 9
        for (at, y), (places, wanted) in zip(of_layer, those, strict=True):
            assert_same(at, places, rtol=0.0, atol=0.0)
            assert_same(y, wanted, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("first", ["samples", "sequence"])
def test_the_original_goes_ahead_as_far_as_its_values_fit(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the first axis is taken for the samples of a tensor that has the sequence there."""
    t = "t = Identity(x)" if first == "samples" else "t = Transpose <perm=[1,0,2]> (x)"
    p = prepare_text(
        f"""(float[N,9,6] x) => (float y) {{
            {t}
            a = MatMul (t, w1[6,8])
            b = Relu(a)
            c = MatMul (b, w2[8,8])
            d = Relu(c)
            e = MatMul (d, w3[8,8])
            y = ReduceMean <keepdims=0> (e)
        }}"""
    )
    samples = samples_of(p, 70)
    w = Walker(p.normalised.proto, samples, p.normalised.types, p.normalised.shapes, 1 << 40)
    layers = layers_of(p.channels)
    one = 4 * w.counts[0] * 9 * 8  # bytes of a batch
    for limit, expected in ((one, [1, 1, 1]), (2 * one, [2, 1]), (3 * one, [3])):
        monkeypatch.setattr(reference_module, "_TARGET_BYTES", limit)
        assert [len(part) for part in reference_module._parts(layers, p.channels.graph, w)] == expected


@pytest.mark.parametrize("stay", [False, True])
@pytest.mark.parametrize("name", POINTS)
def test_points_are_the_same_with_and_without_taps(name: str, stay: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where how the original is looked at changes what it is fitted to; and both against one plain run."""
    monkeypatch.setattr(reference_module, "positions_for", lambda columns, samples: 4)
    p = prepare_text(POINTS[name])
    made: list[Tap | None] = []
    tap = reference_module._tap
    monkeypatch.setattr(reference_module, "_tap", lambda *arguments: (made.append(tap(*arguments)), made[-1])[1])
    layers, targets, keep, found = points_of(p, stay=stay)
    assert any(made) is (name != "state_gates")  # where the samples lie in the second axis
    monkeypatch.setattr(reference_module, "_tap", lambda *_: None)
    assert_equal_points(found, points_of(p, stay=stay)[-1])
    samples, constants = samples_of(p, 70), p.channels.graph.constants
    whole = values(p.normalised.proto, [t.source for t in targets], samples.arrays)
    for layer, target, batches in zip(layers, targets, found, strict=True):
        y, start = whole[target.source], 0
        kept = layer.kept_outputs(keep)
        for at, of_batch in batches:
            some = y.take(range(start, min(start + 8, 70)), y.shape.index(70))  # a recurrent net has its steps first
            if layer.output:
                flat = some if layer.window is None else np.moveaxis(some, 1, -1)
                rows = flat.reshape(len(some), -1, kept.size)[:, at].reshape(-1, kept.size)
            else:
                rows = (layer.rows(some, at).astype(np.float64) @ layer.matrix(constants))[0]
            assert_same(of_batch, rows[:, kept].astype(np.float32), rtol=1e-5, atol=0.0)
            start += 8


@pytest.mark.parametrize("name", ["residual", "tokens"])
def test_points_of_a_tensor_that_the_walk_has_reached(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a session is opened for what is kept already."""
    monkeypatch.setattr(reference_module, "positions_for", lambda columns, samples: 4)
    p = prepare_text(POINTS[name])
    n, samples = p.normalised, samples_of(p, 70)
    layers = layers_of(p.channels)
    latest = latest_layers(p.channels.graph, layers)
    ((layer, target),) = ((x, t) for x in layers if (t := target_of(x, p.channels.graph, latest)).source == "s")
    w = Walker(n.proto, samples, n.types, n.shapes, 1 << 40)
    w.move_to(("s",))
    monkeypatch.setattr(walker, "Session", None)
    keep = np.ones(p.channels.classes.pinned.size, bool)
    (found,) = reference_points([layer], [target], p.channels.graph, w, keep, 5)
    whole = values(n.proto, ["s"], samples.arrays)["s"]
    flat = whole if name == "tokens" else np.moveaxis(whole, 1, -1)
    for i, (at, y) in enumerate(found):
        part = flat[8 * i : 8 * i + 8]
        expected = part.reshape(len(part), -1, part.shape[-1])[:, at].reshape(-1, part.shape[-1])
        assert_same(y.load(), expected, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("shape", ["smaller", "larger"])
@pytest.mark.parametrize("name", ["residual", "tokens"])
def test_points_of_tensors_of_another_shape(name: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where positions that were drawn for another shape are kept: they may be out of range, or miss the rest."""
    monkeypatch.setattr(reference_module, "positions_for", lambda columns, samples: 4)
    p = prepare_text(POINTS[name])
    tap = reference_module._tap

    def other(*arguments: Any) -> Tap | None:
        found = tap(*arguments)
        if found is None:
            return None
        axis = 1 if found.channels_last else 2
        sizes = [*found.shape]
        sizes[axis] = 1 if shape == "smaller" else 9 * sizes[axis]
        return replace(found, shape=tuple(sizes))

    monkeypatch.setattr(reference_module, "_tap", other)
    layers, targets, keep, found = points_of(p)
    whole = values(p.normalised.proto, [t.source for t in targets], samples_of(p, 70).arrays)
    for layer, target, batches in zip(layers, targets, found, strict=True):
        flat = whole[target.source] if layer.window is None else np.moveaxis(whole[target.source], 1, -1)
        flat = flat.reshape(70, -1, flat.shape[-1])
        seen = np.concatenate([at for at, _ in batches])
        assert seen.max() >= flat.shape[1] // 2
        for i, (at, y) in enumerate(batches):
            expected = flat[8 * i : 8 * i + 8][:, at, :][..., layer.kept_outputs(keep)]
            assert_same(y, expected.reshape(y.shape), rtol=1e-5, atol=0.0)


# At 16 positions calibration leaves no row out.
SMALL = RESIDUAL.replace("8,8]", "4,4]")


def test_the_bias_of_a_branch_that_is_gone_is_the_mean() -> None:
    """Fails where what is left of a branch is anything but the best constant for what it computed."""
    p = prepare_text(SMALL)
    samples = samples_of(p, 320)
    layers, moments = moments_of(p, samples)
    last = max(branches.drops(p.channels))
    keep = p.channels.keep_classes({last: np.zeros(p.channels.groups[last].size, bool)})
    found = in_place(layers, moments, p.channels.graph.constants, keep, "least-squares")
    (layer,) = (x for x in layers if x.weight in found)
    outputs = values(p.normalised.proto, [layer.output], samples.arrays)[layer.output].astype(np.float64)
    assert not found[layer.weight].any()
    assert_same(found[layer.bias], outputs.mean(axis=(0, 2, 3)), rtol=RTOL, atol=0.0)


def test_lockstep_moves_the_bias_towards_the_sum() -> None:
    """Fails where the bias in a branch's place only repairs the branch, and not what the stream has lost before it."""
    p = prepare_text(SMALL)
    samples = samples_of(p, 320)
    found = branches.drops(p.channels)
    last = max(found)
    keep = random_keep(p.channels, 1, shares=(0.5,))
    keep[p.channels.groups[last].units] = False
    left = branches.left_of(p.channels, keep)
    assert left is not None
    (out,) = left.alone
    plain, slim, fits = step_by_step(p, samples, keep)
    layer = left.alone[out]
    (fit,) = (f for f in fits if f.layer == called(layer.node, layer.weight))
    assert fit.after < fit.before
    (add, _), *_ = p.channels.graph.readers[out]
    stays = next(x for x in layers_of(p.channels) if x.node is layer.node).kept_outputs(keep)
    target = values(p.normalised.proto, [add.outputs[0]], samples.arrays)[add.outputs[0]][:, stays]

    def residue(model: onnx.ModelProto) -> float:
        """Of the mean of the sum, per channel."""
        sums = values(model, [add.outputs[0]], samples.arrays)[add.outputs[0]]
        return float(np.square((sums - target).mean(axis=(0, 2, 3))).sum())

    (before,) = (onnx.numpy_helper.to_array(t) for t in plain.graph.initializer if t.name == layer.bias)
    # λ is at most 1, which leaves half of each mean.
    assert residue(slim) < 0.26 * residue(replace_initializers(slim, {layer.bias: before}))


MIXER = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,5,4] x) => (float[N,5,3] y) {
  a = MatMul(x, w1)
  b = Relu(a)
  c = Transpose<perm=[0,2,1]>(b)
  d = MatMul(c, w2)
  e = Relu(d)
  f = Transpose<perm=[0,2,1]>(e)
  y = MatMul(f, w3)
}"""


def mixer() -> onnx.ModelProto:
    """A layer that mixes tokens: its positions are the channels of the layer in front."""
    model = onnx.parser.parse_model(MIXER)
    rng = np.random.default_rng(0)
    for name, shape in {"w1": (4, 12), "w2": (5, 5), "w3": (12, 3)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal(shape).astype("f4"), name))
    return model


def test_layers_whose_positions_are_channels_are_refitted():
    """Fails where the positions of such a layer are counted as if none of them had gone."""
    result = pipeline.prune(mixer(), ratio=0.3, round_to=1, samples=64, fast=True)
    rows = {layer["layer"]: layer for layer in result.report.refit}
    assert result.model is not None
    assert np.isfinite(rows["w2"]["after"])
    assert rows["w2"]["after"] <= rows["w2"]["before"]


def test_positions_that_stay_are_found_in_the_cut_model():
    """Fails where a position of the original is read elsewhere in the cut model."""
    rng = np.random.default_rng(0)
    kept = np.array([True, False, True, True, False])
    whole = rng.standard_normal((2, 3, 5, 7)).astype(np.float32)
    staying = reference_module.Staying(kept.reshape(1, 1, 5))
    flat, cut = whole.reshape(2, 15, 7), whole[:, :, kept].reshape(2, 9, 7)
    at, there = staying.places(np.sort(rng.permutation(15)[:8]), whole.shape)
    assert len(at) == len(there) > 2
    assert np.array_equal(flat[:, at], cut[:, there])
    at, there = staying.places(np.array([1]), whole.shape)  # it goes: another one stands in
    assert np.array_equal(flat[:, at], cut[:, there])
