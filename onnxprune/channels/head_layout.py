"""Which column of a layer's weight each position of each head is, where only layouts change on the way.

The positions inside a head may be replaced by linear combinations of them where one layer writes all of them, and what
is between it and the product moves entries and multiplies all of them by the same: then the combinations are taken in
its weight. Columns are followed by moving their numbers as the graph moves what the layer writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.channels.groups import ChannelGraph, weight_axes
from onnxprune.channels.labels import as_ints
from onnxprune.channels.names import called
from onnxprune.channels.products import Operand, Product, keeps_states, products_of, weighted_sums
from onnxprune.channels.rules.slicing import kept_positions
from onnxprune.channels.trace import Linear
from onnxprune.graph.view import Graph, Node
from onnxprune.numerics.arrays import Array, Ints

_LAYERS = ("Gemm", "MatMul")
_RESHAPES = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_TYPES = (np.dtype(np.float32), np.dtype(np.float64))


class Mixed(Exception):
    """Something lies between a layer and a product that is not followed; the text is a clause that says what."""


@dataclass(frozen=True, eq=False)
class Heads:
    """Where the positions of heads lie in weights.

    axes: (constant, axis) that hold them. places: of each position of each head on these axes, (h, d); heads that share
    keys have the same. layer: that writes or reads them. operand: what the product reads or gives; tensors: all that
    carry them between it and the layer.
    """

    axes: tuple[tuple[str, int], ...]
    places: Ints
    layer: Linear
    operand: Operand
    tensors: frozenset[str]


@dataclass(frozen=True, eq=False)
class Turnable:
    """Positions of heads that may be turned head by head.

    writers: the layers of queries and keys, or the one of values. reader: of values the layer that reads what attention
    makes of them, else None.
    """

    writers: tuple[Heads, ...]
    reader: Heads | None = None

    @property
    def sides(self) -> tuple[Heads, ...]:
        """All weights that have to be turned."""
        return self.writers if self.reader is None else (*self.writers, self.reader)


def turnable(channels: ChannelGraph, group: int) -> list[Turnable]:
    """All positions inside heads that are units of a group: those of the queries and keys of each product, and those of
    values. Where one weight holds all three they may be the same units.

    Raises Mixed where something else than layouts lies between layers and products, or reads the positions too.
    """
    logits = [_logits(channels, p) for p in products_of(channels) if p.group == group]
    values = [_values(channels, p) for p in weighted_sums(channels) if p.group == group]
    found = [*logits, *values]
    _demand_all(channels, group, [side for t in found for side in t.sides])
    own = {p.node.index for p in (*products_of(channels), *weighted_sums(channels)) if p.group == group}
    own.update(t.reader.layer.node.index for t in found if t.reader is not None)
    carrying = frozenset[str]().union(*(side.tensors for t in found for side in t.sides))
    for r in channels.reads:
        if r.node.index not in own and r.node.inputs[r.slot] in carrying:
            raise Mixed(f"{_said(r.node)} reads them too")
    return found


def _logits(channels: ChannelGraph, product: Product) -> Turnable:
    _demand_plain(product)
    queries, keys = _written(channels, product.first), _written(channels, product.second)
    if len(np.unique(queries.places)) < queries.places.size:
        raise Mixed("queries are repeated")
    return Turnable((queries, _for_all(keys, queries)))


def _values(channels: ChannelGraph, product: Product) -> Turnable:
    _demand_plain(product)
    values, sums = _written(channels, product.first), _read(channels, product.second)
    return Turnable((_for_all(values, sums),), sums)


def _demand_plain(product: Product) -> None:
    if keeps_states(product.node):
        raise Mixed(f"{_said(product.node)} has a bias, keeps keys and values of other steps, or gives its scores")


def _for_all(shared: Heads, heads: Heads) -> Heads:
    """The places of keys or values for each head that they serve."""
    count = len(heads.places) // len(shared.places)
    places = shared.places.repeat(count, axis=0)
    if places.shape != heads.places.shape:
        raise Mixed("heads do not fit together")
    return replace(shared, places=places)


def _demand_all(channels: ChannelGraph, group: int, sides: Sequence[Heads]) -> None:
    """Nothing else may carry the positions, and nothing else read them; none is turned twice."""
    graph = channels.graph
    tensors = frozenset[str]().union(*(s.tensors for s in sides))
    turned = {name for s in sides for name, _ in s.axes}
    for name in channels.factors:
        if name not in tensors | turned and group in channels.groups_in(name):
            by = graph.producer.get(name)
            raise Mixed(f"{_said(by)} reads them too" if by is not None else f"the constant {name!r} meets them")
    if tensors & {*graph.outputs, *graph.inputs, *graph.captured}:
        raise Mixed("they are an output")
    for name in sorted(turned):
        if len(graph.readers.get(name, ())) != 1 or name in graph.captured:
            raise Mixed(f"{name!r} is read in several places")
        if graph.constants[name].dtype not in _TYPES:
            raise Mixed(f"{name!r} is not stored in single or double precision")
    places: dict[tuple[str, int], list[Ints]] = {}
    for s in sides:
        for place in s.axes:
            places.setdefault(place, []).append(np.unique(s.places))
    if any(np.unique(np.concatenate(p)).size < sum(x.size for x in p) for p in places.values()):
        raise Mixed("several products share them")
    if len(places) > len(turned):
        raise Mixed("one weight writes and reads them")


def _said(node: Node) -> str:
    return f"{node.op} {called(node)!r}"


def _written(channels: ChannelGraph, operand: Operand) -> Heads:
    """Who writes the positions of heads of an operand."""
    graph = channels.graph
    layers = {x.node.outputs[0]: x for x in channels.linears}
    way: list[tuple[Node, str, str]] = []  # node, what it reads, what it gives
    bias = ""
    at = operand.tensor
    while at not in layers:
        node = graph.producer.get(at)
        if node is None or node.index in graph.inside or bias:
            raise Mixed(f"{_said(node)} lies between" if node is not None else "no layer writes them")
        source = _moved(graph, node)
        if source is None:
            own = [i for i in node.inputs if i in layers]
            other = [i for i in node.inputs if i not in layers]
            if node.op != "Add" or len(own) != 1 or len(other) != 1 or other[0] not in graph.constants:
                raise Mixed(f"{_said(node)} lies between")
            source, bias = own[0], other[0]
        way.append((node, source, at))
        at = source
    layer = layers[at]
    columns = _columns(graph, layer, at)
    for node, source, given in reversed(way):
        columns = _apply(graph, node, source, given, columns)
    width = graph.shape(layer.node.outputs[0]) or (0,)
    biases = [b for b in (bias, layer.bias) if b]
    for b in biases:
        if graph.shape(b) != (1,) * (len(graph.shape(b) or ()) - 1) + (width[-1],):
            raise Mixed(f"the bias {b!r} is shared")
    axes = [(layer.weight, weight_axes(layer)[1]), *((b, len(graph.shape(b) or ()) - 1) for b in biases)]
    places = _by_head(operand.by_head(columns))
    tensors = frozenset((at, *(given for _, _, given in way)))
    return Heads(tuple(axes), places, layer, operand, tensors)


def _columns(graph: Graph, layer: Linear, output: str) -> Ints:
    shape, weight = graph.shape(output), graph.constants.get(layer.weight)
    if layer.node.op not in _LAYERS or shape is None or weight is None or weight.ndim != 2:
        raise Mixed(f"{_said(layer.node)} is no matrix product")
    return np.broadcast_to(np.arange(shape[-1]), shape)


def _read(channels: ChannelGraph, operand: Operand) -> Heads:
    """Who reads the positions of heads that a product gives."""
    tensor = operand.tensor
    graph = channels.graph
    layers = {x.data: x for x in channels.linears}
    shape = graph.shape(tensor)
    assert shape is not None  # a product of known operands
    h, d = operand.sizes(shape)
    numbers = np.arange(h * d)
    places: Ints = np.broadcast_to(numbers if operand.packed else numbers.reshape(1, h, 1, d), shape)
    tensors, at = [tensor], tensor
    while at not in layers:
        readers = graph.readers.get(at, ())
        if len(readers) != 1 or readers[0][0].index in graph.inside:
            raise Mixed("several nodes read what attention gives")
        node = readers[0][0]
        if _moved(graph, node) != at or len(node.outputs) != 1:
            raise Mixed(f"{_said(node)} lies behind")
        places = _apply(graph, node, at, node.outputs[0], places)
        at = node.outputs[0]
        tensors.append(at)
    layer = layers[at]
    weight = graph.constants.get(layer.weight)
    if layer.node.op not in _LAYERS or weight is None or weight.ndim != 2 or len(graph.readers[at]) != 1:
        raise Mixed(f"{_said(layer.node)} reads what attention gives")
    if layer.node.op == "Gemm" and layer.node.attrs.get("transA", 0):
        raise Mixed(f"{_said(layer.node)} reads it transposed")
    rows = places.reshape(-1, places.shape[-1])
    if rows.shape[1] != numbers.size or not (rows == rows[:1]).all() or np.unique(rows[0]).size != numbers.size:
        raise Mixed("what attention gives is no longer one row for each place")
    return Heads(
        ((layer.weight, weight_axes(layer)[0]),),
        np.argsort(rows[0]).reshape(h, d),
        layer,
        operand,
        frozenset(tensors),
    )


def _by_head(columns: Ints) -> Ints:
    """(h, d) of columns (B, h, S, d) that are the same for every sample and place."""
    first = columns[:1, :, :1]
    if not (columns == first).all():
        raise Mixed("samples or places share an axis with heads")
    return first[0, :, 0]


def _moved(graph: Graph, node: Node) -> str | None:
    """What a node reads that only moves its entries, repeats them or multiplies all of them by one number."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op in _RESHAPES or node.op in _MOVES:
        return node.inputs[0]
    if node.op in ("Mul", "Div"):
        one = [_is_one_number(graph, i) for i in node.inputs]
        if one[1]:
            return node.inputs[0]
        if one[0] and node.op == "Mul":
            return node.inputs[1]
    return None


def _is_one_number(graph: Graph, name: str) -> bool:
    shape = graph.shape(name)
    return shape is not None and all(s == 1 for s in shape) and not graph.free.get(name)


def _apply(graph: Graph, node: Node, source: str, given: str, numbers: Ints) -> Ints:
    """Numbers of the entries of what a node reads, as it moves them."""
    shape = graph.shape(given)
    if shape is None:
        raise Mixed(f"{_said(node)} lies between")
    move = _MOVES.get(node.op)
    if move is not None:
        numbers = move(graph, node, given, numbers)
    elif node.op in _RESHAPES:
        numbers = numbers.reshape(shape) if numbers.size == int(np.prod(shape)) else numbers
    if numbers.shape != tuple(shape):
        raise Mixed(f"{_said(node)} lies between")
    return numbers


def _transpose(graph: Graph, node: Node, given: str, x: Ints) -> Ints:
    return x.transpose(as_ints(node.attrs["perm"]) if "perm" in node.attrs else None)


def _split(graph: Graph, node: Node, given: str, x: Ints) -> Ints:
    axis = int(node.attrs.get("axis", 0)) % x.ndim
    sizes = [(graph.shape(o) or (0,) * x.ndim)[axis] if o else 0 for o in node.outputs]
    at = list(node.outputs).index(given)
    start = sum(sizes[:at])
    return x.take(range(start, min(start + sizes[at], x.shape[axis])), axis=axis)


def _slice(graph: Graph, node: Node, given: str, x: Ints) -> Ints:
    kept = kept_positions(node, graph)
    if kept is None:
        raise Mixed(f"{_said(node)} lies between")
    for axis, positions in kept.items():
        if positions is None:
            raise Mixed(f"{_said(node)} lies between")
        x = x.take(positions, axis=axis)
    return x


def _gather(graph: Graph, node: Node, given: str, x: Ints) -> Ints:
    index: Array | None = graph.constants.get(node.input(1))
    axis = int(node.attrs.get("axis", 0)) % x.ndim
    if index is None or not ((-x.shape[axis] <= index) & (index < x.shape[axis])).all():
        raise Mixed(f"{_said(node)} lies between")
    return x.take(index, axis=axis)


def _expand(graph: Graph, node: Node, given: str, x: Ints) -> Ints:
    shape = graph.shape(given) or ()
    try:
        return np.broadcast_to(x, shape)
    except ValueError:
        raise Mixed(f"{_said(node)} lies between") from None


_MOVES: Mapping[str, Callable[[Graph, Node, str, Ints], Ints]] = {
    "Expand": _expand,
    "Gather": _gather,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
}
