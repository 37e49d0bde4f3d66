"""If, Loop and Scan: bodies that read outer tensors, with weights of their own or of the main graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx
from onnx import helper, numpy_helper

from tests.random_graphs.build import Build, Live, declared
from tests.random_graphs.maker import Maker

_MOST_ROWS = 4  # of a tensor that a loop stacks


def _body(b: Build, inputs: Sequence[Live], fill: Callable[[], Sequence[Live]]) -> onnx.GraphProto:
    """What `fill` appends, as a body that returns what it returns; weights stay inside, or with the main graph."""
    nodes, weights, live = b.nodes, b.weights, b.live
    own = b.chance(60)
    b.nodes, b.live = [], [*live, *(t for t in inputs if t.kind == "float")]
    b.weights = {} if own else weights
    name = b.out("body", ()).name
    outputs = fill()
    stored = [numpy_helper.from_array(v, k) for k, v in b.weights.items()] if own else []
    body = helper.make_graph(b.nodes, name, [declared(t) for t in inputs], [declared(t) for t in outputs], stored)
    b.nodes, b.weights, b.live = nodes, weights, live
    return body


def _act(b: Build, x: Live) -> Live:
    return b.node(b.choice(("Tanh", "Sigmoid", "Softsign", "Sin")), [x], x.dims, peak=1.0)


def _layers(b: Build, x: Live, axis: int, width: int) -> Live:
    """One layer to `width` channels, or two; the values are bounded."""
    if b.chance(50):
        x = _act(b, b.linear(x, axis, b.width()))
    return _act(b, b.linear(x, axis, width))


def _with_channels(b: Build, least: int = 2) -> tuple[Live, int, int]:
    """A tensor, the axis of its channels, and how many there are."""
    x = b.any(least)
    axis = b.channel_axis(x)
    width = x.dims[axis]
    assert isinstance(width, int)
    return b.bounded(x), axis, width


def _condition(b: Build) -> Live:
    """True at some of the sizes or values of an input, at others not."""
    x = b.choice(b.inputs)
    if b.chance(40):
        number = b.node("ReduceMean", [x], (), hidden=True, keepdims=0)
        return b.node("Greater", [number, b.floats(0.0)], (), "bool", hidden=True)
    shape = b.node("Shape", [x], (x.rank,), "long", hidden=True)
    size = b.node("Gather", [shape, b.ints(0)], (), "long", hidden=True, axis=0)
    is_two = b.node("Equal", [size, b.ints(2)], (), "bool", hidden=True)
    return is_two if b.chance(50) else b.node("Not", [is_two], (), "bool", hidden=True)


def _if(b: Build, op: str) -> None:
    x, axis, width = _with_channels(b)
    new = b.width() if b.chance(60) else width
    dims = (*x.dims[:axis], new, *x.dims[axis + 1 :])
    flag = _condition(b)
    count = 2 if b.chance(20) else 1

    def branch() -> list[Live]:
        found = []
        for _ in range(count):
            way = b.below(4)
            same = [t for t in b.live if t.dims == dims and t.kind == "float"]
            if same and way > 1:
                t = b.choice(same[::-1])
                found.append(_act(b, t) if way == 2 else b.node("Mul", [t, b.per_channel(t)], dims, peak=2 * t.peak))
            else:
                found.append(_layers(b, x, axis, new))
        return found

    bodies = {name: _body(b, [], branch) for name in ("then_branch", "else_branch")}
    outs = [b.out("either", dims, peak=20.0) for _ in range(count)]
    b.nodes_of(op, [flag], outs, **bodies)
    b.live += outs


def _loop(b: Build, op: str) -> None:
    x, axis, width = _with_channels(b)
    stacks = x.rank <= _MOST_ROWS and b.chance(40)
    trips = 2 + b.below(2)
    state = b.out("state", x.dims)
    turn = [b.out("turn", (), "long"), b.out("go", (), "bool"), state]

    def step() -> list[Live]:
        on = b.node("Identity", [turn[1]], (), "bool", hidden=True)
        y = _layers(b, state, axis, width)
        if b.chance(50):
            outer = b.like(x) if b.chance(40) else state
            y = _act(b, b.node("Add", [y, b.bounded(outer)], x.dims))
        return [on, y, _layers(b, y, axis, extra)] if stacks else [on, y]

    extra = b.width()
    body = _body(b, turn, step)
    go: str = ""
    if b.chance(30):
        go = b.bools(())
        b.weights[go] |= True
    last = b.out("last", x.dims)
    stacked = (trips, *x.dims[:axis], extra, *x.dims[axis + 1 :])
    outs = [last, b.out("all", stacked)] if stacks else [last]
    b.nodes_of(op, [b.ints(trips), go, x], outs, body=body)
    b.live += outs[::-1]


def _scan(b: Build, op: str) -> None:
    x, axis, _ = _with_channels(b, 3)
    along = b.choice([a for a in range(x.rank) if a != axis][::-1])
    axis -= along < axis  # without the axis along which it runs
    row = (*x.dims[:along], *x.dims[along + 1 :])
    size, extra = b.width(), b.width()
    state = (*row[:axis], size, *row[axis + 1 :])
    mean = b.reduced("ReduceMean", x, [along], row, keepdims=0)
    first = b.bounded(b.linear(mean, axis, size))
    inputs = [b.out("state", state, peak=first.peak), b.out("row", row, peak=x.peak)]
    other = b.bounded(b.like(x)) if b.chance(30) else None
    if other:
        inputs.append(b.out("row", row, peak=other.peak))
    stacks = b.chance(70)

    def step() -> list[Live]:
        terms = [b.linear(t, axis, size) for t in inputs]
        y = _act(b, b.node("Sum", terms, state))
        return [y, _layers(b, y, axis, extra)] if stacks else [y]

    body = _body(b, inputs, step)
    attrs: dict[str, object] = {"num_scan_inputs": len(inputs) - 1}
    attrs["scan_input_axes"] = [along] * (len(inputs) - 1)
    if b.chance(30):
        attrs["scan_input_directions"] = [1] * (len(inputs) - 1)
    outs = [b.out("last", state)]
    if stacks:
        place = along if b.chance(60) else 0
        given = (*row[:axis], extra, *row[axis + 1 :])
        outs.append(b.out("all", (*given[:place], x.dims[along], *given[place:])))
        attrs["scan_output_axes"] = [place]
        if b.chance(20):
            attrs["scan_output_directions"] = [1]
    b.nodes_of(op, [first, x, *([other] if other else [])], outs, body=body, **attrs)
    b.live += outs[::-1] if stacks else outs


MAKERS: Mapping[str, Maker] = {"If": Maker(_if), "Loop": Maker(_loop), "Scan": Maker(_scan, first=9)}
