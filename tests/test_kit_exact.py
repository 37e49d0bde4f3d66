"""Half of every model of the kit is cut away: what is left computes exactly what the oracle says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from onnxprune.channels import branches
from onnxprune.config import ATTENTIONS
from onnxprune.graph import protobuf
from onnxprune.intake import model_file
from onnxprune.normalise import Normalised, normalise
from onnxprune.runtime.session import Session
from onnxprune.surgery import settle
from tests.compare import assert_same
from tests.kit import has_batch, kit_feeds, kit_models
from tests.prepared import Array, Prepared, masked, random_keep, sliced, traced


@dataclass(frozen=True, eq=False)
class Network:
    """A model of the kit, normalised once for all tests of this file, which may not edit it."""

    path: Path
    proto: onnx.ModelProto
    example: Mapping[str, Array]
    normalised: Normalised

    def traced(self, attention: str = ATTENTIONS[0]) -> Prepared:
        """Its channels."""
        return traced(self.proto, self.example, self.normalised, attention)


@pytest.fixture(scope="module", params=kit_models("models", "arch", "wild"))
def network(request: pytest.FixtureRequest) -> Network:
    """Every model of the kit, with all tests of one before the next."""
    proto, _ = model_file.load(request.param)
    example = kit_feeds(request.param, proto, 2 if has_batch(proto) else 1)
    return Network(request.param, proto, example, normalise(proto, example))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_half_of_the_channels(network: Network, attention: str):
    """Fails where any axis, index, size or shared weight of a real export is not cut with the rest."""
    path, proto, p = network.path, network.proto, network.traced(attention)
    if attention != ATTENTIONS[0] and not _multiplies_activations(p):
        pytest.skip("no product of two activations: the channels are those of the other units")
    assert p.channels.groups
    keep = random_keep(p.channels, 0, shares=(0.5,))
    small, oracle = sliced(p, keep), masked(p, keep)
    protobuf.check(small)
    session, reference, original = Session(small), Session(oracle), Session(proto)
    normal_form = Session(p.normalised.proto)
    for batch in (2, 3) if has_batch(proto) else (1,):
        feeds = kit_feeds(path, proto, batch)
        before, expected = original.run(feeds), reference.run(feeds)
        normal = normal_form.run(feeds)
        for output, value in session.run(feeds).items():
            assert_same(normal[output], before[output], rtol=1e-5, atol=0.0)
            assert_same(value, expected[output], rtol=1e-4, atol=0.0)
    assert list(small.graph.output) == list(proto.graph.output)
    assert protobuf.parameters(small) < protobuf.parameters(p.normalised.proto)


def test_whole_branches(network: Network):
    """Fails where something of a real export goes with a branch, or stays of it, that does not belong there."""
    path, proto, p = network.path, network.proto, network.traced()
    found = list(branches.drops(p.channels))
    if not found:
        pytest.skip("no group of it is a branch that may go as a whole")
    for groups in ([found[0]], [found[-1]], branches.together(p.channels, found)):
        keep = random_keep(p.channels, 0, shares=(0.5,))
        for g in groups:
            keep[p.channels.groups[g].units] = False
        left = branches.left_of(p.channels, keep)
        assert left is not None
        small = settle(sliced(p, keep), p.channels, left)
        protobuf.check(small)
        session, reference = Session(small), Session(masked(p, keep))
        for batch in (2, 3) if has_batch(proto) else (1,):
            feeds = kit_feeds(path, proto, batch)
            expected = reference.run(feeds)
            for output, value in session.run(feeds).items():
                assert_same(value, expected[output], rtol=1e-4, atol=0.0)
        gone = {o for n in p.channels.graph.nodes if n.index in left.gone for o in n.outputs}
        assert gone
        assert not gone & {o for n in small.graph.node for o in n.output}
        assert _empty(small) <= _empty(p.normalised.proto)  # an absent region of interest of Resize, say


def _empty(proto: onnx.ModelProto) -> set[str]:
    return {t.name for t in proto.graph.initializer if 0 in t.dims}


def _multiplies_activations(p: Prepared) -> bool:
    graph = p.channels.graph
    products = (n for n in graph.nodes if n.op in ("MatMul", "Einsum"))
    return any(not any(i in graph.constants for i in n.inputs) for n in products)
