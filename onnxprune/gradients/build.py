"""What a gradient rule writes with: nodes and constants under fresh names, in the operator set of the model.

Operators whose axes moved from an attribute to an input are written here, once; rules do not look at opsets.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph.view import Graph, Node, Shape
from onnxprune.numerics.arrays import Array, Floats, cast, is_float

Names = tuple[str, ...]
# (builder of the body, states, what this step reads) → (states after it, what it gives)
Body = Callable[["Builder", Names, Names], tuple[Names, Names]]


class NoGradient(Exception):  # no error: what lies upstream has no gradient, for this reason
    """A rule cannot differentiate this node; the message says why."""


class Builder:
    """Appends nodes and constants for one model.

    graph: the model's view; sizes of `Graph.shapes` hold for the batch of its binding only, so a rule takes ranks and
    the sizes of axes that no batch can be on from there, and reads all else at run time (`shape_of`).
    types: ONNX element type of each tensor. New tensors of a rule have the type of the tensor that they belong to.
    """

    def __init__(self, graph: Graph, types: Mapping[str, int], prefix: str = "grad") -> None:
        self.graph = graph
        self.types = types
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.typed: list[onnx.ValueInfoProto] = []
        self._prefix = prefix
        self._known: dict[tuple[str, Shape, bytes], str] = {}

    # nodes

    def op(self, kind: str, *inputs: str, **attrs: Any) -> str:
        """The output of a new node; "" stands for an omitted input."""
        return self.ops(kind, inputs, 1, **attrs)[0]

    def ops(self, kind: str, inputs: Sequence[str], outputs: int, **attrs: Any) -> tuple[str, ...]:
        """The outputs of a new node."""
        index = len(self.nodes)
        names = tuple(f"{self._prefix}:{kind}{index}" + (f".{k}" if outputs > 1 else "") for k in range(outputs))
        self.nodes.append(helper.make_node(kind, list(inputs), list(names), name=names[0], **attrs))
        return names

    def typed_as(self, x: str, like: str) -> str:
        """x, declared to be of the type of `like`, a tensor of the model: of some operators nobody infers it."""
        kind = int(helper.np_dtype_to_tensor_dtype(self.dtype(like)))
        self.typed.append(helper.make_tensor_value_info(x, kind, None))
        return x

    def constant(self, values: object, dtype: object) -> str:
        """A constant; equal ones are stored once."""
        array = np.asarray(values, dtype=dtype)  # type: ignore[call-overload]
        key = array.dtype.str + array.dtype.name, array.shape, array.tobytes()
        if key not in self._known:
            self._known[key] = f"{self._prefix}:const{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def ints(self, *values: int) -> str:
        """A one-dimensional int64 constant."""
        return self.constant(values, np.int64)

    def scalar(self, value: int) -> str:
        """An int64 constant without axes."""
        return self.constant(value, np.int64)

    def number(self, values: object, like: str) -> str:
        """A floating-point constant of the type of tensor `like`, a scalar or an array.

        What half precision would round is cast to it at run time: a twin in single precision then has it exactly.
        """
        dtype = self.dtype(like)
        exact = np.asarray(values, np.float64)
        if dtype.itemsize == 2 and not np.array_equal(cast(exact, dtype).astype(np.float64), exact):
            return self.cast(self.constant(values, np.float32), like)
        return self.constant(values, dtype)

    # what is known

    def dtype(self, name: str) -> np.dtype[Any]:
        """numpy type of a tensor of the model."""
        c = self.graph.constants.get(name)
        return c.dtype if c is not None else helper.tensor_dtype_to_np_dtype(self.types[name])

    def is_float(self, name: str) -> bool:
        """Whether a tensor of the model can have a gradient."""
        return bool(name) and (name in self.graph.constants or name in self.types) and is_float(self.dtype(name))

    def shape(self, name: str) -> Shape:
        """Sizes at the model's binding. Raises NoGradient where they are not known."""
        shape = self.graph.shape(name)
        if shape is None:
            raise NoGradient(f"the shape of {name!r} is not known")
        return shape

    def rank(self, name: str) -> int:
        """Number of axes. Raises NoGradient where it is not known."""
        return len(self.shape(name))

    def array(self, name: str) -> Array | None:
        """The values of a constant, None where a tensor is computed."""
        return self.graph.constants.get(name)

    # operators whose form depends on the opset

    def reduce(self, kind: str, x: str, axes: Sequence[int], *, keepdims: bool) -> str:
        """A reduction over constant axes; x itself where there are none."""
        if not axes:
            return x
        if self.graph.opset >= (13 if kind == "ReduceSum" else 18):
            return self.op(kind, x, self.ints(*axes), keepdims=int(keepdims))
        return self.op(kind, x, axes=list(axes), keepdims=int(keepdims))

    def total(self, x: str, axes: Sequence[int], *, keepdims: bool) -> str:
        """ReduceSum; x itself where there are no axes."""
        return self.reduce("ReduceSum", x, axes, keepdims=keepdims)

    def unsqueeze(self, x: str, axes: Sequence[int]) -> str:
        """Insert axes of size 1 at these places of the result; x itself where there are none."""
        if not axes:
            return x
        if self.graph.opset >= 13:
            return self.op("Unsqueeze", x, self.ints(*axes))
        return self.op("Unsqueeze", x, axes=list(axes))

    def squeeze(self, x: str, axes: Sequence[int]) -> str:
        """Drop axes of size 1; x itself where there are none."""
        if not axes:
            return x
        if self.graph.opset >= 13:
            return self.op("Squeeze", x, self.ints(*axes))
        return self.op("Squeeze", x, axes=list(axes))

    def slice(self, x: str, starts: str, ends: str, axes: Sequence[int], steps: Sequence[int] | None = None) -> str:
        """Slice with int64 tensors of bounds. Raises NoGradient before opset 10."""
        if self.graph.opset < 10:
            raise NoGradient("Slice takes no computed bounds before opset 10")
        rest = [self.ints(*steps)] if steps is not None else []
        return self.op("Slice", x, starts, ends, self.ints(*axes), *rest)

    def pad(self, x: str, pads: Sequence[int] | str, like: str) -> str:
        """Pad with zeros: pads as in ONNX, as integers or (from opset 11 on) as an int64 tensor; like: for the type."""
        if self.graph.opset >= 11:
            amounts = pads if isinstance(pads, str) else self.ints(*pads)
            return self.op("Pad", x, amounts, self.number(0.0, like))
        if isinstance(pads, str):
            raise NoGradient("Pad takes no computed amounts before opset 11")
        return self.op("Pad", x, pads=list(pads), mode="constant", value=0.0)

    def equal(self, x: str, y: str) -> str:
        """Where two floating-point tensors are equal; before opset 11 Equal takes no such tensors."""
        if self.graph.opset >= 11:
            return self.op("Equal", x, y)
        return self.op("Not", self.op("Or", self.op("Less", x, y), self.op("Greater", x, y)))

    def part(self, x: str, axis: int, start: str, size: str) -> str:
        """`size` places of an axis from `start` on, both [1] int64."""
        if self.graph.opset >= 10:
            return self.slice(x, start, self.op("Add", start, size), [axis])
        return self.op("Gather", x, self.op("Add", self.range(size), start), axis=axis)

    def reversed(self, x: str, axis: int) -> str:
        """x with an axis read backwards."""
        if self.graph.opset >= 10:
            return self.slice(x, self.ints(-1), self.ints(-sys.maxsize), [axis], [-1])
        last = self.op("Sub", self.size(x, axis), self.ints(1))
        return self.op("Gather", x, self.op("Sub", last, self.range(self.size(x, axis))), axis=axis)

    def embed(self, x: str, before: Mapping[int, str], whole: str, like: str, rank: int) -> str:
        """Zeros of shape `whole` with x at the offsets `before`: axis → [1] int64, else 0; like: for the type."""
        if self.graph.opset >= 11:
            first = self.joined([before.get(a, self.ints(0)) for a in range(rank)])
            rest = self.op("Sub", self.op("Sub", whole, first), self.shape_of(x))
            return self.pad(x, self.joined([first, rest]), like)
        for axis, first in before.items():
            shape = self.shape_of(x)
            rest = self.op("Sub", self.op("Sub", self.entry(whole, axis), first), self.entry(shape, axis))
            sides = [self.zeros(self.with_entry(shape, axis, n, rank), like) for n in (first, rest)]
            x = self.op("Concat", sides[0], x, sides[1], axis=axis)
        return x

    def scan(
        self, body: Body, states: Names, sequences: Names, like: str, *, reverse: bool, rank: int = 2
    ) -> tuple[Names, Names]:
        """Scan along the first axis, from its end where `reverse`: (the last states, what each step gives).

        States and steps have `rank` axes and the type of `like`. What steps give lies in the order of the sequences.
        """
        index, kind = len(self.nodes), int(helper.np_dtype_to_tensor_dtype(self.dtype(like)))
        inner = Builder(self.graph, self.types, f"{self._prefix}:Scan{index}")
        inner.constants, inner._known = self.constants, self._known
        given = tuple(f"{inner._prefix}:in{k}" for k in range(len(states) + len(sequences)))
        after, steps = body(inner, given[: len(states)], given[len(states) :])
        graph = helper.make_graph(
            inner.nodes,
            f"{inner._prefix}:body",
            [helper.make_tensor_value_info(i, kind, None) for i in given],
            [helper.make_tensor_value_info(o, kind, (None,) * rank) for o in (*after, *steps)],
        )
        outputs = self.ops(
            "Scan",
            (*states, *sequences),
            len(after) + len(steps),
            body=graph,
            num_scan_inputs=len(sequences),
            scan_input_directions=[int(reverse)] * len(sequences),
            scan_output_directions=[int(reverse)] * len(steps),
        )
        return outputs[: len(after)], outputs[len(after) :]

    # sizes at run time: int64 tensors of one axis

    def entry(self, shape: str, axis: int) -> str:
        """One entry of a shape, [1]."""
        return self.op("Gather", shape, self.ints(axis))

    def size(self, x: str, axis: int) -> str:
        """The size of an axis of a tensor, [1]."""
        c = self.graph.constants.get(x)
        return self.ints(c.shape[axis]) if c is not None else self.entry(self.shape_of(x), axis)

    def with_entry(self, shape: str, axis: int, size: str, rank: int) -> str:
        """A shape of `rank` entries with another size, [1], of one axis."""
        around = [range(axis), range(axis + 1, rank)]
        parts = [self.op("Gather", shape, self.ints(*r)) if r else "" for r in around]
        return self.joined([p for p in (parts[0], size, parts[1]) if p])

    def joined(self, parts: Sequence[str]) -> str:
        """Vectors, one after the other."""
        return self.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]

    def least(self, p: str, q: str) -> str:
        """The smaller of two integers; Min takes none before opset 12."""
        return self.op("Where", self.op("Less", p, q), p, q)

    def range(self, size: str) -> str:
        """0, 1, ... below `size`, [1]; there is no Range before opset 11."""
        ones = self.op("ConstantOfShape", size, value=numpy_helper.from_array(np.ones(1, np.int64)))
        return self.op("Reshape", self.op("NonZero", ones), self.ints(-1))

    def counted(self, indices: str, size: str) -> str:
        """Indices below `size`, [1], of which negative ones count from the end, as ones that count from the front."""
        return self.op("Where", self.op("Less", indices, self.ints(0)), self.op("Add", indices, size), indices)

    def one_hot(self, indices: str, size: str, like: str) -> str:
        """A further last axis of `size`, [1], places: 1 at the index, else 0."""
        return self.op("OneHot", indices, size, self.number([0.0, 1.0], like), axis=-1)

    def zeros(self, shape: str, like: str) -> str:
        """Zeros of the type of `like`."""
        return self.op("ConstantOfShape", shape, value=numpy_helper.from_array(np.zeros(1, self.dtype(like))))

    # short forms

    def cast(self, x: str, like: str) -> str:
        """x in the type of `like`, a tensor of the model."""
        return self.op("Cast", x, to=int(helper.np_dtype_to_tensor_dtype(self.dtype(like))))

    def shape_of(self, x: str) -> str:
        """The sizes of a tensor at run time, int64."""
        return self.op("Shape", x)

    def reshape_as(self, x: str, like: str) -> str:
        """x in the shape of `like`."""
        return self.op("Reshape", x, self.shape_of(like))

    def expand_as(self, x: str, like: str) -> str:
        """x broadcast to the shape of `like`."""
        return self.op("Expand", x, self.shape_of(like))

    def sum_to(self, grad: str, result: str, operand: str) -> str:
        """The gradient of `operand`, given that of its broadcast copy `grad`, which has the shape of `result`."""
        big, small = self.shape(result), self.shape(operand)
        lead = len(big) - len(small)
        axes = [lead + a for a, (b, s) in enumerate(zip(big[lead:], small, strict=True)) if s == 1 and b != 1]
        grad = self.total(grad, axes, keepdims=True)
        return self.total(grad, range(lead), keepdims=False)

    def masked(self, grad: str, mask: str, like: str) -> str:
        """`grad` where the boolean tensor `mask` holds, else 0; like: for the type."""
        return self.op("Where", mask, grad, self.number(0.0, like))

    def gated(self, grad: str, mask: str, like: str) -> str:
        """Mask a finite gradient by a product: the Where of `masked` takes onnxruntime twice as long."""
        return self.op("Mul", grad, self.cast(mask, like))

    def product(self, grad: str, factor: str) -> str:
        """grad · factor."""
        return self.op("Mul", grad, factor)


Gradients = Mapping[int, str]


def given(grads: Sequence[str | None]) -> str:
    """The gradient of the only output that can have one."""
    g = grads[0]
    assert g is not None
    return g


def axis_of(node: Node, rank: int, default: int) -> int:
    """The attribute `axis`, counted from the front."""
    axis = int(node.attrs.get("axis", default))
    return axis + rank if axis < 0 else axis


Numbers = Floats
