"""Connected components against sets that are merged pair by pair."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.numerics import components as module
from onnxprune.numerics.components import components


def merged(left: np.ndarray, right: np.ndarray, count: int) -> list[int]:
    """The component of each thing, numbered by first members."""
    sets = [{i} for i in range(count)]
    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        sets[a] |= sets[b]
        for member in sets[a]:
            sets[member] = sets[a]
    numbers: dict[int, int] = {}
    return [numbers.setdefault(min(s), len(numbers)) for s in sets]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("pairs", [0, 1, 12, 60])
def test_against_merged_sets(seed: int, pairs: int):
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, 30, (2, pairs))
    expected = merged(left, right, 30)
    number, component_of = components(left, right, 30)
    assert number == len(set(expected))
    assert component_of.dtype == np.int64
    assert component_of.tolist() == expected


def test_scipy_gets_indices_of_32_bits(monkeypatch: pytest.MonkeyPatch):
    """Releases that are supported still read others wrongly; the newest hides it."""
    seen = []
    real = module.connected_components

    def watched(links, **options):
        seen.extend([links.row.dtype, links.col.dtype, links.tocsr().indices.dtype])
        return real(links, **options)

    monkeypatch.setattr(module, "connected_components", watched)
    components(np.array([0], np.int64), np.array([1], np.int64), 3)
    assert seen == [np.int32] * 3


def test_more_than_32_bits_can_number_is_refused():
    none = np.zeros(0, np.int64)
    with pytest.raises(ValueError, match="32 bits"):
        components(none, none, 1 << 31)
