"""The checks find what they are there for: every one with a model that is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune import verify
from onnxprune.calibrate.samples import checked, input_specs
from onnxprune.errors import CheckFailed
from onnxprune.rewrite import replace_initializers
from tests import digits
from tests.stages import Prepared, masked, random_keep, sliced

Lookup = Callable[[str], Prepared]


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


@pytest.mark.parametrize("row", ["plain", "residual"])
def test_exactness_of_a_true_slice(prepared: Lookup, row: str):
    p = prepared(row)
    keep = random_keep(p.channels, 0)
    found = verify.exactness(p.original, p.normalised.proto, sliced(p, keep), masked(p, keep), p.example)
    assert found.normalised <= 1e-6
    assert found.slice <= 1e-6
    assert found.tolerance == verify.TOLERANCE


def test_one_percent_of_any_weight_is_found(prepared: Lookup):
    """The mutation check: 1 % of one entry of any one matrix, the largest, is beyond the tolerance."""
    p = prepared("plain")
    keep = random_keep(p.channels, 0)
    cut, oracle = sliced(p, keep), masked(p, keep)
    kernels = [t.name for t in cut.graph.initializer if len(t.dims) > 1]
    assert len(kernels) == 3
    for name in kernels:
        w = digits.values(cut, name).copy()
        w.flat[np.abs(w).argmax()] *= 1.01
        with pytest.raises(CheckFailed, match="the sliced model differs from the masked original"):
            verify.exactness(p.original, p.normalised.proto, replace_initializers(cut, {name: w}), oracle, p.example)


def test_a_changed_normalised_model_is_found(prepared: Lookup):
    p = prepared("plain")
    name = next(t.name for t in p.normalised.proto.graph.initializer if len(t.dims) > 1)
    other = replace_initializers(p.normalised.proto, {name: 1.01 * digits.values(p.normalised.proto, name)})
    keep = random_keep(p.channels, 0)
    with pytest.raises(CheckFailed, match="the normalised model differs from the original"):
        verify.exactness(p.original, other, sliced(p, keep), masked(p, keep), p.example)


def test_structure_refuses_an_invalid_model(prepared: Lookup):
    broken = _copy(prepared("plain").original)
    verify.structure(broken)
    broken.graph.node[-1].input[0] = "nobody"
    with pytest.raises(CheckFailed, match="not valid ONNX"):
        verify.structure(broken)


def test_structure_refuses_wrong_shapes(prepared: Lookup):
    """Fails where strict shape inference is not run."""
    broken = _copy(prepared("plain").original)
    broken.graph.output[0].type.tensor_type.shape.dim[1].dim_value += 1
    with pytest.raises(CheckFailed, match="not valid ONNX"):
        verify.structure(broken)


def test_sizes(prepared: Lookup):
    p = prepared("plain")
    assert verify.runs_at_other_sizes(p.original, p.original, p.example) >= 2


def test_a_fixed_batch_is_found():
    """Fails where a rewrite that baked the example's batch in would pass."""
    original = onnx.load(digits.path("resnet"))
    fixed = _copy(original)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    feeds = {"input": np.load(digits.CALIB)["input"][:2]}
    with pytest.raises(CheckFailed, match="does not run at another input size"):
        verify.runs_at_other_sizes(fixed, original, feeds)


def test_another_output_shape_is_found():
    def model(keepdims: int) -> onnx.ModelProto:
        text = f"""<ir_version: 8, opset_import: ["" : 13]>
        main (float[N,3] x) => (float[M] y) {{ a = ReduceMax <axes=[1], keepdims={keepdims}> (x)  y = Relu (a) }}"""
        proto = onnx.parser.parse_model(text)
        proto.graph.output[0].type.tensor_type.ClearField("shape")
        return proto

    with pytest.raises(CheckFailed, match="output 'y' has shape"):
        verify.runs_at_other_sizes(model(1), model(0), {"x": np.ones((2, 3), np.float32)})


def test_finite():
    good, bad = {"y": np.ones(3, np.float32)}, {"y": np.array([1.0, np.nan, 1.0], np.float32)}
    verify.finite(good, good)
    verify.finite(bad, bad)  # the original does the same
    with pytest.raises(CheckFailed, match="not finite"):
        verify.finite(bad, good)


def test_a_model_that_does_not_run_is_found(prepared: Lookup):
    p = prepared("plain")
    broken = _copy(p.original)
    broken.graph.node[0].op_type = "NoSuchOperator"
    samples = checked(p.example, input_specs(p.original))
    with pytest.raises(CheckFailed, match="does not run"):
        verify.runs_on(broken, samples)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.1], [1.0, 2.0], 0.05),
        ([1.0], [1.0, 2.0], np.inf),
        ([np.nan, 2.0], [1.0, 2.0], np.inf),
        ([np.nan, 2.0], [np.nan, 2.0], 0.0),
        ([np.inf, 2.0], [-np.inf, 2.0], np.inf),
    ],
)
def test_largest_difference(a: list[float], b: list[float], expected: float):
    found = verify.largest_difference({"y": np.array(a)}, {"y": np.array(b)})
    assert found == pytest.approx(expected, rel=1e-12, abs=0.0)


def test_outputs_of_all_samples_in_order(monkeypatch: pytest.MonkeyPatch):
    original = onnx.load(digits.path("resnet"))
    arrays = {"input": np.load(digits.CALIB)["input"][:40]}
    samples = checked(arrays, input_specs(original))
    monkeypatch.setattr(verify, "_BATCHES", (40, 40))
    whole = verify.outputs_of(original, samples)["logits"]
    monkeypatch.setattr(verify, "_BATCHES", (7, 7))
    parts = verify.outputs_of(original, samples)["logits"]
    assert whole.shape == (40, 10)
    assert np.abs(whole - parts).max() <= 1e-4 * np.abs(whole).max()


def test_sequences_and_optional_values_are_compared():
    """Fails where an output that is no tensor passes whatever it holds."""
    x = np.arange(3.0)
    assert verify.largest_difference({"s": [x, x], "o": None}, {"s": [x, x], "o": None}) == 0.0
    assert verify.largest_difference({"s": [x, x + 1]}, {"s": [x, x]}) == pytest.approx(0.5)
    assert verify.largest_difference({"s": [x]}, {"s": [x, x]}) == float("inf")
    assert verify.largest_difference({"o": None}, {"o": x}) == float("inf")
    assert verify.largest_difference({"o": x}, {"o": None}) == float("inf")
