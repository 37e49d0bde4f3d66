"""Columns in blocks give what the whole matrix gives, whatever the number of cores."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.numerics import columns
from onnxprune.numerics.columns import by_columns
from onnxprune.threads import limited
from tests.compare import assert_same


@pytest.mark.parametrize("count", [0, 1, columns._BLOCK, columns._BLOCK + 1, 3 * columns._BLOCK])
@pytest.mark.parametrize("cores", [1, 2])
def test_blocks_cover_every_column_once(count: int, cores: int) -> None:
    """Fails where a block is lost, doubled or out of order."""
    rng = np.random.default_rng(count)
    a, b = rng.standard_normal((5, 7)), rng.standard_normal((7, count))
    widths: list[int] = []

    def function(block: np.ndarray) -> np.ndarray:
        widths.append(block.shape[1])
        return a @ block

    with limited(cores):
        found = by_columns(function, b)
    assert found.shape == (5, count)
    assert_same(found, a @ b, rtol=1e-13, atol=1e-13)
    assert sum(widths) == count
    assert max(widths) <= columns._BLOCK


def test_the_bytes_do_not_depend_on_the_cores() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((300, 300)), rng.standard_normal((300, 700))
    found = []
    for cores in (1, 2, 3):
        with limited(cores):
            found.append(by_columns(lambda block: a @ block, b).tobytes())
    assert found[0] == found[1] == found[2]


def test_an_error_in_a_block_is_raised() -> None:
    def broken(block: np.ndarray) -> np.ndarray:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        by_columns(broken, np.ones((2, 2 * columns._BLOCK)))
