"""Options: their sections, the values that they take, and what is said to a slip of the pen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onnxprune.cli import program, prune
from onnxprune.cli.group import cli
from onnxprune.cli.options.names import DECIDED, SETTINGS, as_typed
from onnxprune.cli.options.section import Grouped
from onnxprune.cli.values import ERROR, SHARE, Choice
from onnxprune.options import nearest
from tests import digits

click = program.click
Capture = pytest.CaptureFixture[str]
QUICK = ["--ratio", "50%", "--method", "magnitude", "--refit", "none", "--quiet"]


def run(capsys: Capture, *args: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    code = program.main(list(args))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_stands_under_a_heading(name: str, capsys: Capture):
    """Fails where an option is in no section, in two of them, or its section is not shown."""
    command = cli.commands[name]
    assert isinstance(command, Grouped)
    grouped = [p for s in command.sections for p in s.options]
    assert len({id(p) for p in grouped}) == len(grouped)
    rest = [p.name for p in command.params if isinstance(p, click.Option) and p not in grouped]
    assert set(rest) <= {"version", "config", "settings"}
    code, out, _ = run(capsys, name, "-h")
    assert code == 0
    at = [out.index(f"\n{s.title}:\n") for s in command.sections]
    assert at == sorted(at)
    for p in grouped:
        assert re.search(rf"^  (-\w, )?{p.opts[0]}\b", out, re.MULTILINE)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_help_breaks_no_word(name: str, capsys: Capture):
    """Fails where an option is folded at a hyphen, or a sentence on a command is cut."""
    out = run(capsys, name, "-h")[1]
    assert not re.search(r"\w-$", out, re.MULTILINE)
    assert not re.search(r"\w\.\.\.$", out.split("\n", 1)[1], re.MULTILINE)
    assert out.isascii()


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_defaults_stand_without_parentheses(name: str, capsys: Capture):
    """Fails where `--help` says "(none)" for "none", as click does by itself."""
    defaults = re.findall(r"\[default: ([^\]]*)\]", " ".join(run(capsys, name, "-h")[1].split()))
    assert defaults
    assert not [d for d in defaults if d.startswith("(")]


def test_the_sections_of_prune(capsys: Capture):
    titles = [s.title for s in prune.prune_command.sections]  # type: ignore[attr-defined]
    assert titles == [
        "Budget",
        "Data",
        "Data: images",
        "Data: texts",
        "What stays",
        "Then: fewer bits",
        "Where it runs",
        "Output",
        "Experts",
    ]


def test_every_setting_is_an_option():
    """Fails where a field of PruneConfig cannot be set from the command line."""
    assert {p.name for p in prune.prune_command.params} >= set(SETTINGS)
    assert set(DECIDED) < set(SETTINGS)


@pytest.mark.parametrize("kind", [SHARE, ERROR])
@pytest.mark.parametrize(
    ("text", "share"),
    [("0.4", 0.4), ("40%", 0.4), (" 1% ", 0.01), ("1", 1.0), ("0.5%", 0.005), ("0", 0.0), ("1e-3", 1e-3)],
)
def test_shares(kind: click.ParamType, text: str, share: float):
    assert kind.convert(text, None, None) == pytest.approx(share, rel=1e-12, abs=0.0)


@pytest.mark.parametrize("text", ["", "x", "%", "40", "1.5", "101", "101%", "-0.1", "nan", "inf", "1e400", "4 0%"])
def test_no_shares(text: str):
    with pytest.raises(click.BadParameter):
        SHARE.convert(text, None, None)


def test_errors_may_be_more_than_all():
    assert ERROR.convert("900%", None, None) == 9.0
    with pytest.raises(click.BadParameter, match="'5' is 500%; write 5%, or 500% if that is meant"):
        ERROR.convert("5", None, None)


@pytest.mark.parametrize(
    ("text", "near"), [("obbs", "obs"), ("tensorrt-fp61", "tensorrt-fp16"), ("OBS", "obs"), ("quantum", "")]
)
def test_choices(text: str, near: str):
    """Fails where the nearest name is not told, or one is that nobody could have meant."""
    with pytest.raises(click.BadParameter) as e:
        Choice(["obs", "magnitude", "tensorrt-fp16"]).convert(text, None, None)
    assert ("Did you mean" in e.value.message) == bool(near)
    assert f"Did you mean {near}?" in e.value.message or not near


def test_nearest_names():
    assert nearest("layer3.conv", ["/layer3/conv/Conv", "layer3.conv1", "layer4.conv1"], 2) == (
        "layer3.conv1 or layer4.conv1"
    )
    assert nearest("zzz", ["abc"]) == ""


@pytest.mark.parametrize(("word", "meant"), [("insepct", "inspect"), ("banch", "bench"), ("prnue", "prune")])
def test_a_command_that_there_is_not(capsys: Capture, word: str, meant: str):
    """Fails where a misspelt command is said to be a file that is missing."""
    code, out, err = run(capsys, word, "in.onnx", "out.onnx")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"there is no command {word!r}, and no such file; did you mean {meant}?" in err


def test_prune_is_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture):
    """Fails where the main command's name changes what it does; a model of that name is given as ./prune."""
    monkeypatch.chdir(tmp_path)
    model = str(digits.path("resnet"))
    (tmp_path / "prune").write_bytes(Path(model).read_bytes())
    assert run(capsys, model, "a.onnx", *QUICK)[0] == 0
    assert run(capsys, "prune", model, "b.onnx", *QUICK)[0] == 0
    assert run(capsys, "./prune", "c.onnx", *QUICK)[0] == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert (tmp_path / "c.onnx").is_file()
    assert run(capsys, "prune")[0] == 2


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(capsys: Capture, option: str):
    code, out, _ = run(capsys, option)
    assert (code, out.startswith("onnxprune, version ")) == (0, True)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--ratio", "99.9%"], 3, "of the MACs cannot go: at most"),
        (["--uniform", "0.5", "--round-to", "64"], 3, "every group is too narrow"),
        (["--ratio", "0.5", "--exclude", "/3/conv1/Cov"], 2, "did you mean /3/conv1/Conv or "),
        (["--ratio", "0.5", "--exclude-after", "/3/conv1/Conv_output"], 2, "did you mean /3/conv1/Conv_output_0"),
        (["--ratio", "0.5", "--include", "nobody*"], 2, "`onnxprune inspect` lists the names"),
    ],
)
def test_errors_about_options_come_before_warnings(capsys: Capture, args: list[str], code: int, said: str):
    """Fails where a warning of missing data stands before an error that ends the run anyway, or no name is near."""
    found, out, err = run(capsys, str(digits.path("resnet")), "--dry-run", *args)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert said in err


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--float-share", "1"], "--float-share is 1.0; it is the share of the multiplications"),
        (
            ["--to", "fp16", "--ranges", "entropy"],
            "--ranges, --reduce-range and --float-share are about 8-bit integers",
        ),
        (["--keep-float", "x" * 1001], "the pattern 'xxx"),
        (["--keep-float", "nobody"], "--keep-float 'nobody' matches no node"),
        (["--samples", "0"], "--samples is 0; it must be at least 1"),
        (["--seed", "-1"], "--seed is -1"),
    ],
)
def test_messages_of_quantize_name_what_was_typed(typed: list[str], said: str, tmp_path: Path, capsys: Capture):
    """Fails where a message names the parameter of the library."""
    out = str(tmp_path / "out.onnx")
    code, _, err = run(
        capsys, "quantize", str(digits.path("resnet")), out, "--calib", str(digits.CALIB), "--quiet", *typed
    )
    assert code == 2
    assert err.startswith(f"onnxprune: error: {said}")


def test_messages_of_prune_name_what_was_typed(tmp_path: Path, capsys: Capture):
    out = str(tmp_path / "out.onnx")
    code, _, err = run(
        capsys, str(digits.path("resnet")), out, "--calib", str(digits.CALIB), *QUICK, "--min-channels", "0"
    )
    assert (code, err) == (2, "onnxprune: error: --min-channels is 0; it must be at least 1\n")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("keep_float 'a' and more: leave out keep_float", "--keep-float 'a' and more: leave out --keep-float"),
        ("seed, ranges and keep_float exclude each other", "--seed, --ranges and --keep-float exclude each other"),
        ("seed data are ranges of 'keep_float', x_keep_float", "seed data are ranges of 'keep_float', x_keep_float"),
        ("in keep_float=1 and --keep-float", "in keep_float=1 and --keep-float"),
    ],
)
def test_only_names_of_parameters_become_options(message: str, said: str):
    """Fails where a word of the language, a value or a part of another name is taken for a parameter."""
    options = {"keep_float": "--keep-float", "seed": "--seed", "ranges": "--ranges"}
    assert as_typed(message, options) == said
    assert as_typed(message, {}) == message
