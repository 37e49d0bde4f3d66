"""Gradients of resampling against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from onnxprune.numerics.arrays import Array
from tests.gradients.differences import compare, reverse_of
from tests.gradients.single import compare_any_batch, single


def _floats(*values: float) -> Array:
    return np.array(values, np.float32)


def _resized(shape: tuple[int, ...], factors: tuple[float, ...], opset: int, form: str = "scales", **attrs: Any) -> Any:
    """A Resize to factors × the sizes of `shape`, given as scales or as sizes."""
    if opset < 11:
        op, order = ("Upsample" if opset < 10 else "Resize"), ["x0", "scales"]
        return single(op, [shape], {"scales": _floats(*factors)}, order=order, opset=opset, **attrs)
    if form == "scales":
        weights = {"roi": _floats(), "scales": _floats(*factors)}
        return single("Resize", [shape], weights, order=["x0", "roi", "scales"], opset=opset, **attrs)
    sizes = np.array([int(n * f) for n, f in zip(shape, factors, strict=True)], np.int64)
    weights = {"roi": _floats(), "scales": _floats(), "sizes": sizes}
    return single("Resize", [shape], weights, order=["x0", "roi", "scales", "sizes"], opset=opset, **attrs)


FACTORS = [(1, 1, 2, 2), (1, 1, 2, 3), (1, 1, 1.5, 2), (1, 1, 0.5, 0.5), (1, 1, 0.6, 1), (1, 1, 1, 2.3)]


@pytest.mark.parametrize("opset", [9, 10])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("factors", FACTORS)
def test_with_scales_only(factors: tuple[float, ...], mode: str, opset: int):
    if opset == 9 and min(factors) < 1:
        pytest.skip("Upsample only enlarges")
    compare(*_resized((2, 3, 4, 5), factors, opset, mode=mode))


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("form", ["scales", "sizes"])
@pytest.mark.parametrize(
    "attrs",
    [
        {"mode": "nearest"},
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        {"mode": "nearest", "nearest_mode": "ceil"},
        {"mode": "linear"},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
        {"mode": "cubic"},
        {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("factors", FACTORS)
def test_modes(factors: tuple[float, ...], attrs: dict[str, Any], form: str, opset: int):
    compare(*_resized((2, 3, 4, 5), factors, opset, form, **attrs))


@pytest.mark.parametrize(
    ("shape", "factors", "attrs"),
    [
        ((2, 3, 4), (1, 1, 2), {"mode": "nearest"}),
        ((2, 3, 4), (1, 2, 2), {"mode": "nearest"}),  # channels too
        ((2, 4, 5, 3), (1, 2, 1.5, 1), {"mode": "linear"}),  # channels last
        ((2, 2, 3, 3, 4), (1, 1, 2, 2, 2), {"mode": "nearest"}),
        ((2, 2, 3, 3, 4), (1, 1, 2, 1.5, 2), {"mode": "linear"}),
        ((2, 3, 8, 6), (1, 1, 0.5, 0.5), {"mode": "linear", "antialias": 1}),
        ((2, 3, 4, 5), (1, 1, 1.1, 1.1), {"mode": "linear"}),  # as many places along one axis as before
    ],
    ids=str,
)
def test_other_layouts(shape: tuple[int, ...], factors: tuple[float, ...], attrs: dict[str, Any]):
    compare(*_resized(shape, factors, 18, **attrs))


def test_axes_name_what_is_resized():
    order = ["x0", "", "scales"]
    compare(*single("Resize", [(2, 3, 4, 5)], {"scales": _floats(2, 1.5)}, order=order, axes=[3, 2], mode="linear"))


def test_any_batch():
    for mode in ("nearest", "linear"):
        compare_any_batch(*_resized((2, 3, 4, 5), (1, 1, 2, 2), 18, mode=mode))


@pytest.mark.parametrize(
    ("factors", "attrs", "why"),
    [
        ((2, 1, 1, 1), {"mode": "nearest"}, "batch"),
        ((1, 1, 2, 2), {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}, "extrapolates"),
        ((1, 1, 2, 2), {"mode": "linear", "keep_aspect_ratio_policy": "not_larger"}, "keep_aspect_ratio_policy"),
    ],
)
def test_refusals(factors: tuple[float, ...], attrs: dict[str, Any], why: str):
    crop = "tf_crop_and_resize" in attrs.values()
    model, feeds = _resized((2, 3, 4, 5), factors, 18, "sizes" if "not_larger" in attrs.values() else "scales", **attrs)
    if crop:
        model.graph.initializer[0].CopyFrom(_roi())
    assert why in reverse_of(model, feeds, ["x0"]).missing["x0"]


def _roi() -> Any:
    return numpy_helper.from_array(_floats(0, 0, 0.1, 0.1, 1, 1, 0.9, 0.9), "roi")


@pytest.mark.parametrize(
    ("opset", "attrs"), [(9, {}), (11, {"mode": "DCR"}), (11, {"mode": "CRD"}), (13, {"mode": "CRD"})]
)
def test_depth_to_space(opset: int, attrs: dict[str, Any]):
    compare_any_batch(*single("DepthToSpace", [(2, 12, 3, 2)], opset=opset, blocksize=2, **attrs))


@pytest.mark.parametrize("opset", [9, 13])
def test_space_to_depth(opset: int):
    compare_any_batch(*single("SpaceToDepth", [(2, 3, 6, 4)], opset=opset, blocksize=2))
