"""Where the samples lie in a tensor that a model gives for a batch, as two batches of other sizes show it.

Nothing says that axis 0 counts samples: CTC models give (steps, samples, classes), and rows of steps are folded into
the batch in either order. What is compared, selected and judged by has the samples first, so that a mean over them is
one per position. Of two batches the sizes tell along which axis the samples lie; where that holds several rows for
each, one sample of two is exchanged for the other, and the rows that change are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.data.arrangement import Stored
from onnxprune.data.samples import Samples
from onnxprune.numerics.arrays import Array, Doubles, is_float

# The share of a change that lies in the rows of the sample that was exchanged: dynamic quantization moves all others a
# little, a mean over the batch as much.
_OWN = 0.9
# Where it has to be shown that an axis counts samples, others change by no more than this share.
_LEAK = 1e-3
# Samples among which one is sought that differs from the first.
_LOOKED_AT = 64
NO_AXIS = "no axis of it follows the samples"
SEVERAL_AXES = "several of its axes follow the samples, so that no entry belongs to one"
NO_ROWS = "its rows do not follow single samples"


@dataclass(frozen=True)
class Layout:
    """How the samples lie in an output.

    axis: along which the samples lie, None where each run gives those of one sample alone, without such an axis.

    rows: entries along it for each sample. strided: whether those of one sample lie apart, by the number of samples.
    why: why no axis can be told, "" where it can.
    """

    axis: int | None = 0
    rows: int = 1
    strided: bool = False
    why: str = ""

    def first(self, y: Array, count: int) -> Array:
        """The tensor of a batch of `count` samples with the samples first; as it is where it does not fit."""
        if self.why or (self.axis is not None and (y.ndim <= self.axis or y.shape[self.axis] != count * self.rows)):
            return y
        if self.axis is None:
            return np.expand_dims(y, 0)
        moved: Array = np.moveaxis(y, self.axis, 0)
        if self.rows == 1:
            return moved
        if self.strided:
            moved = moved.reshape(self.rows, count, *moved.shape[1:])
            return np.swapaxes(moved, 0, 1)
        return moved.reshape(count, self.rows, *moved.shape[1:])

    def back(self, y: Array) -> Array:
        """Samples that lie first, moved back to where the model has them: the inverse of `first`."""
        if self.why:
            return y
        if self.axis is None:
            return np.squeeze(y, 0)
        if self.rows > 1:
            y = y.swapaxes(0, 1) if self.strided else y
            y = y.reshape(-1, *y.shape[2:])
        moved: Array = np.moveaxis(y, 0, self.axis)
        return moved


Layouts = Mapping[str, Layout]


def samples_first(outputs: Mapping[str, Array], count: int, layouts: Layouts) -> Mapping[str, Array]:
    """The outputs of a batch of `count` samples with the samples first; those without a layout are so already."""
    if not layouts:
        return outputs
    return {
        k: layouts[k].first(v, count) if k in layouts and isinstance(v, np.ndarray) else v for k, v in outputs.items()
    }


def of_single_samples(outputs: Mapping[str, Array], *, every: bool = False) -> dict[str, Layout]:
    """Layouts of a model that takes one sample at a time: what has an axis of size 1 in front has the samples there.

    every: unless no input has such an axis, so that no output has.
    """
    arrays = {k: v for k, v in outputs.items() if isinstance(v, np.ndarray) and (v.ndim or every)}
    return {k: Layout(None) for k, v in arrays.items() if every or v.shape[0] != 1}


def of_fixed_runs(run: Callable[[Sequence[int]], Mapping[str, Array]], count: int, other: int) -> dict[str, Layout]:
    """The layouts, where they are not plain, of a model that takes `count` samples in every run, no more and no less.

    run: gives the outputs for these samples. other: one that is not like sample 0.
    """
    whole = run((0,) * count)
    first, last = _exchanged(run, count, other)
    layouts = {k: _of_run(y, (first[k], last[k]), count) for k, y in whole.items()}
    return {k: x for k, x in layouts.items() if x != Layout()}


def _of_run(y: Array, exchanged: tuple[Array, Array], count: int) -> Layout:
    """The layout of one output, given it with another sample in the first place, and in the last."""
    if not _comparable(y):
        return Layout()
    if any(e.shape != y.shape for e in exchanged):
        return Layout(why=NO_ROWS)
    axes = [a for a in range(y.ndim) if y.shape[a] and y.shape[a] % count == 0]
    for axis in axes:
        rows = y.shape[axis] // count
        changes = [_changes(y, e, axis) for e in exchanged]
        total = float(sum(c.sum() for c in changes))
        if total == 0.0:
            return Layout(axis, rows)
        side_by_side = float(changes[0][:rows].sum() + changes[1][-rows:].sum())
        apart = float(changes[0][0::count].sum() + changes[1][count - 1 :: count].sum())
        if max(side_by_side, apart) >= _OWN * total:
            return Layout(axis, rows, strided=apart > side_by_side)
    return Layout(why=NO_ROWS if axes else NO_AXIS)


def separate(
    two: Mapping[str, Array],
    without_first: Mapping[str, Array],
    without_second: Mapping[str, Array],
    three: Mapping[str, Array],
) -> bool:
    """Whether all outputs have entries of their own for each sample, and some output changes at all.

    two: the outputs for a sample and another one; without_first, without_second: with the other, and with the one,
    twice; three: with the other one more time.
    """
    moved = False
    for k, y in two.items():
        if not _comparable(y):
            continue
        layout = _by_sizes(y, three[k])
        if layout.why:
            return False
        if layout.rows > 1:
            layout = _by_rows(layout, y, (without_first[k], without_second[k]))
        both, one, other = (layout.first(v[k], 2) for v in (two, without_first, without_second))
        if layout.why or one.shape != both.shape or other.shape != both.shape:
            return False
        for exchanged, own in ((one, 0), (other, 1)):
            changes = _changes(both, exchanged, 0)
            if changes[1 - own] > _LEAK * changes[own]:
                return False
            moved = moved or changes[own] > 0.0
    return moved


def own_rows(run: Callable[[Sequence[int]], Mapping[str, Array]], count: int, other: int) -> bool:
    """Whether each sample of a run of `count` has entries of its own in all outputs, and some output changes at all.

    run: gives the outputs for these samples. other: one that is not like sample 0.
    """
    whole = run((0,) * count)
    exchanged = _exchanged(run, count, other)
    moved = False
    for k, y in whole.items():
        if not _comparable(y):
            continue
        first, last = (e[k] for e in exchanged)
        layout = _of_run(y, (first, last), count)
        if layout.why:
            return False
        for new, place in ((first, 0), (last, count - 1)):
            changes = _changes(layout.first(y, count), layout.first(new, count), 0)
            if changes.sum() - changes[place] > _LEAK * changes[place]:
                return False
            moved = moved or changes[place] > 0.0
    return moved


def _exchanged(
    run: Callable[[Sequence[int]], Mapping[str, Array]], count: int, other: int
) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    """The outputs for sample 0, so many times, with another one in the first place, and in the last."""
    return run((other, *(0,) * (count - 1))), run((*(0,) * (count - 1), other))


def other_than_first(samples: Samples) -> int:
    """A sample whose inputs are not those of sample 0; the last one looked at where there is none."""
    last = min(len(samples), _LOOKED_AT) - 1
    for i in range(1, last):
        if any(not _equal(samples.arrays[s.name], i) for s in samples.sampled):
            return i
    return last


def _equal(a: Stored, i: int) -> bool:
    return bool(np.array_equal(a[:1], a[i : i + 1]))


def _comparable(y: Array) -> bool:
    numbers = isinstance(y, np.ndarray) and (is_float(y.dtype) or np.issubdtype(y.dtype, np.number))
    return bool(numbers and y.ndim and y.size)


def found(run: Callable[[Sequence[int]], Mapping[str, Array]], other: int) -> dict[str, Layout]:
    """The layouts of all outputs that are not plain, with the samples along axis 0.

    run: gives the outputs of the model for these samples. other: one that is not like sample 0.
    """
    two, three = run((0, other)), run((0, other, other))
    layouts = {k: _by_sizes(y, three[k]) for k, y in two.items()}
    if any(x.rows > 1 for x in layouts.values()):
        exchanged = run((other, other)), run((0, 0))
        layouts = {
            k: _by_rows(x, two[k], (exchanged[0][k], exchanged[1][k])) if x.rows > 1 else x for k, x in layouts.items()
        }
    return {k: x for k, x in layouts.items() if x != Layout()}


def _by_sizes(two: Array, three: Array) -> Layout:
    """The layout that the sizes with two and with three samples tell."""
    if not (isinstance(two, np.ndarray) and isinstance(three, np.ndarray) and two.ndim == three.ndim > 0):
        return Layout()
    axes = [a for a in range(two.ndim) if two.shape[a] != three.shape[a]]
    if not axes:
        return Layout(why=NO_AXIS)
    if len(axes) > 1:
        return Layout(why=SEVERAL_AXES)
    rows, rest = divmod(two.shape[axes[0]], 2)
    if rest or three.shape[axes[0]] != 3 * rows:
        return Layout(why=NO_AXIS)
    return Layout(axes[0], rows)


def _by_rows(layout: Layout, both: Array, exchanged: tuple[Array, Array]) -> Layout:
    """Which of the rows along the axis are those of one sample: side by side, or apart.

    both: of two samples; exchanged: with the second for the first, and with the first for the second.
    """
    comparable = is_float(both.dtype) or np.issubdtype(both.dtype, np.number) or both.dtype == np.bool_
    if not comparable or any(e.shape != both.shape for e in exchanged):
        return Layout(why=NO_ROWS)
    of_first, of_second = (_changes(both, e, layout.axis or 0) for e in exchanged)
    total = float(of_first.sum() + of_second.sum())
    if total == 0.0:  # nothing changes, in whatever order
        return layout
    side_by_side = float(of_first[: layout.rows].sum() + of_second[layout.rows :].sum())
    apart = float(of_first[0::2].sum() + of_second[1::2].sum())
    if max(side_by_side, apart) < _OWN * total:
        return Layout(why=NO_ROWS)
    return layout if side_by_side >= apart else Layout(layout.axis, layout.rows, strided=True)


def _changes(a: Array, b: Array, axis: int) -> Doubles:
    """How much each entry along an axis changes; what is not finite on one side alone counts as 1."""
    x, y = (np.moveaxis(v, axis, 0).astype(np.float64).reshape(v.shape[axis], -1) for v in (a, b))
    sound = np.isfinite(x) & np.isfinite(y)
    scale = max(float(np.abs(np.where(sound, x, 0.0)).max(initial=0.0)), 1e-300)
    with np.errstate(invalid="ignore", over="ignore"):
        changes: Doubles = np.where(sound, (x - y) / scale, (np.isfinite(x) != np.isfinite(y)) * 1.0)
    totals: Doubles = np.square(changes).sum(axis=1)
    return totals
