"""A weight that is read as it is and transposed is stored once in the result, as long as both are still the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxprune import prune
from onnxprune.numerics.arrays import Array
from onnxprune.pipeline import inspect
from onnxprune.runtime.session import Session
from tests.compare import assert_same

WORDS, WIDTH = 20, 12
IDS = {"ids": np.random.default_rng(1).integers(0, WORDS, (48, 5))}


def tied() -> onnx.ModelProto:
    """Rows of a vocabulary that are looked up, and that the answer is a product with."""
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (int64[N, 5] ids) => (float[N, 5, {WORDS}] y) {{
        rows = Transpose<perm = [1, 0]>(words)  e = Gather(rows, ids)  a = MatMul(e, w1)  b = Relu(a)  c = MatMul(b, w2)
        d = Add(c, e)  y = MatMul(d, words)
    }}""")
    rng = np.random.default_rng(0)
    shapes = {"words": (WIDTH, WORDS), "w1": (WIDTH, 30), "w2": (30, WIDTH)}
    weights: dict[str, Array] = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    return proto


def test_nothing_is_stored_twice():
    """Fails where the result holds the vocabulary twice, or reads it in the wrong direction."""
    found = prune(tied(), None, IDS, uniform=0.5, refit="none", fast=True)
    assert found.model is not None
    assert {t.name for t in found.model.graph.initializer} == {"words", "w1", "w2"}
    width = next(tuple(t.dims) for t in found.model.graph.initializer if t.name == "words")[0]
    assert width < WIDTH
    whole = prune(tied(), None, IDS, ratio=0.2, refit="none", fast=True, exclude=("words",)).model
    assert whole is not None
    assert Session(whole).run(IDS)["y"].shape == (48, 5, WORDS)


def test_what_was_fitted_is_stored():
    """Fails where a fitted product is read in place of the rows, or the other way round."""
    kept: dict[str, Any] = {"ratio": 0.4, "fast": True}
    found = prune(tied(), None, IDS, refit="least-squares", **kept).model
    assert found is not None
    stored = {t.name: numpy_helper.to_array(t) for t in found.graph.initializer}
    rows = stored.get("rows")
    if rows is not None:
        assert not np.array_equal(rows, stored["words"].T)


def test_both_directions_count_once():
    described = inspect(tied(), IDS)
    assert described.parameters == WORDS * WIDTH + 2 * 30 * WIDTH
    assert described.share == pytest.approx(1.0)
    assert_same(np.float64(described.prunable), np.float64(described.parameters), rtol=0.0, atol=0.0)
