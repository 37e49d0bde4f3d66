"""Gradients of element-wise operators: y = f(x) gives dx = f'(x) ⊙ dy, summed over the axes that broadcasting added.

Oracle: central differences (tests).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxprune.gradients.build import Builder, Gradients, NoGradient, given
from onnxprune.graph.view import Node

Derivative = Callable[[Builder, Node, str, str], str]  # (builder, node, x, y) → f'(x)

GELU_CUBIC = 0.044715


def identity(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Identity."""
    return {0: given(grads)}


def relu(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """The subgradient at 0 is 0."""
    x = node.inputs[0]
    return {0: b.gated(given(grads), b.op("Greater", node.outputs[0], b.number(0.0, x)), x)}


def thresholded_relu(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """x where x > alpha, else 0."""
    x = node.inputs[0]
    return {0: b.masked(given(grads), b.op("Greater", x, b.number(_float(node, "alpha", 1.0), x)), x)}


def shrink(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """x moved towards 0 by `bias` where |x| > lambd, else 0."""
    x = node.inputs[0]
    outside = b.op("Greater", b.op("Abs", x), b.number(_float(node, "lambd", 0.5), x))
    return {0: b.masked(given(grads), outside, x)}


def negative(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Neg."""
    return {0: b.op("Neg", given(grads))}


def _float(node: Node, name: str, default: float) -> float:
    return float(node.attrs.get(name, default))


# f' of functions of one variable


def _leaky_relu(b: Builder, node: Node, x: str, y: str) -> str:
    return _by_sign(b, x, b.number(_float(node, "alpha", 0.01), x))


def _elu(b: Builder, node: Node, x: str, y: str) -> str:
    """alpha (exp(x) - 1) below 0, where f' = y + alpha."""
    return _by_sign(b, x, b.op("Add", y, b.number(_float(node, "alpha", 1.0), x)))


def _selu(b: Builder, node: Node, x: str, y: str) -> str:
    """gamma x above 0, gamma alpha (exp(x) - 1) below, where f' = y + gamma alpha."""
    alpha, gamma = _float(node, "alpha", 1.67326319217681884765625), _float(node, "gamma", 1.05070102214813232421875)
    return _by_sign(b, x, b.op("Add", y, b.number(gamma * alpha, x)), gamma)


def _celu(b: Builder, node: Node, x: str, y: str) -> str:
    """alpha (exp(x / alpha) - 1) below 0, where f' = y / alpha + 1."""
    scaled = b.op("Div", y, b.number(_float(node, "alpha", 1.0), x))
    return _by_sign(b, x, b.op("Add", scaled, b.number(1.0, x)))


def _by_sign(b: Builder, x: str, below: str, above: float = 1.0) -> str:
    return b.op("Where", b.op("Greater", x, b.number(0.0, x)), b.number(above, x), below)


def _sigmoid(b: Builder, node: Node, x: str, y: str) -> str:
    return b.op("Mul", y, b.op("Sub", b.number(1.0, x), y))


def _hard_sigmoid(b: Builder, node: Node, x: str, y: str) -> str:
    zero, one = b.number(0.0, x), b.number(1.0, x)
    inside = b.op("And", b.op("Greater", y, zero), b.op("Less", y, one))
    return b.op("Where", inside, b.number(_float(node, "alpha", 0.2), x), zero)


def _hard_swish(b: Builder, node: Node, x: str, y: str) -> str:
    """x max(0, min(1, x / 6 + 1 / 2))."""
    three = b.number(3.0, x)
    middle = b.op("Add", b.op("Div", x, three), b.number(0.5, x))
    rising = b.op("Where", b.op("Greater", x, b.number(-3.0, x)), middle, b.number(0.0, x))
    return b.op("Where", b.op("Less", x, three), rising, b.number(1.0, x))


def _swish(b: Builder, node: Node, x: str, y: str) -> str:
    """y = x s with s = sigmoid(alpha x): f' = s + alpha y (1 - s)."""
    alpha = b.number(_float(node, "alpha", 1.0), x)
    s = b.op("Sigmoid", b.op("Mul", alpha, x))
    return b.op("Add", s, b.op("Mul", b.op("Mul", alpha, y), b.op("Sub", b.number(1.0, x), s)))


def _mish(b: Builder, node: Node, x: str, y: str) -> str:
    """y = x t with t = tanh(softplus(x)): f' = t + x (1 - t²) sigmoid(x)."""
    t = b.op("Tanh", b.op("Softplus", x))
    return b.op("Add", t, b.op("Mul", b.op("Mul", x, b.op("Sigmoid", x)), _one_minus_square(b, x, t)))


def _gelu(b: Builder, node: Node, x: str, y: str) -> str:
    """y = x P with P = (1 + erf(x / √2)) / 2, or with `tanh` P = (1 + tanh(√(2/π) (x + c x³))) / 2."""
    one, half, square = b.number(1.0, x), b.number(0.5, x), b.op("Mul", x, x)
    approximate = node.attrs.get("approximate", "none")
    if approximate == "none":
        inner = b.op("Erf", b.op("Mul", x, b.number(math.sqrt(0.5), x)))
        bell = b.op("Exp", b.op("Mul", square, b.number(-0.5, x)))
        slope = b.op("Mul", bell, b.number(1 / math.sqrt(2 * math.pi), x))
    else:
        k = math.sqrt(2 / math.pi)
        line = b.op("Add", b.op("Mul", square, b.number(k * GELU_CUBIC, x)), b.number(k, x))
        inner = b.op("Tanh", b.op("Mul", x, line))
        rise = b.op("Add", b.op("Mul", square, b.number(1.5 * k * GELU_CUBIC, x)), b.number(0.5 * k, x))
        slope = b.op("Mul", _one_minus_square(b, x, inner), rise)
    return b.op("Add", b.op("Mul", half, b.op("Add", one, inner)), b.op("Mul", x, slope))


def _softplus(b: Builder, node: Node, x: str, y: str) -> str:
    return b.op("Sigmoid", x)


def _softsign(b: Builder, node: Node, x: str, y: str) -> str:
    """x / (1 + |x|)."""
    wide = b.op("Add", b.op("Abs", x), b.number(1.0, x))
    return b.op("Reciprocal", b.op("Mul", wide, wide))


def _tanh(b: Builder, node: Node, x: str, y: str) -> str:
    return _one_minus_square(b, x, y)


def _one_minus_square(b: Builder, like: str, t: str) -> str:
    return b.op("Sub", b.number(1.0, like), b.op("Mul", t, t))


def _cos(b: Builder, node: Node, x: str, y: str) -> str:
    return b.op("Neg", b.op("Sin", x))


def _tan(b: Builder, node: Node, x: str, y: str) -> str:
    return b.op("Add", b.op("Mul", y, y), b.number(1.0, x))


def _asin(b: Builder, node: Node, x: str, y: str) -> str:
    return b.op("Reciprocal", b.op("Sqrt", _one_minus_square(b, x, x)))


def _acos(b: Builder, node: Node, x: str, y: str) -> str:
    return b.op("Neg", _asin(b, node, x, y))


def _square_plus(b: Builder, x: str, number: float) -> str:
    return b.op("Add", b.op("Mul", x, x), b.number(number, x))


def _atan(b: Builder, node: Node, x: str, y: str) -> str:
    return b.op("Reciprocal", _square_plus(b, x, 1.0))


def _asinh(b: Builder, node: Node, x: str, y: str) -> str:
    return b.op("Reciprocal", b.op("Sqrt", _square_plus(b, x, 1.0)))


def _acosh(b: Builder, node: Node, x: str, y: str) -> str:
    return b.op("Reciprocal", b.op("Sqrt", _square_plus(b, x, -1.0)))


def _atanh(b: Builder, node: Node, x: str, y: str) -> str:
    return b.op("Reciprocal", _one_minus_square(b, x, x))


def _erf(b: Builder, node: Node, x: str, y: str) -> str:
    return b.op("Mul", b.op("Exp", b.op("Neg", b.op("Mul", x, x))), b.number(2 / math.sqrt(math.pi), x))


def _sqrt(b: Builder, node: Node, x: str, y: str) -> str:
    return b.op("Div", b.number(0.5, x), y)


def _reciprocal(b: Builder, node: Node, x: str, y: str) -> str:
    return b.op("Neg", b.op("Mul", y, y))


DERIVATIVES: Mapping[str, Derivative] = {
    "LeakyRelu": _leaky_relu,
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "Sigmoid": _sigmoid,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Swish": _swish,
    "Mish": _mish,
    "Gelu": _gelu,
    "Softplus": _softplus,
    "Softsign": _softsign,
    "Tanh": _tanh,
    "Sin": lambda b, node, x, y: b.op("Cos", x),
    "Cos": _cos,
    "Tan": _tan,
    "Asin": _asin,
    "Acos": _acos,
    "Atan": _atan,
    "Sinh": lambda b, node, x, y: b.op("Cosh", x),
    "Cosh": lambda b, node, x, y: b.op("Sinh", x),
    "Asinh": _asinh,
    "Acosh": _acosh,
    "Atanh": _atanh,
    "Erf": _erf,
    "Exp": lambda b, node, x, y: y,
    "Log": lambda b, node, x, y: b.op("Reciprocal", x),
    "Sqrt": _sqrt,
    "Reciprocal": _reciprocal,
    "Abs": lambda b, node, x, y: b.op("Sign", x),
}


def unary(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """A function of one variable."""
    return {0: b.product(given(grads), DERIVATIVES[node.op](b, node, node.inputs[0], node.outputs[0]))}


# several operands


def add(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Add and Sum: each operand gets the gradient, summed over the axes along which it was broadcast."""
    g = given(grads)
    return {s: b.sum_to(g, node.outputs[0], node.inputs[s]) for s in slots}


def mean(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Mean of several operands."""
    g = b.product(given(grads), b.number(1 / len(node.inputs), node.outputs[0]))
    return {s: b.sum_to(g, node.outputs[0], node.inputs[s]) for s in slots}


def subtract(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Sub."""
    g = given(grads)
    return {s: b.sum_to(b.op("Neg", g) if s else g, node.outputs[0], node.inputs[s]) for s in slots}


def multiply(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Mul."""
    g = given(grads)
    return {s: b.sum_to(b.product(g, node.inputs[1 - s]), node.outputs[0], node.inputs[s]) for s in slots}


def divide(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """y = p / q: dp = dy / q and dq = -dy y / q."""
    (p, q), y = node.inputs, node.outputs[0]
    scaled = b.op("Div", given(grads), q)
    input_grads: dict[int, str] = {}
    if 0 in slots:
        input_grads[0] = b.sum_to(scaled, y, p)
    if 1 in slots:
        input_grads[1] = b.sum_to(b.op("Neg", b.product(scaled, y)), y, q)
    return input_grads


def remainder(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Mod: y = p - q n with an integer n, so dp = dy and dq = -n dy."""
    (p, q), y = node.inputs, node.outputs[0]
    g = given(grads)
    input_grads: dict[int, str] = {}
    if 0 in slots:
        input_grads[0] = b.sum_to(g, y, p)
    if 1 in slots:
        input_grads[1] = b.sum_to(b.product(g, b.op("Div", b.op("Sub", y, p), q)), y, q)
    return input_grads


def power(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """y = x^e: dx = e x^(e - 1) dy and, where x > 0, de = y log(x) dy. The exponent may have another type."""
    (x, e), y = node.inputs, node.outputs[0]
    g = given(grads)
    input_grads: dict[int, str] = {}
    if 0 in slots:
        input_grads[0] = b.sum_to(b.product(g, _power_slope(b, x, e)), y, x)
    if 1 in slots:
        positive = b.op("Greater", x, b.number(0.0, x))
        log = b.op("Log", b.op("Where", positive, x, b.number(1.0, x)))
        input_grads[1] = b.sum_to(b.cast(b.product(g, b.op("Mul", y, log)), e), y, e)
    return input_grads


def _power_slope(b: Builder, x: str, e: str) -> str:
    exponents = b.array(e)
    if exponents is None:
        exponent = b.cast(e, x)
        return b.op("Mul", exponent, b.op("Pow", x, b.op("Sub", exponent, b.number(1.0, x))))
    values = exponents.astype(np.float64)
    if (values == 2).all():
        return b.op("Mul", x, b.number(values, x))
    lower = b.number(np.where(values == 0, 0.0, values - 1), x)  # 0 · x^-1 is no number at 0
    return b.op("Mul", b.number(values, x), b.op("Pow", x, lower))


def extremum(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Max and Min of several operands: those that tie share the gradient."""
    g, y = given(grads), node.outputs[0]
    if len(node.inputs) == 1:
        return {0: g}
    hits = [b.op("Cast", b.equal(i, y), to=b.types[y]) for i in node.inputs]
    share = b.op("Div", g, b.op("Sum", *hits))
    return {s: b.sum_to(b.product(share, hits[s]), y, node.inputs[s]) for s in slots}


def clip(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """The gradient passes where y lies between the bounds; where x lies beyond one, it belongs to that bound.

    Told from y, so that x need not be kept: onnxruntime can then compute a Clip inside the convolution before it.
    """
    x, y, g = node.inputs[0], node.outputs[0], given(grads)
    input_grads: dict[int, str] = {}
    inside: list[str] = []
    for slot, bound, within, beyond in ((1, "min", "Greater", "Less"), (2, "max", "Less", "Greater")):
        if bound in node.attrs:
            limit = b.number(_float(node, bound, 0.0), x)
        elif node.input(slot):
            limit = node.input(slot)
        else:
            continue
        inside.append(b.op(within, y, limit))
        if slot in slots:
            total = b.total(b.masked(g, b.op(beyond, x, limit), x), range(b.rank(x)), keepdims=False)
            input_grads[slot] = b.reshape_as(total, limit)
    if 0 in slots:
        mask = b.op("And", *inside) if len(inside) == 2 else "".join(inside)
        input_grads[0] = b.gated(g, mask, x) if mask else g
    return input_grads


def prelu(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """x, or slope · x where x < 0."""
    (x, slope), y = node.inputs, node.outputs[0]
    g, below = given(grads), b.op("Less", x, b.number(0.0, x))
    input_grads: dict[int, str] = {}
    if 0 in slots:
        input_grads[0] = b.product(g, b.op("Where", below, slope, b.number(1.0, x)))
    if 1 in slots:
        input_grads[1] = b.sum_to(b.masked(b.product(g, x), below, x), y, slope)
    return input_grads


def where(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Each element of the gradient goes where the value came from."""
    condition, y, g = node.inputs[0], node.outputs[0], given(grads)
    zero = b.number(0.0, y)
    parts = {1: (g, zero), 2: (zero, g)}
    return {s: b.sum_to(b.op("Where", condition, *parts[s]), y, node.inputs[s]) for s in slots}


# types and inference


def cast(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Cast and CastLike between floating-point types; of the second input only the type counts."""
    return {0: b.cast(given(grads), node.inputs[0])}


def dropout(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Dropout in inference is the identity."""
    mode = node.input(2)
    if mode:
        training = b.array(mode)
        if training is None or bool(training.any()):
            raise NoGradient("Dropout in training mode draws random numbers")
    return {0: given(grads)}


TABLE = {
    "Identity": identity,
    "Relu": relu,
    "ThresholdedRelu": thresholded_relu,
    "Shrink": shrink,
    "Neg": negative,
    **dict.fromkeys(DERIVATIVES, unary),
    "Add": add,
    "Sum": add,
    "Mean": mean,
    "Sub": subtract,
    "Mul": multiply,
    "Div": divide,
    "Mod": remainder,
    "Pow": power,
    "Max": extremum,
    "Min": extremum,
    "Clip": clip,
    "PRelu": prelu,
    "Where": where,
    "Cast": cast,
    "CastLike": cast,
    "Dropout": dropout,
}
