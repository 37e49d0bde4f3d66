"""The inputs at other sizes of the symbolic dimensions: what changes with them is measured, and checked, at these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, permutations
from typing import Any

import numpy as np
import onnx

from onnxprune.errors import RunError
from onnxprune.graph import kept_inputs
from onnxprune.numerics.arrays import Array, cast, is_float
from onnxprune.runtime.session import Feeds, Session


@dataclass(frozen=True)
class Symbol:
    """A symbolic dimension: the axes of inputs that have its size, and that size in the example.

    least: no model takes less, as where a cache has as many rows as a window is wide. bound: the size is that of
    something inside the model, so that it takes no other, as that of heads in caches.
    """

    places: tuple[tuple[str, int], ...]
    size: int
    least: int = 0
    bound: bool = False

    @property
    def first(self) -> bool:
        """Whether it is a first axis, which most likely counts samples."""
        return self.places[0][1] == 0

    def in_(self, feeds: Feeds) -> int:
        """The size of the dimension in other inputs."""
        name, axis = self.places[0]
        return int(np.shape(feeds[name])[axis])


_Ways = Sequence[tuple[int, int, int]]
# A dimension, and the two that it is the sum of.
_Total = tuple[Symbol, tuple[Symbol, Symbol]]
# With how many others a dimension is changed, of those that do not change alone.
_MOST_PARTNERS = 4


def symbols(example: Feeds, proto: onnx.ModelProto) -> list[Symbol]:
    """The symbolic dimensions of the inputs; one without a name stands for itself alone."""
    places_by_symbol: dict[str, list[tuple[str, int]]] = {}
    for v in proto.graph.input:
        if not v.type.HasField("tensor_type") or v.name not in example:
            continue
        for axis, d in enumerate(v.type.tensor_type.shape.dim):
            if not d.HasField("dim_value"):
                places_by_symbol.setdefault(d.dim_param or f"{v.name}:{axis}", []).append((v.name, axis))
    windows, sized = kept_inputs.windows(proto), kept_inputs.sized_by_heads(proto)
    return [
        Symbol(
            tuple(places),
            example[places[0][0]].shape[places[0][1]],
            max(windows.get(name, 0) if axis == kept_inputs.ROWS else 0 for name, axis in places),
            any(place in sized for place in places),
        )
        for places in places_by_symbol.values()
    ]


def resized(
    example: Feeds,
    proto: onnx.ModelProto,
    runs: Callable[[Feeds], bool],
    most: int | None = None,
    *,
    others: Sequence[Feeds] = (),
) -> list[dict[str, Array]]:
    """`example` with each symbolic dimension changed in turn: one more for the first axis, twice the size for others.

    Where `runs` says that the model does not take twice the size (more words than it has positions for, say), a smaller
    one that it takes stands in for it; else it is changed with another one, as the positions so far are with new ones.
    What the model takes in none of these ways is left out only where it is clear that nothing is missed by that: where
    the size is bound, and where it is another in one of the inputs `others`, which run. most: so many dimensions, the
    first ones; None for all.
    """
    variants: list[dict[str, Array]] = []
    dimensions = symbols(example, proto)
    for s in dimensions[:most]:
        first, *more = _alone(s)
        variant = with_sizes(example, [(s, first)])
        if more and not runs(variant):
            smaller = (with_sizes(example, [(s, new)]) for new in more)
            taken = next((v for v in chain(smaller, _in_pairs(example, dimensions, s)) if runs(v)), None)
            if taken is None and (s.bound or any(s.in_(v) != s.size for v in others)):
                continue
            variant = taken or variant
        variants.append(variant)
    return variants


def _alone(s: Symbol) -> list[int]:
    """The sizes that are tried for a dimension, the wanted one first."""
    if s.first:
        return [s.size + 1]
    return [2 * s.size or 2, *(new for new in (s.size // 2, s.size + 1, s.size - 1) if new > 0 and new >= s.least)]


def _in_pairs(example: Feeds, dimensions: Sequence[Symbol], s: Symbol) -> Iterator[dict[str, Array]]:
    """A dimension larger together with another one, by as much."""
    partners = [t for t in dimensions if t is not s and not t.first]
    for t in partners[:_MOST_PARTNERS]:
        for more in dict.fromkeys((s.size or 2, 1)):
            yield with_sizes(example, [(s, s.size + more), (t, t.size + more)])


def together(
    example: Feeds, proto: onnx.ModelProto, runs: Callable[[Feeds], bool], *, more: bool = False
) -> list[dict[str, Array]]:
    """`example` with one sample and, where the model takes such, an odd size of its own for each other dimension; and
    with two samples and the smallest other sizes.

    Twice a size has all the divisors that the size has, so what rounds up to a window or a stride shows only at the
    former; what is filled up to a least size, and where fewer positions are left than are asked for, at the latter.
    more: also with three samples and larger odd sizes, and with one sample and nothing else changed. Where the model
    takes none of these, dimensions that it takes no other size of stay, and one that was the sum of two others
    (positions so far and new ones) is that again.
    """
    dimensions = symbols(example, proto)
    kinds: list[tuple[int, _Ways]] = [(1, ((2, 1, 2), (2, 1, 0), (4, 0, 0), (1, 0, 0)))]
    if any(not s.first for s in dimensions):
        kinds.append((2, ((0, 1, 0), (0, 3, 0), (0, 5, 0), (1, 1, 0))))
    if more:
        kinds += [(3, ((3, 4, 2), (3, 4, 0))), (1, ((2, 0, 0),))]
    taken = [next((v for v in _sized(example, dimensions, first, ways) if runs(v)), None) for first, ways in kinds]
    if None in taken and sum(not s.first for s in dimensions) > 2:
        moving = [s for s in dimensions if s.first or _moves(example, dimensions, s, runs)]
        for total in _sums(moving):
            again = [
                v or next((w for w in _sized(example, moving, first, ways, total) if runs(w)), None)
                for v, (first, ways) in zip(taken, kinds, strict=True)
            ]
            if again != taken:
                taken = again
                break
    return [v for v in taken if v is not None]


def _moves(example: Feeds, dimensions: Sequence[Symbol], s: Symbol, runs: Callable[[Feeds], bool]) -> bool:
    """Whether the model takes another size of a dimension. Of what holds nothing any size says nothing."""
    if all(np.size(example[name]) == 0 for name, _ in s.places) and s.size:
        return False
    alone = (with_sizes(example, [(s, new)]) for new in _alone(s))
    return not s.size or any(runs(v) for v in chain(alone, _in_pairs(example, dimensions, s)))


def _sums(dimensions: Sequence[Symbol]) -> Iterator[_Total]:
    """The dimensions that are as large as two others together, with these."""
    others = [s for s in dimensions if not s.first]
    for total, a, b in permutations(others[: _MOST_PARTNERS + 1], 3):
        if total.size == a.size + b.size and others.index(a) < others.index(b):
            yield total, (a, b)


def distinct(variants: Iterable[dict[str, Array]]) -> list[dict[str, Array]]:
    """The first of the inputs of each size."""
    by_size = {
        tuple(sorted((k, np.shape(a)) for k, a in v.items() if isinstance(a, np.ndarray))): v
        for v in reversed(list(variants))
    }
    return list(reversed(by_size.values()))


def _sized(
    example: Feeds, dimensions: Sequence[Symbol], first: int, ways: _Ways, total: _Total | None = None
) -> Iterator[dict[str, Array]]:
    """Variants by (halves, more, apart): first axes of size `first`, the k-th other symbol of halves · size / 2 + more
    + k · apart, made odd where anything was added. total: a symbol that is the sum of two others."""
    others = [s for s in dimensions if not s.first]
    for halves, more, apart in ways:
        sizes = [(s, first) for s in dimensions if s.first]
        for k, s in enumerate(others):
            new = halves * s.size // 2 + more + k * apart
            sizes.append((s, max(new | 1 if more else max(new, 1), s.least)))
        if total is not None:
            whole, parts = total
            sizes = [(s, n) for s, n in sizes if s is not whole]
            sizes.append((whole, sum(n for s, n in sizes if s in parts)))
        yield with_sizes(example, sizes)


def with_sizes(example: Feeds, sizes: Sequence[tuple[Symbol, int]]) -> dict[str, Array]:
    """`example` with the axes of these symbols cut or repeated to a size; noise where there is nothing to repeat."""
    feeds = dict(example)
    for s, size in sizes:
        for name, axis in s.places:
            length = feeds[name].shape[axis]
            if length or not size:
                feeds[name] = np.take(feeds[name], np.arange(size) % max(length, 1), axis=axis)
            else:
                shape = feeds[name].shape
                feeds[name] = _noise((*shape[:axis], size, *shape[axis + 1 :]), feeds[name].dtype)
    return feeds


def _noise(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Seeded normal numbers; zeros of other types."""
    if not is_float(dtype):
        return np.full(shape, "", dtype) if dtype.kind == "O" else np.zeros(shape, dtype)
    return cast(np.random.default_rng(0).standard_normal(shape), dtype)


def shapes_with(example: Feeds, sizes: Sequence[tuple[Symbol, int]]) -> dict[str, tuple[int, ...]]:
    """The shapes that `with_sizes` gives the tensors of `example`."""
    shapes = {k: list(np.shape(v)) for k, v in example.items() if isinstance(v, np.ndarray)}
    for s, size in sizes:
        for name, axis in s.places:
            shapes[name][axis] = size
    return {k: tuple(v) for k, v in shapes.items()}


class Runner:
    """Whether a model runs on some inputs; its session is started at the first question."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self._session: Session | None = None

    def __call__(self, feeds: Feeds) -> bool:
        """Run the model; one that does not load runs on nothing."""
        try:
            self._session = self._session or Session(self._proto, optimize=False)
        except RunError:
            return False
        return accepts(self._session, feeds)


def accepts(session: Session, feeds: Feeds) -> bool:
    """Whether a run succeeds."""
    try:
        session.run(feeds)
    except RunError:
        return False
    return True
