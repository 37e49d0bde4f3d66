"""Where a model keeps its vocabulary: the embeddings that token ids pick rows of, and the heads that give logits.

A row may go where every reader of the weight is one of these: an embedding reads rows by integers that are an input of
the model, and a head's logits are an output that nothing else reads, behind a bias, casts and softcapping at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import TensorProto

from onnxprune.graph.protobuf import int_attribute
from onnxprune.numerics.arrays import Array
from onnxprune.surgery.stored_rows import STANDARD, Edge, Rows, Source, StoredRows

# Inputs of integers that are no tokens.
_NO_TOKENS = ("mask", "type", "segment", "position")
# What hands token ids on as they are; of Clip, its bounds are further ids.
_HANDS_ON = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Clip")
_WEIGHTED = {"MatMul": 1, "FusedMatMul": 1, "Gemm": 1, "MatMulNBits": 1}
_ALONE = ("Cast", "Identity", "Tanh")
_WITH_CONSTANT = ("Add", "Sub", "Mul", "Div")
_EMBEDDINGS = {"Gather": (0, 1), "GatherBlockQuantized": (0, 1), "EmbedLayerNormalization": (2, 0)}


@dataclass(frozen=True)
class Part:
    """An embedding or a head.

    node: its place in the graph. tensor: the weight, for a report. rows: what is stored by tokens. shapes: stored
    shapes that say how many tokens there are. edges: (node, input) of all that reads these. count: tokens.
    """

    node: int
    tensor: str
    rows: frozenset[Rows]
    shapes: frozenset[Rows]
    edges: frozenset[Edge]
    count: int


@dataclass(frozen=True)
class Embedding(Part):
    """ids: the tensor of ids that it reads, at input `place`; inputs: those of the model; bounds: ids of a Clip."""

    ids: str = ""
    place: int = 1
    inputs: tuple[str, ...] = ()
    bounds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Head(Part):
    """output: its logits, of `rank` axes and an element type, tokens on the last one. width: products for each.

    chain: the nodes from the product to the output; between: the tensors that they compute, the output among them.
    """

    output: str = ""
    rank: int = 0
    element: int = 0
    width: int = 0
    between: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vocabulary:
    """What is stored for each of `count` tokens. stays: heads and embeddings that stay whole, and why."""

    count: int
    embeddings: tuple[Embedding, ...]
    heads: tuple[Head, ...]
    stays: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """Embeddings and heads."""
        return (*self.embeddings, *self.heads)

    @property
    def rows(self) -> set[Rows]:
        """What is stored by tokens, each tensor once."""
        return {r for p in self.parts for r in p.rows}

    @property
    def named(self) -> str:
        """For messages: the weights."""
        embeddings = dict.fromkeys(repr(p.tensor) for p in self.embeddings)
        heads = dict.fromkeys(repr(p.output) for p in self.heads)
        logits = f" and the logits {', '.join(heads)}" if heads else ""
        return f"the embedding {', '.join(embeddings)}{logits}"


def vocabulary_of(proto: onnx.ModelProto, *, heads: bool = True) -> Vocabulary | None:
    """The vocabulary of a model, None where no embedding can lose rows. heads: False where the logits go elsewhere."""
    graph = _Finder(proto)
    found = [e for n in range(len(graph.nodes)) if (e := graph.embedding(n)) is not None]
    count = max((e.count for e in found), default=0)
    embeddings = [e for e in found if e.count == count]
    if count < 2:
        return None
    stays: list[str] = []
    given = [graph.head(v, count) for v in proto.graph.output] if heads else []
    parts: list[Part] = [*embeddings, *(h for h in given if isinstance(h, Head))]
    stays += [h for h in given if isinstance(h, str) and h]
    while True:
        edges = {e for p in parts for e in p.edges}
        axes: dict[str, set[int]] = {}
        for p in parts:
            for name, axis in p.rows:
                axes.setdefault(name, set()).add(axis)
        bad = [
            p for p in parts if not graph.only_read_by(p.edges, edges) or any(len(axes[name]) > 1 for name, _ in p.rows)
        ]
        if not bad:
            break
        stays += [f"the weight {p.tensor!r} is read elsewhere too" for p in bad]
        parts = [p for p in parts if p not in bad]
    left = tuple(p for p in parts if isinstance(p, Embedding))
    if not left:
        return None
    own = tuple(p for p in parts if isinstance(p, Head))
    return Vocabulary(count, left, own, tuple(dict.fromkeys(stays)))


class _Finder(StoredRows):
    """What of a graph is an embedding, and what a head."""

    # embeddings

    def embedding(self, k: int) -> Embedding | None:
        """The node as an embedding of tokens, if it is one."""
        n = self.nodes[k]
        places = _EMBEDDINGS.get(n.op_type)
        if places is None or (n.op_type == "Gather") != (n.domain in STANDARD) or len(n.input) <= max(places):
            return None
        table, place = places
        if int_attribute(n, "gather_axis" if n.op_type == "GatherBlockQuantized" else "axis", 0) != 0:
            return None
        source = self.source(n.input[table], 0, (k, table))
        read = self._ids(n.input[place])
        if source is None or read is None or len(source.dims) < 2:
            return None
        rows, edges = set(source.rows), set(source.edges)
        if n.op_type == "GatherBlockQuantized":
            if int_attribute(n, "quantize_axis", 1) % len(source.dims) == 0:
                return None
            for i in range(2, len(n.input)):
                more = self.source(n.input[i], 0, (k, i)) if n.input[i] else None
                if n.input[i] and (more is None or more.count != source.count):
                    return None
                if more is not None:
                    rows |= more.rows
                    edges |= more.edges
        name, bounds = read
        inside = tuple(b for b in bounds if 0 <= b < source.count)
        return Embedding(
            k,
            source.name,
            frozenset(rows),
            source.shapes,
            frozenset(edges),
            source.count,
            ids=n.input[place],
            place=place,
            inputs=(name,),
            bounds=inside,
        )

    def _ids(self, name: str) -> tuple[str, tuple[int, ...]] | None:
        """(the input of token ids that a tensor hands on, the bounds that it is clipped to), if it is one."""
        bounds: list[int] = []
        while name not in self.inputs:
            k = self.by_output.get(name)
            if k is None or self.nodes[k].domain not in STANDARD or self.nodes[k].op_type not in _HANDS_ON:
                return None
            n = self.nodes[k]
            if n.op_type == "Clip":
                limits = [self.value(i) for i in n.input[1:] if i]
                if any(v is None for v in limits):
                    return None
                bounds += [int(v.ravel()[0]) for v in limits if v is not None]
                bounds += [int(a.f) for a in n.attribute if a.name in ("min", "max")]
            name = n.input[0]
        kind = self.inputs[name].type.tensor_type.elem_type
        if kind not in (TensorProto.INT64, TensorProto.INT32) or any(w in name.lower() for w in _NO_TOKENS):
            return None
        return name, tuple(bounds)

    # heads

    def head(self, output: onnx.ValueInfoProto, count: int) -> Head | str:
        """The head whose logits are an output; of another one that has as many entries why it stays, else ""."""
        own = output.type.tensor_type
        rows: set[Rows] = set()
        shapes: set[Rows] = set()
        edges: set[Edge] = set()
        between = [output.name]
        why = f"the output {output.name!r} has an entry for each token, and stays whole"
        sized = bool(own.shape.dim) and own.shape.dim[-1].dim_value == count
        while True:
            name = between[-1]
            k = self.by_output.get(name)
            first = name == output.name
            readers = len(self.readers.get(name, ()))
            alone = readers == 0 if first else readers == 1 and name not in self.outputs
            if k is None:
                return ""
            if not alone:
                return f"{why}: {name!r} is read elsewhere too" if sized else ""
            n = self.nodes[k]
            if n.op_type in _WEIGHTED:
                break
            step = self._step(k, count, sized=sized) if n.domain in STANDARD else None
            if step is None:
                return f"{why}: {n.op_type} is behind its product" if sized else ""
            follows, more, shaped = step
            between.append(follows)
            rows |= {r for r, _ in more}
            edges |= {e for _, e in more}
            shapes |= {r for r, _ in shaped}
            edges |= {e for _, e in shaped}
        product = self._product(k, count)
        if product is None:
            return f"{why}: its weight is none that is stored by tokens" if sized else ""
        if not own.HasField("shape") or not own.shape.dim:
            return f"{why}: it is declared without a shape"
        source, width = product
        return Head(
            k,
            source.name,
            source.rows | rows,
            source.shapes | shapes,
            source.edges | edges,
            count,
            output=output.name,
            rank=len(own.shape.dim),
            element=own.elem_type,
            width=width,
            between=tuple(between),
        )

    def _step(
        self, k: int, count: int, *, sized: bool
    ) -> tuple[str, Sequence[tuple[Rows, Edge]], Sequence[tuple[Rows, Edge]]] | None:
        """One operator back from the logits: what it reads, its constants by tokens, its shapes that count them."""
        n = self.nodes[k]
        if n.op_type in _ALONE:
            return n.input[0], (), ()
        if n.op_type == "Reshape" and n.input[1] in self.stored:
            shape = self.value(n.input[1])
            if shape is None or not shape.size:
                return None
            last = int(shape[-1])
            if last == count:
                return n.input[0], (), [((n.input[1], shape.size - 1), (k, 1))]
            return (n.input[0], (), ()) if last == -1 and sized else None
        if n.op_type in _WITH_CONSTANT:
            # Before an opset of 7 axes were no longer matched from the end where `axis` says so.
            if any(a.name == "axis" for a in n.attribute):
                return None
            for place, name in enumerate(n.input):
                other = n.input[1 - place]
                scalar = self.value(name)
                if scalar is not None and scalar.size == 1:
                    return other, (), ()
                if name in self.stored and other not in self.stored:
                    dims = tuple(self.stored[name].dims)
                    if dims[-1] == 1:
                        return other, (), ()
                    return (other, [((name, len(dims) - 1), (k, place))], ()) if dims[-1] == count else None
        return None

    def _product(self, k: int, count: int) -> tuple[Source, int] | None:
        """The weight of a product whose outputs are tokens, and how many numbers each of them sums."""
        n = self.nodes[k]
        if n.op_type == "MatMulNBits":
            return self._packed(k, count)
        turned = int_attribute(n, "transB", 0)
        if len(n.input) < 2 or (n.op_type in ("MatMul", "Gemm") and n.domain not in STANDARD):
            return None
        axis = 0 if turned and n.op_type != "MatMul" else 1
        source = self.source(n.input[1], axis, (k, 1))
        if source is None or len(source.dims) != 2 or source.count != count:
            return None
        rows, edges = set(source.rows), set(source.edges)
        if n.op_type == "Gemm" and len(n.input) > 2 and n.input[2]:
            bias = n.input[2]
            dims = tuple(self.stored[bias].dims) if bias in self.stored else None
            if dims is None or (dims and dims[-1] not in (1, count)):
                return None
            if dims and dims[-1] == count:
                rows.add((bias, len(dims) - 1))
                edges.add((k, 2))
        width = prod(source.dims) // count
        return Source(source.name, source.dims, source.axis, frozenset(rows), source.shapes, frozenset(edges)), width

    def _packed(self, k: int, count: int) -> tuple[Source, int] | None:
        """MatMulNBits: codes, scales, zero points and bias, all of them with tokens first, some of them flat."""
        n = self.nodes[k]
        source = self.source(n.input[1], 0, (k, 1))
        if source is None or source.count != count or int_attribute(n, "N", 0) != count:
            return None
        rows, shapes, edges = set(source.rows), set(source.shapes), set(source.edges)
        for i in (2, 3, 5):
            if len(n.input) > i and n.input[i]:
                more = self.source(n.input[i], 0, (k, i))
                if more is None or prod(more.dims) % count or (len(more.dims) > 1 and more.count != count):
                    return None
                rows |= more.rows
                shapes |= more.shapes
                edges |= more.edges
        whole = Source(source.name, source.dims, 0, frozenset(rows), frozenset(shapes), frozenset(edges))
        return whole, int_attribute(n, "K", 0)


def inputs_of(vocabulary: Vocabulary) -> Iterator[str]:
    """The inputs of token ids, each once."""
    yield from dict.fromkeys(i for e in vocabulary.embeddings for i in e.inputs)


def kept_ids(vocabulary: Vocabulary, ids: Sequence[int]) -> Array:
    """The tokens that stay, ascending: those that are listed, and those that ids are clipped to."""
    bounds = [b for e in vocabulary.embeddings for b in e.bounds]
    return np.unique(np.array([*ids, *bounds], np.int64))
