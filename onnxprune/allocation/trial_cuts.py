"""Trial cuts: what removing part of one group alone does to the network's outputs.

Local curves say how well a layer's own output survives; how much that matters to the answer differs by orders of
magnitude between layers. So each group is cut alone to a few widths, with its consumers refitted by least squares,
and the relative error of the *network outputs* is measured on a few samples. No gradients, no labels.

The trial runs the part of the original graph behind the first reader of the group, with the consumers' weights replaced
(removed columns zero), which equals a masked consumer input.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from onnxprune.calibration.input_moments import InputMoments
from onnxprune.calibration.layers import Layer
from onnxprune.calibration.readers import first_input, outputs_behind, read_by_layers_alone, readers_of
from onnxprune.calibration.regressions import consumers_of
from onnxprune.channels import ChannelGraph
from onnxprune.data.layouts import samples_first
from onnxprune.data.samples import Samples
from onnxprune.graph import external, protobuf
from onnxprune.graph.protobuf import Model, copied, element_type
from onnxprune.jobs.kept import NOWHERE, Kept
from onnxprune.jobs.work import Here, Scheduler, Work
from onnxprune.measures.answers import Answers
from onnxprune.numerics.arrays import Array, Mask, cast
from onnxprune.process import spill
from onnxprune.refit.layerwise import entries_of, in_place, memory_of, scaled
from onnxprune.runtime.session import PROVIDERS, Session, concatenated
from onnxprune.runtime.walker import Walker, runtime_batch, runtime_bytes
from onnxprune.selection import Path
from onnxprune.surgery import set_initializers
from onnxprune.verification.oracle import masked_model

# Shares of a group's units that the trials remove; only one where groups are so many that two cost too much.
LEVELS = (0.3, 0.6)
FEW_LEVELS = (0.5,)
# However many groups there are, the trials of each look at so many samples.
LEAST_TRIED = 8
# Weights that a trial refits lie in memory up to so many bytes, and are fed to one session for all widths; more of them
# go to files, of a session for each width.
_FED_BYTES = 512 << 20
_REFITTED_BYTES = 8  # of a weight, while it is refitted
_AT_ONCE_BYTES = 256 << 20


@dataclass(frozen=True, eq=False, kw_only=True)
class TrialNetwork:
    """The network that is cut on trial, and how the layers that read a cut group are refitted.

    layers: the linear layers that are refitted. moments: of what these read, by weight. types: element types of the
    tensors. level: of the refit, as in `layerwise.in_place`, or "greedy" with the coefficients of the paths. provider:
    of PROVIDERS, what it runs on.
    """

    proto: Model
    channels: ChannelGraph
    layers: Sequence[Layer]
    moments: Mapping[str, InputMoments]
    types: Mapping[str, int]
    level: str = "least-squares"
    provider: str = "cpu"


def measure(
    network: TrialNetwork,
    samples: Samples,
    reference: Answers,
    paths: Sequence[Path],
    *,
    only: Set[int],
    memory: int,
    levels: Sequence[float] = LEVELS,
    whole: Set[int] = frozenset(),
    together: Sequence[tuple[int, ...]] = (),
    scheduler: Scheduler | None = None,
    kept: Kept = NOWHERE,
    method: str = "",
) -> list[dict[int, float]]:
    """Per group: units kept → measured output error, at the levels that the group's size allows; for the groups `only`.

    reference: what the uncut model answers on the same samples. levels: shares of its units to remove. whole: groups
    that are tried with no unit too. together: sets of groups of which none keeps a unit at the same time: behind those
    of the groups stands a result of each, 0 → error. kept: trials that an earlier run of the same has left are not run
    again; method: that of the paths, by which they are told apart there.

    Groups are visited in topological order, so that what lies before a group's first reader runs only once. A group
    that something other than its layers reads across (a normalization, a shared kernel, a product of activations) is
    tried on the masked oracle instead, and so is one whose layers have very large weights.
    """
    channels, layers, moments = network.channels, network.layers, network.moments
    consumers = consumers_of(channels, layers)
    masked = only - read_by_layers_alone(channels, layers, consumers)
    nodes = readers_of(channels, consumers)
    sets = [(g,) for g in only] + list(together)
    read_by = {groups: frozenset(n for g in groups for n in nodes[g]) for groups in sets}
    order = sorted(read_by, key=lambda groups: (min(read_by[groups], default=-1), groups))
    stops = tuple(first_input(channels, read_by[groups]) for groups in order)

    def trial(place: int, groups: tuple[int, ...]) -> Trial:
        (g, *others), own = groups, tuple(dict.fromkeys(x for g in groups for x in consumers[g]))
        own_moments = {x.weight: moments[x.weight] for x in own if x.weight in moments}
        widths = [0] * (g in whole) + trial_widths(channels.groups[g].size, channels.groups[g].step, levels)
        return Trial(
            group=g,
            widths=[0] if others else widths,
            stop=place,
            consumers=own,
            moments=own_moments,
            path=paths[g],
            readers=read_by[groups],
            masked=bool(others) or g in masked or _REFITTED_BYTES * entries_of(own) > _FED_BYTES,
            others={o: paths[o] for o in others},
        )

    plain = samples.part(0, len(samples))  # without labels and the like
    types, level = dict(network.types), network.level
    work = Trials(network.proto, channels, plain, reference.bare(), types, memory, level, stops, network.provider)
    found = {groups: _errors_of(a) for groups in order if (a := kept.get("trial", _item(method, groups)))}
    left = [(place, groups) for place, groups in enumerate(order) if groups not in found]
    trials = (trial(place, groups) for place, groups in left)
    for (_, groups), errors in zip(left, (scheduler or Here()).map(work, trials, len(left)), strict=True):
        kept.put("trial", _item(method, groups), partial(_arrays_of, errors))
        found[groups] = errors
    return [found.get(groups, {}) for groups in (*((g.index,) for g in channels.groups), *together)]


def _item(method: str, groups: Sequence[int]) -> str:
    return " ".join((method, *map(str, groups)))


def _arrays_of(errors: Mapping[int, float]) -> dict[str, Array]:
    return {"units": np.array([*errors], np.int64), "errors": np.array([*errors.values()], np.float64)}


def _errors_of(arrays: Mapping[str, Array]) -> dict[int, float]:
    return dict(zip(arrays["units"].tolist(), arrays["errors"].tolist(), strict=True))


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """One group to cut, to these widths; of the `others` no unit stays meanwhile.

    stop: the place of its first reader among the stops. readers: the nodes of the graph that read it. masked: whether
    it is tried on the masked oracle.
    """

    group: int
    widths: Sequence[int]
    stop: int
    consumers: tuple[Layer, ...]
    moments: Mapping[str, InputMoments]
    path: Path
    readers: frozenset[int]
    masked: bool
    others: Mapping[int, Path] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Trials(Work[Trial, dict[int, float]]):
    """The trial cuts of one group after the other: units kept → error of the outputs.

    stops: an input of the first reader of each group, in topological order; "" where there is none to walk to. Every
    worker walks to all of them, one after the other, so that the same parts of the model run wherever a group is tried,
    to the same last bit.
    """

    proto: Model
    channels: ChannelGraph
    samples: Samples
    reference: Answers
    types: Mapping[str, int]
    memory: int
    level: str
    stops: tuple[str, ...]
    provider: str

    side_by_side = True

    def __call__(self, item: Trial) -> dict[int, float]:
        """The errors of one group."""
        outputs = outputs_behind(self.channels, item.readers)
        if not outputs:
            return {}
        walker = self._walked(item.stop)
        return (_masked_trials if item.masked else _plain_trials)(item, self, walker, outputs)

    def network(self, item: Trial) -> TrialNetwork:
        """The network, with the readers of one group as its layers."""
        return TrialNetwork(
            proto=self.proto,
            channels=self.channels,
            layers=item.consumers,
            moments=item.moments,
            types=self.types,
            level=self.level,
            provider=self.provider,
        )

    def size(self, item: Trial) -> int:
        """What the refit of its readers takes, and a run."""
        return self._run_bytes + memory_of(item.consumers)

    @cached_property
    def _run_bytes(self) -> int:
        shapes = self.channels.graph.shapes
        bound = self.channels.graph.batch
        most = min(runtime_batch(shapes, self.proto, bound=bound), len(self.samples))
        return most * runtime_bytes(shapes, self.proto, bound=bound)

    def portable(self) -> Trials:
        """With the weights in it."""
        return replace(self, proto=external.sendable(self.proto))

    def __getstate__(self) -> dict[str, Any]:
        bare = replace(self.channels, graph=replace(self.channels.graph, constants={}))
        return {**super().__getstate__(), "channels": bare}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        constants = external.Weights(state["proto"].graph.initializer)
        channels = state["channels"]
        whole = replace(channels, graph=replace(channels.graph, constants=constants))
        self.__dict__.update(state, channels=whole)

    @cached_property
    def _walks(self) -> threading.local:
        """How far this thread has walked: a worker may have several."""
        return threading.local()

    def _walked(self, stop: int) -> Walker:
        """The model up to a stop."""
        reached: int = getattr(self._walks, "reached", len(self.stops))
        if reached > stop:  # what an ended worker left undone lies further back
            shapes = self.channels.graph.shapes
            self._walks.walker = Walker(
                self.proto, self.samples, self.types, shapes, self.memory, hold_out=False, provider=self.provider
            )
            reached = -1
        for name in filter(None, self.stops[reached + 1 : stop + 1]):
            self._walks.walker.move_to((name,))
        self._walks.reached = stop
        walker: Walker = self._walks.walker
        return walker


def affordable(
    channels: ChannelGraph,
    layers: Sequence[Layer],
    only: Set[int],
    samples: Samples,
    reference: Answers,
    passes: float,
    together: Sequence[tuple[int, ...]] = (),
) -> tuple[Samples, Answers, Sequence[float]]:
    """The first samples, the answers for them, and levels, so that all trials cost at most `passes` runs over samples.

    Fewer levels rather than less than `LEAST_TRIED` samples, and those at least; all samples where that is enough, or
    where outputs do not belong to single ones. together: as for `measure`.
    """
    behind = _work_behind(channels)
    nodes = readers_of(channels, consumers_of(channels, layers))
    count = len(samples)
    of_sets = sum(behind[min(n for g in groups for n in nodes[g])] for groups in together)
    for levels in (LEVELS, FEW_LEVELS):
        runs = sum(
            len(trial_widths(channels.groups[g].size, channels.groups[g].step, levels))
            * (behind[min(nodes[g])] if nodes[g] else 1.0)
            for g in only
        )
        few = int(count * passes / max(runs + of_sets, 1e-9))
        if few >= min(LEAST_TRIED, count):
            break
    few = samples.whole_runs(max(few, min(LEAST_TRIED, count)))
    tensors = {x.tensor for p in (*reference.parts, *reference.left_out) for x in p.pieces}
    looked_at = [v for k, v in reference.values.items() if k in tensors]
    if few >= count or any(not v.ndim or len(v) != count for v in looked_at):
        return samples, reference, levels
    return samples.take(np.arange(few)), reference.first(few), levels


def _work_behind(channels: ChannelGraph) -> dict[int, float]:
    """By node, the share of the model's multiplications in it and in what comes after it."""
    graph = channels.graph
    work = {n.index: 0.0 for n in graph.nodes}
    for x in channels.linears:
        weight, out = graph.shape(x.weight) or (1,), graph.shape(x.node.outputs[0]) or (1,)
        if x.node.index in work:
            width = out[1] if x.node.op in ("Conv", "ConvTranspose", "DeformConv") and len(out) > 1 else out[-1]
            work[x.node.index] = float(np.prod(out)) * float(np.prod(weight)) / max(width, 1)
    shares = np.array([*work.values()])
    behind = np.cumsum(shares[::-1])[::-1] / max(float(shares.sum()), 1.0)
    return dict(zip(work, behind.tolist(), strict=True))


def trial_widths(units: int, step: int, levels: Sequence[float] = LEVELS) -> list[int]:
    """Kept units at each level, multiples of `step`."""
    return sorted({units - round(units / step * share) * step for share in levels} - {units, 0})


def cut_session(
    network: TrialNetwork,
    widths: Mapping[int, int],
    paths: Mapping[int, Path] | Sequence[Path],
    *,
    behind: tuple[Mapping[str, int], Sequence[str]] | None = None,
) -> Session:
    """The masked oracle with groups cut to these widths along their paths, and their readers refitted.

    behind: the part of it that computes these outputs from these tensors alone, with their element types; nothing that
    reads the groups lies before them.
    """
    channels = network.channels
    keep = channels.keep_classes({g: paths[g].kept(n) for g, n in widths.items()})
    with spill.spilling() as files:
        refitted = _with_refitted(network, widths, paths, keep, files)
        masked = masked_model(refitted, channels, keep, network.types)
        trial = masked if behind is None else protobuf.submodel(masked, *behind)
        session = Session(trial, pooled=behind is not None, providers=PROVIDERS[network.provider])
        files.last_as_long_as(session)
    return session


def _masked_trials(item: Trial, trials: Trials, walker: Walker, outputs: Sequence[str]) -> dict[int, float]:
    network = trials.network(item)

    def answers_at(width: int) -> dict[str, Array]:
        widths, paths = {item.group: width, **dict.fromkeys(item.others, 0)}, {item.group: item.path, **item.others}
        session = cut_session(network, widths, paths, behind=(walker.frontier, outputs))
        return _joined(trials, walker, map(session.run, walker.batches))

    return _errors(item, trials, map(answers_at, item.widths))


def _joined(trials: Trials, walker: Walker, runs: Iterable[Mapping[str, Array]]) -> dict[str, Array]:
    """The outputs of all batches of the walker, samples first."""
    layouts = trials.reference.layouts
    parts = [samples_first(y, n, layouts) for y, n in zip(runs, walker.counts, strict=True)]
    return concatenated(parts, padded=trials.samples.ragged)


def _errors(item: Trial, trials: Trials, answers: Iterable[Mapping[str, Array]]) -> dict[int, float]:
    """By width, the error of what a trial answers, over all outputs; where it is finite."""
    errors: dict[int, float] = {}
    for width, outputs in zip(item.widths, answers, strict=True):
        error = trials.reference.error(outputs, partial=True)
        if np.isfinite(error):
            errors[width] = error
    return errors


def _plain_trials(item: Trial, trials: Trials, walker: Walker, outputs: Sequence[str]) -> dict[int, float]:
    g, channels, consumers, network = item.group, trials.channels, item.consumers, trials.network(item)
    constants = channels.graph.constants
    # Quantized weights are fed as the numbers that they stand for: onnxruntime takes no codes of four bits.
    real = {n: element_type(v.dtype) for x in consumers for n, v in x.dequantized(constants).items()}
    codes = {n for x in consumers if x.weight not in real for n in x.stored}
    replaced = [n for n in dict.fromkeys(n for x in consumers for n in (x.weight, x.bias, *codes)) if n]
    part = protobuf.submodel(trials.proto, {**walker.frontier, **real}, outputs, overridable=replaced)

    def fed(width: int) -> dict[str, Array]:
        keep = channels.keep_classes({g: item.path.kept(width)})
        weights = _refitted(network, {g: width}, {g: item.path}, keep)
        feeds = {
            k: np.ascontiguousarray(cast(v.reshape(constants[k].shape), constants[k].dtype))
            for k, v in weights.items()
            if k in replaced
        }
        for x in consumers:
            if x.quantized:
                feeds |= x.dequantized({n: weights[n] if n in weights else constants[n] for n in x.stored})
        return feeds

    session = Session(part, pooled=True, providers=PROVIDERS[trials.provider])

    def answers_at(width: int) -> dict[str, Array]:
        feeds = fed(width)
        return _joined(trials, walker, (session.run({**b, **feeds}) for b in walker.batches))

    return _errors(item, trials, map(answers_at, item.widths))


def _with_refitted(
    network: TrialNetwork,
    widths: Mapping[int, int],
    paths: Mapping[int, Path] | Sequence[Path],
    keep: Mask,
    files: spill.Temporary,
) -> Model:
    """A copy of the network with its layers refitted; a few at a time, as all of them may be most of the model.

    files: where the weights go, and nothing else: inverses that are computed for them serve other trials too.
    """
    result = copied(network.proto)
    fitted: dict[str, Array] = {}
    for layer in network.layers:
        with files.aside():
            fitted |= _refitted(replace(network, layers=(layer,)), widths, paths, keep)
        if sum(v.nbytes for v in fitted.values()) > _AT_ONCE_BYTES:
            set_initializers(result, fitted)
            fitted = {}
    set_initializers(result, fitted)
    return result


def _refitted(
    network: TrialNetwork, widths: Mapping[int, int], paths: Mapping[int, Path] | Sequence[Path], keep: Mask
) -> dict[str, Array]:
    constants = network.channels.graph.constants
    if network.level != "greedy":
        return in_place(network.layers, network.moments, constants, keep, network.level)
    factors = np.ones(keep.size)
    for g, width in widths.items():
        coefficients = paths[g].coefficients_of(width)
        if coefficients is not None:
            factors[network.channels.groups[g].units] = coefficients
    return scaled(network.layers, constants, keep, factors)
