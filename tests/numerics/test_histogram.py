"""Histograms that widen, and the range in which a distribution loses least."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from onnxruntime.quantization.calibrate import HistogramCollector  # noqa: TID251  the oracle

from onnxprune.numerics.entropy import bins_kept
from onnxprune.numerics.histogram import Histogram

RNG = np.random.default_rng(3)


def test_counts_are_those_of_all_parts_at_once():
    """Fails where a number is lost or moved as the range doubles."""
    parts = [RNG.standard_normal(500).astype(np.float32) * s for s in (0.0, 1e-3, 1.0, 37.0, 0.1)]
    h = Histogram()
    for p in parts:
        h.add(p)
    every = np.concatenate(parts)
    expected, edges = np.histogram(every, h.bins, (-h.edge, h.edge))
    assert h.edge == 2.0 ** np.ceil(np.log2(np.abs(every).max()))
    assert (h.least, h.most) == (every.min(), every.max())
    np.testing.assert_allclose(h.edges, edges)
    assert h.counts.sum() == every.size
    # A number on an edge may be on either side of it.
    assert np.abs(np.cumsum(h.counts) - np.cumsum(expected)).max() <= 1
    assert h.square == pytest.approx(float((every.astype(np.float64) ** 2).mean()), rel=0.02)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-35, 1e35])
def test_the_bin_of_a_number_is_the_one_on_paper(kind: type[np.floating], scale: float):
    """Fails where a number lies in another bin than floor(x B / 2T), of which exact arithmetic says what it is."""
    if kind is np.float16 and scale != 1.0:
        pytest.skip("beyond half precision")
    values = (RNG.standard_normal(4000) * scale).astype(kind)
    h = Histogram()
    h.add(values)
    h.add(np.array([-h.edge, h.edge], np.float64))
    places = [min(Fraction(float(x)) * h.bins // (2 * Fraction(h.edge)) + h.bins // 2, h.bins - 1) for x in values]
    expected = np.bincount(np.array([int(p) for p in places]), minlength=h.bins)
    expected[[0, -1]] += 1
    np.testing.assert_array_equal(h.counts, expected)


def test_what_is_not_finite_is_counted_apart():
    h = Histogram()
    h.add(np.array([1.0, np.inf, np.nan, -2.0, -np.inf], np.float32))
    assert (h.infinite, h.least, h.most, h.counts.sum()) == (3, -2.0, 1.0, 2)
    empty = Histogram()
    empty.add(np.zeros((0, 3), np.float32))
    assert (empty.counts.sum(), empty.square) == (0, 0.0)


def test_ranges_from_tiny_to_huge_take_no_more_memory():
    """Fails where bins are added instead of widened: the first part would ask for 10^30 of them."""
    h = Histogram()
    h.add(np.full(3, 1e-30, np.float32))
    h.add(np.full(3, 3e38, np.float32))
    assert (h.counts.size, h.counts.sum()) == (h.bins, 6)


@pytest.mark.parametrize("tail", [0.0, 4.0, 40.0])
def test_entropy_cuts_off_a_tail_as_onnxruntime_does(tail: float):
    """Fails where the range is far from that of onnxruntime's own search, which spreads counts a little otherwise."""
    values = np.abs(RNG.standard_normal(20_000))
    values[:4] += tail
    h = Histogram(512)
    h.add(values)
    found = 2.0 * h.edge * bins_kept(h.counts) / h.bins
    collector = HistogramCollector("entropy", False, 512, 128, 99.99, "same")
    ends = np.float32(h.least), np.float32(h.most)
    _, high = collector.get_entropy_threshold((h.counts, h.edges.astype(np.float32), *ends), 128)
    assert found >= 2.0  # nothing of the bulk goes
    assert min(found, h.most) == pytest.approx(float(high), rel=0.35)


def test_entropy_of_nothing_and_of_few():
    counts = np.zeros(512, np.int64)
    assert bins_kept(counts) == 256
    counts[256] = 5
    assert 64 <= bins_kept(counts) <= 256
