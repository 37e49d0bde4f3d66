"""Building a graph node by node: live tensors whose sizes are known, weights, and choices that hypothesis can shrink.

Every choice is an integer that hypothesis draws, and 0 is the plainest one. Values are seeded by the names of the
weights, so a graph is its choices. Sizes stay small and values near 1, so that rounding alone moves no result by 1e-4.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import numpy as np
import onnx
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
Dim = int | str  # a symbol, or several joined by "*"
Dims = tuple[Dim, ...]
T = TypeVar("T")

SIZES: tuple[Mapping[str, int], ...] = (
    {"N": 2, "L": 3, "H": 4, "W": 4},
    {"N": 3, "L": 5, "H": 3, "W": 5},
    {"N": 1, "L": 4, "H": 7, "W": 3},
)
"""The sizes of the symbols at which every graph runs; the first is that of the example."""

CHANNELS = (4, 6, 8, 12, 3, 5, 2, 9, 16, 1)
_TYPES = {"float": TensorProto.FLOAT, "bool": TensorProto.BOOL, "int": TensorProto.INT32, "long": TensorProto.INT64}
_RECENT = 5
_TOO_LARGE = 12.0
_MOST_ELEMENTS = 3000


@dataclass(frozen=True)
class Live:
    """A tensor that later nodes may read; `peak` is roughly its largest value."""

    name: str
    dims: Dims
    kind: str = "float"
    peak: float = 1.0

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def fixed(self) -> tuple[int, ...]:
        """The axes of fixed size above 1."""
        return tuple(a for a, d in enumerate(self.dims) if isinstance(d, int) and d > 1)


def extent(dims: Dims, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Sizes of the axes when the symbols have these values."""
    return tuple(d if isinstance(d, int) else int(np.prod([sizes[s] for s in d.split("*")])) for d in dims)


@cache
def _below(n: int) -> st.SearchStrategy[int]:
    return st.integers(0, n - 1)


@dataclass(eq=False)
class Build:
    """A graph under construction."""

    draw: Callable[[st.SearchStrategy[int]], int]
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    inputs: list[Live] = field(default_factory=list)
    live: list[Live] = field(default_factory=list)
    outputs: list[Live] = field(default_factory=list)
    domains: set[str] = field(default_factory=set)
    _count: int = 0

    # choices

    def below(self, n: int) -> int:
        """0 to n - 1."""
        return self.draw(_below(n)) if n > 1 else 0

    def chance(self, percent: int) -> bool:
        """True that often; False where hypothesis shrinks it."""
        return self.below(100) >= 100 - percent

    def choice(self, options: Sequence[T]) -> T:
        """One of these; the first where hypothesis shrinks it."""
        return options[self.below(len(options))]

    def subset(self, options: Sequence[T], least: int = 1) -> list[T]:
        """Some of these in their order, at least `least`."""
        while True:
            found = [o for o in options if self.chance(50)]
            if len(found) >= least:
                return found
            if len(options) <= least:
                return list(options)
            first = self.below(len(options) - least + 1)
            return list(options[first : first + least])

    def permutation(self, n: int) -> list[int]:
        """An order of n things."""
        rest, order = list(range(n)), []
        while rest:
            order.append(rest.pop(self.below(len(rest))))
        return order

    def factor(self, n: int, *, proper: bool = True) -> int:
        """A divisor of n; 1 and n only where no other is left, or not proper."""
        divisors = [d for d in range(1, n + 1) if n % d == 0]
        inner = [d for d in divisors if 1 < d < n]
        return self.choice(inner if proper and inner else divisors)

    def parts(self, n: int) -> list[int]:
        """Two or three positive sizes that add up to n."""
        first = 1 + self.below(n - 1)
        rest = n - first
        if rest > 1 and self.chance(30):
            second = 1 + self.below(rest - 1)
            return [first, second, rest - second]
        return [first, rest]

    # nodes

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{stem.lower()}{self._count}"

    def nodes_of(
        self, op: str, inputs: Iterable[Live | str], outputs: Sequence[Live | None], *, domain: str = "", **attrs: Any
    ) -> None:
        """Append a node; None is an output that is left out."""
        names = [i.name if isinstance(i, Live) else i for i in inputs]
        node = helper.make_node(op, names, [o.name if o else "" for o in outputs], domain=domain, **attrs)
        if self._count % 3:
            node.name = f"/{op}_{self._count}"
        self.nodes.append(node)
        if domain:
            self.domains.add(domain)

    def out(self, op: str, dims: Dims, kind: str = "float", peak: float = 1.0) -> Live:
        """A tensor that the node appended next will compute."""
        return Live(self._name(op), tuple(dims), kind, peak)

    def node(
        self,
        op: str,
        inputs: Iterable[Live | str],
        dims: Dims,
        kind: str = "float",
        *,
        peak: float | None = None,
        hidden: bool = False,
        domain: str = "",
        **attrs: Any,
    ) -> Live:
        """Append a node with one output; others may read that unless it is hidden."""
        inputs = list(inputs)
        largest = max([i.peak for i in inputs if isinstance(i, Live) and i.kind == "float"], default=1.0)
        found = self.out(op, dims, kind, largest if peak is None else peak)
        self.nodes_of(op, inputs, [found], domain=domain, **attrs)
        if not hidden:
            self.live.append(found)
        return found

    def ints(self, values: int | Sequence[int]) -> str:
        """An int64 constant: a vector, or a scalar."""
        name = self._name("ints")
        self.weights[name] = np.array(values, np.int64)
        return name

    def floats(self, values: float | Sequence[float]) -> str:
        """A constant with these values."""
        name = self._name("floats")
        self.weights[name] = np.array(values, np.float32)
        return name

    def bools(self, shape: Sequence[int]) -> str:
        """A seeded random mask."""
        name = self._name("bools")
        self.weights[name] = _seeded(name, shape).random(shape) < 0.5
        return name

    def weight(self, *shape: int, fan: int = 1, positive: bool = False) -> str:
        """Seeded random weights, written in one of the ways in which exporters write them; perhaps shared."""
        way = self.below(24)
        if way == 23:
            alike = [k for k in self.weights if k.startswith(f"w{int(positive)}_") and self.weights[k].shape == shape]
            alike = [k for k in alike if self.weights[k].dtype == np.float32]
            if alike:
                return self.choice(alike)
        name = self._name(f"w{int(positive)}_")
        rng = _seeded(name, shape)
        drawn = rng.uniform(0.5, 1.5, shape) if positive else rng.standard_normal(shape) * fan**-0.5
        values = np.asarray(drawn, np.float32)
        self.weights[name] = values
        if way == 22:
            del self.weights[name]
            self.nodes.insert(0, helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values)))
        elif way == 21:
            return self.node("Identity", [name], shape, hidden=True).name
        elif way == 20 and len(shape) > 1:
            order = self.permutation(len(shape))
            self.weights[name] = np.ascontiguousarray(values.transpose(np.argsort(order)))
            return self.node("Transpose", [name], shape, hidden=True, perm=order).name
        elif way == 19:
            self.weights[name] = values.astype(np.float64)
            return self.node("Cast", [name], shape, hidden=True, to=TensorProto.FLOAT).name
        elif way == 18:
            self.weights[name] = values.reshape(-1)
            return self.node("Reshape", [name, self.ints(list(shape))], shape, hidden=True).name
        return name

    # live tensors

    def pick(self, fits: Callable[[Live], bool] = lambda t: True, kind: str = "float") -> Live | None:
        """A live tensor, most likely a recent one."""
        found = [t for t in reversed(self.live) if t.kind == kind and fits(t)]
        if not found:
            return None
        return self.choice(found) if self.chance(15) else self.choice(found[:_RECENT])

    def source(self, *dims: Dim) -> Live:
        """A new input of the graph, and a layer that reads its channels."""
        x = Live(self._name("x"), dims)
        self.inputs.append(x)
        if self.chance(15):
            self.live.append(x)
        return x

    def image(self, ranks: Sequence[int] = (4, 4, 4, 3, 5), least: int = 1, *, known: bool = True) -> Live:
        """Channels along axis 1, positions behind them: at least `least` on each axis, or any number if not known."""
        rank = self.choice(ranks)

        def fits(t: Live) -> bool:
            if t.rank != rank or not isinstance(t.dims[1], int):
                return False
            return all(d >= least if isinstance(d, int) else not known for d in t.dims[2:])

        found = self.pick(fits)
        if found is None or (not known and self.chance(10)):
            side = max({3: 6, 4: 4 + self.below(2), 5: 3}[rank], least)
            free = not known and self.chance(40)
            positions: Dims = {3: ("L",), 4: ("H", "W"), 5: (3, "H", "W")}[rank] if free else (side,) * (rank - 2)
            found = self.linear(self.source("N", self.choice((3, 4, 2)), *positions), 1, self.width())
        return found

    def sequence(self) -> Live:
        """Rank 3 with channels along the last axis."""
        found = self.pick(lambda t: t.rank == 3 and isinstance(t.dims[2], int) and t.dims[2] > 1)
        return found or self.linear(self.source("N", "L", self.choice((3, 5))), 2, self.width())

    def matrix(self) -> Live:
        """Rank 2 with channels along the last axis."""
        found = self.pick(lambda t: t.rank == 2 and isinstance(t.dims[1], int) and t.dims[1] > 1)
        return found or self.linear(self.source("N", self.choice((4, 7))), 1, self.width())

    def any(self, least: int = 2) -> Live:
        """A float tensor of at least rank `least` with an axis of fixed size above 1."""
        found = self.pick(lambda t: t.rank >= least and bool(t.fixed))
        return found or self.choice((self.matrix, self.image, self.sequence))()

    def width(self) -> int:
        """A number of channels."""
        return self.choice(CHANNELS)

    def channel_axis(self, t: Live) -> int:
        """The axis that most likely carries channels; sometimes any of fixed size."""
        if not t.fixed:
            return t.rank - 1
        if self.chance(15):
            return self.choice(t.fixed)
        last = t.rank < 3 or (t.rank == 3 and t.dims[1] == "L") or 1 not in t.fixed
        return t.fixed[-1] if last else 1

    def bounded(self, t: Live) -> Live:
        """`t`, through a saturating activation where its values are large."""
        if t.peak <= _TOO_LARGE:
            return t
        return self.node(self.choice(("Tanh", "Sigmoid", "Softsign")), [t], t.dims, peak=1.0, hidden=True)

    def tame(self, t: Live, domain: str) -> Live:
        """`t` moved to where an operator is smooth and defined: unit, positive, above one or bounded."""
        if domain == "any":
            return self.bounded(t)
        if domain in ("positive", "above"):
            s = self.node("Sigmoid", [t], t.dims, peak=1.0, hidden=True)
            return self.node("Add", [s, self.floats(0.5 if domain == "positive" else 1.5)], t.dims, hidden=True, peak=2)
        s = self.node("Tanh", [t], t.dims, peak=1.0, hidden=True)
        return s if domain == "bounded" else self.node("Mul", [s, self.floats(0.9)], t.dims, hidden=True)

    def linear(self, t: Live, axis: int, width: int, *, hidden: bool = False) -> Live:
        """A layer from the channels along `axis` to `width` others, in one of the ways to write it."""
        t = self.bounded(t)
        k = t.dims[axis]
        assert isinstance(k, int)
        ways: list[Callable[[], Live]] = []
        dims = (*t.dims[:axis], width, *t.dims[axis + 1 :])
        peak = 2.5 * t.peak

        def product() -> Live:
            y = self.node("MatMul", [t, self.weight(k, width, fan=k)], dims, peak=peak, hidden=True)
            return self.node("Add", [y, self.weight(width)], dims, hidden=hidden) if self.chance(60) else shown(y)

        def shown(y: Live) -> Live:
            if not hidden:
                self.live.append(y)
            return y

        def gemm() -> Live:
            turned = self.chance(50)
            w = self.weight(*((width, k) if turned else (k, width)), fan=k)
            bias = [self.weight(width)] if self.opset < 11 or not self.chance(30) else []
            return self.node("Gemm", [t, w, *bias], dims, peak=peak, hidden=hidden, transB=int(turned))

        def conv() -> Live:
            bias = [] if self.chance(30) else [self.weight(width)]
            w = self.weight(width, k, *[1] * (t.rank - 2), fan=k)
            return self.node("Conv", [t, w, *bias], dims, peak=peak, hidden=hidden)

        def left() -> Live:
            return self.node("MatMul", [self.weight(width, k, fan=k), t], dims, peak=peak, hidden=hidden)

        def einsum() -> Live:
            letters = "abcdefg"[: t.rank]
            terms = f"{letters},{letters[axis]}z->{letters.replace(letters[axis], 'z')}"
            return self.node(
                "Einsum", [t, self.weight(k, width, fan=k)], dims, peak=peak, hidden=hidden, equation=terms
            )

        if axis == t.rank - 1:
            ways.append(product)
        if t.rank == 2 and axis == 1:
            ways.insert(0, gemm)
        if t.rank in (3, 4, 5) and axis == 1:
            ways.insert(0, conv)
        if axis == t.rank - 2 and t.rank > 2:
            ways.append(left)
        if self.opset >= 12 and (not ways or self.chance(20)):
            ways.insert(0, einsum)
        if not ways:
            order = [a for a in range(t.rank) if a != axis] + [axis]
            moved = self.node("Transpose", [t], tuple(t.dims[a] for a in order), hidden=True, perm=order)
            y = self.linear(moved, t.rank - 1, width, hidden=True)
            return self.node("Transpose", [y], dims, hidden=hidden, perm=np.argsort(order).tolist())
        return self.choice(ways)()

    def like(self, t: Live) -> Live:
        """Another tensor of the same size: live already, or a new layer's output."""
        same = [o for o in self.live if o.dims == t.dims and o.kind == "float" and o.name != t.name]
        if same and self.chance(60):
            return self.choice(same[::-1])
        axis = self.channel_axis(t)
        width = t.dims[axis]
        if not isinstance(width, int):
            return t
        others = [
            o
            for o in self.live
            if o.rank == t.rank and o.kind == "float" and isinstance(o.dims[axis], int)
            if all(a == axis or o.dims[a] == t.dims[a] for a in range(t.rank))
        ]
        return self.linear(self.choice(others[::-1]) if others else t, axis, width)

    def per_channel(self, t: Live, *, positive: bool = False) -> str:
        """A constant that broadcasts against `t`, with one value per channel most of the time."""
        ways = self.below(8)
        axes = {self.channel_axis(t)} if ways < 5 else set(self.subset(t.fixed)) if ways < 7 and t.fixed else set()
        shape: list[int] = []
        for a, d in enumerate(t.dims):
            shape.append(d if a in axes and isinstance(d, int) else 1)
        while len(shape) > 1 and shape[0] == 1 and self.chance(60):
            shape.pop(0)
        return self.weight(*(() if not axes and self.chance(50) else shape), positive=positive)

    def operand(self, t: Live) -> Live | str:
        """Something that broadcasts against `t` without changing its size."""
        way = self.below(10)
        if way < 3:
            return self.per_channel(t)
        if way < 8:
            return self.like(t)

        def fits(o: Live) -> bool:
            pairs = zip(o.dims[::-1], t.dims[::-1], strict=False)
            return 0 < o.rank <= t.rank and all(a in (1, b) for a, b in pairs) and o.dims != t.dims

        narrow = self.pick(fits)
        if narrow is not None:
            return narrow
        axes = [a for a in range(1, t.rank) if a != self.channel_axis(t)]
        if not axes:
            return self.per_channel(t)
        dims = tuple(1 if a in axes else d for a, d in enumerate(t.dims))
        return self.reduced("ReduceMean", t, axes, dims, keepdims=1)

    def reduced(self, op: str, t: Live, axes: Sequence[int], dims: Dims, *, keepdims: int, **attrs: Any) -> Live:
        """A reduction, its axes written as the operator set asks for."""
        from_input = 13 if op == "ReduceSum" else 18
        if self.opset >= from_input:
            return self.node(op, [t, self.ints(list(axes))], dims, keepdims=keepdims, **attrs)
        return self.node(op, [t], dims, keepdims=keepdims, axes=list(axes), **attrs)

    def axes_node(self, op: str, t: Live, axes: Sequence[int], dims: Dims, **kw: Any) -> Live:
        """Squeeze or Unsqueeze."""
        if self.opset >= 13:
            return self.node(op, [t, self.ints(list(axes))], dims, t.kind, **kw)
        return self.node(op, [t], dims, t.kind, axes=list(axes), **kw)

    def reshape(self, t: Live, dims: Dims, *, hidden: bool = False) -> Live:
        """Reshape to `dims`, its target constant where that can be, else computed from shapes at run time."""
        target: list[int] = []
        for a, d in enumerate(dims):
            if isinstance(d, int):
                target.append(d)
            else:
                target.append(0 if a < t.rank and t.dims[a] == d else -1)
        if target.count(-1) > 1 or self.chance(20):
            return self.node("Reshape", [t, self.run_time(t, dims)], dims, t.kind, hidden=hidden)
        # Any one entry may be left to the operator, and any that stays in its place may be copied.
        for a, d in enumerate(dims):
            if -1 not in target and self.chance(15):
                target[a] = -1
            elif a < t.rank and t.dims[a] == d and self.chance(15):
                target[a] = 0
        return self.node("Reshape", [t, self.ints(target)], dims, t.kind, hidden=hidden)

    def run_time(self, t: Live, dims: Dims) -> Live:
        """These sizes as exporters compute them: Shape, Gather, Unsqueeze, Concat."""
        known = [t, *self.live, *self.inputs]

        def place(a: int, d: Dim) -> tuple[Live, int] | None:
            if 0 <= a < t.rank and t.dims[a] == d:
                return t, a
            return next(((k, k.dims.index(d)) for k in known if d in k.dims), None)

        entries: list[Live | str] = []
        for a, d in enumerate(dims):
            found = place(a, d)
            if isinstance(d, int) and (found is None or self.chance(60)):
                entries.append(self.ints([d]))
                continue
            sizes: list[tuple[Live, int] | None] = [found]
            if found is None:
                assert isinstance(d, str)
                sizes = [place(-1, symbol) for symbol in d.split("*")]
            factors = [self._size_of(*s) for s in sizes if s is not None]
            for f in factors[1:]:
                factors[0] = self.node("Mul", [factors[0], f], (1,), "long", hidden=True)
            entries.append(factors[0])
        return self.node("Concat", entries, (len(dims),), "long", hidden=True, axis=0)

    def _size_of(self, t: Live, axis: int) -> Live:
        shape = self.node("Shape", [t], (t.rank,), "long", hidden=True)
        if self.chance(50):
            return self.node("Gather", [shape, self.ints([axis])], (1,), "long", hidden=True, axis=0)
        if self.opset >= 10 and self.chance(50):
            bounds = [self.ints([axis]), self.ints([axis + 1]), self.ints([0])]
            return self.node("Slice", [shape, *bounds], (1,), "long", hidden=True)
        one = self.node("Gather", [shape, self.ints(axis)], (), "long", hidden=True, axis=0)
        return self.axes_node("Unsqueeze", one, [0], (1,), hidden=True)

    def small(self, dims: Dims) -> bool:
        """Whether a tensor of this size keeps the graph cheap."""
        return int(np.prod(extent(dims, SIZES[1]))) <= _MOST_ELEMENTS

    # the model

    def model(self) -> onnx.ModelProto:
        """The graph so far, as a model."""
        imports = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, 1) for d in sorted(self.domains))]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [declared(t) for t in self.inputs],
            [declared(t) for t in self.outputs],
            [numpy_helper.from_array(v, k) for k, v in self.weights.items()],
        )
        ir = min(helper.find_min_ir_version_for(imports[:1]), 10)
        return helper.make_model(graph, opset_imports=imports, ir_version=ir)


def declared(t: Live) -> onnx.ValueInfoProto:
    """A tensor as inputs and outputs of a graph declare it."""
    dims = [d if isinstance(d, int) else d.replace("*", "_by_") for d in t.dims]
    return helper.make_tensor_value_info(t.name, _TYPES[t.kind], dims)


def _seeded(name: str, shape: Iterable[int]) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{name}{tuple(shape)}".encode()))


def feeds(inputs: Sequence[Live], sizes: Mapping[str, int], seed: int) -> dict[str, Array]:
    """Seeded random values for the inputs of a graph."""
    rng = np.random.default_rng(seed)
    return {t.name: rng.standard_normal(extent(t.dims, sizes)).astype(np.float32) for t in inputs}
