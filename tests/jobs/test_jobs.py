"""Work elsewhere: the same results from processes and from Dask workers, and one line where those are lost."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import pytest

from onnxprune import PruneResult, RunError, UsageError, prune
from onnxprune.allocation.trial_cuts import measure
from onnxprune.calibration import input_moments
from onnxprune.calibration.gate_moments import collect
from onnxprune.calibration.layers import layers_of
from onnxprune.calibration.probe import Probe, batches_of, with_samples
from onnxprune.channels.gates import gates_of
from onnxprune.graph import external
from onnxprune.jobs import Here, Scheduler, Work, scheduling
from onnxprune.jobs.processes import Processes
from onnxprune.measures.answers import Answers
from onnxprune.objective import output_imitation
from onnxprune.report.progress import Progress
from onnxprune.selection.known import Choice, Known
from onnxprune.selection.path import Regressions
from onnxprune.stages.clock import Clock
from onnxprune.stages.select import Selection, paths
from onnxprune.threads import AT_ONCE_BYTES, limit, limited
from tests import digits
from tests.calibrated import moments_of, prepare_text, samples_of, trial_network, values
from tests.compare import assert_same
from tests.external import stored
from tests.started import PATIENCE, started

needs_dask = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None, reason="needs the extra dask (distributed)"
)
posix = pytest.mark.skipif(os.name != "posix", reason="sends signals")

# Two branches and maps larger than what is sampled of them, so that sampled positions count.
TEXT = """(float[N,3,12,12] x) => (float[N,5] y) {
    a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
    r = Relu(a)
    c = Conv <group=2, pads=[1,1,1,1]> (r, w2[8,4,3,3], b2[8])
    s = Add(r, c)
    t = Relu(s)
    d = Conv (t, w3[12,8,3,3], b3[12])
    u = Relu(d)
    p = GlobalAveragePool(u)
    f = Flatten(p)
    y = Gemm <transB=1> (f, w4[5,12], b4[5])
}"""
# A test that waits so long for another thread has failed.
SECONDS = 60.0
QUICK: dict[str, Any] = {"refit": "none", "ratio": 0.5, "round_to": 1}


def nothing(done: int, count: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, eq=False)
class Elsewhere(Work[int, int]):
    """Work that is not onnxprune's."""

    def __call__(self, item: int) -> int:
        return item


def known(group: int, size: int = 4) -> Known:
    """A group of which selection knows nothing but scores."""
    return Known("magnitude", group, size, None, Regressions(), None, np.arange(size, dtype=float))


def unsound() -> Known:
    """A group that selection cannot deal with."""
    return Known("magnitude", 0, 4, None, (None,), None, np.zeros(4))  # type: ignore[arg-type]


SELECTION = Selection(Choice())


# shards and seeds


def test_shards_do_not_depend_on_the_workers_and_lose_nothing() -> None:
    """Fails where a sample is left out or counted twice, or a batch moves between fit and held-out ones."""
    p = prepare_text(TEXT)
    for count in (1, 5, 64, 200):
        samples = samples_of(p, count)
        for batch in (1, 7, 64):
            for most in (1, 3, 8):
                parts = input_moments.shards(samples, batch, most)
                assert len(parts) <= most
                joined = np.concatenate([x.samples.arrays["x"] for x in parts])
                assert np.array_equal(joined, samples.arrays["x"])
                assert all(len(x.samples) % batch == 0 for x in parts[:-1])
                firsts = np.cumsum([0, *(-(-len(x.samples) // batch) for x in parts)])[:-1]
                assert [x.first for x in parts] == firsts.tolist()


class Workers(Here):
    """This process, under the name of two workers: the paths of those without their processes."""

    workers = 2

    def map(self, work: Work[Any, Any], items: Any, count: int) -> Iterator[Any]:
        for item in items:
            there = pickle.loads(pickle.dumps((work.portable(), item)))
            yield pickle.loads(pickle.dumps(there[0](there[1])))


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    """Two worker processes."""
    with Processes(2, nothing) as pool:
        yield pool


@pytest.mark.parametrize("wide", [False, True])
def test_moments_of_shards_are_those_of_one_pass(wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a shard samples other positions, holds out other batches, or its sums are lost in the merge."""
    if wide:
        monkeypatch.setattr(input_moments, "WIDE", 20)
    p = prepare_text(TEXT)
    samples = samples_of(p, 300)
    layers = layers_of(p.channels)
    arguments = (p.normalised.proto, layers, samples, p.normalised.shapes, 3)
    here, there = input_moments.collect(*arguments), input_moments.collect(*arguments, Workers())
    assert here.keys() == there.keys()
    assert any(x.classes is not None for x in here.values()) is wide
    for name, found in there.items():
        assert_same(found.p, here[name].p, rtol=1e-12, atol=0.0)
        assert found.ridge == here[name].ridge


def test_gate_moments_of_shards_are_those_of_one_pass() -> None:
    """Fails where the seeds of a batch depend on the batches before it."""
    p = prepare_text(TEXT)
    samples = samples_of(p, 300)
    proto, graph = p.normalised.proto, p.channels.graph
    reference = values(proto, graph.outputs, samples.arrays)
    gates = with_samples(gates_of(p.channels), proto, samples)
    probe = Probe.of(proto, p.channels, gates, layers_of(p.channels), p.normalised.types)
    objective = output_imitation(reference, len(samples))

    def found(scheduler: Scheduler) -> Any:
        batches = batches_of(samples, graph, reference)
        return collect(probe, p.channels, batches, objective, probes=2, seed=5, slope=True, scheduler=scheduler)

    here, there = found(Here()), found(Workers())
    assert here.gates.keys() == there.gates.keys() != set()
    for g, moments in there.gates.items():
        for name in ("gram", "absolute", "square"):
            assert_same(getattr(moments, name), getattr(here.gates[g], name), rtol=1e-10, atol=0.0)
    assert here.metrics.keys() == there.metrics.keys() != set()
    for weight, metric in there.metrics.items():
        assert_same(metric, here.metrics[weight], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("method", ["obs", "local", "random", "magnitude"])
def test_paths_from_processes(method: str, two: Processes) -> None:
    """Fails where what is random depends on the groups before, or a group gets the path of another one."""
    p = prepare_text(TEXT)
    layers, moments = moments_of(p, samples_of(p, 100))
    here, there = (paths(p.channels, layers, moments, method, Choice(1), scheduler=s) for s in (Here(), two))
    for a, b in zip(here, there, strict=True):
        assert a.order.tolist() == b.order.tolist()
        assert_same(a.loss, b.loss, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("memory", [0, 1 << 40])
def test_trials_from_processes(memory: int, two: Processes) -> None:
    """Fails where a worker that skips groups walks elsewhere, or tries a group on another one's activations."""
    p = prepare_text(TEXT)
    samples = samples_of(p, 100)
    layers, moments = moments_of(p, samples)
    reference = Answers.of(values(p.normalised.proto, p.channels.graph.outputs, samples.arrays), 100)
    chosen = paths(p.channels, layers, moments, "obs", Choice())
    arguments = (trial_network(p, layers, moments), samples, reference, chosen)
    only = set(range(len(p.channels.groups)))
    here, there = (measure(*arguments, only=only, memory=memory, scheduler=s) for s in (Here(), two))
    assert sum(bool(x) for x in here) > 1
    for a, b in zip(here, there, strict=True):
        assert a.keys() == b.keys()
        assert_same(np.array([*a.values()]), np.array([*b.values()]), rtol=1e-6, atol=0.0)


# this process


@dataclass(frozen=True, eq=False)
class Beside(Work[int, int]):
    """Work on two items at a time: of both the second is always done before the first."""

    done: list[threading.Event]
    sizes: list[int]
    side_by_side = True

    def __call__(self, item: int) -> int:
        if item % 2 == 0:
            assert self.done[item + 1].wait(SECONDS)
        self.done[item].set()
        if item == 7:
            raise ValueError("broken 7")
        return item * item

    def size(self, item: int) -> int:
        self.sizes.append(item)
        return 0


def test_this_process_works_on_several_items_at_once() -> None:
    """Fails where items wait for each other, come in another order, or nobody asks what they take or hears of them."""
    work, heard = Beside([threading.Event() for _ in range(8)], []), list[tuple[int, int]]()
    with limited(2):
        results = Here(lambda done, count: heard.append((done, count))).map(work, range(8), 8)
        for i in range(7):
            assert next(results) == i * i
            assert heard == [(n + 1, 8) for n in range(i + 1)]
        with pytest.raises(ValueError, match="broken 7"):
            next(results)
    assert work.sizes == [*range(8)]


@dataclass(frozen=True, eq=False)
class Shared(Work[int, int]):
    """How many threads an item of so many bytes has."""

    side_by_side = True

    def __call__(self, item: int) -> int:
        return limit()

    def size(self, item: int) -> int:
        return item


def test_items_that_run_at_once_share_the_cores() -> None:
    """Fails where each of them takes all cores, or one that runs alone has a part of them."""
    half, third = AT_ONCE_BYTES // 2, AT_ONCE_BYTES // 3
    items = [0, third // 9, third, half, half + 1, 2 * AT_ONCE_BYTES]
    with limited(8):
        assert [*Here().map(Shared(), items, len(items))] == [1, 1, 2, 4, 8, 8]
        assert limit() == 8
    with limited(1):
        assert [*Here().map(Shared(), items, len(items))] == [1] * 6


def test_items_that_do_not_run_at_once_have_all_cores() -> None:
    """Fails where work of one item after the other is cut short, done ahead or in another order."""
    calls: list[int] = []

    class Whole(Work[int, int]):
        def __call__(self, item: int) -> int:
            calls.append(item)
            return limit()

    with limited(5):
        results = Here().map(Whole(), iter(range(3)), 3)
        assert [next(results), calls] == [5, [0]]
        assert [*results] == [5, 5]
    assert calls == [0, 1, 2]


# processes


def test_results_come_in_the_order_of_the_items(two: Processes) -> None:
    """Fails where whoever is faster comes first. More items than workers, of all sizes."""
    sizes = [1 + 37 * i % 400 for i in range(40)]
    found = two.map(SELECTION, (known(i, n) for i, n in enumerate(sizes)), len(sizes))
    assert [x.order.size for x in found] == sizes


def test_items_are_made_as_they_are_needed(two: Processes) -> None:
    """Fails where the regressions of all groups are in memory at once."""
    made: list[int] = []

    def items() -> Iterator[Known]:
        for i in range(40):
            made.append(i)
            yield known(i)

    results = two.map(SELECTION, items(), 40)
    next(results)
    assert len(made) <= 2 * two.workers + 1
    assert len(list(results)) == 39


def test_progress_counts_every_item() -> None:
    """Fails where nobody hears how far the work is."""
    seen: list[tuple[int, int]] = []
    with Processes(2, lambda done, count: seen.append((done, count))) as pool:
        list(pool.map(SELECTION, map(known, range(5)), 5))
    assert seen == [(i + 1, 5) for i in range(5)]
    heard: list[Progress] = []
    clock = Clock(heard.append)
    with clock("select"):
        list(Here(clock.progress).map(SELECTION, map(known, range(2)), 2))
        list(Here(clock.progress).map(SELECTION, map(known, range(1)), 1))
    assert [(p.stage, p.done, p.count) for p in heard] == [("select", 0, 0), ("select", 1, 2), ("select", 2, 2)]


def test_only_work_of_onnxprune_is_done(two: Processes) -> None:
    """Fails where a worker would run whatever it is sent."""
    with pytest.raises(TypeError, match="Elsewhere is no work of onnxprune"):
        list(two.map(Elsewhere(), [1], 1))


def test_an_error_of_the_work_is_raised_here() -> None:
    """Fails where a worker's error is lost, or hangs the run; the others end with it."""
    with Processes(2, nothing) as pool:
        with pytest.raises(AttributeError) as raised:
            list(pool.map(SELECTION, [known(0), unsound(), *map(known, range(20))], 22))
        assert "in __call__" in str(raised.value.__cause__)
        assert pool.processes == ()


@posix
def test_a_killed_process_is_one_clear_error() -> None:
    """Fails where the run waits for a worker that is gone."""
    with Processes(2, nothing) as pool:
        numbers = pool.processes

        def items() -> Iterator[Known]:
            for i in range(10):
                if i == 5:
                    os.kill(numbers[0], signal.SIGKILL)
                yield known(i)

        with pytest.raises(RunError, match=r"^a worker process ended \(SIGKILL\), perhaps for want of memory"):
            list(pool.map(SELECTION, items(), 10))
    assert all(gone(n) for n in numbers)


@posix
def test_a_process_that_is_killed_while_it_loads_is_not_taken_for_a_script_without_a_guard() -> None:
    with Processes(2, nothing) as pool:
        os.kill(pool.processes[0], signal.SIGKILL)
        with pytest.raises(RunError, match=r"^a worker process ended \(SIGKILL\), perhaps for want of memory"):
            list(pool.map(SELECTION, map(known, range(10)), 10))


@posix
def test_workers_end_with_a_parent_that_was_killed() -> None:
    """Fails where a parent that cannot say goodbye leaves processes behind."""
    code = (
        "import time\nfrom onnxprune.jobs.processes import Processes\n"
        "if __name__ == '__main__':\n"
        " with Processes(2, print) as pool:\n"
        "  print(*pool.processes, flush=True)\n"
        "  time.sleep(600)\n"
    )
    with script(code) as process:
        assert process.stdout is not None
        numbers = [int(n) for n in process.stdout.readline().split()]
        assert len(numbers) == 2
        process.kill()
    deadline = time.monotonic() + PATIENCE
    while not all(gone(n) for n in numbers):
        assert time.monotonic() < deadline, "the workers go on"
        time.sleep(0.05)


@posix
def test_an_interrupt_ends_the_workers(tmp_path: Path) -> None:
    """Ctrl-C reaches all processes of a terminal: fails where one goes on, or each says so in a traceback."""
    code = (
        "import sys\nfrom onnxprune import prune\nfrom onnxprune.jobs import processes\n"
        "class Told(processes.Processes):\n"
        " def __enter__(self):\n"
        "  entered = super().__enter__()\n"
        "  print(*self.processes, flush=True)\n"
        "  return entered\n"
        "processes.Processes = Told\n"
        "try:\n"
        " prune(sys.argv[1], None, sys.argv[2], jobs=2, watch=lambda name: print(name, flush=True))\n"
        "except KeyboardInterrupt:\n print('interrupted')\n"
    )
    with np.load(digits.CALIB) as data:
        np.savez(tmp_path / "much.npz", **{k: np.concatenate([v] * 32) for k, v in data.items()})
    heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with started(
        [sys.executable, "-c", code, str(digits.path("resnet")), str(tmp_path / "much.npz")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
        preexec_fn=heard,
    ) as process:
        numbers = [int(n) for n in process.stdout.readline().split()]
        assert any(line.strip() == "calibrate" for line in process.stdout), "it ended before"
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert out.endswith("interrupted\n")
    assert err == ""
    assert len(numbers) == 2
    assert all(gone(n) for n in numbers)


def test_a_script_without_a_guard_is_told_about_it(tmp_path: Path) -> None:
    """Fails where spawned workers, which import the script again, end in a riddle."""
    path = tmp_path / "unguarded.py"
    path.write_text(
        "from onnxprune.errors import RunError\nfrom onnxprune.jobs.processes import Processes\n"
        "from tests.jobs.test_jobs import SELECTION, known, nothing\n"
        "with Processes(2, nothing) as pool:\n"
        " try:\n  list(pool.map(SELECTION, [known(0)], 1))\n"
        " except RunError as e:\n  print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, env=environment(), timeout=PATIENCE, check=False
    )
    assert "has to do so under if __name__ == '__main__'" in done.stdout


def gone(number: int) -> bool:
    """Whether a process has ended."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{number}/stat")
    # Nobody may have waited for it yet.
    return status.exists() and status.read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"


def environment() -> dict[str, str]:
    """For a process that uses this package and these tests."""
    return {**os.environ, "PYTHONPATH": str(digits.FOLDER.parent)}


@contextlib.contextmanager
def own_folder() -> Iterator[dict[str, str]]:
    """The environment of processes that are killed and cannot clear up: their temporary files go with the context."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        yield {**environment(), "TMPDIR": name}


@contextlib.contextmanager
def script(*code: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs a script; it ends with the context."""
    path = digits.FOLDER.parent
    with (
        own_folder() as env,
        started([sys.executable, "-c", *code], stdout=subprocess.PIPE, text=True, env=env, cwd=path) as process,
    ):
        yield process


# whole runs


def masks(result: PruneResult) -> Any:
    """Which channels stay, as a plan stores them."""
    return result.plan.to_json()


@pytest.mark.parametrize("method", ["obs", "taylor"])
def test_processes_choose_the_same_channels(method: str) -> None:
    """Fails where --jobs changes the result; the report says who did the work."""
    heard: list[Progress] = []
    alone = digits.pruned("resnet", method=method, **QUICK)
    found = prune(digits.path("resnet"), None, digits.CALIB, method=method, jobs=2, watch=heard.append, **QUICK)
    assert masks(found) == masks(alone)
    assert (alone.report.effort.scheduler, alone.report.effort.workers) == ("this process", 0)
    assert (found.report.effort.scheduler, found.report.effort.workers) == ("2 processes", 2)
    for stage in ("calibrate", "select", "allocate"):
        assert any(x.stage == stage and 1 < x.count == x.done for x in heard)


def test_weights_in_files_are_mapped_by_processes(tmp_path: Path) -> None:
    """Fails where a worker looks for them elsewhere."""
    path = stored(onnx.load(digits.path("resnet")), tmp_path, "one file")
    alone, found = (prune(path, None, digits.CALIB, jobs=n, **QUICK) for n in (1, 2))
    assert masks(found) == masks(alone)


def test_weights_in_files_go_along_to_other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a machine without these files is sent their names, or more than one message holds."""
    path = stored(onnx.load(digits.path("resnet")), tmp_path, "one file")
    proto = onnx.load(path, load_external_data=False)
    external.resolve(proto, tmp_path / "model.onnx")
    assert external.has_external(proto)
    assert not external.has_external(external.sendable(proto))
    sent: list[onnx.ModelProto] = []

    class Remote(Workers):
        def map(self, work: Work[Any, Any], items: Any, count: int) -> Iterator[Any]:
            portable: Any = work.portable()
            if hasattr(portable, "proto") or hasattr(portable, "probe"):
                sent.append(portable.proto if hasattr(portable, "proto") else portable.probe.proto)
            return super().map(work, items, count)

    @contextlib.contextmanager
    def remote(*_: object) -> Iterator[Scheduler]:
        yield Remote()

    monkeypatch.setattr("onnxprune.sentence.machine.scheduling", remote)
    found = prune(path, None, digits.CALIB, method="taylor", **QUICK)
    assert masks(found) == masks(prune(path, None, digits.CALIB, method="taylor", jobs=1, **QUICK))
    assert len(sent) >= 3  # calibration, its gradients, trial cuts
    assert not any(external.has_external(x) for x in sent)
    monkeypatch.setattr(external, "MOST_BYTES", 10_000)
    with pytest.raises(RunError, match=r"exceed the 2 GiB of one message, .* leave out --scheduler, and use --jobs$"):
        prune(path, None, digits.CALIB, **QUICK)


def test_choices_that_are_none() -> None:
    """Fails where one of two places of work is silently ignored."""
    model = digits.path("resnet")
    with pytest.raises(UsageError, match="jobs is 0"):
        prune(model, None, digits.CALIB, jobs=0)
    with pytest.raises(UsageError, match="leave out one"):
        prune(model, None, digits.CALIB, jobs=2, scheduler="tcp://127.0.0.1:1")
    with pytest.raises(UsageError, match="provider 'tpu' is unknown; choose one of cpu, cuda"):
        prune(model, None, digits.CALIB, provider="tpu")


# Dask


@dataclass
class Dask:
    """A scheduler and its workers, each a process without a nanny that would start it again."""

    address: str
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]]


@contextlib.contextmanager
def dask_cluster(workers: int, protocol: str = "tcp", *flags: str) -> Iterator[Dask]:
    """A cluster of one thread per worker, on this machine. flags: of the scheduler and the workers alike."""
    module = [sys.executable, "-m", "distributed.cli"]
    with contextlib.ExitStack() as stack:
        quiet = {"env": stack.enter_context(own_folder()), "stdout": subprocess.DEVNULL}

        def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
            command = [*module[:-1], f"{module[-1]}.dask_{arguments[0]}", *arguments[1:], "--no-dashboard"]
            return stack.enter_context(started(command, **{**quiet, **options}))

        place = ("--host", f"{protocol}://127.0.0.1", "--port", "0")
        scheduler = start("scheduler", *place, *flags, stderr=subprocess.PIPE)
        address = told_address(scheduler)
        one = ("--nthreads", "1", "--no-nanny", "--memory-limit", "0", "--host", "127.0.0.1", *flags)
        found = [start("worker", address, *one, stderr=subprocess.DEVNULL) for _ in range(workers)]
        yield Dask(address, scheduler, found)


def _forget(log: IO[bytes]) -> None:
    with contextlib.suppress(ValueError):  # it is closed where the process has ended
        for _ in log:
            pass


def told_address(scheduler: subprocess.Popen[bytes]) -> str:
    """The address that a scheduler logs; the rest of its log is read and forgotten."""
    log = scheduler.stderr
    assert log is not None
    deadline, said = time.monotonic() + PATIENCE, b""
    while select.select([log], [], [], max(deadline - time.monotonic(), 0.0))[0]:
        more = os.read(log.fileno(), 4096)  # not by lines: select knows nothing of what a buffer holds
        assert more, "the scheduler has ended"
        said += more
        found = re.search(r"Scheduler at:\s+(\w+://\S+)\s", said.decode())
        if found:
            threading.Thread(target=_forget, args=(log,), daemon=True).start()
            return found.group(1)
    pytest.fail("the scheduler says nothing")


@pytest.fixture(scope="module")
def dask_workers() -> Iterator[Dask]:
    """Two Dask workers."""
    with dask_cluster(2) as cluster:
        yield cluster


def all_of_them(cluster: Dask, count: int) -> None:
    """Wait until so many workers are there."""
    from distributed import Client  # noqa: TID251  what the module under test owns

    with Client(cluster.address, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=PATIENCE)


@needs_dask
@posix
@pytest.mark.parametrize("method", ["obs", "taylor"])
def test_dask_workers_choose_the_same_channels(method: str, dask_workers: Dask) -> None:
    """The bar: two workers on one machine and the run in this process choose the same channels."""
    all_of_them(dask_workers, 2)
    alone = digits.pruned("resnet", method=method, **QUICK)
    found = prune(digits.path("resnet"), None, digits.CALIB, method=method, scheduler=dask_workers.address, **QUICK)
    assert masks(found) == masks(alone)
    assert found.report.effort.workers == 2
    assert found.report.effort.scheduler == f"2 Dask workers at {dask_workers.address}"


@needs_dask
@posix
@pytest.mark.parametrize("stage", ["calibrate", "select", "allocate"])
def test_a_killed_dask_worker_changes_nothing_but_time(stage: str) -> None:
    """The bar: a worker that is killed in the middle of a stage takes no result with it."""
    with dask_cluster(2) as cluster:
        all_of_them(cluster, 2)

        def watch(progress: Progress) -> None:
            if str(progress).startswith(f"{stage} 2/"):
                cluster.workers[0].send_signal(signal.SIGKILL)

        found = prune(digits.path("resnet"), None, digits.CALIB, scheduler=cluster.address, watch=watch, **QUICK)
        assert cluster.workers[0].wait(PATIENCE) == -signal.SIGKILL
    assert masks(found) == masks(digits.pruned("resnet", **QUICK))


@needs_dask
@posix
def test_a_killed_dask_scheduler_is_one_clear_error() -> None:
    """Fails where a run waits for results that nobody will bring."""
    with dask_cluster(1) as cluster:

        def watch(progress: Progress) -> None:
            if str(progress).startswith("calibrate 1/"):
                cluster.scheduler.kill()

        with pytest.raises(
            RunError, match=f"^the Dask scheduler at {cluster.address} was lost: .*; nothing was written$"
        ):
            prune(digits.path("resnet"), None, digits.CALIB, scheduler=cluster.address, watch=watch, **QUICK)


@needs_dask
@posix
@pytest.mark.parametrize(
    ("who", "limit", "match"),
    [
        ("scheduler", "_ANSWER_SECONDS", r"^the Dask scheduler at \S+ does not answer any more \(1 s\); nothing was "),
        ("workers", "_STUCK_SECONDS", r"^no worker of \S+ has finished anything for 1 s: .* ONNXPRUNE_PATIENCE=10"),
        ("killed workers", "_REPLACED_SECONDS", r"^the Dask scheduler at \S+ has lost all of its workers, and for 1 s"),
    ],
)
def test_who_is_stuck_is_not_waited_for(who: str, limit: str, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a scheduler or workers that are there, and do nothing more, hold a run for good.

    What is there on a busy machine has all the time it needs: patience ends when they are stopped.
    """
    from onnxprune.jobs import cluster

    monkeypatch.delenv(cluster.PATIENCE, raising=False)
    how = signal.SIGKILL if who == "killed workers" else signal.SIGSTOP
    with dask_cluster(1) as found:
        all_of_them(found, 1)
        affected = [found.scheduler] if who == "scheduler" else found.workers
        stopped: list[int] = []

        def items() -> Iterator[Known]:
            for i in range(10):
                if i == 2:
                    for process in affected:
                        process.send_signal(how)
                        stopped.append(process.pid)
                    for name, value in ((limit, 1.0), ("_ASK_SECONDS", 0.2), ("_CLOSE_SECONDS", 0.5)):
                        monkeypatch.setattr(cluster, name, value)
                yield known(i)

        with scheduling(1, found.address, nothing) as place, pytest.raises(RunError, match=match):
            list(place.map(SELECTION, items(), 10))
        assert stopped


@needs_dask
@posix
def test_a_dask_worker_that_is_lost_while_it_is_asked(dask_workers: Dask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a worker that went in its first seconds is said to have no onnxprune, or ends what others do."""
    from distributed import Client  # noqa: TID251  what the module under test owns

    from onnxprune.jobs import cluster

    ask, asked = Client.run, [0]

    def losing(self: Client, *args: Any, **options: Any) -> Any:
        asked[0] += 1
        if asked[0] == 1:
            return {**ask(self, *args, **options), "tcp://gone:1": OSError("Timed out trying to connect")}
        return ask(self, *args, **options)

    monkeypatch.setattr(Client, "run", losing)
    with scheduling(1, dask_workers.address, nothing) as place:
        assert len(list(place.map(SELECTION, [known(0)], 1))) == 1
    assert asked == [2]
    monkeypatch.setattr(cluster, "_ABOUT_SECONDS", 0.0)
    asked[0] = 0
    lost = r"^workers of \S+ are lost as soon as they are asked \(tcp://gone:1: Timed out|do not answer: TimeoutError"
    with pytest.raises(RunError, match=lost), scheduling(1, dask_workers.address, nothing):
        pass


@needs_dask
@posix
def test_a_dask_worker_without_onnxprune(dask_workers: Dask, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import Client  # noqa: TID251  what the module under test owns

    missing = {"tcp://there:1": ModuleNotFoundError("No module named 'onnxprune'")}
    monkeypatch.setattr(Client, "run", lambda *_, **__: missing)
    with (
        pytest.raises(RunError, match=r"^worker tcp://there:1 has no onnxprune"),
        scheduling(1, dask_workers.address, nothing),
    ):
        pass


@needs_dask
@posix
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, for certificates")
def test_a_dask_cluster_behind_tls(tmp_path: Path) -> None:
    """Fails where certificates that Dask's configuration names are not used, or a run without them is let in."""
    import dask  # noqa: TID251  what the module under test owns

    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-days", "2"]
    subprocess.run([*made, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    flags = [f"--tls-{k}={v}" for k, v in (("ca-file", certificate), ("cert", certificate), ("key", key))]
    with dask_cluster(1, "tls", *flags) as cluster:
        with pytest.raises(RunError, match="no Dask scheduler answers"), scheduling(1, cluster.address, nothing):
            pass
        secured = {"ca-file": certificate, "client.key": key, "client.cert": certificate}
        with (
            dask.config.set({f"distributed.comm.tls.{k}": str(v) for k, v in secured.items()}),
            scheduling(1, cluster.address, nothing) as place,
        ):
            assert len(list(place.map(SELECTION, [known(0), known(1)], 2))) == 2


@needs_dask
@posix
def test_an_error_on_a_dask_worker_is_raised_here(dask_workers: Dask) -> None:
    """Fails where a worker's own error is tried again, or hidden behind one of Dask's."""
    with scheduling(1, dask_workers.address, nothing) as cluster:
        with pytest.raises(AttributeError):
            list(cluster.map(SELECTION, [known(0), unsound()], 2))
        assert len(list(cluster.map(SELECTION, [known(0), known(1)], 2))) == 2
        with pytest.raises(TypeError, match="no work of onnxprune"):
            list(cluster.map(Elsewhere(), [1], 1))


@needs_dask
@posix
def test_dask_workers_with_something_else_installed(dask_workers: Dask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where results of another version are taken for those of this one."""
    from onnxprune.jobs import cluster

    monkeypatch.setattr(cluster, "__version__", "99.0")
    with pytest.raises(RunError, match=r"^worker tcp://\S+ has onnxprune \S+ instead of 99.0: install the same there$"):
        prune(digits.path("resnet"), None, digits.CALIB, scheduler=dask_workers.address)


@needs_dask
@posix
def test_a_dask_scheduler_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a run waits for workers for good."""
    from onnxprune.jobs import cluster

    monkeypatch.setattr(cluster, "_WORKER_SECONDS", 0.5)
    with dask_cluster(0) as empty, pytest.raises(RunError, match=r"has no workers: start some \(dask worker tcp://"):
        prune(digits.path("resnet"), None, digits.CALIB, scheduler=empty.address)


@needs_dask
def test_no_dask_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where an address without an answer, or with that of something else, hangs or ends in Dask's own words."""
    from onnxprune.jobs import cluster

    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 1.0)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        for listens in (False, True):
            if listens:
                listener.listen()
            with pytest.raises(RunError, match=f"^no Dask scheduler answers at {address}: start one"):
                prune(digits.path("resnet"), None, digits.CALIB, scheduler=address)
    for wrong in ("localhost:8786", "http://localhost:8787", "tcp://localhost", "tcp://a:b", "x.json"):
        with pytest.raises(UsageError, match="is no address of a Dask scheduler; write tcp://host:8786"):
            prune(digits.path("resnet"), None, digits.CALIB, scheduler=wrong)


def test_dask_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the missing package is named in a traceback."""
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RunError, match=r"^--scheduler needs Dask: pip install 'onnxprune\[dask\]'$"):
        prune(digits.path("resnet"), None, digits.CALIB, scheduler="tcp://127.0.0.1:8786")
