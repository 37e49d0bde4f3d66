"""The whole job on the bundled models, and that a broken stage is found before anything is written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import PruneConfig, inspect, plan, prune
from onnxprune.data.inputs import input_specs
from onnxprune.data.samples import Samples
from onnxprune.data.sources import checked
from onnxprune.errors import (
    BudgetUnreachable,
    CalibrationError,
    CheckFailed,
    NothingPrunable,
    RunError,
    UsageError,
)
from onnxprune.intake import model_file
from onnxprune.normalise import Normalised, normalise
from onnxprune.numerics.arrays import Array
from onnxprune.output import commit as output_commit
from onnxprune.runtime.saturation import DEPLOYED
from onnxprune.runtime.session import Session
from onnxprune.sentence import halves
from onnxprune.stages import calibrate, rewrite, save
from onnxprune.stages import verify as verifying
from onnxprune.stages.load import Loaded
from onnxprune.stages.refit import Refitted
from onnxprune.surgery import replace_initializers
from tests import digits
from tests.calibrated import samples_of
from tests.compare import assert_same
from tests.digits import pruned
from tests.graphs import TABLE
from tests.prepared import prepare_row
from tests.topologies.text import Topology

# Points of top-1 that half of the MACs may cost; the measured drop is below half of this.
MARGIN = {"resnet": 0.03, "mobilenet": 0.04}
FAST: dict[str, Any] = {"method": "magnitude", "refit": "none"}


def unfitted(name: str, **options: Any) -> save.PruneResult:
    """A run of a second or less."""
    return pruned(name, **(FAST | options))


def bytes_of(model: onnx.ModelProto | None) -> bytes:
    assert model is not None
    return model.SerializeToString(deterministic=True)


# what comes out


def test_a_handful_of_samples_is_warned_of():
    """Fails where a refit on a few samples passes for a good one; a few hundred need no warning."""
    assert any("only 8 calibration samples" in n for n in pruned("resnet", samples=8).report.notes)
    assert pruned("resnet").report.notes == ()


@pytest.mark.parametrize("name", digits.NAMES)
def test_half_of_the_macs(name: str):
    """Fails where the default settings miss the budget or lose the answer."""
    result = pruned(name)
    assert result.model is not None
    report = result.report
    assert 0.5 <= report.achieved < 0.56
    assert report.after.macs <= 0.5 * report.before.macs
    assert report.after.parameters < report.before.parameters
    assert digits.top1(result.model) >= digits.top1(digits.path(name)) - MARGIN[name]


@pytest.mark.parametrize("name", digits.NAMES)
@pytest.mark.parametrize("method", ["local", "magnitude", "random"])
def test_methods(name: str, method: str):
    result = pruned(name, method=method, refit="least-squares")
    assert result.model is not None
    assert result.report.achieved >= 0.5
    assert result.report.config["method"] == method
    assert digits.top1(result.model) > 0.5


@pytest.mark.parametrize("name", digits.NAMES)
@pytest.mark.parametrize("refit", ["least-squares", "scale", "none"])
def test_refits(name: str, refit: str):
    result = pruned(name, refit=refit)
    assert result.model is not None
    assert result.report.achieved >= 0.5
    assert result.report.checks["refit"] == refit
    assert list(result.report.checks["held_out_error"]) == [refit]


@pytest.mark.parametrize("name", digits.NAMES)
def test_refits_are_ordered(name: str):
    """Fails where a refit does harm on samples that it did not see."""
    errors = {r: pruned(name, refit=r).report.output_error for r in ("lockstep", "least-squares", "none")}
    assert None not in errors.values()
    assert errors["lockstep"] <= errors["least-squares"] < errors["none"]


@pytest.mark.parametrize("name", digits.NAMES)
def test_signature_survives(name: str):
    original, result = onnx.load(digits.path(name)), pruned(name).model
    assert result is not None
    assert list(result.graph.input) == list(original.graph.input)
    assert list(result.graph.output) == list(original.graph.output)
    assert list(result.opset_import) == list(original.opset_import)
    assert result.ir_version == original.ir_version
    onnx.checker.check_model(result, full_check=True)


@pytest.mark.parametrize("name", digits.NAMES)
def test_budget_of_parameters(name: str):
    report = unfitted(name, budget="params", ratio=0.4).report
    assert report.achieved >= 0.4
    assert report.after.parameters <= 0.6 * report.before.parameters


@pytest.mark.parametrize("round_to", [1, 4, 8, 16])
@pytest.mark.parametrize("name", digits.NAMES)
def test_round_to(name: str, round_to: int):
    rows = unfitted(name, ratio=0.3, round_to=round_to).report.groups
    assert any(g.channels_after < g.channels_before for g in rows)
    assert all(g.channels_after % round_to == 0 or g.channels_after == g.channels_before for g in rows)


@pytest.mark.parametrize("options", [FAST, {"refit": "least-squares"}], ids=["magnitude", "obs"])
@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize("name", digits.NAMES)
def test_uniform(name: str, round_to: int, options: dict[str, Any]):
    """Fails where a group keeps anything but its half, rounded down to a width that is allowed."""
    result = pruned(name, uniform=0.5, round_to=round_to, **options)
    assert result.model is not None
    rows = result.report.groups
    for g in rows:
        half = g.channels_before // 2 // round_to * round_to
        assert g.channels_after == (half or g.channels_before), g
    assert any(g.channels_after < g.channels_before for g in rows)
    assert result.report.config["uniform"] == result.report.requested == 0.5
    assert result.report.config["ratio"] is None
    before, after = (sum(n) for n in zip(*((g.channels_before, g.channels_after) for g in rows), strict=True))
    assert result.report.achieved == pytest.approx(1 - after / before, rel=1e-12)
    shapes = digits.widths(result.model)
    assert all(n % round_to == 0 for shape in shapes.values() if len(shape) == 4 for n in shape[:2] if n > 1)


def test_uniform_follows_the_method():
    """Fails where the widths are right and the channels are not those of the selection."""
    masks = {m: unfitted("resnet", uniform=0.5, method=m).plan.groups for m in ("magnitude", "random")}
    assert [len(g.kept) for g in masks["magnitude"]] == [len(g.kept) for g in masks["random"]]
    assert masks["magnitude"] != masks["random"]


def test_uniform_with_patterns():
    """Fails where a uniform cut reaches what --include and --exclude protect."""
    chosen = unfitted("resnet", uniform=0.5, include=("/3/conv1/*",)).report
    assert {g.name for g in chosen.groups if g.channels_after < g.channels_before} == {"/3/conv1/Conv"}
    assert chosen.achieved == 0.5
    whole = unfitted("resnet", uniform=0.5, exclude=("/3/conv1/*",)).report.groups
    cut = {g.name for g in whole if g.channels_after < g.channels_before}
    assert cut == {g.name for g in whole if not g.note}
    assert cut
    assert "/3/conv1/Conv" not in cut


def test_uniform_without_need_of_statistics(monkeypatch: pytest.MonkeyPatch):
    """Fails where magnitudes alone decide and the run still collects statistics or tries cuts."""

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("needless work")

    monkeypatch.setattr("onnxprune.allocation.trial_cuts.measure", never)
    result = prune(digits.path("resnet"), None, digits.CALIB, uniform=0.5, **FAST)
    assert bytes_of(result.model) == bytes_of(unfitted("resnet", uniform=0.5).model)
    monkeypatch.setattr("onnxprune.calibration.input_moments.accumulator", never)
    result = prune(digits.path("resnet"), None, digits.CALIB, uniform=0.5, **FAST)
    assert bytes_of(result.model) == bytes_of(unfitted("resnet", uniform=0.5).model)
    with pytest.raises(AssertionError, match="needless work"):
        prune(digits.path("resnet"), None, digits.CALIB, ratio=0.5, **FAST)


def test_uniform_without_data():
    report = prune(digits.path("mobilenet"), None, uniform=0.5, samples=2, **FAST).report
    assert report.calibration["synthetic"] is True
    assert report.groups == unfitted("mobilenet", uniform=0.5).report.groups


def test_replay_of_a_uniform_plan():
    """Fails where a plan does not record the choice, or its empty ratio."""
    direct = unfitted("mobilenet", uniform=0.5)
    again = prune(digits.path("mobilenet"), None, digits.CALIB, from_plan=direct.plan)
    assert bytes_of(again.model) == bytes_of(direct.model)
    assert again.plan.to_json() == direct.plan.to_json()
    assert again.report.config == direct.report.config
    assert (again.report.requested, again.report.achieved) == (direct.report.requested, direct.report.achieved)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"ratio": 1e-17}, "no channel has to go for 1e-15% of the MACs; give a larger --ratio"),
        ({"ratio": 1e-300, "budget": "params"}, "no channel has to go for 1e-298% of the parameters"),
        (
            {"uniform": 1e-300},
            "no channel has to go for 1e-298% of the channels of every group; give a larger --uniform",
        ),
    ],
)
def test_a_share_below_a_channel(options: dict[str, Any], why: str):
    """Fails where the widths are blamed for a share that asks for nothing."""
    with pytest.raises(NothingPrunable, match=why):
        unfitted("resnet", method="magnitude", round_to=1, **options)


@pytest.mark.parametrize(("ratio", "shown"), [(0.999, "99.9%"), (0.9999, "99.99%"), (1 - 1e-12, "99.9999999999%")])
def test_a_share_out_of_reach_is_not_rounded_away(ratio: float, shown: str):
    """Fails where more than all seems to be asked for, or more is promised than can go."""
    with pytest.raises(BudgetUnreachable) as e:
        unfitted("resnet", method="magnitude", ratio=ratio)
    found = re.fullmatch(r"([\d.]+%) of the MACs cannot go: at most ([\d.]+)% can; lower --ratio", str(e.value))
    assert found is not None
    assert found[1] == shown
    most = float(found[2]) / 100.0
    assert most < ratio
    assert unfitted("resnet", method="magnitude", ratio=most).report.achieved >= most


def test_a_tolerance_that_limits_nothing():
    """Fails where a tolerance is said to be what the cuts ended at, though the widths were."""
    limited, free = (
        unfitted("resnet", tolerance=t, method="magnitude", samples=64, force=True).report for t in (0.05, 1e300)
    )
    assert any("a tolerance of 1e+300 would allow more" in n for n in free.notes)
    assert not any("would allow more" in n for n in limited.notes)


def test_everything_too_narrow():
    with pytest.raises(NothingPrunable, match="too narrow for --round-to"):
        unfitted("resnet", uniform=0.5, round_to=64)


def test_min_channels():
    few = unfitted("mobilenet", ratio=0.5, round_to=1).report.groups
    enough = unfitted("mobilenet", ratio=0.5, round_to=1, min_channels=20).report.groups
    assert min(g.channels_after for g in few) < 20
    assert all(g.channels_after >= 20 or g.channels_after == g.channels_before for g in enough)
    assert {g.note for g in enough if g.channels_before <= 20} == {"too narrow for --round-to and --min-channels"}


def test_include():
    """Fails where anything but what was named is cut."""
    rows = unfitted("resnet", ratio=0.1, include=("/3/conv1/*", "/6/conv1/*")).report.groups
    cut = {g.name for g in rows if g.channels_after < g.channels_before}
    assert cut
    assert cut <= {"/3/conv1/Conv", "/6/conv1/Conv"}
    assert {g.note for g in rows if g.name not in ("/3/conv1/Conv", "/6/conv1/Conv")} == {"not in --include"}


def test_excluded_layer_keeps_inputs_and_outputs():
    result = unfitted("resnet", ratio=0.3, round_to=1, exclude=("/6/conv1/Conv",))
    assert result.model is not None
    node = next(n for n in result.model.graph.node if n.name == "/6/conv1/Conv")
    assert digits.values(result.model, node.input[1]).shape == (32, 32, 3, 3)
    notes = {g.name: g.note for g in result.report.groups}
    assert notes["/6/conv1/Conv"] == "--exclude /6/conv1/Conv"
    assert notes["/5/shortcut/shortcut.0/Conv"] == "--exclude /6/conv1/Conv"
    free = unfitted("resnet", ratio=0.3, round_to=1)
    assert free.model is not None
    assert digits.values(free.model, node.input[1]).shape != (32, 32, 3, 3)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing(option: str):
    """Fails where a spelling mistake silently protects nothing."""
    with pytest.raises(UsageError, match="matches no node and no tensor"):
        prune(digits.path("resnet"), None, digits.CALIB, **{option: ("/nobody/*",)})


# the same again


def test_deterministic():
    options = {"ratio": 0.4, "method": "obs", "refit": "least-squares", "samples": 64}
    first = pruned("mobilenet", **options)
    again = prune(digits.path("mobilenet"), None, digits.CALIB, **options)
    assert bytes_of(again.model) == bytes_of(first.model)
    assert again.plan == first.plan


def test_seed():
    """Fails where the seed is not read, or reaches more than the choices that are random."""
    plans = [unfitted("resnet", method="random", seed=s).plan for s in (0, 1)]
    assert plans[0].groups != plans[1].groups
    assert plans[0] == unfitted("resnet", method="random", seed=0).plan


@pytest.mark.parametrize("name", digits.NAMES)
def test_replay(name: str):
    """Fails where a plan, or the config beside it, does not say all that the run decided."""
    direct = pruned(name, refit="least-squares", ratio=0.4, seed=3)
    text = direct.plan.to_json()
    again = prune(digits.path(name), None, digits.CALIB, from_plan=direct.plan)
    assert bytes_of(again.model) == bytes_of(direct.model)
    assert again.plan.to_json() == text
    assert again.report.config == direct.report.config


def test_replay_with_another_refit():
    direct = pruned("resnet", refit="least-squares")
    again = prune(digits.path("resnet"), None, digits.CALIB, from_plan=direct.plan, refit="none")
    assert again.report.config["refit"] == "none"
    assert bytes_of(again.model) == bytes_of(pruned("resnet", refit="none").model)


def test_replay_with_other_units_of_attention():
    """Fails where a plan's groups could be taken for those of the other units."""
    row = TABLE["attention_by_parts_positions"]
    made = prune(row.model(), None, row.feeds(8), ratio=0.2, round_to=1, attention="head-dim", dry_run=True).plan
    assert prune(row.model(), None, row.feeds(8), from_plan=made, dry_run=True).plan == made
    with pytest.raises(UsageError, match="the plan counts in attention 'head-dim', not 'heads'"):
        prune(row.model(), None, row.feeds(8), from_plan=made, attention="heads", dry_run=True)


def test_replay_on_another_model():
    with pytest.raises(UsageError, match="made for another model"):
        prune(digits.path("mobilenet"), None, digits.CALIB, from_plan=unfitted("resnet").plan)


def test_dry_run_writes_the_plan_only(tmp_path: Path):
    out, saved = tmp_path / "out.onnx", tmp_path / "plan.json"
    result = prune(digits.path("resnet"), out, digits.CALIB, dry_run=True, plan_file=saved, **FAST)
    assert result.model is None
    assert result.report.dry_run
    assert result.report.output is None
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert plan.load(saved).groups == unfitted("resnet").plan.groups
    assert result.report.after.parameters == unfitted("resnet").report.after.parameters


# what goes in


def test_model_in_memory_is_not_changed():
    model = onnx.load(digits.path("resnet"))
    before = model.SerializeToString(deterministic=True)
    arrays = {"input": np.load(digits.CALIB)["input"]}
    result = prune(model, None, arrays, **FAST)
    assert model.SerializeToString(deterministic=True) == before
    assert bytes_of(result.model) == bytes_of(unfitted("resnet").model)
    assert result.report.model == "(in memory)"
    assert result.report.calibration["origin"] == "arrays in memory"


def test_options_replace_the_config():
    config = PruneConfig(ratio=0.9, **FAST)
    result = prune(digits.path("resnet"), None, digits.CALIB, config=config, ratio=0.3)
    assert bytes_of(result.model) == bytes_of(unfitted("resnet", ratio=0.3).model)


def test_no_calibration_is_noted():
    report = prune(digits.path("resnet"), None, **FAST).report
    assert report.calibration["synthetic"] is True
    assert [w.split(":")[0] for w in report.warnings] == ["no calibration data was given"]


def test_few_samples():
    report = unfitted("resnet", samples=24).report
    assert (report.calibration["samples"], report.calibration["held_out"]) == (24, 3)


def test_one_sample():
    """Fails where nothing can be held out."""
    result = prune(digits.path("resnet"), None, digits.CALIB, samples=1, refit="least-squares")
    assert result.report.calibration["held_out"] == 0


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"image": np.zeros((4, 1, 8, 8), np.float32)}, "no data for input 'input'"),
        ({"input": np.zeros((4, 1, 9, 8), np.float32)}, "has shape 4x1x9x8"),
        ({"input": np.zeros((4, 1, 8, 8), np.uint8)}, "is uint8, the model wants float32"),
        ({"input": np.full((4, 1, 8, 8), np.nan, np.float32)}, "NaN"),
        ({"input": np.zeros((0, 1, 8, 8), np.float32)}, "is empty"),
    ],
)
def test_wrong_calibration(arrays: Mapping[str, Array], match: str):
    with pytest.raises(CalibrationError, match=match):
        prune(digits.path("resnet"), None, arrays)


def test_unreachable():
    with pytest.raises(BudgetUnreachable, match=r"at most \d+\.\d% can"):
        prune(digits.path("resnet"), None, digits.CALIB, ratio=0.999)


def test_nothing_prunable():
    text = """<ir_version: 8, opset_import: ["" : 13]>
    main (float[N,4] x) => (float[N,4] y) { y = Relu (x) }"""
    model = onnx.parser.parse_model(text)
    with pytest.raises(NothingPrunable, match="no channel can be removed"):
        prune(model, None)
    found = inspect(model)
    assert (found.groups, found.prunable, found.share) == ((), 0, 0.0)


def test_nothing_prunable_says_what_would_help():
    """Fails where a run that ends with exit code 3 leaves the user without a next step."""
    text = """(float[N,4] x) => (float[N,6] y) {
        h = MatMul(x, w1[4,16])
        g = com.microsoft.SampleOp(h)
        y = MatMul(g, w2[16,6])
    }"""
    model = Topology(text, (), domains=("com.microsoft",)).model()
    with pytest.raises(NothingPrunable, match=r"has no channel rule.*prune the model before onnxruntime's optimizer"):
        prune(model, None)


def test_everything_excluded():
    with pytest.raises(NothingPrunable, match=r"--exclude \*"):
        prune(digits.path("resnet"), None, digits.CALIB, exclude=("*",))


# where it goes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "old.onnx").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    return tmp_path


def listing(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with what it holds."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("place", ["output", "plan_file", "report_file"])
@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("old.json", UsageError, "use --overwrite"),
        ("folder.json", UsageError, "is a folder"),
        ("none/out.json", RunError, "there is no folder"),
        ("old.json/out.json", RunError, "there is no folder"),
        (f"{'x' * 300}.json", RunError, "too long"),
    ],
)
def test_refused_paths(folder: Path, place: str, name: str, error: type[Exception], match: str):
    """Fails where a path that cannot be written is found only after the work."""
    (folder / "old.json").touch()
    (folder / "folder.json").mkdir()
    before = listing(folder)
    stages: list[object] = []
    with pytest.raises(error, match=match):
        prune(digits.path("resnet"), **{place: folder / name}, watch=stages.append)
    assert stages == []
    assert listing(folder) == before


@pytest.mark.skipif(os.name != "posix", reason="the null device is no file there")
def test_special_files_are_not_replaced():
    with pytest.raises(UsageError, match="not an ordinary file"):
        prune(digits.path("resnet"), "/dev/null", overwrite=True)


def test_one_path_for_two_files(folder: Path):
    out = folder / "out.json"
    for pair in ({"output": out, "report_file": out}, {"plan_file": out, "report_file": out}):
        with pytest.raises(UsageError, match="used twice"):
            prune(digits.path("resnet"), **pair)
    model = folder / "model.json"
    model.write_bytes(digits.path("resnet").read_bytes())
    with pytest.raises(UsageError, match="used twice"):
        prune(model, folder / "out.onnx", report_file=model, overwrite=True)


def test_model_in_place(folder: Path):
    """Overwriting the input is allowed when it is asked for."""
    model = folder / "model.onnx"
    model.write_bytes(digits.path("resnet").read_bytes())
    prune(model, model, digits.CALIB, overwrite=True, **FAST)
    assert model.read_bytes() == bytes_of(unfitted("resnet").model)


def test_report_as_json(folder: Path):
    out, saved = folder / "out.onnx", folder / "report.json"
    result = prune(digits.path("resnet"), out, digits.CALIB, report_file=saved, **FAST)
    data = json.loads(saved.read_text(encoding="utf-8"))
    assert set(data) >= {
        *("model", "model_sha256", "output", "dry_run", "config", "requested", "achieved", "before", "after", "groups"),
        *(
            "error",
            "outputs",
            "agreement",
            "verdict",
            "pinned",
            "checks",
            "output_error",
            "calibration",
            "effort",
            "versions",
            "refit",
            "latency",
            "notes",
        ),
        *("alignment", "patterns", "timing", "warnings"),
    }
    assert data["output"] == str(out)
    assert data["after"]["bytes"] == out.stat().st_size
    assert data["before"]["bytes"] == digits.path("resnet").stat().st_size
    assert data["before"]["parameters"] == 42698
    assert data["config"]["ratio"] == data["requested"] == 0.5
    assert data["checks"]["slice_against_oracle"] <= data["checks"]["tolerance"]
    assert data["calibration"] == result.report.calibration
    assert data["calibration"]["origin"] == str(digits.CALIB)
    assert set(data["effort"]["stages"]) == {
        *("load", "couple", "calibrate", "select", "allocate", "rewrite", "refit", "verify")
    }
    assert data["effort"]["passes"] > 0
    assert [g["channels_before"] for g in data["groups"]] == [16, 16, 16, 32, 32, 32]
    assert data["pinned"][0]["reason"] == "the graph output 'logits' keeps its shape"
    assert set(data["versions"]) == {
        *("onnxprune", "onnx", "onnxruntime", "numpy", "scipy", "blas", "processor", "python")
    }
    assert all(data["versions"].values())


@pytest.mark.parametrize("stored", [0, 1, 2])
def test_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch, stored: int):
    """Fails where some of the files are there although the run failed."""
    before = listing(folder)
    real, calls = output_commit.os.fsync, []

    def limited(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > stored:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(output_commit.os, "fsync", limited)
    files = {"plan_file": folder / "plan.json", "report_file": folder / "report.json"}
    with pytest.raises(RunError, match="No space left on device"):
        prune(digits.path("resnet"), folder / "old.onnx", digits.CALIB, overwrite=True, **files, **FAST)
    assert listing(folder) == before


# broken on purpose


def largest_changed(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """A copy with the largest entry of its first kernel multiplied."""
    name = next(t.name for t in model.graph.initializer if len(t.dims) == 4)
    w = digits.values(model, name).copy()
    w.flat[np.abs(w).argmax()] *= factor
    return replace_initializers(model, {name: w})


def expect_failure(folder: Path, match: str, **options: Any) -> None:
    """CheckFailed, its report, and beside that the folder as before."""
    before = listing(folder)
    report = folder / "report.json"
    files = {"plan_file": folder / "plan.json", "report_file": report}
    with pytest.raises(CheckFailed, match=match):
        prune(digits.path("resnet"), folder / "out.onnx", digits.CALIB, **files, **(FAST | options))
    assert re.search(match, json.loads(report.read_text(encoding="utf-8"))["reason"])
    report.unlink()
    assert listing(folder) == before


def test_one_percent_of_one_weight(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where the slice is not held against the oracle, or with too wide a tolerance."""
    real = rewrite.rewrite
    monkeypatch.setattr(halves, "rewrite", lambda *args: largest_changed(real(*args), 1.01))
    expect_failure(folder, r"sliced model differs from the masked original.*nothing was written")


def test_force(folder: Path, monkeypatch: pytest.MonkeyPatch):
    real = rewrite.rewrite
    monkeypatch.setattr(halves, "rewrite", lambda *args: largest_changed(real(*args), 1.01))
    result = prune(digits.path("resnet"), folder / "out.onnx", digits.CALIB, force=True, **FAST)
    assert (folder / "out.onnx").is_file()
    assert any(n.startswith("--force: the sliced model differs") for n in result.report.notes)


def test_a_wrong_oracle(folder: Path, monkeypatch: pytest.MonkeyPatch):
    real = verifying.masked_model
    monkeypatch.setattr(verifying, "masked_model", lambda *args: largest_changed(real(*args), 1.01))
    expect_failure(folder, "sliced model differs from the masked original")


def test_another_mask_in_the_oracle(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where one channel more or less makes no difference."""
    real = verifying.masked_model

    def other(proto: Any, channels: Any, keep: Array, types: Any) -> onnx.ModelProto:
        flipped = keep.copy()
        group = next(g for g in channels.groups if not keep[g.units].all())
        flipped[group.units[np.flatnonzero(~keep[group.units])[0]]] = True
        return real(proto, channels, flipped, types)

    monkeypatch.setattr(verifying, "masked_model", other)
    expect_failure(folder, "sliced model differs from the masked original")


def refitted_with(value: float) -> Any:
    real = halves.refit_weights

    def change(*args: Any) -> Refitted:
        found = real(*args)
        return replace(found, candidates={k: largest_changed(v, value) for k, v in found.candidates.items()})

    return change


@pytest.mark.parametrize("refit", ["none", "least-squares", "lockstep"])
def test_outputs_that_are_not_finite(folder: Path, monkeypatch: pytest.MonkeyPatch, refit: str):
    """Fails where a refit that blew up is written."""
    monkeypatch.setattr(halves, "refit_weights", refitted_with(float("nan")))
    expect_failure(folder, "not finite", refit=refit, samples=16)


def test_a_model_that_onnxruntime_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch):
    real = halves.refit_weights

    def change(*args: Any) -> Refitted:
        found = real(*args)
        found.candidates["none"].graph.node[0].op_type = "NoSuchOperator"
        return found

    monkeypatch.setattr(halves, "refit_weights", change)
    expect_failure(folder, "does not run")


def test_a_broken_refit_falls_back(monkeypatch: pytest.MonkeyPatch):
    """Fails where a lockstep that gives NaN is kept although least squares did not."""
    real = halves.refit_weights

    def change(*args: Any) -> Refitted:
        found = real(*args)
        walked = largest_changed(found.candidates["lockstep"], float("nan"))
        return replace(found, candidates={**found.candidates, "lockstep": walked})

    monkeypatch.setattr(halves, "refit_weights", change)
    result = prune(digits.path("resnet"), None, digits.CALIB, samples=16, fast=True)
    assert result.report.checks["refit"] == "least-squares"
    assert any("lockstep did worse" in n for n in result.report.notes)


def test_recovery_is_the_default_and_says_what_it_did():
    """Fails where the default run gives accuracy away, or does not report what it did."""
    quick = prune(digits.path("resnet"), None, digits.CALIB, fast=True).report
    report = prune(digits.path("resnet"), None, digits.CALIB).report
    recovery = report.checks["recovery"]
    assert "recovery" not in quick.checks
    assert report.checks["refit"] == "recovered"
    assert report.output_error == recovery["after"] < 0.8 * quick.output_error
    assert recovery["before"] == pytest.approx(quick.output_error, rel=1e-6)


@pytest.mark.parametrize(("options", "why"), [({}, "use --calib"), ({"calibration": 4}, "too few to hold any out")])
def test_where_nothing_can_be_learned(options: dict[str, Any], why: str):
    """Fails where a network is trained on noise, or on samples that nothing judges."""
    data = {"input": np.load(digits.CALIB)["input"][:4]} if options else None
    report = prune(digits.path("resnet"), None, data, recover=2).report
    assert "recovery" not in report.checks
    assert any(why in n for n in report.notes)


@pytest.mark.parametrize(
    "row", ["plain", "residual", "batch_of_one", "weights_among_inputs", "lstm_peepholes", "lstm_behind_convolution"]
)
def test_rows_of_the_table(row: str):
    """Fails where the job only works on the bundled models."""
    topology = TABLE[row]
    batch = 1 if row == "batch_of_one" else 4
    model = topology.model()
    result = prune(model, None, topology.feeds(batch), ratio=0.3, round_to=1)
    assert result.model is not None
    assert result.report.achieved >= 0.3


def test_a_small_cut():
    """Fails where even the smallest cut changes the outputs beyond recognition."""
    result = pruned("resnet", ratio=0.02, round_to=1, refit="least-squares")
    assert result.model is not None
    data = {"input": np.load(digits.TEST)["input"]}
    before = Session(digits.path("resnet")).run(data)["logits"]
    after = Session(result.model).run(data)["logits"]
    assert_same(after, before, rtol=0.2, atol=0.0)


# what a run is compared with


class Timed:
    """onnxruntime with a clock of its own: every run takes as long as it is told, the first one for ever."""

    def __init__(self, seconds: list[float]) -> None:
        self.now, self.seconds, self.sizes = 0.0, [1e9, *seconds], list[int]()
        self.models: list[onnx.ModelProto] = []
        self.options: list[dict[str, Any]] = []

    def __call__(self, model: onnx.ModelProto, **options: Any) -> Timed:
        self.models.append(model)
        self.options.append(options)
        return self

    def run(self, feeds: Mapping[str, Array]) -> None:
        self.sizes.append(len(feeds["x"]))
        self.now += self.seconds.pop(0)

    def perf_counter(self) -> float:
        return self.now


# Samples to fit, others held out, seconds of every run, and of the pass; samples of every run, in batches of four.
PASSES = {
    "all of them": (10, 0, [0.25, 0.25, 0.5], 1.0, [4, 4, 2]),
    "a second is not too much": (10, 0, [0.5, 0.5, 2.0], 3.0, [4, 4, 2]),
    "the first alone": (10, 0, [2.0], 5.0, [4]),
    "the first two": (10, 0, [1.0, 0.5], 1.875, [4, 4]),
    "held-out samples too": (10, 6, [0.25, 0.25, 0.5], 1.6, [4, 4, 2]),
    "the last batch is smaller": (9, 6, [0.25, 0.25, 0.25], 1.25, [4, 4, 1]),
    "some, and held-out samples": (9, 6, [3.0], 11.25, [4]),
    "one batch": (3, 0, [0.75], 0.75, [3]),
    "short ones": (3, 0, [0.25, 0.125, 0.25], 0.125, [3, 3, 3]),
    "no more than five": (3, 0, [2**-4, 2**-4, 2**-5, 2**-4, 2**-4], 2**-5, [3] * 5),
}


def loaded_of(
    original: onnx.ModelProto, normalised: Normalised, fit: Samples, held_out: Samples | None = None
) -> Loaded:
    """As `load` hands it over, with nothing to say of the data."""
    return Loaded(
        original=original,
        source=model_file.adopt(original)[1],
        normalised=normalised,
        fit=fit,
        held_out=held_out,
        notes=(),
        data_sha256="",
        inputs_sha256="",
    )


@pytest.mark.parametrize("kind", PASSES)
def test_a_plain_pass_is_timed_or_extrapolated(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Fails where the first run counts, the samples of a smaller batch count as many, or one second is waited for."""
    fit, held, seconds, expected, sizes = PASSES[kind]
    p = prepare_row("residual")
    samples, others = samples_of(p, fit), samples_of(p, held)
    loaded = loaded_of(p.original, p.normalised, samples, others if held else None)
    timed = Timed(seconds)
    monkeypatch.setattr(calibrate, "time", timed)
    monkeypatch.setattr(calibrate, "Session", timed)
    monkeypatch.setattr(calibrate, "runtime_batch", lambda *_, **__: 4)
    assert calibrate.plain_pass(loaded) == expected
    assert timed.sizes == [2, *sizes]
    assert timed.seconds == []
    # The user's model, with onnxruntime's own settings.
    assert timed.models == [p.original]
    assert timed.options == [{"spin": True, "kernels": DEPLOYED}]


def test_a_plain_pass_of_one_sample_at_a_time(monkeypatch: pytest.MonkeyPatch):
    """Fails where a model of a fixed batch is fed several samples, or counted by what the batch would be."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> main (float[1,2] x) => (float[1,2] y) { y = Relu (x) }'
    )
    samples = checked({"x": np.zeros((5, 2), np.float32)}, input_specs(model))
    loaded = loaded_of(model, normalise(model, samples.example()), samples)
    timed = Timed([0.5, 0.5, 0.5])
    monkeypatch.setattr(calibrate, "time", timed)
    monkeypatch.setattr(calibrate, "Session", timed)
    assert calibrate.plain_pass(loaded) == 2.5
    assert timed.sizes == [1, 1, 1, 1]
