"""Every command and every piece of Python on the pages runs as it stands."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

from onnxprune.cli.program import main
from tests import stand_ins
from tests.pages import DOCS, FORMS, GUIDES, RUN, STAND_IN, Block, blocks, page_id

ROOT = DOCS.parent
EVERY = [b for page in GUIDES for b in blocks(page)]
LEFT_OUT = sorted({(b.page, n) for b in EVERY for n in b.needs})
# What a shell does beyond calling one command with words.
_SHELL = re.compile(r"[|<>;&$`*?~#]|\\\n")
_QUOTED = re.compile(r"'[^']*'")


@pytest.mark.parametrize("page", [p for p in GUIDES if any(b.language in RUN for b in blocks(p))], ids=page_id)
def test_the_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a command of a page ends otherwise than the page says, or its Python raises."""
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("*.py"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language in RUN and not (block.shown or block.missing or block.of_readme):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # those of other libraries, which the reader sees as well
                run(block, names)


def run(block: Block, names: dict[str, object]) -> None:
    """Run one block in the working directory; raises AssertionError, or what its Python raises."""
    if block.language == "python":
        exec(compile(block.body, block.name, "exec"), names)
        return
    if block.language == STAND_IN:
        stand_ins.write(*block.body.split())
        return
    for command in commands(block.body):
        code, said = called(command)
        assert code == block.exit_code, f"{block.name}: {command}\n{said}"


def commands(body: str) -> list[str]:
    """The block as a whole where the shell does more than to call onnxprune; else line by line."""
    lines = [line for line in body.split("\n") if line.strip()]
    return [body] if _needs_a_shell(body) or not all(s.startswith("onnxprune ") for s in lines) else lines


def _needs_a_shell(text: str) -> bool:
    return _SHELL.search(_QUOTED.sub("", text)) is not None


def called(command: str) -> tuple[int, str]:
    """Exit code and output. onnxprune runs in this process, which has loaded it already; anything else in bash."""
    if command.startswith("onnxprune ") and not _needs_a_shell(command):
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
            code = main(shlex.split(command)[1:])
        return code, out.getvalue()
    bash = shutil.which("bash")
    if bash is None or sys.platform == "win32":
        pytest.skip("needs bash")
    function = f'onnxprune() {{ "{sys.executable}" -m onnxprune "$@"; }}; export -f onnxprune\n'
    python = f'python() {{ "{sys.executable}" "$@"; }}; export -f python\n'
    done = subprocess.run(
        [bash, "-euo", "pipefail", "-c", function + python + command],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("page", "need"), LEFT_OUT, ids=[f"{page_id(p)}-{n}" for p, n in LEFT_OUT])
def test_what_was_left_out(page: Path, need: str) -> None:
    """Says which blocks did not run here, and why."""
    lines = [str(b.line) for b in blocks(page) if need in b.missing]
    if lines:
        pytest.skip(f"{need} is not here: {page_id(page)}, lines {', '.join(lines)}, did not run")


@pytest.mark.parametrize("block", [b for b in EVERY if b.of_readme], ids=lambda b: b.name)
def test_what_is_of_the_readme_is_there(block: Block) -> None:
    """Fails where README shows another command, so that nothing runs the page's."""
    assert any(b.of_readme == block.of_readme and block.body.strip() in b.body for b in blocks(ROOT / "README.md"))


def test_the_pages_have_blocks() -> None:
    """Fails where blocks are no longer found, so that nothing above runs."""
    assert sum(b.language in RUN for b in EVERY) > 40


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=page_id)
def test_a_block_that_does_not_run_says_why(page: Path) -> None:
    """Fails for a block without a language that looks like a command, on the pages that tell a reader what to do."""
    if page in GUIDES:
        plain = [
            b.name for b in blocks(page) if b.language == "" and b.body.startswith(("onnxprune ", "pip ", "python "))
        ]
        assert plain == []


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=page_id)
def test_blocks_of_data_have_their_form(page: Path) -> None:
    """Fails where YAML, JSON or TOML on a page is none."""
    for block in blocks(page):
        if block.language == "json":
            json.loads(block.body)
        elif block.language == "toml":
            tomllib.loads(block.body)
        elif block.language == "yaml":
            yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
            yaml.safe_load(block.body)
    assert set(FORMS) == {"yaml", "json", "toml"}


def test_a_wrong_command_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation check: an option that is not there, a wrong exit code, and Python that raises."""
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    monkeypatch.setattr("tests.pages.ROOT", tmp_path)
    page.write_text(
        "<!-- exit: 2 -->\n```sh\nonnxprune --polish\n```\n```sh\nonnxprune --polish\n```\n"
        "<!-- needs: no_such_module -->\n```python\n1 / 0\n```\n```python\n1 / 0\n```\n"
        "<!-- before\nfalse\n-->\n```sh\nfalse | true\n```\n",
        encoding="utf-8",
    )
    first, second, third, fourth, *shell = blocks(page)
    run(first, {})
    with pytest.raises(AssertionError, match="polish"):
        run(second, {})
    assert third.missing == ("no_such_module",)
    with pytest.raises(ZeroDivisionError):
        run(fourth, {})
    if shutil.which("bash") and sys.platform != "win32":
        for block in shell:
            with pytest.raises(AssertionError):
                run(block, {})
