"""Where a run is: what `watch` is told."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.measures.figures import percent


@dataclass(frozen=True)
class Progress:
    """A stage, how far it is, and how good what it has is.

    stage: the word of the stage, such as "recover". done, count: of its parts, or samples that are read; 0 of 0 where
    nobody can tell, and a count of 0 where nobody can tell how many there will be. error:
    that of the outputs on held-out samples by the best state so far, before: the one at the start of the stage, None
    where it was not measured. elapsed: seconds since the run began. left: seconds that the stage will still take if it
    goes on as it did, None where nobody can tell.
    """

    stage: str
    done: int = 0
    count: int = 0
    error: float | None = None
    before: float | None = None
    elapsed: float = 0.0
    left: float | None = None

    @property
    def far(self) -> str:
        """How far it is: "5/16", or "320" of nobody knows how many; empty where that cannot be told."""
        return f"{self.done}/{self.count}" if self.count else str(self.done) if self.done else ""

    @property
    def errors(self) -> str:
        """The errors in words: "3.81% → 2.60%"; empty where none was measured."""
        if self.error is None:
            return ""
        if self.before is None or self.before == self.error:
            return percent(self.error)
        return f"{percent(self.before)} → {percent(self.error)}"

    def __str__(self) -> str:
        """All of it in words, as "recover 5/16, 3.81% → 2.60%, 1:10 left"."""
        far = f" {self.far}" if self.far else ""
        left = f"{clock(self.left)} left" if self.left is not None and self.done < self.count else ""
        return ", ".join(filter(None, (self.stage + far, self.errors, left)))


def clock(seconds: float) -> str:
    """Seconds as on a clock: 0:07, 1:10, 2:03:45."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
