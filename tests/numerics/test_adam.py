"""Adam against torch's, and the learning rate's course."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.numerics.adam import Adam, one_cycle

STEPS = 20


def test_steps_are_those_of_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed: it is the oracle here")
    rng = np.random.default_rng(0)
    start = {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5)}
    ours = {k: w.copy() for k, w in start.items()}
    adam = Adam({k: w.shape for k, w in start.items()})
    theirs = {k: torch.tensor(w, requires_grad=True) for k, w in start.items()}
    optimizer = torch.optim.Adam(theirs.values())
    for step in range(STEPS):
        rate = 0.1 * one_cycle(step, STEPS)
        gradients = {k: rng.standard_normal(w.shape) for k, w in start.items()}
        for k, direction in adam.directions(gradients).items():
            ours[k] -= rate * direction
        optimizer.param_groups[0]["lr"] = rate
        for k, w in theirs.items():
            w.grad = torch.tensor(gradients[k])
        optimizer.step()
    for k, w in ours.items():
        np.testing.assert_allclose(w, theirs[k].detach().numpy(), rtol=1e-5, atol=1e-6)  # moments in float32


def test_a_shared_second_moment_keeps_proportions():
    """Against the recursion in double precision: fails where groups are mixed, or a mean is a sum."""
    rng = np.random.default_rng(0)
    adam = Adam({"a": (2, 3, 4), "b": (3,)}, shared=["a"])
    m, v = np.zeros((2, 3, 4)), np.zeros(2)
    for step in range(1, STEPS):
        g = rng.standard_normal((2, 3, 4)) * np.array([1.0, 1e3])[:, None, None]
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * np.array([np.mean(x**2) for x in g])
        expected = m / (1 - 0.9**step) / np.sqrt(v / (1 - 0.999**step))[:, None, None]
        found = adam.directions({"a": g, "b": np.array([1.0, -2.0, 0.5])})
        np.testing.assert_allclose(found["a"], expected, rtol=1e-4, atol=1e-6)  # moments in float32
        np.testing.assert_allclose(np.abs(found["b"]), 1.0, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 10, 200])
def test_the_rate_rises_then_falls(steps: int):
    """Fails where a run starts at full rate, or ends at one that does not settle."""
    rates = np.array([one_cycle(i, steps) for i in range(steps)])
    assert ((rates > 0) & (rates <= 1)).all()
    if steps > 2:
        top = int(rates.argmax())
        assert rates[top] == 1.0
        assert top == max(round(0.1 * steps), 1)
        assert (np.diff(rates[: top + 1]) > 0).all()
        assert (np.diff(rates[top:]) < 0).all()
        assert rates[-1] < 10 / steps**2 + 0.1
