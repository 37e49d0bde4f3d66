"""What selection consumes and produces.

A Regression is one consumer of a group: its outputs are Σ_c w_cᵀ x_c over input columns c, and each column belongs to
one unit of the group or to none. Its discrepancy is the weighted squared error of its outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
from scipy.sparse import csr_array

from onnxprune.numerics.arrays import Array, Doubles, Floats, Ints, Mask
from onnxprune.process.spill import Spilled

# Regressions of a group that take more together lie in files.
HELD_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class Regression:
    """One consumer: p = E[x xᵀ] (D, D), in either precision; w (D, M); unit (D,) the unit of each column or -1.

    weight: what one unit of squared error counts, so that consumers are comparable. centred: the last column of x is
    the constant 1. ridge: relative, on p, for a refit. inverse: where columns of no unit are left out, the part of the
    regularised inverse of all columns' moments that belongs to these; its ridge then counts.
    """

    p: Floats
    w: Floats
    unit: Ints
    weight: float = 1.0
    centred: bool = True
    ridge: float = 0.0
    inverse: Doubles | None = None

    def power(self) -> float:
        """E||y - E y||², the trace of the outputs' covariance; E||y||² where there is no constant column."""
        w = self.w.astype(self.p.dtype, copy=False)  # not the larger of the two
        second = float(np.sum(w * (self.p @ w), dtype=np.float64))
        mean = self.p[-1] @ self.w if self.centred else np.zeros(1)
        return max(second - float(mean @ mean), 0.0)

    def contributions(self, units: int) -> Doubles:
        """K (units, units), the Gram of the contributions: K_jl = weight · E<s_j, s_l>, s_j = that of unit j."""
        inside = self.unit >= 0
        w = self.w[inside].astype(np.float64, copy=False)
        core = (w @ w.T) * self.p[np.ix_(inside, inside)]
        columns = core.shape[0]
        owner = csr_array((np.ones(columns), (self.unit[inside], np.arange(columns))), shape=(units, columns))
        result: Doubles = (owner @ (owner @ core).T) * self.weight
        return result


class Regressions(Sequence[Regression]):
    """The consumers of a group. Where their arrays are large together they lie in files, and each is read when asked
    for: a stream that every layer of a deep network reads has hundreds.

    held: bytes of the moments that are in memory at a time.
    """

    def __init__(self, parts: Iterable[Regression] = ()) -> None:
        self._parts: list[Regression | _Filed] = []
        self.held = 0
        nbytes = 0
        for r in parts:
            nbytes += r.p.nbytes + r.w.nbytes
            self._parts.append(r)
            if nbytes > HELD_BYTES:
                self._parts = [_Filed.of(p) if isinstance(p, Regression) else p for p in self._parts]
                self.held = max(self.held, r.p.nbytes)
            else:
                self.held += r.p.nbytes

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, index: int) -> Regression: ...

    @overload
    def __getitem__(self, index: slice) -> Regressions: ...

    def __getitem__(self, index: int | slice) -> Regression | Regressions:
        if isinstance(index, slice):
            return Regressions(map(self.__getitem__, range(*index.indices(len(self)))))
        part = self._parts[index]
        return part if isinstance(part, Regression) else part.read()


@dataclass(frozen=True, eq=False)
class _Filed:
    """A regression whose arrays lie in files."""

    rest: Regression
    p: Spilled
    w: Spilled

    @classmethod
    def of(cls, r: Regression) -> _Filed:
        return cls(replace(r, p=r.p[:0], w=r.w[:0]), Spilled(r.p), Spilled(r.w))

    def read(self) -> Regression:
        return replace(self.rest, p=self.p.load(), w=self.w.load())


@dataclass(frozen=True, eq=False)
class Path:
    """For every number of kept units n = 0..N: which units, at which discrepancy.

    order: units in the order of their removal, (N,): the last n are kept, unless `supports` names others.
    loss: discrepancy with n units kept above that of the whole path's end, (N + 1,): never negative, never growing
    with n, loss[N] = 0. floor: that end, so that floor + loss[n] is the discrepancy itself: 0 where the target is the
    layer's own output; above 0 where its inputs are pruned already; of either sign where a task loss is linearised.
    coefficients: by n, what the kept units are multiplied by, (N,), 0 where removed; floor + loss[n] holds with them.
    """

    order: Ints
    loss: Doubles
    supports: Mapping[int, Ints] | None = None
    coefficients: Mapping[int, Doubles] | None = None
    floor: float = 0.0

    def kept(self, n: int) -> Mask:
        """Mask over the units, (N,), of the best n."""
        mask = np.zeros(self.order.size, bool)
        chosen = self.supports.get(n) if self.supports is not None else None
        mask[self.order[self.order.size - n :] if chosen is None else chosen] = True
        return mask

    def arrays(self) -> dict[str, Array]:
        """What `of_arrays` makes the same path of."""
        named = {"order": self.order, "loss": self.loss, "floor": np.array(self.floor)}
        for name, by_size in (("supports", self.supports), ("coefficients", self.coefficients)):
            if by_size is not None:
                named[name] = np.array(sorted(by_size), np.int64)
                named |= {f"{name} {n}": values for n, values in by_size.items()}
        return named

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Array]) -> Path:
        """A path of what `arrays` gave."""

        def by_size(name: str) -> dict[int, Array] | None:
            return {n: arrays[f"{name} {n}"] for n in arrays[name].tolist()} if name in arrays else None

        floor = float(arrays["floor"])
        return cls(arrays["order"], arrays["loss"], by_size("supports"), by_size("coefficients"), floor)

    def coefficients_of(self, n: int) -> Doubles | None:
        """What the units of `kept(n)` are multiplied by, (N,), 0 elsewhere; None where the method finds none.

        A kept unit may have 0 too: it adds nothing to the others.
        """
        return self.coefficients.get(n) if self.coefficients is not None else None


def in_turns(order: Ints, rows: Ints | None) -> Ints:
    """`order` (N,) rearranged so that every balanced set gives one unit in turn; `rows` (N,) is the set of each unit.

    Inside a round, and inside a set, units keep their order.
    """
    if rows is None:
        return order
    turn = np.empty(order.size, np.int64)
    for row in np.unique(rows).tolist():
        inside = np.flatnonzero(rows[order] == row)
        turn[inside] = np.arange(inside.size)
    return order[np.argsort(turn, kind="stable")]


def falling(discrepancy: Doubles) -> tuple[Doubles, float]:
    """(loss, floor) of a path from its discrepancies at n = 0..N, (N + 1,): what keeping more adds is not counted."""
    least = np.minimum.accumulate(discrepancy)
    floor = float(least[-1])
    loss: Doubles = np.maximum(least - floor, 0.0)
    return loss, floor
