"""What the original gives where layers are fitted: its values at sampled positions of each layer's target.

A walk of the original gathers them, for as many layers at a time as fit in memory. It computes the same whatever is
cut, so several cuts of one network can share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.calibration.input_moments import positions_for
from onnxprune.calibration.layers import Layer
from onnxprune.channels import ChannelGraph
from onnxprune.graph.view import Graph, Shape, entries
from onnxprune.numerics.arrays import Array, Floats, Ints, Mask
from onnxprune.process import spill
from onnxprune.refit.targets import Target
from onnxprune.runtime.taps import Tap
from onnxprune.runtime.walker import Walker
from onnxprune.threads import prefetched
from onnxprune.verification.oracle import mask_of

_TARGET_BYTES = 128 << 20
# Files of so many bytes stay in the system's cache; above that a walk is made anew.
_SHARED_BYTES = 2 << 30


@dataclass(frozen=True, eq=False)
class Values:
    """The original's values at the positions of one batch, (rows, outputs), in a file while nothing reads them.

    outputs: which of the columns in the file they are; None for all.
    """

    stored: spill.Spilled
    nbytes: int
    outputs: Mask | None = None

    @classmethod
    def of(cls, values: Floats) -> Values:
        """Store them. Raises RunError where the file cannot be written."""
        # In one order, file or not: sums over it are rounded as it lies in memory.
        return cls(spill.Spilled(np.ascontiguousarray(values), briefly=True), values.nbytes)

    def load(self) -> Floats:
        """The values, read anew each time."""
        values = self.stored.load()
        return values if self.outputs is None else np.ascontiguousarray(values[:, self.outputs])


# Per batch: positions in the cut model, and values of the original there.
Points = list[tuple[Ints, Values]]


class SharedPoints:
    """The points of all layers, of all channels, which one cut of a network leaves to the next.

    They are kept where they take no more than `most` bytes. points: None until then. room: 0 once it was too little;
    from then on every cut walks anew.
    """

    def __init__(self, most: int = _SHARED_BYTES) -> None:
        self.room = most
        self.points: list[Points] | None = None


def points_of(
    layers: Sequence[Layer],
    targets: Sequence[Target],
    fitted: AbstractSet[int],
    graph: Graph,
    reference: Walker,
    keep: Mask,
    seed: int,
    stays: Sequence[Staying | None],
    shared: SharedPoints | None = None,
) -> Iterator[list[tuple[Layer, Target, Points]]]:
    """The layers to fit with their targets and points, as many at a time as the original goes ahead for.

    layers: all that any cut of the network might fit, with what stays of the positions of each. All of them are
    gathered, as sessions that give out other tensors round otherwise: so what one layer is fitted to depends on no cut.
    fitted: the places of those to fit. shared: of other cuts, on the same samples and with the same seed.
    """
    if any(s is not None for s in stays):  # then positions belong to this cut
        shared = None
    if shared is not None and not shared.room:
        shared = None

    def cut(first: int, points: Sequence[Points]) -> list[tuple[Layer, Target, Points]]:
        """The layers to fit from the `first` one on; of points of all channels, those of the channels that stay."""
        found = []
        for i, of_layer in enumerate(points, first):
            if i in fitted:
                own = None if shared is None else layers[i].kept_outputs(keep)
                found.append((layers[i], targets[i], [(at, replace(v, outputs=own)) for at, v in of_layer]))
        return found

    if shared is not None and shared.points is not None:
        yield cut(0, shared.points)
        return
    gathered: list[Points] = []
    start = 0
    for part in _parts(layers, graph, reference):
        here = range(start, start + len(part))
        start = here.stop
        if shared is None and max(fitted, default=-1) < here.start:
            return
        stayed, wanted = (keep, [i in fitted for i in here]) if shared is None else (np.ones_like(keep), None)
        at = slice(here.start, here.stop)
        points = reference_points(part, targets[at], graph, reference, stayed, seed, stays=stays[at], wanted=wanted)
        yield cut(here.start, points)
        if shared is not None:
            gathered += points
            if sum(v.nbytes for of_layer in gathered for _, v in of_layer) > shared.room:
                shared.room = 0
                shared, gathered = None, []
    if shared is not None:
        shared.points = gathered


def _parts(layers: Sequence[Layer], graph: Graph, reference: Walker) -> Iterator[list[Layer]]:
    """Runs of consecutive layers of which what is read of one batch fits in memory together."""
    part: list[Layer] = []
    taken = 0
    for layer in layers:
        shape = graph.shape(layer.output or layer.data) or ()
        size = entries(shape, graph.batch)
        if layer.output and _has_places(shape, graph):
            width = shape[layer.channel_axis]
            size = width * min(size // max(width, 1), positions_for(len(layer.columns(0)), len(reference.samples)))
        own = 4 * reference.counts[0] * size
        if part and taken + own > _TARGET_BYTES:
            yield part
            part, taken = [], 0
        part.append(layer)
        taken += own
    if part:
        yield part


@dataclass(frozen=True, eq=False)
class Staying:
    """Which positions of a layer stay where the channels of others are its positions, as in a layer that mixes tokens.

    mask: of its input, of as many axes; kept along every axis but the last.
    """

    mask: Mask

    @classmethod
    def of(cls, layer: Layer, channels: ChannelGraph, keep: Mask) -> Staying | None:
        """The positions of a layer's input that stay; None where all do."""
        rank = len(channels.graph.shape(layer.data) or ())
        if layer.window is not None or rank < 3:
            return None
        mask = mask_of(channels, layer.data, keep, range(1, rank - 1))
        return None if mask is None else cls(np.asarray(mask.any(axis=-1)))

    def places(self, positions: Ints, shape: Shape) -> tuple[Ints, Ints]:
        """Of flat positions of an input of this shape those that stay, and where these are once the others are gone."""
        kept = np.broadcast_to(self.mask[:1], (1, *shape[1:-1])).ravel()
        staying = positions[kept[positions]]
        staying = staying if staying.size else np.flatnonzero(kept)[:1]
        return staying, np.cumsum(kept)[staying] - 1


def reference_points(
    part: Sequence[Layer],
    targets: Sequence[Target],
    graph: Graph,
    reference: Walker,
    keep: Mask,
    seed: int,
    *,
    stay: bool = False,
    stays: Sequence[Staying | None] = (),
    wanted: Sequence[bool] | None = None,
) -> list[Points]:
    """For each layer the original's values where its target is read, at sampled positions.

    One walk of the original serves the whole part. stay: as in `Walker.advance`. stays: of each layer. wanted: of which
    layers the values are kept, None for all.
    """
    limits = [positions_for(len(layer.columns(0)), len(reference.samples)) for layer in part]
    outputs = [layer.kept_outputs(keep) for layer in part]
    computed = [None if layer.output else _floats(layer.matrix(graph.constants)) for layer in part]
    taps = {i: tap for i, t in enumerate(targets) if (tap := _tap(i, part[i], t, graph, reference)) is not None}
    tap_positions: list[dict[int, tuple[Ints, Ints]]] = []

    def sampled(i: int, batch: int, shape: Shape) -> tuple[Ints, Ints]:
        rng = np.random.default_rng((seed, part[i].node.index, batch))
        chosen = part[i].positions(shape, limits[i], rng)
        staying = stays[i] if stays else None
        return (chosen, chosen) if staying is None else staying.places(chosen, shape)

    def positions(batch: int) -> dict[str, Array]:
        tap_positions.append({i: sampled(i, batch, tap.shape) for i, tap in taps.items()})
        return {tap.at: tap_positions[-1][i][0] for i, tap in taps.items()}

    whole = [t.source for i, t in enumerate(targets) if i not in taps]
    walk = reference.advance(whole, stay=stay, taps=[*taps.values()], positions=positions)
    points: list[Points] = [[] for _ in part]
    for index, tensors in enumerate(prefetched(walk)):
        for i, layer in enumerate(part):
            if wanted is not None and not wanted[i]:
                continue
            w = computed[i]
            if i in taps and taps[i].name in tensors:
                there, values = tap_positions[index][i][1], taps[i].values(tensors)
            else:
                y = tensors[targets[i].source]
                chosen, there = sampled(i, index, y.shape if w is None else layer.output_shape(y.shape))
                values = layer.values_at(y, chosen) if w is None else (layer.rows(_floats(y), chosen) @ w)[0]
            points[i].append((there, Values.of(_floats(values[:, outputs[i]]))))
    return points


def _tap(index: int, layer: Layer, target: Target, graph: Graph, reference: Walker) -> Tap | None:
    """What gathers the target's positions; None where it has no others to leave out, or is not computed anew."""
    shape = graph.shape(target.source)
    if not layer.output or shape is None or not _has_places(shape, graph) or target.source in reference.available:
        return None
    return Tap(f"tap:{index}", target.source, tuple(shape), layer.window is None)


def _has_places(shape: Shape, graph: Graph) -> bool:
    """Whether a tensor has an entry of its first axis for each sample, and several positions in each."""
    return len(shape) > 2 and shape[0] == graph.batch


def _floats(x: Array) -> Floats:
    return np.asarray(x, np.float32)
