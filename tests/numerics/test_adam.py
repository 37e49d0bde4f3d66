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
