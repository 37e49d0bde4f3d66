"""Several cuts of one network: each is what a run of its own makes, and the largest that holds is the largest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onnxprune import prune, sweep
from onnxprune.cli.program import main
from onnxprune.config import PruneConfig
from onnxprune.errors import BudgetUnreachable, RunError, UsageError
from onnxprune.report.progress import Progress
from onnxprune.report.sweep import Point, with_front
from onnxprune.sentence import sweep as sweep_module
from onnxprune.sentence.machine import Machine
from onnxprune.sentence.sweep import ratios_of
from onnxprune.stages import quantize as quantize_stage
from onnxprune.stages.report import speed_gates
from tests import digits
from tests.report.test_forms import check
from tests.topologies.twins import TWINS

QUICK: dict[str, Any] = {"round_to": 1, "refit": "least-squares"}


def test_each_model_is_that_of_a_run_of_its_own(tmp_path: Path):
    """Fails where what is shared makes a difference, or where a point tells of another model than was written."""
    model, data = digits.path("resnet"), digits.CALIB
    found = sweep(model, tmp_path / "new", data, ratios="0.3,60%", fast=True)
    names = [p.name for p in sorted((tmp_path / "new").iterdir())]
    stem = Path(model).stem
    assert names == [f"{stem}-0.3.onnx", f"{stem}-0.6.onnx", "sweep.json", "sweep.md"]
    point = found.points[1]
    alone = prune(model, tmp_path / "alone.onnx", data, ratio=0.6, fast=True)
    assert (tmp_path / "alone.onnx").read_bytes() == Path(point.output or "").read_bytes()
    assert (point.error, point.size) == (alone.report.output_error, alone.report.after)
    table = json.loads((tmp_path / "new" / "sweep.json").read_text())
    assert [p["achieved"] for p in table["points"]] == [p.achieved for p in found.points]
    text = (tmp_path / "new" / "sweep.md").read_text()
    assert all(f"\n| {first} |" in text for first in ("original", "30%", "60%"))


def test_each_point_is_that_of_a_run_that_ends_in_fewer_bits(tmp_path: Path):
    """Fails where a point's figures are of the model in float, its file is another one than that of --then alone."""
    model, data, folder = str(digits.path("resnet")), str(digits.CALIB), tmp_path / "cuts"
    given: dict[str, Any] = {"then": "int8", "ranges": "min-max", "samples": 64, "fast": True, "refit": "least-squares"}
    options = ["--then", "int8", "--ranges", "min-max", "--samples", "64", "--fast", "--refit", "least-squares"]
    assert main(["sweep", model, str(folder), "--ratios", "0.3,0.6", "--calib", data, "-q", *options]) == 0
    table = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    check(table)
    alone = prune(model, tmp_path / "alone.onnx", data, ratio=0.6, **given)
    point, steps = table["points"][1], alone.report.fewer_bits
    assert steps is not None
    assert (tmp_path / "alone.onnx").read_bytes() == Path(point["output"]).read_bytes()
    assert point["size"]["bytes"] == Path(point["output"]).stat().st_size
    assert (point["error"], point["error_in_float"]) == (steps.errors["result"], steps.errors["pruned"])
    assert "| error in float |" in (folder / "sweep.md").read_text(encoding="utf-8")
    assert table["config"]["then"] == "int8"


def test_the_original_is_stored_in_fewer_bits_once(monkeypatch: pytest.MonkeyPatch):
    """Fails where what the original itself loses is asked anew for each ratio."""
    asked, real = [], quantize_stage._alone
    monkeypatch.setattr(quantize_stage, "_alone", lambda *given: (asked.append(given), real(*given))[1])
    given = {"then": "fp16", "samples": 64, "fast": True, "refit": "least-squares"}
    sweep(digits.path("resnet"), None, digits.CALIB, ratios="0.3,0.6", **given)
    assert len(asked) == 1


def test_a_point_that_cannot_be_made_says_why_and_the_others_are_made():
    found = sweep(TWINS.model(), None, TWINS.feeds(64), ratios=(0.4, 0.995), min_channels=4, **QUICK)
    assert [p.made for p in found.points] == [True, False]
    assert "cannot go" in found.points[1].why
    with pytest.raises(BudgetUnreachable):
        sweep(TWINS.model(), None, TWINS.feeds(64), ratios=(0.99, 0.995), min_channels=4, **QUICK)


def test_a_ratio_that_fails_is_a_row_among_the_others(monkeypatch: pytest.MonkeyPatch):
    """Fails where what is wrong with one cut, or with its time, takes the others along or is not said."""
    real, asked = sweep_module.make, []

    def make(prepared: Any, chosen: Any, settings: PruneConfig, stage: Any) -> Any:
        if settings.ratio == 0.4:
            raise RunError("no room")
        return real(prepared, chosen, settings, stage)

    def bench_of(report: Any, loaded: Any, checked: Any, provider: str) -> Any:
        asked.append(provider)
        raise RunError("it does not start")

    monkeypatch.setattr(sweep_module, "make", make)
    monkeypatch.setattr(sweep_module, "bench_of", bench_of)
    monkeypatch.setattr(sweep_module, "provider_named", lambda name: f"the {name}")
    here = Machine.of(PruneConfig(), 1, None, None, ())
    monkeypatch.setattr(Machine, "of", lambda *_, **__: here)
    found = sweep(TWINS.model(), None, TWINS.feeds(64), ratios=(0.2, 0.4, 0.6), bench=True, provider="cuda", **QUICK)
    assert [(p.made, p.why) for p in found.points] == [(True, ""), (False, "no room"), (True, "")]
    assert asked == ["the cuda"] * 2
    assert [n for n in found.notes if "time" in n] == ["its time was not measured: it does not start"]


@pytest.mark.parametrize("stage", ["", "load", "verify", "ratio 0.4 (2 of 2)"])
def test_nothing_is_left_of_a_sweep_that_is_interrupted(tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch):
    """Fails where a folder that was made for the sweep, or a model of a ratio that was done, stays."""

    def watch(progress: Progress) -> None:
        if progress.stage == stage:
            raise KeyboardInterrupt

    if not stage:  # before there is a stage to watch
        monkeypatch.setattr(sweep_module, "called", lambda _: watch(Progress("")))
    with pytest.raises(KeyboardInterrupt):
        sweep(TWINS.model(), tmp_path / "new", TWINS.feeds(16), ratios=(0.2, 0.4), watch=watch, **QUICK)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("keep", "written"), [("best", ["model-0.2.onnx"]), ("none", [])])
def test_what_is_kept(tmp_path: Path, keep: str, written: list[str]):
    """Fails where the best is not the largest cut that holds the limit."""
    trial = sweep(TWINS.model(), None, TWINS.feeds(64), ratios=(0.1, 0.2, 0.7), **QUICK)
    errors = [p.error or 0.0 for p in trial.points]
    limit = (errors[1] + errors[2]) / 2
    sweep(TWINS.model(), tmp_path, TWINS.feeds(64), ratios=(0.1, 0.2, 0.7), keep=keep, max_error=limit, **QUICK)
    assert sorted(p.name for p in tmp_path.glob("*.onnx")) == written


def test_the_front_is_what_nothing_beats():
    """Fails for a point that is both smaller and worse, and for one of two equals."""
    made = [Point(ratio=0.1 * i, achieved=a, error=e) for i, (a, e) in enumerate([(0.1, 0.1), (0.3, 0.05), (0.5, 0.2)])]
    twice = [*made, made[1], Point(ratio=0.9)]
    assert [p.front for p in with_front(twice)] == [False, True, True, True, False]


def test_ratios():
    assert ratios_of("0.1:0.7:0.1") == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    assert ratios_of("40%, 0.2,0.2") == (0.2, 0.4)
    for wrong in (
        "",
        "0.1:0.7",
        "0.7:0.1:0.1",
        "0.1:0.7:0",
        "0.1:0.9:0.001",
        "0,0.5",
        "a",
        "0.5,1",
        "nan",
        "0.1:inf:0.1",
    ):
        with pytest.raises(UsageError):
            ratios_of(wrong)


def test_the_largest_cut_is_that_of_trying_all():
    """Fails where a larger cut of a fine grid holds the limit by more than a fiftieth of the ratio."""
    model, feeds = TWINS.model(), TWINS.feeds(64)
    every = sweep(model, None, feeds, ratios="0.04:0.8:0.04", **QUICK).points
    errors = sorted(p.error for p in every if p.error is not None)
    limit = errors[len(errors) // 2]
    best = max(p.achieved or 0.0 for p in every if p.error is not None and p.error <= limit)
    found = prune(model, None, feeds, largest=True, max_error=limit, **QUICK).report
    assert found.output_error is not None and found.output_error <= limit
    assert found.achieved >= 0.98 * best
    assert any("the largest cut that holds" in n for n in found.notes)


def test_no_cut_holds():
    with pytest.raises(BudgetUnreachable, match="no cut holds the limits"):
        prune(TWINS.model(), None, TWINS.feeds(64), largest=True, max_error=0.0, **QUICK | {"round_to": 8})


@pytest.mark.parametrize(("limit", "code"), [("1e-9", 3), ("90%", 0)])
def test_a_sweep_in_which_no_cut_holds_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: str, code: int
):
    """Fails where a job goes on although no cut holds its limits, or has no table to look at."""
    args = ["--calib", str(digits.CALIB), "--samples", "64", "--fast", "--ratios", "0.5", "--keep", "none"]
    assert main(["sweep", str(digits.path("resnet")), str(tmp_path), *args, "--max-error", limit]) == code
    assert ("no cut of the sweep holds the limits" in capsys.readouterr().err) == bool(code)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sweep.json", "sweep.md"]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--ratio", "auto"], 2, "give one of --max-drop, --min-agreement, --max-error"),
        (["--max-drop", "1"], 2, "give it with --test"),
        (["--ratio", "0.5", "--max-error", "1e-9"], 4, "more than the allowed"),
        (["--ratio", "0.5", "--min-agreement", "100%", "--max-drop", "0", "--test", "TEST"], 4, "top-1 dropped by"),
        (["--min-speedup", "1.2", "--dry-run", "--ratio", "0.5"], 2, "makes no model"),
        (["--max-error", "5%", "--dry-run"], 2, "makes no model"),
    ],
)
def test_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], code: int, said: str):
    """Fails where a limit lets a model out, ends with another exit code, or leaves a file."""
    words = [str(digits.TEST) if a == "TEST" else a for a in args]
    out = tmp_path / "out.onnx"
    assert main([str(digits.path("resnet")), str(out), "--calib", str(digits.CALIB), "--fast", *words]) == code
    assert said in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("comparison", "held"),
    [
        ({"ratio": 0.8, "interval": (0.79, 0.83)}, True),
        ({"ratio": 0.8, "interval": (0.77, 0.84)}, False),
        ({"ratio": 0.5, "interval": None}, False),
        (None, False),
    ],
)
def test_what_is_surely_so_many_times_as_fast(comparison: dict[str, Any] | None, held: bool):
    """Fails where the middle of the interval is taken for its lower end, or what was not measured for fast."""
    report = prune(TWINS.model(), None, TWINS.feeds(16), dry_run=True, **QUICK).report
    (gate,) = speed_gates(replace(report, latency={"comparison": comparison}), 1.2)
    assert gate.held is held
    assert speed_gates(report, None) == ()


def test_a_dry_run_estimates_the_error():
    """Fails where the estimate is not there, does not grow with the cut, or says that it was measured."""
    runs = [prune(TWINS.model(), None, TWINS.feeds(64), ratio=r, dry_run=True, **QUICK) for r in (0.2, 0.4)]
    low, high = (float(r.report.error["estimated"]) for r in runs)
    assert 0.0 < low < high
    assert runs[0].report.output_error is None
    assert any("estimate and no measurement" in n for n in runs[0].report.notes)
