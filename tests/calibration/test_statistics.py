"""The calibration pass, against moments of all rows at once."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest

from onnxprune.calibration import input_moments
from onnxprune.calibration.input_moments import InputMoments, InputSums, collect, positions_for
from onnxprune.calibration.layers import layers_of
from onnxprune.data.batches import batch_size
from onnxprune.numerics import gram
from onnxprune.numerics.least_squares import JITTER
from onnxprune.numerics.ridge import RIDGES, chosen
from onnxprune.process import spill
from tests.calibrated import every_position, moments_of, prepare_text, samples_of, values
from tests.compare import assert_same

# Products in float32 over a batch, sums in float64.
RTOL = 1e-5

# Maps of at most 16 positions, so that no position is left out.
MIXED = """(float[N,3,6,6] x) => (float[N,5] y) {
    a = Conv (x, w1[8,3,3,3], b1[8])
    r = Relu(a)
    c = Conv <group=2> (r, w2[12,4,2,2], b2[12])
    s = Relu(c)
    d = Conv <group=12, pads=[1,1,1,1]> (s, w3[12,1,3,3])
    u = ConvTranspose (d, w4[12,6,2,2])
    f = Flatten(u)
    y = Gemm <transB=1> (f, w5[5,96], b5[5])
}"""


def test_a_batch_of_large_inputs_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where samples of megabytes are read by the batch that what layers read allows."""
    p = prepare_text(MIXED)
    samples = samples_of(p, 300)
    arguments = p.normalised.proto, layers_of(p.channels), samples, p.normalised.shapes, 0
    assert InputSums.of(*arguments).batch > 3
    monkeypatch.setattr(input_moments, "_FED_BYTES", 3 * 3 * 6 * 6 * 4)
    assert InputSums.of(*arguments).batch == 3


@pytest.mark.parametrize("count", [40, 300])
def test_moments_equal_those_of_all_rows(count: int) -> None:
    """Fails where a batch is lost, held-out batches are left out of the result, or groups are mixed up."""
    p = prepare_text(MIXED)
    samples = samples_of(p, count)
    layers, moments = moments_of(p, samples)
    assert set(moments) == {"w1", "w2", "w3", "w4", "w5"}
    found = values(p.normalised.proto, [n for x in layers for n in (x.data, x.output)], samples.arrays)
    for layer in layers:
        x = layer.rows(found[layer.data], every_position(layer, found[layer.output])).astype(np.float64)
        expected = np.einsum("grd,gre->gde", x, x) / x.shape[1]
        assert_same(moments[layer.weight].p, expected, rtol=RTOL, atol=0.0)
        assert moments[layer.weight].classes is None


def test_wide_layers_know_the_gram_of_their_contributions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where contributions are assigned to the wrong class, or divided by another number than the rows."""
    monkeypatch.setattr(input_moments, "WIDE", 50)
    p = prepare_text(MIXED)
    samples = samples_of(p, 30)
    layers, moments = moments_of(p, samples)
    layer = next(x for x in layers if x.weight == "w5")
    known = moments["w5"]
    x = layer.rows(values(p.normalised.proto, [layer.data], samples.arrays)[layer.data], np.arange(1))[0]
    w = layer.matrix(p.channels.graph.constants)[0]
    classes = np.unique(layer.columns(0))
    s = np.stack([x[:, layer.columns(0) == c] @ w[layer.columns(0) == c] for c in classes]).astype(np.float64)
    assert known.classes is not None
    assert known.classes.tolist() == classes.tolist()
    assert_same(known.p[0], np.einsum("jrm,lrm->jl", s, s) / len(x), rtol=RTOL, atol=0.0)


def test_moments_of_large_maps_estimate_those_of_all_rows() -> None:
    """Fails where the sampled positions are biased, the same for every batch say. 300 samples x 16 positions: the
    entries of a moment have a standard error of about 1/70 of the largest, so 8 % leaves more than five of them."""
    p = prepare_text("(float[N,3,16,16] x) => (float[N,4,16,16] y) { y = Conv (x, w[4,3,1,1], b[4]) }")
    samples = samples_of(p, 300)
    layers, moments = moments_of(p, samples)
    x = layers[0].rows(samples.arrays["x"], np.arange(256)).astype(np.float64)
    assert_same(moments["w"].p, np.einsum("grd,gre->gde", x, x) / x.shape[1], rtol=0.08, atol=0.0)


def test_the_same_seed_gives_the_same_moments() -> None:
    """Fails where the sampling of positions is not seeded."""
    p = prepare_text("(float[N,3,16,16] x) => (float[N,4,16,16] y) { y = Conv (x, w[4,3,1,1], b[4]) }")
    samples = samples_of(p, 100)
    first, again, other = (moments_of(p, samples, seed)[1]["w"].p for seed in (1, 1, 2))
    assert_same(first, again, rtol=0.0, atol=0.0)
    assert not np.array_equal(first, other)


def test_nothing_to_collect() -> None:
    """Fails where a model without a linear layer needs a session."""
    p = prepare_text("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    assert collect(p.normalised.proto, layers_of(p.channels), samples_of(p, 3), p.normalised.shapes, 0) == {}


def moments(x: np.ndarray) -> np.ndarray:
    return x.T @ x / len(x)


def test_ridge_is_small_where_data_is_plenty_and_large_where_it_is_not() -> None:
    """Fails where the choice is judged on the data of the fit, which always prefers the least ridge."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((20, 20)) / np.sqrt(20)
    w = rng.standard_normal((20, 3))
    classes = np.arange(20)
    held = moments(rng.standard_normal((5000, 20)) @ mix)
    plenty = chosen(held, held, w, classes)
    few = chosen(moments(rng.standard_normal((8, 20)) @ mix), held, w, classes)
    assert plenty == RIDGES[-1]
    assert few > RIDGES[-1]


def test_without_held_out_batches_the_ridge_is_the_largest() -> None:
    """Fails where a few samples are refitted as if they were many: with 3 samples no batch can be held out."""
    p = prepare_text(MIXED)
    assert {k.ridge for k in moments_of(p, samples_of(p, 3))[1].values()} == {RIDGES[0]}


def test_positions_and_batches_stay_within_their_bounds() -> None:
    """Fails where tiny or huge layers ask for none or all of the positions, or a batch outgrows its memory."""
    assert positions_for(1, 10_000) == 16
    assert positions_for(4608, 100) == 64
    assert positions_for(10, 0) == 64
    assert sorted(positions_for(c, 100) for c in range(0, 500, 10)) == [
        positions_for(c, 100) for c in range(0, 500, 10)
    ]
    shapes = {"a": (2, 1024), "b": (2, 3, 4)}
    assert batch_size(shapes, 2, ["a", "b"], 1024, limit_bytes=10 * 4 * 1036) == 10
    assert batch_size(shapes, 2, ["a"], 1024, limit_bytes=1) == 1
    # Samples in the second axis, or one after the other in the first, take as much as in the first.
    moved = {"a": (1024, 2), "b": (6, 4)}
    assert batch_size(moved, 2, ["a", "b"], 1024, limit_bytes=10 * 4 * 1036) == 10
    assert batch_size(shapes, 2, [], 1024, limit_bytes=1 << 20) == 64
    # Some batches are always held out, however few the samples.
    assert batch_size(shapes, 2, [], 32, limit_bytes=1 << 20) == 4
    assert batch_size(shapes, 2, [], 1, limit_bytes=1 << 20) == 1


def stack(count: int = 2, columns: int = 12) -> np.ndarray:
    """Moments (count, D, D) of columns of very different scales."""
    rng = np.random.default_rng(40)
    x = rng.standard_normal((count, 60, columns)) @ rng.standard_normal((count, columns, columns))
    x *= 10.0 ** rng.integers(-2, 3, columns)
    return np.einsum("grd,gre->gde", x, x) / 60


KEPT = {
    "in memory": lambda p: p,
    "in a file": spill.Spilled,
    "in a file, in single precision": lambda p: spill.Spilled(p.astype(np.float32)),
}


@pytest.mark.parametrize("kept", KEPT)
def test_moments_at_some_columns(kept: str) -> None:
    """Fails where rows or columns come in another order, from another group, or in the precision of the file."""
    p = stack()
    at = np.array([7, 0, 3])
    with spill.spilling():
        known = InputMoments(KEPT[kept](p), RIDGES[-1])
        exact = p.astype(np.float32).astype(np.float64) if "single" in kept else p
        assert_same(known.p, exact.astype(known.p.dtype), rtol=0.0, atol=0.0)
        assert_same(known.block(at), exact[0][np.ix_(at, at)], rtol=0.0, atol=0.0)


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("kept", KEPT)
def test_rows_of_the_inverse_are_those_of_the_regularised_moments(kept: str, ridge: float) -> None:
    """Fails where the ridge is not relative to each column, is that of another call, or rows are taken for others."""
    p = stack()
    at = np.array([7, 0, 3])
    with spill.spilling():
        known = InputMoments(KEPT[kept](p), RIDGES[-1])
        exact = known.p[0].astype(np.float64)
        d = np.sqrt(np.diag(exact))
        for strength in (0.5, ridge, 0.5):
            expected = np.linalg.inv(exact / np.outer(d, d) + (JITTER + strength) * np.eye(12))
            # Scaled to a unit diagonal: the condition is at most 12 / JITTER.
            found = known.inverse(at, strength) * np.outer(d[at], d)
            assert_same(found, expected[at], rtol=1e-9, atol=0.0)


def test_an_inverse_is_computed_once_for_every_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where each of the groups that share a layer inverts its moments again."""
    computed: list[float] = []
    invert = input_moments.inverse_spd

    def counted(p: np.ndarray, ridge: float) -> np.ndarray:
        computed.append(ridge)
        return invert(p, ridge)

    monkeypatch.setattr(input_moments, "inverse_spd", counted)
    known = InputMoments(stack(), RIDGES[-1])
    for ridge in (1e-3, 1e-2, 1e-3, 1e-2):
        known.inverse(np.arange(3), ridge)
    assert computed == [1e-3, 1e-2]


def test_inverses_do_not_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a worker is sent an inverse, as large as the moments, with them, or the moments lose it here."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    at = np.arange(3)
    with spill.spilling():
        known = InputMoments(spill.Spilled(stack()), RIDGES[1])
        empty = len(pickle.dumps(known))
        expected = known.inverse(at, 1e-3)
        assert len([f for f in tmp_path.rglob("*") if f.is_file()]) == 2
        sent = pickle.dumps(known)
        assert len([f for f in tmp_path.rglob("*") if f.is_file()]) == 2
    assert len(sent) == empty
    received = pickle.loads(sent)
    assert received.ridge == RIDGES[1] and received.classes is None
    assert_same(received.p, stack(), rtol=0.0, atol=0.0)
    assert_same(received.inverse(at, 1e-3), expected, rtol=0.0, atol=0.0)


def test_large_moments_lie_in_files_in_the_precision_of_their_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the moments of all layers are held in memory, doubled in size on the way, or differ there."""
    p = prepare_text(MIXED)
    samples = samples_of(p, 40)
    _, expected = moments_of(p, samples)
    monkeypatch.setattr(gram, "PACKED", 30)
    with spill.spilling():
        _, found = moments_of(p, samples)
        held = {name: k.moments for name, k in found.items()}
        kept = {name: k.load() for name, k in held.items() if isinstance(k, spill.Spilled)}
        assert kept.keys() == {n for n, k in expected.items() if k.p.shape[1] >= 30} == {"w4", "w5"}
        assert {k.dtype.name for k in kept.values()} == {"float32"}
        for name, k in expected.items():
            assert found[name].ridge == k.ridge
            assert_same(found[name].p, k.p.astype(found[name].p.dtype), rtol=RTOL, atol=0.0)


def test_one_activation_off_by_a_hundredth_is_seen() -> None:
    """The mutation check: rows of one channel that are 1 % off fail the comparison of moments."""
    p = prepare_text(MIXED)
    samples = samples_of(p, 40)
    layers, found = moments_of(p, samples)
    x = layers[0].rows(samples.arrays["x"], np.arange(16)).astype(np.float64)
    x[:, :, 0] *= 1.01
    with pytest.raises(AssertionError, match="times the bound"):
        assert_same(found["w1"].p, np.einsum("grd,gre->gde", x, x) / x.shape[1], rtol=RTOL, atol=0.0)
