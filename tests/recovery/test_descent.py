"""Descent: against its definition in dense algebra, the same for inputs of any scale, and through bad conditioning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.calibration.layers import Layer, layers_of
from onnxprune.recovery.descent import DAMPING, Descent
from tests.calibrated import prepare_text
from tests.compare import assert_same

Array = NDArray[Any]

NET = """(float[N,3,6,6] x) => (float[N,5] y) {
    a = Conv (x, w1[8,3,3,3], b1[8])
    r = Relu(a)
    d = Conv <group=8> (r, w2[8,1,2,2])
    f = Flatten(d)
    y = Gemm <transB=1> (f, w3[5,72], b3[5])
}"""


def state() -> tuple[dict[str, Array], tuple[Layer, ...], dict[str, Array]]:
    """(weights, layers, Gram matrices) with inputs that are correlated and of many sizes."""
    p = prepare_text(NET)
    rng = np.random.default_rng(0)
    layers = layers_of(p.channels)
    weights = {n: np.array(p.channels.graph.constants[n], np.float32) for x in layers for n in x.stored}
    grams = {}
    for x in layers:
        d = len(x.columns(0))
        rows = rng.normal(size=(x.groups, 4 * d, d)) @ rng.normal(size=(x.groups, d, d)) * 10 ** rng.uniform(-1, 1, d)
        if x.bias:
            rows[..., -1] = 1.0
        grams[x.weight] = rows.transpose(0, 2, 1) @ rows / rows.shape[1]
    return weights, layers, grams


@pytest.mark.parametrize("shared", [False, True])
def test_first_step_is_its_definition(shared: bool) -> None:
    """In units of the spread of the outputs over √D the first step is the sign of the gradient of V, or where a second
    moment is shared that gradient, of the size 1 in the mean."""
    weights, layers, grams = state()
    rng = np.random.default_rng(1)
    gradients = {k: rng.normal(size=w.shape).astype(np.float32) for k, w in weights.items()}
    before = {k: w.copy() for k, w in weights.items()}
    Descent(weights, layers, grams, shared=shared).step(gradients, 0.01)
    for x in layers:
        w, g = x.matrix(before), x.matrix(gradients)
        for i in range(x.groups):
            p = grams[x.weight][i]
            d = len(p)
            basis = np.linalg.inv(np.linalg.cholesky(p + DAMPING * np.trace(p) / d * np.eye(d))).T
            variance = np.diag(w[i].T @ p @ w[i]) - ((p[-1] @ w[i]) ** 2 if x.bias else 0.0)
            reach = np.sqrt(variance / d)
            turned = basis.T @ g[i] * reach
            direction = turned / np.sqrt(np.mean(turned**2)) if shared else np.sign(turned)
            expected = w[i] - 0.01 * basis @ direction * reach
            assert_same(x.matrix(weights)[i], expected, rtol=1e-3, atol=1e-5)


def test_arrays_change_in_place_and_keep_their_type() -> None:
    """Fails where a session that holds the arrays would go on with the old ones."""
    weights, layers, grams = state()
    same = dict(weights)
    descent = Descent(weights, layers, grams)
    before = {k: w.copy() for k, w in weights.items()}
    descent.step({k: np.ones_like(w) for k, w in weights.items()}, 0.01)
    for k, w in weights.items():
        assert w is same[k]
        assert w.dtype == np.float32
        assert (w != before[k]).any()


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_outputs_move_alike_whatever_the_scale_of_the_inputs(factor: float) -> None:
    """The same function of inputs in other units gets the same steps, in those units."""
    weights, layers, grams = state()
    (layer,) = [replace(x, bias="") for x in layers if x.weight == "w2"]  # a constant has a unit of its own
    gram = grams["w2"][:, :-1, :-1]
    other = {"w2": weights["w2"] / np.float32(factor)}
    found = []
    for held, scale in (({"w2": weights["w2"].copy()}, 1.0), (other, factor)):
        descent = Descent(held, [layer], {"w2": gram * scale**2})
        rng = np.random.default_rng(2)
        for _ in range(5):
            g = rng.normal(size=weights["w2"].shape)
            descent.step({"w2": np.asarray(g * scale, np.float32)}, 0.1)
        found.append(held["w2"].astype(np.float64) * scale)
    assert_same(found[1], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_outputs_move_alike_whatever_their_own_scale(shared: bool) -> None:
    """Fails where an output in small units, whose gradient is large then, takes all of a layer's step."""
    weights, layers, grams = state()
    (layer,) = [x for x in layers if x.weight == "w3"]
    units = np.array([0.3, 1.0, 4.0, 1.0, 10.0], np.float32)
    rng, found = np.random.default_rng(2), []
    gradient = rng.normal(size=(5, 73)).astype(np.float32)
    for scale in (np.ones_like(units), units):
        held = {"w3": weights["w3"] * scale[:, None], "b3": weights["b3"] * scale}
        by = gradient / scale[:, None]
        Descent(held, [layer], {"w3": grams["w3"]}, shared=shared).step({"w3": by[:, :72], "b3": by[:, 72]}, 0.1)
        found.append(held["w3"] / scale[:, None])
    assert_same(found[1], found[0], rtol=1e-3, atol=1e-5)


def test_what_is_in_no_layer_moves_relative_to_its_size() -> None:
    """Fails where parameters of a normalization stay, or move by the rate itself."""
    weights = {"gain": np.full(4, 2.0, np.float32), "shift": np.zeros(4, np.float32)}
    Descent(weights, (), {}).step({k: np.ones(4, np.float32) for k in weights}, 0.01)
    assert_same(weights["gain"], np.full(4, 1.98, np.float32), rtol=1e-5, atol=0.0)
    assert_same(weights["shift"], np.full(4, -0.001, np.float32), rtol=1e-5, atol=0.0)


def test_a_regression_is_solved() -> None:
    """Inputs over two orders of magnitude: fails where a step has the wrong sign, or bias and weights are mixed up."""
    weights, layers, grams = state()
    (layer,) = [x for x in layers if x.weight == "w3"]
    p = grams["w3"][0]
    goal = layer.matrix(weights)[0] + np.random.default_rng(3).normal(size=(len(p), 5)) * 0.3

    def excess() -> float:
        e = layer.matrix(weights)[0] - goal
        return float(np.trace(e.T @ p @ e))

    start = excess()
    descent = Descent(weights, [layer], grams)
    for step in range(100):
        gradient = layer.weights((p @ (layer.matrix(weights)[0] - goal))[None], weights)
        descent.step({k: gradient.get(k, w) for k, w in weights.items()}, 0.3 * (1 - step / 100))
    assert excess() < 0.02 * start
