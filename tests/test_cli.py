"""The command line: exit codes, one line on stderr, and nothing written unless all went well."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import cli, methods
from onnxprune.benchmark.measure import Settings
from onnxprune.cli import group, program, prune, values
from onnxprune.report.terminal import PLAIN_WIDTH
from onnxprune.sentence import halves
from onnxprune.stages import decide, report, rewrite, time_layers
from tests import digits
from tests.digits import pruned
from tests.graphs import TABLE
from tests.latency.synthetic import Synthetic
from tests.started import PATIENCE, started
from tests.test_pipeline import largest_changed, listing

RESNET, CALIB = str(digits.path("resnet")), str(digits.CALIB)
FAST = ["--method", "magnitude", "--refit", "none"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with some things in it that are no models."""
    (tmp_path / "corrupt.onnx").write_bytes(digits.path("resnet").read_bytes()[:5000])
    (tmp_path / "text.onnx").write_text("not a model\n", encoding="utf-8")
    (tmp_path / "old.onnx").write_bytes(b"old")
    (tmp_path / "sub").mkdir()
    relu = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> main (float[N,4] x) => (float[N,4] y) { y = Relu (x) }'
    )
    onnx.save(relu, tmp_path / "relu.onnx")
    good = np.load(digits.CALIB)["input"]
    np.savez(tmp_path / "names.npz", image=good)
    np.savez(tmp_path / "shapes.npz", input=good[:, :, 1:])
    np.savez(tmp_path / "dtypes.npz", input=good.astype(np.int64))
    np.savez(tmp_path / "nan.npz", input=np.where(good > 1, np.float32(np.nan), good))
    np.savez(tmp_path / "none.npz", input=good[:0])
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], object), allow_pickle=True)
    (tmp_path / "zip.npz").write_bytes(b"PK\x03\x04 and then nothing")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: Capture, *args: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    code = program.main(list(args))
    out, err = capsys.readouterr()
    return code, out, err


def refused(folder: Path, capsys: Capture, code: int, match: str, *args: str) -> None:
    """One line on stderr that says `match`, the exit code, and the folder as it was but for a report that says so."""
    before = listing(folder)
    found, out, err = run(capsys, *args)
    report = folder / "report.json"
    if "report.json" not in before and report.exists():
        assert match in json.loads(report.read_text(encoding="utf-8"))["reason"]
        report.unlink()
    assert (found, out) == (code, "")
    assert err.startswith("onnxprune: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert match in err
    assert listing(folder) == before


# refusals

FILES = ["--plan", "plan.json", "--report", "report.json"]


@pytest.mark.parametrize(
    ("model", "code", "match"),
    [
        ("missing.onnx", 1, "missing.onnx does not exist"),
        ("corrupt.onnx", 1, "cut short"),
        ("text.onnx", 1, "not an ONNX model"),
        ("sub", 1, "is a folder"),
        ("relu.onnx", 3, "no channel can be removed"),
    ],
)
def test_models(folder: Path, capsys: Capture, model: str, code: int, match: str):
    calib = [] if model == "relu.onnx" else ["--calib", CALIB]
    if calib:
        refused(folder, capsys, code, match, model, "out.onnx", "--ratio", "0.5", *calib, *FILES)
        return
    np.savez(folder / "x.npz", x=np.ones((4, 4), np.float32))
    refused(folder, capsys, code, match, model, "out.onnx", "--ratio", "0.5", "--calib", "x.npz", *FILES)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ("missing.npz", "does not exist"),
        ("names.npz", "no data for input 'input': the model wants 'input', the file has 'image'"),
        ("shapes.npz", "has shape 256x1x7x8, the model wants Nx1x8x8"),
        ("dtypes.npz", "is int64, the model wants float32"),
        ("nan.npz", "NaN"),
        ("none.npz", "empty"),
        ("pickled.npy", "cannot be read"),
        ("zip.npz", "cannot be read"),
        ("empty", "holds no .npz or .npy file"),
        ("text.onnx", "neither a .npz"),
    ],
)
def test_calibration(folder: Path, capsys: Capture, data: str, match: str):
    refused(folder, capsys, 1, match, RESNET, "out.onnx", "--ratio", "0.5", "--calib", data, *FILES)


@pytest.mark.parametrize(
    ("args", "code", "match"),
    [
        (["out.onnx"], 2, "--ratio is missing"),
        (["--ratio", "0.5"], 2, "OUT is missing"),
        (["out.onnx", "--ratio", "0"], 2, "outside (0, 1)"),
        (["out.onnx", "--ratio", "1.5"], 2, "'1.5' is 150%; write 1.5%"),
        (["out.onnx", "--ratio", "nan"], 2, "'nan' is not a share"),
        (["out.onnx", "--ratio", "half"], 2, "'half' is not a share; write 0.4 or 40%"),
        (["out.onnx", "--ratio", "0.5", "--uniform", "0.5"], 2, "leave out --ratio"),
        (["out.onnx", "--uniform", "0.5", "--budget", "params", "--ratio", "0.5"], 2, "leave out --ratio, --budget"),
        (["out.onnx", "--uniform", "0.5", "--budget", "latency"], 2, "leave out --budget"),
        (["out.onnx", "--tolerance", "0.5", "--budget", "latency"], 2, "leave out --budget"),
        (
            ["out.onnx", "--ratio", "0.5", "--threads", "2"],
            2,
            "--threads says what --budget latency times: leave it out",
        ),
        (["out.onnx", "--uniform", "0.5", "--batch", "1"], 2, "--batch says what --budget latency times: leave it out"),
        (
            ["out.onnx", "--ratio", "0.5", "--metric", "gates"],
            2,
            "--metric does nothing with --method obs: leave it out",
        ),
        (["out.onnx", "--ratio", "0.5", "--probes", "1"], 2, "or choose one of global, combined, gfs-outputs, taylor"),
        (["out.onnx", "--ratio", "0.5", "--coefficients", "convex", "--method", "gfs"], 2, "with --method gfs"),
        (["out.onnx", "--ratio", "0.5", "--metric", "exact", "--method", "local"], 2, "with --method local"),
        (["out.onnx", "--ratio", "0.5", "--budget", "latency", "--batch", "0"], 2, "batch is 0"),
        (["out.onnx", "--uniform", "1"], 2, "outside (0, 1)"),
        (["out.onnx", "--uniform", "0.5", "--round-to", "64"], 3, "too narrow for --round-to"),
        (["out.onnx", "--from-plan", "p", "--uniform", "0.5"], 2, "leave out --uniform"),
        (["out.onnx", "--ratio", "0.5", "--jobs", "0"], 2, "jobs is 0; it must be at least 1"),
        (["out.onnx", "--ratio", "0.5", "--jobs", "2", "--scheduler", "tcp://a:1"], 2, "leave out one"),
        (["out.onnx", "--ratio", "0.5", "--scheduler", "a:1"], 2, "write tcp://host:8786"),
        (["out.onnx", "--ratio", "0.5", "--scheduler", "tcp://127.0.0.1:1"], 1, "no Dask scheduler answers"),
        (["out.onnx", "--ratio", "0.999"], 3, "cannot go: at most"),
        (["out.onnx", "--ratio", "0.5", "--method", "magic"], 2, "'magic' is not one of"),
        (["out.onnx", "--ratio", "0.5", "--method", "obs", "--labels", "y"], 2, "method 'obs' reads no labels, only"),
        (["out.onnx", "--from-plan", "p", "--labels", "y"], 2, "leave out --labels"),
        (["out.onnx", "--ratio", "0.5", "--memory", "much"], 2, "write 512M or 2G"),
        (["out.onnx", "--ratio", "0.5", "--round-to", "0"], 2, "--round-to is 0"),
        (
            ["out.onnx", "--ratio", "0.5", "--round-to", "often"],
            2,
            "'often' is not a number of channels; write 8, or auto",
        ),
        (["out.onnx", "--ratio", "0.5", "--target", "tpu"], 2, "'tpu' is not one of 'ort-cpu'"),
        (["out.onnx", "--ratio", "0.5", "--exclude", "nobody*"], 2, "matches no node and no tensor"),
        (["out.onnx", "--ratio", "0.5", "--speed", "9"], 2, "No such option"),
        (["out.onnx", "more.onnx", "--ratio", "0.5"], 2, "the files are IN and OUT, nothing else: leave out more.onnx"),
        (["old.onnx", "--ratio", "0.5"], 2, "use --overwrite"),
        (["sub", "--ratio", "0.5"], 2, "is a folder"),
        (["old.onnx/out.onnx", "--ratio", "0.5"], 1, "there is no folder"),
        (["none/out.onnx", "--ratio", "0.5"], 1, "there is no folder"),
        (["out.onnx", "--ratio", "0.5", "--report", "none/r.json"], 1, "there is no folder"),
        (["out.onnx", "--ratio", "0.5", "--report", "old.onnx"], 2, "a report is called by its form"),
        (["out.onnx", "--ratio", "0.5", "--plan", "text.onnx"], 2, "use --overwrite"),
        (["out.onnx", "--ratio", "0.5", "--plan", "a.md", "--report", "a.md"], 2, "used twice"),
        (["--ratio", "0.5", "--dry-run", "--bench"], 2, "leave out one of them"),
        (["out.onnx", "--ratio", "0.5", "--provider", "abacus"], 2, "'abacus' is not one of"),
        (["out.onnx", "--from-plan", "missing.json"], 1, "does not exist"),
        (["out.onnx", "--from-plan", "text.onnx"], 1, "is not a plan"),
        (["out.onnx", "--from-plan", "p", "--ratio", "0.5", "--round-to", "4"], 2, "leave out --ratio, --round-to"),
    ],
)
def test_options(folder: Path, capsys: Capture, args: list[str], code: int, match: str):
    refused(folder, capsys, code, match, RESNET, *args, "--calib", CALIB)


@pytest.mark.parametrize(
    ("data", "code", "match"),
    [
        ({}, 1, "labelled.npz: no labels under 'label'; beside the inputs it holds no other keys"),
        ({"label": np.zeros(3, int)}, 1, "labels 'label' have shape (3,); there are 256 samples"),
        ({"label": np.full(256, 10)}, 1, "labels run from 10 to 10, the model has the classes 0 to 9"),
        ({"label": np.zeros((256, 4))}, 1, "floating-point labels have shape 256x4, the first output has 256x10"),
        ({"label": np.full(256, "cat")}, 1, "must be integers (classes) or floating-point targets"),
        (None, 2, "--labels names a key of the calibration data: give that too, with --calib"),
    ],
)
def test_labels(
    folder: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    data: dict[str, Any] | None,
    code: int,
    match: str,
):
    monkeypatch.setattr(methods, "reading_labels", lambda: ("magnitude",))
    calib = [] if data is None else ["--calib", "labelled.npz"]
    if data is not None:
        np.savez(folder / "labelled.npz", input=np.load(digits.CALIB)["input"], **data)
    args = [RESNET, "out.onnx", "--ratio", "0.5", "--labels", "label", *calib, *FAST, *FILES]
    refused(folder, capsys, code, match, *args)


def test_labels_in_the_report(folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(methods, "reading_labels", lambda: ("magnitude",))
    np.savez(folder / "labelled.npz", input=np.load(digits.CALIB)["input"], truth=np.arange(256) % 10)
    args = [RESNET, "out.onnx", "--ratio", "0.5", "--labels", "truth", "--calib", "labelled.npz", *FAST, *FILES]
    code, out, err = run(capsys, *args)
    assert (code, err) == (0, "")
    assert "labelled.npz: 256 samples, with the labels 'truth', 32 of them held out" in " ".join(out.split())
    assert "does not read" not in out
    assert json.loads((folder / "report.json").read_text())["calibration"]["labels"] == "truth"
    code, out, err = run(capsys, RESNET, "again.onnx", "--from-plan", "plan.json", "--calib", CALIB)
    assert (code, err) == (0, "")
    assert (folder / "again.onnx").read_bytes() == (folder / "out.onnx").read_bytes()


def test_no_arguments(folder: Path, capsys: Capture):
    """Fails where a script whose variables are empty is told that all went well."""
    before = listing(folder)
    code, out, err = run(capsys)
    assert (code, out) == (2, "")
    assert err.count("\n  onnxprune ") == 3
    assert listing(folder) == before
    refused(folder, capsys, 2, "Missing argument 'IN'", "--ratio", "0.5")


def test_failed_check(folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch):
    """A deliberate 1 % error in one weight of the sliced model."""
    real = rewrite.rewrite
    monkeypatch.setattr(halves, "rewrite", lambda *args: largest_changed(real(*args), 1.01))
    args = [RESNET, "out.onnx", "--ratio", "0.5", "--calib", CALIB, *FAST, *FILES]
    refused(folder, capsys, 4, "differs from the masked original", *args)
    code, out, err = run(capsys, *args, "--force")
    assert (code, err) == (0, "")
    assert "--force: the sliced model differs" in out
    assert (folder / "out.onnx").is_file()


@pytest.mark.parametrize(
    ("error", "code", "match"),
    [
        (KeyError("x"), 1, "KeyError: 'x': this is a defect, please report it; set ONNXPRUNE_TRACEBACK=1"),
        (MemoryError(), 1, "out of memory"),
        (OSError(5, "Input/output error", "/somewhere"), 1, "Input/output error: /somewhere"),
        (RecursionError("too deep\nreally"), 1, "RecursionError: too deep really"),
        (KeyboardInterrupt(), 130, "interrupted; nothing was written"),
    ],
)
def test_unexpected(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, match: str
):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(decide, "allocate", fail)
    refused(folder, capsys, code, match, RESNET, "out.onnx", "--ratio", "0.5", "--calib", CALIB, *FAST, *FILES)


def test_traceback_on_request(folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise KeyError("x")

    monkeypatch.setattr(decide, "allocate", fail)
    monkeypatch.setenv(program.TRACEBACK, "1")
    code, _, err = run(capsys, RESNET, "--dry-run", "--ratio", "0.5", "--calib", CALIB, *FAST)
    assert code == 1
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("onnxprune: error: KeyError")


def test_a_working_folder_that_is_gone(folder: Path, capsys: Capture):
    """Fails where the line names neither what is missing nor what to do."""
    (folder / "gone").mkdir()
    os.chdir(folder / "gone")
    try:
        (folder / "gone").rmdir()
    except OSError:
        pytest.skip("this system keeps a working folder")
    gone = "the working folder has been removed; change to one that exists (cd), then run it again\n"
    assert program.main([str(folder / "relu.onnx"), "out.onnx", "--ratio", "0.5"]) == 1
    assert capsys.readouterr().err == f"onnxprune: error: out.onnx cannot be written: {gone}"
    assert program.main([str(Path("..") / "relu.onnx"), str(folder / "out.onnx"), "--ratio", "0.5"]) == 1
    assert capsys.readouterr().err == f"onnxprune: error: {gone}"


def test_a_full_disk(folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    args = [RESNET, "out.onnx", "--ratio", "0.5", "--calib", CALIB, *FAST, *FILES]
    refused(folder, capsys, 1, "plan.json cannot be written: No space left on device", *args)


def command(*args: str, **options: Any) -> AbstractContextManager[subprocess.Popen[bytes]]:
    env = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(digits.FOLDER.parent)}
    # A shell that runs the tests in the background has its children ignore interrupts.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    start = [sys.executable, "-m", "onnxprune", *args]
    return started(start, env=env, preexec_fn=heard, **options)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_interrupted_for_real(folder: Path):
    """Ctrl-C in a process of its own, as soon as it says that it calibrates."""
    # So much data that the run is still at it when the signal comes, on a busy machine too.
    with np.load(CALIB) as data:
        np.savez(folder / "much.npz", **{k: np.concatenate([v] * 32) for k, v in data.items()})
    before = listing(folder)
    ours, theirs = os.openpty()
    args = (RESNET, "out.onnx", "--ratio", "0.5", "--calib", "much.npz", "--round-to", "1", *FILES)
    args += ("--progress", "auto")
    with command(*args, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        seen = read_until(ours, b"calibrate")
        process.send_signal(signal.SIGINT)
        seen += read_until(ours, None)
        out, _ = process.communicate(timeout=PATIENCE)
    os.close(ours)
    assert process.returncode == 130, seen
    assert out == b""
    assert b"interrupted; nothing was written" in seen
    assert b"Traceback" not in seen
    assert listing(folder) == before


def read_until(terminal: int, wanted: bytes | None) -> bytes:
    """What a pseudo-terminal shows up to `wanted`, or up to its end."""
    seen, deadline = b"", time.monotonic() + PATIENCE
    while wanted is None or wanted not in seen:
        if not select.select([terminal], [], [], max(deadline - time.monotonic(), 0))[0]:
            pytest.fail(f"nothing more after {seen!r}")
        try:
            more = os.read(terminal, 4096)
        except OSError:  # the other end was closed
            more = b""
        if not more:
            assert wanted is None, seen
            return seen
        seen += more
    return seen


# runs


def test_a_run(folder: Path, capsys: Capture):
    code, out, err = run(capsys, RESNET, "out.onnx", "--ratio", "0.5", "--calib", CALIB, *FAST, *FILES)
    assert (code, err) == (0, "")
    direct = pruned("resnet", method="magnitude", refit="none")
    assert direct.model is not None
    assert (folder / "out.onnx").read_bytes() == direct.model.SerializeToString(deterministic=True)
    assert (folder / "plan.json").read_text(encoding="utf-8") == direct.plan.to_json()
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["output"] == "out.onnx"
    for text in ("MACs per sample", "16 → 8", "requested 50.0%", "the graph output 'logits'", "written: out.onnx"):
        assert text in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= PLAIN_WIDTH


def test_plan_and_replay(folder: Path, capsys: Capture):
    """Fails where a replay differs from the direct run by a single bit."""
    options = ["--calib", CALIB, "--quiet"]
    choice = ["--ratio", "0.4", "--refit", "least-squares", "--seed", "5"]
    assert run(capsys, RESNET, "direct.onnx", *choice, *options) == (0, "", "")
    assert run(capsys, RESNET, "--dry-run", "--plan", "plan.json", *choice, *options) == (0, "", "")
    assert run(capsys, RESNET, "replay.onnx", "--from-plan", "plan.json", *options) == (0, "", "")
    assert (folder / "replay.onnx").read_bytes() == (folder / "direct.onnx").read_bytes()
    code, _, _ = run(capsys, RESNET, "other.onnx", "--from-plan", "plan.json", "--refit", "none", *options)
    assert code == 0
    assert (folder / "other.onnx").read_bytes() != (folder / "direct.onnx").read_bytes()
    refused(
        folder,
        capsys,
        2,
        "another model",
        str(digits.path("mobilenet")),
        "m.onnx",
        "--from-plan",
        "plan.json",
        *options,
    )


def test_units_of_attention(folder: Path, capsys: Capture):
    """Fails where `inspect` or a replay counts in other units than were asked for."""
    model = TABLE["attention_by_parts_positions"].model()
    onnx.save(model, folder / "attention.onnx")

    def sizes(*options: str) -> list[int]:
        code, out, _ = run(capsys, "inspect", "attention.onnx", "--json", *options)
        assert code == 0
        return [g["units"] for g in json.loads(out)["groups"]]

    assert (sizes("--attention", "heads"), sizes("--attention", "head-dim")) == ([3], [4, 4])
    assert sizes() == [4, 4]  # as `prune` would, with data
    choice = ["--ratio", "0.2", "--round-to", "1", "--refit", "none", "--samples", "8", "--attention", "head-dim"]
    code, _, _ = run(capsys, "attention.onnx", "a.onnx", "--plan", "a.json", "--quiet", *choice)
    assert code == 0
    code, _, _ = run(capsys, "attention.onnx", "b.onnx", "--from-plan", "a.json", "--quiet")
    assert code == 0
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()
    refused(
        folder, capsys, 2, "leave out --attention", "attention.onnx", "c.onnx", "--from-plan", "a.json", *choice[-2:]
    )


def test_dry_run_writes_nothing(folder: Path, capsys: Capture):
    before = listing(folder)
    code, out, _ = run(capsys, RESNET, "old.onnx", "--ratio", "0.5", "--calib", CALIB, "--dry-run", *FAST)
    assert code == 0
    assert "dry run: no model was written" in out
    assert listing(folder) == before


def test_overwrite(folder: Path, capsys: Capture):
    (folder / "report.json").write_text("old", encoding="utf-8")
    args = [RESNET, "old.onnx", "--ratio", "0.5", "--calib", CALIB, *FAST, *FILES, "--overwrite", "--quiet"]
    assert run(capsys, *args) == (0, "", "")
    onnx.checker.check_model(str(folder / "old.onnx"))
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["achieved"] >= 0.5


def test_all_options_arrive(folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch):
    """Fails where an option of the command line is dropped on its way."""
    monkeypatch.setattr(methods, "reading_labels", lambda: ("random",))
    np.savez(folder / "labelled.npz", input=np.load(digits.CALIB)["input"], truth=np.arange(256) % 10)
    args = ["--ratio", "0.2", "--budget", "params", "--samples", "32", "--method", "random", "--refit", "scale"]
    args += ["--recover", "7", "--untried-branches", "cut", "--keep-fused", "--rotate", "auto"]
    args += [
        "--then",
        "int8",
        "--ranges",
        "entropy",
        "--float-share",
        "0.1",
        "--keep-float",
        "/3/*",
        "--reduce-range",
        "yes",
    ]
    args += ["--max-ratio", "0.9", "--ratio-of", "/3/*=25%", "--same-widths", "/6/*"]
    args += ["--round-to", "4", "--min-channels", "8", "--include", "/3/*", "--include", "/6/*", "--exclude", "/4/*"]
    args += ["--attention", "head-dim", "--labels", "truth", "--target", "tensorrt-int8", "--drop-branches"]
    args += ["--seed", "9", "--memory", "64M", "--force", "--dry-run", "--report", "r.json", "--calib", "labelled.npz"]
    code, _, err = run(capsys, RESNET, *args)
    assert code == 0
    assert err.startswith("onnxprune: warning: --rotate auto turned nothing: the target tensorrt-int8")
    assert err.count("\n") == 1
    found = json.loads((folder / "r.json").read_text(encoding="utf-8"))["config"]
    assert found == {
        **{
            "ratio": 0.2,
            "then": "int8",
            "ranges": "entropy",
            "float_share": 0.1,
            "keep_float": ["/3/*"],
            "reduce_range": "yes",
            "uniform": None,
            "budget": "params",
            "batch": 1,
            "threads": 0,
            "samples": 32,
            "labels": "truth",
            "method": "random",
            "refit": "scale",
            "recover": 7,
            "effort": None,
            "fast": False,
            "round_to": 4,
        },
        **{"min_channels": 8, "include": ["/3/*", "/6/*"], "exclude": ["/4/*"], "seed": 9, "memory": 64 << 20},
        **{
            "force": True,
            "attention": "head-dim",
            "tolerance": None,
            "layer_tolerance": None,
            "metric": "gates",
            "probes": 1,
        },
        **{"coefficients": "free", "target": "tensorrt-int8", "drop_branches": True},
        "untried_branches": "cut",
        "keep_fused": True,
        "state": [],
        "resize_io": [],
        "exclude_after": [],
        **{"resize_io": [], "keep_tokens": [], "drop_layers": [], "drop_experts": [], "rotate": "auto"},
        **{"max_ratio": 0.9, "ratio_of": ["/3/*=25%"], "same_widths": ["/6/*"]},
    }


def test_a_latency_budget_reaches_what_measures(folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch):
    """Fails where threads or batch are dropped on their way, or its time is not in the report."""
    machine = Synthetic(block=1)
    asked: list[dict[str, Any]] = []

    def start(**options: Any) -> Synthetic:
        asked.append(options)
        return machine

    monkeypatch.setattr(time_layers, "OnnxRuntime", start)
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(folder / "cache"))
    args = ["--ratio", "0.3", "--budget", "latency", "--batch", "4", "--threads", "2", "--calib", CALIB]
    args += [*FAST, "--round-to", "2", "--report", "r.json", "--plan", "p.json"]
    code, out, err = run(capsys, RESNET, "out.onnx", *args)
    assert (code, err) == (0, "")
    assert "latency removed" in out
    assert asked[0]["threads"] == 2
    found = json.loads((folder / "r.json").read_text(encoding="utf-8"))
    assert found["timing"]["batch"] == found["config"]["batch"] == 4
    assert found["achieved"] == 1.0 - found["timing"]["measured"] == pytest.approx(0.3, abs=0.015)
    cut = [g["channels_after"] < g["channels_before"] for g in found["groups"]]
    assert [saved > 0.0 for saved in found["timing"]["saved"]] == cut
    code, _, err = run(capsys, RESNET, "more.onnx", "--from-plan", "p.json", "--calib", CALIB, "--batch", "2")
    assert (code, err) == (0, "")
    assert (folder / "more.onnx").read_bytes() == (folder / "out.onnx").read_bytes()


def test_options_of_the_greedy_methods_arrive(folder: Path, capsys: Capture):
    """Fails where one of them is dropped on its way."""
    args = ["--method", "combined", "--metric", "kronecker", "--probes", "3", "--tolerance", "0.5", "--refit", "greedy"]
    args += ["--coefficients", "convex"]
    code, _, err = run(capsys, RESNET, *args, "--samples", "16", "--calib", CALIB, "--dry-run", "--report", "r.json")
    assert (code, err) == (0, "")
    found = json.loads((folder / "r.json").read_text(encoding="utf-8"))
    expected = {"method": "combined", "metric": "kronecker", "probes": 3, "tolerance": 0.5, "refit": "greedy"}
    assert (expected | {"coefficients": "convex"}).items() <= found["config"].items()
    assert found["config"]["ratio"] is None
    assert found["requested"] is None


def test_a_tolerance_that_is_too_small(folder: Path, capsys: Capture):
    """Fails where a run that can cut nothing writes a file, or ends like one that could."""
    before = sorted(p.name for p in folder.iterdir())
    args = ["--method", "magnitude", "--refit", "none", "--tolerance", "1e-9", "--samples", "16", "--calib", CALIB]
    code, _, err = run(capsys, RESNET, "out.onnx", "--plan", "p.json", *args)
    assert code == 3
    assert "tolerance of 1e-09; give a larger one" in err
    assert sorted(p.name for p in folder.iterdir()) == before


def test_uniform(folder: Path, capsys: Capture):
    """Fails where the report does not say what kind of cut it was, or a replay of its plan differs."""
    options = ["--calib", CALIB, *FAST]
    code, out, _ = run(capsys, RESNET, "out.onnx", "--uniform", "0.5", "--plan", "plan.json", *options)
    assert code == 0
    assert "channels removed" in out
    assert "50.0%, requested 50.0% of every group" in out
    replay = ["--from-plan", "plan.json", "--calib", CALIB, "--quiet"]
    assert run(capsys, RESNET, "again.onnx", *replay) == (0, "", "")
    assert (folder / "again.onnx").read_bytes() == (folder / "out.onnx").read_bytes()


def test_no_calibration_is_loud(folder: Path, capsys: Capture):
    code, out, err = run(capsys, RESNET, "--dry-run", "--ratio", "0.5", "--quiet", *FAST)
    assert (code, out) == (0, "")
    assert err.startswith("onnxprune: warning: no calibration data was given")
    assert err.count("\n") == 1


def test_a_model_called_like_a_subcommand(folder: Path, capsys: Capture):
    (folder / "inspect").write_bytes(digits.path("resnet").read_bytes())
    code, out, _ = run(capsys, "./inspect", "--dry-run", "--ratio", "0.5", "--calib", CALIB, *FAST)
    assert code == 0
    assert "dry run" in out


def test_a_reader_that_goes_away(folder: Path):
    """Fails where `| head -0` turns a good run into a bad one, or shows a traceback."""
    args = (RESNET, "out.onnx", "--ratio", "0.5", "--calib", CALIB, *FAST)
    with command(*args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(PATIENCE) == 0
    assert err == b""
    assert (folder / "out.onnx").is_file()


def test_a_narrow_encoding(folder: Path):
    """Fails where an arrow cannot be printed on a terminal that knows ASCII only."""
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    args = [sys.executable, "-m", "onnxprune", RESNET, "--dry-run", "--ratio", "0.5", "--calib", CALIB, *FAST]
    done = subprocess.run(args, env=env, capture_output=True, check=True)
    assert b"16 -> 8" in done.stdout
    assert done.stdout.isascii()


# help and version


def test_version(capsys: Capture):
    assert run(capsys, "--version") == (0, f"onnxprune, version {onnxprune.__version__}\n", "")


@pytest.mark.parametrize("name", ["", "inspect", "eval", "bench"])
def test_every_option_has_help(name: str, capsys: Capture):
    command = group.cli.commands[name] if name else prune.prune_command
    for p in command.params:
        assert p.param_type_name == "argument" or getattr(p, "help", None), p.name
    code, out, err = run(capsys, *([name] if name else []), "--help")
    assert (code, err) == (0, "")
    assert "Usage: onnxprune" in out


def test_help_says_what_matters(capsys: Capture):
    text = " ".join(run(capsys, "--help")[1].split())
    for part in ("keeps its outputs AND its inputs", "inspect", "eval", "./inspect", "4 a check failed", "512M"):
        assert part in text
    for default in (
        "[default: macs]",
        "[default: obs]",
        "[default: lockstep]",
        "[default: auto]",
        "[default: ort-cpu]",
        "[default: seeded random inputs]",
    ):
        assert default in text


def test_help_is_fast():
    """Fails where asking for help loads a runtime."""
    code = (
        "import sys, onnxprune.cli.program as c; c.main(['--help']); "
        "sys.exit(bool({'numpy', 'onnx', 'onnxruntime', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [("512M", 512 << 20), ("2G", 2 << 30), ("1.5k", 1536), ("1GiB", 1 << 30), ("64MB", 64 << 20), ("7", 7)],
)
def test_sizes(text: str, size: int):
    assert values.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "x", "-1G", "0", "1e999", "nan"])
def test_no_sizes(text: str):
    with pytest.raises(program.click.BadParameter):
        values.parse_size(text)


@pytest.mark.parametrize(
    ("text", "name", "shape"),
    [
        ("x:1,3,224,224", "x", (1, 3, 224, 224)),
        ("x:[1,3,224,224]", "x", (1, 3, 224, 224)),
        ("x:1x3x224x224", "x", (1, 3, 224, 224)),
        ("input:0: 1, 7", "input:0", (1, 7)),
        ("x:7", "x", (7,)),
        ("x:[]", "x", ()),
    ],
)
def test_shapes(text: str, name: str, shape: tuple[int, ...]):
    assert values.parse_shape(text) == (name, shape)


@pytest.mark.parametrize("text", ["", "x", "x:", "1,3", ":1,3", "x:1,,3", "x:0", "x:-1,3", "x:1,a", "input:0"])
def test_no_shapes(text: str):
    with pytest.raises(program.click.BadParameter):
        values.parse_shape(text)


# subcommands


@pytest.mark.parametrize("name", digits.NAMES)
def test_inspect(name: str, capsys: Capture):
    code, out, err = run(capsys, "inspect", str(digits.path(name)))
    assert (code, err) == (0, "")
    for text in ("MACs can be pruned", "producers => consumers", "the graph output 'logits' keeps its shape [1]"):
        assert text in out
    assert "[1]  nothing in the model can: the size of an output is part of its interface\n" in out
    code, out, _ = run(capsys, "inspect", str(digits.path(name)), "--json")
    data = json.loads(out)
    assert data["share"] > 0.99
    assert {p["operator"] for p in data["pinned"]} == {"output"}
    assert {p["remedy"] for p in data["pinned"]} == {
        "nothing in the model can: the size of an output is part of its interface"
    }


def test_inspect_nothing(folder: Path, capsys: Capture):
    code, out, err = run(capsys, "inspect", "relu.onnx")
    assert (code, err) == (0, "")
    assert "no channel can be removed" in out


@pytest.mark.parametrize("model", ["missing.onnx", "corrupt.onnx", "text.onnx", "sub"])
def test_inspect_refuses(folder: Path, capsys: Capture, model: str):
    refused(folder, capsys, 1, model, "inspect", model)


@pytest.fixture
def slim(folder: Path) -> str:
    model = pruned("resnet", refit="least-squares").model
    assert model is not None
    onnx.save(model, folder / "slim.onnx")
    return "slim.onnx"


EVAL = ["--data", str(digits.TEST), "--against", RESNET, "--labels", "label"]


def test_eval(slim: str, capsys: Capture):
    code, out, err = run(capsys, "eval", slim, *EVAL)
    assert (code, err) == (0, "")
    for text in ("top-1 of the original  99.20%", "agreement", "output error", "500 samples"):
        assert text in out


@pytest.mark.parametrize(
    ("limits", "code", "match"),
    [
        (["--min-agreement", "50%"], 0, ""),
        (["--max-drop", "40"], 0, ""),
        (["--min-agreement", "100%"], 4, "is below the demanded 100.00%"),
        (["--max-drop", "0"], 4, "top-1 dropped by"),
        (["--min-agreement", "1", "--max-drop", "0"], 4, "; top-1 dropped by"),
        (["--max-error", "900%"], 0, ""),
        (["--max-error", "0.001"], 4, "more than the allowed 0.10%"),
        (["--max-error", "0.001", "--max-error", "logits:900%"], 0, ""),
        (["--max-error", "900%", "--max-error", "logits:0.1%"], 4, "more than the allowed 0.10%"),
    ],
)
def test_gate(slim: str, capsys: Capture, limits: list[str], code: int, match: str):
    found, out, err = run(capsys, "eval", slim, *EVAL, *limits, "--json")
    assert found == code
    assert json.loads(out)["samples"] == 500
    assert match in err
    assert err.count("\n") == (code > 0)


@pytest.mark.parametrize(
    ("args", "code", "match"),
    [
        (["--data", "names.npz", "--labels", "label"], 1, "no data for input"),
        (["--data", "pickled.npy", "--labels", "label"], 1, "cannot be read"),
        (["--data", str(digits.TEST), "--labels", "class"], 1, "no labels under 'class'"),
        (["--data", str(digits.TEST), "--against", "missing.onnx"], 1, "does not exist"),
        (["--data", str(digits.TEST), "--against", "relu.onnx"], 1, "read different inputs"),
        (["--data", str(digits.TEST), "--min-agreement", "0.9"], 2, "needs --against"),
        (["--data", str(digits.TEST), "--max-drop", "1"], 2, "needs --against and --labels"),
        (["--data", str(digits.TEST), "--max-error", "1%"], 2, "needs --against"),
        ([*EVAL, "--max-error", "nan"], 2, "is not a share"),
        ([*EVAL, "--max-error", "5"], 2, "'5' is 500%; write 5%, or 500% if that is meant"),
        ([*EVAL, "--max-error", "-1"], 2, "is not a share"),
        ([*EVAL, "--max-drop", "-1"], 2, "from 0 to 100"),
        ([*EVAL, "--max-drop", "nan"], 2, "from 0 to 100"),
        ([*EVAL, "--min-agreement", "200"], 2, "'200' is 20000%; write 200%"),
        ([*EVAL, "--max-error", "5%", "--max-error", "1%"], 2, "--max-error is given twice"),
        ([*EVAL, "--max-error", ":5%"], 2, "names no output in front of the colon"),
        (["--data", str(digits.TEST)], 2, "nothing to compare with"),
        ([], 2, "--data is missing"),
    ],
)
def test_eval_refuses(folder: Path, capsys: Capture, args: list[str], code: int, match: str):
    refused(folder, capsys, code, match, "eval", RESNET, *args)


def test_a_limit_on_an_output_that_is_not_there(capsys: Capture):
    code, out, err = run(capsys, "eval", RESNET, *EVAL, "--max-error", "logit:5%")
    assert code == 2
    assert "100.00% get the same class" in out  # what was measured is shown all the same
    assert "did you mean 'logits'" in err


TWICE = ["--runs", "2", "--warmup", "0"]


def test_bench(slim: str, capsys: Capture):
    code, out, err = run(capsys, "bench", RESNET, slim, *TWICE, "--profile", "--batch", "3", "--threads", "1")
    assert (code, err) == (0, "")
    for text in ("time of [2]", "input 3x1x8x8 (batch 3; random, seed 0)", "2 rounds, in turns", "1 thread\n", "Conv"):
        assert text in out
    assert max(map(len, out.splitlines())) <= PLAIN_WIDTH


@pytest.mark.parametrize(
    ("limits", "code", "match"),
    [
        (["--max-ratio", "900%", "--min-speedup", "0.01"], 0, ""),
        (["--max-ratio", "0.1%"], 4, "upper end is above the demanded 0.001"),
        (["--min-speedup", "900"], 4, "lower end is below the demanded 900"),
    ],
)
def test_bench_as_a_gate(slim: str, capsys: Capture, limits: list[str], code: int, match: str):
    found, out, err = run(capsys, "bench", RESNET, slim, "--runs", "6", "--json", *limits)
    assert found == code
    assert [g["held"] for g in json.loads(out)["gates"]] == [code == 0] * (len(limits) // 2)
    assert match in err


def test_bench_of_one_model(capsys: Capture):
    code, out, err = run(capsys, "bench", RESNET, "--data", CALIB, "--precision", "fp16", "--json", *TWICE)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["comparison"], found["data"], found["precision"], found["rounds"]) == (None, CALIB, "fp16", 2)


def test_shapes_arrive(capsys: Capture):
    code, out, _ = run(capsys, "bench", RESNET, "--shape", "input:5x1x8x8", "--json", *TWICE)
    assert code == 0
    assert json.loads(out)["inputs"] == {"input": [5, 1, 8, 8]}


@pytest.mark.parametrize(
    ("args", "code", "match"),
    [
        (["--batch", "0"], 2, "batch is 0"),
        (["--runs", "0"], 2, "runs is 0"),
        (["--shape", "input"], 2, "is not a name and a shape"),
        (["--shape", "input:1,1,8,8", "--shape", "input:2,1,8,8"], 2, "--shape is given twice for one input"),
        (["--shape", "image:1,1,8,8"], 2, "'image', which is no input"),
        (["--shape", "input:1,1,8,8", "--data", CALIB], 2, "the data has its own shapes"),
        (["--provider", "abacus"], 2, "is not among those of this onnxruntime"),
        (["--precision", "int3"], 2, "'int3' is not one of"),
        (["--data", "names.npz"], 1, "no data for input"),
        (["missing.onnx"], 1, "missing.onnx does not exist"),
        (["relu.onnx"], 1, "the two models read different inputs"),
    ],
)
def test_bench_refuses(folder: Path, capsys: Capture, args: list[str], code: int, match: str):
    refused(folder, capsys, code, match, "bench", RESNET, *args)


def test_bench_without_tensorrt(folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    refused(folder, capsys, 1, "pip install tensorrt", "bench", RESNET, "--provider", "tensorrt")


def test_prune_and_bench(folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch):
    short = replace(Settings(), runs=8, warmup=0)
    monkeypatch.setattr(report, "Settings", lambda provider: replace(short, provider=provider))
    args = [RESNET, "out.onnx", "--ratio", "0.5", "--calib", CALIB, *FAST, "--report", "r.json", "--bench"]
    code, out, err = run(capsys, *args, "--provider", "cpu")
    assert (code, err) == (0, "")
    assert "latency, CPU" in out
    assert "of the original's, median of 8 rounds in turns, onnxruntime" in " ".join(out.split())
    found = json.loads((folder / "r.json").read_text(encoding="utf-8"))["latency"]
    assert [x["model"] for x in found["models"]] == [RESNET, "out.onnx"]
    assert found["models"][1]["bytes"] == (folder / "out.onnx").stat().st_size


def test_python_dash_m(folder: Path):
    args = [sys.executable, "-m", "onnxprune", "missing.onnx", "out.onnx", "--ratio", "0.5", "--calib", CALIB]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "onnxprune: error: missing.onnx does not exist\n"


def test_entry_point():
    """Fails where the installed command and `main` part ways, or `onnxprune.cli.main` is no longer what runs it."""
    assert cli.main is program.main
    text = (digits.FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert 'onnxprune = "onnxprune.__main__:main"' in text
    entry: Callable[..., int] = program.main
    assert callable(entry)


def test_doubtful_data_is_warned_of(folder: Path, capsys: Capture):
    """Fails where constant data goes by without a word on stderr, or the report does not show what the data holds."""
    with np.load(CALIB) as archive:
        key, images = next((k, archive[k]) for k in archive.files if archive[k].ndim == 4)
    np.savez(folder / "same.npz", **{key: np.repeat(images[:1], 16, 0)})
    args = ["--ratio", "0.3", "--method", "magnitude", "--refit", "none", "--dry-run", "--report", "r.json"]
    code, out, err = run(capsys, RESNET, *args, "--calib", "same.npz")
    assert code == 0
    assert err.startswith("onnxprune: warning: all 16 calibration samples are the same")
    assert len(err.splitlines()) == 1
    assert "warning: all 16 calibration samples" in out
    assert f"{key}: float32 16x" in out
    found = json.loads((folder / "r.json").read_text(encoding="utf-8"))
    assert found["warnings"] == [err.strip().removeprefix("onnxprune: warning: ")]
    assert found["calibration"]["inputs"][0]["least"] == images[0].min()
    code, _, err = run(capsys, RESNET, *args[:-2], "--quiet", "--calib", "same.npz")
    assert (code, err.count("warning")) == (0, 1)


# options and methods


@pytest.mark.parametrize(
    ("method", "refit", "said"), [("local", "none", True), ("local", "greedy", False), ("taylor", "none", False)]
)
def test_scales_that_are_left_out_are_named(folder: Path, capsys: Capture, method: str, refit: str, said: bool):
    """Fails where coefficients are dropped without a word, or the note stands where there were none."""
    args = ["--ratio", "0.5", "--samples", "32", "--fast", "--method", method, "--refit", refit]
    code, _, err = run(capsys, RESNET, "out.onnx", "--calib", CALIB, *args, "--report", "r.json")
    assert code == 0, err
    notes = json.loads((folder / "r.json").read_text(encoding="utf-8"))["notes"]
    assert any("--refit none leaves out" in n for n in notes) == said


@pytest.mark.parametrize("method", ["global", "combined", "taylor", "local"])
def test_options_that_a_method_reads(folder: Path, capsys: Capture, method: str):
    """Fails where an option is refused beside a method that looks at it."""
    given = {
        "global": ["--metric", "gates", "--probes", "1", "--coefficients", "convex"],
        "combined": ["--metric", "gates", "--probes", "1", "--coefficients", "convex"],
        "taylor": ["--probes", "1"],
        "local": ["--coefficients", "convex"],
    }[method]
    common = ["--ratio", "0.5", "--samples", "32", "--fast", "--refit", "none", "--dry-run"]
    code, _, err = run(capsys, RESNET, "--calib", CALIB, "--method", method, *given, *common)
    assert code == 0, err
