"""Gradients of element-wise operators against central differences, away from kinks and ties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnxprune.numerics.arrays import Array
from tests.gradients.differences import compare, one_node, reverse_of, run


def _values(low: float, high: float, shape: tuple[int, ...] = (3, 4), away: tuple[float, ...] = ()) -> Array:
    """Distinct numbers in shuffled order, none within 0.1 of a kink."""
    rng = np.random.default_rng(0)
    values = np.linspace(low, high, int(np.prod(shape)))
    for kink in away:
        near = np.abs(values - kink) < 0.1
        values[near] = kink + 0.1 * np.where(values[near] < kink, -1.0, 1.0)
    return rng.permutation(values).reshape(shape).astype(np.float32)


UNARY: list[tuple[str, int, tuple[float, float], tuple[float, ...], dict[str, Any]]] = [
    ("Identity", 9, (-2, 2), (), {}),
    ("Relu", 9, (-2, 2), (0,), {}),
    ("LeakyRelu", 9, (-2, 2), (0,), {}),
    ("LeakyRelu", 16, (-2, 2), (0,), {"alpha": 0.3}),
    ("Elu", 9, (-2, 2), (0,), {}),
    ("Elu", 9, (-2, 2), (0,), {"alpha": 2.0}),
    ("Selu", 9, (-2, 2), (0,), {}),
    ("Selu", 9, (-2, 2), (0,), {"alpha": 1.5, "gamma": 2.0}),
    ("Celu", 12, (-2, 2), (0,), {}),
    ("Celu", 12, (-2, 2), (0,), {"alpha": 2.0}),
    ("ThresholdedRelu", 10, (-2, 2), (1,), {}),
    ("ThresholdedRelu", 10, (-2, 2), (0.5,), {"alpha": 0.5}),
    ("Shrink", 9, (-2, 2), (-0.5, 0.5), {}),
    ("Shrink", 9, (-2, 2), (-1, 1), {"lambd": 1.0, "bias": 0.25}),
    ("Sigmoid", 9, (-3, 3), (), {}),
    ("HardSigmoid", 9, (-4, 4), (-2.5, 2.5), {}),
    ("HardSigmoid", 9, (-4, 4), (-2, 3), {"alpha": 0.2, "beta": 0.4}),
    ("HardSwish", 14, (-5, 5), (-3, 3), {}),
    ("Mish", 18, (-3, 3), (), {}),
    ("Gelu", 20, (-3, 3), (), {}),
    ("Gelu", 20, (-3, 3), (), {"approximate": "tanh"}),
    ("Swish", 24, (-3, 3), (), {}),
    ("Swish", 24, (-3, 3), (), {"alpha": 1.7}),
    ("Softplus", 9, (-3, 3), (), {}),
    ("Softsign", 9, (-3, 3), (0,), {}),
    ("Tanh", 9, (-2, 2), (), {}),
    ("Sin", 9, (-3, 3), (), {}),
    ("Cos", 9, (-3, 3), (), {}),
    ("Tan", 9, (-1, 1), (), {}),
    ("Asin", 9, (-0.8, 0.8), (), {}),
    ("Acos", 9, (-0.8, 0.8), (), {}),
    ("Atan", 9, (-2, 2), (), {}),
    ("Sinh", 9, (-2, 2), (), {}),
    ("Cosh", 9, (-2, 2), (), {}),
    ("Asinh", 9, (-2, 2), (), {}),
    ("Acosh", 9, (1.5, 4), (), {}),
    ("Atanh", 9, (-0.8, 0.8), (), {}),
    ("Erf", 9, (-2, 2), (), {}),
    ("Exp", 9, (-2, 2), (), {}),
    ("Log", 9, (0.5, 4), (), {}),
    ("Sqrt", 9, (0.5, 4), (), {}),
    ("Reciprocal", 9, (0.7, 4), (), {}),
    ("Reciprocal", 13, (-4, -0.7), (), {}),
    ("Neg", 9, (-2, 2), (), {}),
    ("Abs", 9, (-2, 2), (0,), {}),
    ("Clip", 9, (-2, 2), (-1, 1), {"min": -1.0, "max": 1.0}),
    ("Clip", 9, (-2, 2), (0.5,), {"max": 0.5}),
    ("Clip", 9, (-2, 2), (), {}),
    ("Dropout", 9, (-2, 2), (), {"ratio": 0.3}),
    ("Dropout", 13, (-2, 2), (), {}),
]


@pytest.mark.parametrize(("op", "opset", "span", "kinks", "attrs"), UNARY)
def test_functions_of_one_variable(
    op: str, opset: int, span: tuple[float, float], kinks: tuple[float, ...], attrs: dict[str, Any]
):
    """Fails where f' is not the slope of f."""
    proto, feeds = one_node(op, {"x": _values(*span, away=kinks)}, opset=opset, **attrs)
    compare(proto, feeds, step=2e-3)


BROADCAST = [[(3, 4), (3, 4)], [(3, 4), (1, 4)], [(2, 3, 4), (4,)], [(3, 1), (2, 1, 5)], [(3, 4), ()]]


@pytest.mark.parametrize("shapes", BROADCAST)
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Pow"])
def test_two_operands_sum_over_what_was_broadcast(op: str, shapes: list[tuple[int, ...]]):
    """Fails where an operand's gradient has another shape or misses a factor."""
    proto, feeds = one_node(op, {f"x{i}": _values(0.7, 2.0 + i, s) for i, s in enumerate(shapes)}, opset=9)
    compare(proto, feeds, step=2e-3)


@pytest.mark.parametrize("shapes", [*BROADCAST, [(3, 4), (4,), (3, 1)], [(2, 3)]])
@pytest.mark.parametrize("opset", [9, 13])
@pytest.mark.parametrize("op", ["Sum", "Mean", "Max", "Min"])
def test_any_number_of_operands(op: str, opset: int, shapes: list[tuple[int, ...]]):
    """Fails where the gradient of several operands is not shared as the values were."""
    values = {f"x{i}": _values(-2, 2, s) + np.float32(0.05 * i) for i, s in enumerate(shapes)}
    compare(*one_node(op, values, opset=opset), step=2e-3)


@pytest.mark.parametrize("opset", [9, 13])
@pytest.mark.parametrize("op", ["Max", "Min"])
def test_ties_share(op: str, opset: int):
    """Fails where two equal operands get more than one gradient together."""
    x = _values(-1, 1)
    proto, feeds = one_node(op, {"p": x, "q": x}, opset=opset)
    back = reverse_of(proto, feeds, ["p", "q"])
    seed = _values(1, 2)
    found = run(back.proto, {**feeds, back.seeds["y"]: seed}, list(back.of_tensor.values()))
    for t in "pq":
        np.testing.assert_allclose(found[back.of_tensor[t]], seed / 2, rtol=1e-6)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 0.5, -1.0, 1.0, 0.0, [1.0, 2.0, 0.0, 2.5]])
def test_constant_exponents(exponent: float | list[float]):
    """Fails where x^e with a written e has another slope."""
    values = {"x": _values(0.7, 2.0), "e": np.array(exponent, np.float32)}
    compare(*one_node("Pow", values, constant=["e"], opset=13), step=2e-3)


def test_powers_of_negative_numbers():
    """Fails where the slope of a whole power is taken by logarithms."""
    for e in (2, 3):
        for dtype in (np.float32, np.int64):
            values = {"x": _values(-2.0, -0.5), "e": np.array(e, dtype)}
            compare(*one_node("Pow", values, constant=["e"], opset=13), step=2e-3)
            compare(*one_node("Pow", values, opset=13), step=2e-3, tensors=["x"])


def test_the_power_zero_has_no_slope_at_zero():
    """Fails where 0 · 0^-1 makes the gradient no number."""
    values = {"x": np.array([0.0, 1.0], np.float32), "e": np.array(0.0, np.float32)}
    proto, feeds = one_node("Pow", values, constant=["e"])
    back = reverse_of(proto, feeds, ["x"])
    found = run(back.proto, {**feeds, back.seeds["y"]: np.ones(2, np.float32)}, [back.of_tensor["x"]])
    np.testing.assert_array_equal(found[back.of_tensor["x"]], np.zeros(2))


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (None, 0.5), (-0.5, None), (None, None)])
@pytest.mark.parametrize("computed", [False, True])
def test_bounds_as_inputs(bounds: tuple[float | None, float | None], computed: bool):
    """Fails where Clip passes the gradient outside its bounds, or a bound does not get it there."""
    low, high = (None if v is None else np.array(v, np.float32) for v in bounds)
    values = {"x": _values(-2, 2, away=(-1, 1, 0.5, -0.5)), "low": low, "high": high}
    constant = () if computed else tuple(k for k in ("low", "high") if values[k] is not None)
    compare(*one_node("Clip", values, constant=constant, opset=13), step=2e-3)


def test_no_gradient_passes_at_the_bounds():
    """Fails where an element that lies on a bound has a gradient: as Relu has none at 0."""
    values = {"x": np.array([-2, -1, 0, 1, 2], np.float32), "a": np.float32(-1), "b": np.float32(1)}
    for opset, attrs in ((9, {"min": -1.0, "max": 1.0}), (13, {})):
        kept = values if opset == 13 else {"x": values["x"]}
        proto, feeds = one_node("Clip", kept, constant=list(kept)[1:], opset=opset, **attrs)
        back = reverse_of(proto, feeds, ["x"])
        found = run(back.proto, {**feeds, back.seeds["y"]: np.ones(5, np.float32)}, [back.of_tensor["x"]])
        np.testing.assert_array_equal(found[back.of_tensor["x"]], [0, 0, 1, 0, 0])


@pytest.mark.parametrize("slope", [(4,), (3, 1), (1,), (2, 3, 4)])
@pytest.mark.parametrize("opset", [9, 16])
def test_prelu(slope: tuple[int, ...], opset: int):
    """Fails where the slope's gradient counts positive elements."""
    values = {"x": _values(-2, 2, (2, 3, 4), away=(0,)), "slope": _values(0.1, 0.9, slope)}
    compare(*one_node("PRelu", values, opset=opset), step=2e-3)


@pytest.mark.parametrize("shapes", [[(3, 4), (3, 4)], [(3, 1), (4,)], [(), (2, 3, 4)]])
def test_where(shapes: list[tuple[int, ...]]):
    """Fails where an operand gets the gradient of what was not taken from it."""
    mask = np.random.default_rng(1).integers(0, 2, (3, 4)).astype(bool)
    values = {"mask": mask, "p": _values(-1, 1, shapes[0]), "q": _values(0, 2, shapes[1])}
    compare(*one_node("Where", values, opset=9))


def test_remainders():
    """Fails where the divisor of Mod misses the whole part of the quotient."""
    values = {"p": np.array([5.3, -5.3, 4.7, -1.2], np.float32), "q": np.array([2.0, 2.0, -1.5, 5.0], np.float32)}
    compare(*one_node("Mod", values, opset=13, fmod=1), step=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_casts_return_to_the_type(dtype: type):
    """Fails where a gradient has another type than its tensor."""
    kind = int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    proto, feeds = one_node("Cast", {"x": _values(-1, 1)}, opset=13, to=kind)
    back = reverse_of(proto, feeds, ["x"])
    found = run(back.proto, {**feeds, back.seeds["y"]: _values(0, 1).astype(dtype)}, [back.of_tensor["x"]])
    assert found[back.of_tensor["x"]].dtype == np.float32
    np.testing.assert_allclose(found[back.of_tensor["x"]], _values(0, 1).astype(dtype).astype(np.float32))


def test_casts_to_the_type_of_another_tensor():
    """Fails where CastLike differs from Cast."""
    values = {"x": _values(-1, 1), "like": np.zeros(1, np.float64)}
    compare(*one_node("CastLike", values, opset=15), tensors=["x"])


def test_integers_have_no_gradient():
    """Fails where a gradient passes a Cast to integers."""
    proto, feeds = one_node("Cast", {"x": _values(-1, 1)}, opset=13, to=7)
    back = reverse_of(proto, feeds, ["x"])
    assert not back.of_tensor
    assert not back.missing


def test_training_is_refused():
    """Fails where Dropout in training mode passes as the identity."""
    values = {"x": _values(-1, 1), "ratio": np.float32(0.5), "mode": np.array(True)}
    back = reverse_of(*one_node("Dropout", values, constant=["ratio", "mode"], opset=13), ["x"])
    assert "training" in back.missing["x"]
