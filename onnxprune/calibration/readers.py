"""What reads a group: layers alone, or something else, and which outputs lie behind."""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np

from onnxprune.calibration.layers import Layer
from onnxprune.channels import ChannelGraph


def read_by_layers_alone(
    channels: ChannelGraph, layers: Sequence[Layer], consumers: Sequence[Sequence[Layer]]
) -> set[int]:
    """Groups whose every cross-channel read is that of a layer."""
    own = {x.node.index for x in layers}
    other: set[int] = set()
    for r in channels.reads:
        if r.kind == "range":  # 0 is in it, whoever goes
            continue
        if r.kind != "contraction" or r.node.index not in own:
            other |= channels.groups_in(r.node.inputs[r.slot])
    return {g for g, c in enumerate(consumers) if c} - other


def readers_of(channels: ChannelGraph, consumers: Sequence[Sequence[Layer]]) -> list[set[int]]:
    """By group, the nodes of the main graph that read it across its channels, in themselves or in their bodies."""
    readers = [{x.node.index for x in c} for c in consumers]
    for r in channels.reads:
        for g in channels.groups_in(r.node.inputs[r.slot]):
            readers[g].add(r.node.index)
    main = np.array([n.index for n in channels.graph.nodes])
    return [set(main[np.searchsorted(main, sorted(f), side="right") - 1].tolist()) for f in readers]


def first_input(channels: ChannelGraph, readers: Set[int]) -> str:
    """What a walk to just before the first of these nodes asks for: whatever that needs comes before all of them."""
    graph = channels.graph
    first = next((n for n in graph.nodes if n.index in readers), None)
    inputs = first.inputs if first is not None else ()
    return next((i for i in inputs if i and i not in graph.constants), "")


def outputs_behind(channels: ChannelGraph, nodes: Set[int]) -> list[str]:
    """The graph outputs that depend on any of these nodes."""
    reached: set[str] = set()
    for n in channels.graph.nodes:
        if n.index in nodes or any(i in reached for i in (*n.inputs, *n.captures)):
            reached.update(n.outputs)
    return [o for o in channels.graph.outputs if o in reached]
