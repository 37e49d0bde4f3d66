"""What the teacher gives for samples: computed once where they come back as they are, in memory or in files.

A sample's targets can be kept where they are its own: each tensor has the samples along its first axis, and a sample
gets the same values whatever others are in its batch. That is tried on one batch, in its order and in the reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxprune.data.samples import Samples
from onnxprune.errors import RunError
from onnxprune.numerics.arrays import Array, Ints
from onnxprune.process.spill import Spilled, spill_folder
from onnxprune.recovery.augment import Augment, Feeds

# What the teacher gives on a batch, and on which samples.
Teach = Callable[[Feeds, Samples], dict[str, Array]]
# Beyond this the teacher is asked again: files of that size cost more than they save.
_FILE_BYTES = 16 << 30
# The same sample in another place of a batch: rounding of other kernels.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-5


@dataclass(eq=False)
class Lessons:
    """Feeds of some samples with the teacher's targets for them.

    teach: the teacher. augment: changes the feeds first; where it changes nothing of these samples, each is taught
    once. memory: bytes of targets that stay in memory; the rest lies in files, of which there are none outside of
    `spill.spilling`. taught: how many samples the teacher was asked about so far.
    """

    teach: Teach
    samples: Samples
    augment: Augment
    memory: int
    taught: int = 0
    _kept: dict[int, dict[str, Array] | Spilled] = field(default_factory=dict)
    _forms: dict[str, tuple[np.dtype[np.generic], tuple[int, ...]]] = field(default_factory=dict)
    _bytes: int = 0
    _keeps: bool | None = None

    def of(self, own: Ints, rng: np.random.Generator) -> tuple[Feeds, Mapping[str, Array]]:
        """(feeds, targets) of the samples of these numbers; rng: what `augment` draws from."""
        taken = self.samples.take(own)
        plain = taken.slice(0, len(taken))
        feeds = self.augment(plain, rng)
        if not _same(plain, feeds):
            return feeds, self._asked(feeds, taken)
        if all(int(i) in self._kept for i in own):
            return feeds, self._joined(own)
        targets = self._asked(feeds, taken)
        if self._keeps is None:
            self._keeps = self._own_of_each(targets, taken)
        if self._keeps:
            self._keep(own, targets)
        return feeds, targets

    def _asked(self, feeds: Feeds, taken: Samples) -> dict[str, Array]:
        self.taught += len(taken)
        return self.teach(feeds, taken)

    def _own_of_each(self, targets: Mapping[str, Array], taken: Samples) -> bool:
        """Whether the targets of a sample do not depend on its batch, and lie along the first axis."""
        count = len(taken)
        if count < 2 or any(t.ndim < 1 or len(t) != count for t in targets.values()):
            return False
        size = sum(t.nbytes for t in targets.values()) // count * len(self.samples)
        if size > self.memory + (_FILE_BYTES if spill_folder() is not None else 0):
            return False
        reverse = taken.take(np.arange(count)[::-1])
        again = self._asked(reverse.slice(0, count), reverse)
        return all(t.shape == again[k].shape and _close(t, again[k][::-1]) for k, t in targets.items())

    def _keep(self, own: Ints, targets: Mapping[str, Array]) -> None:
        self._forms = self._forms or {k: (t.dtype, t.shape[1:]) for k, t in targets.items()}
        if {k: (t.dtype, t.shape[1:]) for k, t in targets.items()} != self._forms:
            self._keeps = False
            return
        for row, i in enumerate(own):
            values = {k: np.array(t[row]) for k, t in targets.items()}
            self._bytes += sum(v.nbytes for v in values.values())
            try:
                self._kept[int(i)] = values if self._bytes <= self.memory else _in_file(values)
            except RunError:  # no room for the file: the teacher is asked again
                self._keeps = False
                return

    def _joined(self, own: Ints) -> dict[str, Array]:
        rows = [self._read(self._kept[int(i)]) for i in own]
        return {k: np.stack([r[k] for r in rows]) for k in self._forms}

    def _read(self, kept: dict[str, Array] | Spilled) -> Mapping[str, Array]:
        if not isinstance(kept, Spilled):
            return kept
        flat, start, values = kept.load(), 0, {}
        for k, (dtype, shape) in self._forms.items():
            stop = start + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            values[k] = flat[start:stop].view(dtype).reshape(shape)
            start = stop
        return values


def _in_file(values: Mapping[str, Array]) -> Spilled:
    flat = [np.ascontiguousarray(v).reshape(-1).view(np.uint8) for v in values.values()]
    return Spilled(np.concatenate(flat), briefly=True)


def _same(before: Feeds, after: Feeds) -> bool:
    return before.keys() == after.keys() and all(after[k] is x for k, x in before.items())


def _close(a: Array, b: Array) -> bool:
    """Whether they agree up to rounding; infinite entries are those that do not count."""
    wide = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(wide[0])
    if not np.array_equal(finite, np.isfinite(wide[1])):
        return False
    scale = float(np.abs(wide[0][finite]).max(initial=0.0))
    return bool(np.allclose(wide[0][finite], wide[1][finite], rtol=_RELATIVE, atol=_ABSOLUTE * scale))
