"""The true discrepancy in one group's gates, against the masked oracle and central differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxprune.calibration.gated_network import GatedNetwork
from onnxprune.calibration.probe import Batch
from onnxprune.channels.gates import by_group, gates_of
from onnxprune.graph.unrounded import is_quantized, without_rounding
from onnxprune.numerics.arrays import Array
from onnxprune.objective import output_imitation
from onnxprune.runtime.session import Session
from tests.compare import assert_same
from tests.gating import STEP
from tests.prepared import Prepared, comparable, masked, random_keep

Lookup = Callable[[str], Prepared]
ROWS = (
    "plain",
    "residual",
    "dense_concat",
    "depthwise",
    "grouped_few_large",
    "squeeze_excite",
    "two_layouts",
    "option_a_shortcut",
    "kernel_square",
    "attention_by_parts_positions",
    "batch_of_one",
    "quantized",
    "lstm_bidirectional",
)


def networks(p: Prepared) -> tuple[dict[int, GatedNetwork], Callable[[dict[str, Array]], float]]:
    """One for each group that has gates, and the discrepancy of given outputs."""
    proto = p.normalised.proto
    reference = comparable(proto).run(p.example)
    count = len(next(iter(p.example.values())))
    objective = output_imitation(reference, count)
    gates = gates_of(p.channels)
    batches = [Batch(p.example, {}, slice(0, count), count)]
    found = {
        g: GatedNetwork(proto, p.channels, g, [gates[i] for i in own], p.normalised.types, batches, objective)
        for g, own in by_group(p.channels, gates).items()
    }
    return found, lambda outputs: objective.value(outputs, slice(0, count))


# A recurrent net also reads its hidden units inside, where no gate stands.
@pytest.mark.parametrize("name", [r for r in ROWS if not r.startswith("lstm")])
def test_a_mask_gives_the_discrepancy_of_the_oracle(name: str, prepared: Lookup) -> None:
    """Fails where the uncut network differs from itself, or a gate of 0 is not the removal of its channel."""
    p = prepared(name)
    found, value = networks(p)
    most = 0.0
    for g, network in found.items():
        group = p.channels.groups[g]
        assert abs(network.at(np.ones(group.size))) < 1e-9
        keep = random_keep(p.channels, 1, shares=(0.5,))[group.units]
        expected = value(comparable(masked(p, p.channels.keep_classes({g: keep}))).run(p.example))
        most = max(most, expected)
        assert_same(np.float64(network.at(keep.astype(float))), np.float64(expected), rtol=1e-4, atol=1e-9)
    assert most > 1e-3


@pytest.mark.parametrize("name", ROWS)
def test_the_gradient_is_that_of_differences(name: str, prepared: Lookup) -> None:
    """Fails where a gate's gradient is another's, or that of the uncut network."""
    p = prepared(name)
    found, _ = networks(p)
    for g, network in found.items():
        size = p.channels.groups[g].size
        a = np.random.default_rng(g).uniform(0.3, 1.5, size)
        steps = STEP * np.eye(size)
        expected = np.array([(network.at(a + e) - network.at(a - e)) / (2 * STEP) for e in steps])
        assert_same(network.gradient(a), expected, rtol=1e-2, atol=1e-6)


def test_what_has_no_gradient_is_refused(prepared: Lookup) -> None:
    """Fails where an operator without a rule is taken for one that changes nothing."""
    p = prepared("unknown_operator")
    with pytest.raises(ValueError, match="no rule for its gradient"):
        networks(p)


def test_quantized_models_are_smooth(prepared: Lookup) -> None:
    """Fails where the rounding of activations, whose slope is 0, is differentiated."""
    p = prepared("quantized")
    assert is_quantized(p.normalised.proto)
    y = Session(without_rounding(p.normalised.proto), optimize=False).run(p.example)
    assert_same(y["y"], comparable(p.normalised.proto).run(p.example)["y"], rtol=0.0, atol=0.0)
    for g, network in networks(p)[0].items():
        assert np.abs(network.gradient(np.full(p.channels.groups[g].size, 0.5))).min() > 0.0
