"""What flows into operators that are only defined for some numbers."""

from __future__ import annotations

import pytest

from onnxprune.channels.domains import limited_by
from tests.calibrated import prepare_text

HEAD = "(float[N,6] x) => (float[N,4] y) { a = MatMul (x, w1[6,8]) "
TAIL = " y = MatMul (z, w2[8,4]) }"


def limited(between: str) -> set[str]:
    """Which tensors are limited where this makes z of a."""
    return set(limited_by(prepare_text(HEAD + between + TAIL).channels.graph))


@pytest.mark.parametrize(
    "between",
    [
        "z = Log (a)",
        "b = Add (a, e{0.001}) z = Log (b)",
        "b = Add (a, e[8]) c = Mul (b, f{:0.5}) z = Sqrt (c)",
        "z = Pow (a, p{:0.33})",
        "z = Pow (a, p{:-1.0})",
        "z = Div (e[8], a)",
        "b = Reciprocal (a) z = Tanh (b)",
        "b = MatMul (a, v[8,8]) c = Transpose (b) d = Transpose (c) z = Log (d)",
        "m = ReduceMean <keepdims = 1> (a) z = Div (a, m)",
        "b = Clip (a, low{:-2.0}) z = Log (b)",
    ],
)
def test_limited(between: str):
    """Fails where a layer in front of such an operator is fitted without regard to it."""
    assert "a" in limited(between)


@pytest.mark.parametrize(
    "between",
    [
        "b = Relu (a) c = Add (b, e{0.001}) z = Log (c)",
        "b = Clip (a, low{:0.001}) z = Log (b)",
        "b = Max (a, low{:0.001}) z = Log (b)",
        "b = Mul (a, a) m = ReduceMean <keepdims = 1> (b) r = Sqrt (m) z = Div (a, r)",
        "b = Pow (a, p{:2.0}) z = Sqrt (b)",
        "b = Softmax (a) z = Log (b)",
        "b = Sigmoid (a) z = Div (a, b)",
        "b = Exp (a) s = ReduceSum <keepdims = 1> (b) z = Div (b, s)",
        "z = Pow (a, p{:3.0})",
        "n = ReduceL2 <keepdims = 1> (a) z = Div (a, n)",
    ],
)
def test_free(between: str):
    """Fails where a guard, or a normalization that is written out, keeps a layer from being fitted."""
    assert "a" not in limited(between)
