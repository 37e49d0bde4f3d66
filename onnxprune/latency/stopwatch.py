"""The latency of one model at any widths: measured, and predicted from its layers.

Layers are measured inside the model itself: it is cut at a few combinations of widths, and onnxruntime's profiler tells
what every layer took in each. The widths of each group are spread evenly over what it may keep, in an order of its own,
so every layer is seen at a grid of its own (in, out) widths, fused and laid out in memory as it will be. What a machine
has measured once it does not measure again (`cache`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnxprune.allocation import every_part
from onnxprune.channels import ChannelGraph, Group
from onnxprune.channels.branches import Drop
from onnxprune.data.samples import Samples
from onnxprune.errors import BudgetUnreachable, UsageError
from onnxprune.latency.cache import Cache
from onnxprune.latency.latency_cost import LatencyCost, LayerCost
from onnxprune.latency.layers import Layers, TimedLayer, layers_of, marked
from onnxprune.latency.machine import Machine
from onnxprune.latency.search import KeptUnits
from onnxprune.latency.table import Sample, fit
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.timing import quick_ratio
from onnxprune.selection.path import Path, in_turns
from onnxprune.surgery import cut

GRID = 16
SESSIONS = 3


@dataclass(frozen=True)
class TargetTime:
    """The time on a device that is not here, by its timing file.

    how: as there. before_seconds: of the original, measured there; predicted: the share of it that stays. error: of
    such predictions, as a root mean square, None where it is not known. extrapolated: no other width was measured.
    """

    name: str
    how: str
    machine: Mapping[str, str]
    batch: int
    before_seconds: float
    predicted: float
    error: float | None
    extrapolated: bool = False


@dataclass(frozen=True)
class Latency:
    """Shares of the original's time that stay, and seconds of one run before and after.

    measured: None where nothing was run. predicted: by the layers; None where no layer was looked at. machine: what was
    measured on, and with. saved: by the layers too, the share that the cut of each group saves by itself; () where no
    layer was looked at. targets: where the times are those of timing files; the rest is then that of the slowest.
    """

    batch: int
    machine: Mapping[str, str]
    before_seconds: float
    after_seconds: float
    measured: float | None
    predicted: float | None = None
    layers: int = 0
    kinds: int = 0
    kinds_from_cache: int = 0
    notes: tuple[str, ...] = ()
    saved: tuple[float, ...] = ()
    targets: tuple[TargetTime, ...] = ()

    @property
    def share(self) -> float:
        """The share of the time that stays: measured, or as it is predicted where nothing was run."""
        return self.measured if self.measured is not None else self.predicted if self.predicted is not None else 1.0


@dataclass(eq=False)
class Stopwatch:
    """Times cuts of one model against the original, in turns.

    proto, channels: the normalised model and its channel graph. widths: units that each group may keep, ascending.
    feeds: of one run. drops: what disappears with a group's last unit. counts: layers, kinds of them, and kinds that
    were known already. measures: shares are measured, and not predicted.
    """

    original: onnx.ModelProto
    proto: onnx.ModelProto
    channels: ChannelGraph
    widths: Sequence[tuple[int, ...]]
    feeds: Mapping[str, Array]
    machine: Machine
    cache: Cache
    batch: int = 1
    alignment: int = 1
    drops: Mapping[int, Drop] = field(default_factory=dict)
    _cost: LatencyCost | None = None
    counts: tuple[int, int, int] = (0, 0, 0)
    measures: bool = True

    @property
    def cost(self) -> LatencyCost:
        """The predicted share of the original's time; measures the layers on first use. Raises RunError."""
        if self._cost is None:
            self._cost = self._measured()
        return self._cost

    def measure(self) -> None:
        """Measure the layers now. Raises RunError."""
        _ = self.cost

    def cut(self, kept: Sequence[int]) -> onnx.ModelProto | None:
        """The model at these widths, nothing fitted; which units stay is arbitrary. None where a part would vanish."""
        paths = [Path(in_turns(np.arange(g.size)[::-1].copy(), g.rows), np.zeros(g.size + 1)) for g in self._groups]
        fewer = {g.index: paths[g.index].kept(k) for g, k in zip(self._groups, kept, strict=True) if k < g.size}
        masks = every_part.with_every_part(self.channels, fewer, paths)
        if masks is None:
            return None
        return cut(marked(self.proto), self.channels, self.channels.keep_classes(masks))

    def share(self, kept: KeptUnits) -> float:
        """The measured share of the original's time that the model takes at these widths, anew at every call.

        Raises RunError, and BudgetUnreachable where they leave no model.
        """
        model = self.cut(kept)
        if model is None:
            raise BudgetUnreachable("some tensor would keep no channel at all at these widths; lower --ratio")
        return self.compared(model)[0]

    def compared(self, model: onnx.ModelProto) -> tuple[float, float, float]:
        """(share of the original's time, seconds of the original, seconds of `model`), medians over new sessions.

        Where a session's memory happens to lie makes a difference of percents, which more runs of it do not tell.
        """
        pairs = [self.machine.compare([model, self.original], self.feeds) for _ in range(SESSIONS)]
        rows = [(quick_ratio(new, old), old.median, new.median) for new, old in pairs]
        share, before, after = np.median(rows, axis=0).tolist()
        return share, before, after

    def timed(self, model: onnx.ModelProto | None, kept: KeptUnits) -> Latency:
        """What is to report of a finished model, or of the cut at these widths where there is none."""
        share, before, after = self.compared(model or self.cut(kept) or self.proto)
        layers, kinds, cached = self.counts
        cost, full = self._cost, self.channels.sizes
        cuts = [] if cost is None else [(g, n - k) for g, (n, k) in enumerate(zip(full, kept, strict=True))]
        saved = tuple(cost.saving(np.array(full), g, fewer) if cost is not None and fewer else 0.0 for g, fewer in cuts)
        return Latency(
            self.batch,
            dict(self.machine.identity()),
            before,
            after,
            share,
            None if self._cost is None else self._cost.at(kept),
            layers,
            kinds,
            cached,
            tuple(self.cache.notes),
            saved,
        )

    @property
    def _groups(self) -> Sequence[Group]:
        return self.channels.groups

    def _measured(self) -> LatencyCost:
        least = [w[0] for w in self.positive]
        layers = layers_of(self.channels, self.machine.kernels(marked(self.proto), self.feeds), least, self.alignment)
        kinds = {layer.signature: len(layer.lengths) for layer in layers.layers}
        samples_by_kind = {s: samples for s, axes in kinds.items() if (samples := self.cache.load(s, axes))}
        self.counts = len(layers.layers), len(kinds), len(samples_by_kind)
        if len(samples_by_kind) < len(kinds):
            for signature, samples in self._sampled(layers).items():
                if signature not in samples_by_kind:
                    samples_by_kind[signature] = samples
                    self.cache.store(signature, samples)
        few = self._fewest()
        tables = {
            x.signature: fit(samples_by_kind[x.signature], tuple(n.at(self.channels.sizes) for n in x.lengths))
            for x in layers.layers
        }
        return LatencyCost.between(
            [LayerCost(x.lengths, tables[x.signature], self._needed(x)) for x in layers.layers],
            len(self._groups),
            (self.channels.sizes, self.share(self.channels.sizes)),
            (few, self.share(few)),
        )

    def _sampled(self, layers: Layers) -> dict[str, tuple[Sample, ...]]:
        """What each kind of layer took in every cut of the grid."""
        samples: dict[str, list[Sample]] = {x.signature: [] for x in layers.layers}
        for kept in grid(self.positive, GRID):
            model = self.cut(kept)
            if model is None:
                continue
            seconds = layers.seconds(self.machine.kernels(model, self.feeds))
            for layer, s in zip(layers.layers, seconds, strict=True):
                samples[layer.signature].append(Sample(tuple(n.at(kept) for n in layer.lengths), s))
        return {signature: tuple(s) for signature, s in samples.items()}

    def _needed(self, layer: TimedLayer) -> tuple[int, ...]:
        """The groups that a layer goes with."""
        return tuple(g for g, drop in self.drops.items() if layer.node in drop.nodes)

    def _fewest(self) -> KeptUnits:
        """The least widths that leave a model."""
        candidates = [
            tuple(w[0] for w in self.positive),
            *sorted(grid(self.positive, GRID), key=sum),
            self.channels.sizes,
        ]
        return next(kept for kept in candidates if self.cut(kept) is not None)

    @property
    def positive(self) -> list[tuple[int, ...]]:
        """Widths at which every layer still works."""
        return [tuple(n for n in w if n > 0) for w in self.widths]


def grid(widths: Sequence[tuple[int, ...]], points: int) -> list[KeptUnits]:
    """Combinations of widths: the full and the least ones, and `points` that take every group through all its widths.

    A Latin hypercube with a fixed seed: a group meets each of `points` equal parts of its widths once.
    """
    rng = np.random.default_rng(0)
    columns = []
    for w in widths:
        positions = (rng.permutation(points) + rng.random(points)) / points
        columns.append([w[int(a * len(w))] for a in positions])
    rows = [tuple(int(c[i]) for c in columns) for i in range(points)]
    return [tuple(w[-1] for w in widths), tuple(w[0] for w in widths), *rows]


def feeds_of(samples: Samples, batch: int) -> dict[str, Array]:
    """One run's inputs: `batch` samples, repeated where there are fewer. Raises UsageError for a fixed batch."""
    if samples.per_run is not None and batch not in (1, samples.per_run):
        many = "one sample" if samples.per_run == 1 else f"{samples.per_run} samples"
        raise UsageError(f"the model takes {many} at a time, not a --batch of {batch}")
    if not samples.sampled and batch > 1:
        raise UsageError(f"the model's inputs have no free batch axis for a --batch of {batch}")
    return samples.repeated(samples.run_size(batch))
