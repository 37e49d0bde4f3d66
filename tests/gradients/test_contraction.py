"""Gradients of convolutions and matrix products against central differences."""

from __future__ import annotations

from typing import Any

import pytest

from onnxprune.gradients import rules
from tests.gradients.differences import compare, reverse_of
from tests.gradients.single import compare_any_batch, normal, single

# (spatial size, channels, filters, kernel, attributes)
CONVS: list[tuple[tuple[int, ...], int, int, tuple[int, ...], dict[str, Any]]] = [
    ((6, 7), 3, 4, (3, 3), {"pads": [1, 1, 1, 1]}),
    ((6, 7), 3, 4, (3, 2), {}),
    ((6, 7), 4, 6, (3, 3), {"pads": [0, 1, 2, 1], "group": 2}),
    ((6, 7), 4, 4, (3, 3), {"pads": [1, 1, 1, 1], "group": 4}),
    ((6, 7), 4, 8, (3, 3), {"group": 4, "strides": [2, 2]}),
    ((8, 7), 3, 4, (3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((8, 8), 3, 4, (1, 1), {"strides": [2, 2]}),
    ((8, 8), 4, 6, (3, 3), {"strides": [2, 1], "pads": [1, 0, 1, 2], "group": 2}),
    ((9, 10), 2, 3, (3, 3), {"strides": [3, 2], "dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    ((9, 9), 2, 3, (3, 3), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
    ((5, 5), 2, 3, (1, 1), {"pads": [1, 1, 1, 1]}),  # pads wider than the kernel reaches
    ((5, 5), 2, 3, (2, 2), {"pads": [2, 3, 3, 2]}),
    ((5, 6), 2, 3, (2, 2), {"pads": [2, 3, 3, 2], "strides": [2, 3]}),
    ((5, 5), 2, 3, (5, 5), {"strides": [2, 2]}),  # one window
    ((5, 5), 2, 3, (2, 2), {"strides": [3, 3]}),  # entries that no window reads
    ((7, 8), 2, 3, (3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((7, 8), 2, 3, (3, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ((7, 8), 2, 3, (4, 2), {"auto_pad": "SAME_UPPER"}),
    ((7, 8), 2, 3, (4, 2), {"auto_pad": "SAME_LOWER"}),
    ((7, 8), 2, 3, (3, 3), {"auto_pad": "VALID", "strides": [1, 2]}),
    ((9,), 3, 4, (3,), {"pads": [1, 1]}),
    ((9,), 4, 4, (4,), {"pads": [1, 2], "strides": [2], "group": 2}),
    ((4, 5, 6), 2, 3, (3, 2, 3), {"pads": [1, 0, 1, 1, 1, 1]}),
    ((4, 5, 6), 2, 4, (3, 2, 3), {"pads": [1, 0, 1, 1, 1, 1], "strides": [2, 2, 1], "group": 2}),
]


@pytest.mark.parametrize("opset", [9, 17, 22])
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_conv(case: Any, opset: int):
    size, channels, filters, kernel, attrs = case
    weight = normal(filters, channels // attrs.get("group", 1), *kernel)
    compare(*single("Conv", [(2, channels, *size)], {"w": weight, "b": normal(filters)}, opset=opset, **attrs))


@pytest.mark.parametrize("opset", [9, 10, 17, 22])
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_conv_with_a_computed_kernel_and_bias(case: Any, opset: int):
    size, channels, filters, kernel, attrs = case
    shapes = [(3, channels, *size), (filters, channels // attrs.get("group", 1), *kernel), (filters,)]
    compare(*single("Conv", shapes, opset=opset, **attrs))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("size", "kernel", "attrs"),
    [
        ((18, 17), (3, 3), {"pads": [1, 1, 1, 1]}),  # a map too large for one product over all samples
        ((18, 20), (9, 8), {"strides": [3, 2], "pads": [1, 2, 3, 4]}),  # a kernel of too many places
        ((18, 20), (9, 8), {"dilations": [1, 2], "pads": [0, 1, 0, 2]}),
    ],
)
def test_conv_kernels_of_every_form(groups: int, size: Any, kernel: Any, attrs: Any):
    shapes = [(3, 4, *size), (4, 4 // groups, *kernel)]
    compare(*single("Conv", shapes, group=groups, **attrs))


TRANSPOSED: list[tuple[tuple[int, ...], int, int, tuple[int, ...], dict[str, Any]]] = [
    ((4, 5), 3, 4, (3, 3), {}),
    ((4, 5), 3, 4, (3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 0]}),
    ((4, 5), 4, 6, (2, 2), {"strides": [2, 2], "group": 2}),
    ((4, 5), 4, 4, (4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 4}),
    ((4, 5), 3, 2, (3, 2), {"dilations": [2, 3], "pads": [1, 2, 0, 1], "strides": [1, 2]}),
    ((4, 5), 3, 2, (1, 1), {"strides": [3, 2], "output_padding": [2, 1]}),
    ((4, 5), 3, 2, (3, 3), {"strides": [2, 2], "output_shape": [8, 10]}),
    ((4, 5), 3, 2, (3, 3), {"strides": [2, 2], "output_shape": [8, 10], "auto_pad": "SAME_UPPER"}),
    ((4, 5), 3, 2, (3, 3), {"strides": [2, 2], "output_shape": [8, 10], "auto_pad": "SAME_LOWER"}),
    ((4, 5), 3, 2, (4, 3), {"strides": [3, 2], "auto_pad": "SAME_UPPER"}),
    ((4, 5), 3, 2, (4, 3), {"strides": [3, 2], "auto_pad": "SAME_LOWER"}),
    ((4, 5), 3, 2, (3, 3), {"pads": [2, 2, 2, 2]}),
    ((6,), 3, 4, (4,), {"strides": [2], "pads": [1, 1]}),
    ((3, 4, 3), 2, 3, (2, 3, 2), {"strides": [2, 1, 2], "pads": [0, 1, 0, 0, 1, 1]}),
]


@pytest.mark.parametrize("opset", [9, 17, 22])
@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
def test_conv_transpose(case: Any, opset: int):
    size, channels, filters, kernel, attrs = case
    weight = normal(channels, filters // attrs.get("group", 1), *kernel)
    compare(*single("ConvTranspose", [(2, channels, *size)], {"w": weight, "b": normal(filters)}, opset=opset, **attrs))


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
def test_conv_transpose_with_a_computed_kernel_and_bias(case: Any, opset: int):
    size, channels, filters, kernel, attrs = case
    shapes = [(3, channels, *size), (channels, filters // attrs.get("group", 1), *kernel), (filters,)]
    compare(*single("ConvTranspose", shapes, opset=opset, **attrs))


@pytest.mark.parametrize("opset", [9, 11, 17])
@pytest.mark.parametrize("bias", [(), (1,), (5,), (1, 5), (3, 1), (3, 5)])
@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(trans_a: int, trans_b: int, bias: tuple[int, ...], opset: int):
    shapes = [(4, 3) if trans_a else (3, 4), (5, 4) if trans_b else (4, 5), bias]
    attrs = {"transA": trans_a, "transB": trans_b, "alpha": 0.5, "beta": 1.5}
    compare(*single("Gemm", shapes, opset=opset, **attrs))


@pytest.mark.parametrize("opset", [9, 13])
@pytest.mark.parametrize(
    "shapes",
    [
        [(3, 4), (4, 5)],
        [(2, 3, 4), (4, 5)],
        [(2, 6, 3, 4), (4, 5)],
        [(3, 4), (2, 4, 5)],
        [(2, 3, 4), (2, 4, 5)],
        [(2, 3, 4), (1, 4, 5)],
        [(2, 1, 3, 4), (6, 4, 5)],
        [(4,), (4,)],
        [(4,), (4, 5)],
        [(4,), (2, 4, 5)],
        [(3, 4), (4,)],
        [(2, 6, 3, 4), (4,)],
    ],
    ids=str,
)
def test_matmul(shapes: Any, opset: int):
    compare(*single("MatMul", shapes, opset=opset))


def test_matmul_with_a_weight_on_either_side():
    compare(*single("MatMul", [(2, 3, 4)], {"w": normal(4, 5)}))
    compare(*single("MatMul", [(2, 3, 4)], {"w": normal(5, 3)}, order=["w", "x0"]))


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(3, 4), (4, 5)]),
        ("ij,jk", [(3, 4), (4, 5)]),
        ("ba,cb", [(3, 4), (5, 3)]),
        ("bhqd,bhkd->bhqk", [(2, 3, 4, 5), (2, 3, 6, 5)]),
        ("bqhd,hdc->bqc", [(2, 4, 3, 5), (3, 5, 6)]),
        ("...ij,jk->...ik", [(2, 3, 4), (4, 6)]),
        ("...ij,...jk->...ik", [(2, 3, 4), (1, 4, 6)]),
        ("...i,...i->...", [(2, 3, 4), (2, 1, 4)]),
        ("ij->i", [(3, 4)]),
        ("ij->", [(3, 4)]),
        ("ij->ji", [(3, 4)]),
        ("ijk,il->kl", [(3, 4, 5), (3, 2)]),
        ("i,j,ij->", [(3,), (4,), (3, 4)]),
        ("i,j->ij", [(3,), (4,)]),
        ("...i->...", [(2, 3, 4)]),
    ],
)
def test_einsum(equation: str, shapes: Any):
    compare(*single("Einsum", shapes, equation=equation))


def test_einsum_refuses_a_diagonal():
    model, feeds = single("Einsum", [(3, 3)], equation="ii->i")
    assert "twice" in reverse_of(model, feeds, ["x0"]).missing["x0"]


@pytest.mark.parametrize(
    ("op", "shape", "weight", "attrs"),
    [
        ("Conv", (2, 3, 6, 6), (4, 3, 3, 3), {}),
        ("Conv", (2, 3, 6, 6), (4, 3, 3, 3), {"strides": [2, 2]}),
        ("ConvTranspose", (2, 3, 6, 6), (3, 4, 3, 3), {"strides": [2, 2]}),
        ("Gemm", (2, 3), (3, 4), {}),
        ("MatMul", (2, 5, 3), (3, 4), {}),
        ("Einsum", (2, 5, 3), (3, 4), {"equation": "bij,jk->bk"}),
    ],
)
def test_the_gradient_takes_any_batch(op: str, shape: tuple[int, ...], weight: tuple[int, ...], attrs: Any):
    compare_any_batch(*single(op, [shape], {"w": normal(*weight)}, **attrs))


@pytest.mark.parametrize("size", [(6, 6), (18, 18)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_gradient_of_a_kernel_takes_any_batch(groups: int, size: tuple[int, ...]):
    shapes = [(2, 4, *size), (4, 4 // groups, 3, 3)]
    compare_any_batch(*single("Conv", shapes, group=groups))


def test_every_rule_of_the_family_is_tested():
    assert set(rules.contraction.TABLE) == {"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"}
