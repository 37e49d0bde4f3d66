"""The reverse pass of real networks against torch's autograd, in single precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune import model as m
from onnxprune.gradients import backward
from onnxprune.normalise import normalise
from onnxprune.runtime import Session
from tests.kit import NO_KIT, kit_folder

pytest.importorskip("torch", reason="torch is not installed: it is the oracle here")

from tests.gradients.torch_graph import gradients

RELATIVE = 1e-3
READERS = ("Conv", "Gemm", "MatMul")
PATTERNS = (
    "cifar10_resnet56_*",
    "cifar10_mlperftiny_resnet8",
    "imagenet_mobilenet_v2_1.0_224",
    "kws_mlperftiny_dscnn",
    "mnist_*",
)
FOUND = sorted(f for p in PATTERNS for f in (kit_folder() / "models").glob(f"{p}.onnx"))
NONE = [pytest.param(Path(), id="no-kit", marks=pytest.mark.skip(reason=NO_KIT))]


@pytest.mark.parametrize("path", [pytest.param(f, id=f.stem) for f in FOUND] or NONE)
def test_gradients_at_every_reader_are_those_of_torch(path: Path, record_property: pytest.FixtureRequest):
    """Each in norm; the shapes were measured on fewer samples than are run here."""
    proto = onnx.load(path)
    (name, sizes) = next((v.name, v.type.tensor_type.shape.dim) for v in proto.graph.input)
    few = 1 if "imagenet" in path.stem else 2
    x = np.random.default_rng(0).standard_normal((few + 1, *(d.dim_value for d in sizes[1:]))).astype(np.float32)
    n = normalise(proto, {name: x[:few]})
    graph = m.view(n.proto, n.shapes, n.known_values, n.binding)
    uses = [
        (node.index, slot)
        for node in graph.nodes
        if node.op in READERS
        for slot in range(2 if node.op == "MatMul" else 1)
        if node.inputs[slot] not in graph.constants
    ]
    back = backward(n.proto, graph, n.types, uses=uses)
    assert not back.missing
    assert set(back.of_use) == set(uses)
    forward = Session(m.submodel(n.proto, {}, graph.outputs)).run({name: x})
    rng = np.random.default_rng(1)
    seeds = {o: rng.standard_normal(forward[o].shape).astype(np.float32) for o in back.seeds}
    found = Session(m.submodel(back.proto, {}, dict.fromkeys(back.of_use.values()))).run(
        {name: x, **{back.seeds[o]: s for o, s in seeds.items()}}
    )
    outputs, expected = gradients(graph, {name: x}, seeds, uses)
    for o, y in outputs.items():
        np.testing.assert_allclose(forward[o], y, rtol=1e-3, atol=1e-3 * float(np.abs(y).max()))
    errors = {}
    for use in uses:
        g, want = found[back.of_use[use]], expected[use]
        assert g.shape == want.shape
        errors[use] = float(np.linalg.norm(g - want) / np.linalg.norm(want))
    record_property("largest relative error", max(errors.values()))
    print(path.stem, "largest relative error", max(errors.values()))
    assert max(errors.values()) <= RELATIVE, max(errors, key=lambda u: errors[u])
