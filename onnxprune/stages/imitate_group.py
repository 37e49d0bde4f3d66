"""How one group is cut in the network as it is pruned so far: what is proposed, tried, and left behind.

The network is the original at full size: a removed channel has zero weights in every layer that reads it. Where
something other than layers reads a group (a normalization across channels, a kernel with two uses), its channels are
masked as in the oracle, and it keeps the order that the first selection gave it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import onnx

from onnxprune.calibration import gate_moments
from onnxprune.calibration.gated_network import GatedNetwork
from onnxprune.calibration.input_moments import is_wide
from onnxprune.calibration.layers import Layer
from onnxprune.calibration.probe import Batch, Probe, part_of
from onnxprune.calibration.readers import outputs_behind, read_by_layers_alone
from onnxprune.calibration.regressions import consumers_of, regressions_of
from onnxprune.channels import ChannelGraph
from onnxprune.channels.gates import Gate, by_group, units_of
from onnxprune.config import PruneConfig
from onnxprune.data.layouts import Layouts, samples_first
from onnxprune.data.samples import Samples
from onnxprune.graph import external, protobuf
from onnxprune.methods import METHODS
from onnxprune.numerics.arrays import Array, Doubles, Mask
from onnxprune.numerics.gram import NormalEquations
from onnxprune.process import spill
from onnxprune.refit import layerwise, lockstep
from onnxprune.refit.reference import reference_points
from onnxprune.refit.targets import Target
from onnxprune.runtime import outputs
from onnxprune.runtime.session import PROVIDERS, Session, concatenated
from onnxprune.runtime.walker import Walker
from onnxprune.selection import Path
from onnxprune.selection.proposals import Proposal, joined, of_network, of_quadratic
from onnxprune.selection.quadratic import Quadratic
from onnxprune.stages.calibrate import Calibrated
from onnxprune.stages.couple import Coupled
from onnxprune.stages.goals import Goals
from onnxprune.stages.load import Loaded
from onnxprune.surgery import replace_initializers, set_initializers
from onnxprune.verification.oracle import masked_model

Weights = Mapping[str, Array]
# Samples that gradients, and the true network, are evaluated on at each group; the first selection takes all.
_GLOBAL_SAMPLES = 384
_EXACT_SAMPLES = 128


@dataclass(frozen=True, eq=False)
class Choice:
    """How one group was cut.

    imitated: "local", "global", or the method itself where it does not select again on pruned inputs. error: the
    discrepancy of the outputs behind this cut, on the deciding samples. coefficients: (units,), None where the method
    gives none.
    """

    group: int
    imitated: str
    kept: Mask
    error: float
    coefficients: Doubles | None = None


class Network:
    """The network as it is pruned so far, and what is needed to prune it further."""

    def __init__(
        self,
        loaded: Loaded,
        coupled: Coupled,
        calibrated: Calibrated,
        candidates: Mapping[str, Sequence[Path]],
        settings: PruneConfig,
    ) -> None:
        self.loaded: Loaded = loaded
        self.coupled: Coupled = coupled
        self.calibrated: Calibrated = calibrated
        assert calibrated.goals is not None
        self.goals: Goals = calibrated.goals
        self.candidates: Mapping[str, Sequence[Path]] = candidates
        self.settings: PruneConfig = settings
        self.channels: ChannelGraph = coupled.seen.channels
        self.layouts: Layouts = coupled.observed.layouts
        self.choices: list[Choice] = []
        self.masked: dict[int, Mask] = {}
        self.plain: onnx.ModelProto = replace_initializers(coupled.seen.proto, {})
        self._gates = by_group(self.channels, calibrated.gates)
        self.consumers: list[list[Layer]] = consumers_of(self.channels, coupled.layers)
        self.by_layers: set[int] = read_by_layers_alone(self.channels, coupled.layers, self.consumers)
        self.reference: Walker = self._walker(coupled.seen.proto, loaded.fit)
        self.fit_outputs: Mapping[str, Array] = self.goals.fit_outputs
        self.outputs: Mapping[str, Array] = self.goals.deciding_outputs
        self.start()

    def _walker(self, proto: onnx.ModelProto, samples: Samples, *, hold_out: bool = True) -> Walker:
        types, shapes = self.loaded.normalised.types, self.channels.graph.shapes
        memory, provider = self.settings.memory, self.calibrated.provider
        return Walker(proto, samples, types, shapes, memory, hold_out=hold_out, provider=provider)

    def session(self, part: onnx.ModelProto) -> Session:
        """A part of the network, to be run where its statistics were collected."""
        return Session(part, single=True, providers=PROVIDERS[self.calibrated.provider])

    def start(self) -> None:
        """Begin the walk through the pruned network anew, with all masks so far."""
        self.proto: onnx.ModelProto = self.plain
        if self.masked:
            keep = self.channels.keep_classes(self.masked)
            self.proto = masked_model(self.plain, self.channels, keep, self.loaded.normalised.types)
        self.state: Walker = self._walker(self.proto, self.loaded.fit)
        self.deciding: Walker = self._walker(self.proto, self.loaded.deciding, hold_out=False)

    def place(self, g: int) -> tuple[int, int]:
        """Where a group is read first; those that no layer reads come last."""
        reads = [n.index for n in (*(x.node for x in self.consumers[g]), *(x.node for x in self.gates_of(g)))]
        return min(reads, default=len(self.channels.graph.nodes)), g

    def gates_of(self, g: int) -> list[Gate]:
        """The gates of one group."""
        return [self.calibrated.gates[i] for i in self._gates.get(g, ())]

    @property
    def kept(self) -> dict[int, Mask]:
        """Masks of the groups that are cut already."""
        return {c.group: c.kept for c in self.choices}

    def change(self, weights: Weights) -> None:
        """Replace weights of the network."""
        for proto in {id(p): p for p in (self.plain, self.proto)}.values():
            set_initializers(proto, weights)

    @property
    def current(self) -> Weights:
        """The weights of the network as it is."""
        return external.Weights(self.plain.graph.initializer)

    def path(self, g: int, name: str) -> Proposal:
        """What the first selection found."""
        path = self.candidates[name][g]
        return lambda n: (path.kept(n), path.coefficients_of(n))


class Step(Protocol):
    """How one group is cut when its turn comes."""

    group: int

    def proposals(self) -> dict[str, Proposal]:
        """What is proposed, by what it imitates."""

    def folded(self, mask: Mask, coefficients: Doubles | None) -> Weights:
        """The weights that change with this cut, at full size."""

    def error(self, mask: Mask, weights: Weights) -> float:
        """The discrepancy of the outputs with this cut, on the deciding samples."""

    def compared(self, choice: Choice, weights: Weights) -> float:
        """The discrepancy by which one cut is preferred to another of the same width."""

    def leave(self, choice: Choice, weights: Weights) -> None:
        """Leave the network with this cut."""


class MaskedGroup:
    """A group that something other than layers reads: masked as in the oracle, in the order of the first selection."""

    def __init__(self, network: Network, group: int) -> None:
        self.network: Network = network
        self.group: int = group

    def proposals(self) -> dict[str, Proposal]:
        """The paths of the first selection, without coefficients: not all that reads the group could take them."""

        def masks(name: str) -> Proposal:
            return lambda n: (self.network.candidates[name][self.group].kept(n), None)

        return {name: masks(name) for name in self.network.candidates}

    def folded(self, mask: Mask, coefficients: Doubles | None) -> Weights:
        """What the layers among the readers become."""
        network = self.network
        # Its coefficients stay 1, as the proposals have none.
        level = "none" if network.settings.folds else network.settings.level
        keep = network.channels.keep_classes({**network.kept, self.group: mask})
        walked = network.settings.walks or network.settings.folds  # else the last refit starts from the original's
        weights = network.current if walked else network.channels.graph.constants
        return layerwise.in_place(network.consumers[self.group], network.calibrated.moments, weights, keep, level)

    def error(self, mask: Mask, weights: Weights) -> float:
        """Of a run of the whole network."""
        network = self.network
        keep = network.channels.keep_classes({**network.masked, self.group: mask})
        with spill.spilling():  # the trial's weights go with it
            plain = replace_initializers(network.plain, weights)
            answers = outputs.outputs_of(
                masked_model(plain, network.channels, keep, network.loaded.normalised.types),
                network.loaded.deciding,
                network.layouts,
            )
        return network.goals.deciding.value(answers, slice(0, len(network.loaded.deciding)))

    def compared(self, choice: Choice, weights: Weights) -> float:
        """The discrepancy on the deciding samples."""
        return choice.error

    def leave(self, choice: Choice, weights: Weights) -> None:
        """Mask the group; what was walked so far is walked again."""
        network = self.network
        network.change(weights)
        network.masked[self.group] = choice.kept
        network.start()
        network.outputs = outputs.outputs_of(network.proto, network.loaded.deciding, network.layouts)
        if network.settings.reads_gradients:
            network.fit_outputs = outputs.outputs_of(network.proto, network.loaded.fit, network.layouts)


class LayersGroup:
    """A group that layers alone read: only their weights change, and what lies before them does not run again."""

    def __init__(self, network: Network, group: int) -> None:
        self.network: Network = network
        self.group: int = group
        self.consumers: list[Layer] = network.consumers[group]
        first = min(self.consumers, key=lambda x: x.node.index).data
        for walker in (network.reference, network.state, network.deciding):
            walker.move_to((first,))
        self.outputs: list[str] = outputs_behind(network.channels, {x.node.index for x in self.consumers})

    # what is proposed

    def proposals(self) -> dict[str, Proposal]:
        """Greedy imitation on the present inputs; where the method knows none, the path of the first selection."""
        network = self.network
        if not METHODS[network.settings.method].sequential:
            return {name: network.path(self.group, name) for name in network.candidates}
        rows = network.channels.groups[self.group].rows
        proposals: dict[str, Proposal] = {}
        for name in network.candidates:
            imitated = self._global() if METHODS[name].gradients else None
            if callable(imitated):
                proposals[name] = imitated
                continue
            # Nothing is known of the outputs behind this group: the method that looks at its layers stands in.
            kind = METHODS[name].stand_in if imitated is None and METHODS[name].gradients else name
            q = self.local if imitated is None else imitated
            free, fixed = network.settings.coefficients == "free", METHODS[name].fixed
            proposals[kind] = of_quadratic(q, rows, free=free, fixed=fixed)
        return proposals

    @cached_property
    def equations(self) -> dict[str, tuple[NormalEquations, NormalEquations]]:
        """By weight: the normal equations of each consumer on the present inputs, to fit and to judge."""
        network = self.network
        whole = np.ones(network.channels.classes.pinned.size, bool)
        usable = [x for x in self.consumers if not is_wide(x) and x.data not in x.node.outputs]
        targets = [Target(x.output or x.data) for x in usable]
        points = reference_points(
            usable, targets, network.channels.graph, network.reference, whole, network.settings.seed, stay=True
        )
        return {
            x.weight: lockstep.accumulate(x, Target(x.data), own, network.state, x.kept_outputs(whole), stay=True)
            for x, own in zip(usable, points, strict=True)
        }

    @cached_property
    def local(self) -> Quadratic:
        """Discrepancy of the consumers' outputs, each relative to its variance."""
        return self._consumed(None)

    def _consumed(self, metrics: Mapping[str, Doubles] | None) -> Quadratic:
        """Of the consumers' outputs in the metric of each, or relative to its variance."""
        network, group = self.network, self.network.channels.groups[self.group]
        units, size = units_of(network.channels, self.group), group.size
        total = Quadratic.of_gram(np.zeros((size, size)))
        for layer in self.consumers:
            if layer.weight not in network.calibrated.moments:
                continue
            regressions = regressions_of(group, [layer], network.channels, network.calibrated.moments, {})
            if layer.weight not in self.equations:
                for r in regressions:
                    total += Quadratic.of_gram(r.contributions(size))
                continue
            train, held = self.equations[layer.weight]
            w = layer.matrix(network.current)
            for i in range(layer.groups):
                unit = units[layer.columns(i)]
                if (unit < 0).all():
                    continue
                metric = regressions[0].weight * np.eye(w.shape[2]) if metrics is None else metrics[layer.weight][i]
                total += Quadratic.of_equations(*joined(train, held, i), w[i], unit, size, metric)
        return total

    def _global(self) -> Quadratic | Proposal | None:
        """The outputs of the network; None where there are no gradients."""
        network, settings = self.network, self.network.settings
        if self.group in network.calibrated.outputs.missing or self.group not in network.calibrated.outputs.gates:
            return None
        if settings.metric == "kronecker":
            metrics = network.calibrated.outputs.metrics
            return self._consumed(metrics) if all(x.weight in metrics for x in self.consumers) else None
        gates = network.gates_of(self.group)
        part = self._part(network.state)
        batches = self._batches(_EXACT_SAMPLES if settings.metric == "exact" else _GLOBAL_SAMPLES)
        types, provider = network.loaded.normalised.types, network.calibrated.provider
        if settings.metric == "exact":
            gated = GatedNetwork(part, network.channels, self.group, gates, types, batches, network.goals.fit, provider)
            g = network.channels.groups[self.group]
            return of_network(gated, g.size, g.rows, free=settings.coefficients == "free")
        probe = Probe.of(part, network.channels, gates, (), types, provider, network.layouts)
        output_moments = gate_moments.collect(
            probe, network.channels, batches, network.goals.fit, probes=settings.probes, seed=settings.seed, slope=True
        )
        moments = output_moments.gates.get(self.group)
        if moments is None:
            return None
        value = sum(network.goals.fit.value(b.outputs, b.index) for b in batches)
        return Quadratic.around(moments.gram, moments.slope, value)

    def _part(self, walker: Walker) -> onnx.ModelProto:
        """The network behind what the walker keeps."""
        return protobuf.submodel(self.network.proto, walker.frontier, self.outputs)

    def _batches(self, samples: int, weights: Weights | None = None) -> list[Batch]:
        """Samples for fitting, about so many, from the frontier on, with the present outputs, or with other weights."""
        state = self.network.state
        part = self._part(state)
        set_initializers(part, weights or {})
        session = self.network.session(part)
        batches: list[Batch] = []
        start = 0
        for feeds, count in zip(state.batches, state.counts, strict=True):
            index = slice(start, start + count)
            before = part_of(self.network.fit_outputs, index, len(state.samples))
            present = samples_first(session.run(feeds), count, self.network.layouts)
            batches.append(Batch(feeds, {**before, **present}, index, count))
            start += count
            if start >= samples:
                break
        return batches

    # what is tried

    def folded(self, mask: Mask, coefficients: Doubles | None) -> Weights:
        """The consumers' weights at the level of the refit."""
        network = self.network
        keep = network.channels.keep_classes({**network.kept, self.group: mask})
        level, current = network.settings.level, network.current
        if network.settings.folds:
            return layerwise.scaled(self.consumers, current, keep, self._by_class(coefficients))
        if not network.settings.walks:  # the last refit starts from the original's weights too
            return layerwise.in_place(
                self.consumers, network.calibrated.moments, network.channels.graph.constants, keep, level
            )
        weights = layerwise.in_place(self.consumers, network.calibrated.moments, current, keep, level)
        refitted = dict(weights)
        for layer in self.consumers:
            if layer.weight in self.equations:
                sums = self.equations[layer.weight]
                refitted.update(lockstep.on_present_inputs(layer, sums, {**current, **weights}, keep))
        return refitted

    def _by_class(self, coefficients: Doubles | None) -> Doubles:
        """Factors by class, 1 outside the group."""
        channels = self.network.channels
        factors = np.ones(channels.classes.pinned.size)
        if coefficients is not None:
            factors[channels.groups[self.group].units] = coefficients
        return factors

    def error(self, mask: Mask, weights: Weights) -> float:
        """Of a run from the consumers on."""
        network = self.network
        outputs = {**network.outputs, **self._run(network.deciding, weights)}
        return network.goals.deciding.value(outputs, slice(0, len(network.loaded.deciding)))

    def compared(self, choice: Choice, weights: Weights) -> float:
        """That on the deciding samples and on some of those for fitting: the former alone are few."""
        fit, deciding = self.network.goals.fit, len(self.network.loaded.deciding)
        batches = self._batches(_GLOBAL_SAMPLES, weights)
        count = sum(b.count for b in batches)
        value = sum(fit.value(b.outputs, b.index) for b in batches) * fit.samples / count
        return (value * count + choice.error * deciding) / (count + deciding)

    def _run(self, walker: Walker, weights: Weights) -> dict[str, Array]:
        part = self._part(walker)
        set_initializers(part, weights)
        session = self.network.session(part)
        runs = zip(walker.batches, walker.counts, strict=True)
        parts = [samples_first(session.run(b), n, self.network.layouts) for b, n in runs]
        return concatenated(parts, padded=walker.samples.ragged)

    def leave(self, choice: Choice, weights: Weights) -> None:
        """Put the weights into the network."""
        network = self.network
        network.change(weights)
        network.outputs = {**network.outputs, **self._run(network.deciding, {})}
        if network.settings.reads_gradients and len(network.channels.graph.outputs) > 1:
            # Groups that lie behind some of the outputs ask for these.
            network.fit_outputs = {**network.fit_outputs, **self._run(network.state, {})}
