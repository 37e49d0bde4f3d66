"""The search for layers that take most of an error: what it finds, and in how many trials."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from onnxprune.quantization.costly import Suspect, costly, most_trials

LEAST = 0.05


class Trials:
    """Errors that add up: what each layer takes, and how often a set was tried."""

    def __init__(self, taken: Mapping[str, float]) -> None:
        self.taken, self.asked = taken, list[frozenset[str]]()

    def __call__(self, names: frozenset[str]) -> float | None:
        self.asked.append(names)
        return sum(self.taken[k] for k in names)


def spread(count: int, **more: float) -> dict[str, float]:
    """What `count` layers take: these what they are given, the others the rest in equal parts."""
    rest = (1.0 - sum(more.values())) / (count - len(more))
    return {f"l{i:03}": more.get(f"l{i:03}", rest) for i in range(count)}


def suspects(names: Mapping[str, float], noise: Mapping[str, float] | None = None) -> list[Suspect]:
    noise = noise or {}
    return [Suspect(name=k, share=1.0 / len(names), noise=noise.get(k, 1.0)) for k in names]


@pytest.mark.parametrize("count", [5, 30, 120, 1000])
@pytest.mark.parametrize("place", [0.0, 0.37, 0.99])
def test_one_that_stands_out_is_found_wherever_it_stands(count: int, place: float):
    """Fails where a layer that takes most of the error is missed, or trials grow with the number of layers."""
    name = f"l{int(place * count):03}"
    tried = Trials(spread(count, **{name: 0.6}))
    found = costly(suspects(tried.taken), 1.0, tried, LEAST)
    assert max(found, key=lambda k: found[k]) == name
    assert found[name] == pytest.approx(0.6)
    assert len(tried.asked) <= most_trials(count) <= 2 * np.log2(count) + 4


def test_where_many_take_little_the_one_that_takes_more_is_found():
    """Fails where trials go to large groups, which gain as they are large, until none is left for the one."""
    tried = Trials(spread(256, l200=0.07))
    assert set(costly(suspects(tried.taken), 1.0, tried, LEAST)) == {"l200"}
    assert len(tried.asked) <= most_trials(256)


def test_all_that_a_search_of_each_would_find():
    """Fails where one of several is missed that is worth it, or one is told that is not."""
    taken = spread(16, l002=0.3, l003=0.2, l011=0.06)
    found = costly(suspects(taken), 1.0, Trials(taken), LEAST)
    assert set(found) == {"l002", "l003"}  # 0.06 is less than the sixteenth of the work that it does
    cheap = [Suspect(name=k, share=0.01, noise=taken[k]) for k in taken]
    assert set(costly(cheap, 1.0, Trials(taken), LEAST)) == {"l002", "l003", "l011"}


def test_nothing_is_worth_a_second_trial_where_all_take_little():
    """Fails where layers are looked at that cannot take as much as is asked for."""
    tried = Trials(spread(40))
    half = suspects(tried.taken)[:1]
    assert costly(half, None, tried, LEAST) == {}
    assert len(tried.asked) == 1
    assert costly([], None, tried, LEAST) == {}
    assert costly(suspects(tried.taken), 0.04, tried, LEAST) == {}
    assert len(tried.asked) == 1


def test_the_noisiest_are_told_apart_first():
    """Fails where the estimate is of no use: the one layer that it names is found at once."""
    tried = Trials(spread(64, l050=0.9))
    found = costly(suspects(tried.taken, {"l050": 1000.0}), 1.0, tried, LEAST)
    assert found == {"l050": pytest.approx(0.9)}
    assert tried.asked[0] == {"l050"}
    assert len(tried.asked) < 4


def test_trials_that_fail_tell_nothing():
    """Fails where a set that could not be tried passes for one that takes nothing, or for a trial that never ends."""
    taken = spread(8, l005=0.8)

    def gain(names: frozenset[str]) -> float | None:
        return None if len(names) > 1 else taken[next(iter(names))]

    assert costly(suspects(taken), 1.0, gain, LEAST)["l005"] >= 0.8
    assert costly(suspects(taken), None, lambda _: None, LEAST).keys() <= taken.keys()
