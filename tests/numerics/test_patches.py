"""Convolution as a matrix product, against onnxruntime's own operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune.numerics.patches import Window
from onnxprune.runtime.session import Session
from tests.compare import assert_same

Array = NDArray[Any]

# float32 sums of at most a few hundred products.
RTOL = 1e-4


@dataclass(frozen=True)
class Case:
    """A geometry and the sizes that it is tried at: channels per group in and out, spatial size."""

    window: Window
    channels: int
    outputs: int
    size: tuple[int, ...]

    def weight(self, seed: int) -> Array:
        """Seeded weights in the operator's own layout."""
        g = self.window.groups
        if self.window.transposed:
            shape: tuple[int, ...] = (g * self.channels, self.outputs, *self.window.kernel)
        else:
            shape = (g * self.outputs, self.channels, *self.window.kernel)
        return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

    def data(self, seed: int) -> tuple[Array, Array]:
        """Input of two samples, and bias."""
        rng = np.random.default_rng(seed + 1)
        x = rng.standard_normal((2, self.window.groups * self.channels, *self.size)).astype(np.float32)
        return x, rng.standard_normal(self.window.groups * self.outputs).astype(np.float32)


def case(
    kernel: tuple[int, ...],
    size: tuple[int, ...],
    *,
    strides: tuple[int, ...] | None = None,
    dilations: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    groups: int = 1,
    channels: int = 2,
    outputs: int = 3,
    auto_pad: str = "NOTSET",
    transposed: bool = False,
    output_padding: tuple[int, ...] = (),
    output_shape: tuple[int, ...] = (),
) -> Case:
    """A case with the operator's defaults for what is left out."""
    ones = (1,) * len(kernel)
    window = Window(
        kernel,
        strides or ones,
        dilations or ones,
        pads or (0,) * (2 * len(kernel)),
        groups,
        auto_pad,
        transposed,
        output_padding,
        output_shape,
    )
    return Case(window, channels, outputs, size)


def operator(c: Case, x: Array, weight: Array, bias: Array) -> Array:
    """What onnxruntime computes."""
    w = c.window
    attributes: dict[str, Any] = {"strides": w.strides, "dilations": w.dilations, "group": w.groups}
    if w.auto_pad != "NOTSET":
        attributes["auto_pad"] = w.auto_pad
    elif not w.output_shape:
        attributes["pads"] = w.pads
    if w.output_shape:
        attributes["output_shape"] = w.output_shape
    if w.output_padding:
        attributes["output_padding"] = w.output_padding
    node = helper.make_node("ConvTranspose" if w.transposed else "Conv", ["x", "w", "b"], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return Session(model).run({"x": x})["y"]


def product(c: Case, x: Array, weight: Array, bias: Array, positions: Array) -> Array:
    """X W + b at the positions, (g, R, M/g)."""
    w = c.window
    return w.patches(x, positions) @ w.to_matrix(weight) + bias.reshape(w.groups, 1, -1)


def at_positions(c: Case, y: Array, positions: Array) -> Array:
    """The operator's output y at the positions, (g, R, M/g)."""
    rows = c.window.outputs_at(y, positions)
    return rows.reshape(len(rows), c.window.groups, -1).transpose(1, 0, 2)


def check(c: Case, seed: int) -> None:
    """The product equals the operator at every position, and at a random few of them in any order."""
    x, bias = c.data(seed)
    weight = c.weight(seed)
    y = operator(c, x, weight, bias)
    assert c.window.output_size(c.size) == y.shape[2:]
    rows = int(np.prod(y.shape[2:]))
    rng = np.random.default_rng(seed)
    for positions in (np.arange(rows), rng.permutation(rows)[: max(rows // 3, 1)]):
        found = product(c, x, weight, bias, positions)
        assert_same(found, at_positions(c, y, positions), rtol=RTOL, atol=0.0)
    matrix = c.window.to_matrix(weight)
    assert_same(c.window.from_matrix(matrix, x.shape[1]), weight, rtol=0.0, atol=0.0)


CASES = {
    "point": case((1, 1), (4, 5)),
    "1d": case((3,), (9,), strides=(2,), dilations=(2,), pads=(1, 3)),
    "2d-asymmetric-pads": case((3, 2), (6, 7), pads=(0, 1, 2, 3), strides=(2, 1)),
    "2d-dilated": case((3, 3), (9, 8), dilations=(2, 3), pads=(2, 0, 1, 3)),
    "3d": case((2, 3, 1), (4, 5, 3), strides=(1, 2, 2), dilations=(2, 1, 1), pads=(1, 0, 0, 0, 2, 1)),
    "stride-over-kernel": case((1, 2), (7, 8), strides=(3, 3)),
    "same-upper": case((4, 3), (7, 8), strides=(2, 3), auto_pad="SAME_UPPER"),
    "same-lower": case((4, 3), (7, 8), strides=(2, 3), auto_pad="SAME_LOWER"),
    "same-point-stride": case((1, 1), (6, 7), strides=(2, 2), auto_pad="SAME_UPPER"),
    "valid": case((3, 3), (7, 8), strides=(2, 2), auto_pad="VALID"),
    "groups": case((3, 3), (6, 6), groups=3, pads=(1, 1, 1, 1)),
    "depthwise": case((3, 3), (6, 6), groups=5, channels=1, outputs=1, pads=(1, 1, 1, 1)),
    "depthwise-multiplier": case((3, 3), (6, 6), groups=4, channels=1, outputs=2),
    "transposed": case((3, 3), (4, 5), transposed=True),
    "transposed-1d": case((4,), (6,), transposed=True, strides=(3,), pads=(1, 0), output_padding=(2,)),
    "transposed-overlap-groups": case((4, 3), (4, 5), transposed=True, strides=(2, 2), groups=3, pads=(1, 0, 2, 1)),
    "transposed-depthwise": case((2, 2), (4, 5), transposed=True, strides=(2, 2), groups=4, channels=1, outputs=1),
    "transposed-dilated": case((3, 2), (4, 5), transposed=True, dilations=(2, 3), strides=(3, 1), pads=(1, 2, 0, 1)),
    "transposed-output-padding": case(
        (3, 3), (4, 5), transposed=True, strides=(2, 3), pads=(1, 1, 1, 1), output_padding=(1, 2)
    ),
    "transposed-3d": case((2, 2, 3), (3, 2, 3), transposed=True, strides=(2, 1, 2), output_padding=(1, 0, 1)),
    "transposed-pads-over-kernel": case((2, 2), (6, 7), transposed=True, pads=(2, 1, 3, 2)),
    "transposed-same-upper": case((4, 3), (4, 5), transposed=True, strides=(3, 2), auto_pad="SAME_UPPER"),
    "transposed-same-lower": case((4, 3), (4, 5), transposed=True, strides=(3, 2), auto_pad="SAME_LOWER"),
    "transposed-same-gap": case((2, 1), (4, 5), transposed=True, strides=(3, 2), auto_pad="SAME_UPPER"),
    "transposed-same-output-padding": case(
        (3, 4), (4, 5), transposed=True, strides=(2, 2), auto_pad="SAME_UPPER", output_padding=(1, 1)
    ),
    "transposed-output-shape": case((3, 4), (4, 5), transposed=True, strides=(2, 2), output_shape=(8, 9)),
    "transposed-output-shape-upper": case(
        (3, 4), (4, 5), transposed=True, strides=(2, 2), auto_pad="SAME_UPPER", output_shape=(8, 9)
    ),
    "transposed-output-shape-larger": case((2, 2), (4, 5), transposed=True, strides=(2, 2), output_shape=(9, 11)),
    "transposed-valid": case((3, 3), (4, 5), transposed=True, strides=(2, 2), auto_pad="VALID"),
}


@pytest.mark.parametrize("name", CASES)
def test_product_equals_the_operator(name: str) -> None:
    """Fails where an offset, a stride, a group or a flip of the kernel is misplaced."""
    check(CASES[name], seed=len(name))


def test_no_samples_have_no_patches() -> None:
    """Fails where a batch that the model has emptied on its way cannot be taken apart."""
    window = case((3, 3), (5, 5), pads=(1, 1, 1, 1)).window
    assert window.patches(np.zeros((0, 2, 5, 5), np.float32), np.arange(4)).shape == (1, 0, 18)
    assert window.outputs_at(np.zeros((0, 3, 5, 5), np.float32), np.arange(4)).shape == (0, 3)


def test_negative_pads_crop() -> None:
    """Fails where a negative pad is added instead of cut: the product of the cropped input is the reference."""
    c = case((3, 2), (8, 9), pads=(-1, 1, 0, -2))
    x, bias = c.data(0)
    weight = c.weight(0)
    cropped = np.pad(x[:, :, 1:, :7], [(0, 0), (0, 0), (0, 0), (1, 0)])
    plain = case((3, 2), cropped.shape[2:])
    y = operator(plain, cropped, weight, bias)
    assert c.window.output_size(c.size) == y.shape[2:]
    positions = np.arange(int(np.prod(y.shape[2:])))
    found = product(c, x, weight, bias, positions)
    assert_same(found, at_positions(c, y, positions), rtol=RTOL, atol=0.0)


@st.composite
def geometries(draw: st.DrawFn) -> Case:
    """Any geometry that both operators accept, with a map that is large enough for it."""
    rank = draw(st.integers(1, 3))

    def per_axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    kernel, strides = per_axis(1, 3), per_axis(1, 3)
    transposed = draw(st.booleans())
    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    # onnxruntime has no dilation together with SAME.
    dilations = (1,) * rank if auto_pad.startswith("SAME") else per_axis(1, 2)
    pads = (0,) * (2 * rank) if auto_pad != "NOTSET" else (*per_axis(0, 2), *per_axis(0, 2))
    extra = tuple(draw(st.integers(0, s - 1)) for s in strides) if transposed and draw(st.booleans()) else ()
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    both = [a + b for a, b in zip(pads, pads[rank:], strict=False)]
    if transposed:
        # The output must not vanish: (n - 1) s + reach - pads >= 1.
        low = [-(-max(b + 1 - r, 0) // s) + 1 for r, s, b in zip(reach, strides, both, strict=True)]
    else:
        low = [max(r - b, 1) for r, b in zip(reach, both, strict=True)]
    size = tuple(n + draw(st.integers(0, 3)) for n in low)
    window = Window(kernel, strides, dilations, pads, draw(st.integers(1, 3)), auto_pad, transposed, extra)
    return Case(window, draw(st.integers(1, 3)), draw(st.integers(1, 3)), size)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(geometries(), st.integers(0, 1000))
def test_product_equals_the_operator_for_any_geometry(c: Case, seed: int) -> None:
    """Fails where two of the options disagree with each other only in combination."""
    check(c, seed)


@pytest.mark.parametrize("name", ["2d-dilated", "groups", "transposed-overlap-groups"])
def test_one_weight_off_by_a_hundredth_is_seen(name: str) -> None:
    """The mutation check: the comparison above would notice a single weight that is 1 % off."""
    c = CASES[name]
    x, bias = c.data(3)
    weight = c.weight(3)
    y = operator(c, x, weight, bias)
    positions = np.arange(int(np.prod(y.shape[2:])))
    weight.flat[np.abs(weight).argmax()] *= 1.01
    with pytest.raises(AssertionError, match="times the bound"):
        assert_same(product(c, x, weight, bias, positions), at_positions(c, y, positions), rtol=RTOL, atol=0.0)
