"""Gradients of layout operators against central differences, at the opsets where their forms differ."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from onnxprune.numerics.arrays import Array
from tests.gradients.differences import compare, one_node, reverse_of

SHAPE = (2, 3, 4, 5)


def _x(shape: Sequence[int] = SHAPE, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


def _check(op: str, inputs: Mapping[str, Array | None], *, opset: int, computed: bool = False, **kwargs: Any) -> None:
    """Compare for `x`; the other inputs are constants, or fed."""
    constant = [] if computed else [k for k, v in inputs.items() if k != "x" and v is not None]
    compare(*one_node(op, inputs, opset=opset, constant=constant, **kwargs))


@pytest.mark.parametrize(
    ("op", "opset", "shape", "rest", "attrs"),
    [
        ("Reshape", 9, SHAPE, _ints(0, -1, 10), {}),
        ("Reshape", 14, SHAPE, _ints(-1), {}),
        ("Flatten", 9, SHAPE, None, {}),
        ("Flatten", 13, SHAPE, None, {"axis": -1}),
        ("Flatten", 13, SHAPE, None, {"axis": 0}),
        ("Squeeze", 9, (2, 1, 3, 1), None, {"axes": [1]}),
        ("Squeeze", 11, (2, 1, 3, 1), None, {}),
        ("Squeeze", 13, (2, 1, 3, 1), _ints(-1), {}),
        ("Unsqueeze", 9, (2, 3), None, {"axes": [0, 3]}),
        ("Unsqueeze", 13, (2, 3), _ints(-1, 1), {}),
        ("Transpose", 9, SHAPE, None, {}),
        ("Transpose", 13, SHAPE, None, {"perm": [2, 0, 3, 1]}),
        ("Expand", 9, (2, 1, 4), _ints(3, 2, 5, 4), {}),
        ("Expand", 13, (2, 3, 1), _ints(1, 1), {}),
        ("Tile", 9, (2, 3), _ints(2, 3), {}),
        ("Tile", 13, (2, 3, 2), _ints(1, 2, 1), {}),
    ],
)
@pytest.mark.parametrize("computed", [False, True])
def test_the_same_elements_elsewhere(
    op: str, opset: int, shape: tuple[int, ...], rest: Array | None, attrs: dict[str, Any], computed: bool
):
    """Fails where an element's gradient does not come back to its place."""
    inputs = {"x": _x(shape)} if rest is None else {"x": _x(shape), "rest": rest}
    _check(op, inputs, opset=opset, computed=computed, **attrs)


@pytest.mark.parametrize("opset", [9, 11, 13, 18])
@pytest.mark.parametrize("axis", [1, -1])
def test_concat(opset: int, axis: int):
    """Fails where an operand gets the part of another."""
    values = {f"x{i}": np.moveaxis(_x((2, 4, n), i), -1, axis) for i, n in enumerate((3, 1, 2))}
    compare(*one_node("Concat", values, opset=opset, axis=axis))
    compare(*one_node("Concat", values, opset=opset, axis=axis, constant=["x1"]))


@pytest.mark.parametrize(
    ("opset", "rest", "attrs"),
    [
        (9, None, {"axis": 1, "split": [1, 2, 3]}),
        (11, None, {"axis": -1}),
        (13, _ints(3, 1, 2), {"axis": 1}),
        (13, None, {"axis": 2}),
        (18, None, {"axis": 2, "num_outputs": 3}),
    ],
)
@pytest.mark.parametrize("used", [("p", "q", "r"), ("q",)])
def test_split(opset: int, rest: Array | None, attrs: dict[str, Any], used: tuple[str, ...]):
    """Fails where the parts come back in another order, or one that nothing depends on is left out."""
    inputs = {"x": _x((2, 6, 6))} if rest is None else {"x": _x((2, 6, 6)), "rest": rest}
    proto, feeds = one_node("Split", inputs, opset=opset, constant=list(inputs)[1:], outputs=("p", "q", "r"), **attrs)
    kept = [o for o in proto.graph.output if o.name in used]
    del proto.graph.output[:]
    proto.graph.output.extend(kept)
    compare(proto, feeds)


END = sys.maxsize
SLICES = [
    ([1], [3], [2], None),
    ([0, -3], [2, END], [2, 3], None),
    ([-100], [100], [1], None),
    ([1, 0], [END, 2], None, None),
    ([0], [END], [3], [2]),
    ([1], [END], [3], [2]),
    ([1, 0], [END, 4], [3, 2], [3, 2]),
    ([-1], [-END], [3], [-1]),
    ([3], [0], [3], [-1]),
    ([-1], [-END], [2], [-2]),
    ([100, -2], [-END, -END], [3, 2], [-3, -2]),
]


@pytest.mark.parametrize(("starts", "ends", "axes", "steps"), SLICES)
@pytest.mark.parametrize("opset", [10, 11, 13, 18])
@pytest.mark.parametrize("computed", [False, True])
def test_slice(
    starts: list[int], ends: list[int], axes: list[int] | None, steps: list[int] | None, opset: int, computed: bool
):
    """Fails where the gradient lands at another place than the slice was read from."""
    if axes is None and steps is not None:
        axes = list(range(len(starts)))
    inputs = {"x": _x(), "starts": _ints(*starts), "ends": _ints(*ends)}
    inputs |= {k: None if v is None else _ints(*v) for k, v in (("axes", axes), ("steps", steps))}
    while inputs[list(inputs)[-1]] is None:
        inputs.popitem()
    constant = [k for k, v in inputs.items() if v is not None and (k in ("axes", "steps") or not computed) and k != "x"]
    compare(*one_node("Slice", inputs, opset=opset, constant=constant))


@pytest.mark.parametrize(("starts", "ends", "axes", "steps"), [s for s in SLICES if s[3] is None])
def test_slice_by_attributes(starts: list[int], ends: list[int], axes: list[int] | None, steps: None):
    """Fails where the first form of Slice is read otherwise."""
    attrs = {"starts": starts, "ends": ends} | ({} if axes is None else {"axes": axes})
    _check("Slice", {"x": _x()}, opset=9, **attrs)


def test_computed_steps_are_refused():
    """Fails where a step that only the run knows is guessed."""
    inputs = {"x": _x(), "starts": _ints(0), "ends": _ints(4), "axes": _ints(3), "steps": _ints(2)}
    back = reverse_of(*one_node("Slice", inputs, opset=13), ["x"])
    assert "run time" in back.missing["x"]


PADS = [[0, 0, 1, 2, 0, 0, 2, 1], [0, 1, 0, 0, 0, 3, 0, 0], [0, 0, -1, 2, 0, -1, 2, -2]]


@pytest.mark.parametrize("pads", PADS)
@pytest.mark.parametrize("opset", [9, 11, 13, 18])
@pytest.mark.parametrize("computed", [False, True])
def test_pad_with_a_constant(pads: list[int], opset: int, computed: bool):
    """Fails where padding has a gradient, or what was cut off has one."""
    if opset < 11:
        _check("Pad", {"x": _x()}, opset=opset, pads=pads, value=0.5)
        return
    _check("Pad", {"x": _x(), "pads": _ints(*pads)}, opset=opset, computed=computed)
    if not computed:
        inputs = {"x": _x(), "pads": _ints(*pads), "value": np.array(0.5, np.float32)}
        compare(*one_node("Pad", inputs, opset=opset, constant=["pads"]))


@pytest.mark.parametrize("computed", [False, True])
def test_pad_of_some_axes(computed: bool):
    """Fails where the amounts are taken for the first axes."""
    inputs = {"x": _x(), "pads": _ints(1, 2, 0, 3), "value": None, "axes": _ints(3, -2)}
    constant = ["axes"] if computed else ["pads", "axes"]
    compare(*one_node("Pad", inputs, opset=18, constant=constant))


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
@pytest.mark.parametrize("pads", PADS[:2])
@pytest.mark.parametrize("opset", [9, 11, 13, 19])
def test_pad_with_copies(mode: str, pads: list[int], opset: int):
    """Fails where a copied element does not get the gradient of its copies."""
    if mode == "wrap" and opset < 19:
        pytest.skip("wrap came with opset 19")
    pads = [min(p, 2) for p in pads]
    inputs = {"x": _x()} if opset < 11 else {"x": _x(), "pads": _ints(*pads)}
    _check("Pad", inputs, opset=opset, mode=mode, **({"pads": pads} if opset < 11 else {}))


def test_copies_of_cut_axes_are_refused():
    """Fails where a Pad that cuts and copies is guessed."""
    proto, feeds = one_node("Pad", {"x": _x((2, 3)), "pads": _ints(0, -1, 0, 1)}, constant=["pads"], mode="edge")
    assert "cuts" in reverse_of(proto, feeds, ["x"]).missing["x"]


@pytest.mark.parametrize(("sizes", "axes"), [((2, 3), (2, 3)), ((7, 8), (-1, 2)), ((2, 2, 7, 2), None)])
def test_around_the_middle(sizes: tuple[int, ...], axes: tuple[int, ...] | None):
    """Fails where an odd difference is shared otherwise on the way back."""
    attrs = {} if axes is None else {"axes": axes}
    _check("CenterCropPad", {"x": _x(), "sizes": _ints(*sizes)}, opset=18, **attrs)
