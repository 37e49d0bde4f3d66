"""Whole models from their layers: the numbers that made them are found again."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.latency import whole


def test_the_constant_and_the_factor_of_each_layer_are_found():
    rng = np.random.default_rng(0)
    seconds = rng.uniform(0.2, 1.0, (40, 5)) * 1e-4
    weights = np.array([900.0, 1000.0, 1100.0, 1050.0, 950.0])
    shares = 0.3 + seconds @ weights
    found = whole.fit(seconds, shares)
    assert found.at(seconds) == pytest.approx(shares, rel=2e-3)
    assert found.constant == pytest.approx(0.3, rel=0.05)
    assert found.weights == pytest.approx(weights, rel=0.05)


def test_few_models_have_one_factor_for_all_layers():
    seconds = np.array([[1.0, 2.0], [0.5, 1.5], [0.25, 1.0]]) * 1e-3
    found = whole.fit(seconds, 0.1 + 200.0 * seconds.sum(axis=1))
    assert found.constant == pytest.approx(0.1)
    assert found.weights == pytest.approx([200.0, 200.0])


def test_a_layer_that_was_hardly_seen_has_the_factor_of_the_others():
    """Fails where a layer that explains nothing goes for nothing: then it would be cut for its time in vain."""
    rng = np.random.default_rng(1)
    seconds = rng.uniform(0.2, 1.0, (20, 4)) * 1e-4
    seconds[:, 3] = 1e-9
    found = whole.fit(seconds, 0.2 + 2000.0 * seconds.sum(axis=1))
    assert found.weights[3] == pytest.approx(2000.0, rel=0.02)


def test_what_is_never_quicker_is_constant():
    seconds = np.array([[1.0], [0.5], [0.25], [0.2], [0.1]])
    found = whole.fit(seconds, np.array([1.0, 1.01, 1.02, 1.03, 1.04]))
    assert found.weights == pytest.approx([0.0])
    assert found.constant == pytest.approx(1.02, rel=0.02)


def test_the_ridge_goes_by_what_is_left_out():
    """Fails where noise in whole models is taken for factors of layers, or quiet ones are not believed."""
    rng = np.random.default_rng(2)
    seconds = rng.uniform(0.2, 1.0, (24, 8)) * 1e-4
    factors = rng.uniform(0.3, 2.0, 8) * 1000.0
    assert whole.fit(seconds, 0.1 + seconds @ factors).prior < 0.03
    alike = 0.1 + 1000.0 * seconds.sum(axis=1)
    assert whole.fit(seconds, alike * (1.0 + 0.1 * rng.standard_normal(24))).prior >= 0.1
