"""A model whose weights would fill the memory runs in instalments: parts of it, one opened after the other.

onnxruntime maps weights that lie in files, and what it has read of them counts as the process's memory until the
session ends. So a part is opened, run and closed before the next one is opened: at any time the weights of one part
are mapped, whatever the number of layers. To open a part costs milliseconds; to read its weights again what it costs to
read them once more from the system's cache.

Parts end where few tensors are handed over. What is computed from weights alone is computed in each part that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxprune.errors import RunError
from onnxprune.graph import external, protobuf
from onnxprune.graph.bodies import captured_names
from onnxprune.numerics.arrays import Array

# Models with more bytes in files are run in parts of about so many bytes, which hold one layer at least.
WHOLE_BYTES = 1 << 30
PART_BYTES = 256 << 20
# Of what is asked to last, a part ends in the second half, where the fewest tensors are handed over.
_LEAST_SHARE = 0.5
_TENSOR, _END = "tensor(", ")"
_DRAWING = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial"})


@dataclass(frozen=True)
class Port:
    """An input or output, as onnxruntime describes its own: `type` as in "tensor(float)"."""

    name: str
    type: str
    shape: Sequence[int | str | None]


def too_large(proto: onnx.ModelProto) -> bool:
    """Whether a model has more weights in files than a session should map at once, and more than one node for them."""
    return external.external_bytes(proto) > WHOLE_BYTES and len(proto.graph.node) > 1


class Instalments:
    """What stands for onnxruntime's session of a large model; it has those of its methods that `Session` calls.

    start: opens onnxruntime's session of a part. Raises RunError where onnxruntime refuses a part.
    """

    def __init__(self, proto: onnx.ModelProto, start: Callable[[onnx.ModelProto], Any]) -> None:
        self._proto, self._start = proto, start
        self._parts: list[_Part] = []
        self._types: dict[str, str] = {}
        self._shapes: dict[str, Sequence[int | str | None]] = {}
        flow = _Flow.of(proto)
        first = 0
        for end in flow.ends():
            part = self._opened(flow, first, end)
            if part is not None:
                self._parts.append(part)
                first = end
        last_needed: dict[str, int] = {}
        for i, part in enumerate(self._parts):
            last_needed.update(dict.fromkeys(part.inputs, i))
        self._last_needed = last_needed

    def _opened(self, flow: _Flow, first: int, end: int) -> _Part | None:
        """The part of the nodes `first` to `end`, tried once; None where it hands over what is no tensor."""
        wanted = flow.handed_over(first, end)
        if not wanted:
            return None
        known = {k: _element_type(t) for k, t in self._types.items() if k in flow.varying}
        proto = protobuf.submodel(self._proto, known, wanted)
        reads = {x for n in proto.graph.node for x in (*n.input, *captured_names(n))}
        unread = [v for v in proto.graph.input if v.name in known and v.name not in reads]
        for v in unread:
            proto.graph.input.remove(v)
        session = self._start(proto)
        outputs = {o.name: o for o in session.get_outputs()}
        if end < flow.count and not all(o.type.startswith(_TENSOR) for o in outputs.values()):
            return None
        self._types.update((k, o.type) for k, o in outputs.items())
        self._shapes.update((k, o.shape) for k, o in outputs.items())
        return _Part(proto, tuple(v.name for v in proto.graph.input), tuple(outputs))

    def get_inputs(self) -> list[Port]:
        """The inputs that have to be fed."""
        defaults = {t.name for t in self._proto.graph.initializer}
        return [_declared(v) for v in self._proto.graph.input if v.name not in defaults]

    def get_overridable_initializers(self) -> list[Port]:
        """The inputs that have a default."""
        defaults = {t.name for t in self._proto.graph.initializer}
        return [_declared(v) for v in self._proto.graph.input if v.name in defaults]

    def get_outputs(self) -> list[Port]:
        """The outputs, in the order of the model."""
        return [Port(o.name, self._types[o.name], self._shapes[o.name]) for o in self._proto.graph.output]

    def whole(self) -> Any:
        """onnxruntime's session of the whole model, with all of its weights at once."""
        return self._start(self._proto)

    def run(self, names: Sequence[str], feeds: Mapping[str, Array], options: Any = None) -> list[Any]:
        """The outputs `names`; parts behind the last of them are not run."""
        values: dict[str, Any] = dict(feeds)
        wanted = set(names)
        for i, part in enumerate(self._parts):
            if wanted <= values.keys():
                break
            session = self._start(part.proto)
            fed = {k: values[k] for k in part.inputs if k in values}
            values.update(zip(part.outputs, session.run(list(part.outputs), fed, options), strict=True))
            del session, fed
            for k in [k for k in values if self._last_needed.get(k, i) <= i and k not in wanted]:
                del values[k]
        return [values[k] for k in names]


@dataclass(frozen=True)
class _Part:
    """A part, what it is fed, and what it gives."""

    proto: onnx.ModelProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Flow:
    """What flows through the nodes of a graph, in their order.

    varying: the tensors that depend on the inputs. made: by node, those of its outputs. last_read: of each, the last
    node that reads it; `count` where it is an output of the model. weights: by node, what it reads in files, by name,
    through what is computed from weights alone too.
    """

    outputs: tuple[str, ...]
    varying: AbstractSet[str]
    made: Sequence[Sequence[str]]
    last_read: Mapping[str, int]
    weights: Sequence[Mapping[str, int]]

    @property
    def count(self) -> int:
        """How many nodes there are."""
        return len(self.made)

    @classmethod
    def of(cls, proto: onnx.ModelProto) -> _Flow:
        graph = proto.graph
        sizes = {t.name: external.bytes_of(t) if external.is_external(t) else 0 for t in graph.initializer}
        varying = {v.name for v in graph.input}
        behind: dict[str, dict[str, int]] = {k: {k: size} for k, size in sizes.items() if size}
        made: list[list[str]] = []
        weights: list[dict[str, int]] = []
        last_read: dict[str, int] = {}
        for i, node in enumerate(graph.node):
            reads = {x for x in (*node.input, *captured_names(node)) if x}
            stored: dict[str, int] = {}
            for x in reads:
                stored.update(behind.get(x, ()))
            outputs = [o for o in node.output if o]
            if reads & varying or node.op_type in _DRAWING:
                varying.update(outputs)
                made.append(outputs)
                weights.append(stored)
                last_read.update(dict.fromkeys(reads, i))
            else:
                if stored:
                    behind.update(dict.fromkeys(outputs, stored))
                made.append([])
                weights.append({})
        outputs_of_model = tuple(o.name for o in graph.output)
        last_read.update(dict.fromkeys(outputs_of_model, len(made)))
        return cls(outputs_of_model, varying, made, last_read, weights)

    def ends(self) -> Iterator[int]:
        """The nodes in front of which parts end, and the end of the last."""
        crossing = self._crossing()
        first, taken, size = 0, set[str](), 0
        best = 0
        for i in range(self.count):
            more = {k: v for k, v in self.weights[i].items() if k not in taken}
            if taken and size + sum(more.values()) > PART_BYTES:
                end = best if best > first else i
                yield end
                first, best = end, end
                taken, size = set(), 0
                for j in range(first, i):
                    taken.update(self.weights[j])
                    size += sum(self.weights[j].values())
                more = {k: v for k, v in self.weights[i].items() if k not in taken}
            taken.update(more)
            size += sum(more.values())
            if size >= _LEAST_SHARE * PART_BYTES and (best <= first or crossing[i + 1] <= crossing[best]):
                best = i + 1
        yield self.count

    def _crossing(self) -> list[int]:
        """By node, how many tensors are handed over where a part ends in front of it."""
        change = np.zeros(self.count + 2, np.int64)
        for i, outputs in enumerate(self.made):
            for o in outputs:
                last = self.last_read.get(o, -1)
                if last < self.count:  # the model's outputs are given out, and handed over to nobody
                    change[i + 1] += last > i
                    change[last + 1] -= last > i
        crossing: list[int] = np.cumsum(change).tolist()
        return crossing

    def handed_over(self, first: int, end: int) -> list[str]:
        """What the nodes from `first` to `end` compute that later ones or the caller read; at the end, all the rest."""
        made = [o for i in range(first, end) for o in self.made[i] if self.last_read.get(o, -1) >= end]
        if end < self.count:
            return made
        computed = {o for own in self.made for o in own}
        return [*made, *dict.fromkeys(o for o in self.outputs if o not in computed)]


def _declared(v: onnx.ValueInfoProto) -> Port:
    """What a model says of one of its inputs."""
    element = onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type)
    return Port(v.name, f"{_TENSOR}{element.lower()}{_END}", protobuf.declared_sizes(v))


def _element_type(described: str) -> int:
    """ONNX's number of "tensor(float)" and the like. Raises RunError for what is none."""
    name = described.removeprefix(_TENSOR).removesuffix(_END).upper()
    if not described.startswith(_TENSOR) or name not in dict(onnx.TensorProto.DataType.items()):
        raise RunError(f"a tensor of type {described} cannot be handed from one part of a model to the next")
    return int(onnx.TensorProto.DataType.Value(name))
