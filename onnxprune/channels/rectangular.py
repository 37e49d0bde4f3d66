"""Make every tensor lose the same number of positions in each of its rows.

A factor over several axes, say (groups, channels inside), may lose whole rows, whole columns, or equally many
positions of each row: a *balanced set*. Where whole rows leave as many units, or a balanced choice would contradict
another one, the factor is tied along all axes but one; else its rows stay, each with a free choice inside.

A class may stand in rows of several balances (the groups of a convolution before a shuffle and of the one behind it).
Its *cell* is the set of rows that it stands in; equal counts in every cell of a *block* (the cells of the same
balances) give equal counts in every row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_array

from onnxprune.channels.labels import Classes, Factor, Factors, Labels, Pinned, tracked_axes
from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.rules.layout import product_groups
from onnxprune.channels.rules.slicing import kept_positions
from onnxprune.channels.trace import Trace
from onnxprune.graph.view import Graph, Node
from onnxprune.numerics.arrays import Mask
from onnxprune.numerics.components import components


@dataclass(frozen=True, eq=False)
class Settled:
    """Classes after all ties; factors of classes per tensor; block and cell of each class, -1 where it has none."""

    classes: Classes
    factors: dict[str, Factors]
    block: Labels
    cell: Labels


@dataclass(eq=False)
class _Constraint:
    """A balance in terms of classes: class, row and multiplicity of each member; how to give it up."""

    members: Labels
    row: Labels
    times: Labels
    rows: int
    give_up: Callable[[], None]


@dataclass(eq=False)
class _Pass:
    """One look at all factors: the balances that hold so far, by their content, and what had to be tied."""

    trace: Trace
    classes: Classes
    constraints: dict[bytes, _Constraint] = field(default_factory=dict)
    # (tensor, row axes, column axis) → its balance
    places: dict[tuple[str, tuple[int, ...], int], _Constraint] = field(default_factory=dict)
    touched: Mask = field(init=False)
    balanced: Mask = field(init=False)
    changed: bool = False

    def __post_init__(self) -> None:
        self.touched = np.zeros(self.classes.pinned.size, bool)
        self.balanced = np.zeros(self.classes.pinned.size, bool)

    def give_up(self, members: Labels, how: Callable[[], None]) -> None:
        """Tie, unless one of these classes was tied in this pass already: that may have settled this one too."""
        self.changed = True
        involved = np.unique(members)
        if not self.touched[involved].any():
            self.touched[involved] = True
            how()


def settle(trace: Trace) -> Settled:
    """Tie until every tensor is rectangular after any removal that keeps equal counts per cell."""
    while True:
        classes = trace.labels.classes()
        now = _Pass(trace, classes)
        _explicit(now)
        factors = {name: classes.resolve(fs) for name, fs in trace.factors.items()}
        _factors(now, factors)
        if not now.changed:
            _in_order(now)
        if now.changed:
            continue
        block, cell = _cells(now, factors)
        if now.changed or _pin_whole_axes(trace, classes):
            continue
        return Settled(classes, factors, block, cell)


def _explicit(now: _Pass) -> None:
    """The balances that rules have demanded."""
    for b in now.trace.labels.balances:
        resolved = now.classes.of_label[b.labels]
        whole = None if b.unless is None else now.classes.of_label[b.unless]
        if (resolved == resolved[:1]).all() or (whole is not None and (whole == whole[:, :1]).all()):
            continue
        if now.classes.pinned[resolved].all():
            continue

        def tie(labels: Labels = b.labels) -> None:
            now.trace.labels.tie(labels, 0)

        if _demand(now, resolved, tie) is not None:
            now.balanced[resolved] = True


def _demand(now: _Pass, rows: Labels, give_up: Callable[[], None]) -> _Constraint | None:
    """The balance of `rows` (rows, columns) of classes, given up at once where no choice inside rows is possible."""
    count = now.classes.pinned.size
    # The rows of a weight that belong to the same group of a convolution read the same channels: they are one row here.
    rows = np.unique(np.sort(rows, axis=1), axis=0)
    keys, times = np.unique(np.arange(rows.shape[0])[:, None] * count + rows, return_counts=True)
    row, members = np.divmod(keys, count)
    if len(rows) < 2 or now.classes.pinned[members].any() or np.unique(members).size < members.size:
        now.give_up(members, give_up)
        return None
    order = np.argsort(members)
    members, row, times = members[order], row[order], times[order]
    # Rows are numbered by their first member, so that the same balance has the same content wherever it is met.
    _, first = np.unique(row, return_index=True)
    rank = np.empty(rows.shape[0], np.int64)
    rank[row[np.sort(first)]] = np.arange(rows.shape[0])
    content = members.tobytes() + rank[row].tobytes() + times.tobytes()
    constraint = now.constraints.setdefault(content, _Constraint(members, rank[row], times, rows.shape[0], give_up))
    return constraint


def _factors(now: _Pass, factors: dict[str, Factors]) -> None:
    """Every factor over several axes is balanced, or tied to the axis that leaves more units."""
    states = {s.units for s in now.trace.graph.states.values()}
    for name, raws in now.trace.factors.items():
        if all(f.ndim - f.shape.count(1) < 2 for f in factors[name]):
            continue
        for raw in raws:
            resolved = now.classes.resolve((raw,))
            axes = tracked_axes(resolved[0]) if resolved else ()
            if len(axes) < 2 or now.classes.pinned[resolved[0]].all():
                continue
            f = resolved[0]
            column = axes[-1]

            def tie(raw: Factor = raw, f: Factor = f, axes: tuple[int, ...] = axes) -> None:
                _tie_to_one_axis(now.trace, raw, f, axes)

            rows = np.moveaxis(f, column, -1).reshape(-1, f.shape[column])
            # What is kept of a state is listed axis by axis, the same for all rows.
            if name in states or (not now.balanced[f].all() and _best_axis(f, axes) != column):
                now.give_up(f, tie)
                continue
            demanded = _demand(now, rows, tie)
            if demanded is not None:
                now.places[name, axes[:-1], column] = demanded


def _tie_to_one_axis(trace: Trace, raw: Factor, resolved: Factor, axes: Sequence[int]) -> None:
    keep = _best_axis(resolved, axes)
    for a in tracked_axes(raw):
        if a != keep:
            raw = trace.labels.tie(raw, a)


def _best_axis(resolved: Factor, axes: Sequence[int]) -> int:
    return max(axes, key=lambda a: (_units_left(resolved, a), -a))


def _units_left(resolved: Factor, keep: int) -> int:
    """How many classes are left of a factor's when it is tied along every axis but `keep`."""
    classes, places = np.unique(resolved, return_inverse=True)
    rows = np.moveaxis(places.reshape(resolved.shape), keep, 0).reshape(resolved.shape[keep], -1)
    left, right = rows.ravel(), np.repeat(rows[:, 0], rows.shape[1])
    return components(left, right, classes.size)[0]


# where the order of what is kept matters


def _in_order(now: _Pass) -> None:
    """Give up balances whose rows would be read in another order, or at other positions, than the labels say.

    What is kept of a row moves together, so the same column lies at another place in each row.
    """
    graph = now.trace.graph
    by_tensor: dict[str, list[tuple[tuple[int, ...], int, _Constraint]]] = {}
    for (name, rows, column), c in now.places.items():
        by_tensor.setdefault(name, []).append((rows, column, c))
    if not by_tensor:
        return
    for node in graph.every_node:
        follows = _FOLLOWS.get(node.op) if node.domain == "" else None
        if follows is None:
            continue
        for slot, name in ((0, node.input(0)), (1, node.outputs[0])):
            for rows, column, c in by_tensor.get(name, ()):
                if not follows(node, graph, slot == 0, rows, column):
                    now.give_up(c.members, c.give_up)


def _reshape_follows(node: Node, graph: Graph, is_input: bool, rows: tuple[int, ...], column: int) -> bool:
    """Axes that merge must do so row by row."""
    before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    if before is None or after is None:
        return False
    for ins, outs in product_groups(before, after):
        side = ins if is_input else outs
        if column in side and any(r in side and r > column for r in rows):
            return False
    return True


def _gather_follows(node: Node, graph: Graph, is_input: bool, rows: tuple[int, ...], column: int) -> bool:
    axis = int(node.attrs.get("axis", 0)) % max(len(graph.shape(node.inputs[0]) or ()), 1)
    return not is_input or axis != column


def _slice_follows(node: Node, graph: Graph, is_input: bool, rows: tuple[int, ...], column: int) -> bool:
    kept = kept_positions(node, graph)
    positions = None if kept is None else kept.get(column)
    if not is_input or positions is None:
        return True
    return len(positions) > 0 and (positions.step == 1 or len(positions) == 1)


_FOLLOWS: dict[str, Callable[[Node, Graph, bool, tuple[int, ...], int], bool]] = {
    "Reshape": _reshape_follows,
    "Flatten": _reshape_follows,
    "Gather": _gather_follows,
    "Slice": _slice_follows,
}


# blocks and cells

_Members = dict[tuple[int, ...], list[int]]  # the rows that a cell stands in → its classes


def _cells(now: _Pass, factors: dict[str, Factors]) -> tuple[Labels, Labels]:
    """Block and cell of each class; gives up balances that have none with equally many classes in every cell."""
    count = now.classes.pinned.size
    block, cell = np.full(count, -1, np.int64), np.full(count, -1, np.int64)
    constraints = list(now.constraints.values())
    if not constraints:
        return block, cell
    standing: dict[int, list[tuple[int, int, int]]] = {}
    for k, c in enumerate(constraints):
        for m, r, t in zip(c.members.tolist(), c.row.tolist(), c.times.tolist(), strict=True):
            standing.setdefault(m, []).append((k, r, t))
    _, signature = signatures(weight_axes_of(now.trace.graph, factors), count)
    alike: dict[tuple[tuple[int, int], ...], _Members] = {}
    for m, rows in standing.items():
        balances = tuple((k, t) for k, _, t in rows)
        alike.setdefault(balances, {}).setdefault(tuple(r for _, r, _ in rows), []).append(m)
    blocks = cells = 0
    for balances, members_by_cell in alike.items():
        involved = [k for k, _ in balances]
        parts = _parts(members_by_cell, signature, [constraints[k].rows for k in involved])
        if not parts:
            widest = max(involved, key=lambda k: constraints[k].rows)
            now.give_up(constraints[widest].members, constraints[widest].give_up)
        for part in parts:
            for members in part.values():
                block[members], cell[members] = blocks, cells
                cells += 1
            blocks += 1
    return block, cell


def _parts(cells: _Members, signature: Labels, rows: Sequence[int]) -> list[_Members]:
    """The cells of some balances as blocks of even cells: one for each set of weights that carries such classes.

    Where rows lie on weights of their own (the branches that a Concat brings under one normalization), the weights
    share one block, as long as each cell lies on one set of weights. Empty where the cells are not even.
    """
    by_weights: dict[int, _Members] = {}
    for key, members in cells.items():
        for m in members:
            by_weights.setdefault(int(signature[m]), {}).setdefault(key, []).append(m)
    if all(_even(part, rows) for part in by_weights.values()):
        return list(by_weights.values())
    apart = all(len({int(signature[m]) for m in members}) == 1 for members in cells.values())
    return [cells] if apart and _even(cells, rows) else []


def _even(cells: _Members, rows: Sequence[int]) -> bool:
    """Whether all cells are equally large, with room for a choice, and every row of each balance has as many."""
    sizes = {len(m) for m in cells.values()}
    if len(sizes) > 1 or sizes == {1}:
        return False
    for place, count in enumerate(rows):
        per_row = np.bincount([key[place] for key in cells], minlength=count)
        if (per_row != per_row[0]).any():
            return False
    return True


Axes = list[tuple[str, int, int, Labels]]


def weight_axes_of(graph: Graph, factors: dict[str, Factors]) -> Axes:
    """(weight, axis, rows, classes) of every factor of a weight: its last tracked axis, and how many rows that has."""
    axes: Axes = []
    for name, fs in factors.items():
        if name in graph.constants:
            for f in fs:
                *rows, axis = tracked_axes(f)
                axes.append((name, axis, int(np.prod([f.shape[a] for a in rows], dtype=np.int64)), f.ravel()))
    return axes


def signatures(axes: Axes, count: int) -> tuple[coo_array, Labels]:
    """(incidence of classes and axes, an integer per class): equal where the same axes carry two classes alike.

    -1 for classes that no weight carries.
    """
    columns = np.concatenate([np.full(a.size, i) for i, (_, _, _, a) in enumerate(axes)] or [np.zeros(0, np.int64)])
    rows = np.concatenate([a for _, _, _, a in axes] or [np.zeros(0, np.int64)])
    incidence = coo_array((np.ones(rows.size, np.int64), (rows, columns)), shape=(count, max(len(axes), 1))).tocsr()
    incidence.sum_duplicates()
    incidence.sort_indices()
    seen: dict[bytes, int] = {}
    signature = np.full(count, -1, np.int64)
    for c in np.unique(rows).tolist():
        lo, hi = incidence.indptr[c], incidence.indptr[c + 1]
        content = incidence.indices[lo:hi].astype(np.int64).tobytes() + incidence.data[lo:hi].tobytes()
        signature[c] = seen.setdefault(content, len(seen))
    return incidence, signature


def _pin_whole_axes(trace: Trace, classes: Classes) -> bool:
    """Pin a class that is all there is of some tensor's axis; whether there is any."""
    any_pinned = False
    for name, factors in trace.factors.items():
        for f in factors:
            members = classes.of_label[f]
            if classes.pinned[members.flat[0]] or (members != members.flat[0]).any():
                continue
            by = trace.graph.producer.get(name)
            text = f"all channels of {name!r} are coupled, so none of them can go alone"
            node, op = (by.name, by.op) if by is not None else ("", "")
            why = Pinned(name, tracked_axes(f)[0], node, op, Reason(text, Remedy.COUPLED))
            trace.labels.pin(f, why)
            any_pinned = True
    return any_pinned
