"""A budget of latency on devices that are not here: their times are those of a timing file, and nothing is run.

Each target's layers are looked up in this channel graph by the axes of tensors that the file names, and its whole
models fitted (`whole`). Of several targets the allocation weighs the mean of their shares of the time, and the budget
has to hold on the slowest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnxprune.channels import ChannelGraph
from onnxprune.channels.branches import Drop
from onnxprune.cost import Length, length_of_axis
from onnxprune.errors import InputError
from onnxprune.latency import present, whole
from onnxprune.latency.latency_cost import LatencyCost, LayerCost
from onnxprune.latency.search import KeptUnits
from onnxprune.latency.stopwatch import Latency, TargetTime
from onnxprune.latency.table import BLOCKS, Sample, Table, fit
from onnxprune.latency.timing_file import PROFILE, CutRow, LayerRow, Target
from onnxprune.numerics.arrays import Doubles
from onnxprune.options import first_of, shown

_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Device:
    """A target in terms of a channel graph. error: how far, as a root mean square, predictions are from whole models
    that were left out; None where too few were timed. notes: what of the file could not be used. tables: of all its
    layers, in shares of the original's time; constant: what no layer explains."""

    target: Target
    cost: LatencyCost
    tables: tuple[Table, ...]
    constant: float
    error: float | None = None
    notes: tuple[str, ...] = ()

    def at(self, lengths: Sequence[tuple[float, ...] | None]) -> float:
        """The share of the original's time where every layer of the target has these lengths, None of one that went."""
        pairs = zip(self.tables, lengths, strict=True)
        return self.constant + sum(table.at(own) for table, own in pairs if own is not None)


@dataclass(eq=False)
class Recorded:
    """Predicts cuts of one model, as `stopwatch.Stopwatch` times them."""

    channels: ChannelGraph
    devices: Sequence[Device]
    measures: bool = False
    _cost: LatencyCost | None = field(default=None, repr=False)

    @property
    def cost(self) -> LatencyCost:
        """The mean over the targets of the share of the original's time."""
        if self._cost is None:
            self._cost = LatencyCost.mean([d.cost for d in self.devices], len(self.channels.groups))
        return self._cost

    def measure(self) -> None:
        """Nothing is left to be measured."""

    def share(self, kept: KeptUnits) -> float:
        """The share of the original's time that the model takes at these widths, where that is largest."""
        return max(d.cost.at(kept) for d in self.devices)

    def timed(self, _: onnx.ModelProto | None, kept: KeptUnits) -> Latency:
        """What is to report of a model of these widths."""
        targets = tuple(
            TargetTime(
                d.target.name,
                d.target.how,
                dict(d.target.machine),
                d.target.batch,
                d.target.seconds,
                d.cost.at(kept),
                d.error,
                extrapolated=d.target.how == PROFILE,
            )
            for d in self.devices
        )
        slowest = max(targets, key=lambda t: t.predicted)
        full = np.array(self.channels.sizes)
        cuts = [(g, n - k) for g, (n, k) in enumerate(zip(self.channels.sizes, kept, strict=True))]
        return Latency(
            slowest.batch,
            slowest.machine,
            slowest.before_seconds,
            slowest.before_seconds * slowest.predicted,
            None,
            slowest.predicted,
            len(self.cost.layers),
            notes=tuple(n for d in self.devices for n in d.notes),
            saved=tuple(self.cost.saving(full, g, fewer) if fewer else 0.0 for g, fewer in cuts),
            targets=targets,
        )


def device_of(
    target: Target, channels: ChannelGraph, drops: Mapping[int, Drop], path: str, *, same_model: bool
) -> Device:
    """A target of the timing file at `path`, matched to a channel graph.

    same_model: the file is of this very model, so that a layer which is not found is one that options or sizes of the
    data changed; else it says that the file is of another model. Raises InputError.
    """
    producers = {o: n for n in channels.graph.every_node for o in n.outputs if o}
    lengths: list[tuple[Length, ...] | None] = []
    for row in target.layers:
        own = _lengths(row, channels)
        node = producers.get(row.output)
        found = own is not None and node is not None and node.op == row.op
        if not found and not same_model:
            raise InputError(
                f"{path} is of another model: this one has no {row.op} that writes {shown(row.output)} with "
                f"{' x '.join(f'{a.size:g}' for a in row.axes)} channels; run bench --layers with this model"
            )
        lengths.append(own if found else None)
    measured = tables_of(target, channels)
    fitted = fitted_whole(target, measured, target.cuts)
    tables = tuple(Table(t.full, t.block, t.weights * w) for t, w in zip(measured, fitted.weights, strict=True))
    rows = list(zip(target.layers, lengths, tables, strict=True))
    layers = [
        LayerCost(own, table, tuple(g for g, drop in drops.items() if producers[row.output].index in drop.nodes))
        for row, own, table in rows
        if own is not None
    ]
    lost = [
        (row, table.at(now)) for (row, own, table), now in zip(rows, target.cuts[0].lengths, strict=True) if own is None
    ]
    constant = fitted.constant + sum(seconds for _, seconds in lost)
    notes: tuple[str, ...] = ()
    if not same_model:
        notes = (
            f"{path} was recorded with another file whose layers have the same names and widths: that kernels, strides "
            "and groups are the same, too, is not checked",
        )
    if lost:
        names = first_of([shown(row.output) for row, _ in lost], _SHOWN)
        notes = (
            f"{path}, target {shown(target.name)}: layers that are not found here count at all widths as now: {names}",
        )
    return Device(
        target,
        LatencyCost.of(layers, len(channels.groups), constant),
        tables,
        fitted.constant,
        error_of_prediction(target, measured, fitted.prior),
        notes,
    )


def _lengths(row: LayerRow, channels: ChannelGraph) -> tuple[Length, ...] | None:
    """The lengths of a layer's axes; None where they are not those of the file."""
    full = channels.sizes
    found: list[Length] = []
    for a in row.axes:
        shape = channels.graph.shape(a.tensor)
        if shape is None or a.axis >= len(shape):
            return None
        length = length_of_axis(channels, a.tensor, a.axis, shape[a.axis])
        if length.at(full) != a.size:
            return None
        found.append(length)
    return tuple(found)


def tables_of(target: Target, channels: ChannelGraph) -> list[Table]:
    """The table of each layer, by the cuts at which it was timed, or by what it does where that was at one."""
    if target.how == PROFILE:
        return present.tables_of(target, channels)
    return _measured_tables(target.layers, target.cuts, [BLOCKS for _ in target.layers])


def _measured_tables(
    layers: Sequence[LayerRow], cuts: Sequence[CutRow], blocks: Sequence[Sequence[int]]
) -> list[Table]:
    tables: list[Table] = []
    for i, (row, own) in enumerate(zip(layers, blocks, strict=True)):
        samples = [Sample(c.lengths[i], s) for c in cuts if (s := c.seconds[i]) is not None]
        full = tuple(a.size for a in row.axes)
        tables.append(fit([s for s in samples if min(s.lengths) > 0] or [Sample(full, 0.0)], full, own))
    return tables


def fitted_whole(
    target: Target, tables: Sequence[Table], cuts: Sequence[CutRow], prior: float | None = None
) -> whole.Whole:
    """Whole models from these layers. prior: as for `whole.fit`."""
    if target.how == PROFILE:
        return whole.Whole(present.fixed_share(target), np.full(len(tables), 1.0 / target.seconds))
    return whole.fit(np.stack([_seconds(tables, c) for c in cuts]), np.array([c.share for c in cuts]), prior)


def _seconds(tables: Sequence[Table], cut: CutRow) -> Doubles:
    return np.array([t.at(x) for t, x in zip(tables, cut.lengths, strict=True)])


def error_of_prediction(target: Target, tables: Sequence[Table], prior: float) -> float | None:
    """The root mean square of the relative errors of whole models, each predicted from all others; None for too few.

    tables, prior: of all cuts; each layer keeps its blocks.
    """
    if target.how == PROFILE or len(target.cuts) <= whole.FEW:
        return None
    errors: list[float] = []
    for k, cut in enumerate(target.cuts):
        rest = [c for i, c in enumerate(target.cuts) if i != k]
        own = _measured_tables(target.layers, rest, [(t.block,) for t in tables])
        errors.append(float(fitted_whole(target, own, rest, prior).at(_seconds(own, cut))) / cut.share - 1.0)
    return float(np.sqrt(np.mean(np.square(errors))))
