"""The command line in a process whose surroundings are none that it was written in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from onnxprune.report import environment
from tests import digits

PRUNE = (str(digits.path("resnet")), "out.onnx", "--calib", str(digits.CALIB), "--ratio", "0.5", "--fast")
ROOT = str(digits.FOLDER.parent)
SAVED = ("--plan", "plan.json", "--report", "report.json")


class Outcome(NamedTuple):
    """The model as bytes, the plan, and the report."""

    model: bytes
    plan: dict[str, Any]
    report: dict[str, Any]


def _run(folder: Path, changes: Mapping[str, str | None]) -> Outcome:
    """A run in an environment with these changes; None takes a variable away."""
    folder.mkdir()
    variables = {k: v for k, v in {**os.environ, "PYTHONPATH": ROOT, **changes}.items() if v is not None}
    start = [sys.executable, "-m", "onnxprune", *PRUNE, *SAVED]
    done = subprocess.run(start, cwd=folder, env=variables, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    plan, report = (json.loads((folder / f"{n}.json").read_text(encoding="utf-8")) for n in ("plan", "report"))
    return Outcome((folder / "out.onnx").read_bytes(), plan, report)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What comes out where nothing is changed."""
    return _run(tmp_path_factory.mktemp("usual") / "run", {})


# Of a container without a user, in another country. onnxruntime keeps still by itself where it sees a build server.
SERVERS = (
    *("APPVEYOR", "BUILDKITE", "CI", "CIRCLECI", "GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL", "TEAMCITY_VERSION"),
    *("TF_BUILD", "TRAVIS", "ORT_RUNNING_UNIT_TESTS", "ORT_DISABLE_TELEMETRY"),
)
BARE: Mapping[str, str | None] = {
    **dict.fromkeys(("LANG", "LC_CTYPE", "USER", "LOGNAME", "TERM", "XDG_CACHE_HOME", "COLUMNS", *SERVERS)),
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONHASHSEED": "7",
    "TZ": "Asia/Kathmandu",
}


@pytest.mark.parametrize("home", ["empty", "nowhere"])
def test_surroundings_change_no_byte(usual: Outcome, tmp_path: Path, home: str):
    """Fails where a set is gone through in the order of its hashes, or the user's folder is needed or written to."""
    own = tmp_path / "home"
    own.mkdir()
    # Nobody, not even root, makes a folder inside a device.
    found = _run(tmp_path / "bare", {**BARE, "HOME": str(own) if home == "empty" else "/dev/null/home"})
    assert found.model == usual.model
    assert found.plan == usual.plan
    for key in ("groups", "checks", "output_error", "versions", "notes"):
        assert found.report[key] == usual.report[key]
    assert list(own.iterdir()) == []


def test_a_plan_does_not_depend_on_the_kernels_of_blas(usual: Outcome, tmp_path: Path):
    """Fails where what is chosen hangs on the last digits of a sum, or the report does not tell kernels apart.

    Every x86 processor has the kernels for Nehalem; where OpenBLAS does not compute, nothing changes.
    """
    found = _run(tmp_path / "older", {"OPENBLAS_CORETYPE": "Nehalem"})
    assert found.plan == usual.plan
    assert found.model == usual.model or found.report["versions"]["blas"] != usual.report["versions"]["blas"]


@pytest.mark.parametrize(
    ("status", "known"),
    [(None, False), (b"", False), (b"Name:\tpruner\n", False), (b"Name:\tpr\xfcfer\nVmHWM:\t  123456 kB\n", True)],
)
def test_the_peak_of_memory_where_linux_tells_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: bytes | None, known: bool
):
    """Fails where a report needs /proc, or a process whose name is ASCII."""
    path = tmp_path / "status"
    if status is not None:
        path.write_bytes(status)
    monkeypatch.setattr(environment, "_STATUS", path)
    found = environment.peak_memory()
    assert found == 123456 << 10 if known else found is None or found > 1 << 20
