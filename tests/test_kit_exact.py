"""Half of every model of the kit is cut away: what is left computes exactly what the oracle says."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnxprune.channels import branches
from onnxprune.config import ATTENTIONS
from onnxprune.graph import protobuf
from onnxprune.intake import model_file
from onnxprune.runtime.session import Session
from onnxprune.surgery import settle
from tests.compare import assert_same
from tests.kit import has_batch, kit_feeds, kit_models
from tests.prepared import Prepared, masked, prepare, random_keep, sliced


@pytest.mark.parametrize("path", kit_models("models", "arch", "wild"))
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_half_of_the_channels(path: Path, attention: str):
    """Fails where any axis, index, size or shared weight of a real export is not cut with the rest."""
    proto, _ = model_file.load(path)
    example = kit_feeds(path, proto, 2 if has_batch(proto) else 1)
    p = prepare(proto, example, attention)
    if attention != ATTENTIONS[0] and not _multiplies_activations(p):
        pytest.skip("no product of two activations: the channels are those of the other units")
    assert p.channels.groups
    keep = random_keep(p.channels, 0, shares=(0.5,))
    small, oracle = sliced(p, keep), masked(p, keep)
    protobuf.check(small)
    session, reference, original = Session(small), Session(oracle), Session(proto)
    for batch in (2, 3) if has_batch(proto) else (1,):
        feeds = kit_feeds(path, proto, batch)
        before, expected = original.run(feeds), reference.run(feeds)
        normal = Session(p.normalised.proto).run(feeds)
        for output, value in session.run(feeds).items():
            assert_same(normal[output], before[output], rtol=1e-5, atol=0.0)
            assert_same(value, expected[output], rtol=1e-4, atol=0.0)
    assert list(small.graph.output) == list(proto.graph.output)
    assert protobuf.parameters(small) < protobuf.parameters(p.normalised.proto)


@pytest.mark.parametrize("path", kit_models("models", "arch", "wild"))
def test_whole_branches(path: Path):
    """Fails where something of a real export goes with a branch, or stays of it, that does not belong there."""
    proto, _ = model_file.load(path)
    p = prepare(proto, kit_feeds(path, proto, 2 if has_batch(proto) else 1))
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
        for batch in (2, 3) if has_batch(proto) else (1,):
            feeds = kit_feeds(path, proto, batch)
            expected = Session(masked(p, keep)).run(feeds)
            for output, value in Session(small).run(feeds).items():
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
