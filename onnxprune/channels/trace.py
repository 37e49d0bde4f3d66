"""Walk a graph once and let each operator's rule say how labels pass through it.

A rule is a function `rule(node, trace)`; `rules.TABLE` names the rule of each operator. What the table does not name
pins everything that it touches, with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from onnxprune.channels.foreign import REASONS
from onnxprune.channels.labels import (
    MOST_ON_AXIS,
    Factor,
    Factors,
    Labels,
    LabelSpace,
    Misfit,
    Pinned,
    TooMany,
    along,
    compress,
    lift,
    tracked_axes,
)
from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.graph.quantized import is_dequantize, is_quantize
from onnxprune.graph.view import Graph, Node, Shape, StateGather

Rule = Callable[[Node, "Trace"], None]
Role = str  # "contraction", "inner", "range", "state" or "mixing"
AttentionUnits = str  # "heads" or "head-dim"
_Named = list[tuple[str, Factor]]
TOO_MANY = "reads or makes too many positions to follow"


@dataclass(frozen=True)
class Read:
    """Input `slot` of `node` is read across a tracked axis: removing a channel changes what is read.

    kind: "contraction": a removed channel contributes zero; "inner": the same of a contraction inside the operator,
    with the weights in `slot`; "range": least and greatest number are taken, and 0 is always among them; "state": of an
    operand of a recurrent net that computes with codes, so that a removed unit has to be 0 all the way; "mixing":
    statistics are taken over the kept channels.
    axes: the axes that are read across, for inner contractions and mixing operators.
    """

    node: Node
    slot: int
    kind: Role
    axes: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Linear:
    """A contraction of an activation with weights: what selection reconstructs and refit solves.

    inputs: labels of the input channels, (C,); outputs: labels of the output channels, (M,); None where untracked.
    groups: of a grouped convolution, else 1. The directions of a recurrent net read the same input; their outputs stand
    one after the other.
    """

    node: Node
    data: str
    weight: str
    bias: str
    inputs: Labels | None
    outputs: Labels | None
    groups: int = 1

    @property
    def groups_are_units(self) -> bool:
        """Whether its own groups are the units that it passes on (of a depthwise convolution: single channels)."""
        return self.inputs is not None and self.outputs is not None and whole(self.groups, self.inputs, self.outputs)


def whole(groups: int, *channels: Labels) -> bool:
    """Whether each group of a grouped convolution is one class, the same in all of these: its inputs and its outputs.

    That some output carries a class of the inputs is not enough: behind a residual sum it does.
    """
    if groups == 1:
        return False
    rows = np.concatenate([x.reshape(groups, -1) for x in channels], axis=1)
    return bool((rows == rows[:, :1]).all())


@dataclass(eq=False)
class Trace:
    """The state of one walk: factors of every tensor, labels, and what was met on the way.

    unlabelled: constants with more positions than there is room for; what reads them pins.
    attention: what a product of two activations that carry (heads, head size) leaves as units: "heads", or "head-dim"
    (the same positions of every head). heads: labels that are one for each head, with the
    positions of a head; likely_heads: labels on an axis that both operands of such a product share, with how many
    positions it sums over, where these were no units before it.
    """

    graph: Graph
    attention: AttentionUnits = "heads"
    labels: LabelSpace = field(init=False)
    factors: dict[str, Factors] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    linears: list[Linear] = field(default_factory=list)
    heads: list[tuple[Labels, int]] = field(default_factory=list)
    likely_heads: list[tuple[Labels, int]] = field(default_factory=list)
    consulted: set[str] = field(default_factory=set)
    unlabelled: set[str] = field(default_factory=set)
    table: Mapping[str, Rule] = field(default_factory=dict)
    _nested: list[tuple[Factor, Factor, Pinned]] = field(default_factory=list)
    _stopped: dict[int, Remedy] = field(default_factory=dict)
    _states: dict[str, Factor] = field(default_factory=dict)
    _given: list[tuple[Factor, Pinned]] = field(default_factory=list)

    def __post_init__(self) -> None:
        stored = sum(prod(self.graph.shape(name) or ()) for name in self.graph.constants)
        self.labels = LabelSpace(stored)

    def of(self, name: str) -> Factors:
        """Factors of a tensor; a constant starts with fresh labels on each axis above 1. Raises TooMany."""
        self.consulted.add(name)
        factors = self.factors.get(name)
        if factors is None:
            factors = ()
            c = self.graph.constants.get(name)
            if c is not None:
                if not self.labels.has_room(sum(c.shape)):
                    self.unlabelled.add(name)
                    raise TooMany
                factors = tuple(along(self.labels.fresh(s), a, c.ndim) for a, s in enumerate(c.shape) if s > 1)
            self.factors[name] = factors
        return factors

    def free_axes(self, shape: Shape, axes: Iterable[int]) -> list[Factor]:
        """Fresh labels for axes that a tensor of that shape gets; one with too many positions stays untracked."""
        few = [a for a in axes if shape[a] <= MOST_ON_AXIS and self.labels.has_room(shape[a])]
        return [along(self.labels.fresh(shape[a]), a, len(shape)) for a in few]

    def state_units(self, state: StateGather) -> Factor:
        """The labels of the places of a state that is read, one for each place. Raises TooMany."""
        name = state.units
        if name not in self._states:
            shape = [s if a in state.axes else 1 for a, s in enumerate(self.shape(name))]
            if not self.labels.has_room(prod(shape)):
                raise TooMany
            self._states[name] = self.labels.fresh(prod(shape)).reshape(shape)
        return self._states[name]

    def keep_what_nothing_reads(self, name: str, factors: Factors, node: Node, why: Reason) -> None:
        """Of the units of an output that may change, keep those that no state has which is read, once all is traced."""
        self._given.extend((f, Pinned(name, tracked_axes(f)[0], node.name, node.op, why)) for f in factors)

    def to_pin(self, name: str) -> Factors:
        """What `of` gives; nothing for a constant that has too many: whatever reads it pins all else that it reads."""
        try:
            return self.of(name)
        except TooMany:
            return ()

    def refine(self, name: str, factors: Factors) -> bool:
        """Let a constant start with these factors in place of those of `of`; an axis that none of them tracks stays.

        A factor over several axes leaves positions apart that one for each axis would couple. That holds for the whole
        walk, so only the first to ask for a constant's labels may say; False where others have asked, or `name` is no
        constant: the caller then unifies with what it carries.
        """
        c = self.graph.constants.get(name)
        if c is None or name in self.factors:
            return False
        if not all(_fits(f, c.shape) for f in factors):
            raise RuleError(f"factors {[f.shape for f in factors]} do not fit {name!r} {c.shape}")
        self.consulted.add(name)
        self.factors[name] = tuple(f for f in factors if f.size > 1)
        return True

    def shape(self, name: str) -> Shape:
        """Concrete shape; raises UnknownShape, which the walk turns into a pin."""
        s = self.graph.shape(name)
        if s is None:
            raise UnknownShape(name)
        return s

    def set(self, name: str, factors: Iterable[Factor]) -> None:
        """Set the factors of an output; a factor must broadcast to the tensor's shape. Raises TooMany."""
        if not name:
            return
        shape = self.shape(name)
        kept: list[Factor] = []
        for f in factors:
            g = compress(f)
            if g.size == 0:
                continue
            if g.size == 1:
                by = self.graph.producer[name]
                why = Reason(f"it is all that {by.op} leaves of an axis of {name!r}", Remedy.LAST)
                self.pin(name, [g], by, why)
                continue
            if not _fits(g, shape):
                raise RuleError(f"factor {g.shape} does not fit {name!r} {shape}")
            kept.append(g)
        self.labels.take_room(sum(g.size for g in kept))
        self.factors[name] = tuple(kept)

    def pin(
        self,
        name: str,
        factors: Iterable[Factor],
        node: Node,
        reason: Reason,
        axis: int = -1,
        *,
        structural: bool = False,
    ) -> None:
        """Never remove the channels that these factors track."""
        for f in factors:
            tracked = tracked_axes(f)
            pinned_axis = axis if axis >= 0 or not tracked else tracked[0]
            self.labels.pin(f, Pinned(name, pinned_axis, node.name, node.op, reason, structural))
            if not structural:
                self._stopped.setdefault(node.index, reason.remedy)

    def untrack(self, name: str, factors: Factors, axes: Sequence[int], node: Node, reason: Reason) -> Factors:
        """Factors that no longer track `axes`.

        A factor that tracks other axes too is tied along them, so that whole slices remain the units; one that tracks
        nothing else is pinned with the reason.
        """
        result: list[Factor] = []
        for f in factors:
            hit = [a for a in axes if f.shape[a] > 1]
            if not hit:
                result.append(f)
                continue
            if set(tracked_axes(f)) <= set(hit):
                self.pin(name, [f], node, reason, hit[0])
                continue
            for a in hit:
                f = self.labels.tie(f, a)
            result.append(f)
        return tuple(result)

    def untrack_free(self, name: str, factors: Factors, axes: Sequence[int], node: Node) -> Factors:
        """As `untrack`, for those of `axes` whose size changes with a symbolic dimension.

        Channels lie on such an axis with positions (a flattened feature map), and what counts along it counts others
        at another size.
        """
        why = Reason(f"{node.op} counts along an axis whose size changes with the input", Remedy.RUN_TIME)
        return self.untrack(name, factors, [a for a in axes if self.graph.is_free(name, a)], node, why)

    def on_axis(self, name: str, factors: Factors, axis: int, node: Node) -> Labels | None:
        """The labels along one axis, (n,), with factors that span more axes tied along those; None if untracked."""
        labels: Labels | None = None
        for f in factors:
            if f.shape[axis] == 1:
                continue
            for a in tracked_axes(f):
                if a != axis:
                    f = self.labels.tie(f, a)
            flat = f.ravel()
            if labels is None:
                labels = flat
            else:
                self.labels.unify(labels, flat)
        return labels

    def agree(self, operands: Sequence[tuple[str, Labels | None, int]], node: Node) -> Labels | None:
        """Unify the labels of (name, labels, axis); where an operand is untracked, the others are pinned: then None."""
        loose = next(((name, axis) for name, labels, axis in operands if labels is None), None)
        tracked = [(name, labels, axis) for name, labels, axis in operands if labels is not None]
        for name, labels, axis in tracked:
            if loose is not None:
                self.pin(name, [labels], node, self.untracked_reason(*loose), axis)
            else:
                self.labels.unify(tracked[0][1], labels)
        return tracked[0][1] if tracked and loose is None else None

    def merge(self, operands: Sequence[tuple[str, Factors, Shape]], node: Node, *, broadcast: bool = True) -> Factors:
        """Element-wise with broadcasting: unify the operands' labels place by place; the output's factors.

        Where a tracked axis meets an untracked one of size above 1, or one of size 1 that may be more for other inputs,
        it is untracked (pinned); where it meets a size that is always 1 it is free. broadcast: the axes of an operand
        are the last ones; else they are put in places of their own, and an axis of size 1 there is none of its.
        """
        ndim = max(len(s) for _, _, s in operands)
        lifted = [(n, tuple(lift(f, ndim) for f in fs), (1,) * (ndim - len(s)) + tuple(s)) for n, fs, s in operands]
        for axis in range(ndim):
            carried = [any(f.shape[axis] > 1 for f in o[1]) for o in lifted]
            loose = next(
                (
                    n
                    for (n, _, s), has in zip(lifted, carried, strict=True)
                    if not has and (s[axis] > 1 or (broadcast and self._may_meet(n, s, axis)))
                ),
                None,
            )
            if loose is None or not any(carried):
                continue
            reason = self.untracked_reason(loose, axis - (ndim - len(self.graph.shape(loose) or range(ndim))))
            lifted = [
                (n, self.untrack(n, fs, [axis], node, reason) if any(f.shape[axis] > 1 for f in fs) else fs, s)
                for n, fs, s in lifted
            ]
        merged: _Named = []
        for n, factors, _ in lifted:
            for f in factors:
                merged = self._absorb(merged, (n, f), node)
        return tuple(f for _, f in merged)

    def _may_meet(self, name: str, lifted: Shape, axis: int) -> bool:
        """Whether an operand, of that shape with ones put in front, has more than one position on an axis, or may have
        with other inputs."""
        own = self.graph.shape(name) or ()
        place = axis - (len(lifted) - len(own))
        return lifted[axis] > 1 or (
            place >= 0 and lifted[len(lifted) - len(own) :] == own and self.graph.is_free(name, place)
        )

    def _absorb(self, merged: _Named, operand: tuple[str, Factor], node: Node) -> _Named:
        """Add a factor, unified with those it overlaps; a factor that another one spans is dropped."""
        kept: _Named = []
        name, new = operand
        axes = set(tracked_axes(new))
        covered = False
        for n, f in merged:
            other = set(tracked_axes(f))
            if not axes & other:
                kept.append((n, f))
            elif axes < other:
                self._nest(f, new, name, node)
                covered = True
                kept.append((n, f))
            elif other < axes:
                self._nest(new, f, n, node)
            else:
                self.labels.unify(f, new)
                covered = covered or axes == other
                kept.append((n, f))
        return kept if covered else [*kept, operand]

    def _nest(self, outer: Factor, inner: Factor, name: str, node: Node) -> None:
        """A factor meets one that spans more axes: how they are coupled is settled when the walk is over."""
        axis = tracked_axes(inner)[0]
        reason = Reason("it is the same for all units of what it meets, which go as a whole", Remedy.ANY_UNIT)
        self.labels.take_room(outer.size)
        self._nested.append((outer, inner, Pinned(name, axis, node.name, node.op, reason)))

    def settle(self) -> None:
        """Couple each factor with the wider ones that it met (a rotary table over the head size with all heads, say).

        Where something has decided meanwhile that the wider one only goes as whole slices across the narrower one's
        axes, the narrower one stays and the slices are free. Elsewhere their labels unify, place by place.
        """
        classes = self.labels.classes()
        for outer, inner, why in self._nested:
            resolved = compress(classes.of_label[outer])
            if resolved.size > 1 and not set(tracked_axes(inner)) & set(tracked_axes(resolved)):
                self.labels.pin(inner, why)
            else:
                self.labels.unify(outer, inner)
        self._nested.clear()
        if self._given:
            of_label = self.labels.classes().of_label
            read = np.unique(
                np.concatenate([of_label[f].ravel() for f in self._states.values()] or [np.zeros(0, np.int64)])
            )
            for f, why in self._given:
                lonely = f[~np.isin(of_label[f], read)]
                if lonely.size:
                    self.labels.pin(lonely, why)

    def untracked_reason(self, name: str, axis: int) -> Reason:
        """Why an axis carries no labels, in words for the report, and what would give it some."""
        while (by := self.graph.producer.get(name)) is not None and (is_quantize(by) or is_dequantize(by)):
            name = by.inputs[0]
        if name in self.graph.inputs:
            text = f"meets axis {axis} of the graph input {name!r}, whose size is given from outside"
            return Reason(text, Remedy.INPUT)
        by = self.graph.producer.get(name)
        source = f"{by.op} {by.name!r}" if by is not None else "a constant"
        text = f"meets axis {axis} of {name!r} ({source}), which carries no channels"
        return Reason(text, self._remedy_upstream(name))

    def _remedy_upstream(self, name: str) -> Remedy:
        """What would give a tensor channels: where it has none at all, the remedy of what stopped them on the way.

        Followed back through nodes that stopped nothing, read a single activation and add no elements to it. Where
        other axes carry channels, or the way ends, no one thing can be named.
        """
        while not self.factors.get(name):
            if name in self.graph.inputs:
                return Remedy.INPUT
            by = self.graph.producer.get(name)
            if by is None:
                break
            if by.index in self._stopped:
                return self._stopped[by.index]
            data = [i for i in by.inputs if i and i not in self.graph.constants]
            if len(data) != 1 or by.bodies or not self._fits_in(name, data[0]):
                break
            name = data[0]
        return Remedy.PARTNER

    def _fits_in(self, name: str, source: str) -> bool:
        """Whether a tensor has no more elements than another one, as far as both are known."""
        shapes = self.graph.shape(name), self.graph.shape(source)
        return shapes[0] is not None and shapes[1] is not None and prod(shapes[0]) <= prod(shapes[1])

    def read(self, node: Node, slot: int, kind: Role, axes: Sequence[int] = ()) -> None:
        """Remember that this input is read across a tracked axis."""
        self.reads.append(Read(node, slot, kind, tuple(axes)))

    def visit(self, nodes: Iterable[Node], *, inside: bool = False) -> None:
        """Trace nodes, of the graph or of a body, one after the other.

        inside: a body, which may never have run, so that its shapes are only what inference makes of them: whatever a
        rule cannot make sense of there is pinned.
        """
        unfit = (Misfit, RuleError, ValueError, IndexError) if inside else (Misfit,)
        for node in nodes:
            rule = self.table.get(_operator(node))
            if rule is None:
                self.pin_all(node, _no_rule(node))
                continue
            # A rule that visits a body must not take what is read there for its own.
            outer, self.consulted = self.consulted, set()
            try:
                rule(node, self)
                _pin_unconsulted(node, self)
            except UnknownShape as e:
                self.pin_all(node, unknown_shape(e.args[0]))
            except TooMany:
                self.pin_all(node, Reason(f"{node.op} {TOO_MANY}", Remedy.TOO_MANY))
            except unfit as e:
                why = str(e) if isinstance(e, Misfit) else "the shapes in this branch do not fit together"
                self.pin_all(node, Reason(f"is not valid as it stands: {why}", Remedy.INVALID))
            self.consulted = outer

    def pin_all(self, node: Node, reason: Reason) -> None:
        """Pin what a node and its bodies read and what these give; its outputs carry no channels."""
        given = (name for body in node.bodies for name in body.outputs)
        for name in (*node.inputs, *node.captures, *given):
            if name:
                self.pin(name, self.to_pin(name), node, reason)
        for name in node.outputs:
            if name:
                self.factors[name] = ()


class UnknownShape(Exception):
    """A rule needs the shape of a tensor that has none."""


class RuleError(Exception):
    """A rule produced factors that do not fit its output: a bug in the rule."""


def _fits(f: Factor, shape: Shape) -> bool:
    return f.ndim == len(shape) and all(a in (1, b) for a, b in zip(f.shape, shape, strict=True))


def walk(graph: Graph, table: Mapping[str, Rule], attention: AttentionUnits = "heads") -> Trace:
    """Trace every node, then pin the graph's outputs."""
    trace = Trace(graph, attention, table=table)
    for name in graph.inputs:
        trace.factors[name] = ()
    trace.visit(graph.nodes)
    end = Node(len(graph.every_node), "graph output", "output", "", tuple(graph.outputs), (), {})
    for name in graph.outputs:
        why, reader = Reason(f"the graph output {name!r} keeps its shape", Remedy.OUTPUT), end
        if name in graph.read_by:
            op, called = graph.read_by[name]
            why = Reason(f"{op} reads {name!r}, and is not followed, so that keeps its shape", Remedy.UNKNOWN)
            reader = replace(end, name=called or op, op=op)
        trace.pin(name, trace.to_pin(name), reader, why)
    for tensors in graph.balanced:
        _balance(trace, tensors)
    for one, other in graph.alike:
        _couple(trace, one, other)
    trace.labels.lift_limit()
    trace.settle()
    return trace


def _balance(trace: Trace, tensors: Sequence[str]) -> None:
    """The last axes of these tensors keep equally many channels."""
    labels = _of_last_axes(trace, tensors)
    if labels is not None:
        trace.labels.balance(np.stack(labels))


def _couple(trace: Trace, one: str, other: str) -> None:
    """The last axes of these tensors keep the same channels."""
    labels = _of_last_axes(trace, (one, other))
    if labels is not None:
        trace.labels.unify(*labels)


def _of_last_axes(trace: Trace, tensors: Sequence[str]) -> list[Labels] | None:
    """The labels along the last axis of each, equally many; None, with all of them pinned, where some have none."""
    rows = [(t, trace.factors.get(t, ()), len(trace.graph.shape(t) or ()) - 1) for t in tensors]
    found = [next((f for f in fs if tracked_axes(f) == (axis,)), None) for _, fs, axis in rows]
    labels = [f.ravel() for f in found if f is not None]
    if len(labels) == len(rows) and len({x.size for x in labels}) == 1:
        return labels
    for name, factors, _ in rows:
        if factors:
            why = Reason("it has to keep as many channels as its like, some of which stay", Remedy.PARTNER)
            trace.pin(name, factors, trace.graph.producer[name], why)
    return None


def _operator(node: Node) -> str:
    return f"{node.domain}.{node.op}" if node.domain else node.op


def _no_rule(node: Node) -> Reason:
    operator = _operator(node)
    own = REASONS.get(operator)
    if own is not None:
        return Reason(f"{operator} {own.text}", own.remedy)
    remedy = Remedy.FUSED if node.domain == "com.microsoft" else Remedy.NO_RULE
    if node.bodies:
        return Reason(f"{operator} reads it from inside its body, which is not traced", remedy)
    return Reason(f"{operator} has no channel rule; it may mix or reorder channels", remedy)


def unknown_shape(name: str) -> Reason:
    """Why what reads a tensor without a known shape pins."""
    return Reason(f"the shape of {name!r} is not known", Remedy.SHAPES)


def setting(node: Node) -> Reason:
    """Why nothing in an index, a bound or a condition may go."""
    return Reason(f"{node.op} reads it as a setting", Remedy.NO_CHANNELS)


def _pin_unconsulted(node: Node, trace: Trace) -> None:
    """An input whose labels the rule did not look at is an index, a bound or a setting: nothing in it may go."""
    for name in node.inputs:
        if name and name not in trace.consulted:
            trace.pin(name, trace.to_pin(name), node, setting(node), structural=True)


def split_rows(labels: Labels, rows: int) -> Labels:
    """(n,) labels as (rows, n / rows)."""
    return labels.reshape(rows, labels.size // rows)
