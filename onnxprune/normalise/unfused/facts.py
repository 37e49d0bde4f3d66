"""What is known of a model's tensors while its fused operators are written anew: declared, or else measured."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property

import numpy as np
import onnx

from onnxprune.errors import RunError
from onnxprune.graph import bodies, external, protobuf
from onnxprune.graph.protobuf import copied, element_type
from onnxprune.graph.view import Shape
from onnxprune.normalise import body_values
from onnxprune.normalise.unfused.blocked import layout_of
from onnxprune.normalise.unfused.site import Layout, Unknown
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Feeds, Session


class Measured:
    """Types and shapes of the tensors `asked` of a model, and its weights; what nobody asks for is not measured.

    Names are unique over its bodies. example: one set of inputs that it takes. replaceable: weights that callers may
    override, of which no value is told.
    """

    def __init__(
        self, proto: onnx.ModelProto, example: Feeds, asked: Collection[str], replaceable: Collection[str]
    ) -> None:
        self._proto = copied(proto)
        self._example, self._asked, self._replaceable = example, asked, replaceable
        self._stored = bodies.weights_of(self._proto)
        self._shapes: dict[str, Shape] = {k: tuple(t.dims) for k, t in self._stored.items()}
        self._types: dict[str, int] = {k: t.data_type for k, t in self._stored.items()}
        for name, value in example.items():
            if isinstance(value, np.ndarray):
                self._shapes.setdefault(name, tuple(value.shape))
                self._types.setdefault(name, element_type(value.dtype))
        self._measured = False
        self._why = ""

    def type_of(self, name: str) -> int:
        """ONNX's number of the element type. Raises Unknown."""
        self._measure(name, self._types)
        if name not in self._types:
            raise Unknown(f"the type of {name!r} is not known")
        return self._types[name]

    def shape_of(self, name: str) -> Shape:
        """The shape with the example. Raises Unknown."""
        self._measure(name, self._shapes)
        if name not in self._shapes:
            raise Unknown(f"the shape of {name!r} is not known")
        return self._shapes[name]

    def constant(self, name: str) -> Array | None:
        """The value of a weight that no caller can replace; None of anything else."""
        if name not in self._stored or name in self._replaceable:
            return None
        return external.array_of(self._stored[name])

    def reshaped(self, name: str) -> str:
        """The weight that a Reshape gives another shape, where `name` is what it gives; else ""."""
        by = self._reshapes.get(name)
        return by if by is not None and by in self._stored and by not in self._replaceable else ""

    @cached_property
    def _reshapes(self) -> Mapping[str, str]:
        """What each Reshape of the main graph gives, and reads."""
        return {n.output[0]: n.input[0] for n in self._proto.graph.node if n.op_type == "Reshape"}

    @property
    def blocked(self) -> Layout:
        """The tensors whose channels lie in blocks. Raises Unknown where they cannot be followed."""
        if self.layout is None:
            raise Unknown(self._why)
        return self.layout

    @cached_property
    def layout(self) -> Layout | None:
        """The same, None where they cannot be followed."""
        layout = layout_of(self._proto, self)
        if isinstance(layout, Layout):
            return layout
        self._why = layout.why
        return None

    def _measure(self, name: str, known: Collection[str]) -> None:
        """Run the model once, when something is asked that its weights and inputs do not tell."""
        if self._measured or name in known:
            return
        self._measured = True
        inner = {o for g in bodies.every_body(self._proto.graph) for o in _given(g)}
        outer = {o for n in self._proto.graph.node for o in n.output if o}
        names = [n for n in self._asked if n in outer and n not in self._shapes]
        try:
            if names:
                part = protobuf.submodel(self._proto, {}, names)
                body_values.add_shapes(Session(part, optimize=False).run(self._example), self._shapes, self._types)
            if inner & set(self._asked):
                body_values.add_shapes_of_bodies(self._proto, self._example, self._shapes, self._types)
        except RunError:
            return  # a part of the model that only runs as a whole


def _given(graph: onnx.GraphProto) -> Iterable[str]:
    yield from (v.name for v in graph.input)
    yield from (o for n in graph.node for o in n.output if o)
