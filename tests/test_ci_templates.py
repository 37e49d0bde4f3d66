"""The action for GitHub and the template for GitLab: their form, and their scripts, run here on the bundled models."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.house import ROOT

ACTION = ROOT / "action.yml"
TEMPLATE = ROOT / "templates" / "onnxprune.yml"
MODELS = ROOT / "models"
yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
needs_bash = pytest.mark.skipif(shutil.which("bash") is None or sys.platform == "win32", reason="needs bash")


def action() -> dict[str, Any]:
    return yaml.safe_load(ACTION.read_text(encoding="utf-8"))


def template() -> tuple[dict[str, Any], dict[str, Any]]:
    header, jobs = yaml.safe_load_all(TEMPLATE.read_text(encoding="utf-8"))
    (job,) = jobs.values()
    return header["spec"]["inputs"], job


def installed(folder: Path) -> None:
    """A stand-in for what the installing step makes: the command, of this checkout."""
    (folder / "bin").mkdir(parents=True)
    command = folder / "bin" / "onnxprune"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m onnxprune "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    (folder / "bin" / "python").symlink_to(sys.executable)


def bash(script: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which("bash") or "bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_the_action_uses_is_pinned() -> None:
    uses = re.findall(r"^ +uses:(.*)$", ACTION.read_text(encoding="utf-8"), re.MULTILINE)
    assert uses
    for use in uses:
        assert re.fullmatch(r" [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use), use
        assert use in (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")


def test_inputs_of_the_action_reach_its_scripts_by_the_environment_alone() -> None:
    """What a caller gives is never part of a script: it could be one itself."""
    text, steps = ACTION.read_text(encoding="utf-8"), action()["runs"]["steps"]
    for step in steps:
        assert "${{" not in step.get("run", "")
        assert "run" not in step or step["shell"] == "bash"
    used = set(re.findall(r"\$\{\{ inputs\.([\w-]+) \}\}", text))
    assert used == set(action()["inputs"])


@pytest.mark.skipif(shutil.which("zizmor") is None, reason="zizmor is not installed")
def test_a_linter_finds_nothing_in_the_action() -> None:
    done = subprocess.run(
        ["zizmor", "--offline", "--quiet", str(ACTION)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_bash
def test_the_action_runs(tmp_path: Path) -> None:
    """A gate that fails fails the step, and its report is on the page of the run."""
    installed(tmp_path / "onnxprune")
    script = next(s["run"] for s in action()["runs"]["steps"] if s.get("name") == "run")
    # The smallest run that there is: no data are read but those of the gate.
    given = {
        "MODEL": str(MODELS / "digits_resnet.onnx"),
        "OUTPUT": str(MODELS / "digits_mobilenet.onnx"),
        "PRUNE": "",
        "EVAL": f"--data '{MODELS / 'digits_test.npz'}' --max-error 0.1%",
        "BENCH": "",
    }
    summary = tmp_path / "summary.md"
    done = bash(script, tmp_path, RUNNER_TEMP=str(tmp_path), GITHUB_STEP_SUMMARY=str(summary), **given)
    assert done.returncode == 4, done.stderr
    assert "digits_mobilenet.onnx" in done.stdout
    assert "digits_mobilenet.onnx" in summary.read_text(encoding="utf-8")


def test_inputs_of_the_template_are_those_of_the_action() -> None:
    """Fails where one of the two learns something that the other does not, or where an input is read by nothing."""
    inputs, job = template()
    assert set(inputs) - {"job", "stage", "image"} == set(action()["inputs"]) - {"python-version"}
    assert set(re.findall(r"\$\[\[ inputs\.(\w+) \]\]", TEMPLATE.read_text(encoding="utf-8"))) == set(inputs)
    assert all("$[[" not in line for line in job["script"])


@needs_bash
def test_the_template_runs(tmp_path: Path) -> None:
    """The job's own script, without its installation; quotes hold, and the exit code of the gate is that of the job."""
    _, job = template()
    installed(tmp_path / "env")
    script = job["script"][-1].replace("/tmp/onnxprune", str(tmp_path / "env"))
    assert len(job["script"]) == 3
    assert str(tmp_path) in script
    given = {
        "ONNXPRUNE_MODEL": str(MODELS / "digits_resnet.onnx"),
        "ONNXPRUNE_OUTPUT": str(MODELS / "digits_mobilenet.onnx"),
        "ONNXPRUNE_PRUNE": "",
        "ONNXPRUNE_EVAL": f"--data '{MODELS / 'digits_test.npz'}' --max-error '0.1%'",
        "ONNXPRUNE_BENCH": "",
    }
    done = bash(script, tmp_path, **given)
    assert done.returncode == 4, done.stderr
    junit = (tmp_path / "onnxprune-eval.xml").read_text(encoding="utf-8")
    assert "<failure" in junit
