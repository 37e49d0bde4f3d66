"""Tensors whose channels lie in blocks, as onnxruntime's last level of optimization writes convolutions.

Such a tensor has its channels filled up to a whole number of blocks, and from ReorderInput to ReorderOutput all is done
on all of them: convolutions with stored weights in blocks, pools, entry by entry (also in a view that has the block as
an axis of its own), joined. Here it is told which tensors these are, and how many channels of each are more than
filling: those that a ReorderInput brings or a ReorderOutput takes, and those of which any kernel that writes or reads
them holds a number other than zero. Beyond them a kernel writes zeros that no kernel reads, so that both sides can lose
them.

It is all or nothing: with one node that cannot be followed, every node of the domain stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import onnx
from onnx import helper

from onnxprune.errors import RunError
from onnxprune.graph import bodies, protobuf
from onnxprune.graph.operators import NARY, UNARY
from onnxprune.normalise.unfused.site import Facts, Layout, Refusal, Unknown
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Session

DOMAIN = "com.microsoft.nchwc"
_ENTRYWISE = frozenset((*UNARY, *NARY, "Clip"))
_FUSED_ENTRYWISE = ("Gelu", "QuickGelu")
_SAME = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Upsample")
# More than any processor's blocks.
_MOST = 64


@cache
def block_size() -> int:
    """How many channels lie next to each other in a block on this processor; 0 where it has no such layout."""
    port = helper.make_tensor_value_info
    shape = [1, _MOST, 1, 2]
    graph = helper.make_graph(
        [helper.make_node("ReorderInput", ["x"], ["y"], domain=DOMAIN)],
        "probe",
        [port("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info("y")],
    )
    imports = [helper.make_opsetid("", 13), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    feeds = {"x": np.arange(2 * _MOST, dtype=np.float32).reshape(shape)}  # at the first place of each channel: even
    try:
        flat = Session(model, threads=1).run(feeds)["y"].ravel()
    except RunError:
        return 0
    return int(np.flatnonzero(flat == 1.0)[0])


def plain(stored: Array, block: int) -> Array:
    """A stored kernel (outputs, inputs of a group, height, width) in the layout of Conv.

    Its outputs lie in blocks, and its inputs as well where there are as many as a block has. Raises Unknown where it
    was stored for blocks of another size.
    """
    outputs, inputs, *spatial = stored.shape
    wide = inputs >= block
    if len(spatial) != 2 or outputs % block or (wide and inputs % block):
        raise Unknown(f"its weights do not lie in blocks of {block} channels, as this processor has them")
    if wide:
        parts = stored.reshape(outputs // block, inputs // block, *spatial, block, block).transpose(0, 5, 1, 4, 2, 3)
    else:
        parts = stored.reshape(outputs // block, inputs, *spatial, block).transpose(0, 4, 1, 2, 3)
    return np.ascontiguousarray(parts).reshape(stored.shape)


def is_depthwise(node: onnx.NodeProto, kernel: Array) -> bool:
    """Whether each output of a blocked convolution reads the one input at its place."""
    groups = protobuf.int_attribute(node, "group", 1)
    return kernel.shape[1] == 1 and groups == kernel.shape[0] and groups > 1


def layout_of(proto: onnx.ModelProto, facts: Facts) -> Layout | Refusal:
    """What is in blocks in a model; a refusal where one node cannot be followed."""
    block = block_size()
    if block < 2:
        return Refusal("this processor does not have its layout of blocks, and runs no such model")
    found = _Found(facts, block)
    try:
        for node in bodies.every_node(proto.graph):
            found.visit(node)
        found.check_ends(proto)
    except Unknown as e:
        return Refusal(str(e))
    return Layout(found.counted(), block, frozenset(found.views))


class _Found:
    """The tensors in blocks so far: which of them have the same channels, and how many of these are needed."""

    def __init__(self, facts: Facts, block: int) -> None:
        self._facts, self._block = facts, block
        self._same: dict[str, str] = {}  # tensor → one that has the same channels
        self._filled: dict[str, int] = {}  # with the filling
        self._needed: dict[str, int] = {}
        self._apart: set[str] = set()  # in views
        self.views: set[str] = set()  # what a Reshape gives that only takes the block apart, or together

    def _root(self, name: str) -> str:
        while self._same[name] != name:
            self._same[name] = name = self._same[self._same[name]]
        return name

    def _add(self, name: str, filled: int, needed: int) -> None:
        self._same[name], self._filled[name], self._needed[name] = name, filled, needed

    def _need(self, name: str, channels: int) -> None:
        root = self._root(name)
        self._needed[root] = max(self._needed[root], channels)

    def _join(self, a: str, b: str) -> None:
        first, second = self._root(a), self._root(b)
        if self._filled[first] != self._filled[second]:
            raise Unknown(f"{a!r} and {b!r} do not have the same channels")
        self._same[second] = first
        self._needed[first] = max(self._needed[first], self._needed[second])

    def counted(self) -> dict[str, int]:
        """The channels of each that are more than filling; at least one."""
        return {name: max(self._needed[self._root(name)], 1) for name in self._same}

    def check_ends(self, proto: onnx.ModelProto) -> None:
        """Raises Unknown where something that is in blocks leaves its graph, or a body reads it from outside."""
        for graph in (proto.graph, *bodies.every_body(proto.graph)):
            outside = {v.name for v in graph.output} | bodies.captured(graph.node)
            for name in outside & self._same.keys():
                raise Unknown(f"{name!r} is in blocks and leaves its graph")

    def visit(self, node: onnx.NodeProto) -> None:
        """Follow one node; those that it reads have been visited. Raises Unknown where it cannot be followed."""
        inputs = [i for i in node.input if i in self._same]
        if node.domain == DOMAIN:
            self._visit_blocked(node)
        elif not inputs:
            return
        elif node.op_type == "Concat" and node.domain in ("", "ai.onnx"):
            self._visit_concat(node, inputs)
        elif node.op_type == "Reshape" and node.domain in ("", "ai.onnx"):
            self._visit_view(node)
        elif _is_entrywise(node):
            self._visit_entrywise(node, inputs)
        else:
            raise Unknown(f"{node.op_type} reads {inputs[0]!r}, which is in blocks")

    def _visit_entrywise(self, node: onnx.NodeProto, inputs: Sequence[str]) -> None:
        self._like(inputs[0], node.output[0])
        if inputs[0] in self._apart:
            self._apart.add(node.output[0])
        for name in inputs:
            self._join(inputs[0], name)
            if (name in self._apart) != (inputs[0] in self._apart):
                raise Unknown(f"{node.op_type} reads {name!r} and {inputs[0]!r}, of which one is a view")
        for name in node.input:
            value = self._facts.constant(name) if name and name not in self._same else np.zeros(1)
            if value is None or value.size != 1:
                raise Unknown(f"{node.op_type} reads {inputs[0]!r}, which is in blocks, and {name!r}, which is not")

    def _visit_view(self, node: onnx.NodeProto) -> None:
        """A Reshape to (0, -1, 0, 0, block), in which entries can be computed, or back."""
        x, y = node.input[0], node.output[0]
        shape = self._facts.constant(node.input[1])
        apart = x in self._apart
        target = [0, -1, 0, 0] if apart else [0, -1, 0, 0, self._block]
        if x not in self._same or shape is None or shape.tolist() != target:
            raise Unknown(f"Reshape reads {x!r}, which is in blocks")
        self._like(x, y)
        self.views.add(y)
        if not apart:
            self._apart.add(y)

    def _like(self, name: str, other: str) -> None:
        """Another tensor that has the same channels."""
        self._add(other, self._filled[self._root(name)], 0)
        self._join(name, other)

    def _visit_blocked(self, node: onnx.NodeProto) -> None:
        x, y = node.input[0], node.output[0]
        if self._apart.intersection(node.input):
            raise Unknown(f"{node.op_type} reads a view of what is in blocks")
        if node.op_type == "ReorderInput":
            shape = self._facts.shape_of(x)
            if x in self._same or len(shape) != 4:
                raise Unknown(f"ReorderInput reads {x!r}, which is no image")
            channels = shape[-1 if protobuf.int_attribute(node, "channels_last", 0) else 1]
            self._add(y, -(-channels // self._block) * self._block, channels)
        elif node.op_type == "ReorderOutput":
            if x not in self._same:
                raise Unknown(f"ReorderOutput reads {x!r}, which is not in blocks")
            self._need(x, protobuf.int_attribute(node, "channels", self._filled[self._root(x)]))
        elif node.op_type in _SAME and x in self._same and len(node.output) == 1:
            self._like(x, y)
        elif node.op_type == "Conv":
            self._visit_conv(node)
        else:
            raise Unknown(f"{node.op_type} of the blocked layout is not known, or reads what is not in blocks")

    def _visit_conv(self, node: onnx.NodeProto) -> None:
        x, y = node.input[0], node.output[0]
        kernel = plain(self._constant(node.input[1]), self._block)
        groups = protobuf.int_attribute(node, "group", 1)
        bias = self._constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(len(kernel))
        if bias.shape != (len(kernel),):
            raise Unknown("the bias of a convolution in blocks has another length than its weight")
        written = np.flatnonzero(bias) if groups > 1 else np.union1d(np.flatnonzero(bias), _used(kernel, 0))
        from_blocks = kernel.shape[1] >= self._block or groups > 1
        if from_blocks != (x in self._same):
            raise Unknown(f"a convolution reads {x!r}, which is in another layout than its weight is for")
        self._add(y, len(kernel), int(written[-1]) + 1 if written.size else 0)
        if is_depthwise(node, kernel):
            self._join(x, y)
            used = _used(kernel, 0)
            self._need(x, int(used[-1]) + 1 if used.size else 0)
        elif groups > 1:
            self._need(y, len(kernel))
            self._need(x, groups * kernel.shape[1])
        elif from_blocks:
            read = _used(kernel, 1)
            self._need(x, int(read[-1]) + 1 if read.size else 0)
        if from_blocks and self._filled[self._root(x)] != groups * kernel.shape[1]:
            raise Unknown(f"a convolution reads {x!r}, which has more or fewer channels than its weight")
        if len(node.input) > 3 and node.input[3]:
            if node.input[3] not in self._same:
                raise Unknown(f"a convolution in blocks adds {node.input[3]!r}, which is not")
            self._join(node.input[3], y)

    def _visit_concat(self, node: onnx.NodeProto, inputs: Sequence[str]) -> None:
        if (
            len(inputs) != len(node.input)
            or self._apart.intersection(inputs)
            or protobuf.int_attribute(node, "axis", 0) not in (1, -3)
        ):
            raise Unknown(f"Concat joins {inputs[0]!r}, which is in blocks, and what is not, or along another axis")
        for name in inputs:
            self._need(name, self._filled[self._root(name)])
        whole = sum(self._filled[self._root(i)] for i in inputs)
        self._add(node.output[0], whole, whole)

    def _constant(self, name: str) -> Array:
        value = self._facts.constant(name)
        if value is None:
            raise Unknown(f"{name!r} is no weight of its own: it is computed, or callers may replace it")
        return value


def _used(kernel: Array, axis: int) -> Array:
    """The positions of an axis at which a kernel has a number other than zero."""
    return np.flatnonzero(kernel.any(axis=tuple(a for a in range(kernel.ndim) if a != axis)))


def _is_entrywise(node: onnx.NodeProto) -> bool:
    if node.domain == "com.microsoft":
        return node.op_type in _FUSED_ENTRYWISE
    return node.domain in ("", "ai.onnx") and node.op_type in _ENTRYWISE and len(node.output) == 1
