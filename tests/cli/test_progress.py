"""What is shown while a command runs, and what becomes of Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxprune import Progress, prune
from onnxprune.cli import program
from onnxprune.cli.log import Log
from onnxprune.errors import RunError, UsageError
from onnxprune.process.signals import Interruption, Interrupts
from onnxprune.report.live import lines
from onnxprune.report.progress import clock
from tests import digits

Capture = pytest.CaptureFixture[str]
MODEL, CALIB = str(digits.path("resnet")), str(digits.CALIB)
QUICK = ["--ratio", "0.5", "--method", "magnitude", "--refit", "none", "--dry-run", "--calib", CALIB]


@pytest.fixture(autouse=True)
def ctrl_c_comes() -> Iterator[None]:
    """As in a terminal: a process that a script started in the background ignores it, and so would these tests."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress("load"), "load"),
        (Progress("load", 320), "load 320"),
        (Progress("select", 3, 8), "select 3/8"),
        (Progress("select", 3, 8, left=8.4), "select 3/8, 0:08 left"),
        (Progress("recover", 5, 16, 0.026, 0.0381, 40.0, 70.2), "recover 5/16, 3.81% → 2.60%, 1:10 left"),
        (Progress("recover", 0, 16, 0.0381, 0.0381), "recover 0/16, 3.81%"),
        (Progress("recover", 16, 16, 0.026, 0.0381, 40.0, 0.0), "recover 16/16, 3.81% → 2.60%"),
    ],
)
def test_progress_in_words(progress: Progress, text: str):
    assert str(progress) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0:00"), (59.6, "1:00"), (70.0, "1:10"), (7425.0, "2:03:45")])
def test_clock(seconds: float, text: str):
    assert clock(seconds) == text


def test_what_watch_is_told():
    """Fails where recovery says not how far it is, errors rise, or time goes back."""
    heard: list[Progress] = []
    result = prune(MODEL, None, CALIB, ratio=0.5, method="magnitude", refit="scale", recover=3, watch=heard.append)
    stages = list(dict.fromkeys(p.stage for p in heard))
    assert stages == [
        "load",
        "check",
        "couple",
        "calibrate",
        "select",
        "allocate",
        "rewrite",
        "refit",
        "recover",
        "verify",
        "save",
    ]
    assert [p.far for p in heard if p.stage == "check"] == ["", "64/64"]  # one batch says all of such a network
    recover = [p for p in heard if p.stage == "recover" and p.count]
    assert [(p.done, p.count) for p in recover] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    errors = [p.error for p in recover]
    assert errors == sorted(errors, reverse=True)
    assert {p.before for p in recover} == {result.report.checks["recovery"]["before"]}
    assert errors[-1] == result.report.checks["recovery"]["after"]
    assert all(a.elapsed <= b.elapsed for a, b in pairwise(heard))
    assert all(p.left is not None and p.left >= 0.0 for p in recover[1:])


def test_recovery_ends_where_it_is_asked_to():
    """Fails where nobody asks, or what was stopped is not checked like any other result."""
    heard: list[Progress] = []
    result = prune(
        *(MODEL, None, CALIB),
        **{"ratio": 0.5, "method": "magnitude", "refit": "scale", "recover": 50},
        watch=heard.append,
        stop=lambda: heard[-1].stage == "recover" and heard[-1].done >= 5,
    )
    assert heard[-1].stage == "save"
    assert max(p.done for p in heard if p.stage == "recover") == 5
    done = result.report.checks["recovery"]
    assert done["epoch"] == 5
    assert done["after"] < done["before"]
    assert any(n.startswith("recovery was interrupted after") for n in result.report.notes)
    assert result.report.checks["slice_against_oracle"] is not None


def run(capsys: Capture, *args: str) -> tuple[int, str, str]:
    code = program.main([MODEL, *QUICK, *args])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_line_for_each_stage(capsys: Capture, monkeypatch: pytest.MonkeyPatch):
    """Fails where a log shows bars or nothing, --quiet a line, or one comes between a script and its one line."""
    monkeypatch.delenv("ONNXPRUNE_PROGRESS")
    code, _, err = run(capsys)
    assert (code, err) == (0, "")
    code, _, err = run(capsys, "--progress", "lines")
    assert code == 0
    assert [re.sub(r"\d+:\d\d", "T", x) for x in err.splitlines()] == [
        f"onnxprune: T {stage}" for stage in ("load", "check", "couple", "calibrate", "select", "allocate", "save")
    ]
    code, out, err = run(capsys, "-v")
    assert re.search(r"^onnxprune: \d:\d\d allocate 6/6$", err, re.MULTILINE)
    assert "\nwhat each cut saves and does by itself\n" in out
    assert run(capsys, "-q") == (0, "", "")


def test_a_log(capsys: Capture, tmp_path: Path):
    """Fails where --quiet empties it, or a second run overwrites the first."""
    path = tmp_path / "run.log"
    assert run(capsys, "-q", "--log-file", str(path)) == (0, "", "")
    once = path.read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S* ", line) for line in once)
    text = "\n".join(once)
    for part in ("0:00 load", "channels", "MACs removed", "dry run: no model was written"):
        assert part in text
    assert program.main(["missing.onnx", "--dry-run", "--ratio", "0.5", "-q", "--log-file", str(path)]) == 1
    capsys.readouterr()
    assert path.read_text(encoding="utf-8").splitlines()[-1].endswith(" error: missing.onnx does not exist")
    assert len(path.read_text(encoding="utf-8").splitlines()) > len(once)


def test_no_file_of_another_kind_becomes_a_log(tmp_path: Path):
    model = tmp_path / "model.onnx"
    model.write_bytes(Path(MODEL).read_bytes())
    with pytest.raises(UsageError, match="exists and is no log"):
        Log().open(str(model))
    with pytest.raises(UsageError, match="is no ordinary file"):
        Log().open(str(tmp_path))
    with pytest.raises(RunError, match="cannot be written"):
        Log().open(str(tmp_path / "none" / "run.log"))
    assert model.read_bytes() == Path(MODEL).read_bytes()
    Log().write("nobody is told")


def test_lines_of_parts():
    told: list[str] = []
    for show in (lines(told.append), lines(told.append, parts=True)):
        for p in (Progress("load"), Progress("select", elapsed=61), Progress("select", 1, 2, elapsed=62)):
            show(p)
    assert told == ["0:00 load", "1:01 select", "0:00 load", "1:01 select", "1:02 select 1/2"]


def interrupted(interrupts: Interrupts, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many Ctrl-C, a second from each other."""
    now = [100.0]
    monkeypatch.setattr("onnxprune.process.signals.time.monotonic", lambda: now[0])
    for _ in range(times):
        now[0] += 1.0
        signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(os.name != "posix", reason="signals of another kind")
@pytest.mark.parametrize(("soft", "times", "ends"), [(True, 1, False), (True, 2, True), (False, 1, True)])
def test_a_wish_and_an_interruption(soft: bool, times: int, ends: bool, monkeypatch: pytest.MonkeyPatch):
    interrupts = Interrupts()
    interrupts.listen()
    try:
        interrupts.soft, interrupts.hint = soft, " (a hint)"
        if ends:
            with pytest.raises(Interruption, match=r"nothing was written \(a hint\)"):
                interrupted(interrupts, times, monkeypatch)
        else:
            interrupted(interrupts, times, monkeypatch)
            interrupts.check()
        assert interrupts.asked == soft
    finally:
        interrupts.unlisten()


@pytest.mark.skipif(os.name != "posix", reason="signals of another kind")
@pytest.mark.parametrize(("kept", "code"), [(True, 0), (False, 130)])
def test_ctrl_c_during_recovery(
    kept: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
):
    """Fails where the best state so far is lost though it was asked for, or written though it was not."""
    from onnxprune.recovery.training import Training

    real = Training.epochs

    def epochs(*args: Any) -> Any:
        for epoch in real(*args):
            yield epoch
            if epoch == 2:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Training, "epochs", epochs)
    out = tmp_path / "out.onnx"
    args = ["--ratio", "0.5", "--method", "magnitude", "--refit", "scale", "--recover", "10", "--calib", CALIB, "-q"]
    args += ["--on-interrupt", "keep"] if kept else []
    assert program.main([MODEL, str(out), *args]) == code
    err = capsys.readouterr().err
    assert out.exists() == kept
    if kept:
        assert err == "onnxprune: recovery ends here, with the best state so far; Ctrl-C again ends the run\n"
        onnx.checker.check_model(onnx.load(out))
    else:
        assert "--on-interrupt keep would have gone on with the best state so far" in err


def test_a_wish_that_cannot_come_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where a job in the background, to which no Ctrl-C comes, keeps silent about what it cannot do."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    args = ["--ratio", "0.5", "--method", "magnitude", "--refit", "none", "--fast", "--calib", CALIB, "--samples", "16"]
    try:
        assert program.main([MODEL, str(tmp_path / "out.onnx"), *args, "-q", "--on-interrupt", "keep"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert "--on-interrupt keep has no effect" in capsys.readouterr().err
