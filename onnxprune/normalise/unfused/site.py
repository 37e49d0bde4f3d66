"""The place of one fused node: what may be asked of it, and the standard nodes that are to stand there instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import helper

from onnxprune.graph import tensor_files
from onnxprune.graph.view import Shape
from onnxprune.numerics.arrays import Array


@dataclass(frozen=True)
class Refusal:
    """Why a node stays as it is, in words that a report can say."""

    why: str


class Unknown(Exception):  # no error: what a row asks of a tensor cannot be told, and the node stays
    """A type, a rank or a value that a row needs is not known."""


@dataclass(frozen=True, eq=False)
class Layout:
    """What lies in blocks of channels.

    channels: of each such tensor, those that are more than filling. block: channels in a block of this processor.
    views: of these tensors, what a Reshape gives that only takes the block apart, or together. kernels: weights in the
    plain layout that have been written already, by the stored one and the part of it.
    """

    channels: Mapping[str, int]
    block: int
    views: frozenset[str] = frozenset()
    kernels: dict[tuple[str, int, int], str] = field(default_factory=dict)


class Facts(Protocol):
    """What is known of the tensors of a model: asked by name, raises Unknown."""

    def type_of(self, name: str) -> int:
        """ONNX's number of the element type."""

    def shape_of(self, name: str) -> Shape:
        """The shape at one size of the inputs: sizes of single axes may be others elsewhere."""

    def constant(self, name: str) -> Array | None:
        """The value of a weight that no caller can replace; None of anything else."""

    def reshaped(self, name: str) -> str:
        """The weight that a Reshape gives another shape, where `name` is what it gives; else ""."""

    @property
    def blocked(self) -> Layout:
        """The tensors whose channels lie in blocks."""


class Site:
    """One fused node, and what is built in its place.

    `op` adds a standard node behind those that were added, `weight` a constant that they read. The first node takes
    over the name of the fused one, by which users exclude layers, unless `main` says that another one does.
    """

    def __init__(
        self,
        node: onnx.NodeProto,
        facts: Facts,
        opset: int,
        unused: Callable[[str], str],
        shared: dict[object, str] | None = None,
    ) -> None:
        """shared: constants that were made `once` for all nodes of a model, by their key."""
        self._node, self._facts, self._unused = node, facts, unused
        self._shared = {} if shared is None else shared
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self._main = 0
        self.weights: list[onnx.TensorProto] = []
        self.origins: dict[str, str] = {}
        self.roles: dict[str, tuple[str, ...]] = {}
        self._attributes: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}

    # what is asked of the fused node

    @property
    def inputs(self) -> Sequence[str]:
        """Names of its inputs, "" for one that is left out."""
        return tuple(self._node.input)

    def input(self, slot: int) -> str:
        """The name of an input, "" where it is left out."""
        return self._node.input[slot] if slot < len(self._node.input) else ""

    def output(self, slot: int = 0) -> str:
        """The name of an output, "" where nothing asks for it."""
        return self._node.output[slot] if slot < len(self._node.output) else ""

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, strings as text."""
        value = self._attributes.get(name, default)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def attributes(self, *names: str) -> dict[str, Any]:
        """Those of these attributes that are given."""
        return {name: self.attribute(name) for name in names if name in self._attributes}

    def type_of(self, name: str) -> int:
        """ONNX's number of the element type of a tensor of the model. Raises Unknown."""
        return self._facts.type_of(name)

    def shape_of(self, name: str) -> Shape:
        """The shape of a tensor of the model at one size of the inputs. Raises Unknown."""
        return self._facts.shape_of(name)

    def origin(self, name: str) -> str:
        """The weight that a tensor of the model is, or is in another shape. Which it is of is kept with the node."""
        stored = self._facts.reshaped(name)
        if stored:
            self.origins[name] = stored
        return stored or name

    @property
    def blocked(self) -> Layout:
        """The tensors of the model whose channels lie in blocks. Raises Unknown where they cannot be followed."""
        return self._facts.blocked

    def numpy_type(self, name: str) -> np.dtype[Any]:
        """numpy's element type of a tensor of the model. Raises Unknown."""
        kind: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(self.type_of(name))
        return kind

    def rank_of(self, name: str) -> int:
        """The number of axes of a tensor of the model. Raises Unknown."""
        return len(self._facts.shape_of(name))

    def constant(self, name: str) -> Array:
        """The value of a weight. Raises Unknown where it is computed, or where callers may replace it."""
        value = self._facts.constant(name)
        if value is None:
            raise Unknown(f"{name!r} is no weight of its own: it is computed, or callers may replace it")
        return value

    # what is built

    def op(
        self, operator: str, *inputs: str, to: str = "", count: int = 1, main: bool = False, **attributes: Any
    ) -> str:
        """Add a standard node; the name of its first output, which is `to` where that is given.

        count: of its outputs, which are then called like the first one with __1, __2 behind it.
        """
        first = to or self._unused(f"{self._label}__{operator.lower()}")
        outputs = [first, *(self._unused(f"{first}__{k}") for k in range(1, count))]
        return self.node(operator, inputs, outputs, main=main, **attributes)

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        main: bool = False,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a standard node that gives `outputs`; the name of the first one."""
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        self._main = len(self.nodes) if main else self._main
        self.nodes.append(helper.make_node(operator, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def unused(self, wanted: str) -> str:
        """A name that no tensor has, as near to the wanted one as possible."""
        return self._unused(wanted)

    def named(self, unused: Callable[[str], str]) -> list[onnx.NodeProto]:
        """The nodes that were added, with names; `unused` makes of a wanted name one that no node has."""
        for k, n in enumerate(self.nodes):
            if self._node.name:
                n.name = self._node.name if k == self._main else unused(f"{self._node.name}/{n.op_type}")
        return self.nodes

    def weight(self, value: Array, what: str) -> str:
        """Add a constant; its name."""
        name = self._unused(f"{self._label}__{what}")
        self.weights.append(tensor_files.tensor_of(value, name, outside=True))
        return name

    def once(self, key: object, wanted: str, make: Callable[[], Array]) -> str:
        """The name of a constant that all nodes share which ask for it by this key; `wanted`, or one near to it."""
        if key not in self._shared:
            name = self._shared[key] = self._unused(wanted)
            self.weights.append(tensor_files.tensor_of(make(), name, outside=True))
        return self._shared[key]

    def scalar(self, value: float, like: str, what: str = "number") -> str:
        """Add a constant of one number, in the type of the tensor `like` of the model; its name."""
        return self.weight(np.array(value).astype(self.numpy_type(like)), what)

    def number(self, value: int, what: str) -> str:
        """Add a constant of one int64; its name."""
        return self.weight(np.array(value, np.int64), what)

    def integers(self, values: Sequence[int], what: str) -> str:
        """Add a vector of int64; its name."""
        return self.weight(np.array(values, np.int64), what)

    def cast(self, name: str, kind: int) -> str:
        """A tensor in another element type."""
        return self.node("Cast", [name], [self._unused(f"{self._label}__cast")], to=kind)

    def mean_over(self, name: str, axes: Sequence[int], *, to: str = "") -> str:
        """The mean over these axes, which stay with size 1."""
        if self.opset >= 18:
            return self.op("ReduceMean", name, self.integers(axes, "axes"), keepdims=1, to=to)
        return self.op("ReduceMean", name, axes=list(axes), keepdims=1, to=to)

    def unsqueezed(self, name: str, axes: Sequence[int]) -> str:
        """The tensor with further axes of size 1 at these places of the result."""
        if self.opset >= 13:
            return self.op("Unsqueeze", name, self.integers(axes, "axes"))
        return self.op("Unsqueeze", name, axes=list(axes))

    @property
    def _label(self) -> str:
        return next((o for o in self._node.output if o), self._node.op_type)


# What writes one operator in standard ones: builds at the site, and gives a refusal where that would not be the same.
Row = Callable[[Site], Refusal | None]
Rows = Mapping[str, Row]
