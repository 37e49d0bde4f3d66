"""What may be given as data: its types, what a run wants of it, and what every source hands over."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from onnxprune.data.given import Given
from onnxprune.data.inputs import InputSpec
from onnxprune.numerics.arrays import Array, Ints


@dataclass(frozen=True)
class Wanted:
    """How many samples a run takes at most, so that no source reads more than it has to.

    most: None for all. seed: of the choice where a source knows how many there are before it reads them; None for the
    first ones. told: hears how many samples have been read, and of how many, 0 where nobody can tell.
    """

    most: int | None = None
    seed: int | None = None
    told: Callable[[int, int], None] = field(default=lambda *_: None, compare=False)

    def chosen(self, count: int) -> Ints:
        """The indices, ascending, of the samples to read among so many."""
        if self.most is None or self.most >= count:
            return np.arange(count)
        if self.seed is None:
            return np.arange(self.most)
        return np.sort(np.random.default_rng(self.seed).permutation(count)[: self.most])


ALL = Wanted()


@runtime_checkable
class Source(Protocol):
    """Data that are made for the model as they are read, such as images and texts."""

    @property
    def path(self) -> str | os.PathLike[str]:
        """The file or folder that is read."""

    def given(self, specs: tuple[InputSpec, ...], wanted: Wanted) -> Given:
        """What it holds for a model with these inputs. Raises CalibrationError."""


@runtime_checkable
class BatchReader(Protocol):
    """What gives one batch after the other, and None in the end: onnxruntime's CalibrationDataReader."""

    def get_next(self) -> Mapping[str, ArrayLike] | None:
        """The next batch."""


@runtime_checkable
class NumpyIterable(Protocol):
    """What iterates over arrays of numpy: a tf.data set."""

    def as_numpy_iterator(self) -> Iterator[object]:
        """The batches, or samples, one after the other."""


@runtime_checkable
class Indexed(Protocol):
    """What gives samples by their index: a data set of torch."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int, /) -> Batch:
        """One sample."""


# One batch, or one sample: arrays by input name, one array, or several in the order of the inputs, labels behind them.
Batch = Mapping[str, ArrayLike] | ArrayLike
Batches = Iterable[Batch] | Callable[[], Iterable[Batch]] | BatchReader | NumpyIterable | Indexed
Data = str | os.PathLike[str] | Mapping[str, ArrayLike] | Array | Source | Batches
