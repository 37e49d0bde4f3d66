"""Options of every command: what is no number of its kind, or absurdly large, is one line of usage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.benchmark.measure import Settings, bench
from onnxprune.cli import program
from onnxprune.data.inputs import InputSpec
from onnxprune.data.samples import Samples
from onnxprune.data.stand_ins import random
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.jobs import check_choice
from onnxprune.threads import cores, most_workers

ABSURD = (
    "1" + "0" * 400,
    "9" * 5000,
    str(2**63),
    "-1",
    "-" + "9" * 30,
    "1e999",
    "nan",
    "inf",
    "1.5",
    "x",
    "",
    "\x1b[31m",
)
PRUNE = ("m.onnx", "out.onnx", "--ratio", "0.5")
NUMBERS: dict[str, tuple[tuple[str, ...], str]] = {
    **{
        f"prune {o}": (PRUNE, o)
        for o in ("--jobs", "--samples", "--probes", "--recover", "--round-to", "--min-channels", "--seed", "--memory")
    },
    "prune --batch": ((*PRUNE, "--budget", "latency"), "--batch"),
    "prune --threads": ((*PRUNE, "--budget", "latency"), "--threads"),
    "prune --ratio": (("m.onnx", "out.onnx"), "--ratio"),
    "prune --uniform": (("m.onnx", "out.onnx"), "--uniform"),
    "prune --tolerance": (("m.onnx", "out.onnx"), "--tolerance"),
    "eval --max-drop": (("eval", "m.onnx", "--data", "d.npz", "--against", "o.onnx", "--labels", "y"), "--max-drop"),
    "eval --min-agreement": (("eval", "m.onnx", "--data", "d.npz", "--against", "o.onnx"), "--min-agreement"),
    **{f"bench {o}": (("bench", "m.onnx"), o) for o in ("--batch", "--threads", "--seconds", "--runs", "--warmup")},
}
# What is right for some option is left out for it.
RIGHT = {
    "--memory": {"1.5"},
    "--max-drop": {"1.5"},
    "--seconds": {"1.5"},
    "--tolerance": {"1.5", str(2**63)},
    "--min-agreement": {"1.5"},
}
SMALL = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 13]> main (float[N,4] x) => (float[N,4] y) { y = Relu (x) }'
)


@pytest.mark.parametrize("option", NUMBERS)
def test_absurd_values_are_one_line_of_usage(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Fails where a number gets past the options: to numpy, to the system, or into a loop without end."""
    monkeypatch.chdir(tmp_path)
    onnx.save(SMALL, "m.onnx")
    onnx.save(SMALL, "o.onnx")
    np.savez("d.npz", x=np.ones((4, 4), np.float32), y=np.zeros(4, np.int64))
    before = sorted(tmp_path.iterdir())
    command, name = NUMBERS[option]
    for value in ABSURD:
        if value in RIGHT.get(name, ()):
            continue
        code = program.main([*command, f"{name}={value}"])
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if "no calibration data was given" not in line]
        assert code == 2, (value[:40], err[:300])
        assert out == ""
        assert len(lines) == 1 and lines[0].startswith("onnxprune: error: ") and "defect" not in err
        assert len(lines[0]) < 2500
        assert lines[0].isprintable()
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "value", ["x:1,99999999999", "x:" + "9" * 4000, "x:99999999999,4", "x:0,4", "x:-1,4", "x:1,1e9"]
)
def test_absurd_shapes(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where a shape is made that no memory holds."""
    onnx.save(SMALL, tmp_path / "m.onnx")
    assert program.main(["bench", str(tmp_path / "m.onnx"), "--shape", value]) in (1, 2)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "defect" not in err


@pytest.mark.parametrize("value", ["99999T", "1e9T", "nanG", "infG", "0", "-1G", "1e400"])
def test_absurd_sizes(value: str, capsys: pytest.CaptureFixture[str]):
    assert program.main([*PRUNE, f"--memory={value}"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("onnxprune: error: ")


@pytest.mark.parametrize("jobs", [0, -1, 10**6, 10**400, 2**63, True, 2.0, "2", None])
def test_jobs_are_as_many_as_the_machine_has_use_for(jobs: Any):
    """Fails where Python may start what the command line may not."""
    with pytest.raises(UsageError, match="jobs is"):
        check_choice(jobs, None)


def test_as_many_jobs_as_cores_are_fine_everywhere():
    """Fails where the limit comes so low that a machine is not used, or few cores forbid a few processes."""
    for jobs in (1, 8, cores(), 4 * cores(), most_workers()):
        check_choice(jobs, None)
    with pytest.raises(UsageError, match=f"at most {most_workers()}"):
        check_choice(most_workers() + 1, None)


@pytest.mark.parametrize(
    "options",
    [
        {"runs": 10**9},
        {"warmup": 10**9},
        {"threads": 10**6},
        {"seconds": 1e9},
        {"seconds": "5"},
        {"runs": 2.5},
        {"precision": 3},
    ],
)
def test_options_of_bench_from_python(options: dict[str, Any]):
    with pytest.raises(UsageError, match=next(iter(options))):
        Settings(**options)


@pytest.mark.parametrize(
    "options", [{"batch": 10**9}, {"shapes": {"x": (1.5, 4)}}, {"shapes": {"x": (0, 4)}}, {"provider": 3}]
)
def test_inputs_of_bench_from_python(options: dict[str, Any]):
    with pytest.raises(UsageError):
        bench(SMALL, **options)


FLOAT = np.dtype(np.float32)
HUGE: dict[str, tuple[tuple[InputSpec, ...], int]] = {
    "many samples": ((InputSpec("image", FLOAT, (None, 3, 224, 224)),), 10**9),
    "a product beyond 64 bits": ((InputSpec("image", FLOAT, (None, 2**62, 2**62)),), 1),
    "integers": ((InputSpec("image", np.dtype(np.int8), (None, 10**5, 10**5)),), 1),
    "some sizes open": ((InputSpec("image", FLOAT, (None, None, 10**10)),), 1),
    "one of two": ((InputSpec("x", FLOAT, (None, 2)), InputSpec("image", FLOAT, (2**40, 2**40))), 2),
}


@pytest.mark.parametrize("kind", HUGE)
def test_random_inputs_that_no_memory_holds(kind: str):
    """Fails where they are made nevertheless, or the refusal does not say which input it is about."""
    specs, count = HUGE[kind]
    with pytest.raises(CalibrationError, match="for input 'image' would take"):
        random(onnx.ModelProto(), specs, count, 0, lambda _: True)


def test_random_inputs_are_the_same_in_turns(monkeypatch: pytest.MonkeyPatch):
    """Fails where a run without data gives other numbers because they are drawn piece by piece."""
    specs = (InputSpec("x", FLOAT, (None, 3, 5)), InputSpec("scale", FLOAT, ()), InputSpec("v", FLOAT, (None,)))
    whole = random(onnx.ModelProto(), specs, 7, 3, lambda _: True)
    rng = np.random.default_rng(3)
    for name, shape in (("x", (7, 3, 5)), ("scale", ()), ("v", (7,))):
        assert np.array_equal(whole.arrays[name][...], rng.standard_normal(shape).astype(np.float32)), name
    monkeypatch.setattr("onnxprune.data.array_files._CHUNK_BYTES", 1)
    pieces = random(onnx.ModelProto(), specs, 7, 3, lambda _: True)
    assert pieces.sha256() == whole.sha256()


def test_a_batch_that_no_memory_holds():
    """Fails where few samples are repeated without measure."""
    spec = InputSpec("x", FLOAT, (None, 1 << 20))
    found = Samples((spec,), {"x": np.zeros((2, 1 << 20), np.float32)})
    assert found.repeated(3)["x"].shape == (3, 1 << 20)
    with pytest.raises(UsageError, match="a batch of 65536 would take"):
        found.repeated(65536)
