"""Reshapes of labels against reshapes of the labelled data."""

from __future__ import annotations

import math

import numpy as np
import onnx.parser
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxprune.channels.rules.layout import meets_nothing, product_groups, reshape_factor
from onnxprune.channels.rules.slicing import Bounds
from onnxprune.runtime.session import Session


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((2, 8, 4, 4), (2, 128), [((0,), (0,)), ((1, 2, 3), (1,))]),
        ((2, 8), (2, 8, 1, 1), [((0,), (0,)), ((1,), (1,)), ((), (2,)), ((), (3,))]),
        ((2, 6), (3, 4), [((0, 1), (0, 1))]),
        ((1, 6), (2, 3), [((0, 1), (0, 1))]),
        ((), (1, 1), [((), (0,)), ((), (1,))]),
        ((1, 0, 3), (0, 3), [((0, 1), (0,)), ((2,), (1,))]),
        ((4, 0), (0, 7), [((0, 1), (0, 1))]),
    ],
)
def test_product_groups(before, after, expected):
    """Fails where runs of axes are longer than they must be, or do not match."""
    assert [(tuple(i), tuple(o)) for i, o in product_groups(before, after)] == expected


@st.composite
def _shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes of equal size, by merging the same prime factors in two ways."""
    factors = draw(st.lists(st.sampled_from([0, 1, 1, 2, 2, 3, 5]), max_size=6))

    def merged() -> tuple[int, ...]:
        shape: list[int] = []
        for f in factors:
            if shape and draw(st.booleans()):
                shape[-1] *= f
            else:
                shape.append(f)
        return tuple(shape)

    return merged(), merged()


@settings(deadline=None)
@given(_shapes())
def test_product_groups_cover_both_shapes_once(shapes):
    """Fails where an axis is left out, doubled, or a run's products differ."""
    before, after = shapes
    groups = product_groups(before, after)
    assert [a for i, _ in groups for a in i] == list(range(len(before)))
    assert [a for _, o in groups for a in o] == list(range(len(after)))
    assert 0 in before or all(math.prod(before[a] for a in i) == math.prod(after[a] for a in o) for i, o in groups)


@settings(deadline=None)
@given(_shapes(), st.data())
def test_reshape_factor_is_the_reshape_of_the_data(shapes, data):
    """Fails where a label ends at another element than the one it named; against numpy on the full array."""
    before, after = shapes
    tracked = [s if data.draw(st.booleans()) else 1 for s in before]
    factor = np.arange(math.prod(tracked)).reshape(tracked)
    assume(not meets_nothing(factor, before, after))
    moved = reshape_factor(factor, before, after)
    assert moved.ndim == len(after)
    np.testing.assert_array_equal(np.broadcast_to(moved, after), np.broadcast_to(factor, before).reshape(after))


@pytest.fixture(scope="module")
def onnx_slice() -> Session:
    """Slice whose bounds are inputs."""
    text = """<ir_version: 8, opset_import: ["" : 13]>
    main (int64[N] x, int64[1] s, int64[1] e, int64[1] a, int64[1] t) => (int64[M] y) { y = Slice(x, s, e, a, t) }"""
    return Session(onnx.parser.parse_model(text))


_BOUND = st.one_of(st.integers(-9, 9), st.sampled_from([-(2**63), 2**63 - 1]))


@settings(deadline=None)
@given(st.integers(1, 7), _BOUND, _BOUND, st.integers(-3, 3).filter(bool), st.sampled_from([0, -1]))
def test_slice_bounds_are_those_of_onnx(onnx_slice, size, start, end, step, axis):
    """Fails where ONNX clamps a bound that numpy wraps; against onnxruntime."""
    # onnxruntime reads the largest end with a negative step as the beginning, where the operator's text says nothing.
    assume(step > 0 or end < 2**63 - 1)
    names = {"s": (start,), "e": (end,), "a": (axis,), "t": (step,)}
    found = Bounds(axis, start, end, step).positions(size)
    feeds = {"x": np.arange(size), **{k: np.array(v, np.int64) for k, v in names.items()}}
    assert found is not None
    np.testing.assert_array_equal(found, onnx_slice.run(feeds)["y"])
