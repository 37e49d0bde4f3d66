"""A network with gates on one group: its discrepancy and the gradient of it."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import pipeline
from onnxprune.calibrate.outputs import batches_of
from onnxprune.config import PruneConfig
from onnxprune.gated import GatedNetwork
from onnxprune.gates import by_group
from onnxprune.runtime import Session
from tests import digits
from tests.compare import assert_same


@pytest.fixture(scope="module")
def gated() -> tuple[GatedNetwork, int]:
    settings = PruneConfig(method="global", samples=64, round_to=1)
    loaded = pipeline.load(str(digits.path("resnet")), str(digits.CALIB), settings)
    coupled = pipeline.couple(loaded, settings)
    calibrated = pipeline.calibrate(loaded, coupled, settings)
    assert calibrated.goals is not None
    channels, goals = coupled.taken.channels, calibrated.goals
    g = next(g for g, found in by_group(channels, calibrated.gates).items() if len(found) == 1)
    gates = [calibrated.gates[i] for i in by_group(channels, calibrated.gates)[g]]
    batches = list(batches_of(loaded.fit, channels.graph, goals.fit_outputs))
    types = loaded.normalised.types
    return GatedNetwork(coupled.taken.proto, channels, g, gates, types, batches, goals.fit), channels.groups[g].size


def test_discrepancy_of_a_gated_network(gated: tuple[GatedNetwork, int]):
    """Nothing but the gates is fed: no seed of the reverse pass. All at 1 is the original, which costs nothing."""
    network, size = gated
    assert_same(network.at(np.ones(size)), 0.0, rtol=0.0, atol=1e-9)
    assert network.at(np.zeros(size)) > 1e-3
    assert isinstance(network._value, Session)


def test_gradient_is_the_slope_of_the_discrepancy(gated: tuple[GatedNetwork, int]):
    network, size = gated
    rng = np.random.default_rng(0)
    a, along = rng.uniform(0.4, 0.9, size), rng.normal(size=size)
    step = 3e-3
    slope = (network.at(a + step * along) - network.at(a - step * along)) / (2 * step)
    assert_same(float(network.gradient(a) @ along), slope, rtol=2e-2, atol=0.0)
