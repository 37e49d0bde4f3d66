"""A graph in outline, as a drawing shows it: inputs, layers, the places where streams meet, outputs.

What stands behind one of these and reads nothing else (an activation, a normalization, a reshape) belongs to it, so the
drawing of a network with hundreds of nodes has a row for each of its layers and sums, and a link for what each reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from onnxprune.channels.groups import ChannelGraph
from onnxprune.channels.names import called
from onnxprune.channels.trace import Linear
from onnxprune.graph.view import Node

INPUT, LAYER, JOIN, OUTPUT = "input", "layer", "join", "output"
# They hand on a size, and none of what flows.
_SIZES = ("Shape", "Size")


@dataclass(eq=False)
class Place:
    """A row of the drawing.

    kind: `INPUT`, `LAYER` (with weights that combine channels), `JOIN` (reads several others) or `OUTPUT`. name: of the
    tensor or the node. sources: places that it reads, by their number. nodes: its own, and those behind it, in order.
    linear: of a layer.
    """

    kind: str
    name: str
    sources: tuple[int, ...] = ()
    nodes: list[Node] = field(default_factory=list)
    linear: Linear | None = None


def outline(channels: ChannelGraph) -> Sequence[Place]:
    """The places of the main graph, in topological order; an If, Loop or Scan is one node."""
    graph = channels.graph
    layers: dict[int, Linear] = {}
    for linear in channels.linears:
        layers.setdefault(linear.node.index, linear)
    places = [Place(INPUT, name) for name in graph.inputs if name not in graph.constants]
    at = {p.name: i for i, p in enumerate(places)}
    for node in graph.nodes:
        sources = tuple(dict.fromkeys(at[t] for t in (*node.inputs, *node.captures) if t in at))
        if not sources or node.op in _SIZES:
            continue
        own = sources[0]
        linear_of_node = layers.get(node.index)
        if linear_of_node is not None or len(sources) > 1:
            kind = JOIN if linear_of_node is None else LAYER
            own = len(places)
            weight = "" if linear_of_node is None else linear_of_node.weight
            places.append(Place(kind, called(node, weight), sources, linear=linear_of_node))
        places[own].nodes.append(node)
        at.update({o: own for o in node.outputs if o})
    places += [Place(OUTPUT, name, (at[name],)) for name in graph.outputs if name in at]
    return places
