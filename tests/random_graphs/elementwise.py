"""Element-wise operators: each moved to where it is smooth, each operand one that broadcasts."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import TensorProto

from tests.random_graphs.build import Build, Live
from tests.random_graphs.maker import Maker

_DOMAINS = {
    **dict.fromkeys(("Acos", "Asin", "Atanh"), "unit"),
    **dict.fromkeys(("Log", "Reciprocal", "Sqrt"), "positive"),
    "Acosh": "above",
    **dict.fromkeys(("Cosh", "Exp", "Sinh", "Tan"), "bounded"),
}
_UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity "
    "LeakyRelu Log Mish Neg Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Tan "
    "Tanh ThresholdedRelu"
).split()
_COMPARISONS = "Equal Greater GreaterOrEqual Less LessOrEqual".split()


def _unary(b: Build, op: str) -> None:
    x = b.tame(b.any(), _DOMAINS.get(op, "any"))
    attrs = {}
    if op in ("LeakyRelu", "Celu", "Elu") and b.chance(50):
        attrs["alpha"] = 0.3
    if op == "Gelu" and b.chance(50):
        attrs["approximate"] = "tanh"
    b.node(op, [x], x.dims, peak=2.0 * x.peak if op in ("Exp", "Cosh", "Sinh", "Selu", "Tan") else None, **attrs)


def _cast(b: Build, op: str) -> None:
    x = b.any()
    wide = b.node("Cast", [x], x.dims, "double", hidden=True, to=TensorProto.DOUBLE)
    b.node("Cast", [wide], x.dims, peak=x.peak, to=TensorProto.FLOAT)


def _bit_cast(b: Build, op: str) -> None:
    x = b.any()
    bits = b.node(op, [x], x.dims, "int", hidden=True, to=TensorProto.INT32)
    b.node(op, [bits], x.dims, peak=x.peak, to=TensorProto.FLOAT)


def _cast_like(b: Build, op: str) -> None:
    x = flag(b)
    b.node(op, [x, b.any() if b.chance(50) else b.floats(0.0)], x.dims)


def _clip(b: Build, op: str) -> None:
    x = b.any()
    low, high = (b.chance(70), b.chance(70))
    if b.opset < 11:
        b.node(op, [x], x.dims, **({"min": -0.5} if low else {}), **({"max": 1.5} if high else {}))
        return
    bounds = [b.floats(-0.5) if low else "", *([b.floats(1.5)] if high else [])]
    b.node(op, [x, *bounds], x.dims)


def _dropout(b: Build, op: str) -> None:
    x = b.any()
    out = b.out(op, x.dims, peak=x.peak)
    mask = [b.out("mask", x.dims, "bool")] if b.chance(30) else []
    b.nodes_of(op, [x], [out, *mask])
    b.live.append(out)


def _arithmetic(b: Build, op: str) -> None:
    x = b.bounded(b.any())
    other = b.operand(x)
    if isinstance(other, Live):
        other = b.bounded(other)
    size = other.peak if isinstance(other, Live) else 2.0
    pair = [other, x] if b.chance(30) else [x, other]
    b.node(op, pair, x.dims, peak=x.peak * size if op == "Mul" else x.peak + size)


def _variadic(b: Build, op: str) -> None:
    x = b.bounded(b.any())
    others = [b.operand(x) for _ in range(1 + b.below(3))]
    operands = [b.bounded(o) if isinstance(o, Live) else o for o in others]
    total = x.peak + sum(o.peak if isinstance(o, Live) else 1.0 for o in operands)
    b.node(op, [x, *operands], x.dims, peak=total if op == "Sum" else None)


def _divide(b: Build, op: str) -> None:
    x = b.bounded(b.any())
    y = b.operand(x)
    by = b.tame(y, "positive") if isinstance(y, Live) else b.per_channel(x, positive=True)
    b.node(op, [x, by], x.dims, peak=2.0 * x.peak)


def _power(b: Build, op: str) -> None:
    x = b.tame(b.any(), "positive")
    way = b.below(3)
    exponent = b.floats(2.0) if way == 0 else b.per_channel(x) if way == 1 else b.tame(b.like(x), "bounded")
    b.node(op, [x, exponent], x.dims, peak=4.0)


def _slopes(b: Build, op: str) -> None:
    x = b.any()
    axis = b.channel_axis(x)
    width = x.dims[axis]
    shape = [width if isinstance(width, int) else 1, *[1] * (x.rank - 1 - axis)]
    b.node(op, [x, b.weight(*([1] if b.chance(20) else shape))], x.dims)


def _modulo(b: Build, op: str) -> None:
    x = b.any()
    b.node(op, [x, b.per_channel(x, positive=True)], x.dims, peak=1.5, fmod=1)


def flag(b: Build) -> Live:
    """A boolean tensor."""
    found = b.pick(lambda t: t.rank > 1 and bool(t.fixed), kind="bool")
    if found is not None and b.chance(70):
        return found
    x = b.any()
    return b.node("Greater", [x, b.operand(x)], x.dims, "bool")


def _where(b: Build, op: str) -> None:
    c = flag(b)
    same = [t for t in b.live[::-1] if t.kind == "float" and t.dims == c.dims]
    x = b.choice(same) if same else b.node("Cast", [c], c.dims, to=TensorProto.FLOAT)
    y = b.operand(x)
    b.node(op, [c, y, x] if b.chance(30) else [c, x, y], x.dims, peak=x.peak + 2.0)


def _compare(b: Build, op: str) -> None:
    x = b.any()
    y = b.operand(x)
    if op == "Equal":
        x = _whole(b, x)
        y = _whole(b, y) if isinstance(y, Live) else b.ints(0)
        y = b.node("Cast", [y], (), "int", hidden=True, to=TensorProto.INT32) if isinstance(y, str) else y
    found = b.node(op, [x, y], x.dims, "bool")
    _read_flag(b, found)


def _read_flag(b: Build, c: Live) -> None:
    """A comparison is of use where a number follows it."""
    if b.chance(60):
        b.node("Cast", [c], c.dims, to=TensorProto.FLOAT)


def _logical(b: Build, op: str) -> None:
    x = flag(b)
    same = [t for t in b.live[::-1] if t.kind == "bool" and t.dims == x.dims and t.name != x.name]
    axis = b.channel_axis(x)
    width = x.dims[axis]
    if same:
        y: Live | str = b.choice(same)
    else:
        y = b.bools([width if isinstance(width, int) else 1, *[1] * (x.rank - 1 - axis)])
    _read_flag(b, b.node(op, [x, y], x.dims, "bool"))


def _not(b: Build, op: str) -> None:
    x = flag(b)
    _read_flag(b, b.node(op, [x], x.dims, "bool"))


def _non_finite(b: Build, op: str) -> None:
    """Log of a Relu is infinite where that is zero, and of a negative number not a number."""
    x = b.any()
    inside = b.node("Relu", [x], x.dims, hidden=True) if op == "IsInf" else x
    log = b.node("Log", [inside], x.dims, hidden=True)
    found = b.node(op, [log], x.dims, "bool")
    b.node("Where", [found, b.per_channel(x), x], x.dims)


def _whole(b: Build, x: Live, to: int = TensorProto.INT32) -> Live:
    """Integers of a few bits."""
    scaled = b.node("Mul", [b.bounded(x), b.floats(3.0)], x.dims, hidden=True)
    return b.node("Cast", [scaled], x.dims, "int", hidden=True, to=to)


def _bits(b: Build, op: str) -> None:
    x = b.any()
    whole = _whole(b, x)
    y = [] if op == "BitwiseNot" else [_whole(b, b.like(x))]
    found = b.node(op, [whole, *y], x.dims, "int", hidden=True)
    b.node("Cast", [found], x.dims, peak=40.0, to=TensorProto.FLOAT)


def _shift(b: Build, op: str) -> None:
    x = b.any()
    whole = _whole(b, b.node("Abs", [x], x.dims, hidden=True), TensorProto.UINT32)
    two = b.node("Cast", [b.ints([2])], (1,), "int", hidden=True, to=TensorProto.UINT32)
    found = b.node(op, [whole, two], x.dims, "int", hidden=True, direction=b.choice(("LEFT", "RIGHT")))
    b.node("Cast", [found], x.dims, peak=100.0, to=TensorProto.FLOAT)


MAKERS: Mapping[str, Maker] = {
    **{op: Maker(_unary) for op in _UNARY},
    "Swish": Maker(_unary, last=24),
    "Cast": Maker(_cast),
    "BitCast": Maker(_bit_cast),
    "CastLike": Maker(_cast_like),
    "Clip": Maker(_clip),
    "Dropout": Maker(_dropout),
    **{op: Maker(_arithmetic, weight=6) for op in ("Add", "Mul", "Sub")},
    **{op: Maker(_variadic, weight=2) for op in ("Max", "Mean", "Min", "Sum")},
    "Div": Maker(_divide, weight=2),
    "Pow": Maker(_power),
    "PRelu": Maker(_slopes, weight=2),
    "Mod": Maker(_modulo),
    "Where": Maker(_where, weight=3),
    **{op: Maker(_compare) for op in _COMPARISONS},
    **{op: Maker(_logical) for op in ("And", "Or", "Xor")},
    "Not": Maker(_not),
    "IsInf": Maker(_non_finite),
    "IsNaN": Maker(_non_finite),
    **{op: Maker(_bits) for op in ("BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor")},
    "BitShift": Maker(_shift),
}
