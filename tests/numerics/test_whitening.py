"""Whitening: against numpy's Cholesky factor, and against the outputs that it is to even out."""

import numpy as np
import pytest

from onnxprune.numerics.least_squares import SolveFailed
from onnxprune.numerics.whitening import output_spread, whitening

RNG = np.random.default_rng(0)


def gram(columns: int, rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Correlated inputs with a constant, and their second moments."""
    x = RNG.normal(size=(rows, columns - 1)) @ RNG.normal(size=(columns - 1, columns - 1))
    x = np.hstack([x, np.ones((rows, 1))])
    return x, x.T @ x / rows


def test_the_basis_is_the_transposed_inverse_of_the_factor_of_the_damped_gram():
    p = np.stack([gram(5)[1], gram(5)[1]])
    for found, one in zip(whitening(p, 0.1), p, strict=True):
        damped = one + 0.1 * np.trace(one) / 5 * np.eye(5)
        np.testing.assert_allclose(found, np.linalg.inv(np.linalg.cholesky(damped)).T, rtol=1e-5, atol=1e-6)


def test_inputs_are_white_without_damping():
    x, p = gram(7)
    z = x @ whitening(p[None], 1e-9)[0].astype(np.float64)
    np.testing.assert_allclose(z.T @ z / len(z), np.eye(7), atol=1e-4)


def test_a_step_of_eta_in_every_coordinate_moves_outputs_by_eta_root_d():
    x, p = gram(40, 4000)
    steps = 0.01 * RNG.choice([-1.0, 1.0], size=(40, 300))
    moved = x @ (whitening(p[None], 1e-9)[0] @ steps)
    np.testing.assert_allclose(np.sqrt((moved**2).mean(axis=0)), 0.01 * np.sqrt(40), rtol=1e-2)


def test_dead_inputs_leave_the_weights_movable():
    assert np.isfinite(whitening(np.zeros((1, 3, 3)), 0.1)).all()


@pytest.mark.parametrize("bad", [np.diag([1.0, -5.0]), np.full((2, 2), np.nan)])
def test_what_is_no_gram_is_refused(bad):
    with pytest.raises(SolveFailed):
        whitening(bad[None], 0.1)


def test_output_spread():
    x, p = gram(6)
    w = RNG.normal(size=(6, 3))
    np.testing.assert_allclose(output_spread(p[None], w[None], constant=True)[0], (x @ w).std(axis=0), rtol=1e-6)
    root = np.sqrt(((x @ w) ** 2).mean(axis=0))
    np.testing.assert_allclose(output_spread(p[None], w[None], constant=False)[0], root, rtol=1e-6)


def test_an_output_that_does_not_vary_counts_a_little():
    _, p = gram(6)
    w = RNG.normal(size=(6, 3))
    w[:, 0] = 0.0
    found = output_spread(p[None], w[None], constant=True)[0]
    np.testing.assert_allclose(found[0], 0.01 * found[1:].sum() / 3, rtol=1e-6)
