"""Class maps: mIoU and agreement, against scikit-learn and counts by hand."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import CalibrationError, UsageError
from onnxprune.numerics.arrays import Array
from onnxprune.tasks.known import BY_NAME
from tests.tasks.scores import answered, scored

RANDOM = np.random.default_rng(0)
Y0 = RANDOM.standard_normal((3, 5, 8, 9)).astype(np.float32)
Y = (Y0 + 0.5 * RANDOM.standard_normal(Y0.shape)).astype(np.float32)
TRUTH = RANDOM.integers(0, 4, (3, 8, 9))  # the last class occurs in answers alone


def test_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    found = scored("segmentation", Y, Y0, TRUTH)
    for y, of in ((Y, "value"), (Y0, "original")):
        answer = y.argmax(axis=1).ravel()
        expected = metrics.jaccard_score(TRUTH.ravel(), answer, average="macro")
        assert getattr(found["miou"], of) == pytest.approx(expected, abs=1e-12)
        assert getattr(found["pixel-accuracy"], of) == pytest.approx(np.mean(TRUTH.ravel() == answer), abs=1e-12)
    a, b = Y0.argmax(axis=1).ravel(), Y.argmax(axis=1).ravel()
    assert found["miou-original"].value == pytest.approx(metrics.jaccard_score(a, b, average="macro"), abs=1e-12)
    assert found["map-agreement"].value == pytest.approx(np.mean(a == b), abs=1e-12)


def test_by_hand():
    """Truth 0 0 1 1, answer 0 1 1 1: IoU of 0 is 1/2, of 1 is 2/3."""
    y = np.array([[[[0, 1], [1, 1]]]])
    found = scored("segmentation", y, None, np.array([[[0, 0], [1, 1]]]))
    assert found["miou"].value == pytest.approx((1 / 2 + 2 / 3) / 2, abs=1e-12)
    assert found["pixel-accuracy"].value == 0.75
    assert set(found) == {"miou", "pixel-accuracy"}


def test_channels_last_and_class_maps_are_the_same_map():
    expected = {k: s.value for k, s in scored("segmentation", Y, Y0, TRUTH).items()}
    last = scored("segmentation", np.moveaxis(Y, 1, 3), np.moveaxis(Y0, 1, 3), TRUTH)
    chosen = scored("segmentation", Y.argmax(axis=1), Y0.argmax(axis=1), TRUTH)
    floats = scored("segmentation", *(v.argmax(axis=1, keepdims=True).astype(np.float32) for v in (Y, Y0)), TRUTH)
    for other in (last, chosen, floats):
        assert {k: s.value for k, s in other.items()} == expected


def test_labels_tell_the_axis_where_sizes_do_not():
    y = RANDOM.standard_normal((2, 4, 6, 5)).astype(np.float32)  # 4 classes, though 5 is along the last axis
    truth = y.argmax(axis=1)
    assert scored("segmentation", y, None, truth)["miou"].value == 1.0
    y = np.moveaxis(RANDOM.standard_normal((2, 8, 3, 3)), 1, 3)  # 8 classes behind 3 x 3
    assert scored("segmentation", y, None, y.argmax(axis=3))["miou"].value == 1.0


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_one_score_has_a_threshold(scale: float):
    """Fails where probabilities are held against 0, or scores against a half."""
    score = np.array([[[[0.2, 0.8], [0.4, 0.9]]]], np.float32)
    y = score if scale == 1.0 else (score - 0.5) * scale
    assert scored("segmentation", y, None, np.array([[[0, 1], [0, 1]]]))["miou"].value == 1.0


def test_what_belongs_to_no_class_does_not_count():
    truth = TRUTH.copy()
    truth[0, :4], truth[1, :4] = 255, -1
    found = scored("segmentation", Y, None, truth)
    keep = (truth >= 0) & (truth < 255)
    assert found["pixel-accuracy"].value == np.mean(Y.argmax(axis=1)[keep] == truth[keep])
    nothing = scored("segmentation", Y, Y0, np.full_like(TRUTH, -1))
    assert (nothing["miou"].value, nothing["miou"].why) == (None, "no position has a label")


def test_nan_is_wrong():
    y = Y0.copy()
    y[0, 0, 0, 0] = np.nan
    found = scored("segmentation", y, Y0, Y0.argmax(axis=1))
    assert found["map-agreement"].value == found["pixel-accuracy"].value == pytest.approx(1 - 1 / 216, abs=1e-12)
    assert found["miou"].value is not None
    assert found["miou"].value < 1.0
    lost = scored("segmentation", Y, np.full_like(Y, np.nan))
    assert lost["map-agreement"].value is None


def test_a_batch_of_one():
    assert scored("segmentation", Y[:1], Y[:1], TRUTH[:1])["map-agreement"].value == 1.0


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (TRUTH.astype(np.float32), "takes integers"),
        (TRUTH[:, ::2, ::2], "resize the labels"),
        (TRUTH + 2, "labels reach 5, the model has the classes 0 to 4"),
    ],
)
def test_labels_that_do_not_fit(labels: Array, match: str):
    with pytest.raises(CalibrationError, match=match):
        scored("segmentation", Y, None, labels)


@pytest.mark.parametrize("y", [np.zeros((3, 5)), np.zeros((3, 5, 1, 1)), np.zeros((3, 2, 2, 2), np.int64)])
def test_no_class_map(y: Array):
    with pytest.raises(UsageError, match="is no class map"):
        scored("segmentation", y, None, TRUTH)


@pytest.mark.parametrize(
    ("y", "likely"),
    [
        (Y, True),
        (np.moveaxis(Y, 1, 3), True),
        (Y.argmax(axis=1), True),
        (Y[:, :3], False),  # an image may be as well
        (np.exp(Y[:, :3]) / np.exp(Y[:, :3]).sum(axis=1, keepdims=True), True),
        (Y[:, :1], False),  # a depth, say
        (Y[:, :, :4, :4], False),  # of another size
        (Y.reshape(3, 5, -1), False),
    ],
)
def test_what_looks_like_a_class_map(y: Array, likely: bool):
    a = answered(y, shapes={"x": (3, 8, 9)})
    assert bool(BY_NAME["segmentation"].likely(a)) == likely
    assert not BY_NAME["segmentation"].likely(answered(y, shapes={"x": (7,)}))
