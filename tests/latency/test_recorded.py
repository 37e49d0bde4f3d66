"""A budget of latency by a timing file: recorded on a machine whose times are known, and held against these."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune import prune
from onnxprune.cli import program
from onnxprune.config import PruneConfig
from onnxprune.errors import BudgetUnreachable, InputError, UsageError
from onnxprune.latency import recorder, timing_file
from onnxprune.latency.recorded import device_of
from onnxprune.latency.timing_file import PROFILE, Timing
from onnxprune.report.terminal import Screen, prune_report
from onnxprune.sentence import recording
from onnxprune.sentence.recording import record_layers
from onnxprune.stages import time_layers
from onnxprune.stages.couple import Coupled, couple
from onnxprune.stages.load import Loaded, load
from tests import digits
from tests.latency.synthetic import Synthetic

OPTIONS = PruneConfig(round_to=2, budget="latency")


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load(digits.path("resnet"), digits.CALIB, PruneConfig(samples=16))


@pytest.fixture(scope="module")
def coupled(loaded: Loaded) -> Coupled:
    return couple(loaded, OPTIONS)


@pytest.fixture(scope="module")
def machines() -> dict[str, Synthetic]:
    return {"board": Synthetic(), "phone": Synthetic(start=4000.0, overhead=1000.0, block=8)}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, machines: dict[str, Synthetic]) -> Path:
    """A file with both of them, each measured on its own machine."""
    file = tmp_path_factory.mktemp("timing") / "timing.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "check_starts", lambda _: None)
        patch.setattr(recorder, "SCATTERED", 8)
        for name, machine in machines.items():
            patch.setattr(recording, "OnnxRuntime", lambda *_, m=machine, **__: m)
            record_layers(digits.path("resnet"), file, name=name, round_to=2)
    return file


@pytest.mark.parametrize("name", ["board", "phone"])
def test_the_cost_is_the_time_of_the_cut_model_there(
    path: Path, loaded: Loaded, coupled: Coupled, machines: dict[str, Synthetic], name: str
):
    """Fails where a layer is read at the width of another one, or of the groups of the machine that recorded."""
    (target,) = timing_file.read(path).named([name], "file")
    device = device_of(target, coupled.channels, coupled.drops, "file", same_model=False)
    watch = time_layers.stopwatch_of(loaded, coupled, OPTIONS, machines[name])
    before = machines[name].seconds(loaded.original, watch.feeds)
    rng = np.random.default_rng(1)
    for i in range(8):
        kept = tuple(int(rng.choice(w)) for w in (watch.positive if i < 4 else watch.widths))
        model = watch.cut(kept)
        if model is None:
            continue
        assert device.cost.at(kept) == pytest.approx(machines[name].seconds(model, watch.feeds) / before, rel=0.02)
    assert device.error is not None
    assert device.error < 0.03
    assert target.seconds == pytest.approx(before)
    assert any(min(lengths) == 0 for cut in target.cuts for lengths in cut.lengths)


def test_a_budget_is_met_on_both_without_running_anything(
    path: Path, machines: dict[str, Synthetic], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Fails where this machine is timed after all, or where the quicker target alone holds the share."""

    def here(*_: object, **__: object) -> Synthetic:
        raise AssertionError("this machine was timed")

    monkeypatch.setattr(time_layers, "OnnxRuntime", here)
    report = tmp_path / "report.json"
    result = prune(
        digits.path("resnet"),
        tmp_path / "out.onnx",
        digits.CALIB,
        budget="latency",
        ratio=0.25,
        round_to=2,
        fast=True,
        samples=32,
        timing=[path],
        report_file=[report, tmp_path / "report.html", tmp_path / "report.md"],
    )
    feeds = {"input": np.zeros((1, 1, 8, 8), np.float32)}
    original, out = onnx.load(digits.path("resnet")), onnx.load(tmp_path / "out.onnx")
    left = {name: m.seconds(out, feeds) / m.seconds(original, feeds) for name, m in machines.items()}
    assert max(left.values()) == pytest.approx(0.75, rel=0.1)
    timing = json.loads(report.read_text(encoding="utf-8"))["timing"]
    assert timing["measured"] is None
    assert {t["name"]: t["predicted"] for t in timing["targets"]} == pytest.approx(left, rel=0.05)
    assert result.report.achieved == pytest.approx(1.0 - timing["predicted"])
    for form in ("html", "md"):
        assert "time of a run, predicted" in (tmp_path / f"report.{form}").read_text(encoding="utf-8")
    shown = " ".join(prune_report(result.report, Screen(160)).split())
    assert "phone: " in shown
    assert "(predicted; whole models that were left out are off by" in shown


def options(path: Path, **more: object) -> dict[str, object]:
    return {
        "budget": "latency",
        "ratio": 0.2,
        "dry_run": True,
        "samples": 16,
        "timing": [path],
        "method": "magnitude",
        "refit": "none",
        **more,
    }


def test_one_target_of_several_counts_where_it_is_named(path: Path):
    report = prune(digits.path("resnet"), None, digits.CALIB, **options(path, timing_target=["phone"])).report
    assert report.timing is not None
    assert [t["name"] for t in report.timing["targets"]] == ["phone"]
    with pytest.raises(UsageError, match="knows no target 'fridge', only board, phone"):
        prune(digits.path("resnet"), None, digits.CALIB, **options(path, timing_target=["fridge"]))


def test_what_does_not_go_together_is_told(path: Path):
    for more, why in (
        ({"budget": "macs"}, "timing says what budget 'latency' counts"),
        ({"batch": 4}, "the timing file says which batch"),
        ({"timing": [], "timing_target": ["board"]}, "give that too"),
    ):
        with pytest.raises(UsageError, match=why):
            prune(digits.path("resnet"), None, digits.CALIB, **options(path, **more))
    with pytest.raises(BudgetUnreachable, match="of the latency cannot go"):
        prune(digits.path("resnet"), None, digits.CALIB, **options(path, ratio=0.99))


def test_the_file_of_another_model_is_refused(path: Path):
    with pytest.raises(InputError, match="is of another model"):
        prune(digits.path("mobilenet"), None, digits.CALIB, **options(path))


def test_weights_may_differ_and_widths_may_not(path: Path, coupled: Coupled):
    """Fails where a fine-tuned copy needs a file of its own, or a narrower one is taken for it."""
    (target, _) = timing_file.read(path).targets
    device_of(target, coupled.channels, {}, "file", same_model=False)
    first = target.layers[0]
    wider = replace(first, axes=(replace(first.axes[0], size=first.axes[0].size + 8), *first.axes[1:]))
    other = replace(target, layers=(wider, *target.layers[1:]))
    with pytest.raises(InputError, match="is of another model"):
        device_of(other, coupled.channels, {}, "file", same_model=False)
    left = device_of(other, coupled.channels, {}, "file", same_model=True)
    assert "not found here" in left.notes[0]
    full = [g.size for g in coupled.channels.groups]
    whole = device_of(target, coupled.channels, {}, "file", same_model=False)
    assert left.cost.at(full) == pytest.approx(whole.cost.at(full))
    assert "recorded with another file" in whole.notes[0]
    assert not device_of(target, coupled.channels, {}, "file", same_model=True).notes


def test_a_second_recording_does_not_replace_the_first_unasked(path: Path, monkeypatch: pytest.MonkeyPatch):
    before = path.read_bytes()
    monkeypatch.setattr(recording, "check_starts", lambda _: None)
    monkeypatch.setattr(recording, "OnnxRuntime", lambda *_, **__: Synthetic())
    with pytest.raises(UsageError, match="--overwrite"):
        record_layers(digits.path("resnet"), path, name="board", round_to=2)
    with pytest.raises(UsageError, match="timing of another model"):
        record_layers(digits.path("mobilenet"), path, name="new", round_to=2)
    assert path.read_bytes() == before


def test_the_command_records_and_says_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recording, "check_starts", lambda _: None)
    monkeypatch.setattr(recording, "OnnxRuntime", lambda *_, **__: Synthetic())
    file = tmp_path / "timing.json"
    command = ["bench", "--layers", str(digits.path("resnet")), "--save", str(file), "--round-to", "8"]
    assert program.main([*command, "--name", "board"]) == 0
    shown = capsys.readouterr().out
    assert "inside the model, at" in shown
    assert str(file) in "".join(shown.split())
    assert program.main([*command, "--name", "board", "--overwrite", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["targets"] == ["board"]
    assert told["layers"][0]["seconds"] >= told["layers"][-1]["seconds"] > 0
    assert timing_file.read(file).targets[0].alignment == 8


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["--layers"], "name it with --save"),
        (["--layers", "--save", "t.json", "--runs", "6"], "leave out --runs"),
        (["--layers", "--save", "t.json", "--shape", "input:1x1x8x8"], "leave out --shape"),
        (["--save", "t.json"], "--save belongs to --layers"),
        (["--round-to", "8"], "--round-to belongs to --layers"),
        (["--layers", "--save", "t.json", "--name", ""], "has 1 to 200 letters"),
        (["--layers", "--save", "t.json", "--batch", "0"], "batch is 0"),
    ],
)
def test_the_command_refuses(
    args: list[str], why: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert program.main(["bench", str(digits.path("resnet")), *args]) == 2
    assert why in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_the_present_widths_alone_are_extrapolated_and_the_report_says_so(
    path: Path, coupled: Coupled, tmp_path: Path, machines: dict[str, Synthetic]
):
    """The layers of the first cut alone, as a profile has them: what is starts, MACs and bytes is told apart."""
    timing = timing_file.read(path)
    board = timing.targets[0]
    single = replace(board, how=PROFILE, cuts=board.cuts[:1], alignment=4)
    device = device_of(single, coupled.channels, {}, "file", same_model=False)
    full = [g.size for g in coupled.channels.groups]
    assert device.cost.at(full) == pytest.approx(1.0, rel=1e-3)
    half = [max(n // 2, 1) for n in full]
    measured = device_of(board, coupled.channels, {}, "file", same_model=False).cost.at(half)
    assert device.cost.at(half) == pytest.approx(measured, rel=0.1)
    file = tmp_path / "profile.json"
    file.write_text(Timing(timing.model, timing.sha256, (single,)).to_json(), encoding="utf-8")
    report = prune(digits.path("resnet"), None, digits.CALIB, **options(file)).report
    assert report.timing is not None
    assert report.timing["targets"][0]["extrapolated"]
