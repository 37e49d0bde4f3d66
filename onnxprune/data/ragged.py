"""Samples of different sizes: one array each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onnxprune.numerics.arrays import Array, Ints


class Entry(Protocol):
    """One sample: an array, or what reads one from its file whenever it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the entries."""

    @property
    def ndim(self) -> int:
        """The number of axes."""

    @property
    def size(self) -> int:
        """The number of entries."""

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""

    def __array__(self) -> Array: ...


@dataclass(frozen=True, eq=False)
class Ragged:
    """Samples that have as many axes, but not the same sizes along all of them. They are run one at a time."""

    entries: tuple[Entry, ...]

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the entries."""
        return self.entries[0].dtype if self.entries else np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """The samples and the sizes of one; -1 where these differ."""
        sizes = zip(*(e.shape for e in self.entries), strict=True)
        return (len(self), *(own[0] if len(set(own)) == 1 else -1 for own in sizes))

    @property
    def ndim(self) -> int:
        """The number of axes, that of the samples among them."""
        return 1 + (self.entries[0].ndim if self.entries else 0)

    @property
    def size(self) -> int:
        """The number of entries of all samples."""
        return sum(e.size for e in self.entries)

    @property
    def nbytes(self) -> int:
        """What all samples take."""
        return sum(e.nbytes for e in self.entries)

    def __getitem__(self, part: slice) -> Array:
        """Some samples, which have to be alike: one, or neighbours of one size."""
        return np.stack([np.asarray(e) for e in self.entries[part]])

    def __iter__(self) -> Iterator[Array]:
        """The samples one by one, each as an array of one."""
        return (np.asarray(e)[None] for e in self.entries)

    def at(self, indices: Sequence[int] | Ints | slice) -> Ragged:
        """A subset of the samples."""
        if isinstance(indices, slice):
            return Ragged(self.entries[indices])
        return Ragged(tuple(self.entries[int(i)] for i in indices))
