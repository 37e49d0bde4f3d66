"""What the original answers on some samples, and how far other answers are from it, part by part.

A part is some entries of the observed tensors that have a scale of their own. Its error is

    ||y - y0||² / ||y0 - mean y0||²,    the mean taken over samples,

and the error of a model is the mean over its parts. Tensors that are judged as one whole (boxes and scores, joined in
one output) share its weight by the roots of their numbers of entries: four channels do not vanish beside eighty, and do
not count as much either. Entries that both mask (the same infinity, or -1e9: `masked`) differ by nothing and have no
spread; what is infinite or NaN on one side alone makes the error infinite, so that it loses every comparison. What
stands at padding (`padding`) has no part in any of that. A tensor in which the original has a NaN is no measure of
anything, and neither is one that does not vary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from onnxprune.data.layouts import NO_AXIS, NO_ROWS, SEVERAL_AXES, Layouts
from onnxprune.measures.masked import counting, masked
from onnxprune.measures.padding import NONE, Padding
from onnxprune.numerics.arrays import Array, Doubles, Mask, is_float

Wide = Doubles
Columns = tuple[int, int, int]
# Below this share of its squares a spread is that of rounding.
_LEAST_SPREAD = 1e-12
# Tensors whose entries differ by up to this factor in variance have one scale (a factor of 4 in size).
_SAME_SCALE = 16.0
# Channels of one tensor are parted where all on one side have this many times the variance of any on the other (a
# factor of 10 in size); never into more parts than these.
_OTHER_SCALE, _MOST_RUNS = 100.0, 4
# Channels of two scales that take turns: the least number of either, and their least share.
_LEAST_MIXED, _LEAST_SHARE = 2, 0.04
# The variance of a channel is known well enough for that from so many entries on.
_LEAST_ENTRIES = 16


@dataclass(frozen=True)
class Piece:
    """A tensor, or some of its channels: `columns` gives the axis, the first, and the one behind the last."""

    tensor: str
    columns: Columns | None = None

    def of(self, values: Array) -> Array:
        """The entries that belong to the piece, given the tensor's values."""
        if self.columns is None:
            return values
        axis, start, stop = self.columns
        return values[(slice(None),) * axis + (slice(start, stop),)]

    @property
    def channels(self) -> str:
        """Which channels of the tensor the piece takes, in words; "" for all."""
        if self.columns is None:
            return ""
        axis, start, stop = self.columns
        one = stop - start == 1
        return f"channel {start} of axis {axis}" if one else f"channels {start} to {stop - 1} of axis {axis}"

    def __str__(self) -> str:
        return f"{self.tensor}, {self.channels}" if self.columns else self.tensor


@dataclass(frozen=True)
class Part:
    """Pieces of one scale, the outputs of the model that they stand for, and their share of the whole."""

    pieces: tuple[Piece, ...]
    outputs: tuple[str, ...]
    share: float = 1.0

    @property
    def name(self) -> str:
        """The first pieces, which name the part in a table."""
        more = len(self.pieces) - 2
        return ", ".join(map(str, self.pieces[:2])) + (f" and {more} more" if more > 0 else "")


def plain_parts(names: Iterable[str]) -> tuple[Part, ...]:
    """A part for each of these outputs, which stands for itself."""
    return tuple(Part((Piece(k),), (k,)) for k in names)


def parts_in(
    joined: Iterable[tuple[Sequence[str], Sequence[str], bool]], values: Mapping[str, Array], padding: Padding = NONE
) -> tuple[Part, ...]:
    """Parts of the tensors that stand for outputs, by their scales in `values`.

    joined: (tensors, outputs, whether single channels may have a scale of their own), as in `observed.Whole`.
    """
    values = {k: padding.without(k, v) for k, v in values.items()} if padding.at else values
    parts: list[Part] = []
    for tensors, outputs, columns in joined:
        pieces: list[Piece] = []
        for t in tensors:
            y = values.get(t)
            runs = _runs(y) if columns and y is not None and is_float(y.dtype) else ()
            pieces += [Piece(t, r) for r in runs] or [Piece(t)]
        alike = _alike(pieces, values)
        roots = [sum(_entries(p, values) for p in same) ** 0.5 for same in alike]
        shares = [r / max(sum(roots), 1e-300) for r in roots]
        parts += [Part(tuple(same), tuple(outputs), s) for same, s in zip(alike, shares, strict=True)]
    return tuple(parts)


def _alike(pieces: Sequence[Piece], values: Mapping[str, Array]) -> list[list[Piece]]:
    """The pieces, those of one scale together, in their order."""
    if len(pieces) == 1:
        return [list(pieces)]
    scales = {p: _scale(p, values) for p in pieces}
    groups: list[tuple[float, list[Piece]]] = []
    for p in sorted(pieces, key=lambda p: scales[p]):
        if not groups or not scales[p] <= _SAME_SCALE * groups[-1][0] or groups[-1][0] == 0.0:
            groups.append((scales[p], []))
        groups[-1][1].append(p)
    order = {p: i for i, p in enumerate(pieces)}
    return sorted((sorted(own, key=order.__getitem__) for _, own in groups), key=lambda own: order[own[0]])


def _entries(piece: Piece, values: Mapping[str, Array]) -> int:
    return int(piece.of(values[piece.tensor]).size) if piece.tensor in values else 0


def _scale(piece: Piece, values: Mapping[str, Array]) -> float:
    """The variance of an entry; 0 where there is none to speak of."""
    y = values.get(piece.tensor)
    if y is None or not is_float(y.dtype) or not y.size or np.isnan(y).any():
        return 0.0
    own = piece.of(y)
    own_spread = spread(own)
    return own_spread / max(int(counting(own).sum()), 1) if own_spread > _LEAST_SPREAD * _squares_of(own) else 0.0


def _runs(y: Array) -> list[Columns]:
    """Runs of channels that differ clearly in scale, along the axis where they do so most; none where none do."""
    if y.ndim < 2 or not y.size or not counting(y).all():
        return []
    squares = y.astype(np.float64)
    if len(squares) > 1:
        squares -= squares.mean(axis=0, keepdims=True)
    np.square(squares, out=squares)
    best: list[Columns] = []
    most = 1.0
    for axis in dict.fromkeys((1, y.ndim - 1)):
        if y.size < _LEAST_ENTRIES * y.shape[axis]:
            continue
        variances = squares.mean(axis=tuple(a for a in range(y.ndim) if a != axis))
        cuts, clearest = max(_cuts(variances), _mixed(variances), key=lambda c: c[1] if c[0] else 0.0)
        if cuts and clearest > most:
            edges = [0, *cuts, len(variances)]
            best, most = [(axis, a, b) for a, b in pairwise(edges)], clearest
    return best


def _cuts(variances: Wide) -> tuple[list[int], float]:
    """(where to cut, the clearest ratio): everything on one side of a cut is far above everything on the other."""
    edges: list[int] = []
    clearest = 1.0
    while len(edges) + 1 < _MOST_RUNS:
        bounds = [0, *edges, len(variances)]
        ratio, cut = max(_clearest(variances[a:b], a) for a, b in pairwise(bounds))
        if ratio < _OTHER_SCALE:
            break
        clearest = max(clearest, ratio)
        edges = sorted([*edges, cut])
    return edges, clearest


def _mixed(variances: Wide) -> tuple[list[int], float]:
    """As `_cuts`, where channels of two scales take turns (boxes and scores of every anchor): where the scale changes.

    Both need a fair number of channels: a few dead ones among many are no output of their own.
    """
    order = np.sort(variances[variances > 0.0])
    least = max(_LEAST_MIXED, int(np.ceil(_LEAST_SHARE * len(order))))
    low, high = order[least - 1 : -least], order[least : len(order) - least + 1]
    if not len(low):
        return [], 1.0
    ratios = high / low
    gap = int(np.argmax(ratios))
    if ratios[gap] < _OTHER_SCALE:
        return [], 1.0
    above = variances >= high[gap]
    return [int(c) for c in np.flatnonzero(above[1:] != above[:-1]) + 1], float(ratios[gap])


def _clearest(variances: Wide, start: int) -> tuple[float, int]:
    """(the least on one side of a cut over the largest on the other, where to cut); channels that do not vary have no
    scale, and belong to either side."""
    varies = variances > 0.0
    low, high = np.where(varies, variances, np.inf), np.where(varies, variances, 0.0)
    before = np.minimum.accumulate(low)[:-1], np.maximum.accumulate(high)[:-1]
    behind = np.minimum.accumulate(low[::-1])[::-1][1:], np.maximum.accumulate(high[::-1])[::-1][1:]
    both = (before[1] > 0.0) & (behind[1] > 0.0)
    if not both.any():
        return 1.0, 0
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(both, np.maximum(before[0] / behind[1], behind[0] / before[1]), 1.0)
    gap = int(np.argmax(ratios))
    return float(ratios[gap]), start + gap + 1


# spreads


def spread(y0: Array) -> float:
    """||y0 - mean y0||², the mean taken over samples, of what counts; ||y0||² of a single sample."""
    b = np.atleast_1d(y0)
    return float(_away(b, counting(b), centred=len(b) > 1).sum())


def _away(y: Array, fine: Mask, *, centred: bool) -> Wide:
    """(y - mean y)² in an array of its own, 0 where y is not `fine`; one copy at a time, as outputs may be large."""
    b = y.astype(np.float64)
    every = bool(fine.all())
    if not every:
        b[~fine] = 0.0
    if centred:
        b -= b.sum(axis=0, keepdims=True) / (len(b) if every else np.maximum(fine.sum(axis=0, keepdims=True), 1))
        if not every:
            b[~fine] = 0.0
    return np.square(b, out=b)


def difference(y: Array, y0: Array) -> Wide:
    """y - y0, 0 where both are masked; NaN or infinite where only one is finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        d: Wide = np.asarray(y.astype(np.float64) - y0, np.float64)
        if y.shape == y0.shape:
            both, one = masked(y, y0)
            d[both], d[one] = 0.0, np.inf
    return d


def _squares_of(y: Array) -> float:
    b = np.atleast_1d(y)
    return float(_away(b, counting(b), centred=False).sum())


def _sum_of_squares(d: Wide) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(np.square(d).sum())
    return total if np.isfinite(total) else float("inf")


# answers

STILL = "it does not vary over the samples"
ALONE = "of a single sample no spread can be told: it takes two at least"
EMPTY = "it has no entries"
TOGETHER = "it has fewer numbers than there are samples: they are of all together"
# What has no error of its own, and is selected by all the same where there is nothing else.
UNSPREAD = (STILL, TOGETHER, NO_AXIS, SEVERAL_AXES, NO_ROWS)


@dataclass(frozen=True, eq=False)
class Answers:
    """The original's answers on `samples` samples.

    values: its outputs and the observed tensors, by name, first axis = samples, or so many rows for each. parts: those
    that count, and `spreads` what their errors are relative to. left_out: parts of which no error can be told, and why;
    where nothing varies they count all the same, relative to their squares. layouts: of the tensors that the model
    gives with the samples elsewhere (`data.layouts`). padding: what of the values is compared nowhere.
    """

    values: Mapping[str, Array]
    samples: int
    parts: tuple[Part, ...]
    spreads: tuple[float, ...]
    left_out: Mapping[Part, str] = field(default_factory=dict)
    layouts: Layouts = field(default_factory=dict)
    padding: Padding = NONE

    @classmethod
    def of(
        cls,
        values: Mapping[str, Array],
        samples: int,
        parts: Sequence[Part] | None = None,
        layouts: Layouts | None = None,
        padding: Padding = NONE,
    ) -> Answers:
        """The answers in `values` (by tensor), with what each part counts for.

        parts: of the floating-point tensors in `values`; each of them is one where that is None.
        """
        layouts = layouts or {}
        parts = plain_parts(k for k, v in values.items() if is_float(v.dtype)) if parts is None else parts
        judged = {k: padding.without(k, v) for k, v in values.items()} if padding.at else values
        told = {p: _told(p, judged, samples, layouts) for p in parts}
        why = {p: reason for p, (reason, _) in told.items()}
        spreads = {p: size for p, (reason, size) in told.items() if not reason}
        if not spreads:  # something has to be selected by: errors are relative to the squares then
            unspread = [p for p in parts if why[p] in UNSPREAD]
            squares = {p: sum(_squares_of(x.of(judged[x.tensor])) for x in p.pieces) for p in unspread}
            spreads = {p: s for p, s in squares.items() if s > 0.0}
        left_out = {p: w for p, w in why.items() if w}
        return cls(values, samples, tuple(spreads), tuple(spreads.values()), left_out, layouts, padding)

    def counting(self, keeps: Callable[[str, Array], bool]) -> Answers:
        """The answers without the parts in which a tensor has values that `keeps` refuses."""
        pairs = [
            (p, s)
            for p, s in zip(self.parts, self.spreads, strict=True)
            if all(keeps(x.tensor, self.values[x.tensor]) for x in p.pieces)
        ]
        return replace(self, parts=tuple(p for p, _ in pairs), spreads=tuple(s for _, s in pairs))

    def bare(self) -> Answers:
        """The answers with the values of the tensors that count alone."""
        return replace(self, values={k: self.values[k] for k in self.tensors}, left_out={})

    def first(self, count: int) -> Answers:
        """The answers of the first `count` samples, where each has a row of its own."""
        values = {k: self.values[k][:count] for k in self.tensors}
        return Answers.of(values, count, self.parts, self.layouts, self.padding.first(count))

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """The names of the tensors whose entries count."""
        return tuple(dict.fromkeys(x.tensor for p in self.parts for x in p.pieces))

    @cached_property
    def weights(self) -> dict[str, Wide]:
        """By tensor, what its squared errors count for: one number, or one along an axis of channels."""
        weights: dict[str, Wide] = {}
        for p, s, share in zip(self.parts, self.spreads, self.shares, strict=True):
            for x in p.pieces:
                weight = share / s
                if x.columns is None:
                    weights[x.tensor] = np.asarray(weight)
                    continue
                y = self.values[x.tensor]
                axis, start, stop = x.columns
                shape = [1] * y.ndim
                shape[axis] = y.shape[axis]
                weights.setdefault(x.tensor, np.zeros(shape))[(slice(None),) * axis + (slice(start, stop),)] = weight
        return weights

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """What each part counts for; they add up to 1."""
        total = max(sum(p.share for p in self.parts), 1e-300)
        return tuple(p.share / total for p in self.parts)

    @cached_property
    def weights_of_spreads(self) -> dict[str, Wide]:
        """By tensor, its share of the error where it differs by its own spread: shaped as its weights."""
        return {t: w * max(spread(self.judged(t)), 1e-300) for t, w in self.weights.items()}

    def judged(self, tensor: str) -> Array:
        """The original's values of a tensor, infinite where they stand for padding."""
        return self.padding.without(tensor, self.values[tensor])

    def difference(self, piece: Piece, outputs: Mapping[str, Array]) -> Wide:
        """y - y0 of a piece, as `difference` has it, 0 at padding."""
        t = piece.tensor
        d = difference(piece.of(outputs[t]), piece.of(self.judged(t)))
        if t in self.padding.at:
            d[piece.of(np.broadcast_to(self.padding.at[t], outputs[t].shape))] = 0.0
        return d

    def error(self, outputs: Mapping[str, Array], *, partial: bool = False) -> float:
        """The mean of the parts' errors; infinite where a tensor is missing or has another shape.

        partial: tensors that are missing are as they were.
        """
        pairs = zip(self.shares, self.parts, strict=True)
        return sum((share * self.error_of(p, outputs, partial=partial) for share, p in pairs), 0.0)

    def error_of(self, part: Part, outputs: Mapping[str, Array], *, partial: bool = False) -> float:
        """The error of one part."""
        total = 0.0
        for x in part.pieces:
            if x.tensor in outputs and outputs[x.tensor].shape == self.values[x.tensor].shape:
                total += _sum_of_squares(self.difference(x, outputs))
            elif x.tensor in outputs or not partial:
                return float("inf")
        return total / self.spreads[self.parts.index(part)]

    def per_sample(self, part: Part, outputs: Mapping[str, Array]) -> tuple[Wide, Wide] | None:
        """(squared error, share of the spread) of each sample, (samples,); None where rows do not belong to samples."""
        errors, spreads = np.zeros(self.samples), np.zeros(self.samples)
        for x in part.pieces:
            y0 = x.of(self.judged(x.tensor))
            if not y0.ndim or len(y0) % self.samples:
                return None
            spreads += _away(y0, counting(y0), centred=True).reshape(self.samples, -1).sum(axis=1)
            errors += np.square(self.difference(x, outputs)).reshape(self.samples, -1).sum(axis=1)
        return errors, spreads


def _told(part: Part, values: Mapping[str, Array], samples: int, layouts: Layouts) -> tuple[str, float]:
    """(why nothing can be said of a part, "" where it can; its spread)."""
    squares = size = 0.0
    entries = 0
    for x in part.pieces:
        y = values.get(x.tensor)
        if y is None or not is_float(y.dtype):
            return "it is no tensor of floating-point numbers", 0.0
        own = x.of(y)
        if np.isnan(own).any():
            return "the original's own values are not finite (NaN) on the samples", 0.0
        if own.size and np.isinf(own).all():
            return "the original's own values are not finite on any sample", 0.0
        squares += _squares_of(own)
        size += spread(own)
        entries += own.size
    if not entries:
        return EMPTY, 0.0
    mixed = next((layouts[x.tensor].why for x in part.pieces if x.tensor in layouts and layouts[x.tensor].why), "")
    if mixed:
        return mixed, size
    if entries < samples:
        return TOGETHER, size
    if any(len(np.atleast_1d(values[x.tensor])) % samples for x in part.pieces):
        return NO_ROWS, size
    return ("" if size > _LEAST_SPREAD * squares else STILL), size
