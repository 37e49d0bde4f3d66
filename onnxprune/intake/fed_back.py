"""States met on the way: the model runs step by step over the data, and what it hands itself becomes data.

The samples of one file are steps in time of one sequence (where every file holds one, all files are one sequence).
Where the model does not run so, each file is a step of as many sequences as it has samples, side by side. A state
starts at what its file gives for it, or at zeros, and is the original's own at every step: whatever reads the samples
later may take them in any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from onnxprune.data.accepted import Wanted
from onnxprune.data.arrangement import Arrangement, Stored
from onnxprune.data.element_types import converted
from onnxprune.data.given import Given
from onnxprune.data.inputs import InputSpec, tensor_specs
from onnxprune.data.ragged import Ragged
from onnxprune.data.readings import readings
from onnxprune.data.samples import Samples
from onnxprune.data.sources import taken
from onnxprune.data.spool import FOLDER_BYTES
from onnxprune.data.states import State
from onnxprune.errors import CalibrationError, RunError
from onnxprune.intake import padded
from onnxprune.intake.empty_caches import empty_shapes
from onnxprune.intake.first_run import Trial
from onnxprune.numerics.arrays import Array
from onnxprune.regular_files import shown
from onnxprune.runtime.session import Session

# The sizes that a free axis of a state starts with: none of a past, else one.
_STARTS = (0, 1)


def read(proto: onnx.ModelProto, source: object, states: Sequence[State], steps: int | None = None) -> Samples:
    """The samples, each with the states that the model has at that step. steps: so many at most, the first ones.

    Raises CalibrationError where the data do not fit, or the model does not run on them, and RunError.
    """
    specs = tensor_specs(proto)
    fed = {s.input for s in states}
    data = taken(source, tuple(s for s in specs if s.name not in fed), Wanted(steps))
    reading = next(iter(readings(data)))
    own = tuple(s for s in specs if s.name in fed)
    samples = data.read(replace(reading, per_run=reading.per_run or 1))
    counts = data.counts(reading)
    if len(counts) > 1 and all(n == 1 for n in counts):
        counts = [len(samples)]
    starts = [_given_starts(data, i, own) for i in range(len(counts))]
    try:
        met = _Walk(proto, samples, states, own).over(counts, starts, steps)
    except (CalibrationError, RunError):
        if reading.per_run is not None or len(counts) == 1 or len(set(counts)) > 1:
            raise
        # Caches whose masks grow from file to file: each file is a step of as many sequences as it has samples.
        files, side_by_side = len(counts), counts[0]
        samples = samples.take(np.arange(len(samples)).reshape(files, side_by_side).T.ravel())
        starts = [_of_sequence(starts[0], own, k) for k in range(side_by_side)]
        met = _Walk(proto, samples, states, own).over([files] * side_by_side, starts, steps)
    return _with_states(samples, specs, own, met, free=reading.per_run is None)


def _given_starts(data: Given, index: int, own: Sequence[InputSpec]) -> dict[str, Array]:
    """What a file gives for the first step of its sequence."""
    part = data.parts[index]
    starts: dict[str, Array] = {}
    for s in own:
        if s.name not in part.extras:
            continue
        where = f"{part.where}: input {s.name!r}"
        value, _ = converted(part.extras[s.name], s.dtype, where)
        fits = value.ndim == len(s.dims) and all(d in (None, n) for d, n in zip(s.dims, value.shape, strict=True))
        if not fits:
            shape = "x".join(map(str, value.shape))
            raise CalibrationError(
                f"{where} has shape {shape}, the model wants {s}: a state is given for the first step"
            )
        starts[s.name] = value[:]
    return starts


def _of_sequence(starts: Mapping[str, Array], own: Sequence[InputSpec], number: int) -> dict[str, Array]:
    """Of states of several sequences, given together, those of one."""
    axes = Arrangement.declared(tuple(own)).axes
    found: dict[str, Array] = {}
    for name, value in starts.items():
        axis = axes.get(name)
        found[name] = value if axis is None else np.take(value, [min(number, value.shape[axis] - 1)], axis)
    return found


class _Walk:
    """A model that runs step by step."""

    def __init__(
        self, proto: onnx.ModelProto, samples: Samples, states: Sequence[State], own: Sequence[InputSpec]
    ) -> None:
        self._samples, self._states, self._own = samples, states, own
        self._accepts = Trial(proto)
        self._proto = proto
        self._session: Session | None = None
        # Those of states without entries, where nothing else tells their sizes.
        self._sizes: Mapping[str, tuple[int, ...]] = {}

    def over(
        self, lengths: Sequence[int], starts: Sequence[Mapping[str, Array]], steps: int | None
    ) -> list[tuple[int, dict[str, Array]]]:
        """By step: the sequence that it belongs to, and the states that the model is fed."""
        met: list[tuple[int, dict[str, Array]]] = []
        size, first, held = self._samples.run_size(1), 0, 0
        for sequence, (length, start) in enumerate(zip(lengths, starts, strict=True)):
            state: dict[str, Array] = {}
            for place in range(first, first + length, size):
                if steps is not None and len(met) * size >= steps:
                    return met
                feeds = self._samples.slice(place, place + size)
                state = state or self._start(feeds, start)
                met.append((sequence, state))
                held += sum(v.nbytes for v in state.values())
                if held > FOLDER_BYTES:
                    raise CalibrationError(
                        f"the states of {len(met)} steps take {shown(held)} of memory; ask for fewer (--samples)"
                    )
                state = self._next({**feeds, **state})
            first += length
        return met

    def _next(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self._session is None:
            self._session = Session(self._proto)
        outputs = self._session.run(feeds, [s.output for s in self._states])
        return {s.input: np.asarray(outputs[s.output]) for s in self._states}

    def _start(self, feeds: Mapping[str, Array], given: Mapping[str, Array]) -> dict[str, Array]:
        """The states before the first step: as given, else zeros of a size with which the model runs."""
        tried: list[dict[str, Array]] = []
        for size in (*_STARTS, None):
            if size is None:
                self._sizes = empty_shapes(self._proto, tensor_specs(self._proto))
            state = {s.name: given[s.name] if s.name in given else self._zeros(s, feeds, size or 0) for s in self._own}
            if self._accepts({**feeds, **state}):
                self._check(state, {**feeds, **state})
                return state
            tried.append(state)
        told = self._accepts.why
        for state in tried:
            if why := padded.cause(self._proto, {**feeds, **state}, self._accepts):
                raise CalibrationError(f"the first step of a sequence does not run: {why}")
        raise CalibrationError(f"the model does not run with states of zeros; give the first ones in the data ({told})")

    def _zeros(self, s: InputSpec, feeds: Mapping[str, Array], size: int) -> Array:
        sizes = {
            x.symbol(a): feeds[x.name].shape[a]
            for x in self._samples.specs
            for a in range(len(x.dims))
            if x.symbol(a) and x.name in feeds
        }
        declared = Arrangement.declared((*self._samples.specs, s)).axes.get(s.name)
        known = self._sizes.get(s.name)
        dims = [
            d
            if d is not None
            else self._samples.run_size(1)
            if a == declared
            else known[a - 1]
            if known is not None
            else sizes.get(s.symbol(a), size)
            for a, d in enumerate(s.dims)
        ]
        return np.zeros(dims, s.dtype)

    def _check(self, state: Mapping[str, Array], feeds: Mapping[str, Array]) -> None:
        """Raises CalibrationError where an output is no state that the input can get."""
        after = self._next(feeds)
        for s, spec in ((s, x) for s in self._states for x in self._own if x.name == s.input):
            value = after[s.input]
            fits = value.ndim == len(spec.dims) and all(
                d in (None, n) for d, n in zip(spec.dims, value.shape, strict=True)
            )
            if not fits or value.dtype != spec.dtype:
                raise CalibrationError(
                    f"the state {s} cannot be fed back: the output is {value.dtype} "
                    f"{'x'.join(map(str, value.shape)) or 'scalar'}, the input {spec.dtype} {spec}"
                )


def _with_states(
    samples: Samples,
    specs: tuple[InputSpec, ...],
    own: Sequence[InputSpec],
    met: Sequence[tuple[int, Mapping[str, Array]]],
    *,
    free: bool,
) -> Samples:
    """The samples with the states among the inputs. free: the model may take any number of samples in a run."""
    size = samples.run_size(1)
    samples = samples.take(range(len(met) * size))
    declared = Arrangement.declared(specs).axes
    axes = dict(samples.arrangement.axes)
    arrays: dict[str, Stored] = dict(samples.arrays)
    alike = True
    for s in own:
        values = [state[s.name] for _, state in met]
        axis = declared.get(s.name)
        by_sample = axis is not None and all(v.shape[axis] == size for v in values)
        if size > 1 and not by_sample:
            raise CalibrationError(f"input {s.name!r} holds no state for each of the {size} samples of a run")
        one = len({v.shape for v in values}) == 1
        axes[s.name] = axis if by_sample and one else None
        arrays[s.name] = _stacked(values, axes[s.name]) if one else Ragged(tuple(values))
        alike = alike and by_sample and one
    arrangement = Arrangement(axes, None if free and alike and not samples.ragged else size)
    ordered = {s.name: arrays[s.name] for s in specs}
    sequence = np.repeat(np.array([k for k, _ in met], np.int64), size)
    sequences = len(set(sequence.tolist()))
    note = f"states were fed back over {len(met)} steps of {sequences} sequence{'s' * (sequences > 1)}"
    notes = (*samples.notes, note)
    extras = {k: v for k, v in samples.extras.items() if k not in {s.name for s in own}}
    return replace(
        samples,
        specs=specs,
        arrays=ordered,
        extras=extras,
        arrangement=arrangement,
        sequence=sequence,
        notes=notes,
        met=frozenset(s.name for s in own),
    )


def _stacked(values: Sequence[Array], axis: int | None) -> Array:
    """The states of all steps, samples first."""
    if axis is None:
        return np.stack(values)
    joined: Array = np.moveaxis(np.concatenate(values, axis), axis, 0)
    return np.ascontiguousarray(joined)
