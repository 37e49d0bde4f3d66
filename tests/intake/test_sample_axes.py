"""Where names and shapes do not tell which axis counts samples, runs of the model do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxprune import prune
from onnxprune.data.inputs import tensor_specs
from onnxprune.data.samples import Samples
from onnxprune.data.sources import taken
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.intake import sample_axes
from onnxprune.measures.compared import layouts_of
from onnxprune.runtime.outputs import outputs_of
from tests.compare import assert_same

Array = NDArray[Any]
RNG = np.random.default_rng(0)


def model(text: str, **weights: Array) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(v, np.float32 if v.dtype.kind == "f" else np.int64), k)
        for k, v in weights.items()
    )
    return proto


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def mixing(*dims: str) -> onnx.ModelProto:
    """Rows of the first axis, each relative to those before it, as a recurrent layer has them."""
    shape = ", ".join(dims)
    text = f"g (float[{shape}] x) => (float[{shape}] y) {{ c = CumSum(x, zero)  m = MatMul(c, w)  y = Tanh(m) }}"
    return model(text, zero=np.array(0), w=normal(4, 4) / 4)


def by_row(*dims: str) -> onnx.ModelProto:
    """What every row of four is, alone."""
    shape = ", ".join(dims)
    return model(f"g (float[{shape}] x) => (float[{shape}] y) {{ m = MatMul(x, w)  y = Tanh(m) }}", w=normal(4, 4) / 4)


def over(axis: str, *dims: str) -> onnx.ModelProto:
    """A convolution of a channel over the last two axes, behind an axis that is put in front where there is none."""
    shape, behind = ", ".join(dims), "Relu(c)" if axis == "Identity(x)" else "Squeeze(c, zero)"
    text = f"""g (float[{shape}] x) => (float[{shape}] y) {{
        b = {axis}  c = Conv<pads = [1, 1, 1, 1]>(b, k)  y = {behind}
    }}"""
    return model(text, zero=np.array([0]), k=normal(3, 3, 3, 3))


def read(proto: onnx.ModelProto, data: object) -> Samples:
    return sample_axes.read(proto, taken(data, tensor_specs(proto)))


@pytest.mark.parametrize(
    ("proto", "shape", "count", "axis"),
    [
        (mixing("steps", "rows", "4"), (6, 9, 4), 9, 1),
        (mixing("?", "rows", "4"), (6, 9, 4), 9, 1),
        (mixing("T", "N", "4"), (6, 9, 4), 9, 1),
        (by_row("steps", "rows", "4"), (6, 9, 4), 6, 0),
        (by_row("T", "N", "4"), (6, 9, 4), 9, 1),
        (by_row("T", "batch", "4"), (6, 9, 4), 9, 1),
    ],
)
def test_the_axis_that_does_not_mix(proto: onnx.ModelProto, shape: tuple[int, ...], count: int, axis: int):
    """Fails where steps of a sequence, each of which moves those behind it, are taken for samples."""
    samples = read(proto, {"x": normal(*shape)})
    assert (len(samples), samples.arrangement.axes["x"]) == (count, axis)
    assert bool(samples.notes) == bool(axis)


@pytest.mark.parametrize(
    ("proto", "count", "per_run"),
    [(over("Unsqueeze(x, zero)", "3", "H", "W"), 7, 1), (over("Identity(x)", "3", "3", "H", "W"), 21, 3)],
)
def test_whether_the_first_axis_of_a_fixed_size_counts_samples(
    proto: onnx.ModelProto, count: int, per_run: int, tmp_path: Path
):
    """Fails where channels are taken for the samples of a batch, or these for one sample."""
    rank = len(tensor_specs(proto)[0].dims)
    for k in range(7):
        np.savez(tmp_path / f"{k}.npz", x=normal(*(3,) * (rank - 2), 8, 8))
    samples = read(proto, tmp_path)
    assert (len(samples), samples.per_run) == (count, per_run)


def test_a_multiple_of_a_size_that_is_no_batch_is_refused():
    """Fails where six channels pass for two images of three."""
    with pytest.raises(CalibrationError, match="has shape 6x8x8, the model wants 3x"):
        read(over("Unsqueeze(x, zero)", "3", "H", "W"), {"x": normal(6, 8, 8)})


@pytest.mark.parametrize(("given", "said"), [((32,), "32"), ((), "scalar"), ((7, 32), "7x32")])
def test_a_sample_that_does_not_fit_is_called_what_it_is(given: tuple[int, ...], said: str):
    """Fails where the message has the axis that a sample of the right size would have got."""
    with pytest.raises(CalibrationError, match=f"has shape {said}, the model wants Nx6"):
        read(over("Identity(x)", "N", "6"), {"x": normal(*given)})


def test_points_of_which_each_moves_the_others(tmp_path: Path):
    """Fails where the points of several clouds are put together as if they were samples."""
    text = """g (float[points, 3] x) => (float[points, 4] y) {
        h = MatMul(x, w)  m = ReduceMean<axes = [0]>(h)  d = Sub(h, m)  y = Tanh(d)
    }"""
    proto = model(text, w=normal(3, 4))
    for k in range(5):
        np.savez(tmp_path / f"{k}.npz", x=normal(6 + k, 3))
    samples = read(proto, tmp_path)
    assert len(samples) == 5 and samples.per_run == 1 and samples.ragged
    outputs = outputs_of(proto, samples, layouts_of(proto, samples))["y"]
    assert outputs.shape == (5, 10, 4)
    assert np.isinf(outputs[0, 6:]).all() and np.isfinite(outputs[0, :6]).all()


@pytest.mark.parametrize("strided", [False, True])
def test_outputs_of_runs_of_a_fixed_number(strided: bool):
    """Fails where rows of one sample in a batch of four are given to another."""
    turn = "Reshape(t, flat)  y = Identity(z)" if strided else "Reshape(a, flat)  y = Identity(z)"
    text = f"""g (float[4, 2, 3] x) => (float[8, 5] y) {{
        a = MatMul(x, w)  t = Transpose<perm = [1, 0, 2]>(a)  z = {turn}
    }}"""
    w = normal(3, 5)
    proto = model(text, w=w, flat=np.array([8, 5]))
    x = normal(12, 2, 3)
    samples = read(proto, {"x": x})
    assert samples.per_run == 4 and len(samples) == 12
    found = outputs_of(proto, samples, layouts_of(proto, samples))["y"]
    assert_same(found, x @ w, rtol=1e-5, atol=1e-6)


def test_pruned_with_states_on_another_axis(tmp_path: Path):
    """Fails where the number of samples of such a model is taken from the first axis: the MACs of one, say."""
    text = """g (float[2, N, 8] h, float[N, 4] x) => (float[N, 3] y) {
        a = MatMul(x, w0)  s = ReduceSum(h, zero)  q = Squeeze(s, zero)  b = Add(a, q)  r = Relu(b)
        c = MatMul(r, w1)  d = Relu(c)  y = MatMul(d, w2)
    }"""
    proto = model(text, zero=np.array([0]), w0=normal(4, 8), w1=normal(8, 32), w2=normal(32, 3))
    data = {"x": normal(64, 4), "h": normal(2, 64, 8)}
    result = prune(proto, tmp_path / "out.onnx", data, ratio=0.3, recover=0)
    assert result.report.before.macs == 4 * 8 + 8 * 32 + 32 * 3
    assert result.report.calibration["samples"] == 64 and result.report.calibration["held_out"] == 8


def test_pruned_with_a_scalar_for_each_sample(tmp_path: Path):
    """Fails where one sample in a run makes its axis, of size 1, pin all channels that it might be repeated along."""
    text = """g (float[N, 4] x, float s) => (float[N, 3] y) {
        a = MatMul(x, w0)  b = Relu(a)  c = MatMul(b, w1)  y = Mul(c, s)
    }"""
    proto = model(text, w0=normal(4, 32), w1=normal(32, 3))
    result = prune(proto, tmp_path / "out.onnx", {"x": normal(64, 4), "s": normal(64)}, ratio=0.3, fast=True)
    assert result.report.before.macs == 4 * 32 + 32 * 3
    assert result.report.calibration["samples"] == 64


@pytest.mark.parametrize(("method", "ends"), [("obs", False), ("taylor", True)])
def test_pruned_with_samples_of_different_sizes(method: str, ends: bool, tmp_path: Path):
    """Fails where outputs of two sizes are not judged, or a method that reads gradients ends in onnxruntime's error."""
    text = """g (float[N, 3, H, W] x) => (float[N, 4, H, W] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, k0)  b = Relu(a)  y = Conv<pads = [1, 1, 1, 1]>(b, k1)
    }"""
    proto = model(text, k0=normal(16, 3, 3, 3), k1=normal(4, 16, 3, 3))
    for k in range(16):
        np.savez(tmp_path / f"{k:02}.npz", x=normal(1, 3, 6 + 2 * (k % 2), 8))
    if ends:
        with pytest.raises(UsageError, match="the samples differ in size"):
            prune(proto, None, tmp_path, ratio=0.3, method=method)
        return
    result = prune(proto, None, tmp_path, ratio=0.3)
    assert result.report.output_error is not None and 0.0 < result.report.output_error < 1.0
    assert any("recovery was left out: the samples differ in size" in n for n in result.report.notes)
