"""Every option out of range is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onnxprune.config import ATTENTIONS, BUDGETS, METHODS, REFITS, PruneConfig
from onnxprune.errors import UsageError


def test_defaults_hold():
    config = PruneConfig()
    assert (config.ratio, config.budget, config.method, config.refit) == (0.5, "macs", "obs", "lockstep")


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_ratio_out_of_range(ratio: float):
    with pytest.raises(UsageError, match=r"outside \(0, 1\)"):
        PruneConfig(ratio=ratio)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_uniform_out_of_range(share: float):
    with pytest.raises(UsageError, match=r"uniform .* outside \(0, 1\)"):
        PruneConfig(uniform=share)


def test_ratio_and_uniform_exclude_each_other():
    """Fails where one of the two is dropped without a word, or the default ratio stands beside a uniform share."""
    with pytest.raises(UsageError, match="exclude each other"):
        PruneConfig(ratio=0.5, uniform=0.5)
    config = PruneConfig(uniform=0.3)
    assert (config.ratio, config.uniform, config.share) == (None, 0.3, 0.3)
    assert PruneConfig(ratio=0.4).share == 0.4


def test_options_replace_ratio_by_uniform_and_back():
    """Fails where the default ratio, or an earlier choice, forbids the other one."""
    uniform = PruneConfig(seed=3).with_options(uniform=0.3)
    assert uniform == PruneConfig(uniform=0.3, seed=3)
    assert uniform.with_options(seed=4) == PruneConfig(uniform=0.3, seed=4)
    assert uniform.with_options(ratio=0.4) == PruneConfig(ratio=0.4, seed=3)
    with pytest.raises(UsageError, match="exclude each other"):
        uniform.with_options(ratio=0.4, uniform=0.2)


@pytest.mark.parametrize(
    ("options", "reads"),
    [
        ({"uniform": 0.5, "method": "magnitude", "refit": "none"}, False),
        ({"uniform": 0.5, "method": "random", "refit": "none"}, False),
        ({"uniform": 0.5, "method": "obs", "refit": "none"}, True),
        ({"uniform": 0.5, "method": "magnitude", "refit": "scale"}, True),
        ({"ratio": 0.5, "method": "magnitude", "refit": "none"}, True),
    ],
)
def test_what_reads_statistics(options: dict[str, Any], reads: bool):
    assert PruneConfig(**options).reads_statistics is reads


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"budget": "latency"}, "budget 'latency' is unknown; choose one of macs, params"),
        ({"method": "magic"}, "method 'magic' is unknown"),
        ({"refit": "all"}, "refit 'all' is unknown"),
        ({"attention": "rows"}, "attention 'rows' is unknown"),
        ({"round_to": 0}, "round_to is 0"),
        ({"min_channels": 0}, "min_channels is 0"),
        ({"memory": 0}, "memory is 0"),
        ({"samples": 0}, "samples is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_refused(options: dict[str, Any], match: str):
    with pytest.raises(UsageError, match=match):
        PruneConfig(**options)


@pytest.mark.parametrize(
    ("name", "choices"), [("budget", BUDGETS), ("method", METHODS), ("refit", REFITS), ("attention", ATTENTIONS)]
)
def test_every_choice_is_accepted(name: str, choices: tuple[str, ...]):
    for choice in choices:
        assert getattr(PruneConfig(**{name: choice}), name) == choice


def test_as_dict_is_plain_data():
    """Fails where a plan or a report could not hold the options."""
    config = PruneConfig(include=("a*",), samples=3)
    data = json.loads(json.dumps(config.as_dict()))
    assert PruneConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}) == config
