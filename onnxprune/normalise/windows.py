"""Windows: sizes that an operator rounds, and that stand still at every size that was measured though they need not.

A strided convolution, a pooling, a Resize by factors or a Slice with a step gives one position for a whole range of
sizes. Where such an axis came out the same at every size, larger ones are measured at which it does not (`reach`).
Where none is within reach, each of them is made longer by hand and what follows from it is measured (`widened`); what
does not run so is not told to be constant.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph import bodies, external, protobuf
from onnxprune.normalise.measured import Measured, Shapes, as_far_as_it_runs, probed, untold
from onnxprune.normalise.resizing import Symbol, shapes_with, symbols, with_sizes
from onnxprune.normalise.steps import behind, in_front_of
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Feeds

# The most entries of the largest tensor in a run that is made for the sake of windows alone.
_MOST_ENTRIES = 1 << 26
# After so many sizes that the model does not take it is given up.
_MOST_REFUSED = 3
_MOST_ROUNDS = 6


@dataclass(frozen=True)
class Window:
    """An operator whose output's axes are as long as its input's, rounded: those of `axes`, or all (None).

    by_data: data decide how long they are, whatever `source` is; where it has a name, of those that differ from its.
    limit: they may be held back at sizes that were not measured, those that change (None), or that `source` has change.
    """

    source: str
    output: str
    axes: frozenset[int] | None = None
    by_data: bool = False
    limit: bool = False


@dataclass(frozen=True)
class Widened:
    """Runs with longer axes, the names of which they tell nothing, and all that is computed from those axes."""

    runs: Sequence[Measured]
    untold: Set[str]
    behind: Set[str]


def windows(
    proto: onnx.ModelProto, before: Collection[str] | None = None, still: Mapping[str, Array] | None = None
) -> list[Window]:
    """The windows of a model and its bodies; or those of the main graph that `before`, tensors, are computed from.

    still: values that are the same at every size, by name; None where that is not known: what may be a window is one.
    """
    weights = {t.name: t for t in proto.graph.initializer}

    def value(name: str) -> Array | None:
        return external.array_of(weights[name]) if name in weights else (still or {}).get(name)

    rounding: list[Window] = []
    for n in reversed(list(bodies.every_node(proto.graph))) if before is None else in_front_of(proto, before):
        axes = _axes(n, value, still is None)
        if n.input and n.input[0] not in weights and (axes is None or axes):
            rounding += [Window(n.input[0], o, axes) for o in n.output if o]
    return rounding[::-1]


def _axes(n: onnx.NodeProto, value: Callable[[str], Array | None], may_be: bool) -> frozenset[int] | None:
    """The axes that an operator rounds; None for all, none for an operator that is no window.

    may_be: a factor without a value may be the same at every size.
    """
    op = n.op_type
    if any(a.name == "keep_aspect_ratio_policy" and a.s != b"stretch" for a in n.attribute):
        return None
    if op in ("Resize", "Upsample"):
        slot = 1 if op == "Upsample" or len(n.input) == 2 else 2
        if len(n.input) <= slot:
            return None if any(a.name == "scales" for a in n.attribute) else frozenset()
        # Factors that change with the sizes are there to reach one size; "sizes" give them no say.
        factors = value(n.input[slot]) if n.input[slot] else np.zeros(0)
        return None if (may_be if factors is None else factors.size) else frozenset()
    if op == "Slice":
        return _strided(n, value)
    if op == "Split":
        axis, evenly = (protobuf.int_attribute(n, name, 0) for name in ("axis", "num_outputs"))
        return frozenset({axis}) if evenly else frozenset()
    if op in ("STFT", "MelWeightMatrix"):
        return frozenset({1})
    rounds = "Conv" in op or "Pool" in op
    exact = op.startswith("Global") or any(k in op for k in ("Roi", "Unpool", "Transpose", "CausalConv"))
    return None if rounds and not exact else frozenset()


def _strided(n: onnx.NodeProto, value: Callable[[str], Array | None]) -> frozenset[int] | None:
    """The axes of which a Slice takes every so many positions, more than one of them."""
    if len(n.input) < 5 or not n.input[4]:
        return frozenset()
    starts, ends, axes, steps = (value(i) if i else None for i in n.input[1:5])
    if steps is None:
        return None
    if not n.input[3]:
        axes = np.arange(steps.size)
    if axes is None:
        return None if (np.abs(steps) > 1).any() else frozenset()
    strided: set[int] = set()
    for k, (axis, step) in enumerate(zip(axes.ravel().tolist(), steps.ravel().tolist(), strict=True)):
        if abs(step) <= 1:
            continue
        bounds = None if starts is None or ends is None else (int(starts.ravel()[k]), int(ends.ravel()[k]))
        one = bounds and (bounds[0] < 0) == (bounds[1] < 0) and len(range(*bounds, step)) <= 1
        if not one:
            strided.add(int(axis))
    return frozenset(strided)


def standing(rounding: Sequence[Window], shapes: Sequence[Shapes]) -> dict[str, frozenset[int]]:
    """The axes of outputs of windows that have the same size in all runs, though those of their inputs do not.

    Where data decide, theirs need not; and where these, or a limit, decide, what differs in these runs tells nothing.
    """
    standing: dict[str, frozenset[int]] = {}
    for w in rounding:
        before, after = ([tuple(s[t]) for s in shapes if t in s] for t in (w.source, w.output))
        if not after or len({len(s) for s in after}) > 1 or (w.source and len({len(s) for s in before}) != 1):
            continue
        rank = len(after[0])
        axes = set(range(rank)) if w.axes is None else {a % rank for a in w.axes if -rank <= a < rank}
        if w.source:
            axes = {a for a in axes if a < len(before[0])}
        changing = {a for a in axes if len({s[a] for s in (before if w.source else after)}) > 1}
        if not w.by_data:
            axes = axes if w.limit and not w.source and w.axes is not None else changing
        elif w.source:
            pairs = [(s[w.source], s[w.output]) for s in shapes if w.source in s and w.output in s]
            axes = {a for a in axes if any(was[a] != is_[a] for was, is_ in pairs)}
        still = axes if w.by_data or w.limit else {a for a in axes if len({s[a] for s in after}) == 1}
        if still:
            standing[w.output] = standing.get(w.output, frozenset()) | still
    return standing


def reach(
    proto: onnx.ModelProto,
    rounding: Sequence[Window],
    runs: list[Feeds],
    shapes: list[Shapes],
    measure: Callable[[Feeds], Shapes | None],
) -> None:
    """Add runs with more positions to `runs` and `shapes`, until no window stands still or too much would be computed;
    those behind the last at which one moved are taken back.

    Each symbolic dimension that such a window reads grows alone, so that no two of them are taken for one, and in the
    end all at once. measure: the shapes at a size; None where the model does not take it.
    """
    inputs = symbols(runs[0], proto)
    reachable = [w for w in rounding if not (w.by_data or w.limit)]
    sizes: list[tuple[Symbol, int]] = []

    def added(variant: Feeds) -> bool:
        seen = measure(variant)
        if seen is not None:
            runs.append(variant)
            shapes.append(seen)
        return seen is not None

    for k, s in enumerate(inputs):
        factor, refused, told, last = 2, 0, len(runs), s.size
        while refused < _MOST_REFUSED and _reads(reachable, inputs, s, runs, shapes):
            # Some models take multiples of a size alone.
            base = s.size or 1  # of what is empty, as a past
            tried = [base * factor + 1 + 2 * k, base * factor]
            if not _fits(proto, runs[0], [(s, tried[0])]):
                break
            stood = standing(reachable, shapes)
            size = next((t for t in tried if added(with_sizes(runs[0], [(s, t)]))), None)
            refused += size is None
            if size is not None and standing(reachable, shapes) != stood:
                told, last = len(runs), size
            factor *= 2
        # What no size changed stands at every size for a reason, or out of reach: those sizes told nothing.
        del runs[told:], shapes[told:]
        if last != s.size:
            sizes.append((s, last))
    if len(sizes) > 1 and _fits(proto, runs[0], sizes):
        added(with_sizes(runs[0], sizes))


def _reads(
    rounding: Sequence[Window],
    inputs: Sequence[Symbol],
    symbol: Symbol,
    runs: Sequence[Feeds],
    shapes: Sequence[Shapes],
) -> bool:
    """Whether a window that stands still reads an axis that changes with this symbolic dimension.

    Seen where it changes alone, or with others where it never does.
    """
    still = standing(rounding, shapes)
    if not still:
        return False
    changed = [[s for s in inputs if s.in_(feeds) != s.size] for feeds in runs]
    alone = [seen for c, seen in zip(changed, shapes, strict=True) if c == [symbol]]
    read = alone or [seen for c, seen in zip(changed, shapes, strict=True) if symbol in c]
    return any(
        seen[w.source][a] != shapes[0][w.source][a]
        for w in rounding
        for a in still.get(w.output, ())
        for seen in read
        if w.source in seen and w.source in shapes[0]
    )


def _fits(proto: onnx.ModelProto, example: Feeds, sizes: Sequence[tuple[Symbol, int]]) -> bool:
    """Whether the largest tensor that shape inference finds at these sizes is small enough; none is made."""
    binding = shapes_with(example, sizes)
    shapes, _ = protobuf.inferred_shapes(protobuf.bind_inputs(proto, binding))
    return max(map(prod, (*shapes.values(), *binding.values())), default=0) <= _MOST_ENTRIES


def widened(
    proto: onnx.ModelProto, run: Measured, names: Sequence[str], rounding: Sequence[Window], shapes: Sequence[Shapes]
) -> Widened:
    """Runs like `run` in which windows that stand still give more positions.

    names: the values that are asked for. shapes: of what each window reads and gives, in runs with no axis longer.
    """
    seen = list(shapes)
    sites: dict[str, frozenset[int]] = {}
    runs: list[Measured] = []
    untold: set[str] = set()
    for _ in range(_MOST_ROUNDS):
        now = {o: axes - sites.get(o, frozenset()) for o, axes in standing(rounding, seen).items()}
        if not any(now.values()):
            return Widened(runs, untold, behind(proto, sites))
        sites |= {o: axes | sites.get(o, frozenset()) for o, axes in now.items() if axes}
        runs, more, untold = _longer_runs(proto, run, names, rounding, sites)
        seen += more
    after = behind(proto, sites)
    return Widened(runs, after & set(names), after)


def _longer_runs(
    proto: onnx.ModelProto,
    run: Measured,
    names: Sequence[str],
    rounding: Sequence[Window],
    sites: Mapping[str, frozenset[int]],
) -> tuple[list[Measured], list[Shapes], set[str]]:
    """Runs with the axes of `sites` longer, all at once by amounts of their own and each alone; the shapes of what
    windows read and give in them; and which names were computed neither at once nor in all of the others."""
    after = behind(proto, sites)
    computed = [n for n in names if n in after]
    runs: list[Measured] = []
    shapes: list[Shapes] = []
    missing: list[set[str]] = []
    for copy in _ways(proto, sites):
        probes = probed(copy, [t for t in ports(rounding) if t in after])
        values = as_far_as_it_runs(copy, [*probes.values(), *computed], run.feeds)
        shapes.append({t: tuple(values[p].tolist()) for t, p in probes.items() if p in values})
        missing.append({n for n in computed if n not in values})
        runs.append(Measured(copy, run.feeds, {**run.values, **{n: values[n] for n in computed if n in values}}))
    return runs, shapes, untold(missing)


def ports(rounding: Sequence[Window]) -> list[str]:
    """The tensors that windows read and give, each once."""
    return list(dict.fromkeys(t for w in rounding for t in (w.source, w.output) if t))


def longer_shapes(
    proto: onnx.ModelProto, binding: Shapes, rounding: Sequence[Window], shapes: Sequence[Shapes]
) -> list[Shapes]:
    """What shape inference finds at `binding` where windows that stand still in `shapes` give more positions."""
    seen = list(shapes)
    sites: dict[str, frozenset[int]] = {}
    for _ in range(_MOST_ROUNDS):
        now = standing(rounding, seen)
        if all(axes <= sites.get(o, frozenset()) for o, axes in now.items()):
            break
        sites |= {o: axes | sites.get(o, frozenset()) for o, axes in now.items()}
        bound = (protobuf.bind_inputs(copy, binding) for copy in _ways(proto, sites))
        seen = [*shapes, *(protobuf.inferred_shapes(b)[0] for b in bound)]
    return seen[len(shapes) :]


def _ways(proto: onnx.ModelProto, sites: Mapping[str, frozenset[int]]) -> Iterator[onnx.ModelProto]:
    """The model with these axes longer: all at once by amounts of their own, and each alone where there are several."""
    axes = sorted({a for every in sites.values() for a in every})
    for way in (axes, *([a] for a in axes if len(axes) > 1)):
        yield _longer(proto, {o: {a: 1 + axes.index(a) for a in every if a in way} for o, every in sites.items()})


def _longer(proto: onnx.ModelProto, sites: Mapping[str, Mapping[int, int]]) -> onnx.ModelProto:
    """A copy in which the first position of these axes is there so many times more."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    nodes: list[onnx.NodeProto] = []
    for n in proto.graph.node:
        node = bodies.copy_node(n)
        nodes.append(node)
        for k, o in enumerate(n.output):
            axes = sites.get(o, {})
            parts = [*(f"{o}__short{a}" for a in axes), o]
            node.output[k] = parts[0]
            for short, longer, (axis, more) in zip(parts, parts[1:], axes.items(), strict=False):
                copy.graph.initializer.append(numpy_helper.from_array(np.zeros(more, np.int64), f"{short}_first"))
                nodes.append(helper.make_node("Gather", [short, f"{short}_first"], [f"{short}_more"], axis=axis))
                nodes.append(helper.make_node("Concat", [short, f"{short}_more"], [longer], axis=axis))
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy
