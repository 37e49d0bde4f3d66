"""`bench --against`: what a timing file says of a result, and what becomes of it when that was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune import prune
from onnxprune.benchmark import measure
from onnxprune.benchmark.measure import Bench, Comparison, Latency
from onnxprune.cli import program
from onnxprune.errors import ModelError, UsageError
from onnxprune.latency import recorder, timing_file
from onnxprune.sentence import recording
from onnxprune.sentence.against import Expected, elsewhere, expected
from onnxprune.sentence.recording import record_layers
from tests import digits
from tests.latency.synthetic import Synthetic

MODEL = str(digits.path("resnet"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A timing file of a machine whose times are known, and a model that lost channels."""
    found = tmp_path_factory.mktemp("against")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "check_starts", lambda _: None)
        patch.setattr(recorder, "SCATTERED", 8)
        patch.setattr(recording, "OnnxRuntime", lambda *_, **__: Synthetic())
        record_layers(MODEL, found / "timing.json", name="board", round_to=2)
    one = timing_file.read(found / "timing.json")
    two = one.with_target(replace(one.targets[0], name="phone"), replace=False, path="")
    (found / "two.json").write_text(two.to_json(), encoding="utf-8")
    prune(MODEL, found / "slim.onnx", digits.CALIB, uniform=0.4, round_to=2, fast=True, samples=16)
    return found


def test_the_file_predicts_the_time_of_a_result(folder: Path):
    """Fails where a layer of the result is read at the widths of the original, or counts as gone."""
    said = expected(MODEL, folder / "slim.onnx", folder / "timing.json")
    feeds = {"input": np.zeros((1, 1, 8, 8), np.float32)}
    before, after = (Synthetic().seconds(onnx.load(p), feeds) for p in (MODEL, folder / "slim.onnx"))
    assert said.share == pytest.approx(after / before, rel=0.03)
    assert said.share < 0.95
    assert not said.notes


def test_what_does_not_belong_together_is_refused(folder: Path):
    with pytest.raises(UsageError, match="several targets: say with --timing-target which this is, of board, phone"):
        expected(MODEL, folder / "slim.onnx", folder / "two.json")
    assert expected(MODEL, folder / "slim.onnx", folder / "two.json", target="phone").target == "phone"
    with pytest.raises(ModelError, match="has no layer of"):
        expected(MODEL, digits.path("mobilenet"), folder / "timing.json")
    file = timing_file.read(folder / "timing.json")
    (target,) = file.targets
    first = target.layers[0]
    narrow = replace(first, axes=tuple(replace(a, size=a.size / 2) for a in first.axes))
    cuts = tuple(replace(c, lengths=(tuple(a.size for a in narrow.axes), *c.lengths[1:])) for c in target.cuts)
    other = replace(file, targets=(replace(target, layers=(narrow, *target.layers[1:]), cuts=cuts),))
    path = folder / "narrow.json"
    path.write_text(other.to_json(), encoding="utf-8")
    with pytest.raises(ModelError, match="OTHER is wider"):
        expected(MODEL, MODEL, path)


SAID = Expected("board", 0.5, "CPUExecutionProvider", 1, 1, {}, 0.02, extrapolated=False)


def bench_of(ratio: float, interval: tuple[float, float] | None) -> Bench:
    models = tuple(Latency(n, 1e-3, 1e-3, 1e3, 100, 0.1) for n in ("a", "b"))
    comparison = Comparison(ratio, (ratio, ratio), interval)
    return Bench(models, comparison, "CPUExecutionProvider", "onnxruntime", "model", "cpu", 1, 1, {}, "made up", 5, 1)


@pytest.mark.parametrize(
    ("ratio", "interval", "held", "text"),
    [
        (
            0.51,
            (0.50, 0.549),
            True,
            "^the timing file predicts 0.500 of MODEL's time for 'board', and OTHER takes 0.510 of it "
            r"\(0.500 to 0.549\), 2.0% more; the upper end holds the tenth more that is allowed, 0.550$",
        ),
        (0.40, (0.39, 0.41), True, "20.0% less"),
        (0.50, (0.49, 0.51), True, "as much"),
        (0.53, (0.50, 0.56), False, "the upper end is above the tenth more that is allowed, 0.550"),
        (0.50, None, False, "give more --runs"),
    ],
)
def test_the_gate_goes_by_the_upper_end(ratio: float, interval: tuple[float, float] | None, held: bool, text: str):
    gate = SAID.gate(bench_of(ratio, interval))
    assert gate.held is held
    assert pytest.approx(0.1) == gate.limit
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(gate.text)


def test_another_machine_is_told():
    recorded = {"processor": "a", "threads": "2", "onnxruntime": "1.2", "gpu": "g"}
    assert elsewhere(recorded, {"processor": "b", "threads": "1", "onnxruntime": "1.2"}) == (
        "the timing file was recorded with processor a, and here is b",
    )


def test_the_command_measures_as_the_file_was_recorded(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Fails where the provider and threads of the file are not those of the run, or the gate decides nothing."""
    path = folder / "threads.json"
    file = timing_file.read(folder / "timing.json")
    machine = {"providers": "CPUExecutionProvider", "threads": "3"}
    path.write_text(replace(file, targets=(replace(file.targets[0], machine=machine),)).to_json(), encoding="utf-8")
    asked: list[dict[str, object]] = []
    share = expected(MODEL, folder / "slim.onnx", path).share

    def measured(*_: object, **options: object) -> Bench:
        asked.append(options)
        return bench_of(share * len(asked), (share * len(asked), share * len(asked)))

    monkeypatch.setattr(measure, "bench", measured)
    command = ["bench", MODEL, str(folder / "slim.onnx"), "--against", str(path)]
    assert program.main(command) == 0
    assert "the upper end holds the tenth more that is allowed" in " ".join(capsys.readouterr().out.split())
    assert (asked[0]["provider"], asked[0]["threads"]) == ("CPUExecutionProvider", 3)
    assert program.main([*command, "--threads", "1"]) == 4
    assert asked[1]["threads"] == 1
    capsys.readouterr()
    for args, why in (
        (["bench", MODEL, "--against", str(path)], "name MODEL and OTHER"),
        (["bench", MODEL, MODEL, "--timing-target", "board"], "belongs to --against"),
    ):
        assert program.main(args) == 2
        assert why in capsys.readouterr().err
