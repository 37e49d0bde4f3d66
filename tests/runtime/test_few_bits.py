"""Ports in float8 and of fewer than 8 bits: fed and given with the values that the model means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxprune.pipeline import inspect, prune
from onnxprune.runtime.few_bits import carried
from onnxprune.runtime.session import Session


def through(kind: str, opset: int = 21) -> onnx.ModelProto:
    """An input of a narrow type that goes out as it is, converted, and converted to that type from a wider one."""
    return onnx.parser.parse_model(f"""<ir_version: 11, opset_import: ["" : {opset}]>
    main ({kind}[N,3] x, float[N,3] w) => ({kind}[N,3] same, float[N,3] wide, {kind}[N,3] narrow) {{
        same = Identity(x)
        wide = Cast<to = 1>(x)
        narrow = Cast<to = {onnx.TensorProto.DataType.Value(kind.upper())}>(w)
    }}""")


VALUES = {
    "float8e4m3fn": [-448.0, 0.015625, 3.5],
    "float8e5m2": [-57344.0, 0.25, 3.5],
    "int4": [-8.0, 7.0, 0.0],
    "uint4": [15.0, 0.0, 9.0],
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_arrive_and_leave_as_they_are(kind: str) -> None:
    """Fails where a value is rounded, packed or read as bytes on the way, or names differ from the model's."""
    proto = through(kind)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(proto.graph.input[0].type.tensor_type.elem_type)
    wide = np.array([VALUES[kind]], np.float32)
    session = Session(proto)
    found = session.run({"x": wide.astype(dtype), "w": wide})
    assert (session.inputs, session.outputs) == (("x", "w"), ("same", "wide", "narrow"))
    assert {k: v.dtype for k, v in found.items()} == {"same": dtype, "wide": np.float32, "narrow": dtype}
    assert all(np.array_equal(v.astype(np.float32), wide) for v in found.values())
    assert list(session.run({"x": wide.astype(dtype), "w": wide}, ["narrow"])) == ["narrow"]


def test_runs_in_turns_take_the_same_values() -> None:
    proto = through("float8e4m3fn")
    run = Session(proto).bound({"x": np.full((1, 3), 2, np.float32), "w": np.ones((1, 3), np.float32)})
    run()
    assert [v.tolist() for v in run.outputs()] == [[[2.0] * 3], [[2.0] * 3], [[1.0] * 3]]


def test_names_that_are_taken_stay() -> None:
    """Fails where the name of a port is that of a tensor of the model."""
    proto = through("int4")
    proto.graph.node[1].output[0] = proto.graph.output[1].name = "x_"
    found = Session(proto).run({"x": np.array([[1, 2, 3]], np.int8), "w": np.zeros((1, 3), np.float32)})
    assert found["x_"].tolist() == [[1.0, 2.0, 3.0]]


def test_other_models_are_not_touched() -> None:
    assert (
        carried(
            onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    main (float[2] x) => (float[2] y) { y = Relu(x) }""")
        )
        is None
    )


def test_a_network_with_such_an_input_is_inspected_and_pruned(tmp_path: Path) -> None:
    """Fails where random data in such a type is refused, or the result has another interface."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model("""<ir_version: 11, opset_import: ["" : 21]>
    main (float8e4m3fn[N,4] x) => (float[N,2] y) {
        f = Cast<to = 1>(x)
        h = MatMul(f, v)
        r = Relu(h)
        y = MatMul(r, w)
    }""")
    for name, shape in (("v", (4, 8)), ("w", (8, 2))):
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        )
    assert [g.units for g in inspect(proto).groups] == [8]
    result = prune(proto, tmp_path / "out.onnx", None, ratio=0.5, round_to=1, fast=True)
    assert result.report.checks["slice_against_oracle"] < 1e-6
    assert onnx.load(tmp_path / "out.onnx").graph.input == proto.graph.input
