"""How long each stage takes, and what it has to say on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from onnxprune.report.progress import Progress


@dataclass(eq=False)
class Clock:
    """Wall-clock seconds per stage; `watch` hears of each stage when it starts, and how far it is.

    hear: is told of each warning when it arises, as a run that fails later has no report; `warnings` keeps them. stop:
    whether the caller wants a stage that could go on for long to end with what it has.
    """

    watch: Callable[[Progress], None]
    seconds: dict[str, float] = field(default_factory=dict)
    current: str = ""
    hear: Callable[[str], None] = lambda _: None
    stop: Callable[[], bool] = lambda: False
    warnings: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    stage_began: float = field(default_factory=time.perf_counter)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time one stage."""
        self.begin(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def begin(self, name: str) -> None:
        """Say that a stage begins; of one that is no part of the effort, nothing more."""
        self.current, self.stage_began = name, time.perf_counter()
        self.watch(Progress(name, elapsed=self.stage_began - self.began))

    def warn(self, texts: Iterable[str]) -> None:
        """Something that the user should know at once, and find in the report."""
        for text in texts:
            self.warnings.append(text)
            self.hear(text)

    def progress(self, done: int, count: int) -> None:
        """So many of the present stage's parts are done."""
        if count > 1:
            self.judged(done, count)

    def read(self, done: int, count: int) -> None:
        """So many samples are read, of so many; count: 0 where nobody can tell."""
        self.watch(Progress(self.current, done, count, elapsed=time.perf_counter() - self.began))

    def judged(self, done: int, count: int, before: float | None = None, error: float | None = None) -> None:
        """The same, and what the outputs' error was at its start, and is by the best state so far."""
        now = time.perf_counter()
        if not done:  # what came before was no part
            self.stage_began = now
        left = (now - self.stage_began) / done * (count - done) if done else None
        self.watch(Progress(self.current, done, count, error, before, now - self.began, left))
