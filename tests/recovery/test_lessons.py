"""What the teacher is asked once, and where it is asked again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from onnxprune.data.inputs import InputSpec
from onnxprune.data.samples import Samples
from onnxprune.errors import RunError
from onnxprune.numerics.arrays import Array
from onnxprune.process.spill import spilling
from onnxprune.recovery import lessons
from onnxprune.recovery.augment import Augment, unchanged
from onnxprune.recovery.lessons import Lessons

COUNT = 12
EPOCHS = (np.arange(COUNT), np.arange(COUNT)[::-1], np.roll(np.arange(COUNT), 5))
Feeds = Mapping[str, Array]


def _samples() -> Samples:
    x = np.random.default_rng(0).standard_normal((COUNT, 3)).astype(np.float32)
    return Samples((InputSpec("x", np.dtype(np.float32), (None, 3)),), {"x": x})


def _teach(feeds: Feeds, own: Samples) -> dict[str, Array]:
    x = feeds["x"]
    masked = np.where(x > 1, np.float32(np.inf), x)
    return {"scores": x @ np.ones((3, 2), np.float32), "wide": np.float64(2) * masked[:, :, None]}


def _asked(teach: Callable[..., Any], augment: Augment = unchanged, memory: int = 1 << 20) -> Lessons:
    """After three epochs in batches of four, of which every target was compared with the teacher's."""
    found, samples, rng = Lessons(teach, _samples(), augment, memory), _samples(), np.random.default_rng(0)
    for order in EPOCHS:
        for start in range(0, COUNT, 4):
            own = order[start : start + 4]
            feeds, targets = found.of(own, rng)
            for k, expected in teach(feeds, samples.take(own)).items():
                np.testing.assert_array_equal(targets[k], expected)
                assert targets[k].dtype == expected.dtype
    return found


@pytest.mark.parametrize("memory", [1 << 20, 3 * 80, 0])
def test_each_sample_is_taught_once(memory: int):
    """Fails where samples are exchanged, a target changes on its way through a file, or nothing is kept. One batch is
    asked twice, the second time in the reverse order."""
    with spilling():
        assert _asked(_teach, memory=memory).taught == COUNT + 4


def test_without_room_the_teacher_is_asked_again(monkeypatch: pytest.MonkeyPatch):
    """Fails where targets that fit nowhere fill the memory, or a full disk ends recovery."""
    assert _asked(_teach, memory=0).taught == 3 * COUNT

    def full(*_: Any, **__: Any) -> Any:
        raise RunError("no space left")

    monkeypatch.setattr(lessons, "_in_file", full)
    with spilling():
        assert _asked(_teach, memory=3 * 80).taught > 2 * COUNT


def test_samples_that_change_are_taught_anew():
    def shifted(feeds: Feeds, rng: np.random.Generator) -> Feeds:
        return {"x": feeds["x"] + rng.standard_normal(feeds["x"].shape).astype(np.float32)}

    assert _asked(_teach, shifted).taught == 3 * COUNT


def test_what_depends_on_the_batch_is_not_kept():
    """Fails where a target that the others of a batch decide, or that has the samples elsewhere, is taken for the
    sample's own."""

    def centred(feeds: Feeds, own: Samples) -> dict[str, Array]:
        return {"y": feeds["x"] * np.arange(1, len(feeds["x"]) + 1, dtype=np.float32)[:, None]}

    def transposed(feeds: Feeds, own: Samples) -> dict[str, Array]:
        x = feeds["x"]
        return {"y": np.outer(np.arange(len(x)), x[:, 0]).astype(np.float32)}

    assert _asked(centred).taught == 3 * COUNT + 4
    assert _asked(transposed).taught == 3 * COUNT + 4
