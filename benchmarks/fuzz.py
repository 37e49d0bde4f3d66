"""Mutated models, plans and data through the command line: how often it ends how, and every failure kept for replay.

    python -m benchmarks.fuzz --cases 20000 [--what models] [--seed 0] [--workers 2] [--keep FOLDER] [--output PAGE]
    python -m benchmarks.fuzz --replay 123 [--what models]

A case is its number: those of a run are `--seed`, `--seed` + 1, and so on. Each runs in process, in a worker with 60
seconds and 4 GiB of memory, in a folder of its own. A failure is a defect or traceback that is shown, more than one
line of error, a process that dies, a hang, memory beyond the limit, a file that is left behind, or exit code 0 with a
model that onnxruntime does not load or that declares other inputs or outputs. Failures are kept as folders with
`case.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.page import put
from tests.fuzz.cases import KINDS, Verdict, run
from tests.fuzz.workers import Worker

_SHOWN_EVERY = 500
_LARGEST_KEPT = 64 << 20


class Tally:
    """What all cases came to; shared by the threads that run them."""

    def __init__(self, first: int, count: int, keep: Path) -> None:
        self._lock = threading.Lock()
        self._next, self._end, self._keep = first, first + count, keep
        self.codes: Counter[str] = Counter()
        self.faults: list[tuple[int, str]] = []
        self.slowest, self.largest, self.done = 0.0, 0, 0

    def take(self) -> int | None:
        """The next case."""
        with self._lock:
            if self._next >= self._end:
                return None
            self._next += 1
            return self._next - 1

    def note(self, what: str, seed: int, folder: Path, case: Any, verdict: Verdict) -> None:
        """Count a case; one that failed is kept."""
        with self._lock:
            self.done += 1
            self.slowest, self.largest = max(self.slowest, verdict.seconds), max(self.largest, verdict.peak)
            if not verdict.fault:
                self.codes[str(verdict.codes[-1])] += 1
                return
            self.faults.append((seed, verdict.fault))
            target = self._keep / f"{what}-{seed}"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(folder, target, symlinks=True, ignore=strange)
            told = {"seed": seed, "story": case.story, "commands": case.commands, **vars(verdict)}
            (target / "case.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
            print(f"{what} {seed}: {case.story}: {verdict.fault.strip().splitlines()[-1][:300]}", flush=True)


def strange(folder: str, names: list[str]) -> list[str]:
    """What cannot be copied, or only at length: pipes, and files of empty gigabytes."""
    paths = {n: Path(folder) / n for n in names}
    return [n for n, p in paths.items() if p.is_fifo() or (p.is_file() and p.stat().st_size > _LARGEST_KEPT)]


def work(what: str, tally: Tally, core: int | None) -> None:
    """Run cases until there are none left."""
    with Worker(core) as worker:
        while (seed := tally.take()) is not None:
            with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
                case, verdict = run(what, seed, Path(name), worker)
                tally.note(what, seed, Path(name), case, verdict)
            if tally.done % _SHOWN_EVERY == 0:
                print(f"{tally.done} cases, {len(tally.faults)} failures, {dict(tally.codes)}", flush=True)


def table(what: str, tally: Tally, seconds: float) -> str:
    """One row per outcome."""
    said = {
        "0": "exit 0: described, or pruned and verified",
        "1": "exit 1: refused, one line",
        "2": "exit 2: refused, one line: usage",
        "3": "exit 3: nothing can be removed, or not so much",
        "4": "exit 4: a check failed, nothing written",
    }
    failed = Counter(kind(fault) for _, fault in tally.faults)
    rows = [(text, tally.codes[code]) for code, text in said.items()]
    rows += [(text, failed[text]) for text in _FAILURES]
    lines = [f"| {what} | cases |", "|---|---:|", *(f"| {text} | {n:,} |" for text, n in rows)]
    lines += [f"| all | {tally.done:,} |", ""]
    lines.append(
        f"Slowest case {tally.slowest:.1f} s, largest memory {tally.largest / 2**30:.2f} GiB, "
        f"{seconds / 60:.0f} minutes in all."
    )
    return "\n".join(lines)


_FAILURES = ("defect or traceback", "hang beyond 60 s", "more than 4 GiB", "killed by a signal", "file left", "other")


def kind(fault: str) -> str:
    """The row that a failure counts in."""
    if fault == "hang":
        return _FAILURES[1]
    if fault == "memory":
        return _FAILURES[2]
    if fault.startswith(("signal", "exit ")):
        return _FAILURES[3]
    if fault.startswith("left"):
        return _FAILURES[4]
    return _FAILURES[0] if "defect" in fault or "Traceback" in fault or "please report" in fault else _FAILURES[5]


def main() -> None:
    """Run the cases; exit code 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--what", choices=sorted(KINDS), default="models")
    parser.add_argument("--seed", type=int, default=0, help="the number of the first case")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "onnxprune-fuzz")
    parser.add_argument("--output", type=Path, help="a page whose block `fuzz-WHAT` is replaced")
    parser.add_argument("--replay", type=int, metavar="SEED", help="one case, with all that it prints")
    args = parser.parse_args()
    if args.replay is not None:
        sys.exit(replay(args.what, args.replay, args.keep))
    args.keep.mkdir(parents=True, exist_ok=True)
    tally = Tally(args.seed, args.cases, args.keep)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    start = time.monotonic()
    threads = [
        threading.Thread(target=work, args=(args.what, tally, cores[i % len(cores)])) for i in range(args.workers)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    text = table(args.what, tally, time.monotonic() - start)
    print(text)
    if args.output is not None:
        put(args.output, "table", f"fuzz-{args.what}", text)
    sys.exit(1 if tally.faults else 0)


def replay(what: str, seed: int, keep: Path) -> int:
    """Make the case in a folder that stays, and run its commands here, with tracebacks."""
    from onnxprune.cli import TRACEBACK
    from onnxprune.cli import main as tool

    os.environ[TRACEBACK] = "1"
    folder = keep / f"replay-{what}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    case = KINDS[what](seed, folder)
    print(case.story)
    codes = []
    for argv in case.commands:
        print("onnxprune", *argv, flush=True)
        codes.append(tool(list(argv)))
        print("exit code", codes[-1], flush=True)
    return max(codes)


if __name__ == "__main__":
    main()
