"""Operators that quantize at run time: with all of their rounding, too, the slice gives the numbers of the oracle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxprune.runtime.saturation import EXACT
from onnxprune.runtime.session import Session
from tests.compare import assert_same
from tests.graphs import TABLE
from tests.prepared import Prepared, least_removals, masked, random_keep, sliced

Lookup = Callable[[str], Prepared]

# Nothing in front of the codes rounds, so none of them falls to the other side of a step.
ROWS = ("lstm_on_codes", "lstm_on_codes_bidirectional", "codes_by_dynamic_range_in_convolution")


@pytest.mark.parametrize("name", ROWS)
def test_ranges_are_those_of_the_oracle(name: str, prepared: Lookup):
    """Fails where a removed channel counts in a range that is taken at run time: its scale would be another one.

    Each unit goes alone, and so does the one that holds the extreme.
    """
    p = prepared(name)
    alone = [units for g in p.channels.groups for units in least_removals(g)]
    keeps = [np.isin(np.arange(p.channels.classes.pinned.size), units, invert=True) for units in alone]
    feeds = {k: 3 * v for k, v in TABLE[name].feeds(3, 0).items()}
    for keep in [*keeps, *(random_keep(p.channels, seed) for seed in range(3))]:
        small, oracle = (Session(m, optimize=False, kernels=EXACT) for m in (sliced(p, keep), masked(p, keep)))
        expected = oracle.run(feeds)
        assert any(np.abs(v).max() > 0 for v in expected.values())
        for output, value in small.run(feeds).items():
            assert_same(value, expected[output], rtol=2e-6, atol=0.0)
