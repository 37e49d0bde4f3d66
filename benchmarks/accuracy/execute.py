"""Every run in a process of its own, several at a time: a crash or a hang fails that run alone, and peaks of memory
are its own."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.accuracy.case import Case
from benchmarks.accuracy.networks import Folders, Networks
from benchmarks.accuracy.runs import Row, Run
from benchmarks.accuracy.sources import source
from benchmarks.accuracy.tools import TOOLS
from benchmarks.commit import commit
from onnxprune import __version__
from onnxprune.report.environment import peak_memory

# place: what the runs are made from, such as folders.
Work = Callable[[Run, Any, int], dict[str, Any]]
_SAID = 300


def measure(run: Run, folders: Folders, threads: int) -> dict[str, Any]:
    """Prune by calibration data alone, then compare with the original on the test split."""
    kit = Networks(folders)
    path = kit.path(run.model)
    calib = source(run.source)(kit, run.model, run.samples, run.seed)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "out.onnx"
        found = TOOLS[run.tool](Case(run, path, calib, out, threads))
        peak = peak_memory()
        found |= kit.judged(run.model, out)
    given = run.samples if calib is None else len(next(iter(calib.values())))
    return found | {"given": given, "peak_mib": None if peak is None else peak / 2**20}


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Limits:
    """How many runs at a time, and the seconds that each may take."""

    jobs: int = 1
    seconds: float = 3600.0

    @property
    def threads(self) -> int:
        """Of each run."""
        return max(1, cores() // self.jobs)


def execute(runs: Sequence[Run], place: Any, limits: Limits, work: Work = measure) -> Iterator[Row]:
    """The row of every run, as they finish. place: as `work` takes it."""
    pool = ThreadPoolExecutor(limits.jobs)
    state = {"cores": limits.threads, "version": __version__, "commit": commit()}
    try:
        waiting = {pool.submit(_apart, work, run, place, limits): run for run in runs}
        for done in as_completed(waiting):
            yield waiting[done].row(done.result() | state)
    finally:
        pool.shutdown(cancel_futures=True)


def _apart(work: Work, run: Run, place: Any, limits: Limits) -> dict[str, Any]:
    """What `work` returns in a process of its own, or its failure in words."""
    spawn = get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_child, args=(sender, work, run, place, limits.threads))
    process.start()
    sender.close()
    try:
        if not receiver.poll(limits.seconds):
            return {"failure": f"did not finish in {limits.seconds:.0f} s"}
        return dict(receiver.recv())
    except EOFError:
        process.join()
        return {"failure": f"crashed ({_exit(process.exitcode or 0)})"}
    finally:
        process.kill()
        process.join()


def _exit(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _child(sender: Connection, work: Work, run: Run, place: Any, threads: int) -> None:
    if threads < (os.cpu_count() or 1):  # onnxruntime counts these, whatever this process may use
        _limit(threads)
    try:
        found = work(run, place, threads)
    except (Exception, SystemExit) as e:  # noqa: BLE001  whatever a tool raises is its result
        found = {"failure": f"{type(e).__name__}: {' '.join(str(e).split())[:_SAID]}"}
    sender.send(found)


def _limit(threads: int) -> None:
    """At most so many threads of BLAS and of every onnxruntime session in this process."""
    import onnxruntime as ort
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=threads)

    class Limited(ort.SessionOptions):  # type: ignore[misc]  # neither the library nor onnxruntime has a global setting
        def __init__(self) -> None:
            super().__init__()
            self.intra_op_num_threads = threads

    ort.SessionOptions = Limited
