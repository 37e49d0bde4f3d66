"""Sparse weights: the same as dense ones, wherever they stand, and one line for those that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune import prune
from onnxprune.channels.describe import Description
from onnxprune.cli.program import main
from onnxprune.errors import ModelError
from onnxprune.graph import external, tensor_files
from onnxprune.intake import model_file, sparse
from onnxprune.numerics.arrays import Array
from onnxprune.pipeline import inspect
from onnxprune.process import spill
from onnxprune.runtime.session import Session
from tests.compare import assert_same
from tests.installed import needs_run

OPTIONS: dict[str, Any] = {"ratio": 0.4, "round_to": 1, "refit": "none", "method": "magnitude"}


def _weight() -> Array:
    w = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)
    w[::2] = 0.0
    return w


def _sparse(w: Array, *, pairs: bool) -> onnx.SparseTensorProto:
    flat = np.flatnonzero(w)
    at = np.stack(np.unravel_index(flat, w.shape), axis=1) if pairs else flat
    values = numpy_helper.from_array(w.ravel()[flat], "w")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(at.astype(np.int64), "w_at"), w.shape)


def _models(where: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """(with a sparse weight, the same with a dense one)."""
    w = _weight()
    plain = "y = MatMul (r, w)"
    branches = (
        "c = Constant <value = bool {1}> ()  y = If (c) <then_branch = t () => (float[N,3] yt) { yt = MatMul (r, w) }, "
        "else_branch = e () => (float[N,3] ye) { ye = MatMul (r, w) }>"
    )
    body = {"body": branches}.get(where, plain)
    text = (
        '<ir_version: 9, opset_import: ["" : 17]> main (float[N,4] x) => (float[N,3] y) '
        f"{{ a = MatMul (x, first)  r = Relu (a)  {body} }}"
    )
    made = []
    for dense in (False, True):
        model = onnx.parser.parse_model(text)
        first = np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(first, "first"))
        graphs = [model.graph]
        if where == "body":
            graphs = [a.g for a in model.graph.node[-1].attribute]
        for g in graphs:
            value = numpy_helper.from_array(w, "w") if dense else _sparse(w, pairs=where == "pairs")
            if where == "constant":
                key = "value" if dense else "sparse_value"
                g.node.insert(0, helper.make_node("Constant", [], ["w"], **{key: value}))
            elif dense:
                g.initializer.append(value)
            else:
                g.sparse_initializer.append(value)
        onnx.checker.check_model(model)
        made.append(model)
    return made[0], made[1]


@pytest.mark.parametrize("where", ["flat", "pairs", "constant", "body"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_the_same_as_dense(where: str, in_memory: bool, tmp_path: Path):
    """Fails where a sparse weight is lost, counted as the entries that it stores, or pruned in another way."""
    given, dense = _models(where)
    x = np.random.default_rng(2).standard_normal((64, 4)).astype(np.float32)
    before = given.SerializeToString(deterministic=True)
    path = tmp_path / "sparse.onnx"
    onnx.save(given, path)
    needs_run(dense, {"x": x}, "load weights that lie in a branch that is always taken")
    expected = Session(str(path)).run({"x": x})["y"]  # onnxruntime's own reading
    proto, source = model_file.adopt(given) if in_memory else model_file.load(path)
    assert "made dense" in source.notes[0]
    assert_same(Session(proto).run({"x": x})["y"], expected, rtol=1e-6, atol=1e-6)
    result, wanted = (prune(k, None, {"x": x}, **OPTIONS) for k in (given if in_memory else path, dense))
    assert result.model is not None
    assert wanted.model is not None
    assert result.report.before.parameters == wanted.report.before.parameters
    assert result.report.after.parameters == wanted.report.after.parameters
    assert any("made dense" in n for n in result.report.notes)
    assert result.model.SerializeToString(deterministic=True) == wanted.model.SerializeToString(deterministic=True)
    assert given.SerializeToString(deterministic=True) == before
    found: Description = inspect(given if in_memory else path)
    assert any("made dense" in n for n in found.notes)


def _set(field: str, values: list[int]) -> Callable[[onnx.SparseTensorProto], None]:
    def change(s: onnx.SparseTensorProto) -> None:
        if field == "dims":
            s.dims[:] = values
        else:
            s.indices.CopyFrom(numpy_helper.from_array(np.array(values, np.int64), "at"))

    return change


def _as_text(s: onnx.SparseTensorProto) -> None:
    s.values.CopyFrom(helper.make_tensor("w", onnx.TensorProto.STRING, [2], [b"a", b"b"]))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_set("at", [1, 48]), "outside of its shape"),
        (_set("at", [-1, 3]), "outside of its shape"),
        (_set("at", [3, 3]), "not in order, or repeat"),
        (_set("at", [4, 3]), "not in order, or repeat"),
        (_set("at", [1, 2, 3]), "indices of the shape"),
        (_set("dims", [1 << 20, 1 << 20]), "as the dense ones that they stand for"),
        (_set("dims", [1 << 62, 1 << 62, 1 << 62]), "as the dense ones that they stand for"),
        (_set("dims", [16, 0]), "every size has to be 1 or more"),
        (_set("dims", [16, -3]), "every size has to be 1 or more"),
        (_set("dims", []), "every size has to be 1 or more"),
        (_as_text, "of type string"),
    ],
)
def test_what_is_none(change: Callable[[onnx.SparseTensorProto], None], why: str):
    """Each in one line, and before memory is taken for it."""
    model, _ = _models("flat")
    del model.graph.sparse_initializer[:]
    two = numpy_helper.from_array(np.ones(2, np.float32), "w")
    s = helper.make_sparse_tensor(two, numpy_helper.from_array(np.array([1, 3], np.int64), "at"), [16, 3])
    change(s)
    model.graph.sparse_initializer.append(s)
    with pytest.raises(ModelError, match=why):
        model_file.adopt(model)


def test_large_ones_lie_in_files(monkeypatch: pytest.MonkeyPatch):
    """Fails where every copy of the model copies what a few bytes stand for."""
    for module, limit in ((external, "LARGE_BYTES"), (tensor_files, "SPILL_BYTES"), (external, "INLINE_BYTES")):
        monkeypatch.setattr(module, limit, 1)
    model, _ = _models("flat")
    with spill.spilling():
        proto, source = model_file.adopt(model)
        assert external.has_external(proto)
        assert source.placement is external.Placement.FITTING
        weights = external.Weights(proto.graph.initializer)
        assert_same(weights["w"], _weight(), rtol=0.0, atol=0.0)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A bomb is one line and exit code 1."""
    model, _ = _models("flat")
    model.graph.sparse_initializer[0].dims[0] = 1 << 36
    path = tmp_path / "bomb.onnx"
    onnx.save(model, path)
    assert main(["inspect", str(path)]) == 1
    err = capsys.readouterr().err
    assert "sparse" in err
    assert len(err.splitlines()) == 1


def test_nothing_sparse():
    assert sparse.made_dense(_models("flat")[1]) == ""
