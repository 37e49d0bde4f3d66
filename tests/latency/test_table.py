"""Tables, against functions that they can hold exactly."""

from __future__ import annotations

from itertools import pairwise, product
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.latency.table import Sample, fit

WIDTHS = (8, 16, 24, 40, 48, 64)


def convolution(block: int, inputs: float, outputs: float) -> float:
    """Seconds: a start, what is read, written and multiplied, in whole blocks."""
    i, o = ceil(inputs / block) * block, ceil(outputs / block) * block
    return 2e-6 + 1e-8 * i + 3e-8 * o + 4e-10 * i * o


@pytest.mark.parametrize("block", [1, 4, 8, 16, 32])
def test_a_stepwise_product_is_found_again_between_the_measurements(block: int):
    samples = [Sample((i, o), convolution(block, i, o)) for i, o in product((*WIDTHS, 9, 33), repeat=2)]
    table = fit(samples, (64, 64))
    assert table.block == block
    for i, o in product((7, 12, 32, 56), repeat=2):
        assert table.at((i, o)) == pytest.approx(convolution(block, i, o), rel=1e-6)


def test_a_layer_without_channels_takes_no_time():
    table = fit([Sample((x,), 1e-6 + 1e-8 * x) for x in WIDTHS], (64,))
    assert table.at((0,)) == 0.0
    assert table.at((8,)) > 1e-6


@given(st.lists(st.floats(1e-7, 1e-3), min_size=6, max_size=6))
def test_a_wider_layer_never_takes_less(seconds: list[float]):
    table = fit([Sample((x,), s) for x, s in zip(WIDTHS, seconds, strict=True)], (64,))
    times = [table.at((x,)) for x in range(1, 65)]
    assert all(a <= b * (1 + 1e-12) for a, b in pairwise(times))


def test_noise_on_single_measurements_averages_out():
    rng = np.random.default_rng(0)
    at = list(product(range(8, 65, 8), repeat=2))
    samples = [Sample((i, o), convolution(8, i, o) * float(rng.normal(1.0, 0.05))) for i, o in at]
    table = fit(samples, (64, 64))
    errors = [table.at((i, o)) / convolution(8, i, o) - 1 for i, o in product(WIDTHS, repeat=2)]
    assert np.sqrt(np.mean(np.square(errors))) < 0.03


def test_one_measurement_is_a_constant():
    assert fit([Sample((8, 8), 3e-6)], (64, 64)).at((8, 8)) == pytest.approx(3e-6)
