"""A model in 8-bit integers: ranges by the way that leaves the least error, channels brought to one scale where that
helps, and layers left in float that cost more than they give.

All of it is decided by what the outputs do: each choice is a model that runs on a few samples.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from onnxprune.data.samples import Samples
from onnxprune.errors import ModelError, RunError
from onnxprune.graph import external
from onnxprune.quantization.costly import Suspect, costly
from onnxprune.quantization.equalise import equalised, pairs_in
from onnxprune.quantization.pairs import without_idle_pairs, without_pairs_on_sums
from onnxprune.quantization.places import Layer, Places
from onnxprune.quantization.preparation import Prepared, constants_of, prepared
from onnxprune.quantization.quantizer import with_pairs
from onnxprune.quantization.ranges import Seen, seen
from onnxprune.targets.precision import MIN_MAX, RANGES, Placement

# How far a model is from what it shall answer; None where that cannot be measured.
Error = Callable[[onnx.ModelProto], float | None]
# A change is kept where it takes this share of the error that integers add; less is chance.
_WORTH = 0.05
# Integers that add less than this leave nothing to gain; nor is time given for less than this share of an error that is
# there without them.
_NEGLIGIBLE, _NEGLIGIBLE_SHARE = 1e-3, 0.1


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How to quantize.

    method: of `targets.precision.RANGES`. floating: layers that stay in float, by the name of their node or of what it
    gives. float_share: the share of the
    multiplications that further ones may take.
    """

    placement: Placement
    method: str
    reduce_range: bool
    float_share: float
    floating: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class InFloat:
    """A layer that stays in float. share: of the multiplications. error: of the outputs with all layers up to this one
    in float, None where it was named. why: in words."""

    name: str
    operator: str
    share: float
    error: float | None
    why: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Quantized:
    """The model in integers, and how it came about.

    method: how ranges were found, and tried: the error by each way that was tried. equalised: how many activations had
    their channels brought to one scale; before_equalising: the error without that, None where it was not tried.
    layers: that could compute in integers. floating: those that do not. nodes: how many nodes do. share: of the
    multiplications of `layers` that are in integers. chosen_on: samples that decided.
    """

    model: onnx.ModelProto
    method: str
    tried: Mapping[str, float | None]
    layers: int
    nodes: int
    share: float
    floating: tuple[InFloat, ...]
    equalised: int
    before_equalising: float | None
    reduce_range: bool
    samples: int
    notes: tuple[str, ...] = field(default=())


def quantized(
    model: onnx.ModelProto,
    samples: Samples,
    error: Error,
    wanted: Wanted,
    told: Callable[[int, int], None] = lambda _, __: None,
) -> Quantized:
    """The model in 8-bit integers. Raises ModelError where nothing of it can be, and RunError.

    samples: by which ranges are found. error: of a model, on samples that decide. told: how many samples were run.
    """
    given = prepared(model)
    places = Places.of(given.model, wanted.placement)
    if not places.layers:
        kinds = ", ".join(sorted(wanted.placement.layers))
        raise ModelError(
            f"no layer can compute in 8-bit integers: outside of bodies no {kinds} has constant weights in float32"
        )
    named = {x.name for x in places.layers if {x.name, x.output} & wanted.floating}
    wanted = replace(wanted, floating=frozenset(named))
    floor = error(given.model)
    pairs = () if floor is None else pairs_in(given.model)  # else nothing would tell whether they help
    channels = {p.tensors[-1]: p.axis for p in pairs}
    there = seen(given.model, places.tensors() | set(channels), samples, channels, told)
    maker = _Maker(given, places, there, wanted)
    start = _start(maker, error, wanted)
    found, was, count = start, None, 0
    if start.error is not None and floor is not None and pairs and start.error - floor > _NEGLIGIBLE:
        level = equalised(given.model, pairs, there.largest)
        moved = {t for p in pairs for t in p.tensors}  # all others are what they were
        again = there.with_those_of(seen(level, places.tensors() & moved, samples, {}, told))
        other = _Maker(Prepared(level, given.named, given.notes), Places.of(level, wanted.placement), again, wanted)
        trial = _Trial.of(other, start.method, wanted.floating, error)
        if trial.error is not None and start.error - trial.error > _WORTH * (start.error - floor):
            found, maker, was, count = trial, other, start.error, len(pairs)
    floating = [_named(x, maker) for x in maker.places.layers if x.name in wanted.floating]
    found, more = _left_in_float(maker, found, floor, wanted, error)
    kept = {x.name for x in (*floating, *more)}
    return Quantized(
        model=_finished(found.model, given),
        method=found.method,
        tried=start.tried,
        layers=len(places.layers),
        nodes=len(found.nodes),
        share=1.0 - sum(maker.share(x) for x in maker.places.layers if x.name in kept or x.name not in found.nodes),
        floating=(*floating, *more, *_without_range(maker, found, kept)),
        equalised=count,
        before_equalising=was,
        reduce_range=wanted.reduce_range,
        samples=there.samples,
        notes=given.notes,
    )


@dataclass(frozen=True, eq=False)
class _Maker:
    """Models in integers, of one model and what was seen of it."""

    given: Prepared
    places: Places
    seen: Seen
    wanted: Wanted

    def model(self, method: str, floating: Collection[str]) -> tuple[onnx.ModelProto, frozenset[str]]:
        """(the model with these layers in float, the nodes that compute in integers)."""
        ranges = self.seen.ranges(method)
        nodes = self.places.nodes(ranges.keys(), floating)
        if not nodes:
            raise ModelError(
                "no layer is left that could compute in 8-bit integers: every activation is infinite, or "
                "every layer was to stay in float (--keep-float)"
            )
        result = with_pairs(
            self.given.model,
            nodes,
            ranges,
            self.seen.types,
            self.wanted.placement,
            reduce_range=self.wanted.reduce_range,
        )
        without_idle_pairs(result, self.given.model, frozenset(nodes))
        if self.wanted.placement.pairs:
            without_pairs_on_sums(result, {x.name for x in self.places.layers}.intersection(nodes))
        return result, frozenset(nodes)

    def share(self, layer: Layer) -> float:
        """The share of a layer in the multiplications of all of them."""
        every = sum(self._multiplications(x) for x in self.places.layers)
        return self._multiplications(layer) / every if every else 0.0

    def _multiplications(self, layer: Layer) -> int:
        return layer.share * self.seen.sizes.get(layer.output, 0)

    def noise(self, layer: Layer) -> float:
        """How much of a layer's output rounding is, by its activation and its weights alone: Δ²/12 over the square."""
        h = self.seen.histograms.get(layer.data)
        if h is None or not h.square:
            return 0.0
        step = (max(h.most, 0.0) - min(h.least, 0.0)) / 255.0
        w = external.array_of(constants_of(self.places.model)[layer.weight]).astype(np.float64)
        axis = 0 if layer.operator in ("Conv", "Gemm") else 1
        others = tuple(a for a in range(w.ndim) if a != axis)
        steps = np.abs(w).max(axis=others) / 127.0
        return float(step**2 / 12.0 / h.square + (steps**2).mean() / 12.0 / max(float((w**2).mean()), 1e-30))


@dataclass(frozen=True, eq=False)
class _Trial:
    """A model in integers with its error. tried: the errors of all ways to find ranges, where this is the best."""

    model: onnx.ModelProto
    nodes: frozenset[str]
    method: str
    error: float | None
    tried: Mapping[str, float | None]

    @classmethod
    def of(cls, maker: _Maker, method: str, floating: Collection[str], error: Error) -> _Trial:
        """Make it and run it."""
        model, nodes = maker.model(method, floating)
        found = error(model)
        return cls(model, nodes, method, found, {method: found})


def _start(maker: _Maker, error: Error, wanted: Wanted) -> _Trial:
    """All layers in integers, with the ranges that leave the least error; the first way where none can be measured."""
    methods = RANGES[1:] if wanted.method == RANGES[0] else (wanted.method,)
    best: _Trial | None = None
    tried: dict[str, float | None] = {}
    for method in methods:
        trial = _Trial.of(maker, method, wanted.floating, error)
        tried[method] = trial.error
        if best is None or (trial.error is not None and (best.error is None or trial.error < best.error)):
            best = trial
        if trial.error is None and method == MIN_MAX:
            break
    assert best is not None
    return _Trial(best.model, best.nodes, best.method, best.error, tried)


def _left_in_float(
    maker: _Maker, start: _Trial, floor: float | None, wanted: Wanted, error: Error
) -> tuple[_Trial, list[InFloat]]:
    """Leave layers in float, the costliest first, while each takes a larger share of the added error than it has of the
    multiplications."""
    if start.error is None or floor is None or wanted.float_share <= 0.0:
        return start, []
    if start.error - floor <= max(_NEGLIGIBLE, _NEGLIGIBLE_SHARE * floor):
        return start, []
    start_error, added = start.error, start.error - floor
    layers = {x.name: x for x in maker.places.layers if x.name in start.nodes}
    suspects = [
        Suspect(name=k, share=maker.share(x), noise=maker.noise(x))
        for k, x in layers.items()
        if maker.share(x) <= wanted.float_share
    ]

    def gain(names: Collection[str]) -> float | None:
        trial = _tried(maker, start.method, {*wanted.floating, *names}, error)
        return None if trial is None or trial.error is None else (start_error - trial.error) / added

    gains = costly(suspects, 1.0 if len(suspects) == len(layers) else None, gain, _WORTH)
    best, kept = start, list[InFloat]()
    left = wanted.float_share
    for name in sorted(gains, key=lambda k: (-gains[k], k)):
        x = layers[name]
        share = maker.share(x)
        if share > left or best.error is None:
            continue
        trial = _tried(maker, start.method, {*wanted.floating, *(k.name for k in kept), x.name}, error)
        if trial is None or trial.error is None:
            continue
        taken = (best.error - trial.error) / added
        if taken > max(_WORTH, share):
            why = f"takes {taken:.0%} of the error that integers add, and {share:.1%} of the multiplications"
            kept.append(InFloat(name=x.name, operator=x.operator, share=share, error=trial.error, why=why))
            best, left = trial, left - share
    return best, kept


def _tried(maker: _Maker, method: str, floating: Collection[str], error: Error) -> _Trial | None:
    try:
        return _Trial.of(maker, method, floating, error)
    except (ModelError, RunError):
        return None


def _named(x: Layer, maker: _Maker) -> InFloat:
    return InFloat(name=x.name, operator=x.operator, share=maker.share(x), error=None, why="was named")


def _without_range(maker: _Maker, found: _Trial, kept: Collection[str]) -> list[InFloat]:
    """The layers that are in float as what they read or give is not finite, or no number of single precision."""
    return [
        InFloat(
            name=x.name, operator=x.operator, share=maker.share(x), error=None, why="reads or gives no finite numbers"
        )
        for x in maker.places.layers
        if x.name not in found.nodes and x.name not in kept
    ]


def _finished(model: onnx.ModelProto, given: Prepared) -> onnx.ModelProto:
    """Without the names that nodes were given for a while."""
    for n in model.graph.node:
        if n.name in given.named:
            n.ClearField("name")
    return model
