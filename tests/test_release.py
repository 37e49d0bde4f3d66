"""What a release and its workflows rest on."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import onnxprune

ROOT = Path(__file__).resolve().parent.parent
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml"))


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_workflows_are_there() -> None:
    assert {path.stem for path in WORKFLOWS} >= {"tests", "weekly", "release"}


@pytest.mark.parametrize("path", [*WORKFLOWS, *FORMS], ids=lambda path: path.name)
def test_it_is_yaml(path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_pinned_by_its_commit_and_says_its_version(path: Path) -> None:
    actions = re.findall(r"^[ -]*uses:(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert actions
    for action in actions:
        assert re.fullmatch(r" [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_do_nothing_that_a_job_does_not_ask_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.search(r"^permissions: \{\}$", text, re.MULTILINE)
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")
    assert "secrets." not in text
    assert text.count(": write") == (path.stem == "release")


@pytest.mark.parametrize("tool", [("zizmor", "--offline", "--quiet"), ("actionlint",)], ids=lambda tool: tool[0])
def test_a_linter_finds_nothing_in_the_workflows(tool: tuple[str, ...]) -> None:
    if shutil.which(tool[0]) is None:
        pytest.skip(f"{tool[0]} is not installed")
    done = subprocess.run([*tool, *map(str, WORKFLOWS)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_package_and_changelog_name_one_version() -> None:
    """The workflow of a release compares the tag with both, by the same patterns."""
    dated = re.search(r"^## ([^ ]+) \(\d{4}-\d{2}-\d{2}\)$", _read("CHANGELOG.md"), re.MULTILINE)
    written = re.search(r'^__version__ = "(.*)"$', _read("onnxprune/version.py"), re.MULTILINE)
    assert dated and written
    assert written[1] == onnxprune.__version__
    assert dated[1] == onnxprune.__version__


def test_the_workflows_run_what_the_readme_and_the_hooks_run() -> None:
    block = re.search(r'<!-- run: test -->\n```sh\npip install "(.*)" && (.*)\n```', _read("README.md"))
    assert block
    for name in ("tests", "weekly"):
        steps = re.findall(r"- run: (.*)", _read(f".github/workflows/{name}.yml"))
        assert block[2] in steps
        assert any(step.endswith(f'pip install "{block[1]}"') for step in steps)
    tests, hooks = _read(".github/workflows/tests.yml"), _read(".pre-commit-config.yaml")
    assert re.findall(r"ruff==([\d.]+)", tests) == re.findall(r"ruff-pre-commit\n +rev: v([\d.]+)", hooks)


def test_the_tests_run_with_the_oldest_python_that_is_promised() -> None:
    promised = re.search(r'^requires-python = ">=([\d.]+)"$', _read("pyproject.toml"), re.MULTILINE)
    assert promised
    assert f'{{ python: "{promised[1]}", dependencies: lowest-direct }}' in _read(".github/workflows/tests.yml")


def test_the_guide_names_what_the_tests_run_on() -> None:
    tests = _read(".github/workflows/tests.yml")
    systems = re.search(r"os: \[(\w+)-latest, (\w+)-latest, (\w+)-latest\]", tests)
    rows = re.findall(r'- \{ python: "([\d.]+)", dependencies: (\S+) \}', tests)
    assert systems
    assert systems.groups() == ("ubuntu", "macos", "windows")
    assert [dependencies for _, dependencies in rows] == ["lowest-direct", "highest", "highest"]
    lowest, oldest, newest = (python for python, _ in rows)
    guide = " ".join(_read("CONTRIBUTING.md").split())
    assert (
        f"on Linux, macOS and Windows with Python {lowest} and the lowest dependencies that `pyproject.toml` allows "
        f"(uv's `lowest-direct`), Python {oldest} and the newest ones, Python {newest} and the newest ones."
    ) in guide


def test_the_guide_names_what_pypi_must_be_told() -> None:
    """A trusted publisher that names another workflow or environment is refused when the first release is out."""
    release = _read(".github/workflows/release.yml")
    environment = re.findall(r"^ +environment: (\S+)$", release, re.MULTILINE)
    assert environment == ["pypi"]
    assert "id-token: write" in release
    assert "pytest" not in release
    guide = " ".join(_read("CONTRIBUTING.md").split())
    project = re.search(r'^name = "(.*)"$', _read("pyproject.toml"), re.MULTILINE)
    assert project
    assert f"trusted publisher for the project `{project[1]}`" in guide
    assert f"the workflow's name (release.yml) and environment `{environment[0]}`" in guide
    assert "the release itself runs none" in guide


def test_the_heading_that_the_guide_shows_is_one_that_a_release_reads() -> None:
    shown = re.search(r"with the date \(`(.*?)`\)", " ".join(_read("CONTRIBUTING.md").split()))
    assert shown
    pattern = re.search(r"sed -nE '/(\^## [^/]+)/\{s//", _read(".github/workflows/release.yml"))
    assert pattern
    assert re.fullmatch(pattern[1], shown[1])


def test_the_requirements_without_cuda_are_those_of_the_package() -> None:
    """Fails where a dependency of the package is missing from what `pip install --no-deps` relies on."""
    project = tomllib.loads(_read("pyproject.toml"))["project"]
    wanted = {d.partition(";")[0].replace("onnxruntime-gpu", "onnxruntime").strip() for d in project["dependencies"]}
    found = [line for line in _read("requirements-cpu.txt").splitlines() if not line.startswith("#")]
    assert set(found) == wanted
    assert len(found) == len(wanted)
