"""Options from files and from the environment: which file, which value counts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnxprune.cli import program
from onnxprune.cli.configuration import FILE, configuration
from onnxprune.cli.group import cli
from onnxprune.errors import UsageError
from tests import digits

Capture = pytest.CaptureFixture[str]
MODEL = str(digits.path("resnet"))
QUICK = ["--dry-run", "--method", "magnitude", "--refit", "none", "--quiet"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(text: str, name: str = FILE) -> None:
    Path(name).write_text(text, encoding="utf-8")


def found(command: str = "prune", file: str | None = None, chosen: str | None = None) -> dict[str, Any]:
    return dict(configuration(cli.commands[command], cli.commands, file, chosen).values)


def said(capsys: Capture, *args: str) -> tuple[int, str]:
    """(exit code, stderr)."""
    code = program.main(list(args))
    return code, capsys.readouterr().err


def report(*args: str) -> dict[str, Any]:
    """The report of a quick run."""
    assert program.main([MODEL, *QUICK, "--report", "r.json", "--overwrite", *args]) == 0
    return json.loads(Path("r.json").read_text(encoding="utf-8"))


TEXT = """
ratio = "40%"
exclude = ["/6/*", "a b"]
round-to = 4
fast = true
[eval]
min_agreement = 0.9
[settings.edge]
ratio = 0.6
[settings.edge.bench]
threads = 2
"""


def test_each_command_gets_its_own():
    written(TEXT)
    assert found() == {"ratio": "40%", "exclude": ["/6/*", "a b"], "round_to": "4", "fast": True}
    assert found("eval") == {"min_agreement": "0.9"}
    assert found("bench") == found("inspect") == {}
    assert found(chosen="edge") == {**found(), "ratio": "0.6"}
    assert found("bench", chosen="edge") == {"threads": "2"}


def test_which_file():
    """Fails where another file than the first of them speaks, or one without a table of ours is an error."""
    assert found() == {}
    written("[tool.other]\nratio = 0.1", "pyproject.toml")
    assert found() == {}
    written("[tool.onnxprune]\nratio = 0.2", "pyproject.toml")
    assert found() == {"ratio": "0.2"}
    written("ratio = 0.3")
    assert found() == {"ratio": "0.3"}
    written("ratio = 0.4", "own.toml")
    assert found(file="own.toml") == {"ratio": "0.4"}
    assert found(file="pyproject.toml") == {"ratio": "0.2"}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("ratoi = 0.5", "prune has no option 'ratoi'; did you mean ratio?"),
        ("[eval]\nratio = 0.5", "eval has no option 'ratio'"),
        (
            "against = 'x'",
            r"prune has no option 'against'; eval and bench have it: write it under \[eval\] or \[bench\]$",
        ),
        ("drop = 1", r"prune has no option 'drop'; did you mean max-drop\?$"),
        ("xyzzy = 1", "prune has no option 'xyzzy'; onnxprune prune --help lists them$"),
        ("[evil]\ndata = 'x'", "there is no command 'evil'; did you mean eval?"),
        ("[settings.x]\nmethd = 'obs'", r"\[settings.x\]: prune has no option 'methd'; did you mean method"),
        ("settings = 1", "settings holds tables"),
        ("ratio = [0.5]", "ratio is a list; it takes one value"),
        ("ratio = true", "ratio is True; write a text or a number"),
        ("ratio = 2020-01-01", "write a text or a number"),
        ("fast = 1", "fast is 1; write true or false"),
        ("config = 'x'", "has no option 'config'"),
        ("ratio = ", "is no TOML"),
        ("custom-ops = ['./evil.so']", "is taken of a file that --config names alone"),
        ("[settings.x.bench]\ncustom_ops = './evil.so'", "is taken of a file that --config names alone"),
        ("[eval]\nmetric = 'own.py:f'", "is taken of a file that --config names alone"),
        ("allow-links = true", "is taken of a file that --config names alone"),
    ],
)
def test_what_is_refused(text: str, match: str):
    written(text)
    with pytest.raises(UsageError, match=match):
        found()


def test_code_is_named_by_a_file_that_was_named():
    written("custom-ops = './ops.so'")
    assert found(file=FILE) == {"custom_ops": ["./ops.so"]}


@pytest.mark.parametrize(
    ("file", "chosen", "match"),
    [
        ("missing.toml", None, "missing.toml does not exist"),
        (".", None, "is a folder"),
        ("bytes.toml", None, "is no TOML"),
        (FILE, "edgy", r"has no \[settings.edgy\]; did you mean edge\?"),
        (None, "x", r"has no \[settings.x\]"),
    ],
)
def test_files_that_are_refused(file: str | None, chosen: str | None, match: str):
    written("[settings.edge]\nratio = 0.5")
    Path("bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=match):
        found(file=file, chosen=chosen)


def test_settings_without_a_file():
    with pytest.raises(UsageError, match=r"there is neither onnxprune\.toml nor a table"):
        found(chosen="edge")


def test_help_needs_no_file(capsys: Capture):
    written("this is no TOML")
    assert said(capsys, "--help") == (0, "")
    assert said(capsys, "eval", "-h") == (0, "")
    code, err = said(capsys, MODEL, "--dry-run", "--ratio", "0.5")
    assert (code, err.count("\n"), "is no TOML" in err) == (2, 1, True)


def test_which_value_counts(monkeypatch: pytest.MonkeyPatch):
    """Fails where a file is above the environment, that above the command line, or the report names another."""
    written("ratio = 0.3\nseed = 7\nsamples = 40\n[settings.more]\nratio = 0.35")
    monkeypatch.setenv("ONNXPRUNE_SEED", "8")
    monkeypatch.setenv("ONNXPRUNE_VERSION", "of a container")  # no option, whatever it says
    told = report("--samples", "32")
    assert [told["config"][k] for k in ("ratio", "seed", "samples")] == [0.3, 8, 32]
    assert told["sources"] == {FILE: "--ratio", "ONNXPRUNE_SEED": "--seed"}
    monkeypatch.setenv("ONNXPRUNE_SETTINGS", "more")
    told = report("--uniform", "30%")
    assert (told["config"]["ratio"], told["config"]["uniform"]) == (None, 0.3)
    assert FILE in told["sources"]
    assert f"{FILE} [settings.more]" not in told["sources"]


@pytest.mark.parametrize(
    ("text", "args", "code", "match"),
    [
        ("ratio = 0.5\nuniform = 0.5", [], 2, "leave out --ratio"),
        ("ratio = 'half'", [], 2, "'half' is not a share"),
        ("uniform = 0.5", ["--ratio", "0.5", "--uniform", "0.5"], 2, "leave out --ratio"),
        ("ratio = 0.5", ["--threads", "2"], 2, "--threads says what"),
        ("ratio = 0.5", ["--from-plan", "none.json", "--exclude", "x"], 2, "leave out --exclude"),
        ("ratio = 0.5\nexclude = 'x'", ["--from-plan", "none.json"], 1, "none.json does not exist"),
        ("max-error = '5%'\nbench = true", ["--ratio", "99.9%"], 3, "of the MACs cannot go"),
        ("metric = 'exact'\nthreads = 2", ["--ratio", "99.9%"], 3, "of the MACs cannot go"),
        ("jobs = 2", ["--ratio", "0.5", "--scheduler", "a:1"], 2, "write tcp://host:8786"),
    ],
)
def test_what_gives_way(capsys: Capture, text: str, args: list[str], code: int, match: str):
    """Fails where a file contradicts the command line, or two options of one place do not contradict each other."""
    written(text)
    out, err = said(capsys, MODEL, "--dry-run", *args)
    assert (out, err.count("\n")) == (code, 1)
    assert match in err


def test_shells_complete(capsys: Capture, monkeypatch: pytest.MonkeyPatch):
    """Fails where a shell is told nothing, or asking it costs a traceback."""
    monkeypatch.setenv("_ONNXPRUNE_COMPLETE", "bash_complete")
    for words, at, wanted in (
        ("onnxprune in", 1, ["plain,inspect", "file,in"]),
        ("onnxprune a.onnx --meth", 2, ["plain,--method"]),
        ("onnxprune a.onnx --method o", 3, ["plain,obs"]),
        ("onnxprune eval a.onnx --data x", 4, ["file,x"]),
        ("onnxprune --conf", 1, ["plain,--config"]),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(at))
        assert program.main([]) == 0
        assert capsys.readouterr().out.split("\n")[:-1] == wanted
