"""What goes by the statistics of activations: scores, what stays, and means that become a bias."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from benchmarks.accuracy import peers_statistics
from benchmarks.accuracy.case import Case
from benchmarks.accuracy.runs import Run
from onnxprune.runtime.session import Session
from tests.compare import assert_same
from tests.transformer import INNER, SIZE, features, transformer

LAYERS = 2
Array = NDArray[np.floating]


def answers(model: onnx.ModelProto, feeds: dict[str, Array], *more: str) -> list[Array]:
    """The output, then these tensors."""
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    seen.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in more)
    session = Session(seen)
    return list(session.run(feeds, [session.outputs[0], *more]).values())


def reads(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """(what it reads, weight) of the products that read heads or inner units, found by the sizes of their weights."""
    sizes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    wide = [(n.input[0], n.input[1]) for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in sizes]
    return [(x, w) for x, w in wide if sizes[w][0] == INNER or w.endswith("output.weight")]


@pytest.mark.parametrize("tool", ["flap", "vbp"])
def test_what_goes_is_replaced_by_its_mean(tmp_path: Path, tool: str):
    """Oracle: the original whose last products read the mean in place of each unit that goes, chosen in numpy."""
    model = transformer(layers=LAYERS)
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(model, path)
    data = features(40)
    case = Case(Run("net", 0.2, tool, samples=40), path, data, out, 1)
    found = peers_statistics.remove(case)
    assert 0.8 <= found["macs_left"] < 0.82

    weights = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    ends = [(x, w) for x, w in reads(model) if tool == "flap" or weights[w].shape[0] == INNER]
    assert len(ends) == (2 * LAYERS if tool == "flap" else LAYERS)
    cut = {t.name: tuple(t.dims) for t in onnx.load(out).graph.initializer}
    seen = dict(zip([x for x, _ in ends], answers(model, data, *(x for x, _ in ends))[1:], strict=True))
    gone: dict[str, NDArray[np.int64]] = {}
    lost, stay = [], []
    for x, w in ends:
        block = 1 if weights[w].shape[0] == INNER else SIZE
        variance = seen[x].reshape(-1, weights[w].shape[0]).astype(np.float64).var(0)
        score = variance * (np.square(weights[w]).sum(1) if tool == "flap" else 1.0)
        score = score.reshape(-1, block).mean(1)
        if tool == "flap":
            score = (score - score.mean()) / score.std(ddof=1)
        order = np.argsort(score)
        count = score.size - cut[w][0] // block
        gone[x] = (order[:count, None] * block + np.arange(block)).ravel()
        if block == 1:  # heads may be passed over, as one may be more than what is left to take
            lost += score[order[:count]].tolist()
            stay += score[order[count:-1]].tolist()
    assert max(lost) <= min(stay)
    assert len(lost) > LAYERS

    replaced = onnx.ModelProto()
    replaced.CopyFrom(model)
    nodes = list(replaced.graph.node)
    for x, w in ends:
        mask = np.ones(weights[w].shape[0], np.float32)
        mask[gone[x]] = 0
        mean = seen[x].reshape(-1, mask.size).mean(0) * (1 - mask)
        at = next(k for k, n in enumerate(nodes) if w in n.input)
        nodes[at].input[0] = f"{x}/replaced"
        nodes.insert(at, onnx.helper.make_node("Add", [f"{x}/masked", f"{x}/mean"], [f"{x}/replaced"]))
        nodes.insert(at, onnx.helper.make_node("Mul", [x, f"{x}/mask"], [f"{x}/masked"]))
        replaced.graph.initializer.append(onnx.numpy_helper.from_array(mask, f"{x}/mask"))
        replaced.graph.initializer.append(onnx.numpy_helper.from_array(mean.astype(np.float32), f"{x}/mean"))
    del replaced.graph.node[:]
    replaced.graph.node.extend(nodes)
    [expected], [pruned] = answers(replaced, data), answers(onnx.load(out), data)
    assert_same(pruned, expected, rtol=1e-4, atol=1e-5)
    [whole] = answers(model, data)
    assert np.abs(whole - expected).max() > 1e-3


def test_without_data_it_says_so(tmp_path: Path):
    path = tmp_path / "model.onnx"
    onnx.save(transformer(layers=1), path)
    with pytest.raises(ValueError, match="vbp has no data of its own"):
        peers_statistics.remove(Case(Run("net", 0.2, "vbp"), path, None, tmp_path / "out.onnx", 1))
