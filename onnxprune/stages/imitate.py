"""Sequential selection: groups are cut one by one, from input to output, and each sees the cuts before it.

This is the order of Ye, Wu & Liu (NeurIPS 2020, algorithm 1). A group is selected on the inputs that the pruned network
gives it, towards what the original gives: locally, its consumers' outputs; globally, the network's. How many units stay
is given, or follows from a tolerance on the discrepancy of the outputs between the network as it is pruned so far and
the *original*; the tolerance grows by the same amount from group to group, so that the last cut has as much to spend as
the first.

The network in between is the original at full size: a removed channel has zero weights in every layer that reads it.
Where something other than layers reads a group (a normalization across channels, a kernel with two uses), its channels
are masked as in the oracle, and it keeps the order that the first selection gave it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import onnx

from onnxprune.allocation import every_part
from onnxprune.allocation.every_part import exchanged
from onnxprune.calibration import gate_moments
from onnxprune.calibration.gated_network import GatedNetwork
from onnxprune.calibration.input_moments import is_wide
from onnxprune.calibration.probe import Batch, Probe, part_of
from onnxprune.calibration.readers import outputs_behind, read_by_layers_alone
from onnxprune.calibration.regressions import consumers_of, regressions_of
from onnxprune.channels import branches
from onnxprune.channels.gates import Gate, by_group, units_of
from onnxprune.config import PruneConfig
from onnxprune.data.layouts import samples_first
from onnxprune.data.samples import Samples
from onnxprune.errors import BudgetUnreachable, NothingPrunable
from onnxprune.graph import external, protobuf, spill
from onnxprune.methods import METHODS
from onnxprune.numerics.arrays import Array, Coefficients, Doubles, Mask, Masks
from onnxprune.numerics.gram import NormalEquations
from onnxprune.refit import layerwise, lockstep
from onnxprune.refit.targets import Target
from onnxprune.runtime import outputs
from onnxprune.runtime.session import Session, concatenated
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
Cut = tuple[dict[int, Mask], dict[int, Coefficients]]


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


@dataclass(frozen=True, eq=False)
class Selected:
    """The choices in their order."""

    choices: tuple[Choice, ...]

    @property
    def masks(self) -> dict[int, Mask]:
        """Kept units by group index."""
        return {c.group: c.kept for c in self.choices}

    @property
    def coefficients(self) -> dict[int, Doubles]:
        """Coefficients by group index, of the groups that have any."""
        return {c.group: c.coefficients for c in self.choices if c.coefficients is not None}


def imitate(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    candidates: Mapping[str, Sequence[Path]],
    masks: Masks,
    settings: PruneConfig,
) -> Cut:
    """Cut group by group, each on the inputs that the cuts before it left: to the widths of `masks`, or as far as the
    tolerance goes. Raises BudgetUnreachable and NothingPrunable."""
    if settings.tolerance is None:
        widths: dict[int, tuple[int, ...]] = {g: (int(mask.sum()),) for g, mask in masks.items()}
    else:
        widths = {g: w for g, w in enumerate(coupled.widths.allowed) if len(w) > 1 and g not in coupled.taken.idle}
    chosen = in_sequence(loaded, coupled, calibrated, candidates, widths, settings)
    if not chosen.masks:
        raise NothingPrunable(f"not one group can be cut within a tolerance of {settings.tolerance}; give a larger one")
    dead = branches.dead_groups(coupled.drops, chosen.masks)
    masks = {g: mask for g, mask in chosen.masks.items() if g not in dead}
    return masks, {g: a for g, a in chosen.coefficients.items() if g not in dead}


def in_sequence(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    candidates: Mapping[str, Sequence[Path]],
    widths: Mapping[int, Sequence[int]],
    settings: PruneConfig,
) -> Selected:
    """Cut every group of `widths`: to its only width, or to the narrowest that the tolerance allows.

    candidates: by what is imitated, the paths of all groups from the first selection. widths: group index → numbers of
    units that may stay, ascending; where the tolerance decides, the last is all of them.
    Raises BudgetUnreachable where a tensor would be left without a channel.
    """
    run = _Run(loaded, coupled, calibrated, candidates, settings)
    order = sorted(widths, key=run.place)
    for i, g in enumerate(order):
        limit = None if settings.tolerance is None else settings.tolerance * (i + 1) / len(order)
        run.cut(g, list(widths[g]), limit)
    return Selected(tuple(run.choices))


class _Run:
    """The network as it is pruned so far, and what is needed to prune it further."""

    def __init__(
        self,
        loaded: Loaded,
        coupled: Coupled,
        calibrated: Calibrated,
        candidates: Mapping[str, Sequence[Path]],
        settings: PruneConfig,
    ) -> None:
        self.loaded, self.coupled, self.calibrated = loaded, coupled, calibrated
        assert calibrated.goals is not None
        self.goals: Goals = calibrated.goals
        self.candidates, self.settings = candidates, settings
        self.channels = coupled.seen.channels
        self.layouts = coupled.observed.layouts
        self.choices: list[Choice] = []
        self.masked: dict[int, Mask] = {}
        self.plain = replace_initializers(coupled.seen.proto, {})
        self._gates = by_group(self.channels, calibrated.gates)
        self.consumers = consumers_of(self.channels, coupled.layers)
        self.by_layers = read_by_layers_alone(self.channels, coupled.layers, self.consumers)
        self.reference = self._walker(coupled.seen.proto, loaded.fit)
        self.fit_outputs: Mapping[str, Array] = self.goals.fit_outputs
        self.outputs: Mapping[str, Array] = self.goals.deciding_outputs
        self.start()

    def _walker(self, proto: onnx.ModelProto, samples: Samples, *, hold_out: bool = True) -> Walker:
        types, shapes = self.loaded.normalised.types, self.channels.graph.shapes
        return Walker(proto, samples, types, shapes, self.settings.memory, hold_out=hold_out)

    def start(self) -> None:
        """Begin the walk through the pruned network anew, with all masks so far."""
        self.proto = self.plain
        if self.masked:
            keep = self.channels.keep_classes(self.masked)
            self.proto = masked_model(self.plain, self.channels, keep, self.loaded.normalised.types)
        self.state = self._walker(self.proto, self.loaded.fit)
        self.deciding = self._walker(self.proto, self.loaded.deciding, hold_out=False)

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

    # one group

    def cut(self, g: int, widths: Sequence[int], limit: float | None) -> None:
        """Cut one group and leave the network so."""
        step: _Step = _Layers(self, g) if g in self.by_layers else _Masked(self, g)
        attempts = [self._narrowest(step, name, p, widths, limit) for name, p in step.proposals().items()]
        tried = [f for f in attempts if f is not None]
        if tried:
            narrowest = min(int(choice.kept.sum()) for choice, _ in tried)
            equal = [f for f in tried if int(f[0].kept.sum()) == narrowest]
            best = equal[0] if len(equal) == 1 else min(equal, key=lambda f: step.compared(*f))
            self.choices.append(best[0])
            step.leave(*best)

    def _narrowest(
        self, step: _Step, name: str, propose: Proposal, widths: Sequence[int], limit: float | None
    ) -> tuple[Choice, Weights] | None:
        """The cut to the only width, or to the narrowest within the limit; None where the group stays whole."""
        if limit is None:
            attempt = self._attempt(step, name, propose, widths[0])
            if attempt is None:
                raise BudgetUnreachable("some tensor would keep no channel at all; remove less")
            return attempt
        best: tuple[Choice, Weights] | None = None
        low, high = 0, len(widths) - 1
        while low < high:
            middle = (low + high) // 2
            attempt = self._attempt(step, name, propose, widths[middle])
            if attempt is not None and attempt[0].error <= limit:
                best, high = attempt, middle
            else:
                low = middle + 1
        return best

    def _attempt(self, step: _Step, name: str, propose: Proposal, width: int) -> tuple[Choice, Weights] | None:
        """The cut to a width; None where it would leave some tensor without a channel."""
        none = np.zeros(self.channels.groups[step.group].size, bool)
        wanted, coefficients = propose(width) if width else (none, None)
        mask = self._with_every_part(step.group, wanted)
        if mask is None:
            return None
        coefficients = exchanged(coefficients, wanted, mask)
        weights = step.folded(mask, coefficients)
        return Choice(step.group, name, mask, step.error(mask, weights), coefficients), weights

    def _with_every_part(self, g: int, mask: Mask) -> Mask | None:
        paths = next(iter(self.candidates.values()))
        whole = every_part.with_every_part(self.channels, {**self.kept, g: mask}, paths)
        if whole is None or any(not np.array_equal(whole[i], k) for i, k in self.kept.items()):
            return None
        return whole[g]

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


class _Step(Protocol):
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


class _Masked:
    """A group that something other than layers reads: masked as in the oracle, in the order of the first selection."""

    def __init__(self, run: _Run, group: int) -> None:
        self.run, self.group = run, group

    def proposals(self) -> dict[str, Proposal]:
        """The paths of the first selection, without coefficients: not all that reads the group could take them."""

        def masks(name: str) -> Proposal:
            return lambda n: (self.run.candidates[name][self.group].kept(n), None)

        return {name: masks(name) for name in self.run.candidates}

    def folded(self, mask: Mask, coefficients: Doubles | None) -> Weights:
        """What the layers among the readers become."""
        run = self.run
        # Its coefficients stay 1, as the proposals have none.
        level = "none" if run.settings.folds else run.settings.level
        keep = run.channels.keep_classes({**run.kept, self.group: mask})
        walked = run.settings.walks or run.settings.folds  # else the last refit starts from the original's
        weights = run.current if walked else run.channels.graph.constants
        return layerwise.in_place(run.consumers[self.group], run.calibrated.moments, weights, keep, level)

    def error(self, mask: Mask, weights: Weights) -> float:
        """Of a run of the whole network."""
        run = self.run
        keep = run.channels.keep_classes({**run.masked, self.group: mask})
        with spill.spilling():  # the trial's weights go with it
            plain = replace_initializers(run.plain, weights)
            answers = outputs.outputs_of(
                masked_model(plain, run.channels, keep, run.loaded.normalised.types), run.loaded.deciding, run.layouts
            )
        return run.goals.deciding.value(answers, slice(0, len(run.loaded.deciding)))

    def compared(self, choice: Choice, weights: Weights) -> float:
        """The discrepancy on the deciding samples."""
        return choice.error

    def leave(self, choice: Choice, weights: Weights) -> None:
        """Mask the group; what was walked so far is walked again."""
        run = self.run
        run.change(weights)
        run.masked[self.group] = choice.kept
        run.start()
        run.outputs = outputs.outputs_of(run.proto, run.loaded.deciding, run.layouts)
        if run.settings.reads_gradients:
            run.fit_outputs = outputs.outputs_of(run.proto, run.loaded.fit, run.layouts)


class _Layers:
    """A group that layers alone read: only their weights change, and what lies before them does not run again."""

    def __init__(self, run: _Run, group: int) -> None:
        self.run, self.group = run, group
        self.consumers = run.consumers[group]
        first = min(self.consumers, key=lambda x: x.node.index).data
        for walker in (run.reference, run.state, run.deciding):
            walker.move_to((first,))
        self.outputs = outputs_behind(run.channels, {x.node.index for x in self.consumers})

    # what is proposed

    def proposals(self) -> dict[str, Proposal]:
        """Greedy imitation on the present inputs; where the method knows none, the path of the first selection."""
        run = self.run
        if not METHODS[run.settings.method].sequential:
            return {name: run.path(self.group, name) for name in run.candidates}
        rows = run.channels.groups[self.group].rows
        proposals: dict[str, Proposal] = {}
        for name in run.candidates:
            imitated = self._global() if METHODS[name].gradients else None
            if callable(imitated):
                proposals[name] = imitated
                continue
            # Nothing is known of the outputs behind this group: the method that looks at its layers stands in.
            kind = METHODS[name].stand_in if imitated is None and METHODS[name].gradients else name
            q = self.local if imitated is None else imitated
            free, fixed = run.settings.coefficients == "free", METHODS[name].fixed
            proposals[kind] = of_quadratic(q, rows, free=free, fixed=fixed)
        return proposals

    @cached_property
    def equations(self) -> dict[str, tuple[NormalEquations, NormalEquations]]:
        """By weight: the normal equations of each consumer on the present inputs, to fit and to judge."""
        run = self.run
        whole = np.ones(run.channels.classes.pinned.size, bool)
        usable = [x for x in self.consumers if not is_wide(x) and x.data not in x.node.outputs]
        targets = [Target(x.output or x.data) for x in usable]
        points = lockstep.reference_points(
            usable, targets, run.channels.graph, run.reference, whole, run.settings.seed, stay=True
        )
        return {
            x.weight: lockstep.accumulate(x, Target(x.data), layer_points, run.state, x.kept_outputs(whole), stay=True)
            for x, layer_points in zip(usable, points, strict=True)
        }

    @cached_property
    def local(self) -> Quadratic:
        """Discrepancy of the consumers' outputs, each relative to its variance."""
        return self._consumed(None)

    def _consumed(self, metrics: Mapping[str, Doubles] | None) -> Quadratic:
        """Of the consumers' outputs in the metric of each, or relative to its variance."""
        run, group = self.run, self.run.channels.groups[self.group]
        units, size = units_of(run.channels, self.group), group.size
        total = Quadratic.of_gram(np.zeros((size, size)))
        for layer in self.consumers:
            if layer.weight not in run.calibrated.moments:
                continue
            regressions = regressions_of(group, [layer], run.channels, run.calibrated.moments, {})
            if layer.weight not in self.equations:
                for r in regressions:
                    total += Quadratic.of_gram(r.contributions(size))
                continue
            train, held = self.equations[layer.weight]
            w = layer.matrix(run.current)
            for i in range(layer.groups):
                unit = units[layer.columns(i)]
                if (unit < 0).all():
                    continue
                metric = regressions[0].weight * np.eye(w.shape[2]) if metrics is None else metrics[layer.weight][i]
                total += Quadratic.of_equations(*joined(train, held, i), w[i], unit, size, metric)
        return total

    def _global(self) -> Quadratic | Proposal | None:
        """The outputs of the network; None where there are no gradients."""
        run, settings = self.run, self.run.settings
        if self.group in run.calibrated.outputs.missing or self.group not in run.calibrated.outputs.gates:
            return None
        if settings.metric == "kronecker":
            metrics = run.calibrated.outputs.metrics
            return self._consumed(metrics) if all(x.weight in metrics for x in self.consumers) else None
        gates = run.gates_of(self.group)
        part = self._part(run.state)
        batches = self._batches(_EXACT_SAMPLES if settings.metric == "exact" else _GLOBAL_SAMPLES)
        types = run.loaded.normalised.types
        if settings.metric == "exact":
            network = GatedNetwork(part, run.channels, self.group, gates, types, batches, run.goals.fit)
            g = run.channels.groups[self.group]
            return of_network(network, g.size, g.rows, free=settings.coefficients == "free")
        probe = Probe.of(part, run.channels, gates, (), types, layouts=run.layouts)
        output_moments = gate_moments.collect(
            probe, run.channels, batches, run.goals.fit, probes=settings.probes, seed=settings.seed, slope=True
        )
        moments = output_moments.gates.get(self.group)
        if moments is None:
            return None
        value = sum(run.goals.fit.value(b.outputs, b.index) for b in batches)
        return Quadratic.around(moments.gram, moments.slope, value)

    def _part(self, walker: Walker) -> onnx.ModelProto:
        """The network behind what the walker keeps."""
        return protobuf.submodel(self.run.proto, walker.frontier, self.outputs)

    def _batches(self, samples: int, weights: Weights | None = None) -> list[Batch]:
        """Samples for fitting, about so many, from the frontier on, with the present outputs, or with other weights."""
        state = self.run.state
        part = self._part(state)
        set_initializers(part, weights or {})
        session = Session(part, single=True)
        batches: list[Batch] = []
        start = 0
        for feeds, count in zip(state.batches, state.counts, strict=True):
            index = slice(start, start + count)
            before = part_of(self.run.fit_outputs, index, len(state.samples))
            present = samples_first(session.run(feeds), count, self.run.layouts)
            batches.append(Batch(feeds, {**before, **present}, index, count))
            start += count
            if start >= samples:
                break
        return batches

    # what is tried

    def folded(self, mask: Mask, coefficients: Doubles | None) -> Weights:
        """The consumers' weights at the level of the refit."""
        run = self.run
        keep = run.channels.keep_classes({**run.kept, self.group: mask})
        level, current = run.settings.level, run.current
        if run.settings.folds:
            return layerwise.scaled(self.consumers, current, keep, self._by_class(coefficients))
        if not run.settings.walks:  # the last refit starts from the original's weights too
            return layerwise.in_place(self.consumers, run.calibrated.moments, run.channels.graph.constants, keep, level)
        weights = layerwise.in_place(self.consumers, run.calibrated.moments, current, keep, level)
        refitted = dict(weights)
        for layer in self.consumers:
            if layer.weight in self.equations:
                sums = self.equations[layer.weight]
                refitted.update(lockstep.on_present_inputs(layer, sums, {**current, **weights}, keep))
        return refitted

    def _by_class(self, coefficients: Doubles | None) -> Doubles:
        """Factors by class, 1 outside the group."""
        channels = self.run.channels
        factors = np.ones(channels.classes.pinned.size)
        if coefficients is not None:
            factors[channels.groups[self.group].units] = coefficients
        return factors

    def error(self, mask: Mask, weights: Weights) -> float:
        """Of a run from the consumers on."""
        run = self.run
        outputs = {**run.outputs, **self._run(run.deciding, weights)}
        return run.goals.deciding.value(outputs, slice(0, len(run.loaded.deciding)))

    def compared(self, choice: Choice, weights: Weights) -> float:
        """That on the deciding samples and on some of those for fitting: the former alone are few."""
        fit, deciding = self.run.goals.fit, len(self.run.loaded.deciding)
        batches = self._batches(_GLOBAL_SAMPLES, weights)
        count = sum(b.count for b in batches)
        value = sum(fit.value(b.outputs, b.index) for b in batches) * fit.samples / count
        return (value * count + choice.error * deciding) / (count + deciding)

    def _run(self, walker: Walker, weights: Weights) -> dict[str, Array]:
        part = self._part(walker)
        set_initializers(part, weights)
        session = Session(part, single=True)
        runs = zip(walker.batches, walker.counts, strict=True)
        return concatenated([samples_first(session.run(b), n, self.run.layouts) for b, n in runs])

    def leave(self, choice: Choice, weights: Weights) -> None:
        """Put the weights into the network."""
        run = self.run
        run.change(weights)
        run.outputs = {**run.outputs, **self._run(run.deciding, {})}
        if run.settings.reads_gradients and len(run.channels.graph.outputs) > 1:
            # Groups that lie behind some of the outputs ask for these.
            run.fit_outputs = {**run.fit_outputs, **self._run(run.state, {})}
