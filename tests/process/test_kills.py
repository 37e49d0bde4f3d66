"""Real runs that are ended by real signals, a few of them: the harness of `benchmarks.kills`, which runs hundreds."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest

from benchmarks import kills
from benchmarks.kills import Ended, Kind, Known
from tests.sampled import in_turns

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")

KIND = Kind(external=True, jobs=2, replaces=True)


@pytest.fixture(scope="module")
def known() -> Known:
    return Known.of(KIND)


@pytest.mark.parametrize(("name", "saving"), in_turns(kills.SIGNALS, [True, False]))
def test_a_run_that_is_ended_leaves_an_old_output_or_a_new_one(name: str, saving: bool, known: Known) -> None:
    ended = kills.killed(KIND, known, name, random.Random(f"{name} {saving}"), saving=saving)
    assert not ended.wrong


def test_the_table_has_every_run_once_and_a_line_that_sums_them_up() -> None:
    """Fails where a run that is wrong, or one that was never made, is counted as sound."""
    tally = kills.Tally(300)
    for ended in (Ended(0, "new"), Ended(143, "old"), Ended(143, "new", ["it is changed"]), Ended(0, "old", ["x"])):
        tally.note("SIGTERM", ended)
    tally.note("SIGKILL", Ended(-9, "new"))
    tally.note("SIGINT", Ended(130, "none", early=True))
    lines = tally.table().splitlines()
    assert lines[0] == "| signal | runs | exit 0, new output | ended, output as before | killed, new output | wrong |"
    assert lines[2:7] == [
        "| SIGTERM | 4 | 1 | 1 | 0 | 2 |",
        "| SIGINT | 1 | 0 | 1 | 0 | 0 |",
        "| SIGHUP | 0 | 0 | 0 | 0 | 0 |",
        "| SIGKILL | 1 | 0 | 0 | 1 | 0 |",
        "| all | 6 | 1 | 2 | 1 | 2 |",
    ]
    assert lines[-1].startswith("6 of 300 runs, 2 of them wrong; 1 ended by INT in Python's own start")


def test_the_harness_shows_what_there_is_when_it_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails where TERM loses the runs so far, or where the page has no block for them."""

    def one_then_ended(tally: kills.Tally, _: random.Random) -> None:
        tally.note("SIGTERM", Ended(143, "old"))
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("TERM is not heard")

    monkeypatch.setattr(kills, "_run", one_then_ended)
    page = tmp_path / "trust.md"
    page.write_text((kills.ROOT / "docs" / "trust.md").read_text(encoding="utf-8"), encoding="utf-8")
    handler = signal.getsignal(signal.SIGTERM)
    assert kills.main(["--runs", "5", "--output", str(page)]) == 0
    assert signal.getsignal(signal.SIGTERM) is handler
    assert "1 of 5 runs, 0 of them wrong" in capsys.readouterr().out
    assert "| SIGTERM | 1 | 0 | 1 | 0 | 0 |" in page.read_text(encoding="utf-8")


# the judge


def judged(folder: Path, known: Known, name: str, code: int, err: str = "") -> list[str]:
    ended = Ended(code, "none")
    kills._judge(ended, folder, KIND, known, name, err)
    return ended.wrong


def test_what_is_wrong_is_seen(tmp_path: Path, known: Known) -> None:
    """Fails where the harness passes a run that broke its promise."""
    kills.fill(tmp_path, KIND)

    def put(**files: bytes) -> None:
        for path in tmp_path.glob("*"):
            if path.name.startswith(("out", ".out")) or path.suffix == ".json":
                path.unlink()
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)

    everything = {**known.new, "plan.json": known.plan, "report.json": json.dumps({}).encode()}
    put(**known.before)
    assert judged(tmp_path, known, "SIGTERM", 143) == []
    assert judged(tmp_path, known, "SIGTERM", 0) == [
        "exit code 0, and not all is there",
        "weights of the old output are left",
    ]
    assert judged(tmp_path, known, "SIGTERM", 1) == ["exit code 1"]
    in_start, in_a_run = 'File "site.py"', 'File "onnxprune/cli/program.py"'
    assert judged(tmp_path, known, "SIGINT", 130, f"Traceback\n{in_start}\nKeyboardInterrupt\n") == []
    assert judged(tmp_path, known, "SIGINT", 130, f"Traceback\n{in_a_run}\nKeyboardInterrupt\n") != []
    put(**everything)
    assert judged(tmp_path, known, "SIGTERM", 0) == []
    assert judged(tmp_path, known, "SIGTERM", 143) != []
    assert judged(tmp_path, known, "SIGKILL", -9) == []
    put(**known.before, **{k: v for k, v in known.new.items() if k.endswith(".data")})
    assert judged(tmp_path, known, "SIGKILL", -9) == []
    assert judged(tmp_path, known, "SIGTERM", 143) != []
    put(**known.before, **{".out.onnx.1.onnxprune-tmp": b""})
    assert judged(tmp_path, known, "SIGKILL", -9) == []
    assert ".out.onnx.1.onnxprune-tmp is left" in judged(tmp_path, known, "SIGHUP", 129)
    put(**{**known.before, "out.onnx": known.new["out.onnx"]})
    assert any("neither the old nor the new" in w for w in judged(tmp_path, known, "SIGKILL", -9))
    put(**known.before)
    (tmp_path / "tmp" / "onnxprune-x").mkdir()
    assert judged(tmp_path, known, "SIGTERM", 143) == ["tmp/onnxprune-x is left"]
