"""Work ahead of its use keeps items, order and errors, in one thread or in several, and as many as are allowed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextvars import ContextVar
from typing import Any

import pytest

from onnxprune import threads
from onnxprune.threads import cores, limit, limited, mapped, prefetched

# A test that waits so long for another thread has failed.
SECONDS = 60.0


def test_items_and_order_survive() -> None:
    """Fails where an item is lost, doubled or reordered; an empty source ends at once."""
    assert list(prefetched(iter(range(20)))) == list(range(20))
    assert list(prefetched(iter(()))) == []


def test_an_error_reaches_the_reader_after_the_items_before_it() -> None:
    """Fails where an error in the thread is swallowed."""

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    items = prefetched(broken())
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_one_item_at_most_is_computed_ahead() -> None:
    """Fails where a whole data set is computed before the first batch is used."""
    computed: list[int] = []

    def source() -> Iterator[int]:
        for i in range(10):
            computed.append(i)
            yield i

    items = prefetched(source())
    next(items)
    items.close()
    assert len(computed) <= 2


# several at a time


def source(count: int, taken: list[int]) -> Iterator[int]:
    """Numbers, and which of them were asked for."""
    for i in range(count):
        taken.append(i)
        yield i


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_keep_their_order(workers: int) -> None:
    """Fails where whoever is faster comes first: of two items the second is always done before the first."""
    done = [threading.Event() for _ in range(20)]

    def work(i: int) -> int:
        if i % 2 == 0 and workers > 1:
            assert done[i + 1].wait(SECONDS)
        done[i].set()
        return i * i

    with limited(workers):
        assert list(mapped(work, range(20))) == [i * i for i in range(20)]
        assert list(mapped(work, ())) == []


@pytest.mark.parametrize("told", [True, False])
def test_as_many_items_at_once_as_there_are_cores(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where items wait for each other: all three have to be there before one goes on."""
    monkeypatch.setattr(threads, "cores", lambda: 5 if told else 3)
    together = threading.Barrier(3, timeout=SECONDS)
    with limited(3 if told else 0):
        assert sorted(mapped(lambda _: together.wait(), range(3))) == [0, 1, 2]


def test_no_more_items_at_once_than_are_allowed() -> None:
    """Fails where other threads than those work on items; all have started one before any goes on."""
    gate = threading.Event()
    names: set[str] = set()

    def items() -> Iterator[int]:
        yield from range(6)
        gate.set()

    def work(_: int) -> None:
        names.add(threading.current_thread().name)
        assert gate.wait(SECONDS)

    with limited(2):
        assert len(list(mapped(work, items()))) == 6
    assert len(names) <= 2


@pytest.mark.parametrize("told", [True, False])
def test_one_thread_alone_is_that_of_the_caller(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where threads are started for nothing, or items are taken before they are needed."""
    monkeypatch.setattr(threads, "cores", lambda: 5 if told else 1)
    taken: list[int] = []
    with limited(1 if told else 0):
        results = mapped(lambda i: (i, threading.get_ident()), source(10, taken))
        for i in range(3):
            assert next(results) == (i, threading.get_ident())
            assert taken == list(range(i + 1))


def test_items_are_taken_a_little_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the rows of all layers are in memory at once, or nothing is worked on while a result is used."""
    monkeypatch.setattr(threads, "_AHEAD", 3)
    taken: list[int] = []
    with limited(2):
        results = mapped(str, source(100, taken))
        assert taken == []
        for i in range(20):
            assert next(results) == str(i)
            assert len(taken) == 6 + i
        assert [*results] == [str(i) for i in range(20, 100)]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_error_is_raised_in_its_turn(workers: int) -> None:
    """Fails where a result before the error is lost, or which error is raised depends on the threads."""
    failed = threading.Event()

    def work(i: int) -> int:
        if i == 1 and workers > 1:
            assert failed.wait(SECONDS)  # item 2 fails before
        if i in (1, 2):
            failed.set()
            raise ValueError(f"broken {i}")
        return i

    with limited(workers):
        results = mapped(work, range(100))
        assert next(results) == 0
        with pytest.raises(ValueError, match="broken 1"):
            next(results)
        assert [*results] == []


def at_once(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of two items, which may take 100 bytes together, run at once.

    The first goes on when the second has started, or when that has to wait.
    """
    monkeypatch.setattr(threads, "AT_ONCE_BYTES", 100)
    decided = threading.Event()
    running: set[int] = set()
    most = 0

    def waited(*arguments: Any, **options: Any) -> Any:
        decided.set()
        return wait_for(*arguments, **options)

    def work(i: int) -> None:
        nonlocal most
        running.add(i)
        most = max(most, len(running))
        if i:
            decided.set()
        assert decided.wait(SECONDS)
        running.remove(i)

    monkeypatch.setattr(threads, "wait", waited)
    with limited(2):
        assert len(list(mapped(work, range(2), sizes.__getitem__))) == 2
    return most


def test_items_that_take_much_memory_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where two large items are in memory together, or one that is larger than all of it never comes."""
    assert at_once([60, 40], monkeypatch) == 2
    assert at_once([60, 41], monkeypatch) == 1
    assert at_once([1000, 1], monkeypatch) == 1
    assert at_once([1, 1000], monkeypatch) == 1
    assert at_once([1000, 1000], monkeypatch) == 1


WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


def test_what_holds_for_the_caller_holds_for_its_threads() -> None:
    """Fails where a worker forgets the temporary folder, or the limit; what it sets itself stays with it."""

    def work(_: int) -> tuple[str, int]:
        found = WHO.get(), limit()
        WHO.set("a worker")
        return found

    token = WHO.set("the caller")
    try:
        with limited(2):
            assert set(mapped(work, range(10))) == {("the caller", 2)}
            assert WHO.get() == "the caller"
            assert list(prefetched(work(i) for i in range(2))) == [("the caller", 2), ("a worker", 2)]
            assert WHO.get() == "the caller"
    finally:
        WHO.reset(token)


def test_who_stops_early_does_not_wait_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where items that nobody asked for are worked on nevertheless, or threads go on after the end.

    All but the first wait until the threads are told to end: by then those that had not begun have to be dropped.
    """
    gate = threading.Event()
    begun: list[int] = []

    class Told(ThreadPoolExecutor):
        def shutdown(self, *arguments: Any, **options: Any) -> None:
            gate.set()
            super().shutdown(*arguments, **options)

    def work(i: int) -> int:
        begun.append(i)
        assert i == 0 or gate.wait(SECONDS)
        return i

    monkeypatch.setattr(threads, "ThreadPoolExecutor", Told)
    before = set(threading.enumerate())
    with limited(2):
        results = mapped(work, range(100))
        assert next(results) == 0
        results.close()  # type: ignore[attr-defined]
    assert set(begun) <= {0, 1, 2}
    assert set(threading.enumerate()) <= before


# limits


def test_limits_end_with_their_context() -> None:
    """Fails where a limit is forgotten within another one, or outlives an error."""
    assert limit() == 0
    with pytest.raises(ValueError, match="broken"), limited(3):
        assert limit() == 3
        with limited(1):
            assert limit() == 1
        assert limit() == 3
        raise ValueError("broken")
    assert limit() == 0


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a container with two cores of a large machine starts a thread for every core there is."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1
