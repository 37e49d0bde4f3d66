"""Every part of a split keeps a channel, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from onnxprune import plan, prune
from onnxprune.allocation import every_part
from onnxprune.config import PruneConfig
from onnxprune.errors import BudgetUnreachable, UsageError
from onnxprune.selection import Path
from tests.graphs import TABLE
from tests.prepared import Prepared

Lookup = Callable[[str], Prepared]


def path(order: list[int]) -> Path:
    return Path(np.array(order), np.linspace(1.0, 0.0, len(order) + 1))


def test_least_units(prepared: Lookup):
    assert prepared("chunk_uneven").channels.least_units[0] == 3
    assert prepared("plain").channels.least_units[0] == 1


def test_exchange(prepared: Lookup):
    """Parts are units 0..2, 3..5, 6..7; the path prefers the first part."""
    channels = prepared("chunk_uneven").channels
    order = path([7, 6, 5, 3, 4, 2, 1, 0])
    kept = every_part.with_every_part(channels, {0: order.kept(3)}, [order])
    assert kept is not None
    assert np.flatnonzero(kept[0]).tolist() == [0, 4, 6]
    assert np.flatnonzero(order.kept(3)).tolist() == [0, 1, 2]


def test_nothing_to_exchange(prepared: Lookup):
    channels = prepared("chunk_uneven").channels
    order = path([7, 5, 2, 1, 4, 6, 3, 0])
    kept = every_part.with_every_part(channels, {0: order.kept(3)}, [order])
    assert kept is not None
    assert np.array_equal(kept[0], order.kept(3))
    assert every_part.with_every_part(channels, {0: order.kept(2)}, [order]) is None


def test_what_is_empty_stays_empty(prepared: Lookup):
    """Fails where a branch that shall go gets a unit back, or one that must stay is let go."""
    channels = prepared("two_branches_and_no_stream").channels
    paths = [path(list(range(g.size))) for g in channels.groups]
    sizes = {g.size: g.index for g in channels.groups}
    one, other = ({sizes[n]: np.zeros(n, bool)} for n in (8, 7))
    kept = every_part.with_every_part(channels, one, paths)
    assert kept is not None
    assert not kept[sizes[8]].any()
    assert every_part.with_every_part(channels, {**one, **other}, paths) is None


@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_pruning_a_split(ratio: float):
    """Fails where the smallest parts vanish and the cut breaks."""
    row = TABLE["chunk_uneven"]
    result = prune(row.model(), None, row.feeds(16), ratio=ratio, round_to=1)
    assert result.report.achieved >= ratio


def test_too_little_left_for_every_part():
    row = TABLE["chunk_uneven"]
    with pytest.raises(BudgetUnreachable):
        prune(row.model(), None, row.feeds(16), ratio=0.7, round_to=1)


def test_a_plan_that_empties_a_part():
    row = TABLE["chunk_uneven"]
    made = prune(row.model(), None, row.feeds(4), config=PruneConfig(ratio=0.3, round_to=1, refit="none"), dry_run=True)
    bad = replace(made.plan, groups=(plan.GroupPlan(made.plan.groups[0].name, 8, (0, 1, 2)),))
    with pytest.raises(UsageError, match="without a channel"):
        prune(row.model(), None, row.feeds(4), from_plan=bad)
