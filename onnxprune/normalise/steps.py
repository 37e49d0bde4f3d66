"""Steps: values that came out the same at every size that was measured, though the sizes behind them changed.

"At most 512", "how many hundreds?", "is the batch 1?", the first eight positions: measured at a few sizes such a value
looks like a constant, and at another size it is not. A sum, a product or a choice of entries that stays the same while
its operands change does so at every size (they cancel out, or are not chosen); what any other operator gives is taken
for a step. What follows from a step is measured too: the model is run once more with every step moved by one, and what
changes then is no constant either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.errors import RunError
from onnxprune.graph import bodies, external, protobuf
from onnxprune.graph.protobuf import copied
from onnxprune.normalise.measured import Measured, as_far_as_it_runs, by_name
from onnxprune.numerics.arrays import Array, Mask
from onnxprune.runtime.session import Feeds, Session

_EXACT = {
    *("Add", "Sub", "Mul", "Neg", "Sum", "Identity", "ReduceSum", "ReduceProd", "CumSum"),
    *("Concat", "Split", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose", "Expand", "Tile"),
    *("ConstantOfShape", "Shape", "Size", "NonZero"),
    *("Exp", "Log", "Pow", "Reciprocal", "Sqrt"),
}
# An entry of the output comes from those at its place alone.
_ENTRYWISE = {
    *("Abs", "And", "BitShift", "Cast", "Ceil", "Clip", "Div", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less"),
    *("LessOrEqual", "Max", "Min", "Mod", "Not", "Or", "Relu", "Round", "Sign", "Where", "Xor"),
}
# The inputs that choose; what they choose from may change where it is not chosen.
_CHOOSING = {"Gather": (1,), "GatherElements": (1,), "GatherND": (1,), "Slice": (1, 2, 3, 4), "Where": (0,)}
_MOST_ROUNDS = 4
# Bytes of a number that holds every size.
_WIDE = 4


@dataclass(frozen=True, eq=False)
class Moved:
    """Runs with steps and clamps moved, the names of which they tell nothing, and those that were moved.

    models: every model that was tried so, with its inputs; not all of them run as a whole.
    """

    runs: Sequence[Measured]
    stuck: set[str]
    names: Set[str]
    models: Sequence[tuple[onnx.ModelProto, Feeds]]


@dataclass(frozen=True)
class Sliced:
    """A Slice with stored bounds: what it reads and gives, and (axis, start, end) of every row of bounds."""

    data: str
    output: str
    bounds: Sequence[tuple[int, int, int]]


@dataclass(frozen=True)
class Clamp:
    """The k-th bounds of the Slice that gives `output`: they cut an axis that changes to the same size each time.

    empty: the size of that axis in the first run, where they leave nothing of it.
    """

    output: str
    k: int
    from_the_end: bool
    empty: int | None = None


def moved_runs(
    proto: onnx.ModelProto,
    runs: Sequence[Measured],
    given: Mapping[str, Sequence[Array]],
    clamps: Sequence[Clamp],
    open_: set[str],
) -> Moved:
    """Runs at the sizes of the first in which every step and clamp is moved.

    given: values of the inputs in each run, those that depend on sizes alone. open_: the names that follow from steps
    and yet stood still, of outer graphs; those of this one are added.
    """
    variants: list[Measured] = []
    models: list[tuple[onnx.ModelProto, Feeds]] = []
    stuck: set[str] = set()
    plain = by_name(runs)
    every = {**given, **plain}
    still = {name: unchanged(values) for name, values in every.items()}
    signed = _signed(proto, every.keys())
    sites: dict[str, Mask] = {name: np.ones(v[0].shape, bool) for name, v in given.items() if name in open_}
    for _ in range(_MOST_ROUNDS):
        new = _steps(proto, every, still, by_name(variants), sites, signed)
        if not new and (variants or not (sites or clamps)):
            break
        sites |= {k: v | sites.get(k, np.False_) for k, v in new.items()}
        still_ones = {k for k in sites if k in given or still[k].any()}
        further, unseen = _runs_with(proto, runs[0], sites, clamps, still_ones, models)
        stuck |= unseen
        if not further:
            stuck |= behind(proto, sites.keys())
            break
        variants += further
    moved = by_name(variants)
    open_.update(k for k in moved if (still[k] & ~unchanged([plain[k][0], *moved[k]])).any())
    open_.update(stuck)
    return Moved(variants, stuck, sites.keys() | {c.output for c in clamps}, models)


def _runs_with(
    proto: onnx.ModelProto,
    run: Measured,
    sites: Mapping[str, Mask],
    clamps: Sequence[Clamp],
    still: set[str],
    models: list[tuple[onnx.ModelProto, Feeds]],
) -> tuple[list[Measured], set[str]]:
    """Runs with these moved: by one, and by amounts of their own, as movements by one may cancel out; and the names of
    which they tell nothing.

    Where the model does not run so (tensors no longer fit together), it is run as far as it does, the arithmetic of
    sizes by itself, and the model with fewer of them moved: those that stood `still`, or the clamps. What is tried is
    added to `models`.
    """

    def moved(where: Mapping[str, Mask], clamps: Sequence[Clamp], *, apart: bool = False) -> Measured | None:
        models.append(_following(proto, run, where, clamps, apart=apart))
        return _run(*models[-1], run.values)

    together = moved(sites, clamps)
    unseen: set[str] = set()
    if together is not None:
        ways = [together, moved(sites, clamps, apart=True)]
    else:
        part, unseen = _in_part(proto, run, [*sites, *(c.output for c in clamps)], *models[-1])
        ways = [part]
        ways += [_sizes_moved(proto, run, sites, apart=apart) for apart in (False, True)]
        ways += [moved({k: sites[k] for k in still}, ())] if still else []
        ways += [moved({}, clamps)] if clamps else []
    return [r for r in ways if r is not None], unseen


def behind(proto: onnx.ModelProto, names: Iterable[str]) -> set[str]:
    """The names, and all that is computed from them."""
    affected = set(names)
    for n in proto.graph.node:
        if affected & {*n.input, *bodies.captured_names(n)}:
            affected.update(o for o in n.output if o)
    return affected


def in_front_of(proto: onnx.ModelProto, names: Iterable[str]) -> Iterator[onnx.NodeProto]:
    """The nodes of the main graph that these are computed from, the last one first."""
    wanted = set(names)
    for n in reversed(proto.graph.node):
        if not wanted.isdisjoint(n.output):
            wanted.update((*n.input, *bodies.captured_names(n)))
            yield n


def clamps_of(cut: Sequence[Sliced], shapes: Mapping[str, Sequence[Sequence[int]]]) -> list[Clamp]:
    """The bounds of Slices that leave as much of an axis that changes at each of the sizes that were measured.

    shapes: of what each Slice reads and gives, in every run. A single position is one at every size.
    """
    clamps: list[Clamp] = []
    for c in cut:
        for k, (axis, start, _) in enumerate(c.bounds):
            sizes, left = ([s[axis] for s in shapes[t] if -len(s) <= axis < len(s)] for t in (c.data, c.output))
            if len(set(sizes)) > 1 and len(set(left)) == 1 and left[0] != 1:
                clamps.append(Clamp(c.output, k, start < 0, None if left[0] else sizes[0]))
    return clamps


def slices(proto: onnx.ModelProto) -> list[Sliced]:
    """The Slices of the main graph whose bounds are stored."""
    weights = {t.name: t for t in proto.graph.initializer}
    every = (n for n in proto.graph.node if n.op_type == "Slice" and n.input[0] not in weights)
    cut = [Sliced(n.input[0], n.output[0], _bounds(n, weights)) for n in every]
    return [c for c in cut if c.bounds]


def _bounds(n: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> list[tuple[int, int, int]]:
    """(axis, start, end) of every stored row of bounds."""
    if len(n.input) == 1:
        attributes = {a.name: list(a.ints) for a in n.attribute}
        starts, ends = attributes.get("starts", []), attributes.get("ends", [])
        return list(zip(attributes.get("axes", range(len(starts))), starts, ends, strict=False))
    if any(i and i not in weights for i in n.input[1:]):
        return []
    values = [external.array_of(weights[i]).ravel().tolist() if i else None for i in n.input[1:4]]
    starts, ends = values[0] or [], values[1] or []
    axes = values[2] if len(values) > 2 and values[2] is not None else range(len(starts))
    return list(zip(axes, starts, ends, strict=False))


def _steps(
    proto: onnx.ModelProto,
    plain: Mapping[str, Sequence[Array]],
    still: Mapping[str, Mask],
    moved: Mapping[str, Sequence[Array]],
    sites: Mapping[str, Mask],
    signed: Set[str],
) -> dict[str, Mask]:
    """Which entries of which tensors are steps, but for those of `sites`, which are known to be.

    plain, moved: the values in the runs as the model is, and in those with the steps of `sites` moved. still: which
    entries are the same in all of `plain`. signed: as of `_signed`.
    """
    steps: dict[str, Mask] = {}
    constants = {t.name: t for t in proto.graph.initializer}

    def follows(name: str) -> Mask:
        if name not in plain:
            return np.zeros((), bool)
        return (
            ~unchanged([plain[name][0], *moved.get(name, ())]) | steps.get(name, np.False_) | sites.get(name, np.False_)
        )

    def changes(name: str) -> Mask:
        return ~still[name] | follows(name) if name in plain else np.zeros((), bool)

    for n in proto.graph.node:
        outputs = [o for o in n.output if o in plain and _numbers(plain[o][0])]
        if not outputs or _keeps_apart(n, constants, plain):
            continue
        read = [i for k, i in enumerate(n.input) if i and k in _CHOOSING.get(n.op_type, (k,))]
        if not any(changes(i).any() for i in read) or _never(n, constants, plain, still, signed):
            continue
        for o in outputs:
            shape = plain[o][0].shape
            mask = _reached(n, [changes(i) for i in read], shape) & ~sites.get(o, np.False_)
            if n.op_type == "Div" and all(i in plain for i in read):
                above, below = read
                both = ~(still[above] | follows(above)) & ~(still[below] | follows(below))
                mask = mask & ~(both & _whole(plain[above], plain[below], shape))
            elif n.op_type == "Div" and read[1] in constants:
                mask = mask & (external.array_of(constants[read[1]]) != 1)
            if mask.any():
                steps[o] = mask
    return steps


def _numbers(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


def _whole(above: Sequence[Array], below: Sequence[Array], shape: tuple[int, ...]) -> Mask:
    """Which quotients leave no remainder in any run: those of sizes that both change cancel out."""
    whole: Mask = np.ones(shape, bool)
    for a, b in zip(above, below, strict=True):
        whole &= np.remainder(a, np.where(b == 0, 1, b)) == 0
    return whole


def unchanged(values: Sequence[Array]) -> Mask:
    """Which entries are the same in every run; none where the shape is not."""
    first = values[0]
    if not isinstance(first, np.ndarray) or any(np.shape(v) != first.shape for v in values[1:]):
        return np.zeros(np.shape(first), bool)
    same = np.ones(first.shape, bool)
    for v in values[1:]:
        same &= v == first
    return same


def _reached(n: onnx.NodeProto, changes: Sequence[Mask], shape: tuple[int, ...]) -> Mask:
    """Which entries of an output of that shape read something that changes."""
    if n.op_type not in _ENTRYWISE:
        return np.ones(shape, bool)
    reached: Mask = np.any([np.broadcast_to(c, shape) for c in changes], axis=0)
    return reached


def _keeps_apart(
    n: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], values: Mapping[str, Sequence[Array]]
) -> bool:
    """Whether what this gives stays the same for different sizes only where they cancel out, or are not chosen."""
    if n.op_type == "Range":
        return n.input[2] in constants and bool((np.abs(external.array_of(constants[n.input[2]])) == 1).all())
    if n.op_type in _EXACT:
        return not any(_rounded(v) for o in n.output for v in values.get(o, ()))
    if n.op_type == "Div":
        return values[n.output[0]][0].dtype.kind == "f"
    if n.op_type != "Cast":
        return False
    to = protobuf.int_attribute(n, "to", 1)
    source = values.get(n.input[0])
    whole = source is not None and source[0].dtype.kind in "iu"
    into = helper.tensor_dtype_to_np_dtype(to)
    if whole and into.kind in "iu":
        return into.itemsize >= _WIDE  # no size is so large that it wraps round there
    return to != onnx.TensorProto.BOOL and into.kind not in "iu"


def _rounded(value: Array) -> bool:
    """Whether numbers are so large that some next to each other are the same."""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or not value.size:
        return False
    return bool((np.abs(value[np.isfinite(value)]) >= 1 / np.finfo(value.dtype).eps).any())


def _signed(proto: onnx.ModelProto, sizes: Set[str]) -> set[str]:
    """Which of the names `sizes` are computed from differences of sizes, or products or sums with numbers below zero.

    What joins numbers to a vector makes a shape, in which those that a model computes are sizes.
    """
    constants = {t.name: t for t in proto.graph.initializer}
    signed: set[str] = set()
    for n in proto.graph.node:
        if sizes.isdisjoint(n.output):
            continue
        below = n.op_type in ("Sub", "Neg") or (
            n.op_type in ("Add", "Div", "Mul", "Sum")
            and any(bool((external.array_of(constants[i]) < 0).any()) for i in n.input if i in constants)
        )
        if below or (n.op_type != "Concat" and not signed.isdisjoint(n.input)):
            signed.update(o for o in n.output if o)
    return signed


def _never(
    n: onnx.NodeProto,
    constants: Mapping[str, onnx.TensorProto],
    values: Mapping[str, Sequence[Array]],
    still: Mapping[str, Mask],
    signed: Set[str],
) -> bool:
    """Whether sizes (not differences) are compared with a number below zero, which none of them is ("-1: keep it")."""
    if n.op_type != "Equal":
        return False
    changing = [i for i in n.input if i in values and not still[i].all()]
    if not signed.isdisjoint(changing):
        return False
    if any((np.where(still[i], 0, v) < 0).any() for i in changing for v in values[i] if v.shape == still[i].shape):
        return False
    stored = [external.array_of(constants[i]) for i in n.input if i in constants]
    stored += [values[i][0] for i in n.input if i in values and still[i].all()]
    return len(stored) == 1 and bool((stored[0] < 0).all())


def _following(
    proto: onnx.ModelProto, run: Measured, sites: Mapping[str, Mask], clamps: Sequence[Clamp], *, apart: bool
) -> tuple[onnx.ModelProto, Feeds]:
    """`_moved`, with each tensor that stands in for a step as long as the steps in front of it make that step."""
    behind_others = behind(proto, [o for n in proto.graph.node if set(n.input) & sites.keys() for o in n.output])
    may_grow = [o for o in sites if o in behind_others and np.ndim(run.values.get(o, 0))]
    there, where = dict(run.values), dict(sites)
    for _ in range(_MOST_ROUNDS):
        copy, feeds = _moved(proto, replace(run, values=there), where, clamps, apart=apart)
        given = {o: f"{o}__still" for o in may_grow}
        values = as_far_as_it_runs(copy, list(given.values()), feeds)
        grown = {o: values[g] for o, g in given.items() if g in values and values[g].shape != there[o].shape}
        if not grown:
            break
        there |= grown
        where |= {o: np.ones(v.shape, bool) for o, v in grown.items()}
    return copy, feeds


def _moved(
    proto: onnx.ModelProto,
    run: Measured,
    sites: Mapping[str, Mask],
    clamps: Sequence[Clamp],
    *,
    apart: bool = False,
) -> tuple[onnx.ModelProto, Feeds]:
    """The model of a run with these entries and bounds moved by one, and its inputs.

    apart: each tensor by an amount of its own.
    """
    copy = copied(proto)
    graph = copy.graph
    feeds = dict(run.feeds)
    amounts = {name: _amount(k) if apart else 1 for k, name in enumerate(sites)}
    stored = {t.name: t for t in graph.initializer} if clamps else {}
    tightened: dict[str, list[Clamp]] = {}
    for c in clamps:
        tightened.setdefault(c.output, []).append(c)
    nodes: list[onnx.NodeProto] = []
    for v in graph.input:
        if v.name in sites:
            value = feeds.pop(v.name)
            nodes += _instead(v.name, value, sites[v.name], amounts[v.name], graph)
            v.name = f"{v.name}__still"
            feeds[v.name] = value
    for n in graph.node:
        node = bodies.copy_node(n)
        for c in tightened.get(node.output[0], ()):
            _tighten(node, c, graph, stored)
        moved = [o for o in node.output if o in sites]
        node.output[:] = [f"{o}__still" if o in sites else o for o in node.output]
        nodes.append(node)
        for o in moved:
            nodes += _instead(o, run.values[o], sites[o], amounts[o], graph)
    del graph.node[:]
    graph.node.extend(nodes)
    return copy, feeds


def _amount(k: int) -> int:
    """The amount that moves the k-th tensor: from 1 to 97, in no order in which sums of a few could cancel out."""
    return 1 + (2654435761 * (k + 1) >> 16) % 97


def _run(proto: onnx.ModelProto, feeds: Feeds, names: Iterable[str]) -> Measured | None:
    """The values of `names` in a model; None where it does not run."""
    part = protobuf.submodel(proto, {}, list(names))
    try:
        return Measured(proto, feeds, Session(part, optimize=False).run(feeds))
    except RunError:
        return None


def _in_part(
    proto: onnx.ModelProto, run: Measured, names: Iterable[str], copy: onnx.ModelProto, feeds: Feeds
) -> tuple[Measured, set[str]]:
    """The run in which these are moved, as far as the model with them moved runs, and the names of which it tells
    nothing: the sizes of tensors that it does not reach, and what follows from those."""
    after = behind(proto, names)
    values = as_far_as_it_runs(copy, [k for k in run.values if k in after], feeds)
    sizes = (n for n in proto.graph.node if n.op_type in ("Shape", "Size") and n.input[0] not in run.values)
    lost = {n.output[0] for n in sizes if n.output[0] in after & run.values.keys() - values.keys()}
    return Measured(copy, feeds, {**run.values, **values}), behind(proto, lost)


def _sizes_moved(proto: onnx.ModelProto, run: Measured, sites: Mapping[str, Mask], *, apart: bool) -> Measured | None:
    """The run with these entries moved, of which only what is computed from sizes is, as the run had them."""
    copy, feeds = _following(proto, run, sites, (), apart=apart)
    every = (n for n in copy.graph.node if n.op_type in ("Shape", "Size"))
    sizes = [n.output[0] for n in every if n.output[0] in run.values and n.input[0] not in run.values]
    part = protobuf.submodel(
        copy, dict.fromkeys(sizes, onnx.TensorProto.INT64), [k for k in run.values if k not in sizes]
    )
    try:
        values = Session(part, optimize=False).run({**feeds, **{k: run.values[k] for k in sizes}})
    except RunError:
        return None
    return Measured(proto, run.feeds, {**run.values, **values})


def _instead(name: str, value: Array, mask: Mask, by: int, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes that give `value`, moved where `mask` says so, in place of what `name`__still holds there.

    Not the sum of both: a step behind a step would undo it.
    """
    if value.dtype == np.bool_:
        moved = ~value
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            amount = by * np.maximum(2 * np.spacing(np.abs(value)), 1) if value.dtype.kind == "f" else by
            moved = np.where(value > amount, value - amount, value + amount).astype(value.dtype)
        if value.dtype.kind == "f":
            moved[~np.isfinite(moved)] = value[~np.isfinite(moved)]  # the largest number stays
    source, chosen, there = f"{name}__still", f"{name}__moved", f"{name}__there"
    graph.initializer.append(numpy_helper.from_array(np.asarray(moved), chosen))
    if mask.all():
        return [helper.make_node("Identity", [chosen], [name])]
    graph.initializer.append(numpy_helper.from_array(np.asarray(mask), there))
    if value.dtype != np.bool_:
        return [helper.make_node("Where", [there, chosen, source], [name])]
    graph.initializer.append(numpy_helper.from_array(np.asarray(~mask), f"{there}_not"))
    return [
        helper.make_node("And", [source, f"{there}_not"], [f"{source}_kept"]),
        helper.make_node("And", [chosen, there], [f"{chosen}_taken"]),
        helper.make_node("Or", [f"{source}_kept", f"{chosen}_taken"], [name]),
    ]


def _tighten(node: onnx.NodeProto, clamp: Clamp, graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto]) -> None:
    """Let a Slice leave one position less: the last one, or of those that are counted from the end the first; where it
    leaves none, the last one.

    stored: the weights of the graph, by name; those that are added are added here too.
    """
    if clamp.empty is not None:
        _set_bound(node, 1, clamp.k, clamp.empty - 1, graph, stored)
        _set_bound(node, 2, clamp.k, clamp.empty, graph, stored)
        return
    slot, by = (1, 1) if clamp.from_the_end else (2, -1)
    _set_bound(node, slot, clamp.k, _bound(node, slot, clamp.k, stored) + by, graph, stored)


def _bound(node: onnx.NodeProto, slot: int, k: int, stored: Mapping[str, onnx.TensorProto]) -> int:
    """The k-th start (slot 1) or end (slot 2) of a Slice."""
    if len(node.input) == 1:
        return int(next(a for a in node.attribute if a.name == ("starts", "ends")[slot - 1]).ints[k])
    return int(external.array_of(stored[node.input[slot]]).ravel()[k])


def _set_bound(
    node: onnx.NodeProto, slot: int, k: int, to: int, graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto]
) -> None:
    """Let that bound be `to`. What is stored for it is added to the graph, and to `stored`."""
    if len(node.input) == 1:
        next(a for a in node.attribute if a.name == ("starts", "ends")[slot - 1]).ints[k] = to
        return
    values = external.array_of(stored[node.input[slot]]).copy()
    values.ravel()[k] = to
    node.input[slot] = f"{node.output[0]}__bounds{slot}_{k}"
    stored[node.input[slot]] = numpy_helper.from_array(values, node.input[slot])
    graph.initializer.append(stored[node.input[slot]])
