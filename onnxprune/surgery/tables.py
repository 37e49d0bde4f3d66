"""Generated tables stay generated: what was folded for the analysis is computed in the result as the original does.

Where nothing was cut in a table its nodes and their constants come back. Where it lost positions the whole of it is
made, and a Gather along each cut axis takes those that stay. What was fitted, or is smaller as it is, is stored; a
weight that the original stores in half precision behind a Cast is stored so again, cut and fitted or not, and codes
with scales are cut as they are stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from hashlib import sha256

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.channels import ChannelGraph
from onnxprune.channels.labels import tracked_axes
from onnxprune.graph import bodies, external, tensor_files
from onnxprune.graph.names import tensors_of
from onnxprune.normalise import Normalised
from onnxprune.normalise.constants import returned
from onnxprune.normalise.tables import Table
from onnxprune.numerics.arrays import Array, Ints, Mask, cast

KeptIndices = dict[int, Ints]


def put_back(proto: onnx.ModelProto, normalised: Normalised, channels: ChannelGraph, keep: Mask) -> None:
    """Replace, in place, every constant of a cut model that takes fewer bytes as the original makes it.

    Its weights still lie in the main graph, under the names of the normalised model.
    """
    if not normalised.tables:
        return
    given = returned(proto)
    now = {t.name: t for t in proto.graph.initializer}
    whole = {t.name: t for t in normalised.proto.graph.initializer if t.name in normalised.tables}
    chosen: list[tuple[Table, KeptIndices]] = []
    restored: list[tuple[Table, Mapping[str, Array]]] = []
    for name, table in normalised.tables.items():
        if name not in now or name in given or name not in whole:
            continue
        kept = _kept(channels, name, keep)
        narrow = _narrowed(table, external.array_of(now[name]))
        if narrow is not None:
            restored.append((table, {table.leaves[0].name: narrow}))
            continue
        if kept is None:
            continue
        if not _only_cut(external.array_of(now[name]), external.array_of(whole[name]), kept):
            continue
        if kept and not (table.generated or table.carried.lost & kept.keys()):  # else those that went would stay
            restored.append((table, _cut_leaves(table, kept)))
            continue
        indices = sum(8 * positions.size for positions in kept.values())
        if table.bytes + indices < external.bytes_of(now[name]):
            chosen.append((table, kept))
    if chosen or restored:
        whole_tables = {table.name for table, kept in chosen if not kept}
        _Made(proto, whole_tables).write(chosen, restored)


def _cut_leaves(table: Table, kept: KeptIndices) -> dict[str, Array]:
    """The constants of a packed table, those that lose positions as they are then, and sizes as they become."""
    cut: dict[str, Array] = {}
    leaf_axes = {axis: table.carried.axes[axis] or {} for axis in kept}
    for leaf in table.leaves:
        own = {axis_of[leaf.name]: kept[axis] for axis, axis_of in leaf_axes.items() if leaf.name in axis_of}
        if own:
            values = external.array_of(leaf)
            for axis, positions in own.items():
                values = np.take(values, positions, axis=axis)
            cut[leaf.name] = values
        elif leaf.name in table.carried.sizes:
            shape, axes = table.carried.sizes[leaf.name]
            now = {axes[axis]: positions.size for axis, positions in kept.items() if axes[axis] >= 0}
            if now:
                cut[leaf.name] = np.array([now.get(a, n) for a, n in enumerate(shape)], np.int64)
    return cut


def _narrowed(table: Table, now: Array) -> Array | None:
    """What is left of a weight that a Cast reads in half precision, in that type again; None for anything else."""
    if (
        len(table.nodes) != 1
        or table.nodes[0].op_type != "Cast"
        or table.leaves[0].data_type != onnx.TensorProto.FLOAT16
    ):
        return None
    narrow = cast(now, np.dtype(np.float16))
    return narrow if np.isfinite(narrow).all() else None


def _kept(channels: ChannelGraph, name: str, keep: Mask) -> KeptIndices | None:
    """Axis → the positions that stay, of the axes that lose any; None where rows lose different ones."""
    kept: KeptIndices = {}
    for f in channels.factors.get(name, ()):
        mask = keep[f]
        if mask.all():
            continue
        if len(tracked_axes(f)) > 1:
            return None
        kept[tracked_axes(f)[0]] = np.flatnonzero(mask.ravel())
    return kept


def _only_cut(now: Array, whole: Array, kept: KeptIndices) -> bool:
    """Whether a constant holds just what is left of the table."""
    for axis, positions in kept.items():
        whole = np.take(whole, positions, axis=axis)
    return now.dtype == whole.dtype and now.shape == whole.shape and now.tobytes() == whole.tobytes()


class _Made:
    """What is put in front of a graph: nodes and constants, each once, under names that are free."""

    def __init__(self, proto: onnx.ModelProto, whole: Collection[str]) -> None:
        """whole: the tables that are made with all their positions, under their own names."""
        self._graph = proto.graph
        self._stored = {t.name: t for t in proto.graph.initializer}
        self._taken = tensors_of(proto)
        self._names = {name: name for name in whole}
        self._nodes: dict[str, onnx.NodeProto] = {}
        self._leaves: dict[str, onnx.TensorProto] = {}
        self._indices: dict[bytes, str] = {}
        self._cut: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def write(
        self, chosen: Iterable[tuple[Table, KeptIndices]], restored: Iterable[tuple[Table, Mapping[str, Array]]]
    ) -> None:
        """Make these tables, of each the positions that stay, in place of the constants of their names.

        restored: weights with what their nodes read now in place of some constants.
        """
        replaced: set[str] = set()
        gathers: list[onnx.NodeProto] = []
        for table, kept in chosen:
            replaced.add(table.name)
            for leaf in table.leaves:
                self._add_leaf(leaf)
            for node in table.nodes:
                self._add_node(node)
            if kept:
                gathers += self._gathers(table.name, kept)
        for table, values in restored:
            replaced.add(table.name)
            self._restore(table, values)
        stays = [t for t in self._graph.initializer if t.name not in replaced]
        behind = list(self._graph.node)
        del self._graph.initializer[:], self._graph.node[:]
        self._graph.initializer.extend([*stays, *self._leaves.values()])
        self._graph.node.extend([*self._nodes.values(), *gathers, *behind])

    def _restore(self, table: Table, values: Mapping[str, Array]) -> None:
        """Add a table with nodes of its own: the old values may still be there, for another reader."""
        names: dict[str, str] = {}
        for leaf in table.leaves:
            if leaf.name not in values:
                self._add_leaf(leaf)
                names[leaf.name] = self._names[leaf.name]
                continue
            names[leaf.name] = self._cut_leaf(leaf, values[leaf.name])
        for node in table.nodes:
            copy = bodies.copy_node(node)
            copy.input[:] = [names.get(i, i) for i in node.input]
            for i, name in enumerate(node.output):
                copy.output[i] = names[name] = table.name if name == table.name else self._free(name)
            self._nodes[f"{table.name}:{node.output[0]}"] = copy

    def _cut_leaf(self, leaf: onnx.TensorProto, now: Array) -> str:
        """The name of what is left of a constant; tables that lose the same of it share that."""
        key = leaf.name, now.shape, sha256(now.tobytes()).digest()
        if key not in self._cut:
            name = self._cut[key] = self._free(leaf.name)
            self._leaves[f"cut:{name}"] = tensor_files.tensor_of(now, name, outside=external.is_external(leaf))
        return self._cut[key]

    def _add_leaf(self, leaf: onnx.TensorProto) -> None:
        if leaf.name in self._names:
            return
        same = self._stored.get(leaf.name)
        if same is not None and _equal(same, leaf):
            self._names[leaf.name] = leaf.name
            return
        copy = onnx.TensorProto()
        copy.CopyFrom(leaf)
        copy.name = self._names[leaf.name] = self._free(leaf.name)
        self._leaves[leaf.name] = copy

    def _add_node(self, node: onnx.NodeProto) -> None:
        if node.output[0] in self._nodes:
            return
        copy = bodies.copy_node(node)
        for i, name in enumerate(node.input):
            copy.input[i] = self._names.get(name, name)
        for i, name in enumerate(node.output):
            if name:
                copy.output[i] = self._names[name] if name in self._names else self._renamed(name)
        self._nodes[node.output[0]] = copy

    def _renamed(self, name: str) -> str:
        renamed = self._names[name] = self._free(name)
        return renamed

    def _gathers(self, name: str, kept: KeptIndices) -> Iterator[onnx.NodeProto]:
        """One Gather for each cut axis; the output of the last has the name of the table."""
        source = self._names[name]
        for i, (axis, places) in enumerate(kept.items(), start=1):
            index = self._index(f"{name}__kept{axis}", places)
            out = name if i == len(kept) else self._free(f"{name}__cut{axis}")
            yield helper.make_node("Gather", [source, index], [out], name=f"{out}__gather", axis=axis)
            source = out

    def _index(self, name: str, places: Ints) -> str:
        """The constant of these positions; tables that lose the same ones share it."""
        index = self._indices.get(places.tobytes())
        if index is None:
            index = self._indices[places.tobytes()] = self._free(name)
            self._leaves[index] = numpy_helper.from_array(places, index)
        return index

    def _free(self, name: str) -> str:
        """The name, or one like it that nothing has yet."""
        candidate, i = name, 0
        while candidate in self._taken:
            candidate, i = f"{name}__table{i or ''}", i + 1
        self._taken.add(candidate)
        return candidate


def _equal(a: onnx.TensorProto, b: onnx.TensorProto) -> bool:
    same = a.data_type == b.data_type and list(a.dims) == list(b.dims)
    return same and external.array_of(a).tobytes() == external.array_of(b).tobytes()
