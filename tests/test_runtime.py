"""Outputs of several runs, put together."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import RunError
from onnxprune.runtime import concatenated


def test_samples_on_any_axis():
    """Fails where batches of another size are joined along steps instead of samples."""
    whole = np.arange(2 * 5 * 3).reshape(2, 5, 3)
    found = concatenated([{"y": whole[:, :3]}, {"y": whole[:, 3:]}])
    assert np.array_equal(found["y"], whole)
    assert np.array_equal(concatenated([{"y": whole}, {"y": whole}])["y"], np.concatenate([whole, whole]))


def test_what_is_no_array_is_left_out():
    assert set(concatenated([{"y": np.zeros(2), "s": [np.zeros(2)]}])) == {"y"}


@pytest.mark.parametrize("second", [np.zeros((3, 5)), np.zeros((2, 4, 1))], ids=["two axes", "another rank"])
def test_outputs_that_do_not_fit(second: np.ndarray):
    with pytest.raises(RunError, match="output 'y' has"):
        concatenated([{"y": np.zeros((2, 4))}, {"y": second}])
