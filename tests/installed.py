"""What the installed onnx and onnxruntime know, and the skips of tests that need what newer ones do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnxprune.errors import RunError
from onnxprune.graph import protobuf
from onnxprune.runtime.session import Session

# Every onnxruntime that pyproject.toml allows loads this one: an error there is no matter of age.
_KNOWN = 21


def _identity(opset: int) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(k, TensorProto.FLOAT, [1]) for k in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)])


@cache
def runtime_opset() -> int:
    """The newest operator set of which the installed onnxruntime loads a model of one Identity."""
    newest = _KNOWN
    Session(_identity(newest))
    while True:
        try:
            Session(_identity(newest + 1))
        except RunError as e:
            # The cause has the whole message; the error itself is cut to one line.
            assert f"Opset {newest + 1} is under development" in str(e.__cause__), e
            return newest
        newest += 1


def common_opset() -> int:
    """The newest operator set that the installed onnx and onnxruntime both know."""
    return min(int(onnx.defs.onnx_opset_version()), runtime_opset())


def needs_opset(opset: int) -> None:
    """Skip the test where neither the installed onnx nor the installed onnxruntime knows the operator set.

    One of them is enough: onnxruntime runs what it knows, and an onnx that is newer than it spells out newer operators.
    """
    known = onnx.defs.onnx_opset_version()
    if opset > known and opset > runtime_opset():
        pytest.skip(f"opset {opset} is newer than onnx {onnx.__version__} (opset {known}) and onnxruntime's own")


def check(model: onnx.ModelProto) -> None:
    """ONNX's checker and strict shape inference, where the installed onnx knows the model's operator set."""
    opset = next(o.version for o in model.opset_import if not o.domain)
    if opset <= onnx.defs.onnx_opset_version():
        protobuf.check(model)


def needs_reference(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> None:
    """Skip the test where the reference evaluator of the installed onnx has not what a model asks for."""
    try:
        ReferenceEvaluator(model).run(None, dict(feeds))
    except NotImplementedError as e:
        pytest.skip(f"the reference evaluator of onnx {onnx.__version__} cannot run it: {e}")


def needs_run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], what: str) -> None:
    """Skip the test where the installed onnxruntime refuses a valid model that needs it to do `what`."""
    try:
        Session(model).run(feeds)
    except RunError as e:
        pytest.skip(f"this onnxruntime cannot {what}: {e}")
