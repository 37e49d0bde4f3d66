"""How long each stage takes, and what it has to say on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(eq=False)
class Clock:
    """Wall-clock seconds per stage; `watch` hears of each stage when it starts, and how far it is.

    hear: is told of each warning when it arises, as a run that fails later has no report; `warnings` keeps them.
    """

    watch: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)
    current: str = ""
    hear: Callable[[str], None] = lambda _: None
    warnings: list[str] = field(default_factory=list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time one stage."""
        self.current = name
        self.watch(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def warn(self, texts: Iterable[str]) -> None:
        """Something that the user should know at once, and find in the report."""
        for text in texts:
            self.warnings.append(text)
            self.hear(text)

    def progress(self, done: int, count: int) -> None:
        """So many of the present stage's parts are done."""
        if count > 1:
            self.watch(f"{self.current} {done}/{count}")
