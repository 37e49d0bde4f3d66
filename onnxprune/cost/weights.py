"""How many parameters a model has left, as a function of the units that are kept.

What counts as one is decided in one place, `protobuf.parameters` for a model and here for its channel graph, by the
same rule (`graph.view.is_parameter`): the ratio, the report and `inspect` can not differ.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from onnxprune.channels import ChannelGraph
from onnxprune.channels.branches import Drop
from onnxprune.channels.labels import tracked_axes
from onnxprune.channels.whole_layers import WholeLayer
from onnxprune.cost.terms import Cost, Length, Term, length_of
from onnxprune.graph.view import is_parameter


def parameters(
    channels: ChannelGraph,
    drops: Mapping[int, Drop] | None = None,
    layers: Sequence[WholeLayer] = (),
    *,
    without: Collection[str] = (),
) -> Cost:
    """Elements of all weights but those in `without`; drops, layers: as for `macs`."""
    graph = channels.graph
    terms: list[Term] = []
    owners = _only_read_by(channels, drops or {}, layers)
    for name, values in graph.constants.items():
        if name in without or not is_parameter(values.dtype, (n.op for n, _ in graph.readers.get(name, ()))):
            continue
        rest = values.size
        lengths: list[Length] = []
        for f in channels.factors.get(name, ()):
            axis = tracked_axes(f)[-1]
            length = length_of(channels, f, values.shape[axis])
            if length.groups:
                rest //= values.shape[axis]
                lengths.append(length)
        terms.append(Term(float(rest), tuple(lengths), tuple(owners.get(name, ()))))
    return Cost.of(terms, len(channels.groups))


def parameters_of_result(
    channels: ChannelGraph,
    drops: Mapping[int, Drop],
    stored: int,
    own: Collection[str],
    more: Collection[str] = (),
    layers: Sequence[WholeLayer] = (),
) -> Cost:
    """Parameters of what is written: the `stored` ones of the original, less what its `own` weights lose.

    more: weights that the normalised model has beyond the original's, and that may come to stay: biases that the refit
    adds, and copies of shared vectors that it makes different. They count in full, so that a budget holds with them.
    What the normalised model has beside both (tables that the original computes) stays as it is written there.
    """
    names = set(channels.graph.constants)
    lost = parameters(channels, drops, layers, without=names - set(own))
    grown = parameters(channels, drops, layers, without=names - set(more))
    rest = stored - lost.at(channels.sizes)
    return Cost.of([*lost.terms, *grown.terms, Term(float(rest), ())], len(channels.groups))


def _only_read_by(
    channels: ChannelGraph, drops: Mapping[int, Drop], layers: Sequence[WholeLayer]
) -> dict[str, list[tuple[int, ...]]]:
    """By weight, the sets of groups with which all nodes disappear that read it."""
    graph = channels.graph
    # With a layer goes what goes with its branches, too: a weight that both read.
    gone = [((d.group,), d.nodes) for d in drops.values()] + [(x.groups, x.nodes) for x in layers]
    owners: dict[str, list[tuple[int, ...]]] = {}
    for name, readers in graph.readers.items():
        if name in graph.constants and name not in graph.captured:
            reading = {n.index for n, _ in readers}
            owners[name] = [groups for groups, nodes in gone if reading <= nodes]
    return owners
