"""Real runs that are ended by real signals, a few of them: the harness of `benchmarks.kills`, which runs hundreds."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks import kills
from benchmarks.kills import Ended, Kind, Known

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")

KIND = Kind(external=True, jobs=2, replaces=True)


@pytest.fixture(scope="module")
def known() -> Known:
    return Known.of(KIND)


@pytest.mark.parametrize("name", kills.SIGNALS)
@pytest.mark.parametrize("saving", [False, True])
def test_a_run_that_is_ended_leaves_an_old_output_or_a_new_one(name: str, saving: bool, known: Known) -> None:
    ended = kills.killed(KIND, known, name, random.Random(f"{name} {saving}"), saving=saving)
    assert not ended.wrong


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
    in_start, in_a_run = 'File "site.py"', 'File "onnxprune/cli.py"'
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
