"""Closed, full and abandoned streams: exit code and files agree, and nothing but our line is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from onnxprune import RunError
from onnxprune.cli.program import main
from onnxprune.process import streams
from tests import digits
from tests.test_pipeline import listing

pytestmark = pytest.mark.skipif(os.name != "posix", reason="redirections of a shell")
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")

Capture = pytest.CaptureFixture[str]
RUN = ["ONNXPRUNE", str(digits.path("resnet")), "out.onnx", "--ratio", "0.5", "--method", "magnitude"]
RUN += ["--refit", "none", "--plan", "plan.json"]
CALIB = ["--calib", str(digits.CALIB)]


def shell(folder: Path, *args: str, redirected: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command line with its redirections."""
    code = "import sys\nfrom onnxprune.cli.program import main\nsys.exit(main())"
    words = [sys.executable, "-c", code, *args[1:]]
    line = " ".join(f"'{w}'" for w in words)
    env = {**os.environ, "PYTHONPATH": str(digits.FOLDER.parent)}
    done = subprocess.run(
        ["sh", "-c", f"{line} {redirected}"], capture_output=True, text=True, cwd=folder, env=env, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("form", [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams(form: str, tmp_path: Path) -> None:
    """Fails where a closed stream is an error, or the next file that is opened takes its place and is printed into."""
    code, out, err = shell(tmp_path, *RUN, *CALIB, redirected=form)
    assert (code, err) == (0, "")
    assert bool(out) == (">&-" not in form.replace("2>&-", ""))
    assert set(listing(tmp_path)) == {"out.onnx", "plan.json"}
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)


@needs_full
def test_a_report_that_cannot_be_printed(tmp_path: Path) -> None:
    """Fails where the model appears although the report that goes with it is lost, or the end adds a traceback."""
    code, _, err = shell(tmp_path, *RUN, *CALIB, redirected="> /dev/full")
    assert (code, err) == (
        1,
        "onnxprune: error: the report cannot be printed: No space left on device; nothing was written\n",
    )
    assert not listing(tmp_path)
    assert shell(tmp_path, *RUN, *CALIB, "--quiet", redirected="> /dev/full")[0] == 0
    assert set(listing(tmp_path)) == {"out.onnx", "plan.json"}


@needs_full
def test_warnings_and_errors_that_cannot_be_printed(tmp_path: Path) -> None:
    """Fails where a full stderr changes what happens: a warning is no result, and the exit code says the error."""
    code, out, _ = shell(tmp_path, *RUN, redirected="2> /dev/full")
    assert code == 0
    assert "written: out.onnx" in out
    assert set(listing(tmp_path)) == {"out.onnx", "plan.json"}
    assert shell(tmp_path, *RUN, redirected="2> /dev/full")[0] == 2


@needs_full
@pytest.mark.parametrize(
    "args", [("--help",), ("eval", "--help"), ("--version",), ("inspect", str(digits.path("resnet")))]
)
def test_other_output_that_cannot_be_printed(args: tuple[str, ...], tmp_path: Path) -> None:
    code, _, err = shell(tmp_path, "ONNXPRUNE", *args, redirected="> /dev/full")
    assert code == 1
    assert err.startswith("onnxprune: error: the ")
    assert "cannot be printed: No space left on device" in err
    assert "ONNXPRUNE" not in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("args", [("--help",), ("inspect", str(digits.path("resnet"))), (*RUN[1:], *CALIB)])
def test_a_reader_that_reads_no_more(args: tuple[str, ...], tmp_path: Path) -> None:
    """Fails where `| head -0` is an error, or leaves something on stderr."""
    reads, writes = os.pipe()
    os.close(reads)
    env = {**os.environ, "PYTHONPATH": str(digits.FOLDER.parent)}
    with os.fdopen(writes, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "onnxprune", *args],
            stdout=pipe,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env=env,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert set(listing(tmp_path)) == ({"out.onnx", "plan.json"} if "out.onnx" in args else set())


def test_a_stream_that_the_program_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open("w", encoding="utf-8") as closed:
        pass
    monkeypatch.setattr(sys, "stdout", closed)
    with pytest.raises(RunError, match="the report cannot be printed: I/O operation on closed file"):
        streams.show("text")


def test_a_terminal_that_was_closed() -> None:
    """Fails where the status of the present stage ends a run whose terminal has gone."""
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        shown = streams.unbreakable(stream)
        assert shown.isatty()
        assert shown.encoding == "utf-8"
        assert shown.fileno() == theirs
        os.close(ours)
        shown.write("text")
        shown.flush()
        with pytest.raises(OSError, match="Input/output error"):
            stream.flush()
        streams.give_up(stream)


def test_no_streams_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> None:
    """Fails where a program without a console, whose streams are None, cannot call the command line."""
    monkeypatch.chdir(tmp_path)
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main([*RUN[1:], *CALIB]) == 0
    for name in ("stdin", "stdout", "stderr"):
        getattr(sys, name).close()
    monkeypatch.undo()
    assert set(listing(tmp_path)) == {"out.onnx", "plan.json"}
