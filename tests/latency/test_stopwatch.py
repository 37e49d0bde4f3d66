"""Latencies of a whole model, on a machine whose times are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune import prune
from onnxprune.allocation import budget
from onnxprune.config import PruneConfig
from onnxprune.data.inputs import input_specs
from onnxprune.data.samples import Samples
from onnxprune.errors import BudgetUnreachable, UsageError
from onnxprune.latency.cache import Cache
from onnxprune.latency.search import meet
from onnxprune.latency.stopwatch import GRID, Stopwatch, feeds_of, grid
from onnxprune.stages.couple import couple
from onnxprune.stages.load import Loaded, load
from tests import digits
from tests.latency.synthetic import BLOCK, Synthetic

ROUND_TO = 2


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load(digits.path("resnet"), digits.CALIB, PruneConfig(samples=16))


def stopwatch(loaded: Loaded, machine: Synthetic, folder: Path, **options: object) -> Stopwatch:
    settings = PruneConfig(round_to=ROUND_TO, **options)
    coupled = couple(loaded, settings)
    widths = coupled.widths.allowed
    cache = Cache(folder, machine.identity())
    feeds = feeds_of(loaded.fit, 1)
    n = loaded.normalised
    return Stopwatch(loaded.original, n.proto, coupled.channels, widths, feeds, machine, cache, alignment=ROUND_TO)


def test_the_cost_is_the_time_of_the_cut_model(loaded: Loaded, tmp_path: Path):
    """Fails where a layer is forgotten, counted twice, or read at the width of another group."""
    machine = Synthetic()
    watch = stopwatch(loaded, machine, tmp_path)
    before = machine.seconds(loaded.original, watch.feeds)
    rng = np.random.default_rng(1)
    for _ in range(12):
        kept = tuple(int(rng.choice(w)) for w in watch.widths)
        model = watch.cut(kept)
        assert model is not None
        assert watch.cost.at(kept) == pytest.approx(machine.seconds(model, watch.feeds) / before, rel=1e-3)


def test_one_width_too_few_is_seen(loaded: Loaded, tmp_path: Path):
    """The mutation check of the test above."""
    machine = Synthetic()
    watch = stopwatch(loaded, machine, tmp_path)
    kept = [w[len(w) // 2] for w in watch.widths]
    model = watch.cut(kept)
    assert model is not None
    kept[0] -= BLOCK
    share = machine.seconds(model, watch.feeds) / machine.seconds(loaded.original, watch.feeds)
    assert abs(watch.cost.at(kept) / share - 1.0) > 5e-3


def test_measured_layers_are_not_measured_again(loaded: Loaded, tmp_path: Path):
    first, second = Synthetic(), Synthetic()
    watch = stopwatch(loaded, first, tmp_path)
    watch.measure()
    assert first.profiled == 1 + GRID + 2
    again = stopwatch(loaded, second, tmp_path)
    again.measure()
    assert second.profiled == 1
    layers, kinds, known = again.counts
    assert 0 < kinds == known <= layers
    kept = tuple(w[0] for w in watch.widths)
    assert again.cost.at(kept) == watch.cost.at(kept)
    saved = again.timed(None, kept).saved
    alone = [(*again.channels.sizes[:g], n, *again.channels.sizes[g + 1 :]) for g, n in enumerate(kept)]
    assert saved == pytest.approx([again.cost.at(again.channels.sizes) - again.cost.at(n) for n in alone])
    assert min(saved) > 0.0
    for path in tmp_path.rglob("*.json"):
        path.write_text("{", encoding="utf-8")
    third = Synthetic()
    broken = stopwatch(loaded, third, tmp_path)
    broken.measure()
    assert third.profiled == 1 + GRID + 2
    assert len(broken.timed(None, kept).notes) == kinds


def test_other_limits_on_the_widths_measure_anew(loaded: Loaded, tmp_path: Path):
    """Fails where measurements of a layer whose inputs stay whole are taken for those of one whose inputs do not."""
    stopwatch(loaded, Synthetic(), tmp_path, exclude=("/3/conv1/Conv",)).measure()
    machine = Synthetic()
    watch = stopwatch(loaded, machine, tmp_path)
    watch.measure()
    assert machine.profiled == 1 + GRID + 2


@pytest.mark.parametrize("drag", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("wanted", [0.7, 0.8])
def test_the_measured_time_is_met_though_the_prediction_is_off(
    loaded: Loaded, tmp_path: Path, drag: float, wanted: float
):
    machine = Synthetic(drag=drag, block=1)
    watch = stopwatch(loaded, machine, tmp_path)
    curves = [np.linspace(1.0, 0.0, w[-1] + 1) ** 2 * w[-1] for w in watch.widths]
    least = budget.smallest(watch.cost, watch.widths)
    assert least < wanted

    def decide(limit: float) -> tuple[int, ...]:
        return budget.allocate(curves, watch.cost, budget.Budget(limit, watch.widths)).kept

    best = meet(decide, watch.share, wanted, least)[0]
    model = watch.cut(best.kept)
    assert model is not None
    share = machine.seconds(model, watch.feeds) / machine.seconds(loaded.original, watch.feeds)
    assert share == pytest.approx(best.measured) == pytest.approx(wanted, rel=0.02)


def test_the_grid_takes_every_group_through_its_widths():
    widths = [(2, 4, 6, 8), tuple(range(1, 33)), (16,)]
    points = grid(widths, 16)
    assert points == grid(widths, 16)
    assert points[:2] == [(8, 32, 16), (2, 1, 16)]
    for g, w in enumerate(widths):
        seen = [kept[g] for kept in points[2:]]
        assert set(seen) <= set(w)
        assert [sum(a <= v < b for v in seen) for a, b in ((w[0], w[len(w) // 2]), (w[len(w) // 2], w[-1] + 1))] == (
            [8, 8] if len(w) > 1 else [0, 16]
        )


def test_a_run_has_the_batch_that_is_asked_for(loaded: Loaded):
    assert len(feeds_of(loaded.fit, 3)["input"]) == 3
    assert len(feeds_of(loaded.fit, 50)["input"]) == 50
    fixed = type(loaded.original)()
    fixed.CopyFrom(loaded.original)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    one = Samples(input_specs(fixed), loaded.fit.arrays)
    assert len(feeds_of(one, 1)["input"]) == 1
    with pytest.raises(UsageError, match="one sample at a time, not a --batch of 2"):
        feeds_of(one, 2)


# the whole run


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Synthetic:
    """What stands in for onnxruntime, with a cache of its own."""
    found = Synthetic(drag=0.2, block=1)
    monkeypatch.setattr("onnxprune.stages.time_layers.OnnxRuntime", lambda *_, **__: found)
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))
    return found


FAST = {"budget": "latency", "round_to": 2, "recover": 0, "samples": 64}


@pytest.mark.parametrize("method", ["obs", "local", "combined", "magnitude"])
def test_a_run_meets_its_budget(machine: Synthetic, method: str):
    result = prune(digits.path("resnet"), None, digits.CALIB, ratio=0.3, method=method, **FAST)
    found = result.report.timing
    assert found is not None
    assert result.report.achieved == pytest.approx(0.3, abs=0.015)
    assert result.report.achieved == 1.0 - found["measured"]
    assert found["predicted"] == pytest.approx(found["measured"], rel=0.1)
    feeds = feeds_of(load(digits.path("resnet"), digits.CALIB, PruneConfig(samples=4)).fit, 1)
    assert result.model is not None
    assert found["after_seconds"] == pytest.approx(machine.seconds(result.model, feeds))


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "CUDAExecutionProvider"), ({"provider": "cpu"}, "CPUExecutionProvider")],
)
def test_an_explicit_provider_decides_what_times(
    machine: Synthetic, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], expected: str
):
    """Fails where the target times, whatever the user says; and where a missing GPU shows after calibration only."""
    tried: list[str] = []
    timed: list[str] = []

    def build(**options: Any) -> Synthetic:
        timed.append(options["providers"][0])
        return machine

    monkeypatch.setattr("onnxprune.stages.time_layers.OnnxRuntime", build)
    monkeypatch.setattr("onnxprune.sentence.machine.check_starts", lambda providers: tried.append(providers[0]))
    options: dict[str, Any] = {**FAST, "ratio": 0.3, "method": "magnitude", "refit": "none", "target": "ort-cuda"}
    prune(digits.path("resnet"), None, digits.CALIB, dry_run=True, **options, **given)
    assert (tried, timed) == ([expected], [expected])


def test_a_replayed_plan_times_the_result_and_no_layer(machine: Synthetic):
    direct = prune(digits.path("resnet"), None, digits.CALIB, ratio=0.3, method="magnitude", **FAST)
    machine.profiled = 0
    again = prune(digits.path("resnet"), None, digits.CALIB, from_plan=direct.plan)
    assert machine.profiled == 0
    assert direct.model == again.model
    assert again.report.achieved == direct.report.achieved
    assert again.report.timing is not None
    assert again.report.timing["predicted"] is None


def test_a_dry_run_times_the_cut(machine: Synthetic):
    planned = prune(digits.path("resnet"), None, digits.CALIB, ratio=0.3, method="magnitude", dry_run=True, **FAST)
    assert planned.model is None
    assert planned.report.achieved == pytest.approx(0.3, abs=0.015)


def test_a_budget_that_cannot_be_met_says_how_much_can(machine: Synthetic):
    with pytest.raises(BudgetUnreachable, match=r"95% of the latency cannot go: at most \d+\.\d% can; lower --ratio"):
        prune(digits.path("resnet"), None, digits.CALIB, ratio=0.95, method="magnitude", **FAST)


def test_a_time_that_is_missed_when_measured_is_no_success(machine: Synthetic, monkeypatch: pytest.MonkeyPatch):
    """Fails where a model is handed out whose layers promised what the whole does not keep."""
    share = Stopwatch.share
    asked: list[tuple[int, ...]] = []

    def stubborn(watch: Stopwatch, kept: tuple[int, ...]) -> float:
        """The two models that set the cost keep what they promise; no later one is quicker than the original."""
        asked.append(kept)
        return share(watch, kept) if len(asked) <= 2 else 1.0

    monkeypatch.setattr(Stopwatch, "share", stubborn)
    with pytest.raises(BudgetUnreachable, match=r"30% of the latency cannot go: 0.0% is the closest that was measured"):
        prune(digits.path("resnet"), None, digits.CALIB, ratio=0.3, method="magnitude", **FAST)


def test_a_replay_on_another_machine_says_that_its_time_is_another(machine: Synthetic, monkeypatch: pytest.MonkeyPatch):
    direct = prune(digits.path("resnet"), None, digits.CALIB, ratio=0.3, method="magnitude", **FAST)
    assert not any("was asked for" in n for n in direct.report.notes)
    monkeypatch.setattr("onnxprune.stages.time_layers.OnnxRuntime", lambda *_, **__: Synthetic(overhead=1e7))
    again = prune(digits.path("resnet"), None, digits.CALIB, from_plan=direct.plan)
    assert any("of the original's time where 70.0% was asked for" in n for n in again.report.notes)
