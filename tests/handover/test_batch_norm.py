"""Normalisations taken out of layers, against the layer and the normalisation computed one after the other."""

from __future__ import annotations

import numpy as np

from onnxprune.handover.batch_norm import folded_into, scales_between, unfolded
from tests.compare import assert_same

_RNG = np.random.default_rng(0)


def parts(width: int, module: str, gamma: np.ndarray | None = None) -> dict[str, np.ndarray]:
    return {
        f"{module}.weight": _RNG.normal(size=width) if gamma is None else gamma,
        f"{module}.bias": _RNG.normal(size=width),
        f"{module}.running_mean": _RNG.normal(size=width),
        f"{module}.running_var": _RNG.random(width) + 0.1,
    }


def normalised(y: np.ndarray, state: dict[str, np.ndarray], module: str, epsilon: float) -> np.ndarray:
    gamma, beta, mean, variance = (state[f"{module}.{k}"] for k in ("weight", "bias", "running_mean", "running_var"))
    return gamma * (y - mean) / np.sqrt(variance + epsilon) + beta


def test_the_right_one_is_found_and_taken_out():
    """By its values among three, with an ε that nobody told, and of weights that were fitted anew."""
    state = parts(4, "a") | parts(4, "b") | parts(3, "c")
    weight, bias, epsilon = _RNG.normal(size=(4, 5)), _RNG.normal(size=4), 2e-3
    scale = state["b.weight"] / np.sqrt(state["b.running_var"] + epsilon)
    folded = scale[:, None] * weight
    shift = scale * (bias - state["b.running_mean"]) + state["b.bias"]
    s = scales_between(folded, weight, 0)
    assert s is not None
    found = folded_into("x", s, shift, bias, state)
    assert found is not None and found.module == "b" and abs(found.epsilon - epsilon) < 1e-8
    kept = np.array([True, False, True, True])
    fitted, fitted_bias = _RNG.normal(size=(3, 5)), _RNG.normal(size=3)
    apart = unfolded(fitted, fitted_bias, bias[kept], found, state, kept)
    x = _RNG.normal(size=(7, 5))
    own = {f"b.{k}": v for k, v in apart.normalisation.items()}
    out = normalised(x @ apart.weight.T + bias[kept], own, "b", epsilon)
    assert_same(out, x @ fitted.T + fitted_bias, rtol=1e-9, atol=1e-9)


def test_a_channel_of_no_scale_still_gives_what_was_fitted():
    state = parts(2, "a", gamma=np.array([0.0, 1.5]))
    weight, epsilon = _RNG.normal(size=(2, 3)), 1e-5
    scale = state["a.weight"] / np.sqrt(state["a.running_var"] + epsilon)
    s = scales_between(scale[:, None] * weight, weight, 0)
    assert s is not None
    found = folded_into("x", s, state["a.bias"] - scale * state["a.running_mean"], 0.0, state)
    assert found is not None
    fitted, bias = _RNG.normal(size=(2, 3)), _RNG.normal(size=2)
    apart = unfolded(fitted, bias, 0.0, found, state, np.ones(2, bool))
    x = _RNG.normal(size=(7, 3))
    own = {f"a.{k}": v for k, v in apart.normalisation.items()}
    assert_same(normalised(x @ apart.weight.T, own, "a", epsilon), x @ fitted.T + bias, rtol=1e-6, atol=1e-6)


def test_of_equal_ones_the_nearest_is_taken():
    """An untrained network has normalisations that are all alike."""
    fresh = {"weight": np.ones(4), "bias": np.zeros(4), "running_mean": np.zeros(4), "running_var": np.ones(4)}
    modules = ("layer1.0.bn1", "layer1.0.bn2", "layer1.1.bn1", "layer1.0.downsample.1")
    state = {f"{m}.{k}": v for m in modules for k, v in fresh.items()}
    scale, zero = np.full(4, 1 / np.sqrt(1 + 1e-5)), np.zeros(4)
    near = {"layer1.0.conv1": "layer1.0.bn1", "layer1.0.conv2": "layer1.0.bn2",
            "layer1.0.downsample.0": "layer1.0.downsample.1", "layer1.1.conv1": "layer1.1.bn1"}  # fmt: skip
    for layer, module in near.items():
        found = folded_into(layer, scale, zero, 0.0, state)
        assert found is not None and found.module == module, layer


def test_weights_that_are_no_multiple_are_none():
    weight = _RNG.normal(size=(4, 5))
    assert scales_between(weight + 0.01 * _RNG.normal(size=(4, 5)), weight, 0) is None
    assert folded_into("x", np.ones(4), np.zeros(4), 0.0, parts(4, "a")) is None
