"""Every option out of range is refused by name."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from onnxprune.config import ATTENTIONS, METRICS, RECOVER, Options, PruneConfig
from onnxprune.errors import UsageError
from onnxprune.methods import BUDGETS, METHODS, REFITS


def test_defaults_hold():
    config = PruneConfig()
    assert (config.ratio, config.budget, config.method, config.refit) == (0.5, "macs", "obs", "lockstep")


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_ratio_out_of_range(ratio: float):
    with pytest.raises(UsageError, match=r"outside \(0, 1\)"):
        PruneConfig(ratio=ratio)


def test_recover_out_of_range():
    with pytest.raises(UsageError, match="number of passes"):
        PruneConfig(recover=-1)


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({}, RECOVER),
        ({"refit": "least-squares"}, 0),
        ({"fast": True}, 0),
        ({"recover": 0}, 0),
        ({"recover": 3, "refit": "none"}, 3),
        ({"effort": 30}, 5),
        ({"effort": 6, "refit": "none"}, 1),
    ],
)
def test_recovery_goes_with_lockstep(options: dict[str, Any], epochs: int):
    """Fails where a quick refit is slowed down unasked, or the default run gives accuracy away."""
    assert PruneConfig(**options).epochs == epochs


def test_fast_and_recover_exclude_each_other():
    with pytest.raises(UsageError, match="leave out one of fast and recover"):
        PruneConfig(fast=True, recover=3)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"fast": True}, "leave out one of fast and effort"),
        ({"recover": 2}, "leave out one of them"),
        ({"effort": 5}, "give at least 6"),
        ({"effort": 0}, "or fast for no recovery"),
    ],
)
def test_an_effort_says_it_alone(options: dict[str, Any], why: str):
    with pytest.raises(UsageError, match=why):
        PruneConfig(**({"effort": 30} | options))


NUMBERS = ("batch", "threads", "probes", "recover", "effort", "round_to", "min_channels", "seed", "samples", "memory")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [10**400, 2**63, -1, -(10**30), 1.5, float("nan"), "3", "auto ", True, [3], b"3"])
def test_numbers_that_are_none_or_absurd(name: str, value: Any):
    """Fails where such a number gets past the options: it would run for ever, or end where numpy cannot hold it."""
    budget = "latency" if name in ("batch", "threads") else "macs"
    with pytest.raises(UsageError, match=name) as e:
        PruneConfig(**{name: value, "budget": budget})
    assert len(str(e.value)) < 200


@pytest.mark.parametrize("name", ["ratio", "uniform", "tolerance"])
@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan"), "0.5", True, [0.5], 1j, -1])
def test_shares_that_are_none(name: str, value: Any):
    with pytest.raises(UsageError, match=name):
        PruneConfig(**{name: value})


@pytest.mark.parametrize(
    "options",
    [
        {"method": None},
        {"budget": 3},
        {"refit": ["none"]},
        {"target": {}},
        {"attention": b"heads"},
        {"labels": 3, "method": "taylor"},
        {"fast": "no"},
        {"force": 1},
        {"drop_branches": 0},
        {"include": "conv*"},
        {"exclude": (1,)},
        {"exclude": None},
    ],
)
def test_values_of_another_type(options: dict[str, Any]):
    """Fails where a pattern is taken letter by letter, "no" for yes, or a type that compares with nothing goes on."""
    with pytest.raises(UsageError, match=next(iter(options))):
        PruneConfig(**options)


@pytest.mark.parametrize("name", ["include", "exclude"])
def test_endless_patterns(name: str):
    """Fails where a pattern takes minutes to compile."""
    with pytest.raises(UsageError, match="has 20000 letters"):
        PruneConfig(**{name: ("[" * 20_000,)})


def test_numbers_of_numpy_are_numbers():
    """Fails where a plan cannot be written because an option came from an array."""
    config = PruneConfig(ratio=np.float32(0.25), seed=np.int64(3), fast=np.bool_(True), include=["a", "b"])  # type: ignore[arg-type]
    assert config == PruneConfig(ratio=0.25, seed=3, fast=True, include=("a", "b"))
    json.dumps(config.as_dict())


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_uniform_out_of_range(share: float):
    with pytest.raises(UsageError, match=r"uniform .* outside \(0, 1\)"):
        PruneConfig(uniform=share)


def test_branches_stay_unless_they_are_asked_for():
    """Fails where a run removes whole layers unasked, or a uniform cut takes all of a branch."""
    assert [PruneConfig(drop_branches=d).drops for d in (None, False, True)] == [False, False, True]
    with pytest.raises(UsageError, match="drops no branch"):
        PruneConfig(uniform=0.5, drop_branches=True)


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


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan"), float("inf")])
def test_tolerance_out_of_range(tolerance: float):
    with pytest.raises(UsageError, match=r"tolerance is .* a finite number above 0"):
        PruneConfig(tolerance=tolerance)


@pytest.mark.parametrize(
    "options", [{"ratio": 0.5, "tolerance": 0.1}, {"uniform": 0.5, "tolerance": 0.1}, {"ratio": 0.5, "uniform": 0.5}]
)
def test_ratio_uniform_and_tolerance_exclude_each_other(options: dict[str, Any]):
    with pytest.raises(UsageError, match="exclude each other"):
        PruneConfig(**options)
    one, other = options.items()
    replaced = PruneConfig(**dict([one])).with_options(**dict([other]))
    assert replaced == PruneConfig(**dict([other]))


def test_a_tolerance_stands_alone():
    """Fails where the default ratio stands beside it."""
    config = PruneConfig(tolerance=2.5)
    assert (config.ratio, config.uniform, config.share, config.sequential) == (None, None, None, True)


@pytest.mark.parametrize("method", METHODS)
def test_coefficients_need_a_method_that_gives_them(method: str):
    """Fails where a refit would find no coefficients, or is refused where there are some."""
    if METHODS[method].scales:
        assert PruneConfig(method=method, refit="greedy").refit == "greedy"
    else:
        with pytest.raises(UsageError, match="'greedy' needs a greedy method"):
            PruneConfig(method=method, refit="greedy")


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
        ({"budget": "energy"}, "budget 'energy' is unknown; choose one of macs, params, latency"),
        ({"budget": "latency", "uniform": 0.5}, "a share of the time, given by ratio; leave out uniform"),
        ({"budget": "latency", "tolerance": 0.1}, "a share of the time, given by ratio; leave out tolerance"),
        ({"batch": 8}, "batch and threads say what budget 'latency' measures; leave them out, or choose it"),
        ({"threads": 1, "budget": "params"}, "batch and threads say what budget 'latency' measures"),
        ({"batch": 0, "budget": "latency"}, "batch is 0"),
        ({"threads": -1, "budget": "latency"}, "threads is -1; it is a number of threads, 0 for"),
        ({"method": "magic"}, "method 'magic' is unknown"),
        ({"refit": "all"}, "refit 'all' is unknown"),
        ({"attention": "rows"}, "attention 'rows' is unknown"),
        ({"metric": "rows"}, "metric 'rows' is unknown"),
        ({"probes": 0}, "probes is 0"),
        ({"round_to": 0}, "round_to is 0"),
        ({"round_to": "often"}, "round_to 'often' is unknown; give a number of channels, or 'auto'"),
        ({"target": "tpu"}, "target 'tpu' is unknown; choose one of ort-cpu, ort-cuda, tensorrt-fp16, tensorrt-int8"),
        ({"min_channels": 0}, "min_channels is 0"),
        ({"memory": 0}, "memory is 0"),
        ({"samples": 0}, "samples is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"ratio": 1.0}, "it is the share of the MACs to remove"),
        ({"ratio": 0.0, "budget": "params"}, "it is the share of the parameters to remove"),
        ({"tolerance": float("inf")}, "tolerance is inf; it is a finite number above 0"),
    ],
)
def test_refused(options: dict[str, Any], match: str):
    with pytest.raises(UsageError, match=match):
        PruneConfig(**options)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        *[("budget", BUDGETS), ("method", METHODS), ("refit", REFITS), ("attention", ATTENTIONS), ("metric", METRICS)],
    ],
)
def test_every_choice_is_accepted(name: str, choices: tuple[str, ...]):
    for choice in choices:
        method = {"method": "local"} if choice == "greedy" else {}
        assert getattr(PruneConfig(**(method | {name: choice})), name) == choice


def test_as_dict_is_plain_data():
    """Fails where a plan or a report could not hold the options."""
    config = PruneConfig(include=("a*",), samples=3)
    data = json.loads(json.dumps(config.as_dict()))
    assert PruneConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}) == config


def test_options_are_the_fields():
    """Fails where an option is added that editors and type checkers do not know."""
    assert Options.__annotations__.keys() == {f.name for f in fields(PruneConfig)}
    assert [f.type for f in fields(PruneConfig)] == [t.__forward_arg__ for t in Options.__annotations__.values()]


@pytest.mark.parametrize("pair", ["a", "=0.5", "a=", "a=1", "a=100%", "a=-0.1", "a=nan", "a=x", "a=2"])
def test_shares_of_patterns_that_are_none(pair: str):
    with pytest.raises(UsageError, match="no pattern with a share"):
        PruneConfig(ratio_of=(pair,))


def test_shares_of_patterns():
    assert PruneConfig(ratio_of=("a=b=0.2", "*=30%", "c=0")).shares_of == (("a=b", 0.2), ("*", 0.3), ("c", 0.0))
    with pytest.raises(UsageError, match="more than max_ratio"):
        PruneConfig(ratio_of=("a=0.5",), max_ratio=0.4)
    with pytest.raises(UsageError, match="tolerance decides each width"):
        PruneConfig(tolerance=0.1, same_widths=("a",))


def test_how_long_recovery_takes_is_said_anew():
    """Fails where what a plan says of recovery contradicts what is asked of its replay."""
    planned = PruneConfig(effort=30)
    assert planned.with_options(fast=True).epochs == 0
    assert planned.with_options(recover=2).epochs == 2
    assert planned.with_options(recover=0).epochs == 0
    assert planned.with_options(fast=False).epochs == 5
    assert PruneConfig(recover=2).with_options(ratio=0.2, effort=12).epochs == 2
    assert PruneConfig(fast=True).with_options(effort=12).epochs == 2
    with pytest.raises(UsageError, match="leave out one of fast and recover"):
        planned.with_options(fast=True, recover=2)
