"""A model without the rows of tokens that no text needs: the same ids go in, and logits keep their places.

    new = table[id]                         in front of an embedding, whose rows are those of the tokens that stay
    logits = padded[..., places]            behind a head, padded by one entry that stands for all tokens that went

An id that went reads the row of a token that stands in for it, so that a run with one is defined. Its logit is the
lowest finite number of its type, as attention masks are written: softmax makes zero of it, no comparison of two such
models meets infinity minus infinity, and what reads masks takes it for one (`measures/masked.py`).

The pruning itself works on the model with narrow logits: entries that say nothing would weigh in every error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import UsageError
from onnxprune.graph import bodies, external
from onnxprune.graph.names import tensors_of, unused
from onnxprune.graph.protobuf import copied, held_by, opset_of
from onnxprune.numerics.arrays import Array, Mask, lowest
from onnxprune.surgery.stored_rows import FREE_SINCE, StoredRows
from onnxprune.surgery.vocabulary_rows import Head, Vocabulary, kept_ids

_PAD_BY_INPUTS = 11
_SHOWN = 5


@dataclass(frozen=True, eq=False, kw_only=True)
class ListedTokens:
    """The model with all tokens, and what stays of them.

    whole: the model before. narrow: without the rows, and with logits of the tokens that stay alone. ids: these,
    ascending. fallback: the token whose row all others read.
    """

    whole: onnx.ModelProto
    narrow: onnx.ModelProto
    vocabulary: Vocabulary
    ids: Array
    fallback: int

    @cached_property
    def saved(self) -> int:
        """Bytes of a file that this saves: those of rows, less those of tables and of the nodes that read them."""
        return external.model_bytes(self.whole) - external.model_bytes(self.put_back(self.narrow))

    @property
    def known(self) -> Mask:
        """Whether each token stays."""
        mask = np.zeros(self.vocabulary.count, bool)
        mask[self.ids] = True
        return mask

    @property
    def note(self) -> str:
        """What went, for a report."""
        v = self.vocabulary
        logits = f", and their logits are the lowest number there is ({_lowest(v.heads[0]):.3g})" if v.heads else ""
        stays = f"; {'; '.join(v.stays)}" if v.stays else ""
        return (
            f"--keep-tokens: {self.ids.size} of {v.count} tokens stay in {v.named}, which saves {self.saved} bytes; "
            f"a ratio counts what is left then; ids that went are read as token {self.fallback}{logits}"
            f"{stays}"
        )

    def picked(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of the model before, or of a result, as the narrow model has them."""
        found = dict(values)
        for h in self.vocabulary.heads:
            if h.output in found:
                found[h.output] = np.take(found[h.output], self.ids, -1)
        return found

    def unlisted_in(self, values: Array) -> Array:
        """The entries of an input of ids that went; those that the model has no row for are none of them."""
        count = self.vocabulary.count
        ids = np.asarray(values).astype(np.int64).ravel()
        ids = np.where(ids < 0, ids + count, ids)
        ids = ids[(ids >= 0) & (ids < count)]
        gone: Array = ids[~self.known[ids]]
        return gone

    def among_kept(self, values: Array) -> Array:
        """Any ids as ids that stay, for inputs that nobody gave."""
        ids: Array = self.ids[np.asarray(values).astype(np.int64) % self.ids.size].astype(values.dtype)
        return ids

    def put_back(self, narrow: onnx.ModelProto) -> onnx.ModelProto:
        """A model with narrow logits, with all logits in their places."""
        if not self.vocabulary.heads:
            return narrow
        result = copied(narrow)
        taken = _taken(result)
        nodes = list(result.graph.node)
        for h in self.vocabulary.heads:
            inner = unused(f"{h.output}__kept", taken)
            bodies.rename(nodes, {h.output: inner})
            places = np.full(self.vocabulary.count, self.ids.size, np.int32)
            places[self.ids] = np.arange(self.ids.size)
            nodes += _placed(result, h, inner, places, taken)
            for v in result.graph.output:
                if v.name == h.output:
                    v.type.tensor_type.shape.dim[-1].dim_value = self.vocabulary.count
        del result.graph.node[:]
        result.graph.node.extend(nodes)
        return result


def without_others(proto: onnx.ModelProto, vocabulary: Vocabulary, listed: Sequence[int]) -> ListedTokens | None:
    """The model with rows of these tokens alone; None where that would save no byte.

    listed: the first one's row is what ids that went read. Raises UsageError for an id that the model does not have.
    """
    beyond = sorted({i for i in listed if i >= vocabulary.count})
    if beyond:
        shown = ", ".join(map(str, beyond[:_SHOWN])) + (", …" if len(beyond) > _SHOWN else "")
        raise UsageError(
            f"keep_tokens lists ids that {vocabulary.named} has no row for ({shown}; it has {vocabulary.count}): "
            "give the tokens of this model's own tokenizer"
        )
    ids = kept_ids(vocabulary, listed)
    narrow = _narrowed(proto, vocabulary, ids, int(ids.searchsorted(listed[0])))
    tokens = ListedTokens(whole=proto, narrow=narrow, vocabulary=vocabulary, ids=ids, fallback=int(listed[0]))
    return tokens if tokens.saved > 0 else None


def _narrowed(proto: onnx.ModelProto, vocabulary: Vocabulary, ids: Array, fallback: int) -> onnx.ModelProto:
    result = copied(proto)
    axes = dict(vocabulary.rows)
    _with_own_shapes(result, vocabulary, ids.size)
    weights = []
    for t in result.graph.initializer:
        weights.append(_picked(t, axes[t.name], ids, vocabulary.count) if t.name in axes else t)
    del result.graph.initializer[:]
    result.graph.initializer.extend(weights)
    for n in result.graph.node:
        held = held_by(n)
        if held is not None and n.output[0] in axes:
            held.CopyFrom(_picked(held, axes[n.output[0]], ids, vocabulary.count))
    sizes = {t.name: t.dims for t in weights}
    for v in result.graph.input:
        if v.name in axes:
            for d, size in zip(v.type.tensor_type.shape.dim, sizes[v.name], strict=True):
                d.dim_value = size
    nodes = list(result.graph.node)
    for h in vocabulary.heads:
        for a in nodes[h.node].attribute:
            if nodes[h.node].op_type == "MatMulNBits" and a.name == "N":
                a.i = ids.size
        for v in result.graph.output:
            if v.name == h.output:
                v.type.tensor_type.shape.dim[-1].dim_value = ids.size
    # Sizes inside are inferred anew.
    changed = {o for p in vocabulary.parts for k, _ in p.edges for o in nodes[k].output}
    changed |= {name for h in vocabulary.heads for name in h.between}
    infos = [v for v in result.graph.value_info if v.name not in changed]
    placed = _with_table(result, nodes, vocabulary, ids, fallback)
    del result.graph.node[:], result.graph.value_info[:]
    result.graph.node.extend(placed)
    result.graph.value_info.extend(infos)
    return result


def _with_own_shapes(proto: onnx.ModelProto, vocabulary: Vocabulary, size: int) -> None:
    """Have nodes that read a shape with the number of tokens read one of their own, with the new number."""
    graph = StoredRows(proto)
    places = dict(s for p in vocabulary.parts for s in p.shapes)
    taken, made = _taken(proto), dict[str, str]()
    for k, i in sorted({e for p in vocabulary.parts for e in p.edges}):
        name = graph.nodes[k].input[i]
        if name not in places:
            continue
        if name not in made:
            shape = external.array_of(graph.stored[name]).copy()
            shape[places[name]] = size
            made[name] = unused(f"{name}__kept", taken)
            _store(proto, numpy_helper.from_array(shape, made[name]))
        graph.nodes[k].input[i] = made[name]
    read = {name for n in graph.nodes for name in (*n.input, *bodies.captured_names(n))} | graph.outputs
    _forget(proto, made.keys() - read)


def _forget(proto: onnx.ModelProto, names: Collection[str]) -> None:
    """Take weights out that nothing reads any more."""
    for field in (proto.graph.initializer, proto.graph.input):
        left = [v for v in field if v.name not in names]
        del field[:]
        field.extend(left)


def _with_table(
    proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], vocabulary: Vocabulary, ids: Array, fallback: int
) -> list[onnx.NodeProto]:
    """The nodes with a table of new rows between ids and embeddings; fallback: the row of ids that went."""
    taken = _taken(proto)
    rows = np.full(vocabulary.count, fallback, np.int32)
    rows[ids] = np.arange(ids.size)
    table = numpy_helper.from_array(rows, unused("rows_of_tokens", taken))
    _store(proto, table)
    places = {e.node: e.place for e in vocabulary.embeddings}
    read: dict[str, str] = {}
    placed: list[onnx.NodeProto] = []
    for k, n in enumerate(nodes):
        if k in places:
            given = n.input[places[k]]
            if given not in read:
                read[given] = unused(f"{given}__rows", taken)
                name = unused(f"{given}__looked_up", taken)
                placed.append(helper.make_node("Gather", [table.name, given], [read[given]], name=name, axis=0))
            n.input[places[k]] = read[given]
        placed.append(n)
    read_now = {name for n in placed for name in (*n.input, *bodies.captured_names(n))}
    read_now.update(v.name for v in proto.graph.output)
    return [n for n in placed if held_by(n) is None or n.output[0] in read_now]


def _picked(tensor: TensorProto, axis: int, ids: Array, count: int) -> TensorProto:
    """The entries of tokens that stay; a flat tensor with several for each token loses all of one together."""
    values = external.array_of(tensor)
    if values.shape[axis] == count:
        return numpy_helper.from_array(np.ascontiguousarray(np.take(values, ids, axis)), tensor.name)
    blocks = values.reshape(count, -1)[ids]
    return numpy_helper.from_array(np.ascontiguousarray(blocks).reshape(-1), tensor.name)


def _placed(proto: onnx.ModelProto, head: Head, inner: str, places: Array, taken: set[str]) -> list[onnx.NodeProto]:
    """Nodes that put narrow logits in their places."""
    dtype = helper.tensor_dtype_to_np_dtype(head.element)
    padded = unused(f"{head.output}__padded", taken)
    amounts = np.zeros(2 * head.rank, np.int64)
    amounts[-1] = 1
    if opset_of(proto) < _PAD_BY_INPUTS:
        pad = helper.make_node("Pad", [inner], [padded], pads=amounts.tolist(), value=_lowest(head))
    else:
        stored = (
            numpy_helper.from_array(amounts, unused(f"{padded}__by", taken)),
            numpy_helper.from_array(np.array(_lowest(head), dtype), unused(f"{padded}__with", taken)),
        )
        _store(proto, *stored)
        pad = helper.make_node("Pad", [inner, stored[0].name, stored[1].name], [padded])
    pad.name = padded
    indices = numpy_helper.from_array(places, unused(f"{head.output}__places", taken))
    _store(proto, indices)
    name = unused(f"{head.output}__placed", taken)
    return [pad, helper.make_node("Gather", [padded, indices.name], [head.output], name=name, axis=head.rank - 1)]


def _store(proto: onnx.ModelProto, *tensors: TensorProto) -> None:
    """Add weights, which models of an old format list among their inputs."""
    proto.graph.initializer.extend(tensors)
    if proto.ir_version < FREE_SINCE:
        listed = (helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors)
        proto.graph.input.extend(listed)


def _lowest(head: Head) -> float:
    return lowest(helper.tensor_dtype_to_np_dtype(head.element))


def _taken(proto: onnx.ModelProto) -> set[str]:
    """The names of tensors and of nodes."""
    return tensors_of(proto) | {n.name for n in bodies.every_node(proto.graph)}
