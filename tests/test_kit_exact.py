"""Half of every model of the kit is cut away: what is left computes exactly what the oracle says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune import model as m
from onnxprune.config import ATTENTIONS
from onnxprune.runtime import Session
from tests.compare import assert_same
from tests.kit import kit_models
from tests.stages import Array, Prepared, masked, prepare, random_keep, sliced

# Inputs whose sizes a model does not declare but demands: a voice detector's window, state and sampling rate.
_DEMANDED: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "silero_vad_op18_ifless": {"input": (-1, 512), "state": (2, -1, 128), "sr": ()}
}
_SAMPLING_RATE = 16000


def _feeds(path: Path, proto: onnx.ModelProto, batch: int) -> dict[str, Array]:
    """Random inputs: the first symbolic axis is the batch, the others 16 positions."""
    weights = {t.name for t in proto.graph.initializer}
    demanded = _DEMANDED.get(path.stem, {})
    rng = np.random.default_rng(batch)
    feeds: dict[str, Array] = {}
    for v in proto.graph.input:
        if v.name in weights:
            continue
        dims = v.type.tensor_type.shape.dim
        shape = [d.dim_value or (batch if i == 0 else 16) for i, d in enumerate(dims)]
        if v.name in demanded:
            shape = [batch if s == -1 else s for s in demanded[v.name]]
        kind = onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)
        if np.issubdtype(kind, np.floating):
            feeds[v.name] = rng.standard_normal(shape).astype(kind)
        else:
            feeds[v.name] = np.full(shape, _SAMPLING_RATE if v.name == "sr" else 1, kind)
    return feeds


@pytest.mark.parametrize("path", kit_models("models", "arch", "wild"))
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_half_of_the_channels(path: Path, attention: str):
    """Fails where any axis, index, size or shared weight of a real export is not cut with the rest."""
    proto, _ = m.load(path)
    example = _feeds(path, proto, 2 if _has_batch(proto) else 1)
    p = prepare(proto, example, attention)
    if attention != ATTENTIONS[0] and not _multiplies_activations(p):
        pytest.skip("no product of two activations: the channels are those of the other units")
    assert p.channels.groups
    keep = random_keep(p.channels, 0, shares=(0.5,))
    small, oracle = sliced(p, keep), masked(p, keep)
    m.check(small)
    session, reference, original = Session(small), Session(oracle), Session(proto)
    for batch in (2, 3) if _has_batch(proto) else (1,):
        feeds = _feeds(path, proto, batch)
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


def _has_batch(proto: onnx.ModelProto) -> bool:
    weights = {t.name for t in proto.graph.initializer}
    first = next(v for v in proto.graph.input if v.name not in weights)
    return not first.type.tensor_type.shape.dim[0].HasField("dim_value")
