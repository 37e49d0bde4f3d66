"""The ways in which data can be read: which axis of which input counts samples, the likeliest way first.

What decides is the symbol of a dimension: an axis counts samples where it has the symbol that an axis of samples has.
An input of fixed sizes of which the data has a multiple along an axis has its samples there, so many in a run. An array
with one axis more than the model reads has one entry for each run; and where inputs count different things (nodes and
edges, say) a file is a run. Names and shapes do not always tell: such a way is doubtful, and runs of the model decide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from onnxprune.data.given import Given, Lying, Reading
from onnxprune.data.inputs import InputSpec
from onnxprune.errors import CalibrationError

# Names that exporters and authors give to the dimension that counts samples.
_SAMPLES = re.compile(r"(?i)^(n|b|bs|bsz|bz|num_?samples|samples?)$|batch")
# Stands in front of the name of a dimension that has none.
_UNNAMED = "?"
_Shape = tuple[int, ...]


def readings(given: Given) -> list[Reading]:
    """All ways to read the data, the likeliest first. Raises CalibrationError where there is none."""
    return _Readings(given).all()


class _Readings:
    """given: the data. forced: of inputs whose shapes alone tell how samples lie in them."""

    def __init__(self, given: Given) -> None:
        self._given, self._several = given, len(given.parts) > 1
        self._specs = {s.name: _named(s) for s in given.specs}
        self._shapes = {s.name: [tuple(p.inputs[s.name].shape) for p in given.parts] for s in given.specs}
        self._refusals: list[str] = []
        self.forced: dict[str, Lying] = {}
        self._sizes: set[int] = set()
        # whether an input that would be whole has other sizes in each file
        self._free_whole = False
        for s in self._specs.values():
            self._force(s)

    def all(self) -> list[Reading]:
        found: list[Reading] = []
        for symbol in self._symbols:
            reading = self._by_symbol(symbol)
            if reading is not None and all(reading.lying != r.lying for r in found):
                found.append(reading)
        by_file = self._by_file(found)
        found += [by_file] if by_file is not None else []
        if not found and self._refusals:
            raise CalibrationError(self._refusals[0])
        return found or [Reading({})]

    def _force(self, s: InputSpec) -> None:
        """What the shapes of one input tell. Raises CalibrationError where they are not those that the model wants."""
        for shape, part in zip(self._shapes[s.name], self._given.parts, strict=True):
            lying = self._forced_by(s, shape)
            if lying is None:
                text = "x".join(map(str, shape)) or "scalar"
                raise CalibrationError(f"{part.where}: input {s.name!r} has shape {text}, the model wants {s}")
            if lying.stacked or lying.axis is not None:
                if self.forced.setdefault(s.name, lying) != lying:
                    raise CalibrationError(
                        f"{self._given.origin}: the files hold input {s.name!r} in different shapes; make them equal"
                    )
                size = 1 if lying.axis is None else s.dims[lying.axis]
                self._sizes.add(size or 1)

    def _forced_by(self, s: InputSpec, shape: _Shape) -> Lying | None:
        """How samples lie in an array, as far as its shape says; None where it does not fit the model."""
        if len(shape) == len(s.dims) + 1 and self._may_be_stacked(s):
            return Lying(None, stacked=True) if _differing(s, shape[1:]) == [] else None
        if len(shape) != len(s.dims):
            return None
        axes = _differing(s, shape)
        if not axes:
            return Lying(None)
        (axis, *more) = axes
        fixed = s.dims[axis] or 0
        inner = axis == 1 and len(shape) > 2 and (s.dims[0] is not None or fixed == 1)
        return None if more or not (axis == 0 or inner) or not 0 < fixed < shape[axis] else Lying(axis)

    def _may_be_stacked(self, s: InputSpec) -> bool:
        """Whether an axis in front may be one that the model does not have: it has none itself that counts samples."""
        if not s.dims or s.dims[0] is not None or s.whole:
            return True
        first = {x.symbol(0) for x in self._specs.values() if x.dims and x.dims[0] is None}
        return len(first) > 1 and not any(counts_samples(f) or f.startswith(_UNNAMED) for f in first)

    @cached_property
    def _symbols(self) -> list[str]:
        """The symbols that may be that of the samples, the likeliest first; "" for none."""
        first = [s.symbol(0) for s in self._specs.values() if s.dims and s.dims[0] is None and not s.whole]
        inner = [s.symbol(a) for s in self._specs.values() for a in range(1, len(s.dims)) if s.dims[a] is None]
        named = [x for x in (*first, *inner) if counts_samples(x)]
        # Of several files each is a sample, rather than a row of an axis that says nothing of samples.
        others = [] if self._several or self.forced else inner
        return list(dict.fromkeys((*named, *first, *others))) if first else list(dict.fromkeys((*named, "", *others)))

    # one axis for all

    def _by_symbol(self, symbol: str) -> Reading | None:
        """The reading in which all axes with a symbol count samples; None where the data do not fit it."""
        lying = dict(self.forced)
        for s in self._specs.values():
            own = () if s.name in lying or s.whole else s.axes_of(symbol)
            if len(own) > 1:
                return None
            if own:
                lying[s.name] = Lying(own[0])
        sizes = set(self._sizes)
        if not lying:
            return self._fixed()
        counts = self._counts(lying)
        if counts is None and counts_samples(symbol):
            raise CalibrationError(self._refusals[-1])  # one name, several numbers of samples
        if counts is None:
            return None
        # an axis in front of channels, height and width is one of samples
        images = any(x.axis == 0 and len(self._specs[k].dims) > 3 for k, x in self.forced.items())
        doubtful = (any(size > 1 for size in sizes) and not images) or not self._certain(symbol)
        for s in self._specs.values():
            if s.name in lying or not s.dims or s.whole:
                continue
            found = self._alike(s, counts)
            if found is not None:
                lying[s.name] = found
                sizes |= {size for size in [s.dims[found.axis or 0]] if size is not None}
            elif s.dims[0] is None:
                if symbol and not self._may_be_whole(s, symbol):
                    self._refuse_counts(s, counts, next(iter(lying)))
                    return None
                doubtful = True
        if len(sizes) > 1:
            self._refusals.append(f"{self._given.origin}: the inputs hold different numbers of samples for each run")
            return None
        if not self._wholes_are_equal(lying):
            if any(c != 1 for c in counts):
                return None
            lying |= {k: Lying(None) for k in self._specs if k not in lying}
            sizes = {1}
        return Reading(lying, next(iter(sizes), None), doubtful, self._note(lying))

    def _counts(self, lying: Mapping[str, Lying]) -> list[int] | None:
        """Samples in each file; None where inputs hold different numbers."""
        counts: list[int] | None = None
        name = ""
        for k, x in lying.items():
            own = [shape[0 if x.stacked else x.axis or 0] for shape in self._shapes[k]]
            if counts is None:
                counts, name = own, k
            elif own != counts:
                at = next(i for i, (a, b) in enumerate(zip(own, counts, strict=True)) if a != b)
                self._refusals.append(
                    f"{self._given.parts[at].where}: input {k!r} has {own[at]} samples, input {name!r} has {counts[at]}"
                )
                return None
        return counts

    def _alike(self, s: InputSpec, counts: Sequence[int]) -> Lying | None:
        """The axis of an input without the symbol that counts as many as the others hold samples; None for none."""
        shapes = self._shapes[s.name]
        free = [a for a in range(len(s.dims)) if s.dims[a] is None and (a == 0 or s.symbol(a).startswith(_UNNAMED))]
        for a in free:
            if [shape[a] for shape in shapes] == list(counts) and (a == 0 or max(counts) > 1):
                return Lying(a)
        first = s.dims[0]
        if first is not None and not free and all(c == first for c in counts) and (first == 1 or first in self._sizes):
            return Lying(0)
        return None

    def _may_be_whole(self, s: InputSpec, symbol: str) -> bool:
        """Whether an input whose first size is free may be one value for all samples, as a table is."""
        return not s.symbol(0).startswith(_UNNAMED) and not counts_samples(s.symbol(0)) and s.symbol(0) != symbol

    def _refuse_counts(self, s: InputSpec, counts: Sequence[int], other: str) -> None:
        own = [shape[0] for shape in self._shapes[s.name]]
        at = next((i for i, (a, b) in enumerate(zip(own, counts, strict=True)) if a != b), 0)
        self._refusals.append(
            f"{self._given.parts[at].where}: input {s.name!r} has {own[at]} samples, input {other!r} has {counts[at]}"
        )

    def _wholes_are_equal(self, lying: Mapping[str, Lying]) -> bool:
        """Whether the inputs that count no samples hold the same in every file."""
        for k in self._specs:
            if k not in lying and self._several and not self._given.is_whole(k):
                self._free_whole = self._free_whole or None in self._specs[k].dims
                self._refusals.append(
                    f"{self._given.origin}: the files hold other values of input {k!r}; store one for each sample"
                )
                return False
        return True

    def _fixed(self) -> Reading | None:
        """Every file holds one run of a model of fixed sizes; its first axis may count the samples of the run."""
        firsts = [s.dims[0] for s in self._specs.values() if s.dims and s.dims[0] is not None and not s.whole]
        if not firsts:
            return None
        size = 1 if 1 in firsts else firsts[0]
        lying = {
            s.name: Lying(0) for s in self._specs.values() if s.dims and s.dims[0] == size and not s.whole and size
        }
        if not lying or not self._wholes_are_equal(lying):
            if size != 1 or not lying:
                return None
            lying |= {k: Lying(None) for k in self._specs if k not in lying}
        return Reading(lying, size, doubtful=size > 1)

    def _certain(self, symbol: str) -> bool:
        """Whether nothing else may count samples: the symbol says so and stands in front, or there is no other."""
        others = {x.symbol(a) for x in self._specs.values() for a in range(len(x.dims)) if x.dims[a] is None}
        if not symbol or others <= {symbol}:
            return not self._several or counts_samples(symbol) or not symbol or symbol.startswith(_UNNAMED)
        firsts = {x.symbol(0) for x in self._specs.values() if x.dims and x.dims[0] is None}
        return counts_samples(symbol) and symbol in firsts

    def _note(self, lying: Mapping[str, Lying]) -> str:
        turned = [
            f"axis {x.axis} of input {k!r}" + (f" ({n})" if (n := self._shown(k, x.axis)) else "")
            for k, x in lying.items()
            if x.axis
        ]
        return f"the samples are taken along {', '.join(turned)}" if turned else ""

    def _shown(self, name: str, axis: int) -> str:
        symbol = self._specs[name].symbol(axis)
        return "" if symbol.startswith(_UNNAMED) else symbol

    # a file is a run

    def _by_file(self, found: Sequence[Reading]) -> Reading | None:
        """The reading in which every file holds one run; None where that is no way to read the data."""
        if self.forced or (found and not any(r.doubtful for r in found)):
            return None
        if not self._several and all(s.dims and s.dims[0] is not None for s in self._specs.values() if s.dims):
            return Reading({}) if found else None
        firsts = [s.symbol(0) for s in self._specs.values() if s.dims and s.dims[0] is None]
        twice = any(len(s.axes_of(s.symbol(0))) > 1 for s in self._specs.values() if s.dims and s.dims[0] is None)
        named = not any(counts_samples(f) or f.startswith(_UNNAMED) for f in firsts)
        if not self._several and not twice and not (named and (len(set(firsts)) > 1 or self._reads_integers)):
            return None
        if self._several and not found and not (named or self._free_whole):
            return None  # more likely a mistake
        return Reading(
            {k: Lying(None) for k in self._specs}, 1, note="each file is one sample" if self._several else ""
        )

    @property
    def _reads_integers(self) -> bool:
        """Whether an input holds integers, which may be places in another."""
        return any(s.dtype.kind in "iu" for s in self._specs.values()) and len(self._specs) > 1


def _named(s: InputSpec) -> InputSpec:
    """An input with a name for each free dimension."""
    names = (s.symbol(a) or f"{_UNNAMED}{s.name}.{a}" for a in range(len(s.dims)))
    return replace(s, symbols=tuple(names))


def counts_samples(symbol: str) -> bool:
    """Whether the name of a dimension says that it counts samples."""
    return bool(_SAMPLES.search(symbol)) and not symbol.startswith(_UNNAMED)


def _differing(s: InputSpec, shape: _Shape) -> list[int]:
    """The axes with another size than the fixed one that is declared."""
    return [a for a, (d, n) in enumerate(zip(s.dims, shape, strict=True)) if d is not None and d != n]
