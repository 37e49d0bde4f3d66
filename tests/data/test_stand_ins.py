"""Random inputs: seeded, marked, and such as the model accepts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxprune.data import stand_ins
from onnxprune.data.samples import InputSpec, Samples, checked, tensor_specs, with_others
from onnxprune.data.stand_ins import random as random_samples
from onnxprune.errors import CalibrationError
from onnxprune.normalise import accepts
from onnxprune.pipeline import inspect, prune
from onnxprune.runtime.session import Session

FLOAT = np.dtype(np.float32)
IMAGE = (InputSpec("image", FLOAT, (None, 3, 4, 4)),)


def parsed(text: str, opset: int = 18) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\nmain {text}')


def test_random_data_fits_the_inputs_and_is_marked() -> None:
    """Fails where random data is not reproducible, not marked as such, or of another type."""
    specs = (*IMAGE, InputSpec("mask", np.dtype(np.bool_), (None, 4)), InputSpec("ids", np.dtype(np.int32), (1, 2)))
    first, again = (random_samples(onnx.ModelProto(), specs, 6, 1, lambda _: True) for _ in range(2))
    assert first.sha256() == again.sha256()
    assert first.synthetic
    assert {k: (v.shape, v.dtype.name) for k, v in first.arrays.items()} == {
        "image": ((6, 3, 4, 4), "float32"),
        "mask": ((6, 4), "bool"),
        "ids": ((6, 2), "int32"),
    }


def test_random_data_tries_sizes_until_one_runs() -> None:
    """Fails where the first size is used although the model refuses it, or no size at all is silently accepted."""
    specs = (InputSpec("image", FLOAT, (None, 3, None, None)),)
    s = random_samples(onnx.ModelProto(), specs, 2, 0, lambda f: f["image"].shape[2] == 32)
    assert s.arrays["image"].shape == (2, 3, 32, 32)
    with pytest.raises(CalibrationError, match="--calib"):
        random_samples(onnx.ModelProto(), specs, 2, 0, lambda _: False)


SIZED = {
    "target": "(float[2,6] x, int64[2] s) => (float[3,4] y) { y = Reshape(x, s) }",
    "target without a size": "(float[2,6] x, int64[3] s) => (float[a,b,c] y) { y = Reshape(x, s) }",
    "scales": "(float[1,1,2,2] x, float[4] s) => (float[1,1,4,6] y) { y = Resize(x, , s) }",
    "sizes": "(float[1,1,2,2] x, int64[4] s) => (float[1,1,4,6] y) { y = Resize(x, , , s) }",
    "parts": "(float[6] x, int64[2] s) => (float[a] y, float[b] z) { y, z = Split(x, s) }",
    "bounds": "(float[6] x, int64[1] s, int64[1] e) => (float[4] y) { y = Slice(x, s, e) }",
    "single axes": "(float[1,6] x, int64[1] s) => (float[6] y) { y = Squeeze(x, s) }",
    "new axes": "(float[6] x, int64[2] s) => (float[1,1,6] y) { y = Unsqueeze(x, s) }",
    "sizes of blocks": "(float[1,5,5] x, int64[2] s, int64[2] b) => (float[1,1,5,5] y) { y = Col2Im(x, s, b) }",
    "steps": "(float[1,128,1] x, int64 step, float[16] w) => (float[1,a,9,2] y) { y = STFT(x, step, w) }",
    "divisor": "(int64[4] x, int64[4] d) => (int64[4] y) { y = Div(x, d) }",
}


@pytest.mark.parametrize("text", SIZED.values(), ids=SIZED)
def test_inputs_that_size_things_get_values_that_run(text: str) -> None:
    """Fails where zeros and ones stand in for sizes, with which the operator fails, or kills the process."""
    proto = parsed(text)
    session = Session(proto)
    found = random_samples(proto, tensor_specs(proto), 2, 0, partial(accepts, session))
    assert session.run(found.example())


@pytest.mark.parametrize("text", ["int64[64] y) { y = Div(x, d) }", "int64[64] y) { y = Mod(x, d) }"])
def test_no_zero_is_tried_as_a_divisor_of_integers(text: str) -> None:
    """Fails where a trial could kill the process, as a division by zero does in some releases of onnxruntime."""
    proto = parsed("(int64[64] x, int64[64] d) => (" + text)
    tried: list[int] = []

    def runs(feeds: Any) -> bool:
        tried.append(int(np.abs(feeds["d"]).min()))
        return True

    random_samples(proto, tensor_specs(proto), 2, 0, runs)
    assert tried == [1]


def test_a_divisor_that_is_no_integer_is_noise() -> None:
    proto = parsed("(float[64] x, float[64] d) => (float[64] y) { y = Div(x, d) }")
    found = random_samples(proto, tensor_specs(proto), 2, 0, lambda _: True)
    assert found.arrays["d"].std() > 0.5


def test_a_model_that_no_random_value_fits_is_refused_by_name() -> None:
    """Fails where data that the model refuses is handed out although an input is an integer."""
    proto = parsed("(float[4] x, int64[2] i) => (float[2] y) { y = Gather(x, i) }")
    tried: list[int] = []

    def runs(feeds: Any) -> bool:
        tried.append(int(feeds["i"].sum()))
        return False

    with pytest.raises(CalibrationError, match="--calib"):
        random_samples(proto, tensor_specs(proto), 2, 0, runs)
    assert set(tried) >= {0, 2}


def test_impossible_sizes_are_not_drawn() -> None:
    """Fails where memory is asked for before the sizes are looked at."""
    specs = (InputSpec("image", FLOAT, (None, 1 << 40)),)
    with pytest.raises(CalibrationError, match="--calib"):
        random_samples(onnx.ModelProto(), specs, 2, 0, lambda _: True)


SEQUENCE = """(seq(float[4]) s, float[N,4] x) => (float[N,2] y) {
  i = Constant<value = int64 {0}>()
  e = SequenceAt(s, i)
  a = Add(x, e)
  w = Constant<value = float[4,3] {1,2,3,4,5,6,7,8,9,10,11,12}>()
  v = Constant<value = float[3,2] {1,2,3,4,5,6}>()
  h = MatMul(a, w)
  y = MatMul(h, v)
}"""


def test_sequences_are_fed(tmp_path: Path) -> None:
    """Fails where a model with a sequence among its inputs cannot be pruned, with random data or with real data."""
    proto = parsed(SEQUENCE)
    assert len(inspect(proto).groups) == 1
    data = {"x": np.ones((3, 4), np.float32), "s[0]": np.full(4, 2, np.float32), "s[1]": np.zeros(4, np.float32)}
    for given in (None, data):
        result = prune(proto, tmp_path / f"{given is None}.onnx", given, uniform=0.34, round_to=1, fast=True)
        assert result.model is not None
        assert result.report.checks["slice_against_oracle"] < 1e-6


def test_entries_of_a_sequence_come_from_the_data() -> None:
    """Fails where a sequence that the data does not hold is made up, or an empty one cannot be given."""
    proto = parsed(SEQUENCE)
    whole = checked({"x": np.ones((3, 4), np.float32), "s[0]": np.ones(4, np.float32)}, tensor_specs(proto))
    found = with_others(whole, proto)
    assert [v.tolist() for v in found.fixed["s"]] == [[1.0] * 4]
    assert not found.extras
    assert set(found.slice(1, 2)) == {"s", "x"}
    assert found.sha256() != Samples(found.specs, found.arrays).sha256()
    with pytest.raises(CalibrationError, match=r"store its entries as 's\[0\]'"):
        with_others(Samples(whole.specs, whole.arrays), proto)
    empty = with_others(Samples(whole.specs, whole.arrays, {"s": np.zeros(0)}), proto)
    assert empty.fixed["s"] == []


def test_an_axis_that_a_sequence_has_too_counts_no_samples() -> None:
    """Fails where samples are cut from an input that the entries of a sequence have to fit."""
    proto = parsed("(seq(float[N]) s, float[N] x, float[M] z) => (float[N] y) { y = Identity(x) }")
    assert [s.batched for s in tensor_specs(proto)] == [False, True]


def test_strings_are_read(tmp_path: Path) -> None:
    """Fails where strings, which files hold at a fixed width, are refused as another type."""
    proto = parsed("(string[2] x) => (string[2] y) { y = Identity(x) }")
    found = checked({"x": np.array(["a", "bc"])}, tensor_specs(proto))
    assert Session(proto).run(found.example())["y"].tolist() == ["a", "bc"]
    random = stand_ins.random(proto, tensor_specs(proto), 1, 0, lambda f: bool(Session(proto).run(f)))
    assert all(isinstance(v, str) for v in random.arrays["x"])


def test_sizes_of_zero_are_kept() -> None:
    """Fails where an input that is declared empty cannot be given; no samples at all still are none."""
    specs = (InputSpec("x", FLOAT, (2, 0)),)
    assert checked({"x": np.zeros((2, 0), np.float32)}, specs).arrays["x"].shape == (2, 0)
    with pytest.raises(CalibrationError, match="is empty"):
        checked({"x": np.zeros((0, 3), np.float32)}, (InputSpec("x", FLOAT, (None, 3)),))
