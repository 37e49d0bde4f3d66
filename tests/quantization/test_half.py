"""Half precision: what overflows stays in single, with no cast to half on the way, and ports keep their types."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnxprune.errors import ModelError
from onnxprune.evaluation import samples_for
from onnxprune.quantization.half import halved
from onnxprune.runtime.session import Session
from tests.compare import relative_error
from tests.quantization.networks import RESIDUAL, network

RNG = np.random.default_rng(2)
X = {"x": RNG.standard_normal((8, 3, 8, 8)).astype(np.float32)}
# The numbers between the squares and the root are far beyond half precision; so are the weights of the last layer.
LARGE = """(float[N,8] x) => (float[N,5] y, float[N,8] z) {
    a = MatMul (x, w1[8,8])
    s = Mul (a, big[1])
    q = Mul (s, s)
    t = Sqrt (q)
    r = Div (t, big[1])
    z = Relu (r)
    y = Gemm <transB=1> (z, w3[5,8], b3[5])
}"""


def types(model: onnx.ModelProto) -> set[int]:
    return {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}


def test_a_network_in_half_precision():
    """Fails where a weight stays in single, an input changes its type, or the outputs are far from those in single."""
    model = network(RESIDUAL)
    made = halved(model, samples_for(model, X), ())
    assert (made.kept, types(made.model)) == ((), {TensorProto.FLOAT})
    assert {t.data_type for t in made.model.graph.initializer} == {TensorProto.FLOAT16}
    assert made.nodes == len(model.graph.node)
    onnx.checker.check_model(made.model, full_check=True)
    assert relative_error(Session(made.model).run(X)["y"], Session(model).run(X)["y"]) < 1e-2


def test_what_overflows_stays_in_single():
    """Fails where a number beyond half precision is cast to it on its way from one such node to the next."""
    model = network(LARGE)
    next(t for t in model.graph.initializer if t.name == "big").CopyFrom(
        onnx.numpy_helper.from_array(np.array([3e4], np.float32), "big")
    )
    data = {"x": RNG.standard_normal((16, 8)).astype(np.float32)}
    made = halved(model, samples_for(model, data), ())
    assert {k.operator for k in made.kept} == {"Mul", "Sqrt", "Div"}
    assert all(k.largest is not None and k.largest > 32752 for k in made.kept)
    producer = {o: n for n in made.model.graph.node for o in n.output}
    for n in made.model.graph.node:
        if n.op_type in ("Sqrt", "Div"):
            assert producer[n.input[0]].op_type in ("Mul", "Sqrt")
    y, y0 = Session(made.model).run(data), Session(model).run(data)
    assert relative_error(y["y"], y0["y"]) < 1e-2
    assert relative_error(y["z"], y0["z"]) < 1e-2
    named = halved(network(RESIDUAL), samples_for(network(RESIDUAL), X), ("Conv_2", "y"))
    assert [(k.name, k.largest) for k in named.kept] == [("Conv_2", None), ("Gemm_7", None)]


def test_what_reads_a_tensor_without_entries_stays_in_single():
    """Fails where a cache that starts empty, of which nothing was seen, is said to hold infinite numbers."""
    model = network("""(float[N,L,8] x, float[N,P,8] past) => (float[N,Q,8] y) {
        a = MatMul (x, w1[8,8])
        y = Concat <axis=1> (past, a)
    }""")
    data = {"x": RNG.standard_normal((4, 3, 8)).astype(np.float32), "past": np.zeros((4, 0, 8), np.float32)}
    made = halved(model, samples_for(model, data), ())
    assert [(k.operator, k.largest, k.unseen) for k in made.kept] == [("Concat", None, True)]
    assert "no entries" in made.kept[0].why
    assert made.nodes == 1


def test_outputs_of_what_overflows_stay_in_single():
    """Fails where such an output is cast to half and back, which makes it infinite, or another one is not cast."""
    model = network("""(float[N,8] x) => (float[N,8] y, float[N,8] z) {
        a = MatMul (x, w1[8,8])
        y = Mul (a, big[1])
        z = Relu (a)
    }""")
    next(t for t in model.graph.initializer if t.name == "big").CopyFrom(
        onnx.numpy_helper.from_array(np.array([3e5], np.float32), "big")
    )
    data = {"x": RNG.standard_normal((16, 8)).astype(np.float32)}
    made = halved(model, samples_for(model, data), ())
    onnx.checker.check_model(made.model, full_check=True)
    assert [k.operator for k in made.kept] == ["Mul"]
    y, y0 = Session(made.model).run(data), Session(model).run(data)
    assert np.abs(y0["y"]).max() > 65504
    assert relative_error(y["y"], y0["y"]) < 1e-2
    assert relative_error(y["z"], y0["z"]) < 1e-2
    assert [n.op_type for n in made.model.graph.node if "y" in n.output] == ["Mul"]


def test_a_model_in_half_precision_is_refused():
    model = network(RESIDUAL)
    made = halved(model, samples_for(model, X), ())
    with pytest.raises(ModelError, match="float16"):
        halved(made.model, samples_for(model, X), ())
