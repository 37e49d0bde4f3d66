"""The reverse pass of real networks against torch's autograd, in single precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.gradients import backward
from onnxprune.graph import protobuf
from onnxprune.graph.view import Graph
from onnxprune.normalise import normalise
from onnxprune.runtime.session import Session
from tests.kit import NO_KIT, kit_folder

pytest.importorskip("torch", reason="torch is not installed: it is the oracle here")

from onnxprune.numerics.arrays import Array
from tests.gradients.torch_graph import evaluate, gradients

RELATIVE = 1e-3
CANCELLED = 1e-2
SEEDS = 20
READERS = ("Conv", "Gemm", "MatMul")
PARAMETERS = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "Gemm": (1, 2),
    "LayerNormalization": (1, 2),
    "MatMul": (1,),
    "PRelu": (1,),
}
PATTERNS = (
    "cifar10_resnet56_*",
    "cifar10_mlperftiny_resnet8",
    "imagenet_mobilenet_v2_1.0_224",
    "kws_mlperftiny_dscnn",
    "mnist_*",
)
FOUND = sorted(f for p in PATTERNS for f in (kit_folder() / "models").glob(f"{p}.onnx"))
NONE = [pytest.param(Path(), id="no-kit", marks=pytest.mark.skip(reason=NO_KIT))]


def _inputs(name: str, shape: tuple[int, ...], seed: int) -> dict[str, Array]:
    return {name: np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def _away_from_kinks(proto: onnx.ModelProto, graph: Graph, name: str, shape: tuple[int, ...]) -> dict[str, Array]:
    """Inputs on which rounding puts no value of the two libraries on different sides of a Relu's or Clip's kink.

    One value of some millions that is 5e-7 in one and -2e-7 in the other is 2e-3 of a gradient.
    """
    kinked = [(n.inputs[0], n.outputs[0]) for n in graph.nodes if n.op in ("Clip", "Relu")]
    session = Session(protobuf.submodel(proto, {}, [t for pair in kinked for t in pair])) if kinked else None
    for seed in range(SEEDS):
        feeds = _inputs(name, shape, seed)
        if session is None:
            return feeds
        here, there = session.run(feeds), evaluate(graph, feeds)[0]
        if all(np.array_equal(here[x] == here[y], (there[x] == there[y]).numpy()) for x, y in kinked):
            return feeds
    raise AssertionError(f"none of {SEEDS} inputs")


@pytest.mark.parametrize("path", [pytest.param(f, id=f.stem) for f in FOUND] or NONE)
def test_gradients_at_readers_and_of_weights_are_those_of_torch(
    path: Path, record_property: Callable[[str, object], None]
):
    """Each in norm; the shapes were measured on fewer samples than are run here."""
    proto = onnx.load(path)
    (name, sizes) = next((v.name, v.type.tensor_type.shape.dim) for v in proto.graph.input)
    few = 1 if "imagenet" in path.stem else 2
    sample = tuple(d.dim_value for d in sizes[1:])
    n = normalise(proto, _inputs(name, (few, *sample), 0))
    graph = protobuf.view(n.proto, n.shapes, n.known_values, n.binding)
    uses = [
        (node.index, slot)
        for node in graph.nodes
        if node.op in READERS
        for slot in range(2 if node.op == "MatMul" else 1)
        if node.inputs[slot] not in graph.constants
    ]
    uses += [
        (node.index, slot)
        for node in graph.nodes
        if node.op in PARAMETERS
        for slot in PARAMETERS[node.op]
        if node.input(slot) in graph.constants
    ]
    back = backward(n.proto, graph, n.types, uses=uses)
    assert not back.missing
    assert set(back.of_use) == set(uses)
    feeds = _away_from_kinks(n.proto, graph, name, (few + 1, *sample))
    forward = Session(protobuf.submodel(n.proto, {}, graph.outputs)).run(feeds)
    rng = np.random.default_rng(1)
    seeds = {o: rng.standard_normal(forward[o].shape).astype(np.float32) for o in back.seeds}
    found = Session(protobuf.submodel(back.proto, {}, dict.fromkeys(back.of_use.values()))).run(
        {**feeds, **{back.seeds[o]: s for o, s in seeds.items()}}
    )
    expected = gradients(graph, feeds, seeds, uses)
    errors = {}
    for use in uses:
        g, want = found[back.of_use[use]], expected[use]
        assert g.shape == want.shape
        # The bias in front of a normalization has a gradient of 0: it is measured by that of the weight beside it.
        beside = np.linalg.norm(expected[use[0], 1]) if use[1] == 2 else 0.0
        errors[use] = float(np.linalg.norm(g - want) / max(np.linalg.norm(want), CANCELLED * beside))
    worst = max(errors, key=lambda u: errors[u])
    record_property("largest relative error", errors[worst])  # for --junit-xml
    assert errors[worst] <= RELATIVE, (worst, errors[worst])
