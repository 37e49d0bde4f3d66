"""Which parameter of the network a weight is: by what the exporter left of the names, and by the values themselves.

Candidates come in this order: the initializer's own name where it belongs to the module that the node is of; that of a
sibling (the bias of a layer whose weight has kept its name); the module and what PyTorch calls a weight at that place;
the initializer's own name as it is. Where the network's own state dict is given, only a candidate whose values are
those of the file counts, and where none does, values alone may tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.handover.layout import Axes, in_layout, same
from onnxprune.handover.readings import Reading
from onnxprune.handover.scopes import Scope, generated, module_of, named, role_of, scope_of
from onnxprune.handover.state_dict import StateDict
from onnxprune.numerics.arrays import Array, is_float

_MULTIHEAD = "MultiheadAttention"


@dataclass(frozen=True)
class Named:
    """A parameter, and how its axes lie in the weight that a node reads.

    rows: which rows of the parameter these are, where the weight holds some alone: of a table of positions, say, those
    that inputs of one length take.
    """

    name: str
    axes: Axes
    rows: tuple[int, ...] = ()


class Names:
    """The names of a model's weights. state: the network's own parameters, where they are given."""

    def __init__(self, every: Sequence[Reading], state: StateDict | None) -> None:
        self._state = state
        self._known = {*state.values, *state.shared} if state else set[str]()
        self._scopes = {id(r): scope_of(r.node) for r in every}
        self._uses = Counter(r.before.root for r in every if r.before is not None)
        self._by_node: dict[str, list[Reading]] = {}
        self._added: dict[str, Reading] = {}
        for r in every:
            self._by_node.setdefault(r.node.output[0], []).append(r)
            if r.node.op_type == "Add" and r.before is not None:
                self._added[r.node.input[1 - r.slot]] = r
        self._by_size: dict[int, list[str]] = {}
        for name, values in (state.values if state else {}).items():
            self._by_size.setdefault(values.size, []).append(name)

    def candidates(self, r: Reading) -> list[Named]:
        """What a weight may be, the likeliest first."""
        scope, by_role = self._scopes[id(r)], layout_of(r)
        own = [] if r.before is None or r.before.axes is None else [Named(n, r.before.axes) for n in self._own(r)]
        here = [n for n in own if module_of(n.name) in scope.modules]
        others = [n for n in own if n not in here]
        made = [Named(n, by_role) for n in (*self._siblings(r), *self._in_scope(r, scope))]
        # A parameter that is stored once for several is theirs by the modules that read it.
        shared = r.before is not None and self._uses[r.before.root] > 1
        found = [*here, *made, *others] if shared else [*here, *others, *made]
        return list(dict.fromkeys(found))

    def certain(self, r: Reading) -> bool:
        """Whether the exporter kept the weight's name: then it is a parameter, changed or not."""
        modules = self._scopes[id(r)].modules
        return any(not modules or module_of(n) in modules for n in self._own(r))

    def of(self, r: Reading, taken: Iterable[str]) -> Named | None:
        """The parameter that a weight is; None where nothing tells. taken: names that others have already."""
        if self._state is None:
            return next(iter(self.candidates(r)), None)
        for c in self.candidates(r):
            for name in self._spellings(c.name):
                if (found := self._holding(name, r, c.axes)) is not None:
                    return found
        return self._by_value(r, {*taken}) or self._some_rows(r)

    def values_of(self, name: str) -> Array | None:
        """A parameter of the state dict."""
        if self._state is None:
            return None
        return self._state.values.get(self._state.shared.get(name, name))

    def spellings(self, r: Reading) -> list[Named]:
        """The candidates that the state dict has, whatever their values."""
        return [Named(n, c.axes) for c in self.candidates(r) for n in self._spellings(c.name)]

    def _own(self, r: Reading) -> list[str]:
        return [] if r.before is None else [n for n in reversed(r.before.names) if not generated(n)]

    def _siblings(self, r: Reading) -> list[str]:
        """By the module of another weight of the node, or of the Add that a product's bias is added by."""
        role, scope = role_of(r.node, r.slot), self._scopes[id(r)]
        if not role:
            return []
        if r.node.op_type == "MatMul":
            bias = self._added.get(r.node.output[0])
            names = [] if bias is None else [n for n in self._own(bias) if module_of(n) in scope.modules]
            return [named(module_of(n), n.rpartition(".")[2].replace("bias", "weight")) for n in names]
        found = []
        for other in self._by_node[r.node.output[0]]:
            if other is r or other.before is None or self._uses[other.before.root] > 1:
                continue
            ending = role_of(other.node, other.slot)
            found += [named(module_of(n), role) for n in self._own(other) if n.rpartition(".")[2] == ending]
        return found

    def _in_scope(self, r: Reading, scope: Scope) -> list[str]:
        role = role_of(r.node, r.slot)
        if not role:
            return []
        if scope.module_class.endswith(_MULTIHEAD) and r.node.op_type in ("MatMul", "Add"):
            role = f"in_proj_{role}"
        return [named(m, role) for m in scope.modules]

    def _spellings(self, name: str) -> list[str]:
        """A name as the state dict has it, which may be of a module inside the one that was exported, or around it."""
        if self._state is None:
            return [name]
        known = self._known
        if name in known:
            return [name]
        parts = name.split(".")
        inside = [n for i in range(1, len(parts)) if (n := ".".join(parts[i:])) in known and "." in n]
        around = [n for n in known if n.endswith(f".{name}")]
        return inside[:1] or (around if len(around) == 1 else [])

    def _holding(self, name: str, r: Reading, axes: Axes) -> Named | None:
        """The parameter of this name, where it has the values that the file has, in these axes or as they are."""
        values = self.values_of(name)
        if values is None:
            return None
        rank = r.original.ndim
        layouts = [axes, same(rank), *([(1, 0)] if rank == 2 else [])]
        return next((Named(name, a) for a in dict.fromkeys(layouts) if _equal(r.original, values, a)), None)

    def _by_value(self, r: Reading, taken: set[str]) -> Named | None:
        """The only parameter that has these values; of several that nobody has yet, one of the modules around it."""
        if r.original.size < 2:
            return None
        names = self._by_size.get(r.original.size, [])
        found = [f for n in names if (f := self._holding(n, r, same(r.original.ndim))) is not None]
        if len(found) > 1:
            found = [f for f in found if f.name not in taken]
            near = [f for f in found if any(f.name.startswith(f"{m}.") for m in self._scopes[id(r)].modules if m)]
            found = near or found
        return found[0] if len(found) == 1 else None

    def _some_rows(self, r: Reading) -> Named | None:
        """The only table that has all rows of a weight, which an exporter picked by indices that it knew."""
        shape: tuple[int, ...] = r.original.shape
        if self._state is None or len(shape) < 2 or any(s != 1 for s in shape[:-2]) or min(shape[-2:]) < 2:
            return None
        own = r.original.reshape(shape[-2:])
        width = own.shape[-1]
        found = []
        for name, table in self._state.values.items():
            if table.ndim == 2 and len(table) > len(own) and table.shape[-1] == width and table.dtype == own.dtype:
                place = {row.tobytes(): i for i, row in enumerate(table)}
                rows = [place.get(row.tobytes(), -1) for row in own]
                if min(rows) >= 0:
                    found.append(Named(name, (len(shape) - 2, len(shape) - 1), tuple(rows)))
        return found[0] if len(found) == 1 else None


def layout_of(r: Reading) -> Axes:
    """How the parameter of an operator of PyTorch lies in what the node reads: Linear stores (outputs, inputs)."""
    transposed = r.node.op_type == "MatMul" and r.slot == 1
    if r.node.op_type == "Gemm" and r.slot == 1:
        transposed = not any(a.name == "transB" and a.i for a in r.node.attribute)
    return (1, 0) if transposed and len(r.shape) == 2 else same(len(r.shape))


def _equal(stored: Array, parameter: Array, axes: Axes) -> bool:
    values = in_layout(stored, axes)
    if values is None or values.shape != parameter.shape or not is_float(parameter.dtype):
        return False
    return np.array_equal(values, parameter) or np.allclose(values, parameter, rtol=1e-3 if _coarse(values) else 1e-6)


def _coarse(values: Array) -> bool:
    return values.dtype.itemsize < 4
