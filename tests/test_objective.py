"""Objectives against finite differences, exact expectations over every draw, and losses written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from onnxprune.errors import CalibrationError, ModelError
from onnxprune.numerics.arrays import Array
from onnxprune.objective import Objective, output_imitation, relative_error, task_loss
from tests.compare import assert_same

N = 6
RNG = np.random.default_rng(0)
# What the original answers, and what a pruned model does.
SCORES = {"y": RNG.standard_normal((N, 4)), "z": RNG.standard_normal((N, 2, 3)) + 5.0}
OTHER = {k: v + 0.3 * RNG.standard_normal(v.shape) for k, v in SCORES.items()}
CLASSES = np.array([0, 3, 1, 2, 2, 0])
TARGETS = RNG.standard_normal((N, 4))


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


SHARES, OTHER_SHARES = ({"y": softmax(s["y"])} for s in (SCORES, OTHER))

CASES: dict[str, tuple[Callable[[], Objective], dict[str, Array], dict[str, Array]]] = {
    "imitation": (lambda: output_imitation(SCORES, N), SCORES, OTHER),
    "classes": (lambda: task_loss(SCORES, CLASSES), SCORES, OTHER),
    "probabilities": (lambda: task_loss(SHARES, CLASSES, probabilities=True), SHARES, OTHER_SHARES),
    "targets": (lambda: task_loss(SCORES, TARGETS), SCORES, OTHER),
}
every_case = pytest.mark.parametrize("case", CASES)


def rows(outputs: dict[str, Array], index: Any) -> dict[str, Array]:
    return {k: v[index] for k, v in outputs.items()}


def whole(objective: Objective, outputs: dict[str, Array]) -> float:
    return objective.value(outputs, slice(0, N))


# values


@every_case
def test_nothing_changed(case: str):
    """Fails where the discrepancy of the original from itself is not 0."""
    make, original, _ = CASES[case]
    assert whole(make(), original) == 0.0


@every_case
def test_batches_add_up(case: str):
    """Fails where a batch is compared with the wrong samples, or counts as the whole set."""
    make, _, other = CASES[case]
    o = make()
    parts: tuple[Any, ...] = (slice(0, 1), slice(1, 4), slice(4, 9))
    found = sum(o.value(rows(other, i), i) for i in parts)
    assert_same(np.float64(found), np.float64(whole(o, other)), rtol=1e-12, atol=0.0)
    order = np.array([5, 0, 3, 1, 4, 2])
    assert_same(np.float64(o.value(rows(other, order), order)), np.float64(whole(o, other)), rtol=1e-12, atol=0.0)


def test_imitation_is_the_relative_error():
    reference = SCORES | {"n": np.arange(N)}
    o = output_imitation(reference, N)
    assert o.names == ("y", "z")
    expected = relative_error(OTHER | {"n": np.arange(N)}, reference)
    assert_same(np.float64(whole(o, OTHER)), np.float64(expected), rtol=1e-12, atol=0.0)


def test_single_sample():
    """Without a spread over samples, the original's own size stands for it."""
    one, other = rows(SCORES, slice(0, 1)), rows(OTHER, slice(0, 1))
    found = output_imitation(one, 1).value(other, slice(0, 1))
    assert_same(np.float64(found), np.float64(relative_error(other, one)), rtol=1e-12, atol=0.0)


def test_several_rows_per_sample():
    """Fails where a row counts as a sample: a detector gives so many boxes for each image."""
    tall, other = ({"y": s["z"].reshape(2 * N, 3)} for s in (SCORES, OTHER))
    o = output_imitation(tall, N)
    parts = [np.array([4, 1]), np.array([0, 2, 3, 5])]
    found = sum(o.value({"y": other["y"].reshape(N, 2, 3)[i].reshape(-1, 3)}, i) for i in parts)
    assert_same(np.float64(found), np.float64(relative_error(other, tall)), rtol=1e-12, atol=0.0)


def test_a_number_for_each_single_sample():
    """A model without a batch axis gives a scalar for each run."""
    o = output_imitation({"y": np.array([1.0, 3.0])}, 2)
    assert o.value({"y": np.array(2.0)}, slice(0, 1)) == 0.5
    assert o.gradient({"y": np.array(2.0)}, slice(0, 1))["y"].shape == ()


@pytest.mark.parametrize("probabilities", [False, True])
def test_cross_entropy_written_out(probabilities: bool):
    original, other = (SHARES, OTHER_SHARES) if probabilities else (SCORES, OTHER)
    found = whole(task_loss(original, CLASSES, probabilities=probabilities), other)
    before, after = (np.mean([-np.log(softmax(s["y"])[i, c]) for i, c in enumerate(CLASSES)]) for s in (SCORES, OTHER))
    assert_same(np.float64(found), np.float64(after - before), rtol=1e-12, atol=0.0)


def test_squared_error_written_out():
    found = whole(task_loss(SCORES, TARGETS), OTHER)
    spread = ((TARGETS - TARGETS.mean(axis=0)) ** 2).sum()
    expected = (((OTHER["y"] - TARGETS) ** 2).sum() - ((SCORES["y"] - TARGETS) ** 2).sum()) / spread
    assert_same(np.float64(found), np.float64(expected), rtol=1e-12, atol=0.0)


def test_trailing_axes_and_columns():
    """Fails where scores of a fully convolutional classifier, or a column of targets, are taken for something else."""
    deep, other = ({"y": s["y"].reshape(N, 4, 1, 1)} for s in (SCORES, OTHER))
    o = task_loss(deep, CLASSES)
    assert whole(o, other) == whole(task_loss(SCORES, CLASSES), OTHER)
    assert o.gradient(other, slice(0, N))["y"].shape == (N, 4, 1, 1)
    column = {"y": SCORES["y"][:, :1]}
    assert whole(task_loss(column, TARGETS[:, 0]), column) == 0.0


# gradients


@every_case
def test_gradient_against_central_differences(case: str):
    make, _, other = CASES[case]
    o, h = make(), 1e-5
    index = slice(1, 5)
    batch = rows(other, index)
    found = o.gradient(batch, index)
    assert set(found) == set(o.names)
    for name, g in found.items():
        expected = np.zeros_like(g)
        for at in np.ndindex(g.shape):
            up, down = ({**batch, name: batch[name].copy()} for _ in range(2))
            up[name][at] += h
            down[name][at] -= h
            expected[at] = (o.value(up, index) - o.value(down, index)) / (2.0 * h)
        # Central differences: h² of the third derivative, and rounding of 1e-16 / h.
        assert_same(g, expected, rtol=1e-7, atol=1e-9)


@every_case
def test_scale(case: str):
    """Fails where what keeps half precision from underflow is lost on the way."""
    make, _, other = CASES[case]
    o, index = make(), slice(0, N)
    for name, g in o.gradient(other, index).items():
        assert_same(o.gradient(other, index, scale=8.0)[name], 8.0 * g, rtol=1e-12, atol=0.0)
        r, scaled = (o.probe(other, index, np.random.default_rng(1), scale=s)[name] for s in (1.0, 8.0))
        assert_same(scaled, 8.0 * r, rtol=1e-12, atol=0.0)


# probes


class Scripted:
    """Gives what it is told to where a generator would draw."""

    def __init__(self, bits: Array | None = None, uniform: Array | None = None) -> None:
        self.bits, self.uniform = bits, uniform

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> Array:
        assert self.bits is not None
        assert (low, high) == (0, 2)
        return self.bits.reshape(shape)

    def random(self, count: int) -> Array:
        assert self.uniform is not None
        return np.full(count, self.uniform)


def halved_hessian(o: Objective, outputs: dict[str, Array], i: int) -> Array:
    """½ · second central differences of the value in the only output of sample i."""
    ((name, y),) = outputs.items()
    index, h, size = slice(i, i + 1), 1e-4, y[0].size
    found = np.zeros((size, size))

    def at(*steps: tuple[int, float]) -> float:
        moved = y[index].copy().reshape(-1)
        for k, d in steps:
            moved[k] += d
        return o.value({name: moved.reshape(y[index].shape)}, index)

    for a, b in np.ndindex(size, size):
        signs = list(product((h, -h), repeat=2))
        found[a, b] = sum(np.sign(s * t) * at((a, s), (b, t)) for s, t in signs) / (4.0 * h * h)
    return found / 2.0


@pytest.mark.parametrize("kind", ["imitation", "targets"])
def test_second_moment_over_every_sign(kind: str):
    """Fails where the probe has the wrong size, or is not halved: all 2⁴ draws, equally likely."""
    only = {"y": OTHER["y"]}
    o: Objective = output_imitation({"y": SCORES["y"]}, N) if kind == "imitation" else task_loss(SCORES, TARGETS)
    draws = [
        o.probe(rows(only, slice(2, 3)), slice(2, 3), Scripted(bits=np.array(bits)))["y"][0]  # type: ignore[arg-type]
        for bits in product((0, 1), repeat=4)
    ]
    found = np.mean([np.outer(r, r) for r in draws], axis=0)
    # Second differences: rounding of 1e-16 / h².
    assert_same(found, halved_hessian(o, only, 2), rtol=1e-6, atol=1e-7)


def each_class(p: Array) -> Iterator[tuple[float, float]]:
    """(probability, a uniform number that draws it) of each class."""
    edges = np.concatenate([[0.0], np.cumsum(p)])
    for c, share in enumerate(p):
        yield share, (edges[c] + edges[c + 1]) / 2.0


def test_second_moment_over_every_class():
    """Fails where the drawn label is not the model's own, or the Fisher matrix is not halved."""
    o, only = task_loss(SCORES, CLASSES), {"y": OTHER["y"]}
    for i in range(N):
        index = slice(i, i + 1)
        found = np.zeros((4, 4))
        for share, u in each_class(softmax(OTHER["y"])[i]):
            r = o.probe(rows(only, index), index, Scripted(uniform=np.float64(u)))["y"][0]  # type: ignore[arg-type]
            found += share * np.outer(r, r)
        assert_same(found, halved_hessian(o, only, i), rtol=1e-5, atol=1e-7)


def test_probabilities_have_the_curvature_of_scores():
    """Through the Jacobian of the Softmax, a probe at p is the probe at the scores behind the same draw."""
    at_p = task_loss(SHARES, CLASSES, probabilities=True)
    at_scores = task_loss(SCORES, CLASSES)
    p = OTHER_SHARES["y"]
    for seed in range(3):
        r = at_p.probe(OTHER_SHARES, slice(0, N), np.random.default_rng(seed))["y"]
        through = np.stack([(np.diag(q) - np.outer(q, q)) @ x for q, x in zip(p, r, strict=True)])
        expected = at_scores.probe(OTHER, slice(0, N), np.random.default_rng(seed))["y"]
        assert_same(through, expected, rtol=1e-9, atol=1e-12)


@every_case
def test_samples_are_drawn_by_themselves(case: str):
    """Fails where one draw serves all samples or outputs: products of different ones must average to 0."""
    make, _, other = CASES[case]
    o, rng, count = make(), np.random.default_rng(3), 4000
    kinds = [o.probe(other, slice(0, N), rng) for _ in range(count)]
    r = np.stack([np.concatenate([k[n].reshape(N, -1) for n in o.names], axis=1) for k in kinds])
    r = (r - r.mean(axis=0)) / r.std(axis=0)
    cross = np.einsum("kia,kjb->ijab", r, r) / count
    different = cross[~np.eye(N, dtype=bool)]
    # Each is a mean of `count` products: 5 standard errors, and the largest kurtosis of a rare class.
    assert np.abs(different).max() < 5.0 * np.sqrt((r**4).mean(axis=0).max() / count)


def test_quadratic_model_of_a_gated_network():
    """Gates on the hidden units of y = W a: K from probes and g from seeds predict the value, exactly for squares."""
    W, s = RNG.standard_normal((4, 3)), RNG.standard_normal((N, 3))
    y0 = {"y": s @ W.T}
    o = output_imitation(y0, N)
    J = s[:, None, :] * W
    K = np.zeros((3, 3))
    for bits in product((0, 1), repeat=4):
        r = o.probe(y0, slice(0, N), Scripted(bits=np.tile(bits, (N, 1))))["y"]  # type: ignore[arg-type]
        d = np.einsum("nok,no->nk", J, r)
        K += d.T @ d / 16.0
    a = np.array([1.0, 0.0, 0.7])
    assert_same(np.float64((a - 1) @ K @ (a - 1)), np.float64(whole(o, {"y": (s * a) @ W.T})), rtol=1e-12, atol=0.0)


# types and what is not finite


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@every_case
def test_seeds_have_the_type_of_the_output(case: str, dtype: Any):
    make, original, other = CASES[case]
    cast = {k: v.astype(dtype) for k, v in other.items()}
    o = make()
    for seeds in (o.gradient(cast, slice(0, N)), o.probe(cast, slice(0, N), np.random.default_rng(0))):
        for name, r in seeds.items():
            assert (r.dtype, r.shape) == (np.dtype(dtype), original[name].shape)
            assert np.isfinite(r.astype(np.float64)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@every_case
def test_what_is_not_finite(case: str, bad: float):
    """Fails where NaN reaches a comparison, a gradient or the probes of other samples."""
    make, _, other = CASES[case]
    broken = {k: v.copy() for k, v in other.items()}
    broken["y"][2] = bad
    o = make()
    assert whole(o, broken) == np.inf
    for seeds in (o.gradient(broken, slice(0, N)), o.probe(broken, slice(0, N), np.random.default_rng(0))):
        assert all(np.isfinite(r).all() for r in seeds.values())
        assert not seeds["y"][2].any()
        assert seeds["y"][[0, 1, 3, 4, 5]].any(axis=1).all()


def test_beyond_the_range():
    """Squares that overflow even in double precision make the value infinite, without a warning."""
    broken = {"y": np.full((N, 4), 1e200), "z": SCORES["z"]}
    assert whole(output_imitation(SCORES, N), broken) == np.inf


def test_constant_output_in_half_precision():
    """Without a spread the weight is beyond any range: the seeds stay finite."""
    y = {"y": np.ones((N, 2), np.float16)}
    r = output_imitation(y, N).probe(y, slice(0, N), np.random.default_rng(0))["y"]
    assert np.isfinite(r).all()
    assert r.all()


def test_masked_classes():
    """A class that the model rules out (-inf) is no error, and is never drawn."""
    scores = {"y": SCORES["y"].copy()}
    scores["y"][:, 1] = -np.inf
    labels = np.array([0, 3, 0, 2, 2, 0])
    o = task_loss(scores, labels)
    assert whole(o, scores) == 0.0
    nothing = np.zeros(N)  # the sum of p - onehot over the classes that are not masked, unless a masked one was drawn
    for seed in range(20):
        r = o.probe(scores, slice(0, N), np.random.default_rng(seed))["y"]
        assert_same(r.sum(axis=1), nothing, rtol=0.0, atol=1e-12)
    first = {"y": scores["y"][:, [1, 0, 2, 3]]}
    least: Any = Scripted(uniform=np.float64(0.0))
    r = task_loss(first, np.full(N, 2)).probe(first, slice(0, N), least)["y"]
    assert_same(r.sum(axis=1), nothing, rtol=0.0, atol=1e-12)
    with pytest.raises(CalibrationError, match="loss on sample 2 is not finite"):
        task_loss(scores, np.array([0, 3, 1, 2, 2, 0]))


def test_probability_of_zero():
    """A Softmax rounds to 0: the loss stays finite, and has no slope there."""
    p = {"y": np.array([[1.0, 0.0], [0.5, 0.5]], np.float32)}
    o = task_loss({"y": np.full((2, 2), 0.5)}, np.array([1, 0]), probabilities=True)
    found = o.value(p, slice(0, 2))
    assert_same(np.float64(found), np.float64((np.log(1e7) - np.log(2)) / 2), rtol=1e-9, atol=0.0)
    assert_same(o.gradient(p, slice(0, 2))["y"], np.array([[0, 0], [-1, 0]], np.float32), rtol=1e-6, atol=0.0)
    for seed in range(20):
        assert not o.probe(p, slice(0, 2), np.random.default_rng(seed))["y"][0, 1].any()


def test_many_classes_that_round_to_zero():
    """Fails where the least probability of half precision, 4,095 times over, is drawn instead of the sure class."""
    p = {"y": np.eye(1, 4096, dtype=np.float16).repeat(200, axis=0)}
    o = task_loss(p, np.zeros(200, int), probabilities=True)
    r = o.probe(p, slice(0, 200), np.random.default_rng(0))["y"]
    assert r[:, 0].all()
    assert not r[:, 1:].any()


def test_original_that_is_not_finite():
    """Such an output does not count, the others keep their mean; with none left there is nothing to measure."""
    broken = {"y": SCORES["y"].copy(), "z": SCORES["z"]}
    broken["y"][0, 0] = np.nan
    o = output_imitation(broken, N)
    assert o.names == ("z",)
    assert_same(
        np.float64(whole(o, OTHER)),
        np.float64(relative_error({"z": OTHER["z"]}, {"z": SCORES["z"]})),
        rtol=1e-12,
        atol=0.0,
    )
    assert output_imitation({"y": broken["y"]}, N).names == ()


def test_masked_entries_do_not_count():
    """Where both are the same infinity nothing differs, and no seed is sent; elsewhere the error is as without them."""
    y0, y = SCORES["y"].copy(), OTHER["y"].copy()
    masked = np.random.default_rng(0).random(y.shape) < 0.3
    y0[masked] = y[masked] = -np.inf
    o = output_imitation({"y": y0}, N)
    fine = np.where(masked, np.nan, y0.astype(np.float64))
    expected = np.nansum((np.where(masked, np.nan, y.astype(np.float64)) - fine) ** 2)
    expected /= np.nansum((fine - np.nanmean(fine, axis=0)) ** 2)
    assert_same(np.float64(whole(o, {"y": y})), expected, rtol=1e-9, atol=0.0)
    for seeds in (o.gradient({"y": y}, slice(0, N)), o.probe({"y": y}, slice(0, N), np.random.default_rng(0))):
        assert not seeds["y"][masked].any()
        assert seeds["y"][~masked].all()
    y[masked] = 0.0
    assert whole(o, {"y": y}) == np.inf


def test_rows_that_belong_to_no_sample():
    """An output of another length (the boxes that a detector kept) has no share for each sample."""
    assert output_imitation({"y": SCORES["y"], "n": np.ones((7, 2))}, N).names == ("y",)


# refusals


@every_case
def test_other_shapes(case: str):
    """Fails where numpy broadcasts one sample against another's."""
    make, _, other = CASES[case]
    o = make()
    with pytest.raises(ModelError, match=r"output 'y' has shape 1x4 where the original model gives 6x4"):
        o.value(rows(other, slice(0, 1)), slice(0, N))
    with pytest.raises(ModelError, match="has shape"):
        o.gradient({k: v[:, :1] for k, v in other.items()}, slice(0, N))


@pytest.mark.parametrize(
    ("outputs", "labels", "match"),
    [
        (SCORES, np.array([0, 1, 2, 3, 4, 0]), "labels run from 0 to 4, the model has the classes 0 to 3"),
        (SCORES, np.array([0, 1, 2, 3, -1, 0]), "labels run from -1 to 3"),
        ({"y": SCORES["z"]}, CLASSES, r"first output \(6x2x3\) holds no class scores"),
        ({"y": SCORES["y"][:, :1]}, CLASSES, r"first output \(6x1\) holds no class scores"),
        (SCORES, TARGETS[:, :3], "floating-point labels have shape 6x3, the first output has 6x4"),
        (SCORES, TARGETS[:3], "floating-point labels have shape 3x4"),
        (SCORES, np.where(TARGETS > 1, np.nan, TARGETS), "hold NaN or infinite values"),
        ({"y": np.arange(N)}, CLASSES, "floating point; the first output is int64"),
        ({}, CLASSES, "no tensor as output"),
    ],
)
def test_labels_that_do_not_fit(outputs: dict[str, Array], labels: Array, match: str):
    with pytest.raises(CalibrationError, match=match):
        task_loss(outputs, labels)
