"""The channel graph, and what of it may be cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import onnx

from onnxprune import cost, plan
from onnxprune.allocation.widths import USEFUL_SHARE, Choices, Wanted, Widths
from onnxprune.calibration.branches_taken import TakenBranches, layers_taken, taken_by
from onnxprune.calibration.layers import Layer
from onnxprune.calibration.turns import turns_of
from onnxprune.channels import ChannelGraph, branches, build
from onnxprune.channels.branches import Drop
from onnxprune.channels.describe import Description, LayerDescription, describe
from onnxprune.channels.frozen import Cause, Frozen
from onnxprune.channels.remedies import Reason
from onnxprune.channels.untried import Untried, unread, untried_branches, why_kept
from onnxprune.channels.whole_layers import WholeLayer, whole_layers
from onnxprune.config import PruneConfig
from onnxprune.cost import Cost
from onnxprune.errors import BudgetUnreachable, NothingPrunable
from onnxprune.graph import protobuf
from onnxprune.graph.bodies import return_to_bodies
from onnxprune.graph.protobuf import copied
from onnxprune.graph.view import Graph
from onnxprune.measures.compared import layouts_of, watched
from onnxprune.measures.observed import Observed, observed_in, observing, tensors_of
from onnxprune.normalise import Normalised
from onnxprune.options import first_of
from onnxprune.stages.counted_at import counted_at
from onnxprune.stages.dropped_experts import told_of_experts
from onnxprune.stages.load import Loaded
from onnxprune.stages.named_layers import check_together, named_layers
from onnxprune.stages.partners import demand_partners
from onnxprune.stages.patterns import Matched, alike_in, frozen_groups, kept_nodes, matched, merged, shares_of
from onnxprune.stages.ports import alike_caches, idle, resized, resized_outputs
from onnxprune.stages.stored import stored_of
from onnxprune.stages.tokens import told_of_vocabulary
from onnxprune.surgery import experts, packed_codes, transposed
from onnxprune.targets import tensorrt_check
from onnxprune.targets.alignment import AUTO, TARGETS

# The share of all weights from which on an operator that cannot be counted matters, and how many of them are named.
_MATTERS, _SHOWN = 0.01, 3


@dataclass(frozen=True, eq=False, kw_only=True)
class Coupled:
    """The channel graph, what of it the samples run, the linear layers of that, and what may not be cut.

    observed: what stands for the outputs. seen: what the samples run, with that as its outputs.
    choices: what widths follow from; widths: what each group may keep, at the ratio of the options. drops: by index,
    the groups that could go as a whole branch; layers_whole: sets of them that are a layer of a transformer. costs:
    "macs" and "params" of the result against the units that are kept, and "stored", its parameters without those that a
    refit may add; stored_parameters: those of the original.
    untried: the branches that no sample takes. patterns: what the patterns of the options match.
    """

    channels: ChannelGraph
    taken: TakenBranches
    layers: tuple[Layer, ...]
    observed: Observed
    seen: TakenBranches
    choices: Choices
    widths: Widths
    drops: Mapping[int, Drop] = field(default_factory=dict)
    layers_whole: tuple[WholeLayer, ...] = ()
    costs: Mapping[str, Cost] = field(default_factory=dict)
    stored_parameters: int = 0
    untried: tuple[Untried, ...] = ()
    patterns: tuple[Matched, ...] = ()

    def at(self, ratio: float | None) -> Coupled:
        """The same with the widths of another ratio."""
        return replace(self, widths=self.choices.at(ratio))

    def whole(self, budget: str) -> float:
        """What the original has of what a budget counts."""
        if budget == "params":
            return float(self.stored_parameters)
        return self.costs[budget].at(self.channels.sizes)


def couple(
    loaded: Loaded, settings: PruneConfig, replayed: plan.Plan | None = None, *, one_number: bool = False
) -> Coupled:
    """Trace the channel graph. Raises NothingPrunable, and without a plan BudgetUnreachable (`check_counted`).

    one_number: the groups of caches that may change have one width.
    """
    channels = trace(loaded, settings)
    check_ports(loaded, channels, settings, one_number=one_number)
    patterns = matched(channels, settings, loaded.original, loaded.tail.holds)
    frozen = frozen_groups(channels, patterns)
    if len(frozen) == len(channels.groups) and settings.cuts_channels:
        raise NothingPrunable(f"no channel can be removed: {why_nothing(channels, frozen)}")
    taken = taken_by(loaded.normalised, channels, loaded.parts)
    turns = turns_of(taken.proto, loaded.parts)
    ways = taken.branches | turns.branches
    untried = untried_branches(channels, ways, loaded.normalised.types, turns.idle, turns.unseen)
    taken = replace(taken, idle=taken.idle | unread(channels, untried))
    if settings.untried_branches == "keep":
        for u in untried:
            why = Frozen(Cause.UNTRIED, u.text)
            frozen.update({g: why for g in u.groups if g not in frozen})
    if len(frozen) == len(channels.groups) and settings.cuts_channels:
        raise NothingPrunable(f"no channel can be removed: {why_kept(untried)}")
    drops = branches.drops(channels)
    layers = whole_layers(channels, drops)
    stored, n = protobuf.parameters(loaded.original), loaded.normalised
    kept = stored_of(n, channels)
    more = {*n.added_biases, *n.clones, *kept.parted}
    own = channels.graph.constants.keys() - more - kept.whole
    fixed = {k: t.bytes for k, t in n.tables.items() if t.fixed}
    costs = {
        "macs": cost.macs(channels, drops, layers),
        "params": cost.parameters_of_result(channels, drops, stored, own, more, layers),
        "stored": cost.parameters_of_result(channels, drops, stored, own, layers=layers),
    }
    caches = alike_caches(channels, n, frozen) if one_number else ()
    alike = merged((*alike_in(patterns), *caches))
    wanted = replace(wanted_widths(settings, patterns), shares=shares_of(patterns, frozen), alike=alike)
    gone = named_layers(layers, settings.drop_layers)
    check_together(channels, layers, gone)
    may_go = layers if settings.layers_may_go else tuple(x for x in layers if x.number in gone)
    wanted = replace(wanted, layers=may_go, gone=gone)
    # Of a latency nothing is measured yet; MACs stand in.
    width_cost, full = costs["macs"], costs["macs"].at(channels.sizes)
    if settings.budget == "params":
        width_cost, full = costs["params"], float(stored)
    choices = Choices(channels=channels, frozen=frozen, drops=drops, wanted=wanted, cost=width_cost, full=full)
    observed = observed_of(taken, n)
    coupled = Coupled(
        channels=channels,
        taken=taken,
        layers=tuple(replace(x, made=fixed.get(x.weight, 0)) for x in layers_taken(taken, channels)),
        observed=observed,
        seen=seen(taken, observed, n, labelled=settings.labels is not None),
        choices=choices,
        widths=choices.at(settings.ratio),
        drops=drops,
        layers_whole=layers,
        costs=costs,
        stored_parameters=stored,
        untried=untried,
        patterns=patterns,
    )
    if replayed is None:
        check_counted(coupled, settings)
    return with_layouts(coupled, loaded)


def wanted_widths(settings: PruneConfig, patterns: Sequence[Matched] = ()) -> Wanted:
    """What the options say of widths."""
    free = settings.round_to == AUTO
    return Wanted(
        alignment=TARGETS[settings.target].alignment if isinstance(settings.round_to, str) else settings.round_to,
        free=free,
        least=settings.min_channels,
        share=max(USEFUL_SHARE, settings.uniform or 0.0),
        drops=settings.drops,
        stays=kept_nodes(patterns),
        most_share=settings.max_ratio,
    )


def trace(loaded: Loaded, settings: PruneConfig) -> ChannelGraph:
    """The channel graph of the normalised model."""
    return build(view_of(loaded), settings.units_of_attention)


def view_of(loaded: Loaded) -> Graph:
    """The normalised model as the channel graph reads it."""
    n = loaded.normalised
    read_by = {k: (x.op_type, x.name) for k, x in loaded.tail.readers.items()}
    like = n.balanced, n.alike
    view = protobuf.view(n.proto, n.shapes, n.known_values, n.binding, n.free, n.samples, n.states, *like)
    return replace(view, read_by=read_by, computed=n.computed)


def describe_loaded(loaded: Loaded, settings: PruneConfig) -> Description:
    """Describe the channel graph."""
    n, source = loaded.normalised, loaded.source
    channels = trace(loaded, settings)
    check_ports(loaded, channels, settings)
    macs_cost, sizes, batch = cost.macs(channels), channels.sizes, channels.graph.batch
    macs = macs_cost.at(sizes) / batch, macs_cost.at([0 if size > 1 else 1 for size in sizes]) / batch
    notes = (*source.notes, *filter(None, [loaded.tail.note]), *n.notes, *foreseen(loaded, settings))
    notes = (*notes, *told_of_vocabulary(loaded.original, whole=not loaded.tail), *told_of_experts(loaded.original))
    notes = (*notes, *not_counted(channels), *counted_at(loaded), *idle_ports(loaded, channels, settings))
    stored, kept = protobuf.parameters(loaded.original), stored_of(n, channels)
    drops = branches.drops(channels)
    layers = whole_layers(channels, drops)
    own = channels.graph.constants.keys() - {*n.added_biases, *n.clones, *kept.parted} - kept.whole
    weights = cost.parameters_of_result(channels, drops, stored, own, layers=layers)
    return describe(
        channels,
        source.path,
        source.sha256,
        notes,
        parameters=stored,
        macs=macs,
        added={*n.added_biases, *packed_codes.implied(n.packed), *experts.implied(n.experts)},
        clones={*n.clones, *kept.whole, *kept.parted, *transposed.copies(n.proto, loaded.original)},
        layers=[_described(x, channels, weights) for x in layers],
    )


def _described(layer: WholeLayer, channels: ChannelGraph, weights: Cost) -> LayerDescription:
    sizes = channels.sizes
    without = [0 if g in layer.groups else n for g, n in enumerate(sizes)]
    names = tuple(channels.groups[g].name for g in layer.groups)
    return LayerDescription(
        layer.number, layer.name, layer.kinds, names, round(weights.at(sizes) - weights.at(without))
    )


def check_ports(loaded: Loaded, channels: ChannelGraph, settings: PruneConfig, *, one_number: bool = False) -> None:
    """Raises UsageError where --resize-io names some of what can change together alone."""
    named = resized(loaded.original, settings.resize_io)
    if named:

        def traced(n: Normalised) -> ChannelGraph:
            return trace(replace(loaded, normalised=n), settings)

        demand_partners(loaded.normalised, channels, traced, named, one_number=one_number)


def idle_ports(loaded: Loaded, channels: ChannelGraph, settings: PruneConfig) -> tuple[str, ...]:
    """What to say of patterns of --resize-io that change nothing. Layers that may go take their caches along."""
    if settings.drop_layers or settings.layers_may_go:
        return ()
    return idle(loaded.original, channels, loaded.normalised, settings.resize_io, whole=not loaded.tail)


def foreseen(loaded: Loaded, settings: PruneConfig) -> list[str]:
    """What the target will refuse of any result: it is the normalised model with fewer channels."""
    if not TARGETS[settings.target].tensorrt:
        return []
    whole = copied(loaded.normalised.proto)
    return_to_bodies(whole, loaded.normalised.outside)
    return tensorrt_check.warnings(whole) or ["TensorRT's parser: nothing refused (by its documentation)"]


def why_nothing(channels: ChannelGraph, frozen: Mapping[int, Frozen]) -> str:
    """The option, or the most frequent reasons of the channel graph, that leave nothing to cut, and what would help."""
    asked = next((why.text for why in frozen.values() if why.asked_for), None)
    if asked is not None:
        return asked
    reasons: dict[Reason, int] = {}
    for p in channels.pinned:
        reasons[p.why.why] = reasons.get(p.why.why, 0) + p.positions
    most = sorted(reasons, key=lambda r: -reasons[r])[:3]
    if not most:
        return "the model has no weights with channels"
    return f"{'; '.join(r.text for r in most)} (what would free the first: {most[0].remedy.value})"


def check_counted(coupled: Coupled, settings: PruneConfig) -> None:
    """Raises BudgetUnreachable where a share of the MACs was asked for that nobody can tell.

    What is not counted must not matter: its weights are below a hundredth of all.
    """
    if not settings.ratio or settings.budget != "macs":
        return
    missing = cost.uncounted(coupled.channels)
    if any(x.surely or x.weights >= _MATTERS * coupled.stored_parameters for x in missing):
        raise BudgetUnreachable(
            f"the share of the MACs cannot be told, as these operators multiply, and how much is not known: "
            f"{_listed(missing)}; choose --budget params, or --uniform"
        )


def not_counted(channels: ChannelGraph) -> tuple[str, ...]:
    """For the report: what is missing in the MACs."""
    notes: list[str] = []
    if missing := cost.uncounted(channels):
        notes.append(f"the MACs leave out what these operators multiply, or may: {_listed(missing)}")
    if loops := cost.repeated(channels):
        notes.append(f"in the MACs the bodies of {first_of(loops, _SHOWN)} count once, however often they run")
    return tuple(notes)


def _listed(missing: Sequence[cost.Uncounted]) -> str:
    shown = [f"{x.node} ({x.operator}: {x.why})" for x in missing[:_SHOWN]]
    more = len(missing) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more else "")


def with_layouts(coupled: Coupled, loaded: Loaded) -> Coupled:
    """With the places of the samples in what the original gives."""
    observed, original = coupled.observed, original_of(loaded, coupled)
    layouts = layouts_of(watched_of(original, coupled, loaded), loaded.fit, observed.sized_by_values)
    return replace(coupled, observed=replace(observed, layouts=layouts))


def original_of(loaded: Loaded, coupled: Coupled) -> onnx.ModelProto:
    """The original as it is, or as the samples run it, where only that has the tensors: names of a branch, or of a
    function."""
    return loaded.original if set(coupled.observed.tensors) <= tensors_of(loaded.original) else coupled.taken.proto


def watched_of(model: onnx.ModelProto, coupled: Coupled, loaded: Loaded) -> onnx.ModelProto:
    """A model with what stands for its outputs as further outputs, branches replaced where only that has these."""
    observed = coupled.observed
    if not observed.plain and coupled.taken.branches and not set(observed.tensors) <= tensors_of(model):
        model = coupled.taken.of(model)
    return watched(model, observed, loaded.normalised.types)


def observed_of(taken: TakenBranches, normalised: Normalised) -> Observed:
    """What stands for the outputs of the model that the samples run."""
    free = partial(_may_go, taken.channels)
    return observed_in(taken.channels.graph, normalised.types, free, resized_outputs(normalised))


def _may_go(channels: ChannelGraph, tensor: str) -> bool:
    return any(not channels.classes.pinned[f].all() for f in channels.factors.get(tensor, ()))


def seen(taken: TakenBranches, observed: Observed, normalised: Normalised, *, labelled: bool) -> TakenBranches:
    """The model that the samples run, giving out what stands for its outputs. labelled: and the first output."""
    wanted = (*observed.outputs[: int(labelled)], *observed.tensors) or observed.outputs
    wanted = tuple(dict.fromkeys(wanted))
    if wanted == taken.channels.graph.outputs:
        return taken
    graph = replace(taken.channels.graph, outputs=wanted)
    proto = observing(taken.proto, wanted, normalised.types)
    return replace(taken, proto=proto, channels=replace(taken.channels, graph=graph))
