"""Declared sizes that are none, and declared outputs that are something else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune import pipeline
from onnxprune.data.inputs import tensor_specs
from onnxprune.errors import ModelError
from onnxprune.intake import model_file
from onnxprune.intake.declarations import false_outputs, with_free_dimensions, with_true_outputs
from tests.topologies.text import Topology

CNN = Topology(
    """(float[N,3,H,W] x) => (float[N,4] y) {
        a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3])
        b = Relu(a)
        c = Conv (b, w2[4,8,1,1])
        d = GlobalAveragePool(c)
        y = Flatten(d)
    }""",
    (8,),
)


def _declared(dims: list[int | str | None], outputs: list[int | str | None] | None = None) -> onnx.ModelProto:
    """The network with these sizes declared, as they stand."""
    proto = CNN.model()
    kind = onnx.TensorProto.FLOAT
    proto.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", kind, dims))
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", kind, outputs or [dims[0], 4]))
    return proto


def _dims(v: onnx.ValueInfoProto) -> list[int | str | None]:
    dims = v.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims]


@pytest.mark.parametrize("free", [-1, -7, 0, "?", None], ids=str)
def test_sizes_that_are_none_are_free(free: int | str | None):
    """Fails where such a size is demanded of the data, or two of them are taken for one and the same."""
    proto = with_free_dimensions(_declared([free, 3, free, free]))
    assert _dims(proto.graph.input[0]) == [None, 3, None, None]
    assert tensor_specs(proto)[0].dims == (None, 3, None, None)
    x = np.random.default_rng(0).standard_normal((16, 3, 6, 10)).astype(np.float32)
    result = pipeline.prune(_declared([free, 3, free, free]), None, {"x": x}, ratio=0.3, refit="none", recover=0)
    # Each dimension alone, all at once at three sizes, and one sample.
    assert result.report.checks["input_sizes_compared"] == 8
    assert pipeline.inspect(_declared([free, 3, free, free])).groups


def test_a_batch_of_nothing_needs_data():
    """Fails where a model whose input holds no sample, as it is declared, is cut by made-up samples."""
    with pytest.raises(ModelError, match=r"the input 'x' is declared with a first size of 0, .* give data \(--calib\)"):
        pipeline.prune(_declared([0, 3, 8, 8]), None, ratio=0.3, refit="none", recover=0)


def test_sizes_and_symbols_stay():
    """Fails where a model that declares what it should is touched."""
    proto = _declared(["N", 3, 0, "height"])
    assert with_free_dimensions(proto) is proto


def test_a_file_and_a_model_in_memory_are_read_alike(tmp_path):
    """Fails where one way in mends and the other does not, or the caller's model is changed."""
    proto = _declared([-1, 3, "?", None])
    before = proto.SerializeToString(deterministic=True)
    onnx.save(proto, tmp_path / "protobuf.onnx")
    read, adopted = model_file.load(tmp_path / "protobuf.onnx")[0], model_file.adopt(proto)[0]
    assert _dims(read.graph.input[0]) == _dims(adopted.graph.input[0]) == [None, 3, None, None]
    assert proto.SerializeToString(deterministic=True) == before


def test_false_sizes_of_outputs_are_left_out():
    """Fails where a false declaration stays, or a true one goes."""
    shapes = {"y": (2, 4)}
    for dims in (["N", 4], [2, 4], [None, "classes"]):
        assert false_outputs(_declared(["N", 3, "H", "W"], dims), shapes) == []
    rank, size = (_declared(["N", 3, "H", "W"], dims) for dims in (["N", 4, 1], [1, 4]))
    assert false_outputs(rank, shapes) == [
        "output 'y' is declared as N×4×1 and is 2×4: what is wrong of the declaration was left out"
    ]
    assert len(false_outputs(size, shapes)) == 1
    assert _dims(with_true_outputs(rank, shapes).graph.output[0]) == [None, None]
    assert _dims(with_true_outputs(size, shapes).graph.output[0]) == [None, 4]
    assert _dims(rank.graph.output[0]) == ["N", 4, 1]


def test_a_wrong_rank_does_not_stop_a_run():
    """Fails where all the work is done before a check refuses what the original declared."""
    row = Topology(
        """(float[T,1,6] x) => (float[1,S] y) {
            a = MatMul(x, w1[6,8])
            b = Relu(a)
            c = MatMul(b, w2[8,4])
            s = Shape(x)
            f = Slice(s, z{0}, two{2}, z)
            t = Concat <axis=0> (f, four{4})
            y = Reshape(c, t)
        }""",
        (8,),
        opset=12,
    )
    x = np.random.default_rng(0).standard_normal((16, 1, 6)).astype(np.float32)
    result = pipeline.prune(row.model(), None, {"x": x}, ratio=0.3, refit="none", recover=0)
    assert any("'y' is declared as 1×S" in note for note in result.report.notes)
    assert result.model is not None
    assert _dims(result.model.graph.output[0]) == [None, None, None]
