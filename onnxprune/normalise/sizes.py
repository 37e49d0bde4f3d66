"""Shape arithmetic: what depends on sizes alone is measured at several of them, and folded where it stays."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set

import numpy as np
import onnx
import onnx.inliner
from onnx import helper

from onnxprune import bodies, measuring, storage
from onnxprune import model as m
from onnxprune.errors import RunError
from onnxprune.graph import Array
from onnxprune.normalise.constants import QUANTIZED, RANDOM, copy_node, give_ranges_scalars
from onnxprune.runtime import Feeds, Session

_FOLD_LIMIT_BYTES = 16 << 20
_SHAPE_OPS = {"Shape", "Size"}
# What stands still between steps, though what it reads changes.
_STEPS = {"Ceil", "Clip", "Floor", "Max", "Min", "Round", "Sign"}


def _shape_only(proto: onnx.ModelProto, given: Collection[str] = ()) -> set[str]:
    """Tensors that depend on constants, on shapes, and on what of the inputs is `given` to be so, alone."""
    found = {t.name for t in proto.graph.initializer} | set(given)
    for n in proto.graph.node:
        if n.op_type in RANDOM or n.op_type in QUANTIZED:
            continue
        if bodies.bodies_of(n):
            continue
        if n.op_type in _SHAPE_OPS or all(i in found for i in n.input if i):
            found.update(o for o in n.output if o)
    return found


def fold_shapes(
    proto: onnx.ModelProto,
    runs: Sequence[Feeds],
    given: Collection[str],
    known: dict[str, tuple[int | None, ...]],
    open_: set[str],
) -> None:
    """Fold shape arithmetic, in place, in a model and its bodies; what stays but is known goes to `known`.

    runs: inputs at several sizes. given: the inputs that depend on shapes alone. open_: decisions on changing sizes.
    """
    static = _shape_only(proto, given)
    known.update(_fold_shape_arithmetic(proto, runs, static - set(given), open_))
    holders = [n for n in proto.graph.node if bodies.bodies_of(n)]
    read = measuring.read_by_bodies(proto, runs) if holders else None
    for node in holders:
        for _, body in bodies.bodies_of(node):
            inside = None if read is None else measuring.inside(proto, node, body, read)
            if inside is None or not inside.iterates:
                continue
            found: dict[str, tuple[int | None, ...]] = {}
            try:
                fold_shapes(
                    inside.model, inside.runs, static & {v.name for v in inside.model.graph.input}, found, open_
                )
            except RunError:
                continue  # a branch that does not fit these inputs stays as it is
            bodies.put_back(proto, body, inside.model)
            known.update(found)


def _fold_shape_arithmetic(
    proto: onnx.ModelProto, feeds: Sequence[Feeds], static: Collection[str], open_: set[str]
) -> dict[str, tuple[int | None, ...]]:
    weights = {t.name for t in proto.graph.initializer}
    states = _initial_states(proto)
    stored = {t.name: storage.array_of(t) for t in proto.graph.initializer if t.name in states}
    _drop_zero_states(proto, {name for name, values in stored.items() if not values.any()})
    produced = [o for n in proto.graph.node for o in n.output if o in static and o not in weights]
    if not produced:
        return {}
    runs, complete = _evaluate(proto, produced, feeds)
    if complete:
        _drop_zero_states(proto, {name for name in states & set(produced) if not any(r[name].any() for r in runs)})
        _see_through_strides(proto, runs, feeds)
    known: dict[str, tuple[int | None, ...]] = {}
    constant: dict[str, Array] = {}
    open_ |= _decisions(proto, {**{k: [f[k] for f in feeds] for k in feeds[0]}, **_by_name(runs)}, open_)
    for name in produced:
        values = [r[name] for r in runs]
        first = values[0]
        if name in open_ or not all(isinstance(v, np.ndarray) for v in values):
            continue
        if complete and all(v.shape == first.shape and np.array_equal(v, first) for v in values[1:]):
            if first.nbytes <= _FOLD_LIMIT_BYTES:
                constant[name] = first
            continue
        vector = first.ndim == 1 and np.issubdtype(first.dtype, np.integer)
        if complete and vector and all(v.shape == first.shape for v in values):
            same = np.all(np.stack(values) == first, axis=0)
            known[name] = tuple(int(x) if s else None for x, s in zip(first, same, strict=True))
    _replace_by_constants(proto, constant)
    _fold_reshape_targets(proto, known, runs if complete else [], feeds)
    _bake_shapes(proto, known)
    return known


def _by_name(runs: Sequence[Feeds]) -> dict[str, list[Array]]:
    return {k: [r[k] for r in runs] for k in runs[0]}


def _decisions(proto: onnx.ModelProto, values: Mapping[str, Sequence[Array]], known: Collection[str]) -> set[str]:
    """Single truth values and steps of sizes which change, and what follows from them.

    That they came out the same at the sizes that were measured does not say that they always do: "is the batch 1?", "at
    most 512", "how many hundreds?"
    """
    changing = {k for k, v in values.items() if any(not np.array_equal(x, v[0]) for x in v[1:])}
    found = set(known)
    for n in proto.graph.node:
        for o in n.output:
            first = values[o][0] if o in values else None
            if not isinstance(first, np.ndarray) or first.size != 1:
                continue
            moved = changing & set(n.input)
            whole = n.op_type == "Div" and first.dtype.kind in "iu" and not moved >= set(n.input)
            still = o not in changing and (whole or n.op_type in _STEPS)
            if found & set(n.input) or (moved and (first.dtype == np.bool_ or still)):
                found.add(o)
    return found


def _evaluate(proto: onnx.ModelProto, names: list[str], feeds: Sequence[Feeds]) -> tuple[list[dict[str, Array]], bool]:
    """Values of `names` for each of several inputs; False where one behind the first did not run."""
    session = Session(m.submodel(proto, {}, names), optimize=False)
    runs = [session.run(feeds[0])]
    for f in feeds[1:]:
        try:
            runs.append(session.run(f))
        except RunError:
            # The model does not in fact accept another size there. Nothing is known of what would change.
            return runs, False
    return runs, True


def _replace_by_constants(proto: onnx.ModelProto, values: Mapping[str, Array]) -> None:
    outputs = {o.name for o in proto.graph.output}
    kept: list[onnx.NodeProto] = []
    for n in proto.graph.node:
        if n.output and all(o in values or not o for o in n.output) and not outputs & set(n.output):
            proto.graph.initializer.extend(onnx.numpy_helper.from_array(values[o], o) for o in n.output if o)
        else:
            kept.append(n)
    copies = [copy_node(n) for n in kept]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
    give_ranges_scalars(proto)


def _fold_reshape_targets(
    proto: onnx.ModelProto,
    known: Mapping[str, tuple[int | None, ...]],
    runs: list[dict[str, Array]],
    feeds: Sequence[Feeds],
) -> None:
    """A target with changing entries becomes a constant: 0 where the entry copies the input's, -1 for one other."""
    targets = [n for n in proto.graph.node if n.op_type == "Reshape" and n.input[1] in known]
    targets = [n for n in targets if not m.int_attribute(n, "allowzero", 0)]
    if not targets or not runs:
        return
    shapes = _shapes_of(proto, [n.input[0] for n in targets], feeds)
    for n in targets:
        values = known[n.input[1]]
        measured = shapes[n.input[0]]
        entries: list[int] = []
        for i, v in enumerate(values):
            if v is not None:
                entries.append(v)
            elif i < len(measured[0]) and all(r[n.input[1]][i] == s[i] for r, s in zip(runs, measured, strict=True)):
                entries.append(0)
            else:
                entries.append(-1)
        copies = [i for i, e in enumerate(entries) if e == 0]
        if entries.count(-1) == 0 and copies:
            entries[copies[0]] = -1 if len(copies) == 1 else 0
        if entries.count(-1) <= 1:
            name = f"{n.output[0]}__target"
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(entries, np.int64), name))
            n.input[1] = name


def _shapes_of(proto: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feeds]) -> dict[str, list[Array]]:
    """The shape of each tensor in every run."""
    shape_of = {n: f"{n}__shape" for n in dict.fromkeys(names)}
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    probe.graph.node.extend(helper.make_node("Shape", [k], [v]) for k, v in shape_of.items())
    runs, _ = _evaluate(probe, list(shape_of.values()), feeds)
    return {k: [r[v] for r in runs] for k, v in shape_of.items()}


def _see_through_strides(proto: onnx.ModelProto, runs: Sequence[Feeds], feeds: Sequence[Feeds]) -> None:
    """A Gather that numbers the entries of a flattened tensor in their own order and shape gives that tensor back.

    So exporters write a strided view of a tensor that lies in memory as it is. The indices count over samples and
    channels at once, so nothing could be cut behind them.
    """
    producer = {o: n for n in proto.graph.node for o in n.output}
    views: list[tuple[onnx.NodeProto, onnx.NodeProto]] = []
    for n in proto.graph.node:
        flat = producer.get(n.input[0]) if n.op_type == "Gather" and m.int_attribute(n, "axis", 0) == 0 else None
        if flat is None or flat.op_type not in ("Flatten", "Reshape") or n.input[1] not in runs[0]:
            continue
        indices = [r[n.input[1]] for r in runs]
        if all(np.array_equal(i, np.arange(i.size).reshape(i.shape)) for i in indices):
            views.append((n, flat))
    if not views:
        return
    shapes = _shapes_of(proto, [name for n, flat in views for name in (n.input[0], flat.input[0])], feeds)
    for n, flat in views:
        whole, source = shapes[n.input[0]], shapes[flat.input[0]]
        wanted = [r[n.input[1]].shape for r in runs]
        if [tuple(s) for s in source] == wanted and [tuple(s) for s in whole] == [(int(np.prod(w)),) for w in wanted]:
            n.CopyFrom(helper.make_node("Identity", [flat.input[0]], [n.output[0]], name=n.name))


def _bake_shapes(proto: onnx.ModelProto, known: dict[str, tuple[int | None, ...]]) -> None:
    """Each remaining Shape reads the original size of every fixed axis: Where(fixed, original sizes, Shape(x))."""
    nodes: list[onnx.NodeProto] = []
    for n in proto.graph.node:
        values = known.get(n.output[0]) if n.op_type == "Shape" else None
        if values is None or all(v is None for v in values):
            nodes.append(copy_node(n))
            continue
        out = n.output[0]
        raw = copy_node(n)
        raw.output[0] = f"{out}__runtime"
        fixed = np.array([v is not None for v in values])
        sizes = np.array([v or 0 for v in values], np.int64)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(fixed, f"{out}__fixed"))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(sizes, f"{out}__sizes"))
        # Named for the tensor: in a model that was pruned before, the Shape's own name is taken.
        where = helper.make_node(
            "Where", [f"{out}__fixed", f"{out}__sizes", raw.output[0]], [out], name=f"{out}__original_sizes"
        )
        known[raw.output[0]] = values
        nodes += [raw, where]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _recurrent(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [n for n in proto.graph.node if n.op_type in ("LSTM", "GRU", "RNN") and n.domain in ("", "ai.onnx")]


def _initial_states(proto: onnx.ModelProto) -> set[str]:
    """The tensors that recurrent nets start from: inputs 5 and 6."""
    return {name for n in _recurrent(proto) for name in n.input[5:7] if name}


def _drop_zero_states(proto: onnx.ModelProto, zeros: Set[str]) -> None:
    """Leave out the initial states of recurrent nets that are among `zeros`."""
    for n in _recurrent(proto):
        for slot in (5, 6):
            if slot < len(n.input) and n.input[slot] in zeros:
                n.input[slot] = ""
        while not n.input[-1]:
            del n.input[-1]
