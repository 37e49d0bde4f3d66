"""What is held out has no copy among what is fitted to, also where a plan is replayed with another seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import plan, prune
from onnxprune.config import PruneConfig
from onnxprune.data.inputs import InputSpec
from onnxprune.data.samples import Samples
from onnxprune.errors import InputError
from onnxprune.intake.figures import digests
from onnxprune.numerics.arrays import Array
from onnxprune.stages.load import opened, split

RNG = np.random.default_rng(0)


def samples(x: Array) -> Samples:
    return Samples((InputSpec("x", x.dtype, (None, *x.shape[1:])),), {"x": x})


def rows(part: Samples) -> list[bytes]:
    return [np.asarray(row).tobytes() for row in part.arrays["x"]]


@pytest.mark.parametrize(("distinct", "times", "held_out"), [(64, 1, 8), (32, 8, 4), (9, 3, 1), (7, 20, 0)])
@pytest.mark.parametrize("seed", [0, 3])
def test_copies_are_on_one_side(distinct: int, times: int, held_out: int, seed: int):
    """Fails where copies of what judges the fits were fitted to."""
    data = samples(np.tile(RNG.standard_normal((distinct, 3)).astype(np.float32), (times, 1)))
    fit, held = split(data, seed, digests(data))
    if not held_out:
        assert fit is data
        assert held is None
        return
    assert len(held) == held_out == len(set(rows(held)))
    assert not set(rows(fit)) & set(rows(held))
    assert len(fit) == (distinct - held_out) * times


def test_different_samples_are_divided_as_before():
    data = samples(RNG.standard_normal((64, 3)).astype(np.float32))
    for found, expected in zip(split(data, 5, digests(data)), split(data, 5), strict=True):
        assert rows(found) == rows(expected)
    order = np.random.default_rng(5).permutation(64)
    assert rows(split(data, 5)[1]) == rows(data.take(order[:8]))


@pytest.mark.parametrize("count", [8, 64])
def test_what_a_tolerance_chooses_by_is_not_what_is_reported_on(count: int):
    """Fails where the figures of a run with a tolerance are of samples that chose its channels, or were fitted to."""
    stored = [numpy_helper.from_array(RNG.standard_normal((3, 5)).astype(np.float32), "w")]
    x, y = (helper.make_tensor_value_info(k, TensorProto.FLOAT, ["N", n]) for k, n in (("x", 3), ("y", 5)))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = {"x": RNG.standard_normal((count, 3)).astype(np.float32)}
    found = opened(model, data, PruneConfig(tolerance=0.1), None)
    parts = [rows(p) for p in found.parts]
    assert sorted(r for part in parts for r in part) == sorted(rows(samples(data["x"])))
    assert found.held is found.held_out
    assert (found.deciding is found.held) == (count == 8)
    assert opened(model, data, PruneConfig(ratio=0.5), None).chosen_by is None


def test_a_replay_holds_out_what_its_plan_did(tmp_path: Path):
    """Fails where another seed, or a plan that such a replay has saved, holds out what chose the channels."""
    w, v = (RNG.standard_normal(shape).astype(np.float32) for shape in ((4, 32), (32, 6)))
    stored = [numpy_helper.from_array(a, k) for k, a in {"w": w, "v": v}.items()]
    nodes = [helper.make_node(*n) for n in (("MatMul", ["x", "w"], ["a"]), ("Relu", ["a"], ["r"]))]
    nodes.append(helper.make_node("MatMul", ["r", "v"], ["y"]))
    x, y = (helper.make_tensor_value_info(k, TensorProto.FLOAT, ["N", n]) for k, n in (("x", 4), ("y", 6)))
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = {"x": RNG.standard_normal((64, 4)).astype(np.float32)}
    first = prune(model, None, data, ratio=0.5, fast=True, seed=0).plan
    assert "split_seed" not in json.loads(first.to_json())
    held = rows(opened(model, data, first.settings(), first).held)
    again = prune(model, None, data, from_plan=first, seed=3).plan
    path = tmp_path / "plan.json"
    path.write_text(again.to_json(), encoding="utf-8")
    for chosen in (first, again, plan.load(path)):
        for seed in (0, 3, 4):
            settings = chosen.settings().with_options(seed=seed)
            assert rows(opened(model, data, settings, chosen).held) == held
    assert rows(opened(model, data, PruneConfig(ratio=0.5, seed=3), None).held) != held
    for wrong in (-1, 2**63, 1.5, True, "0"):
        path.write_text(json.dumps(json.loads(again.to_json()) | {"split_seed": wrong}), encoding="utf-8")
        with pytest.raises(InputError, match="seed of the split"):
            plan.load(path)
