"""Positions that an attention mask calls padding: what a model gives there is read by nobody, and compared nowhere.

The mask is an input that is named as exporters name it, (samples, positions), of zeros and ones. With earlier positions
in caches it is longer than the ids, whose positions are its last ones then. Which axes of an output are positions is
said by the symbols of the declared sizes; where these say nothing, by the size itself, as far as the rank of the output
makes a chance of that size unlikely: axis 1 of three, as in scores of tokens, and axis 2 of four, as in caches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnxprune.data.layouts import Layouts
from onnxprune.data.samples import Samples
from onnxprune.data.texts import IDS, MASKS
from onnxprune.graph.protobuf import declared_sizes
from onnxprune.numerics.arrays import Array, Mask, cast, is_float

# By rank, the axis that positions have where only its size tells.
_USUAL = {3: 1, 4: 2}
# Inputs of integers that hold no tokens of their own.
_NO_TOKENS = ("mask", "type", "position", "segment")


@dataclass(frozen=True, eq=False)
class Padding:
    """Where tensors hold what stands for padding.

    source: the input that says so. at: by tensor, True at padding, of its rank, 1 along all axes but samples and
    positions. count, positions: of the ids, over all samples.
    """

    source: str = ""
    at: Mapping[str, Mask] = field(default_factory=dict)
    count: int = 0
    positions: int = 0

    def first(self, samples: int) -> Padding:
        """That of the first samples."""
        return Padding(self.source, {k: m[:samples] for k, m in self.at.items()}, self.count, self.positions)

    def without(self, name: str, values: Array) -> Array:
        """The values of a tensor with infinity at padding, which no measure counts (`measures.masked`)."""
        return self.filled(name, values, np.inf)

    def filled(self, name: str, values: Array, fill: float) -> Array:
        """A copy of the values of a tensor with this number at padding; they themselves where it has none."""
        if name not in self.at or not is_float(values.dtype):
            return values
        return np.where(self.at[name], cast(np.array(fill), values.dtype), values)

    def share(self, name: str, where: Mask) -> float:
        """The share of a tensor's entries beside padding for which `where` holds."""
        return float(np.mean(where[np.broadcast_to(~self.at[name], where.shape)] if name in self.at else where))

    @property
    def note(self) -> tuple[str, ...]:
        """What a report says of it, nothing where no tensor has padding."""
        if not self.at:
            return ()
        said = f"{self.count} of {self.positions} positions are padding by {self.source!r}"
        return (f"{said}: what the outputs hold there is compared nowhere",)


NONE = Padding()


def padding_of(
    model: onnx.ModelProto, samples: Samples, values: Mapping[str, Array], layouts: Layouts | None = None
) -> Padding:
    """What of a model's outputs (and other tensors) on these samples, samples first, stands for padding.

    model: with its inputs and outputs as they were declared. layouts: of the tensors that the model gives with the
    samples elsewhere; they are left as they are.
    """
    names = [s.name for s in samples.sampled]
    source = next((k for k in names if _plain(k) in MASKS), None)
    kept = _rows(samples, source)
    if source is None or kept is None:
        return NONE
    flat = np.concatenate(kept)
    if not ((flat == 0) | (flat == 1)).all() or flat.all() or not flat.any():
        return NONE
    tokens = [s.name for s in samples.sampled if _holds_tokens(s.name, s.dtype, len(s.dims))]
    ids = next((k for k in tokens if _plain(k) in IDS), source)
    own = _rows(samples, ids)
    if own is None or any(len(a) > len(m) for a, m in zip(own, kept, strict=True)):
        return NONE
    here = _padded(m[len(m) - len(a) :] for a, m in zip(own, kept, strict=True))
    every = _padded(kept)
    inputs = {v.name: declared_sizes(v) for v in model.graph.input}
    outputs = {v.name: declared_sizes(v) for v in model.graph.output}
    known = {d for dims in inputs.values() for d in dims if isinstance(d, str)}
    marks = [(here, _axis_of(inputs.get(ids, ())))]
    if every.shape != here.shape:
        marks.append((every, _axis_of(inputs.get(source, ()))))
    at: dict[str, Mask] = {}
    for name, y in values.items():
        if name in (layouts or {}) or y.ndim < 2 or len(y) != len(here):
            continue
        mask = _mask_of(y, outputs.get(name, ()), marks, known, alone=len(tokens) < 2)
        if mask is not None and mask.any():
            at[name] = mask
    return Padding(source, at, int(here.sum()), sum(map(len, own))) if at else NONE


def _mask_of(
    y: Array,
    dims: Sequence[str | int | None],
    marks: Iterable[tuple[Mask, str | int | None]],
    known: set[str],
    *,
    alone: bool,
) -> Mask | None:
    """Where a tensor of these declared sizes holds padding; None where none of its axes is one of positions.

    marks: (padding, its own declared size). known: the symbols of all inputs. alone: whether no other tokens have
    positions of their own.
    """
    found: Mask | None = None
    for axis in range(1, y.ndim):
        dim = dims[axis] if len(dims) == y.ndim else None
        for padded, size in marks:
            if y.shape[axis] != padded.shape[1]:
                continue
            if isinstance(size, str) and (isinstance(dim, int) or dim in known):
                fits = dim == size
            else:
                fits = alone and axis == _USUAL.get(y.ndim)
            if fits:
                shape = [1] * y.ndim
                shape[0], shape[axis] = padded.shape
                own = padded.reshape(shape)
                found = own if found is None else found | own
                break
    return found


def _rows(samples: Samples, name: str | None) -> list[Array] | None:
    """The positions of each sample in an input; None where it is no (samples, positions)."""
    stored = None if name is None else samples.arrays.get(name)
    if stored is None or len(stored.shape) < 2 or stored.dtype.kind == "O":
        return None
    if len(stored.shape) > 2:  # embeddings stand for tokens
        return None
    return [stored[i : i + 1][0] for i in range(len(stored))]


def _padded(rows: Iterable[Array]) -> Mask:
    """Where masks are 0, (samples, positions); what fills up shorter ones is no padding of theirs."""
    empty = [np.asarray(r) == 0 for r in rows]
    whole = np.zeros((len(empty), max(map(len, empty))), bool)
    for row, e in zip(whole, empty, strict=True):
        row[: len(e)] = e
    return whole


def _plain(name: str) -> str:
    return name.partition(":")[0].lower()


def _holds_tokens(name: str, dtype: np.dtype[np.generic], rank: int) -> bool:
    return rank == 2 and dtype.kind in "iu" and not any(n in name.lower() for n in _NO_TOKENS)


def _axis_of(dims: Sequence[str | int | None]) -> str | int | None:
    return dims[1] if len(dims) == 2 else None
