"""Data of another type than the model wants: converted where nothing is lost, else refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.data import array_files
from onnxprune.data.inputs import InputSpec
from onnxprune.data.sources import load
from onnxprune.errors import CalibrationError
from tests.compare import assert_same

Array = NDArray[Any]
VALUES = np.array([[1.5, -2.0, 0.25], [1e-3, 3.0, 7.0]])
WHOLE = np.array([[1, 2, 3], [100, 0, 7]])


def read(folder: Path, values: Array, dtype: str) -> tuple[Array, tuple[str, ...]]:
    np.save(folder / "x.npy", values)
    samples = load(folder / "x.npy", (InputSpec("x", np.dtype(dtype), (None, 3)),))
    return samples.slice(0, len(samples))["x"], samples.notes


CONVERTED: dict[str, tuple[Array, str]] = {
    "double to single": (VALUES, "float32"),
    "half to single": (VALUES.astype(np.float16), "float32"),
    "single to double": (VALUES.astype(np.float32), "float64"),
    "single to half": (VALUES.astype(np.float32), "float16"),
    "big-endian": (VALUES.astype(">f4"), "float32"),
    "big-endian integers": (WHOLE.astype(">i8"), "int64"),
    "big-endian to wider": (WHOLE.astype(">i4"), "int64"),
    "wider integers": (WHOLE.astype(np.int32), "int64"),
    "narrower integers": (WHOLE, "int8"),
    "unsigned to signed": (WHOLE.astype(np.uint64), "int32"),
    "a byte for a truth value": ((WHOLE > 2).astype(np.uint8), "bool"),
    "a truth value for an integer": (WHOLE > 2, "int64"),
}


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("large", [array_files.LARGE_BYTES, 1])
@pytest.mark.parametrize("name", CONVERTED)
def test_what_loses_nothing_is_converted_with_a_note(
    name: str, large: int, order: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Fails where values change, or the model is fed another type, or nothing is said."""
    monkeypatch.setattr(array_files, "LARGE_BYTES", large)
    values, dtype = CONVERTED[name]
    found, notes = read(tmp_path, np.asarray(values, order=order), dtype)
    assert found.dtype == np.dtype(dtype) and found.dtype.isnative
    assert_same(found.astype(np.float64), values.astype(dtype).astype(np.float64), rtol=0.0, atol=0.0)
    assert len(notes) == 1 and "converted" in notes[0] and "'x'" in notes[0]


def test_nothing_is_said_of_the_right_type(tmp_path: Path):
    """Fails where a note stands without a conversion."""
    for values, dtype in ((VALUES.astype(np.float32), "float32"), (WHOLE, "int64"), (WHOLE > 2, "bool")):
        assert read(tmp_path, values, dtype)[1] == ()


REFUSED: dict[str, tuple[Array, str, str]] = {
    "beyond half precision": (VALUES * 1e6, "float16", "has values beyond float16"),
    "beyond single precision": (VALUES * 1e300, "float32", "has values beyond float32"),
    "beyond a byte": (WHOLE + 100, "int8", "its values from 100 to 200 do not fit"),
    "negative for unsigned": (WHOLE - 1, "uint8", "do not fit"),
    "large unsigned": (WHOLE.astype(np.uint64) + np.uint64(2**63), "int64", "do not fit"),
    "two for a truth value": (WHOLE.astype(np.uint8), "bool", "the model wants bool, and its values from 0 to 100"),
    "pixels": (WHOLE.astype(np.uint8), "float32", "is uint8, the model wants float32; convert it"),
    "numbers for indices": (VALUES, "int64", "is float64, the model wants int64; convert it"),
    "complex numbers": (VALUES.astype(complex), "float32", "is complex128"),
    "infinite": (np.where(VALUES == 1.5, np.inf, VALUES), "float32", "NaN or infinite"),
}


@pytest.mark.parametrize("large", [array_files.LARGE_BYTES, 1])
@pytest.mark.parametrize("name", REFUSED)
def test_what_loses_something_is_refused(name: str, large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where values wrap, become infinite or change their kind."""
    monkeypatch.setattr(array_files, "LARGE_BYTES", large)
    values, dtype, reason = REFUSED[name]
    with pytest.raises(CalibrationError, match=reason) as e:
        read(tmp_path, values, dtype)
    assert "\n" not in str(e.value)
