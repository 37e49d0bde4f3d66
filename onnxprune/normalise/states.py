"""States that a model is fed back: what of them may be cut though inputs and outputs keep their shapes.

An output of one step that is an input of the next has the units of the layers between them as entries, and its shape is
declared. So a Gather is put where nodes read the state, and one where they write it, of all positions of an axis in
their order. Its indices are a constant with an entry for each unit: where a unit goes, its entry of the input is no
longer read, and its entry of the output is zero.

A state often holds those of several layers, which the model slices out of the input and joins in the output. The
Gathers stand behind such slices and before such joints, so that each layer has units of its own: a *piece* of the state
is a tensor and the positions of the state that are in it. Where the pieces that are read are not those that are
written, the whole state is one piece.

Inputs and outputs that may change with the units (a cache, of which no head is kept that nobody reads) get the same
Gathers, each around the whole: at the end what is declared shrinks, and the Gathers go.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph import bodies, external, protobuf
from onnxprune.graph.names import tensors_of, unused
from onnxprune.graph.view import Shape, StateGather
from onnxprune.normalise.form import Normalised
from onnxprune.numerics.arrays import Array, is_float

State = tuple[str, str]
# Of each axis of the state: the first position, and the one behind the last.
Region = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Piece:
    """Some positions of a state as they lie in a tensor.

    axes: of each axis of the tensor, the axis of the state that it is; None for one of size 1 that was put in. nodes:
    those that compute with it, or that it is put into; none where it is the output itself.
    """

    tensor: str
    axes: tuple[int | None, ...]
    region: Region
    nodes: tuple[onnx.NodeProto, ...] = ()

    def moved(self, tensor: str, axes: Iterable[int | None]) -> _Piece:
        """The same positions on other axes of another tensor."""
        return replace(self, tensor=tensor, axes=tuple(axes))

    def part(self, tensor: str, axis: int, start: int, stop: int) -> _Piece | None:
        """The positions from `start` to `stop` of an axis of the tensor."""
        own = self.axes[axis]
        if own is None:
            return None
        first = self.region[own][0]
        region = (*self.region[:own], (first + start, first + stop), *self.region[own + 1 :])
        return replace(self, tensor=tensor, region=region)

    def dropped(self, tensor: str, axes: Collection[int]) -> _Piece:
        """Without these axes, each of one position."""
        return self.moved(tensor, (a for k, a in enumerate(self.axes) if k not in axes))

    def with_axes(self, tensor: str, axes: Collection[int], rank: int) -> _Piece:
        """With axes of one position put in, at these places of the result."""
        own = iter(self.axes)
        return self.moved(tensor, (None if k in axes else next(own) for k in range(rank)))

    def on(self, axes: Sequence[int]) -> Region:
        """The positions on some axes of the state."""
        return tuple(self.region[a] for a in axes)

    def apart(self, other: _Piece, axes: Sequence[int]) -> bool:
        """Whether no position on these axes of the state is in both."""
        return any(b <= c or d <= a for (a, b), (c, d) in zip(self.on(axes), other.on(axes), strict=True))


def with_gathers(normalised: Normalised, states: Sequence[State], resized: Collection[str] = ()) -> Normalised:
    """The normal form with Gathers between `states` (output, input) and the nodes that read or write them.

    They compute nothing: they say where units may be cut. States of other types than floating point get none, neither
    do those that bodies read, nor what has no axis that is as long, and longer than 1, at every size. resized: inputs
    and outputs that may change with their units, states or not.
    """
    if not states and not resized:
        return normalised
    editing = _Editing(normalised, resized)
    for output in dict.fromkeys(o for o, _ in states):
        editing.add(output, [i for o, i in states if o == output])
    editing.add_alone({*resized} - {name for state in states for name in state})
    return editing.result()


class _Editing:
    """A copy of a normal form that gets Gathers."""

    def __init__(self, normalised: Normalised, resized: Collection[str]) -> None:
        self._normalised, self._resized = normalised, frozenset(resized)
        self._proto = protobuf.copied(normalised.proto)
        self._nodes = list(self._proto.graph.node)
        self._stored = {t.name: t for t in self._proto.graph.initializer}
        self._outputs = [o.name for o in self._proto.graph.output]
        self._captured = bodies.captured(self._nodes)
        self._shapes, self._types = dict(normalised.shapes), dict(normalised.types)
        self._free = dict(normalised.free)
        self._taken = tensors_of(self._proto) | self._shapes.keys()
        self._gathers: list[StateGather] = []

    def result(self) -> Normalised:
        """The normal form with what was added."""
        nodes = [bodies.copy_node(n) for n in self._nodes]
        del self._proto.graph.node[:]
        self._proto.graph.node.extend(nodes)
        return replace(
            self._normalised,
            proto=self._proto,
            shapes=self._shapes,
            types=self._types,
            free=self._free,
            states=tuple(self._gathers),
        )

    def add(self, output: str, inputs: Sequence[str]) -> None:
        """Put Gathers between one output, with the inputs that it is in the next step, and the nodes."""
        axes = self._axes(output, inputs)
        if not axes:
            return
        written = list(self._written(self._whole(output)))
        read = {i: list(self._read(self._whole(i))) for i in inputs}
        pieces = [*written, *(p for ps in read.values() for p in ps)]
        if self._resized.intersection((output, *inputs)) or any(
            a.on(axes) != b.on(axes) and not a.apart(b, axes) for a in pieces for b in pieces
        ):
            written = [self._whole(output)]
            read = {i: [replace(self._whole(i), nodes=tuple(self._readers(i)))] for i in inputs}
        read_as: dict[Region, list[str]] = {}
        for i, own in read.items():
            for piece in own:
                units = self._put_behind(piece, axes, (output, i))
                read_as.setdefault(piece.on(axes), []).extend(units)
        for piece in written:
            self._put_before(piece, axes, (output, inputs[0]), read_as.get(piece.on(axes), ()))

    def add_alone(self, names: Collection[str]) -> None:
        """Put Gathers at inputs and outputs of which it is not known what they are in the next step."""
        for name in sorted(names):
            if name in self._outputs:
                axes = self._axes(name, ())
                if axes:
                    self._put_before(self._whole(name), axes, (name, ""), ())
            else:
                axes = self._axes("", (name,))
                if axes and self._readers(name):
                    self._put_behind(replace(self._whole(name), nodes=tuple(self._readers(name))), axes, ("", name))

    # what may be cut

    def _axes(self, output: str, inputs: Sequence[str]) -> tuple[int, ...]:
        """The axes of a state that its units may lie on. output: "" where there is none that is known."""
        names = tuple(n for n in (output, *inputs) if n)
        shapes = [self._shapes.get(n) for n in names]
        producer = self._producer()
        written = not output or (output in producer and self._outputs.count(output) == 1)
        plain = written and not self._captured.intersection(names)
        first = shapes[0]
        if not plain or first is None or any(s is None or len(s) != len(first) for s in shapes):
            return ()
        if not all(is_float(helper.tensor_dtype_to_np_dtype(self._types.get(n, 1))) for n in names):
            return ()
        fixed = {v.name: v.type.tensor_type.shape.dim for v in (*self._proto.graph.input, *self._proto.graph.output)}
        alone = [output] if output in self._resized else []
        return tuple(
            a
            for a, size in enumerate(first)
            if size > 1
            and all(s is not None and s[a] == size for s in shapes)
            and not any(a in self._free.get(n, ()) for n in names)
            and all(len(fixed[i]) == len(first) and fixed[i][a].dim_value == size for i in (*inputs, *alone))
        )

    def _whole(self, name: str) -> _Piece:
        shape = self._shapes[name]
        return _Piece(name, tuple(range(len(shape))), tuple((0, s) for s in shape))

    # where the pieces are

    def _producer(self) -> dict[str, onnx.NodeProto]:
        return {o: n for n in self._nodes for o in n.output if o}

    def _readers(self, name: str) -> list[onnx.NodeProto]:
        return [n for n in self._nodes if name in n.input]

    def _read(self, piece: _Piece) -> Iterator[_Piece]:
        """The pieces that nodes compute with, from one that is only moved about."""
        computing: list[onnx.NodeProto] = []
        for n in self._readers(piece.tensor):
            parts = _moved_forward(n, piece, self._shapes, self._value)
            if parts is None:
                computing.append(n)
            for part in parts or ():
                yield from self._read(part)
        if computing:
            yield replace(piece, nodes=tuple(computing))

    def _written(self, piece: _Piece) -> Iterator[_Piece]:
        """The pieces that nodes compute, of one that is only put together of them."""
        n = self._producer().get(piece.tensor)
        used = len(self._readers(piece.tensor)) + self._outputs.count(piece.tensor)
        parts = None
        if n is not None and used == 1 and piece.tensor not in self._captured:
            parts = self._parts(n, piece)
        if parts is None:
            yield piece
        for part in parts or ():
            yield from self._written(part)

    def _parts(self, n: onnx.NodeProto, piece: _Piece) -> list[_Piece] | None:
        """The pieces that a node puts together, each of them once and computed; None where it does anything else."""
        parts = _moved_back(n, piece, self._shapes, self._value) or []
        producer = self._producer()
        names = {p.tensor for p in parts}
        own = len(names) == len(parts) > 0 and names <= producer.keys()
        return [replace(p, nodes=(n,)) for p in parts] if own else None

    def _value(self, name: str) -> Array | None:
        return external.array_of(self._stored[name]) if name in self._stored else None

    # what is put there

    def _put_behind(self, piece: _Piece, axes: Sequence[int], state: State) -> list[str]:
        """Put Gathers behind a piece that is read; the tensor that has its units, where it has any."""
        made: list[onnx.NodeProto] = []
        gathers = self._row(piece.tensor, piece, axes, state, made)
        if not gathers:
            return []
        units = gathers[-1].tensor
        self._gathers += [replace(g, units=units) for g in gathers]
        _read_instead(piece.nodes, piece.tensor, units)
        self._insert(piece.tensor, made)
        return [units]

    def _put_before(self, piece: _Piece, axes: Sequence[int], state: State, read_as: Sequence[str]) -> None:
        """Put Gathers between a piece that is written and what it is put into."""
        name = units = piece.tensor
        if not _places(piece, axes):
            return
        if not piece.nodes:  # the output: it keeps its name, and whoever reads it inside reads what was computed
            units = self._named(f"{name}__units", name)
            producer = self._producer()[name]
            producer.output[:] = [units if o == name else o for o in producer.output]
            _read_instead(self._readers(name), name, units)
        made: list[onnx.NodeProto] = []
        gathers = self._row(units, piece, axes, state, made, "" if piece.nodes else name)
        self._gathers += [replace(g, units=units, written=True, read_as=tuple(read_as)) for g in gathers]
        _read_instead(piece.nodes, name, gathers[-1].tensor)
        self._insert(units, made)

    def _row(
        self,
        source: str,
        piece: _Piece,
        axes: Sequence[int],
        state: State,
        made: list[onnx.NodeProto],
        output: str = "",
    ) -> list[StateGather]:
        """Gathers of all positions, one for each axis, from `source` on. output: the name of the last."""
        like, places = piece.tensor, _places(piece, axes)
        gathers: list[StateGather] = []
        for k, axis in enumerate(places):
            ends = output and k + 1 == len(places)
            tensor = output if ends else self._named(f"{like}__axis{axis}", like)
            indices = self._named(f"{tensor}__every")
            size = self._shapes[like][axis]
            stored = numpy_helper.from_array(np.arange(size, dtype=np.int64), indices)
            self._stored[indices] = stored
            self._proto.graph.initializer.append(stored)
            made.append(helper.make_node("Gather", [source, indices], [tensor], name=f"state {tensor}", axis=axis))
            resized = bool(self._resized.intersection(state))
            gathers.append(StateGather(tensor, source, indices, axis, size, state, "", tuple(places), resized=resized))
            source = tensor
        return gathers

    def _insert(self, behind: str, nodes: Sequence[onnx.NodeProto]) -> None:
        """Add nodes behind the one that computes a tensor; at the front where it is an input."""
        place = next((k + 1 for k, n in enumerate(self._nodes) if behind in n.output), 0)
        self._nodes[place:place] = nodes

    def _named(self, name: str, like: str = "") -> str:
        """A name that nothing has, of a tensor of the same shape as `like`."""
        found = unused(name, self._taken)
        if like:
            self._shapes[found] = self._shapes[like]
            if like in self._types:
                self._types[found] = self._types[like]
            if like in self._free:
                self._free[found] = self._free[like]
        return found


def _read_instead(nodes: Iterable[onnx.NodeProto], name: str, other: str) -> None:
    for n in nodes:
        n.input[:] = [other if i == name else i for i in n.input]


def _places(piece: _Piece, axes: Sequence[int]) -> list[int]:
    """The axes of the tensor that are one of `axes` of the state, with several positions in a piece."""
    wide = [a for a in axes if piece.region[a][1] - piece.region[a][0] > 1]
    return [place for place, axis in enumerate(piece.axes) if axis in wide]


# how pieces are moved about

_Value = Callable[[str], Array | None]


def _moved_forward(n: onnx.NodeProto, piece: _Piece, shapes: Mapping[str, Shape], value: _Value) -> list[_Piece] | None:
    """What a node makes of a piece that it only moves about; None where it does anything else."""
    outputs = [o for o in n.output if o]
    if n.domain not in ("", "ai.onnx") or n.input[0] != piece.tensor or list(n.input).count(piece.tensor) > 1:
        return None
    if any(o not in shapes for o in (piece.tensor, *outputs)):
        return None
    before, after = shapes[piece.tensor], shapes[outputs[0]]
    if n.op_type == "Split":
        axis = protobuf.int_attribute(n, "axis", 0) % len(before)
        ends = np.cumsum([0, *(shapes[o][axis] for o in outputs)]).tolist()
        parts = [piece.part(o, axis, a, b) for o, a, b in zip(outputs, ends, ends[1:], strict=False)]
        return [p for p in parts if p is not None] if len(outputs) == len(n.output) and None not in parts else None
    if n.op_type == "Slice":
        return _sliced(n, piece, before, value)
    if n.op_type == "Gather":
        return _picked(n, piece, before, value)
    moved = _rearranged(n, piece, outputs[0], before, after, value)
    return None if moved is None else [moved]


def _moved_back(n: onnx.NodeProto, piece: _Piece, shapes: Mapping[str, Shape], value: _Value) -> list[_Piece] | None:
    """What a node has put together, or moved about, to a piece; None where it does anything else."""
    if n.domain not in ("", "ai.onnx") or any(i not in shapes for i in n.input[:1]) or len(n.output) != 1:
        return None
    if n.op_type == "Concat":
        axis = protobuf.int_attribute(n, "axis", 0) % len(piece.axes)
        if piece.axes[axis] is None or any(i not in shapes for i in n.input):
            return None
        ends = np.cumsum([0, *(shapes[i][axis] for i in n.input)]).tolist()
        parts = [piece.part(i, axis, a, b) for i, a, b in zip(n.input, ends, ends[1:], strict=False)]
        return [p for p in parts if p is not None]
    before, after = shapes[n.input[0]], shapes[piece.tensor]
    moved: _Piece | None = None
    if n.op_type == "Identity":
        moved = piece.moved(n.input[0], piece.axes)
    elif n.op_type == "Transpose":
        order = _order(n, len(before))
        moved = piece.moved(n.input[0], (piece.axes[order.index(a)] for a in range(len(before))))
    elif n.op_type in ("Squeeze", "Unsqueeze"):
        axes = _axes_of(n, max(len(before), len(after)), value)
        if axes is not None and n.op_type == "Squeeze":
            moved = piece.with_axes(n.input[0], axes, len(before))
        elif axes is not None:
            moved = piece.dropped(n.input[0], axes)
    return None if moved is None else [moved]


def _rearranged(
    n: onnx.NodeProto, piece: _Piece, out: str, before: Shape, after: Shape, value: _Value
) -> _Piece | None:
    if n.op_type == "Identity":
        return piece.moved(out, piece.axes)
    if n.op_type == "Transpose":
        return piece.moved(out, (piece.axes[a] for a in _order(n, len(before))))
    if n.op_type in ("Squeeze", "Unsqueeze"):
        axes = _axes_of(n, max(len(before), len(after)), value)
        if axes is not None and n.op_type == "Squeeze":
            return piece.dropped(out, axes)
        if axes is not None:
            return piece.with_axes(out, axes, len(after))
    return None


def _order(n: onnx.NodeProto, rank: int) -> list[int]:
    given = next((list(a.ints) for a in n.attribute if a.name == "perm"), None)
    return list(reversed(range(rank))) if given is None else [int(a) % rank for a in given]


def _axes_of(n: onnx.NodeProto, rank: int, value: _Value) -> set[int] | None:
    """The axes that a Squeeze takes away or an Unsqueeze puts in; None where they are not written."""
    given = next((list(a.ints) for a in n.attribute if a.name == "axes"), None)
    if given is None and len(n.input) > 1 and n.input[1]:
        values = value(n.input[1])
        given = None if values is None else values.ravel().tolist()
    return None if given is None else {int(a) % rank for a in given}


def _sliced(n: onnx.NodeProto, piece: _Piece, before: Shape, value: _Value) -> list[_Piece] | None:
    """A Slice of neighbours, in their order."""
    written = {a.name: np.array(a.ints) for a in n.attribute if a.name in ("starts", "ends", "axes")}
    for slot, key in enumerate(("starts", "ends", "axes", "steps"), 1):
        if len(n.input) > slot and n.input[slot]:
            values = value(n.input[slot])
            if values is None:
                return None
            written[key] = values
    if not written.keys() >= {"starts", "ends"}:
        return None
    starts, ends = (written[k].ravel().tolist() for k in ("starts", "ends"))
    axes = written.get("axes", np.arange(len(starts))).ravel().tolist()
    steps = written.get("steps", np.ones(len(starts), np.int64)).ravel().tolist()
    part: _Piece | None = piece
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = before[axis % len(before)]
        first, last, _ = slice(int(start), int(end)).indices(size)
        if step != 1 or first >= last or part is None:
            return None
        if (first, last) != (0, size):
            part = part.part(piece.tensor, axis % len(before), first, last)
    return None if part is None else [replace(part, tensor=n.output[0])]


def _picked(n: onnx.NodeProto, piece: _Piece, before: Shape, value: _Value) -> list[_Piece] | None:
    """A Gather of one position, or of neighbours in their order."""
    axis, indices = protobuf.int_attribute(n, "axis", 0) % len(before), value(n.input[1])
    if indices is None or indices.ndim > 1 or not indices.size:
        return None
    places = [int(i) % before[axis] for i in indices.ravel()]
    if places != list(range(places[0], places[0] + len(places))):
        return None
    part = piece.part(n.output[0], axis, places[0], places[-1] + 1)
    if part is None or indices.ndim:
        return None if part is None else [part]
    return [part.dropped(n.output[0], (axis,))]
