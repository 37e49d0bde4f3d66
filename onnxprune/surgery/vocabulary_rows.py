"""Where a model keeps its vocabulary: the embeddings that token ids pick rows of, and the heads that give logits.

A row may go where every reader of the weight is one of these: an embedding reads rows by integers that are an input of
the model, and a head's logits are an output that nothing else reads, behind a bias, casts and softcapping at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from onnxprune.graph.protobuf import STANDARD, int_attribute
from onnxprune.numerics.arrays import Array
from onnxprune.surgery.stored_logits import StoredLogits
from onnxprune.surgery.stored_rows import Edge, Rows

# Inputs of integers that are no tokens.
_NO_TOKENS = ("mask", "type", "segment", "position")
# What hands token ids on as they are; of Clip, its bounds are further ids.
_HANDS_ON = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Clip")
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
    found = _found(proto, heads=heads)
    return found if isinstance(found, Vocabulary) else None


def why_none(proto: onnx.ModelProto, *, heads: bool = True) -> str:
    """Why no embedding of a model can lose rows; "" where it can, or where the model has none."""
    found = _found(proto, heads=heads)
    return "" if isinstance(found, Vocabulary) else "; ".join(found)


def _found(proto: onnx.ModelProto, *, heads: bool) -> Vocabulary | tuple[str, ...]:
    """The vocabulary, or why no embedding can lose rows: nothing, where there is none."""
    graph = _Finder(proto)
    every = [graph.embedding(n) for n in range(len(graph.nodes))]
    found = [e for e in every if isinstance(e, Embedding)]
    count = max((e.count for e in found), default=0)
    embeddings = [e for e in found if e.count == count]
    if count < 2:
        return tuple(dict.fromkeys(e for e in every if isinstance(e, str) and e))
    stays: list[str] = []
    given = [graph.head(v, count) for v in proto.graph.output] if heads else []
    parts: list[Part] = [*embeddings, *(h for h in given if isinstance(h, Head))]
    stays += [h for h in given if isinstance(h, str) and h]
    while True:
        edges = {e for p in parts for e in p.edges}
        axes: dict[str, set[int]] = {}
        for p in parts:
            for name, axis in (*p.rows, *p.shapes):
                axes.setdefault(name, set()).add(axis)
        bad = [
            p
            for p in parts
            if not graph.only_read_by(p.edges, edges, p.shapes)
            or any(len(axes[name]) > 1 for name, _ in (*p.rows, *p.shapes))
        ]
        if not bad:
            break
        stays += [f"the weight {p.tensor!r} is read elsewhere too" for p in bad]
        parts = [p for p in parts if p not in bad]
    left = tuple(p for p in parts if isinstance(p, Embedding))
    if not left:
        return tuple(dict.fromkeys(stays))
    own = tuple(p for p in parts if isinstance(p, Head))
    return Vocabulary(count, left, own, tuple(dict.fromkeys(stays)))


class _Finder(StoredLogits):
    """What of a graph is an embedding, and what a head."""

    # embeddings

    def embedding(self, k: int) -> Embedding | str:
        """The node as an embedding of tokens; of one whose rows cannot go alone why not, "" of any other node."""
        n = self.nodes[k]
        places = _EMBEDDINGS.get(n.op_type)
        if places is None or (n.op_type == "Gather") != (n.domain in STANDARD) or len(n.input) <= max(places):
            return ""
        table, place = places
        read = self._ids(n.input[place])
        if read is None:
            return ""
        why = f"{n.op_type} {n.name or n.output[0]!r} picks tokens"
        if int_attribute(n, "gather_axis" if n.op_type == "GatherBlockQuantized" else "axis", 0) != 0:
            return f"{why} along another axis than the first"
        source = self.source(n.input[table], 0, (k, table))
        if source is None:
            blocks = "of a weight whose blocks lie across rows, so that a scale belongs to several of them"
            return f"{why} {blocks if self.across else 'of what is no stored weight, or computed from one on the way'}"
        if len(source.dims) < 2:
            return ""
        rows, shapes, edges = set(source.rows), set(source.shapes), set(source.edges)
        if n.op_type == "GatherBlockQuantized":
            scales = self.source(n.input[2], 0, (k, 2)) if len(n.input) > 2 else None
            axis = int_attribute(n, "quantize_axis", 1)
            if axis == 0 or (axis < 0 and (scales is None or axis == -len(scales.dims))):
                return f"{why} of a weight whose blocks lie across rows, so that a scale belongs to several of them"
            for i in range(2, len(n.input)):
                more = self.source(n.input[i], 0, (k, i)) if n.input[i] else None
                if n.input[i] and (more is None or more.count != source.count):
                    return f"{why} of a weight whose scales or zero points are not stored by rows"
                if more is not None:
                    rows |= more.rows
                    shapes |= more.shapes
                    edges |= more.edges
        name, bounds = read
        inside = tuple(b for b in bounds if 0 <= b < source.count)
        return Embedding(
            k,
            source.name,
            frozenset(rows),
            frozenset(shapes),
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
        why = f"the output {output.name!r} has an entry for each token, and stays whole"
        sized = bool(own.shape.dim) and own.shape.dim[-1].dim_value == count
        found = self.logits(output.name, count, why, sized=sized)
        if isinstance(found, str):
            return found
        if not own.HasField("shape") or not own.shape.dim:
            return f"{why}: it is declared without a shape"
        return Head(
            found.node,
            found.tensor,
            found.rows,
            found.shapes,
            found.edges,
            count,
            output=output.name,
            rank=len(own.shape.dim),
            element=own.elem_type,
            width=found.width,
            between=found.between,
        )


def inputs_of(vocabulary: Vocabulary) -> Iterator[str]:
    """The inputs of token ids, each once."""
    yield from dict.fromkeys(i for e in vocabulary.embeddings for i in e.inputs)


def kept_ids(vocabulary: Vocabulary, ids: Sequence[int]) -> Array:
    """The tokens that stay, ascending: those that are listed, and those that ids are clipped to."""
    bounds = [b for e in vocabulary.embeddings for b in e.bounds]
    return np.unique(np.array([*ids, *bounds], np.int64))
