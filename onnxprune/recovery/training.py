"""A student in training: steps over batches in random order, at a rate that rises and falls once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from onnxprune.data.samples import Samples
from onnxprune.numerics.adam import one_cycle
from onnxprune.numerics.arrays import Array
from onnxprune.recovery.augment import Feeds
from onnxprune.recovery.descent import Descent
from onnxprune.recovery.lessons import Lessons
from onnxprune.recovery.student import Student
from onnxprune.threads import prefetched

# A training step holds every activation of a batch at once, and many of their gradients.
_PASS_BYTES = 1 << 30


class Stopped(Exception):  # no error: somebody asked for the end
    """The caller wants no further step."""


class NotFinite(Exception):  # no error: training stops there
    """The loss or a gradient is no number."""


@dataclass(frozen=True, eq=False)
class _Part:
    """A part of a batch, as large as memory allows. ends: whether the batch ends with it."""

    feeds: Feeds
    targets: Mapping[str, Array]
    ends: bool


@dataclass(frozen=True, eq=False)
class Training:
    """How a student learns.

    batch: samples per step, at most. seed: of the order, and of what the augmentation of the lessons draws. stop: asked
    between steps; where it says so, training ends there.
    """

    student: Student
    lessons: Lessons
    descent: Descent
    batch: int
    seed: int
    stop: Callable[[], bool]

    @property
    def per_epoch(self) -> int:
        """Steps that take all samples once, without those that fill no batch."""
        samples = self.lessons.samples
        return len(samples) // batch_of(samples, self.batch)

    def epochs(self, count: int, rate: float) -> Generator[int, None, None]:
        """Train one epoch after the other and tell its number; rate: the highest. Raises NotFinite and Stopped."""
        with closing(self.steps(count * self.per_epoch, rate)) as steps:
            for step in steps:
                if step % self.per_epoch == 0:
                    yield step // self.per_epoch

    def steps(self, count: int, rate: float) -> Generator[int, None, None]:
        """Take one step after the other and tell its number. Raises NotFinite and Stopped."""
        rng, step = np.random.default_rng(self.seed), 0
        self.descent.restart()
        while step < count:
            total: dict[str, Array] = {}
            for part in prefetched(self._parts(min(count - step, self.per_epoch), rng)):
                if self.stop():
                    raise Stopped
                loss, gradients = self.student.step(part.feeds, part.targets)
                total = {k: total[k] + g for k, g in gradients.items()} if total else gradients
                if not np.isfinite(loss):
                    raise NotFinite("its loss is not finite")
                if part.ends:
                    if not all(np.isfinite(g).all() for g in total.values()):
                        raise NotFinite("a gradient of its loss is not finite")
                    self.descent.step(total, rate * one_cycle(step, count))
                    total, step = {}, step + 1
                    yield step

    def _parts(self, steps: int, rng: np.random.Generator) -> Iterator[_Part]:
        samples = self.lessons.samples
        batch, order = batch_of(samples, self.batch), rng.permutation(len(samples))
        size = part_size(self.student, batch, samples)
        for step in range(steps):
            own = order[step * batch : (step + 1) * batch]
            for start in range(0, batch, size):
                feeds, targets = self.lessons.of(own[start : start + size], rng)
                yield _Part(feeds, targets, start + size >= batch)


def batch_of(samples: Samples, wanted: int) -> int:
    """Samples per step where `wanted` would be best."""
    return samples.whole_runs(min(wanted, len(samples)))


def part_size(student: Student, batch: int, samples: Samples) -> int:
    """Samples of a batch that memory allows at once."""
    return samples.run_size(int(np.clip(_PASS_BYTES // max(student.per_sample, 1), 1, batch)))
