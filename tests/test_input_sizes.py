"""A whole run and the sizes of its inputs: what was compared, and what a measured size in the result leads to."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import pipeline
from onnxprune.errors import CheckFailed
from onnxprune.normalise import resized, together
from onnxprune.stages import finish, rewrite, save
from onnxprune.verification import checks
from tests.topologies.sizes import THERE_AND_BACK
from tests.topologies.text import Topology

ONE_LENGTH = Topology(
    """(float[N,L,4] x) => (float[N,5] y) {
        f = Reshape(x, flat{0,20})
        a = MatMul(f, w1[20,8])
        r = Relu(a)
        y = MatMul(r, w2[8,5])
    }""",
    (8,),
)


def _pruned(row: Topology, *shape: int, **options: Any) -> save.PruneResult:
    x = np.random.default_rng(0).standard_normal((16, *shape)).astype(np.float32)
    return pipeline.prune(row.model(), options.pop("output", None), {"x": x}, ratio=0.3, recover=0, **options)


def _baking(step: Any) -> Any:
    """`step` of the run, after which the size between the two Resizes is that of the calibration data."""

    def baked(*given: Any, **options: Any) -> onnx.ModelProto:
        result: onnx.ModelProto = step(*given, **options)
        first = next(n for n in result.graph.node if n.op_type == "Resize")
        width = next(t.dims[0] for t in result.graph.initializer if t.name == "w1")
        result.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, width, 4, 4]), "baked"))
        first.input[3] = "baked"
        return result

    return baked


@pytest.mark.parametrize(("stage", "step"), [(rewrite, "cut"), (finish, "in_form")])
def test_a_measured_size_never_reaches_the_output(
    stage: ModuleType, step: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Fails where the cut graph, or what finishes it, may hold a size that only the calibration data has."""
    monkeypatch.setattr(stage, step, _baking(getattr(stage, step)))
    out = tmp_path / "out.onnx"
    # Two samples at a time in all of the run, which is what the baked batch fits.
    with pytest.raises(CheckFailed, match=r"(sliced model|finished slice) (differs|does not run).* with inputs of x"):
        _pruned(THERE_AND_BACK, 3, 8, 8, output=out, refit="none")
    assert not out.exists()


def test_the_report_says_what_was_compared():
    """Fails where one size is compared and more are claimed, or the other way round."""
    result = _pruned(THERE_AND_BACK, 3, 8, 8)
    # Of the data, each of three dimensions alone, all at once at three sizes, and one sample.
    assert result.report.checks["input_sizes_compared"] == 8
    assert result.report.checks["input_sizes_run"] == 8
    assert not any("at one size only" in note for note in result.report.notes)


def test_a_length_that_nothing_else_fits(monkeypatch: pytest.MonkeyPatch):
    """Fails where nobody is told that the declared freedom could not be looked at."""
    monkeypatch.setattr(checks, "other_sizes", lambda *_: [])
    result = _pruned(ONE_LENGTH, 5, 4)
    assert result.report.checks["input_sizes_compared"] == 1
    assert any("at one size only" in note for note in result.report.notes)


def test_a_fixed_model_is_told_nothing():
    """Fails where a note warns of sizes that a model does not claim to take."""
    row = Topology("(float[1,5] x) => (float[1,3] y) { a = MatMul(x, w1[5,8]) r = Relu(a) y = MatMul(r, w2[8,3]) }", ())
    assert not any("at one size only" in note for note in _pruned(row, 5).report.notes)


def test_a_past_of_length_0_grows():
    """Fails where a size of 0 stays, so that nothing is measured or checked at any other, or is repeated to nothing."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, T, 4] x, float[N, P, 4] past) => (float[N, Q, 4] y) {
        y = Concat<axis = 1>(past, x)
    }"""
    proto = onnx.parser.parse_model(text)
    example = {"x": np.ones((2, 3, 4), np.float32), "past": np.zeros((2, 0, 4), np.float32)}
    found = [f["past"] for f in (*resized(example, proto, lambda _: True), *together(example, proto, lambda _: True))]
    longer = [f for f in found if f.shape[1] > 0]
    assert longer and all(f.any() for f in longer)
