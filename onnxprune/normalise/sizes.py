"""Shape arithmetic: what depends on sizes alone is measured at several of them, and folded where it stays."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.inliner
from onnx import helper

from onnxprune.errors import RunError
from onnxprune.graph import bodies, external, protobuf
from onnxprune.normalise import body_values
from onnxprune.normalise.constants import QUANTIZED, RANDOM, give_ranges_scalars, returns_weight
from onnxprune.normalise.data_sizes import growing_states, other_ways, sizes_by_data
from onnxprune.normalise.limits import limited
from onnxprune.normalise.measured import Measured, Shapes, by_name, shapes_in, with_lengths
from onnxprune.normalise.steps import Clamp, Sliced, behind, clamps_of, moved_runs, slices
from onnxprune.normalise.unknowns import loose
from onnxprune.normalise.windows import Window, ports, reach, standing, widened, windows
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Feeds, Session

_FOLD_LIMIT_BYTES = 16 << 20
_SHAPE_OPS = {"Shape", "Size"}
_MOST_ROUNDS = 4


def shape_only(proto: onnx.ModelProto, given: Collection[str] = ()) -> set[str]:
    """Tensors that depend on constants, on shapes, and on what of the inputs is `given` to be so, alone."""
    static = {t.name for t in proto.graph.initializer} | set(given)
    for n in proto.graph.node:
        if n.op_type in RANDOM or n.op_type in QUANTIZED:
            continue
        if bodies.bodies_of(n):
            continue
        if n.op_type in _SHAPE_OPS or all(i in static for i in n.input if i):
            static.update(o for o in n.output if o)
    return static


def fold_shapes(
    proto: onnx.ModelProto,
    runs: list[Feeds],
    given: Collection[str],
    known_values: dict[str, tuple[int | None, ...]],
    open_: set[str],
    *,
    inside: bool = False,
) -> None:
    """Fold shape arithmetic, in place, in a model and its bodies; what stays but is known goes to `known_values`.

    runs: inputs at several sizes; those that it takes to see more change are added. given: the inputs that depend on
    shapes alone. open_: decisions on changing sizes. inside: the model is a body, whose inputs have no sizes to choose.
    """
    static = shape_only(proto, given)
    tried = len(runs)
    known_values.update(_fold_shape_arithmetic(proto, runs, static - set(given), given, open_, inside=inside))
    holders = [n for n in proto.graph.node if bodies.bodies_of(n)]
    read = body_values.read_by_bodies(proto, runs[:tried]) if holders else None
    if read:  # the rest of the model may not take a size that its shapes take
        read += [r for f in runs[tried:] for r in body_values.read_by_bodies(proto, [f]) or ()]
    stored = bodies.weights_of(proto)
    for node in holders:
        for _, body in bodies.bodies_of(node):
            part = None if read is None else body_values.inside(proto, node, body, stored, read)
            if part is None or not part.iterates:
                continue
            if node.op_type == "Loop":
                open_.update(body.input[2 + k].name for k in growing_states(body))
            inner_values: dict[str, tuple[int | None, ...]] = {}
            shaped = static & {v.name for v in part.model.graph.input}
            try:
                fold_shapes(part.model, list(part.runs), shaped, inner_values, open_, inside=True)
            except RunError:
                continue  # a branch that does not fit these inputs stays as it is
            bodies.put_back(proto, body, part.model, stored)
            known_values.update(inner_values)


def _fold_shape_arithmetic(
    proto: onnx.ModelProto,
    feeds: list[Feeds],
    static: Collection[str],
    given: Collection[str],
    open_: set[str],
    *,
    inside: bool,
) -> dict[str, tuple[int | None, ...]]:
    weights = {t.name for t in proto.graph.initializer}
    states = _initial_states(proto)
    stored = {t.name: external.array_of(t) for t in proto.graph.initializer if t.name in states}
    _drop_zero_states(proto, {name for name, values in stored.items() if not values.any()})
    outputs = {o.name for o in proto.graph.output}
    computed = [n for n in proto.graph.node if not returns_weight(n, weights, outputs)]
    produced = [o for n in computed for o in n.output if o in static and o not in weights]
    if not produced and not _sized_inside(proto):
        return {}
    measured, stuck = _measured(proto, produced, feeds, given, open_, inside=inside)
    if stuck is None:
        return {}
    free = loose(proto, measured)
    stuck = stuck | free.untold
    open_.update(free.untold, free.entries)
    zeros = {name for name in states & set(produced) if not any(r.values[name].any() for r in measured)}
    _drop_zero_states(proto, zeros - stuck - free.entries.keys())
    _see_through_strides(proto, measured)
    known_values: dict[str, tuple[int | None, ...]] = {}
    constant: dict[str, Array] = {}
    for name in produced:
        values = [r.values[name] for r in measured]
        first = values[0]
        if name in stuck or not all(isinstance(v, np.ndarray) for v in values):
            continue
        if name not in free.entries and all(v.shape == first.shape and np.array_equal(v, first) for v in values[1:]):
            if first.nbytes <= _FOLD_LIMIT_BYTES:
                constant[name] = first
            continue
        vector = first.ndim == 1 and np.issubdtype(first.dtype, np.integer)
        if vector and all(v.shape == first.shape for v in values):
            same = np.all(np.stack(values) == first, axis=0) & ~free.entries.get(name, np.False_)
            known_values[name] = tuple(int(x) if s else None for x, s in zip(first, same, strict=True))
    _replace_by_constants(proto, constant)
    _fold_reshape_targets(proto, known_values, measured)
    _bake_shapes(proto, known_values)
    return known_values


def _measured(
    proto: onnx.ModelProto,
    names: list[str],
    feeds: list[Feeds],
    given: Collection[str],
    open_: set[str],
    *,
    inside: bool,
) -> tuple[list[Measured], set[str] | None]:
    """Values of `names` for each of several inputs, and with steps moved; and the names of which that tells nothing.

    None in place of those names where an input behind the first does not run: the model does not in fact accept
    another size there. Inputs at which more of the model changes are added to `feeds`.
    """
    cut, before = slices(proto), [*names, *_sized_inside(proto)]
    static = {*names, *given}
    decided = [*sizes_by_data(proto, before, static), *limited(proto, before)]
    rounding = [*windows(proto, before), *decided]
    if not names and not rounding:
        return [], None
    probe, probes = with_lengths(proto, [*(t for c in cut for t in (c.data, c.output)), *ports(rounding)])
    session = Session(protobuf.submodel(probe, {}, [*names, *probes.values()]), optimize=False)
    measured: list[Measured] = []
    shapes: list[Shapes] = []

    def measure(f: Feeds) -> Shapes | None:
        try:
            values = session.run(f)
        except RunError:
            if not measured:
                raise
            return None
        measured.append(Measured(proto, f, {k: values[k] for k in names}))
        return {k: tuple(values[v].tolist()) for k, v in probes.items()}

    for f in feeds:
        seen = measure(f)
        if seen is None:
            return measured, None
        shapes.append(seen)
    rounding = [*windows(proto, before, _still_values(measured)), *decided]
    if not inside:
        reach(proto, rounding, feeds, shapes, measure)
        kept = {id(f) for f in feeds}
        measured = [r for r in measured if id(r.feeds) in kept]
    # What a body reads of axes that are longer elsewhere is not measured at any other length.
    lost = behind(proto, open_ & (feeds[0].keys() - set(given))) if inside else set()
    turned, untold = other_ways(proto, measured[0], names, before, static)
    open_.update(lost, untold)
    inputs = {k: [f[k] for f in feeds] for k in feeds[0] if k in given}
    limits = _Limits(cut, rounding, list(probes), shapes)
    every, untold_there = _beyond_limits(proto, measured, turned, inputs, limits, open_)
    return every, untold | untold_there | (lost & set(names))


@dataclass(frozen=True)
class _Limits:
    """The Slices and windows that may hold an axis at one size; tensors; their shapes, run by run; and the bounds that
    were seen to hold one: where they are moved, they do not."""

    cut: Sequence[Sliced]
    rounding: Sequence[Window]
    tensors: Sequence[str]
    shapes: list[Shapes]
    clamps: dict[Clamp, None] = field(default_factory=dict)

    def met(self) -> tuple[dict[str, frozenset[int]], list[Clamp]]:
        """The axes that stand still at a window, and the bounds that hold one."""
        shapes = {t: [s[t] for s in self.shapes if t in s] for t in self.tensors}
        self.clamps.update(dict.fromkeys(clamps_of(self.cut, shapes)))
        return standing(self.rounding, self.shapes), list(self.clamps)


def _beyond_limits(
    proto: onnx.ModelProto,
    measured: Sequence[Measured],
    turned: Sequence[Measured],
    inputs: Mapping[str, Sequence[Array]],
    limits: _Limits,
    open_: set[str],
) -> tuple[list[Measured], set[str]]:
    """The runs `measured` and `turned`, those with windows longer and steps moved, and the names of which they tell
    nothing."""
    names = list(measured[0].values)
    plain = _still_values(measured)
    for _ in range(_MOST_ROUNDS):
        met = limits.met()
        longer = widened(proto, measured[0], names, limits.rounding, limits.shapes)
        further = [*turned, *longer.runs]
        changed = {k for r in further for k, v in plain.items() if not np.array_equal(v, r.values[k])}
        open_.update(longer.untold, changed, longer.behind - set(names))
        moved = moved_runs(proto, [*measured, *further], inputs, met[1], open_)
        # Behind a step that stands still, what cuts or rounds an axis stands still with it.
        if not behind(proto, moved.names).isdisjoint(limits.tensors):
            limits.shapes.extend(shapes_in(m, f, limits.tensors) for m, f in moved.models)
        if limits.met() == met:
            return [*measured, *further, *moved.runs], moved.stuck | longer.untold
    return list(measured), set(names)


def _sized_inside(proto: onnx.ModelProto) -> list[str]:
    """The tensors that are read by bodies in which the size of something is."""
    read: dict[str, None] = {}
    for n in proto.graph.node:
        if any(i.op_type in _SHAPE_OPS for _, body in bodies.bodies_of(n) for i in bodies.every_node(body)):
            read.update(dict.fromkeys((*n.input, *bodies.captured_names(n))))
    return [name for name in read if name]


def _still_values(runs: Sequence[Measured]) -> dict[str, Array]:
    """The values that are the same in all runs."""
    return {k: v[0] for k, v in by_name(runs).items() if all(np.array_equal(x, v[0]) for x in v[1:])}


def _replace_by_constants(proto: onnx.ModelProto, values: Mapping[str, Array]) -> None:
    outputs = {o.name for o in proto.graph.output}
    kept: list[onnx.NodeProto] = []
    for n in proto.graph.node:
        if n.output and all(o in values or not o for o in n.output) and not outputs & set(n.output):
            proto.graph.initializer.extend(onnx.numpy_helper.from_array(values[o], o) for o in n.output if o)
        else:
            kept.append(n)
    copies = [bodies.copy_node(n) for n in kept]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
    give_ranges_scalars(proto)


def _fold_reshape_targets(
    proto: onnx.ModelProto,
    known_values: Mapping[str, tuple[int | None, ...]],
    measured: Sequence[Measured],
) -> None:
    """A target with changing entries becomes a constant: 0 where the entry copies the input's, -1 for one other.

    Beside a copied axis that is empty ("no objects") -1 says nothing. So a target that copies more than the batch and
    leaves an axis open stays computed where it has no fixed size, and so no channels.
    """
    targets = [n for n in proto.graph.node if n.op_type == "Reshape" and n.input[1] in known_values]
    targets = [n for n in targets if not protobuf.int_attribute(n, "allowzero", 0)]
    if not targets:
        return
    shapes = _shapes_of(measured, [n.input[0] for n in targets])
    for n in targets:
        values = known_values[n.input[1]]
        sizes = shapes[n.input[0]]
        entries: list[int] = []
        for i, v in enumerate(values):
            if v is not None:
                entries.append(v)
            elif _copied(i, [r.values[n.input[1]] for r in measured], sizes):
                entries.append(0)
            else:
                entries.append(-1)
        copies = [i for i, e in enumerate(entries) if e == 0]
        if entries.count(-1) == 0 and copies:
            entries[copies[0]] = -1 if len(copies) == 1 else 0
        left_open = any(v is None and e == -1 for v, e in zip(values, entries, strict=True))
        if left_open and any(i > 0 for i in copies) and max(entries) <= 1:
            continue
        if entries.count(-1) <= 1:
            name = f"{n.output[0]}__target"
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(entries, np.int64), name))
            n.input[1] = name


def _copied(i: int, targets: Sequence[Array], sizes: Sequence[Array]) -> bool:
    """Whether entry `i` of a target is the size of the input's axis `i`, in every run."""
    return all(i < len(s) and t[i] == s[i] for t, s in zip(targets, sizes, strict=True))


def _shapes_of(measured: Sequence[Measured], names: Sequence[str]) -> dict[str, list[Array]]:
    """The shape of each tensor in every run; none where the model, with steps moved, does not run so far."""
    sessions: dict[int, Session] = {}
    lengths: dict[str, str] = {}
    shapes: dict[str, list[Array]] = {n: [] for n in names}
    for r in measured:
        if id(r.proto) not in sessions:
            probe, lengths = with_lengths(r.proto, names)
            sessions[id(r.proto)] = Session(protobuf.submodel(probe, {}, list(lengths.values())), optimize=False)
        try:
            sizes = sessions[id(r.proto)].run(r.feeds)
        except RunError:
            if r is measured[0]:
                raise
            sizes = {}
        for n, seen in shapes.items():
            seen.append(sizes.get(lengths[n], np.zeros(0, np.int64)))
    return shapes


def _see_through_strides(proto: onnx.ModelProto, measured: Sequence[Measured]) -> None:
    """A Gather that numbers the entries of a flattened tensor in their own order and shape gives that tensor back.

    So exporters write a strided view of a tensor that lies in memory as it is. The indices count over samples and
    channels at once, so nothing could be cut behind them.
    """
    producer = {o: n for n in proto.graph.node for o in n.output}
    views: list[tuple[onnx.NodeProto, onnx.NodeProto]] = []
    for n in proto.graph.node:
        flat = producer.get(n.input[0]) if n.op_type == "Gather" and protobuf.int_attribute(n, "axis", 0) == 0 else None
        if flat is None or flat.op_type not in ("Flatten", "Reshape") or n.input[1] not in measured[0].values:
            continue
        indices = [r.values[n.input[1]] for r in measured]
        if all(np.array_equal(i, np.arange(i.size).reshape(i.shape)) for i in indices):
            views.append((n, flat))
    if not views:
        return
    shapes = _shapes_of(measured, [name for n, flat in views for name in (n.input[0], flat.input[0])])
    for n, flat in views:
        whole, source = shapes[n.input[0]], shapes[flat.input[0]]
        wanted = [r.values[n.input[1]].shape for r in measured]
        if [tuple(s) for s in source] == wanted and [tuple(s) for s in whole] == [(int(np.prod(w)),) for w in wanted]:
            n.CopyFrom(helper.make_node("Identity", [flat.input[0]], [n.output[0]], name=n.name))


def _bake_shapes(proto: onnx.ModelProto, known_values: dict[str, tuple[int | None, ...]]) -> None:
    """Each remaining Shape reads the original size of every fixed axis: Where(fixed, original sizes, Shape(x))."""
    nodes: list[onnx.NodeProto] = []
    for n in proto.graph.node:
        values = known_values.get(n.output[0]) if n.op_type == "Shape" else None
        if values is None or all(v is None for v in values):
            nodes.append(bodies.copy_node(n))
            continue
        out = n.output[0]
        raw = bodies.copy_node(n)
        raw.output[0] = f"{out}__runtime"
        fixed = np.array([v is not None for v in values])
        sizes = np.array([v or 0 for v in values], np.int64)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(fixed, f"{out}__fixed"))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(sizes, f"{out}__sizes"))
        # Named for the tensor: in a model that was pruned before, the Shape's own name is taken.
        where = helper.make_node(
            "Where", [f"{out}__fixed", f"{out}__sizes", raw.output[0]], [out], name=f"{out}__original_sizes"
        )
        known_values[raw.output[0]] = values
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
