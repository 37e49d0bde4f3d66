"""Which layers take most of an error, found by halves: a group that gains little holds none of them.

What a set of layers gains that is left in float is taken to be at least what any of its members gains alone, as errors
of rounding add up. So a group whose gain is not worth its cheapest member is done with, and of any other the front half
is measured; the back half has the rest. The group with the largest gain for each of its members is next, so that one
that stands out among n layers is found in about log₂ n trials.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, count
from math import ceil, log2


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A layer that may take much. share: of the work, which it is to exceed. noise: an estimate of what it takes."""

    name: str
    share: float
    noise: float


def most_trials(layers: int) -> int:
    """How many trials the search may take among so many layers: twice those that lead to one of them, and two."""
    return 2 * ceil(log2(max(layers, 2))) + 2


def costly(
    suspects: Sequence[Suspect], whole: float | None, gain: Callable[[frozenset[str]], float | None], least: float
) -> dict[str, float]:
    """The suspects that alone take a share of the error above `least` and above their own of the work, with that share.

    whole: what all suspects together take; None where that is to be measured. gain: what a set takes, by a trial; None
    where there is no telling. At most `most_trials` are asked for, and what is not told apart by then is left.
    """
    found: dict[str, float] = {}
    groups: list[tuple[float, int, float, tuple[Suspect, ...]]] = []
    order = count()
    left = most_trials(len(suspects))

    def put(group: Sequence[Suspect], share: float) -> None:
        worth = tuple(x for x in group if share > max(least, x.share))
        if len(worth) == len(group) == 1:
            found[worth[0].name] = share
        elif worth:
            heapq.heappush(groups, (-share / len(worth), next(order), share, worth))

    ordered = tuple(sorted(suspects, key=lambda x: (-x.noise, x.name)))
    if whole is None and ordered:
        whole, left = gain(frozenset(x.name for x in ordered)), left - 1
    put(ordered, 1.0 if whole is None else whole)
    while groups and left:
        _, _, share, group = heapq.heappop(groups)
        front, back = _halves(group)
        first, left = gain(frozenset(x.name for x in front)), left - 1
        put(front, share if first is None else first)
        put(back, share if first is None else share - first)
    return found


def _halves(group: Sequence[Suspect]) -> tuple[Sequence[Suspect], Sequence[Suspect]]:
    """Two parts of about the same noise; the back one is empty for a single suspect."""
    until = list(accumulate(x.noise for x in group))
    cut = sum(u <= until[-1] / 2.0 for u in until)
    cut = max(min(max(cut, 1), len(group) - 1), 1)
    return group[:cut], group[cut:]
