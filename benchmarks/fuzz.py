"""Mutated models, plans and data through the command line: how often it ends how, and every failure kept for replay.

    python -m benchmarks.fuzz --cases 20000 [--what models] [--seed 0] [--workers 2] [--keep FOLDER]
                              [--results FILE] [--output PAGE]
    python -m benchmarks.fuzz --render FILE --output PAGE
    python -m benchmarks.fuzz --replay 123 [--what models]

A case is its number, with one state of the code, since what is mutated comes from the test suite: those of a run are
`--seed`, `--seed` + 1, and so on. Each runs in process, in a worker with 60 seconds and 4 GiB of memory, in a folder of
its own. A failure is a defect or traceback that is shown, more than one line of error, a process that dies, a hang,
memory beyond the limit, a file that is left behind, or exit code 0 with a model that onnxruntime does not load or that
declares other inputs or outputs. Failures are kept as folders with `case.json`.

With `--results`, what every 500 cases came to is a line of FILE as soon as they are done, so a run that is ended loses
few, and the next one begins at another `--seed`: cases that are in FILE are not run again. The table is then that of
all chunks of that kind in FILE, and `--render` makes the tables of all kinds without a run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import fuzz_results
from benchmarks.commit import commit
from benchmarks.fuzz_results import Chunk
from benchmarks.page import put
from tests.fuzz.cases import KINDS, SHARED, Verdict, run
from tests.fuzz.workers import Worker

_CHUNK = 500
_LARGEST_KEPT = 64 << 20


class Tally:
    """What the cases of a chunk came to; shared by the threads that run them."""

    def __init__(self, first: int, count: int, keep: Path) -> None:
        self._lock = threading.Lock()
        self._next, self._end, self._keep = first, first + count, keep
        self.codes: Counter[str] = Counter()
        self.faults: dict[str, str] = {}
        self.slowest, self.largest = (0.0, first), (0, first)

    def take(self) -> int | None:
        """The next case."""
        with self._lock:
            if self._next >= self._end:
                return None
            self._next += 1
            return self._next - 1

    def stop(self) -> None:
        """No further cases."""
        with self._lock:
            self._end = self._next

    def note(self, what: str, seed: int, folder: Path, case: Any, verdict: Verdict) -> None:
        """Count a case; one that failed is kept."""
        with self._lock:
            self.slowest = max(self.slowest, (verdict.seconds, seed))
            self.largest = max(self.largest, (verdict.peak, seed))
            if not verdict.fault:
                self.codes[str(verdict.codes[-1])] += 1
                return
            self.faults[str(seed)] = verdict.fault
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


def work(what: str, tally: Tally, worker: Worker) -> None:
    """Run cases until there are none left."""
    while (seed := tally.take()) is not None:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
            case, verdict = run(what, seed, Path(name), worker)
            tally.note(what, seed, Path(name), case, verdict)


def chunk(what: str, first: int, count: int, workers: Sequence[Worker], keep: Path) -> Chunk:
    """These cases, by all workers."""
    tally, begun, start = Tally(first, count, keep), commit(), time.monotonic()
    threads = [threading.Thread(target=work, args=(what, tally, w)) for w in workers]
    for t in threads:
        t.start()
    try:
        for t in threads:
            t.join()
    except KeyboardInterrupt:
        tally.stop()
        raise
    if sum(tally.codes.values()) + len(tally.faults) != count:
        raise RuntimeError("a thread has failed, and its cases were not run")
    commits = tuple(dict.fromkeys((begun, commit())))
    spent = len(workers) * (time.monotonic() - start)
    last = first + count - 1
    return Chunk(what, first, last, dict(tally.codes), tally.faults, tally.slowest, tally.largest, spent, commits)


def chunks(what: str, first: int, count: int, processes: int, keep: Path) -> Iterator[Chunk]:
    """All cases, so many at a time."""
    SHARED.get(what, lambda: None)()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(cores[i % len(cores)])) for i in range(processes)]
        for begin in range(first, first + count, _CHUNK):
            yield chunk(what, begin, min(_CHUNK, first + count - begin), workers, keep)


def main(given: list[str] | None = None) -> int:
    """Run the cases; exit code 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--what", choices=sorted(KINDS), default="models")
    parser.add_argument("--seed", type=int, default=0, help="the number of the first case")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "onnxprune-fuzz")
    parser.add_argument("--results", type=Path, metavar="FILE", help="a file that every chunk of cases is appended to")
    parser.add_argument("--render", type=Path, metavar="FILE", help="run nothing; the tables of these results")
    parser.add_argument("--output", type=Path, help="a page whose block `fuzz-WHAT` is replaced")
    parser.add_argument("--replay", type=int, metavar="SEED", help="one case, with all that it prints")
    args = parser.parse_args(given)
    if args.replay is not None:
        return replay(args.what, args.replay, args.keep)
    if args.render is not None:
        found = fuzz_results.read(args.render)
        show(found, sorted({c.what for c in found}), args.output)
        return int(any(c.faults for c in found))
    if args.cases < 1 or args.workers < 1:
        parser.error("--cases and --workers are at least 1")
    last = args.seed + args.cases - 1
    before = fuzz_results.read(args.results) if args.results else []
    if there := fuzz_results.recorded(before, args.what, args.seed, last):
        parser.error(f"{args.results} has {there} already; choose another --seed")
    args.keep.mkdir(parents=True, exist_ok=True)
    done: list[Chunk] = []
    try:
        for found_now in chunks(args.what, args.seed, args.cases, args.workers, args.keep):
            done.append(found_now)
            if args.results:
                fuzz_results.append(args.results, found_now)
            count, faults = sum(c.count for c in done), sum(len(c.faults) for c in done)
            print(f"{count} of {args.cases} cases, {faults} failures", flush=True)
    except KeyboardInterrupt:
        print(f"ended; whole chunks count alone: {sum(c.count for c in done)} of {args.cases} cases")
        return 130
    show(fuzz_results.read(args.results) if args.results else done, [args.what], args.output)
    return int(any(c.faults for c in done))


def show(found: Sequence[Chunk], kinds: Sequence[str], page: Path | None) -> None:
    """Print the table of each kind, and put it into its block of the page."""
    for what in kinds:
        text = fuzz_results.table([c for c in found if c.what == what])
        print(text)
        if page is not None:
            put(page, "table", f"fuzz-{what}", text)


def replay(what: str, seed: int, keep: Path) -> int:
    """Make the case in a folder that stays, and run its commands here, with tracebacks."""
    from onnxprune.cli.program import TRACEBACK
    from onnxprune.cli.program import main as tool

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
    sys.exit(main())
