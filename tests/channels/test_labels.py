"""Labels: unify, tie, pin, and the classes that come of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.channels.labels import LabelSpace, Pinned, along, compress, lift, tracked_axes
from onnxprune.channels.remedies import Reason, Remedy


def _why(reason: str) -> Pinned:
    return Pinned("t", 0, "node", "Op", Reason(reason, Remedy.LAST))


def test_fresh_labels_never_repeat():
    """Fails where two axes start out coupled."""
    space = LabelSpace()
    assert np.unique(np.concatenate([space.fresh(3), space.fresh(0), space.fresh(4)])).size == 7


def test_unify_is_transitive_and_broadcasts():
    """Fails where a chain of pairs is not one class, or broadcasting pairs the wrong places."""
    space = LabelSpace()
    a, b, c = space.fresh(3), space.fresh(3), space.fresh(1)
    space.unify(a, b[::-1])
    space.unify(b[:1], c)
    of = space.classes().of_label
    assert of[a[2]] == of[b[0]] == of[c[0]]
    assert np.unique(of).size == 3
    space.unify(a.reshape(3, 1), c.reshape(1, 1))
    assert np.unique(space.classes().of_label).size == 1


def test_tie_joins_along_one_axis_only():
    """Fails where tying heads ties the channels inside them too."""
    space = LabelSpace()
    labels = space.fresh(6).reshape(2, 3)
    head = space.tie(labels, 0)
    assert head.shape == (1, 3)
    of = space.classes().of_label[labels]
    np.testing.assert_array_equal(of[0], of[1])
    assert np.unique(of).size == 3


def test_pin_reaches_the_whole_class_and_keeps_the_first_reason():
    """Fails where a coupled channel could still go, or the report names a later reason."""
    space = LabelSpace()
    a, b = space.fresh(3), space.fresh(3)
    space.pin(a[:1], _why("first"))
    space.pin(b[:2], _why("second"))
    space.unify(a, b)
    classes = space.classes()
    np.testing.assert_array_equal(classes.pinned[classes.of_label[b]], [True, True, False])
    assert classes.reasons[int(classes.of_label[b[0]])].reason == "first"
    assert classes.reasons[int(classes.of_label[b[1]])].reason == "second"


def test_classes_of_nothing():
    """Fails where a graph without any weight cannot be traced."""
    assert LabelSpace().classes().pinned.tolist() == [False]


@settings(deadline=None)
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=15))
    ),
    st.randoms(use_true_random=False),
)
def test_classes_do_not_depend_on_the_order(case, random):
    """Fails where the order of the operators decides what is coupled; against naive merging of sets."""
    count, pairs = case
    expected = [{i} for i in range(count)]
    for i, j in pairs:
        joined = expected[i] | expected[j]
        for k in joined:
            expected[k] = joined
    shuffled = list(pairs)
    random.shuffle(shuffled)
    for order in (pairs, shuffled):
        space = LabelSpace()
        labels = space.fresh(count)
        for i, j in order:
            space.unify(labels[[i]], labels[[j]])
        of = space.classes().of_label
        for i in range(count):
            assert {k for k in range(count) if of[k] == of[i]} == expected[i]


def test_resolve_drops_what_tracks_nothing_and_doubles():
    """Fails where a tensor would be sliced twice along one axis."""
    space = LabelSpace()
    a, b, c = space.fresh(3), space.fresh(3), space.fresh(2)
    space.unify(a, b)
    space.unify(c[:1], c[1:])
    resolved = space.classes().resolve((along(a, 1, 2), along(b, 1, 2), along(c, 0, 2)))
    assert [f.shape for f in resolved] == [(1, 3)]


@settings(deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.data())
def test_compress_is_the_smallest_that_broadcasts_back(shape, data):
    """Fails where an axis is dropped that matters, or kept that does not."""
    kept = [s if data.draw(st.booleans()) else 1 for s in shape]
    small = np.arange(int(np.prod(kept))).reshape(kept)
    wide = np.broadcast_to(small, shape)
    found = compress(wide)
    np.testing.assert_array_equal(found, small)
    assert tracked_axes(found) == tuple(a for a, s in enumerate(kept) if s > 1)


def test_along_and_lift():
    """Fails where labels land on another axis."""
    assert along(np.arange(3), 1, 4).shape == (1, 3, 1, 1)
    assert lift(np.arange(3), 3).shape == (1, 1, 3)
