"""Data as they were given, file by file, and put together to samples once it is known how these lie in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.data.arrangement import Arrangement, Stored
from onnxprune.data.array_files import Rows, entries
from onnxprune.data.inputs import InputSpec
from onnxprune.data.ragged import Ragged
from onnxprune.data.samples import Samples
from onnxprune.data.spool import joined
from onnxprune.errors import CalibrationError
from onnxprune.numerics.arrays import Array


@dataclass(frozen=True, eq=False)
class Part:
    """What one file holds, checked: inputs as the model reads them or stacked, and other keys. where: its path."""

    inputs: Mapping[str, Array | Rows]
    extras: Mapping[str, Array]
    where: str


@dataclass(frozen=True)
class Lying:
    """How the samples of one input lie in a file.

    axis: of what the model reads, None where it has none that counts samples. stacked: one entry for each run stands in
    front, as the model has no axis for that.
    """

    axis: int | None
    stacked: bool = False


@dataclass(frozen=True, eq=False)
class Reading:
    """One way to read data.

    lying: of the inputs that have samples; the others are whole. per_run: samples of a run, None for any number.
    doubtful: whether a run has to show that samples do not mix so. note: what to say of it.
    """

    lying: Mapping[str, Lying]
    per_run: int | None = None
    doubtful: bool = False
    note: str = ""

    @property
    def arrangement(self) -> Arrangement:
        """How the samples lie in what the model reads."""
        return Arrangement({k: x.axis for k, x in self.lying.items()}, self.per_run)


@dataclass(frozen=True, eq=False)
class Given:
    """Checked data before it is known which axes count samples.

    notes: what to say of how they were read. prepared: what was done to files that hold no arrays, in words. offered:
    extra keys that come with the data, asked for or not, such as the labels of a folder of images.
    """

    specs: tuple[InputSpec, ...]
    parts: tuple[Part, ...]
    origin: str
    notes: tuple[str, ...] = ()
    prepared: str = ""
    offered: frozenset[str] = frozenset()

    def read(self, reading: Reading) -> Samples:
        """The samples. Raises CalibrationError where the files do not fit each other."""
        arrangement = reading.arrangement
        arrays: dict[str, Stored] = {}
        for s in self.specs:
            own = reading.lying.get(s.name)
            pieces = [p.inputs[s.name] for p in self.parts]
            if own is None:
                arrays[s.name] = _read(pieces[0])
            else:
                arrays[s.name] = _joined([_samples_first(x, own, arrangement, s.name) for x in pieces], self.origin)
        specs = tuple(s if s.name in reading.lying or not s.batched else replace(s, whole=True) for s in self.specs)
        if any(isinstance(a, Ragged) for a in arrays.values()):
            arrangement = replace(arrangement, per_run=1)
            arrays = {
                k: _ragged(a) if k in reading.lying and not isinstance(a, Ragged) else a for k, a in arrays.items()
            }
        notes = [*self.notes, *filter(None, [reading.note])]
        counts = self.counts(reading)
        samples = Samples(specs, arrays, self._extras(counts), self.origin, arrangement=arrangement)
        samples = replace(samples, prepared=self.prepared, offered=self.offered)
        per_run = arrangement.per_run or 1
        rest = len(samples) % per_run
        if rest:
            notes.append(f"{rest} of {len(samples)} samples are left out: the model takes {per_run} at a time")
            samples = samples.take(range(len(samples) - rest))
        return replace(samples, notes=tuple(dict.fromkeys(notes)))

    def is_whole(self, name: str) -> bool:
        """Whether all files hold the same of an input."""
        first, *others = (p.inputs[name] for p in self.parts)
        return all(x.shape == first.shape and np.array_equal(_read(x), _read(first)) for x in others)

    def counts(self, reading: Reading) -> list[int]:
        """The samples of each file."""
        lying, arrangement = reading.lying, reading.arrangement
        sizes = ((len(_samples_first(p.inputs[k], x, arrangement, k)) for k, x in lying.items()) for p in self.parts)
        return [next(own, 1) for own in sizes]

    def _extras(self, counts: Sequence[int]) -> dict[str, Array]:
        if len(self.parts) == 1:
            return dict(self.parts[0].extras)
        extras: dict[str, Array] = {}
        for k in self.parts[0].extras:
            others = [np.atleast_1d(x.extras[k]) for x in self.parts if k in x.extras]
            if len({(o.shape[1:], o.dtype.kind) for o in others}) > 1:
                raise CalibrationError(
                    f"{self.origin}: the files hold {k!r} in different shapes or types; make them equal"
                )
            if len(others) == len(self.parts):
                extras[k] = np.concatenate(others)
                if len(extras[k]) == sum(counts) and [len(o) for o in others] != list(counts):
                    raise CalibrationError(
                        f"{self.origin}: some files hold fewer or more {k!r} than samples; make them equal"
                    )
        return extras


def _read(a: Array | Rows) -> Array:
    return a if isinstance(a, np.ndarray) else a[:]


def _samples_first(a: Array | Rows, lying: Lying, arrangement: Arrangement, name: str) -> Array | Rows:
    """The samples of one file, in front."""
    if not lying.stacked:
        return arrangement.first(name, a)
    if lying.axis is None:
        return a
    runs = np.moveaxis(a[:], lying.axis + 1, 1)
    stacked: Array = runs.reshape(-1, *runs.shape[2:])
    return stacked


def _joined(pieces: Sequence[Array | Rows], where: str) -> Stored:
    """The samples of all files, one after the other."""
    if len({p.shape[1:] for p in pieces}) == 1:
        return joined(pieces, where)
    return Ragged(tuple(x for p in pieces for x in entries(p)))


def _ragged(a: Stored) -> Ragged:
    return a if isinstance(a, Ragged) else Ragged(tuple(entries(a)))
