"""Runs that are ended by a signal at a random moment: what is left is an old output or a new one, whole.

    python -m benchmarks.kills [--runs 300] [--seed 0] [--output docs/trust.md]

Signals, weights beside the model or in it, one process or two (--jobs), and a new output or one that is replaced take
turns. Half of the signals come at a random moment of the run, the others when its first temporary file appears beside
the output, up to 50 ms later. INT and HUP go to all processes, as those of a terminal do, TERM and KILL to the first.

After each run the output has to load in onnxruntime, and to be, byte for byte, the one from before or that of a run
which was left alone; with exit code 0 the plan and the report have to be there, and after any other nothing may have
changed. After anything but KILL no temporary file may be left, neither beside the output nor in TMPDIR, and after
anything no process. The exit code is 1 where one run breaks any of this. Ctrl-C and TERM end it with the table of the
runs so far; `--output` puts that table into the block `kills` of a page.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import onnx

from benchmarks.commit import commit
from benchmarks.page import put
from onnxprune.runtime.session import version

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGKILL")
_TO_ALL = ("SIGINT", "SIGHUP")
# A run that takes longer has not been ended; processes that are still there so long after the first one stay.
_END_SECONDS, _GONE_SECONDS = 60.0, 10.0
_JUST_AFTER = 0.05
_DATA, _NEW = "in.data", ("plan.json", "report.json")
DONE, AS_BEFORE, KILLED_LATE = "exit 0, new output", "ended, output as before", "killed, new output"
WRONG = "wrong"
OUTCOMES = (DONE, AS_BEFORE, KILLED_LATE, WRONG)
_SHOWN_EVERY = 20


@dataclass(frozen=True)
class Kind:
    """What is run. external: weights beside the model. replaces: the output is there already."""

    external: bool
    jobs: int
    replaces: bool

    def command(self, ratio: str) -> list[str]:
        """The command line, in the folder of the run."""
        given = [sys.executable, "-m", "onnxprune", "in.onnx", "out.onnx", "--ratio", ratio, "--calib", "calib.npz"]
        given += ["--method", "magnitude", "--refit", "least-squares", "--round-to", "1", "--quiet", "--overwrite"]
        return [*given, "--jobs", str(self.jobs), "--plan", "plan.json", "--report", "report.json"]


@dataclass
class Ended:
    """How a run ended. state: of the output, "old", "new" or "none". wrong: what it broke.

    early: in Python's own start, before a line of onnxprune was read, so with Python's traceback.
    """

    code: int
    state: str
    wrong: list[str] = field(default_factory=list)
    early: bool = False


def fill(folder: Path, kind: Kind) -> None:
    """Model, data and a folder for temporary files."""
    model = onnx.load(MODELS / "digits_resnet.onnx")
    outside = {"save_as_external_data": True, "location": _DATA, "size_threshold": 0} if kind.external else {}
    onnx.save(model, folder / "in.onnx", **outside)
    np.savez(folder / "calib.npz", input=np.load(MODELS / "digits_calib.npz")["input"][:32])
    (folder / "tmp").mkdir()


def start(folder: Path, kind: Kind, ratio: str) -> subprocess.Popen[bytes]:
    """A run in a session of its own."""
    env = {**os.environ, "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        kind.command(ratio),
        cwd=folder,
        env=env,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=_hear,  # noqa: PLW1509  it only sets handlers
    )


def _hear() -> None:
    """What nohup, or a shell that runs this in the background, has every process ignore."""
    for name in SIGNALS:
        if name != "SIGKILL":
            signal.signal(getattr(signal, name), signal.SIG_DFL)


def files_of(folder: Path) -> dict[str, bytes]:
    """What lies beside the output, the inputs left out."""
    inputs = ("in.onnx", _DATA, "calib.npz")
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name not in inputs}


def output_of(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The model and the weights that it names."""
    model = files.get("out.onnx")
    if model is None:
        return {}
    return {k: v for k, v in files.items() if k == "out.onnx" or (k.endswith(".data") and k.encode() in model)}


@dataclass(frozen=True)
class Known:
    """Runs that were left alone: what was there before, what they make, and how long they take."""

    before: Mapping[str, bytes]
    new: Mapping[str, bytes]
    plan: bytes
    seconds: float

    @classmethod
    def of(cls, kind: Kind) -> Known:
        """Run twice: what is replaced, and what replaces it."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            fill(folder, kind)
            before: dict[str, bytes] = {}
            if kind.replaces:
                _left_alone(folder, kind, "0.3")
                before = files_of(folder)
            seconds = _left_alone(folder, kind, "0.6")
            files = files_of(folder)
            return cls(before, output_of(files), files["plan.json"], seconds)


def _left_alone(folder: Path, kind: Kind, ratio: str) -> float:
    begin = time.monotonic()
    with start(folder, kind, ratio) as process, _not_left_alone(process):
        _, err = process.communicate()
    if process.returncode:
        raise RuntimeError(err.decode())
    return time.monotonic() - begin


def killed(kind: Kind, known: Known, name: str, rng: random.Random, *, saving: bool) -> Ended:
    """One run that is sent a signal. saving: while it stores its output, not at any moment."""
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        fill(folder, kind)
        for file, content in known.before.items():
            (folder / file).write_bytes(content)
        with start(folder, kind, "0.6") as process, _not_left_alone(process):
            if saving:
                _wait_for_saving(folder, process)
                time.sleep(rng.random() * _JUST_AFTER)
            else:
                time.sleep(rng.random() * known.seconds)
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if name in _TO_ALL else os.kill)(process.pid, getattr(signal, name))
            try:
                _, err = process.communicate(timeout=_END_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                return Ended(0, "none", [f"still running after {_END_SECONDS:.0f} s"])
        ended = Ended(process.returncode, "none")
        ended.wrong += [f"process {n} is left" for n in _stay(process.pid)]
        _judge(ended, folder, kind, known, name, err.decode())
        return ended


@contextlib.contextmanager
def _not_left_alone(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Where the harness itself is ended, so is what it runs."""
    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def _wait_for_saving(folder: Path, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and not any(p.name.startswith(".") for p in folder.iterdir()):
        time.sleep(0.001)


def _judge(ended: Ended, folder: Path, kind: Kind, known: Known, name: str, err: str) -> None:
    files, code, wrong = files_of(folder), ended.code, ended.wrong
    found = output_of(files)
    old = output_of(known.before)
    if found not in (old, known.new):
        wrong.append("the output is neither the old nor the new one")
    ended.state = "new" if found == known.new else "old" if found else "none"
    if found:
        wrong += _does_not_load(folder)
    if code == 0 and (found != known.new or files.get("plan.json") != known.plan or "report.json" not in files):
        wrong.append("exit code 0, and not all is there")
    for file in _NEW:
        with contextlib.suppress(KeyError):
            json.loads(files[file])
    if name == "SIGKILL":
        return
    number = getattr(signal, name)
    if code and "KeyboardInterrupt" in err and "onnxprune" not in err and files == known.before:
        ended.early = True
        return
    if code not in (0, 128 + number, -number):
        wrong.append(f"exit code {code}")
    if code != 0 and files != known.before:
        wrong.append(f"exit code {code}, and changed: {sorted(set(files) ^ set(known.before)) or 'contents'}")
    stray = [f for f in files if f not in {*known.before, *known.new, *_NEW}]
    # onnxruntime puts a file of its own there.
    stray += [f"tmp/{p.name}" for p in (folder / "tmp").iterdir() if p.name != ".ses"]
    wrong += [f"{f} is left" for f in stray]
    if code == 0 and kind.replaces and set(files) != {*known.new, *_NEW}:
        wrong.append("weights of the old output are left")
    if len(err.splitlines()) > 1 or "Traceback" in err:
        wrong.append(f"on stderr: {err[-300:]}")


def _does_not_load(folder: Path) -> list[str]:
    import onnxruntime as ort  # behind `runtime`, which loads it without its telemetry

    try:
        session = ort.InferenceSession(str(folder / "out.onnx"), providers=["CPUExecutionProvider"])
        session.run(None, {"input": np.load(folder / "calib.npz")["input"][:1]})
    except Exception as e:  # noqa: BLE001  whatever keeps it from running
        return [f"the output does not load: {e}"]
    return []


def _stay(session: int) -> list[int]:
    """Processes of a session that do not end."""
    deadline = time.monotonic() + _GONE_SECONDS
    while (left := list(_processes_of(session))) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def _processes_of(session: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                state = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                if int(state[3]) == session and state[0] != "Z":
                    yield int(entry.name)


def kinds() -> list[Kind]:
    """All of them."""
    return [Kind(*k) for k in product((True, False), (1, 2), (True, False))]


@dataclass
class Tally:
    """Runs by signal and by how they ended, which is one of OUTCOMES."""

    asked: int
    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    early: int = 0

    def note(self, name: str, ended: Ended) -> None:
        """Count a run."""
        self.ends[name, outcome(ended)] += 1
        self.early += ended.early

    @property
    def wrong(self) -> int:
        """Runs that broke a promise."""
        return sum(n for (_, end), n in self.ends.items() if end == WRONG)

    def table(self) -> str:
        """A row per signal, a column per outcome, and one line that sums them up."""
        lines = [f"| signal | runs | {' | '.join(OUTCOMES)} |", "|---|" + "---:|" * (len(OUTCOMES) + 1)]
        for name in (*SIGNALS, "all"):
            row = [sum(n for (s, e), n in self.ends.items() if name in (s, "all") and e == end) for end in OUTCOMES]
            lines.append(f"| {name} | {sum(row)} | {' | '.join(map(str, row))} |")
        return "\n".join([*lines, "", self.summary()])

    def summary(self) -> str:
        """One line."""
        ran = self.ends.total()
        of = "" if ran == self.asked else f" of {self.asked}"
        early = f"; {self.early} ended by INT in Python's own start, which shows its traceback" if self.early else ""
        code = f"The code of {commit()}, onnxruntime {version()}."
        return f"{ran}{of} runs, {self.wrong} of them wrong{early}. {code}"


def outcome(ended: Ended) -> str:
    """The column that a run counts in; only KILL ends a run without its exit code behind the last rename."""
    if ended.wrong:
        return WRONG
    if ended.code == 0:
        return DONE
    return KILLED_LATE if ended.state == "new" else AS_BEFORE


def main(given: list[str] | None = None) -> int:
    """Run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a page whose block `kills` is replaced")
    args = parser.parse_args(given)
    tally = Tally(args.runs)
    kept = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt):  # then the table is of those so far
            _run(tally, random.Random(args.seed))
    finally:
        signal.signal(signal.SIGTERM, kept)
    text = tally.table()
    print(text, flush=True)
    if args.output is not None:
        put(args.output, "table", "kills", text)
    return int(tally.wrong > 0)


def _run(tally: Tally, rng: random.Random) -> None:
    turns = [(k, s, saving) for saving in (False, True) for k in kinds() for s in SIGNALS]
    known: dict[Kind, Known] = {}
    for i in range(tally.asked):
        kind, name, saving = turns[i % len(turns)]
        if kind not in known:
            known[kind] = Known.of(kind)
        ended = killed(kind, known[kind], name, rng, saving=saving)
        tally.note(name, ended)
        if ended.wrong:
            said = "; ".join(ended.wrong)
            print(f"run {i}: {name}, {kind}, saving {saving}: exit {ended.code}: {said}", flush=True)
        if (i + 1) % _SHOWN_EVERY == 0:
            print(f"{i + 1} of {tally.asked} runs, {tally.wrong} wrong", flush=True)


if __name__ == "__main__":
    sys.exit(main())
