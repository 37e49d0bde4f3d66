"""Half of every model of the kit is cut away: what is left computes exactly what the oracle says."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxprune import model as m
from onnxprune.config import ATTENTIONS
from onnxprune.runtime import Session
from tests.compare import assert_same
from tests.kit import has_batch, kit_feeds, kit_models
from tests.stages import Prepared, masked, prepare, random_keep, sliced


@pytest.mark.parametrize("path", kit_models("models", "arch", "wild"))
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_half_of_the_channels(path: Path, attention: str):
    """Fails where any axis, index, size or shared weight of a real export is not cut with the rest."""
    proto, _ = m.load(path)
    example = kit_feeds(path, proto, 2 if has_batch(proto) else 1)
    p = prepare(proto, example, attention)
    if attention != ATTENTIONS[0] and not _multiplies_activations(p):
        pytest.skip("no product of two activations: the channels are those of the other units")
    assert p.channels.groups
    keep = random_keep(p.channels, 0, shares=(0.5,))
    small, oracle = sliced(p, keep), masked(p, keep)
    m.check(small)
    session, reference, original = Session(small), Session(oracle), Session(proto)
    for batch in (2, 3) if has_batch(proto) else (1,):
        feeds = kit_feeds(path, proto, batch)
        before, expected = original.run(feeds), reference.run(feeds)
        normal = Session(p.normalised.proto).run(feeds)
        for output, value in session.run(feeds).items():
            assert_same(normal[output], before[output], rtol=1e-5, atol=0.0)
            assert_same(value, expected[output], rtol=1e-4, atol=0.0)
    assert list(small.graph.output) == list(proto.graph.output)
    assert m.parameters(small) < m.parameters(p.normalised.proto)


def _multiplies_activations(p: Prepared) -> bool:
    graph = p.channels.graph
    products = (n for n in graph.nodes if n.op in ("MatMul", "Einsum"))
    return any(not any(i in graph.constants for i in n.inputs) for n in products)
