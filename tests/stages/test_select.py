"""From calibration to paths: the right consumers, counted alike, and every method run on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.calibration import input_moments
from onnxprune.calibration.layers import layers_of
from onnxprune.calibration.regressions import consumers_of, magnitude, regressions_of
from onnxprune.data.inputs import input_specs
from onnxprune.data.samples import Samples
from onnxprune.methods import METHODS
from onnxprune.numerics.least_squares import JITTER
from onnxprune.selection import Regression
from onnxprune.selection.known import Choice
from onnxprune.stages.select import paths
from tests.calibrated import every_position, moments_of, prepare_text, samples_of, values
from tests.compare import assert_same
from tests.graphs import PRUNABLE
from tests.prepared import Prepared
from tests.sampled import share

Lookup = Callable[[str], Prepared]
# Moments are float32 products over batches.
RTOL = 1e-4

# Maps of at most 16 positions, so that calibration leaves no row out.
SHARED = """(float[N,3,4,4] x) => (float[N,5,4,4] y, float[N,4] z) {
    a = Conv (x, w1[8,3,1,1], b1[8])
    r = Relu(a)
    d = Conv <group=8, pads=[1,1,1,1]> (r, w2[8,1,3,3], b2[8])
    s = Add(r, d)
    y = Conv (s, w3[5,8,1,1], b3[5])
    c = Conv <group=2> (s, w4[6,4,3,3], b4[6])
    f = Flatten(c)
    z = Gemm <transB=1> (f, w5[4,24], b5[4])
}"""

CONSUMERS = {
    "plain": [["w2"], ["w3"]],
    "residual": [["w2", "w4"], ["w3"]],
    "depthwise": [["w3"]],
    "depthwise_multiplier": [["w3"]],
    "grouped_few_large": [["w2"], ["w3"]],
    "grouped_many_small": [["w3"]],
    "grouped_first": [["w2"]],
    "transposed": [["w2"], ["w3"]],
    "transposed_many_small": [["w3"]],
    "squeeze_excite": [["w2", "w4"], ["w3"]],
    "two_layouts": [["w2", "w3"]],
    "dense_concat": [["w2", "w3", "w4"], ["w3", "w4"], ["w4"]],
}


@pytest.mark.parametrize("name", CONSUMERS)
def test_consumers_are_the_layers_that_combine_the_channels(name: str, prepared: Lookup) -> None:
    """Fails where a depthwise layer counts as a consumer, or a layer that reads part of its input from a group not."""
    p = prepared(name)
    found = [[x.weight for x in c] for c in consumers_of(p.channels, layers_of(p.channels))]
    assert sorted(found) == sorted(CONSUMERS[name])


@pytest.mark.parametrize(
    ("name", "weight", "expected"),
    [
        ("depthwise", "w2", True),
        ("depthwise_multiplier", "w2", True),
        ("grouped_many_small", "w2", True),
        ("transposed_depthwise", "w2", True),
        ("grouped_few_large", "w2", False),
        ("grouped_first", "w1", False),
        ("plain", "w2", False),
    ],
)
def test_passing_through(name: str, weight: str, expected: bool, prepared: Lookup) -> None:
    """Fails where groups that are units are taken for groups that combine units."""
    p = prepared(name)
    (layer,) = [x for x in layers_of(p.channels) if x.weight == weight]
    assert layer.groups_are_units is expected


def test_regressions_are_those_of_the_data_relative_to_the_output() -> None:
    """Fails where the units of a column, the group of a convolution, or the share of a consumer is wrong."""
    p = prepare_text(SHARED)
    samples = samples_of(p, 200)
    layers, moments = moments_of(p, samples)
    consumers = consumers_of(p.channels, layers)
    constants = p.channels.graph.constants
    found = values(p.normalised.proto, [n for x in layers for n in (x.data, x.output)], samples.arrays)
    for g in p.channels.groups:
        regressions = regressions_of(g, consumers[g.index], p.channels, moments, {})
        expected = np.zeros((g.size, g.size))
        for layer in consumers[g.index]:
            rows = layer.rows(found[layer.data], every_position(layer, found[layer.output])).astype(np.float64)
            y = layer.targets(found[layer.output], every_position(layer, found[layer.output])).astype(np.float64)
            w = layer.matrix(constants)
            for i in range(layer.groups):
                columns = layer.columns(i)
                s = np.stack([rows[i][:, columns == u] @ w[i][columns == u] for u in g.units])
                expected += np.einsum("jrm,lrm->jl", s, s) / rows.shape[1] / y.var(axis=1).sum()
        k = sum((r.contributions(g.size) for r in regressions), np.zeros((g.size, g.size)))
        assert_same(k, expected, rtol=RTOL, atol=0.0)
        powers = [r.power() * r.weight for r in regressions]
        assert_same(np.float64(sum(powers)), np.float64(len(consumers[g.index])), rtol=RTOL, atol=0.0)


def test_wide_layers_take_part_with_their_contributions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the classes of a wide layer's contributions are matched with the wrong units."""
    p = prepare_text(SHARED)
    samples = samples_of(p, 200)
    layers, full = moments_of(p, samples)
    monkeypatch.setattr(input_moments, "WIDE", 20)
    _, wide = moments_of(p, samples)
    assert wide["w5"].classes is not None
    (g,) = [g for g in p.channels.groups if g.consumers and g.consumers[0].tensor == "w5"]
    (consumer,) = consumers_of(p.channels, layers)[g.index]
    (a,) = regressions_of(g, [consumer], p.channels, full, {})
    (b,) = regressions_of(g, [consumer], p.channels, wide, {})
    assert_same(b.contributions(g.size) / b.weight, a.contributions(g.size) / a.weight, rtol=RTOL, atol=0.0)


@pytest.mark.parametrize("name", PRUNABLE)
def test_every_method_gives_a_path_for_every_group(name: str, prepared: Lookup) -> None:
    """Fails where a method cannot deal with a group that some topology has; losses are finite and end at zero."""
    p = prepared(name)
    specs = input_specs(p.normalised.proto)
    if len({len(p.example[s.name]) for s in specs if s.batched}) > 1:
        pytest.skip("one of its inputs holds a size, not an entry for each sample")
    layers, moments = moments_of(p, Samples(specs, p.example))
    for method in share(PRUNABLE.index(name), 3, tuple(METHODS)):
        found = paths(p.channels, layers, moments, method, Choice())
        assert len(found) == len(p.channels.groups)
        for g, path in zip(p.channels.groups, found, strict=True):
            assert sorted(path.order.tolist()) == list(range(g.size))
            assert path.loss.shape == (g.size + 1,)
            assert np.isfinite(path.loss).all()
            assert (path.loss >= 0.0).all()
            assert path.loss[-1] == 0.0
            assert [int(path.kept(n).sum()) for n in range(g.size + 1)] == list(range(g.size + 1))
            rows = np.zeros(g.size, np.int64) if g.rows is None else g.rows
            for n in range(0, g.size + 1, g.step):
                assert (np.bincount(rows[path.kept(n)], minlength=g.step) == n // g.step).all()


def test_methods_agree_on_what_a_removal_costs() -> None:
    """Fails where the discrepancy of obs is not the refitted one: it is never above that of removing alone."""
    p = prepare_text(SHARED)
    layers, moments = moments_of(p, samples_of(p, 200))
    refitted = paths(p.channels, layers, moments, "obs", Choice())
    consumers = consumers_of(p.channels, layers)
    for g, path in zip(p.channels.groups, refitted, strict=True):
        regressions = regressions_of(g, consumers[g.index], p.channels, moments, {})
        k = sum((r.contributions(g.size) for r in regressions), np.zeros((g.size, g.size)))
        for n in range(g.size + 1):
            gone = (~path.kept(n)).astype(float)
            # The elimination sees P with its ridge, which adds at most that share of every unit's own power.
            ridge = max(0.1, *(r.ridge for r in regressions)) + JITTER
            assert path.loss[n] <= gone @ k @ gone + ridge * own_power(regressions, path.kept(n))


def own_power(regressions: Sequence[Regression], kept: NDArray[np.bool_]) -> float:
    """Σ w² diag(P) over the columns of the units that go."""
    total = 0.0
    for r in regressions:
        columns = (r.unit >= 0) & ~kept[r.unit]
        total += r.weight * float((r.w[columns] ** 2 * np.diag(r.p)[columns, None]).sum())
    return total + 1e-12


def test_the_same_seed_gives_the_same_paths(prepared: Lookup) -> None:
    """Fails where a plan cannot be repeated."""
    p = prepared("dense_concat")
    layers, moments = moments_of(p, samples_of(p, 40))
    first, again, other = (
        [x.order.tolist() for x in paths(p.channels, layers, moments, "random", Choice(seed))] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_magnitude_is_the_relative_norm_of_the_producers() -> None:
    """Fails where consumers count, a producer is left out, or a layer with large weights outvotes the others."""
    p = prepare_text(
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            c = Conv <pads=[1,1,1,1]> (a, w2[8,8,3,3], b2[8])
            s = Add(a, c)
            r = Relu(s)
            y = Conv (r, w3[5,8,1,1], b3[5])
        }"""
    )
    (g,) = p.channels.groups
    constants = p.channels.graph.constants
    norms = [np.sqrt((constants[n].astype(np.float64).reshape(8, -1) ** 2).sum(axis=1)) for n in ("w1", "w2")]
    expected = sum(n / n.mean() for n in norms)
    assert_same(magnitude(g, p.channels), expected, rtol=1e-12, atol=0.0)


def test_one_moment_off_by_a_hundredth_is_seen() -> None:
    """The mutation check: an entry of a layer's moments that is 1 % off changes the discrepancy."""
    p = prepare_text(SHARED)
    layers, moments = moments_of(p, samples_of(p, 200))
    right = paths(p.channels, layers, moments, "magnitude", Choice())
    for known in moments.values():
        known.p[:, 0, 0] *= 1.01
    wrong = paths(p.channels, layers, moments, "magnitude", Choice())
    with pytest.raises(AssertionError, match="times the bound"):
        for a, b in zip(wrong, right, strict=True):
            assert_same(a.loss, b.loss, rtol=RTOL, atol=0.0)
