"""INT, TERM and HUP end a run wherever it is, and leave nothing; a commit that has begun goes through."""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from onnxprune import pipeline, prune
from onnxprune.cli import program
from onnxprune.output import commit
from onnxprune.process.scratch import Scratch
from onnxprune.process.signals import Interruption, Interrupts
from onnxprune.stages import save
from tests import digits
from tests.test_pipeline import listing

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

Capture = pytest.CaptureFixture[str]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP] if os.name == "posix" else []
RUN = [str(digits.path("resnet")), "out.onnx", "--calib", str(digits.CALIB), "--ratio", "0.5"]
FAST = ["--method", "magnitude", "--refit", "none", "--plan", "plan.json", "--report", "report.json"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with one for temporary files in it."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def survives() -> Iterator[None]:
    """A signal that comes when nobody listens does not end the tests."""
    before = {n: signal.signal(n, lambda *_: None) for n in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def listening() -> Iterator[Interrupts]:
    interrupts = Interrupts()
    interrupts.listen()
    try:
        yield interrupts
    finally:
        interrupts.unlisten()


def handlers() -> list[Any]:
    return [sys.unraisablehook, *(signal.getsignal(n) for n in (*SIGNALS, signal.SIGALRM))]


def wait_for(happens: Callable[[], bool]) -> None:
    """Python code that goes on, so that a signal can come."""
    deadline = time.monotonic() + 10
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.01)


@contextmanager
def at_call(number: int, happens: Callable[[], object]) -> Iterator[list[int]]:
    """Have something happen at a function's start or end, of those from now on in this thread; how many there were."""
    seen = [0]

    def profile(frame: FrameType, event: str, argument: object) -> None:
        seen[0] += 1
        if seen[0] == number:
            happens()

    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(None)


# how they are heard


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_an_exception_with_an_exit_code(number: signal.Signals) -> None:
    before = handlers()
    with listening(), pytest.raises(Interruption) as raised:
        signal.raise_signal(number)
    assert raised.value.exit_code == 128 + number
    assert str(raised.value).endswith("; nothing was written")
    assert ("SIG" in str(raised.value)) == (number != signal.SIGINT)
    assert handlers() == before


def test_only_the_first_one_is_raised() -> None:
    """Fails where a container's second TERM cuts the cleaning up short."""
    with listening() as interrupts:
        with pytest.raises(Interruption):
            signal.raise_signal(signal.SIGTERM)
        for number in SIGNALS:
            signal.raise_signal(number)
        with pytest.raises(Interruption) as raised:
            interrupts.check()
        assert raised.value.number == signal.SIGTERM


def test_signals_that_are_ignored_stay_so() -> None:
    """Fails where `nohup` does not keep a run alive."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening() as interrupts:
            signal.raise_signal(signal.SIGHUP)
            interrupts.check()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("ignored", [False, True])
def test_whether_an_interrupt_comes_to_anybody(ignored: bool) -> None:
    """Fails where a run waits for a Ctrl-C that its process was started to ignore, and does not know it."""
    before = signal.getsignal(signal.SIGINT)
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening() as interrupts:
            assert interrupts.deaf is ignored
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where cleaning up that hangs cannot be ended; the two of a terminal and a parent count as one."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with listening():
        with pytest.raises(Interruption):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert not ended
        time.sleep(0.15)
        signal.raise_signal(signal.SIGTERM)
        assert not ended
        signal.raise_signal(signal.SIGINT)
        assert ended == [130]


def test_what_is_held_is_noted() -> None:
    with listening() as interrupts:
        interrupts.held = True
        signal.raise_signal(signal.SIGTERM)
        interrupts.check()
        interrupts.held = False
        with pytest.raises(Interruption):
            interrupts.check()
        with pytest.raises(Interruption):
            interrupts.hold()
        interrupts.check()


def test_another_thread_changes_nothing() -> None:
    """Fails where a program that runs the command line in a thread gets an error, or loses its handlers."""
    before, seen = handlers(), []

    def run() -> None:
        with listening() as interrupts:
            seen.extend(handlers())
            interrupts.check()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == before


# interrupts that Python loses


class Slow:
    """Something whose end takes a while, in Python."""

    def __init__(self, entered: list[int]) -> None:
        self.entered = entered

    def __del__(self) -> None:
        self.entered.append(1)
        signal.raise_signal(signal.SIGTERM)


def in_del(entered: list[int]) -> None:
    Slow(entered)


def in_a_finalizer(entered: list[int]) -> None:
    def end() -> None:
        entered.append(1)
        signal.raise_signal(signal.SIGTERM)

    held = threading.Event()
    weakref.finalize(held, end)
    del held


def in_a_generator_that_is_dropped(entered: list[int]) -> None:
    def steps() -> Iterator[int]:
        try:
            yield 1
        finally:
            entered.append(1)
            signal.raise_signal(signal.SIGTERM)

    next(steps())


@pytest.mark.parametrize("lost", [in_del, in_a_finalizer, in_a_generator_that_is_dropped])
def test_what_a_finalizer_swallows_is_raised_again(lost: Callable[[list[int]], None], capsys: Capture) -> None:
    """Fails where an interrupt that comes inside a finalizer has no effect but a line on stderr."""
    entered: list[int] = []
    with listening(), pytest.raises(Interruption):
        lost(entered)
        assert entered
        wait_for(lambda: False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("at", range(1, 9))
def test_a_lock_is_given_back(at: int) -> None:
    """Fails where a condition stays locked for ever, as its lock was taken when the signal came: who waits, hangs.

    In and out of a condition are four calls each in the sight of a profiler; a signal comes at each of them.
    """
    condition = threading.Condition(threading.Lock())
    with listening(), pytest.raises(Interruption):
        with at_call(at, lambda: signal.raise_signal(signal.SIGTERM)), condition:
            pass
        wait_for(lambda: False)
    assert condition.acquire(blocking=False)


def test_an_import_goes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a signal is raised while a module is loaded: compiled ones crash then, before anything is cleaned."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "loads_slowly.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.2)\nloaded = True\n",
        encoding="utf-8",
    )
    with listening(), pytest.raises(Interruption):
        try:
            importlib.import_module("loads_slowly")
        finally:
            module = sys.modules.pop("loads_slowly", None)
        time.sleep(1.0)
    assert module is not None
    assert module.loaded


def test_the_start_of_a_process_goes_through() -> None:
    """Fails where a worker is left half started, which then says so on the terminal."""
    place = {"__name__": "multiprocessing.popen_spawn_posix", "signal": signal, "time": time}
    text = "def start():\n    signal.raise_signal(signal.SIGTERM)\n    time.sleep(0.2)\n    started.append(True)"
    place["started"] = started = []
    exec(text, place)
    with listening(), pytest.raises(Interruption):
        place["start"]()
        time.sleep(1.0)
    assert started == [True]


def test_what_is_swallowed_silently_is_raised_at_the_next_check() -> None:
    with listening() as interrupts:
        with suppress(BaseException):  # as some libraries do
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interruption):
            interrupts.check()


def test_cleaning_up_is_not_interrupted_again(capsys: Capture) -> None:
    """Fails where the second try of a lost interrupt cuts short what the first one's way out does."""
    with listening() as interrupts, pytest.raises(Interruption):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            interrupts._later(0.01)
            time.sleep(0.1)
            cleaned = True
    assert cleaned


def test_other_errors_in_finalizers_are_shown_as_ever() -> None:
    seen: list[object] = []
    before, sys.unraisablehook = sys.unraisablehook, seen.append

    class Broken:
        def __del__(self) -> None:
            raise ValueError("mine")

    try:
        with listening():
            Broken()
    finally:
        sys.unraisablehook = before
    assert len(seen) == 1


# whole runs


def run(args: list[str]) -> int:
    return program.main(args)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_signal_at_any_call_leaves_nothing(
    number: signal.Signals, share: float, folder: Path, capsys: Capture, calls: int
) -> None:
    """Fails where a signal at any function's start or end leaves a file, a traceback, or a wrong exit code."""
    place = 1 + int(calls * min(share + random.Random(f"{number} {share}").random() / 20, 0.999))
    before, heard = listing(folder), handlers()
    with at_call(place, lambda: signal.raise_signal(number)):
        code = run([*RUN, *FAST])
    _, err = capsys.readouterr()
    left = {k: v for k, v in listing(folder).items() if k not in before}
    assert handlers() == heard
    assert not list((folder / "tmp").iterdir())
    if code == 0:
        assert set(left) == {"out.onnx", "plan.json", "report.json"}
        assert err == ""
    else:
        assert code == 128 + number
        assert not left
        assert err.startswith("onnxprune: error: interrupted")
        assert err.count("\n") == 1


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Starts and ends of functions in one run: the last ones are those of the commit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        with at_call(0, lambda: None) as seen:
            assert run([*RUN, *FAST, "--quiet"]) == 0
    return seen[0]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_commit_that_has_begun_goes_through(
    number: signal.Signals, folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where a signal between two renames leaves the first file, or exit code and files disagree."""
    rename = commit.Stage._rename

    def interrupted(self: commit.Stage, target: Path) -> None:
        rename(self, target)
        signal.raise_signal(number)

    monkeypatch.setattr(commit.Stage, "_rename", interrupted)
    assert run([*RUN, *FAST, "--quiet"]) == 0
    assert {"out.onnx", "plan.json", "report.json"} <= set(listing(folder))
    assert capsys.readouterr() == ("", "")


def test_a_lost_interrupt_is_found_before_the_commit(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where a model appears although the run was to end."""
    stored = save.stored

    def swallowing(*args: Any) -> Any:
        with suppress(BaseException):  # as some libraries do
            signal.raise_signal(signal.SIGTERM)
        return stored(*args)

    before = listing(folder)
    monkeypatch.setattr(pipeline, "stored", swallowing)
    assert run([*RUN, *FAST, "--quiet"]) == 143
    assert listing(folder) == before
    assert capsys.readouterr() == ("", "onnxprune: error: interrupted by SIGTERM; nothing was written\n")


def test_an_interrupt_that_became_another_error(folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a signal that came while a module was loaded is called a defect."""

    def loading(*_: Any, **__: Any) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Interruption as e:
            raise ImportError("initialization failed") from e

    monkeypatch.setattr(pipeline, "opened", loading)
    assert run([*RUN, *FAST, "--quiet"]) == 143
    assert capsys.readouterr() == ("", "onnxprune: error: interrupted by SIGTERM; nothing was written\n")


def test_the_library_leaves_handlers_alone(folder: Path) -> None:
    """Fails where a program that calls `prune` loses its own way with signals."""
    before, seen = handlers(), []
    prune(
        digits.path("resnet"),
        None,
        digits.CALIB,
        ratio=0.5,
        method="magnitude",
        refit="none",
        watch=lambda _: seen.append(handlers()),
    )
    assert seen
    assert all(s == before for s in seen)


# temporary files


def test_a_signal_while_the_folder_is_made(folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a signal between a folder's making and the note of it leaves it, or what tries out TMPDIR."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    for name in ("open", "mkdir"):
        real = getattr(os, name)

        def made(*args: Any, real: Callable[..., Any] = real, **options: Any) -> Any:
            result = real(*args, **options)
            if "tmp" in str(args[0]):
                signal.raise_signal(signal.SIGTERM)
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, name, made)
            assert run([*RUN, *FAST]) == 143
        assert not list((folder / "tmp").iterdir())
    capsys.readouterr()


def test_all_temporary_files_go(folder: Path) -> None:
    scratch = Scratch()
    scratch.make()
    tempfile.mkdtemp()
    (Path(tempfile.mkdtemp()) / "x").write_bytes(b"x")
    assert len(list((folder / "tmp").iterdir())) == 1
    scratch.remove()
    assert not list((folder / "tmp").iterdir())
    assert tempfile.gettempdir() == str(folder / "tmp")
    scratch.remove()


def test_no_room_for_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fails where a folder that is not there ends a command that may need none."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    scratch = Scratch()
    scratch.make()
    scratch.remove()
    assert tempfile.gettempdir() == str(tmp_path / "none")
