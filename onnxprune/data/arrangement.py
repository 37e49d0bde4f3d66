"""How samples lie in the inputs of a model: the one description that all readers of samples go by.

Samples are stored with the samples first, whatever the model wants; here is what turns some of them into what one run
is fed, and tells how many samples a run holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.data.array_files import Rows
from onnxprune.data.inputs import InputSpec
from onnxprune.data.ragged import Ragged
from onnxprune.numerics.arrays import Array

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Arrangement:
    """Which axis of which input counts samples, and how many samples a run takes.

    axes: of each input that has a value of its own for each sample, the axis that counts samples in what the model
    reads; None where the model reads one sample alone, without such an axis. Inputs that are not named are whole: the
    same in every run. per_run: samples that every run takes; None for any number.
    """

    axes: Mapping[str, int | None]
    per_run: int | None = None

    @classmethod
    def declared(cls, specs: Sequence[InputSpec]) -> Arrangement:
        """As the declarations say, without a look at data: the axis that has the symbol of the first one, or axis 0."""
        symbol = next((s.symbol(0) for s in specs if s.batched and s.symbol(0)), "")
        axes: dict[str, int | None] = {}
        for s in specs:
            own = () if s.whole else s.axes_of(symbol)
            if len(own) == 1:
                axes[s.name] = own[0]
            elif s.batched:
                axes[s.name] = 0
        single = any(s.name in axes and axes[s.name] == 0 and s.dims[0] == 1 for s in specs)
        return cls(axes, 1 if single else None)

    def fed(self, name: str, rows: Array) -> Array:
        """Some samples of one input, samples first, as a run reads them."""
        axis = self.axes[name]
        if axis is None:
            return np.asarray(rows[0])
        return np.ascontiguousarray(np.moveaxis(rows, 0, axis)) if axis else rows

    def first(self, name: str, a: Array | Rows) -> Array | Rows:
        """An input as the model reads it, with the samples first; as it is where it has none."""
        axis = self.axes.get(name, 0)
        if not axis:
            return a[None] if axis is None and isinstance(a, np.ndarray) else a
        return a.moved(axis) if isinstance(a, Rows) else np.moveaxis(a, axis, 0)

    def samples_in(self, shapes: Mapping[str, Shape]) -> int:
        """Samples in inputs of these shapes, as a run reads them; 1 where none counts any."""
        return max(next((shapes[k][a] for k, a in self.axes.items() if a is not None and shapes.get(k)), 1), 1)

    @property
    def turned(self) -> dict[str, int]:
        """The inputs in which the samples lie along another axis than the first."""
        return {k: a for k, a in self.axes.items() if a}


Stored = Array | Rows | Ragged
