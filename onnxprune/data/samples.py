"""Samples of calibration and evaluation data: checked arrays, handed out as the runs of a model read them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune.data.arrangement import Arrangement, Stored
from onnxprune.data.array_files import chunks
from onnxprune.data.inputs import InputSpec, entries_of
from onnxprune.data.ragged import Ragged
from onnxprune.errors import UsageError
from onnxprune.numerics.arrays import Array, Ints
from onnxprune.regular_files import shown

# In the class below `slice` is a method.
_Range = slice
# A batch that was asked for is held in memory.
_BATCH_BYTES = 4 << 30
# What `Samples` is made with where nothing but the declarations says how samples lie.
_AS_DECLARED = Arrangement({})


@dataclass(frozen=True, eq=False)
class Samples:
    """Checked data: arrays per input (and per extra key), samples first for inputs that have samples.

    origin: what to say of it in the report; sha256: over the values that were used. fixed: the inputs that are no
    tensors, the same for every sample. arrangement: how the samples lie in what the model reads; without one, as the
    inputs are declared. notes: what to say of how the data were read. sequence: where samples are steps in time, which
    one each belongs to, in the order of the steps. met: the inputs whose values a model has made on the way, which no
    checksum is of: they differ in their last digits between machines. prepared, offered: as in `given.Given`.
    """

    specs: tuple[InputSpec, ...]
    arrays: Mapping[str, Stored]
    extras: Mapping[str, Array] = field(default_factory=dict)
    origin: str = ""
    synthetic: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)
    arrangement: Arrangement = _AS_DECLARED
    notes: tuple[str, ...] = ()
    sequence: Ints | None = None
    met: frozenset[str] = frozenset()
    prepared: str = ""
    offered: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.arrangement is _AS_DECLARED:
            object.__setattr__(self, "arrangement", Arrangement.declared(self.specs))

    def __len__(self) -> int:
        return next((len(self.arrays[k]) for k in self.arrangement.axes), 1)

    @property
    def sampled(self) -> tuple[InputSpec, ...]:
        """The inputs that have a value of their own for each sample."""
        return tuple(s for s in self.specs if s.name in self.arrangement.axes)

    @property
    def per_run(self) -> int | None:
        """Samples that every run takes; None for any number."""
        return self.arrangement.per_run

    @property
    def fixed_batch(self) -> bool:
        """Whether every run takes the same number of samples."""
        return self.per_run is not None

    @property
    def ragged(self) -> bool:
        """Whether samples differ in size."""
        return any(isinstance(a, Ragged) for a in self.arrays.values())

    def run_size(self, wanted: int) -> int:
        """Samples that a run takes where `wanted` would be best."""
        return self.per_run or wanted

    def whole_runs(self, count: int) -> int:
        """So many samples, or a few less or one run, that runs of whole batches take all of them."""
        per_run = self.per_run or 1
        return max(count - count % per_run, per_run)

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Feeds of at most `size` samples (or of as many as a run takes), in order."""
        size = self.run_size(size)
        for start in range(0, len(self), size):
            yield self.slice(start, start + size)

    def slice(self, start: int, stop: int, names: Collection[str] | None = None) -> dict[str, Array]:
        """Feeds of samples start..stop; names: of these inputs alone."""
        feeds = {s.name: self._fed(s.name, slice(start, stop)) for s in self.specs if names is None or s.name in names}
        return feeds | {k: v for k, v in self.fixed.items() if names is None or k in names}

    def _fed(self, name: str, part: _Range) -> Array:
        a = self.arrays[name]
        if name in self.arrangement.axes:
            return self.arrangement.fed(name, a[part])
        return a if isinstance(a, np.ndarray) else a[:]

    def count(self, feeds: Mapping[str, Array]) -> int:
        """The number of samples in the feeds of one batch."""
        return self.arrangement.samples_in({k: v.shape for k, v in feeds.items() if isinstance(v, np.ndarray)})

    def take(self, indices: Sequence[int] | Ints) -> Samples:
        """A subset of the samples."""
        chosen = np.asarray(indices, np.int64)
        extras = {k: v[chosen] for k, v in self.extras.items() if v.ndim and len(v) == len(self)}
        sequence = None if self.sequence is None else self.sequence[chosen]
        return replace(self, arrays=self._picked(chosen), extras=extras, sequence=sequence)

    def _picked(self, indices: Ints | _Range) -> dict[str, Stored]:
        axes = self.arrangement.axes
        return {k: _picked(a, indices) if k in axes else a for k, a in self.arrays.items()}

    def repeated(self, count: int) -> dict[str, Array]:
        """Feeds of so many samples, from the first on and over again. Raises UsageError where they take too much."""
        size = sum(math.prod(self.arrays[s.name].shape[1:]) * s.dtype.itemsize for s in self.sampled)
        if size * count > _BATCH_BYTES:
            raise UsageError(f"a batch of {count} would take {shown(size * count)} of memory; ask for a smaller one")
        return self.take(np.arange(count) % len(self)).slice(0, count)

    def part(self, start: int, stop: int) -> Samples:
        """The samples start..stop, without extra keys; what lies in a file stays there."""
        sequence = None if self.sequence is None else self.sequence[start:stop]
        return replace(self, arrays=self._picked(slice(start, stop)), extras={}, sequence=sequence)

    def example(self) -> dict[str, Array]:
        """A small batch: two samples where a run takes any number, else a run."""
        if self.per_run is None and len(self) == 1 and self.sampled:
            return self.take([0, 0]).slice(0, 2)
        return self.slice(0, self.run_size(2))

    def doubled(self) -> dict[str, Array] | None:
        """The example with the first sample twice, where runs take one for another reason than a fixed size of an axis.

        None where there is no such axis. On an axis of size 1 nobody can tell what is repeated along it.
        """
        axes = {s.name: a for s in self.sampled if (a := self.arrangement.axes[s.name]) is not None}
        free = [s.name for s in self.sampled if s.name in axes and s.dims[axes[s.name]] is None]
        if self.per_run != 1 or not free:
            return None
        return {k: np.repeat(v, 2, axis=axes[k]) if k in free else v for k, v in self.example().items()}

    def sha256(self, *extras: str) -> str:
        """The checksum of names, shapes and values of the inputs, and of these extra keys."""
        digest = hashlib.sha256()
        for name, a in self._hashed(extras):
            # An array without an axis counts as one with a single entry.
            digest.update(f"{name}{a.shape or (1,)}{a.dtype}".encode())
            for part in chunks(a):
                if isinstance(a, Ragged):
                    digest.update(str(part.shape).encode())
                digest.update(part.tobytes() if part.dtype.kind != "O" else repr(part.tolist()).encode())
        return digest.hexdigest()

    def _hashed(self, extras: Sequence[str]) -> Iterator[tuple[str, Stored]]:
        """Inputs, the entries of those that are sequences, and extra keys, by name."""
        yield from sorted((k, a) for k, a in self.arrays.items() if k not in self.met)
        for name, value in sorted(self.fixed.items()):
            yield from ((k, np.asarray(v)) for k, v in entries_of(name, value).items())
        yield from ((name, self.extras[name]) for name in extras)


def _picked(a: Stored, indices: Ints | slice) -> Stored:
    if isinstance(a, np.ndarray):
        picked: Array = a[indices]
        return picked
    return a.at(indices)
