"""Boxes in every layout, doubles against onnxruntime's own operator, mAP against pycocotools by hand-made cases."""

from __future__ import annotations

import builtins
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import evaluate
from onnxprune.errors import CalibrationError, CheckFailed, RunError, UsageError
from onnxprune.evaluation import gate
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Session
from onnxprune.tasks.answered import Answered, Score
from onnxprune.tasks.boxes import Boxes, iou, matched, suppressed
from onnxprune.tasks.heads import head_of
from onnxprune.tasks.known import BY_NAME

Outputs = dict[str, Array]
RANDOM = np.random.default_rng(0)
IMAGE = {"x": (3, 64, 64)}
# Two things on the first image, one on the second: x1, y1, x2, y2, score, class.
THINGS = [[(4, 4, 20, 24, 0.9, 1), (30, 30, 60, 50, 0.7, 0)], [(10, 8, 40, 40, 0.8, 2)]]


def things(*, shift: float = 0.0, score: float = 0.0) -> list[list[tuple[float, ...]]]:
    return [[(a + shift, b, c + shift, d, s + score, k) for a, b, c, d, s, k in image] for image in THINGS]


def rows(images: Any = THINGS, places: int = 5) -> Outputs:
    y = np.full((2, places, 6), 0.0, np.float32)
    for i, image in enumerate(images):
        y[i, : len(image)] = np.reshape(image, (-1, 6))
    return {"o": y}


def dense(images: Any = THINGS, layout: str = "v5", *, raw: bool = False) -> Outputs:
    """The same on 84 places, which are the grids of an image of 64 x 64; each thing a second time, not as sure."""
    head = 5 if layout in ("v5", "yolox") else 4
    y = np.zeros((2, 84, head + 3))
    y[:, :, :4] = [32, 32, 10, 10]
    for i, image in enumerate(images):
        for n, (x1, y1, x2, y2, score, kind) in enumerate(image):
            for place, sure in ((10 * n, score), (10 * n + 1, score - 0.1)):
                y[i, place, :4] = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
                y[i, place, head - 1] = 1.0 if head == 5 else y[i, place, head - 1]
                y[i, place, head + int(kind)] = sure
    if layout == "yolox":
        grid = [(c, r, s) for s in (8, 16, 32) for r in range(64 // s) for c in range(64 // s)]
        columns, lines, strides = np.array(grid, float).T
        y[..., 0], y[..., 1] = y[..., 0] / strides - columns, y[..., 1] / strides - lines
        y[..., 2:4] = np.log(y[..., 2:4] / strides[:, None])
        if raw:  # scores in front of the sigmoid
            p = np.clip(y[..., 4:], 1e-9, 1 - 1e-9)
            y[..., 4:] = np.log(p / (1 - p))
    return {"o": (np.moveaxis(y, 1, 2) if layout == "v8" else y).astype(np.float32)}


def ssd(images: Any = THINGS, *, centred: bool = False, listed: bool = False, softmax: bool = False) -> Outputs:
    boxes, scores, classes = np.zeros((2, 9, 4), np.float32), np.zeros((2, 9, 3), np.float32), np.zeros((2, 9))
    boxes[:] = [1, 2, 3, 5]
    for i, image in enumerate(images):
        for n, (*corners, score, kind) in enumerate(image):
            boxes[i, n], scores[i, n, int(kind)], classes[i, n] = corners, score, kind
    if listed:
        return {"boxes": boxes, "labels": classes.astype(np.int64), "scores": scores.max(axis=2)}
    if centred:
        boxes = np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], axis=2)
    if softmax:
        scores = np.concatenate([1 - scores.sum(axis=2, keepdims=True), scores], axis=2)
    return {"boxes": boxes, "scores": scores}


LAYOUTS: dict[str, tuple[Any, str]] = {
    "rows": (rows, "rows of boxes"),
    "v5": (dense, "v5"),
    "v8": (lambda i=THINGS: dense(i, "v8"), "v8"),
    "yolox": (lambda i=THINGS: dense(i, "yolox"), "YOLOX"),
    "raw yolox": (lambda i=THINGS: dense(i, "yolox", raw=True), "YOLOX"),
    "ssd": (ssd, "boxes and scores"),
    "centred": (lambda i=THINGS: ssd(i, centred=True), "boxes and scores"),
    "background": (lambda i=THINGS: ssd(i, softmax=True), "boxes and scores"),
    "listed": (lambda i=THINGS: ssd(i, listed=True), "boxes, scores and classes"),
    "caffe": (lambda i=THINGS: {"o": rows(i)["o"][:, None][..., [5, 5, 4, 0, 1, 2, 3]]}, "rows of boxes"),
    "yolov7": (lambda i=THINGS: {"o": rows(i)["o"][..., [5, 0, 1, 2, 3, 5, 4]]}, "rows of boxes"),
}


def scored(y: Outputs, y0: Outputs | None = None, labels: Array | None = None) -> dict[str, Score]:
    found = BY_NAME["detection"].measured(Answered(y, 2, y0, labels, shapes=IMAGE))
    assert {s.name for s in found} <= set(BY_NAME["detection"].names)
    return {s.name: s for s in found}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_things(layout: str):
    make, called = LAYOUTS[layout]
    head = head_of(make(), 2, (64, 64), sure=True)
    assert head is not None
    assert head.layout == called
    for i, image in enumerate(THINGS):
        boxes = head.boxes(make(), i)
        boxes = boxes.at(boxes.scores > 0.5)
        assert boxes.corners == pytest.approx(np.array([t[:4] for t in image]), abs=1e-4)
        assert boxes.scores == pytest.approx([t[4] for t in image], abs=1e-6)
        shift = 1 if layout == "background" else 0  # class 0 is none
        assert boxes.classes.tolist() == [t[5] + shift for t in image]
    assert BY_NAME["detection"].likely(Answered(make(), 2, shapes=IMAGE))
    same = scored(make(), make())
    assert [same[k].value for k in ("box-agreement", "box-iou", "boxes-lost", "score-change")] == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_how_boxes_moved(layout: str):
    """By hand: 2 px to the right each; 16 wide, 30 wide, 30 wide."""
    make, _ = LAYOUTS[layout]
    found = scored(make(things(shift=2.0, score=-0.05)), make())
    assert found["box-agreement"].value == 1.0
    assert found["box-iou"].value == pytest.approx((14 / 18 + 2 * 28 / 32) / 3, abs=1e-4)
    assert found["score-change"].value == pytest.approx(0.05, abs=1e-4)
    lost = scored(make([THINGS[0][:1], []]), make())
    assert lost["box-agreement"].value == 0.5  # 2 · 1 / (1 + 3)
    assert lost["boxes-lost"].value == pytest.approx(2 / 3, abs=1e-12)
    assert lost["boxes-new"].value == 0.0


def test_another_class_is_another_thing():
    other = [[(*t[:5], (t[5] + 1) % 3) for t in image] for image in THINGS]
    found = scored(rows(other), rows())
    assert (found["box-agreement"].value, found["boxes-new"].value) == (0.0, 1.0)
    assert found["box-iou"].why == "no box of the original stays"


def test_nothing_found():
    nothing = rows([[], [(1, 1, 5, 5, 0.1, 0)]])
    found = scored(nothing, nothing)
    assert {s.value for s in found.values()} == {None}
    assert found["box-agreement"].why == "of either model no box has a score of 0.25"
    half = scored(rows(), nothing)
    assert (half["box-agreement"].value, half["boxes-lost"].why) == (0.0, "of the original no box has a score of 0.25")
    broken = dense()
    assert scored({"o": np.full_like(broken["o"], np.nan)}, broken)["box-agreement"].value == 0.0


def test_doubles_are_those_of_the_operator():
    """Against NonMaxSuppression of onnxruntime, class by class."""
    corners = RANDOM.uniform(0, 50, (60, 4))
    corners[:, 2:] = corners[:, :2] + RANDOM.uniform(5, 30, (60, 2))
    boxes = Boxes(corners, np.sort(RANDOM.uniform(0, 1, 60))[::-1], RANDOM.integers(0, 3, 60))
    text = (
        '<ir_version: 8, opset_import: ["" : 13]> main '
        "(float[1,N,4] b, float[1,C,N] s, int64 m, float t) => (int64[K,3] k) { k = NonMaxSuppression (b, s, m, t) }"
    )
    scores = np.full((1, 3, 60), -1.0, np.float32)
    scores[0, boxes.classes, np.arange(60)] = boxes.scores
    feeds = {"b": corners[None].astype(np.float32), "s": scores, "m": np.array(60), "t": np.array(0.6, np.float32)}
    kept = Session(onnx.parser.parse_model(text)).run(feeds)["k"]
    expected = {int(i) for _, c, i in kept if boxes.classes[i] == c}
    assert {int(np.flatnonzero(boxes.scores == s)[0]) for s in suppressed(boxes).scores} == expected
    assert 10 < len(expected) < 60


def test_overlaps():
    a = np.array([[0.0, 0, 2, 2], [1, 1, 1, 1]])
    b = np.array([[1.0, 0, 3, 2], [0, 0, 2, 2], [5, 5, 4, 4]])
    assert iou(a, b) == pytest.approx(np.array([[1 / 3, 1, 0], [0, 0, 0]]), abs=1e-12)
    assert iou(a[:0], b).shape == (0, 3)
    tie = Boxes(b[[1, 1]], np.array([0.5, 0.5]), np.zeros(2, np.int64))
    assert matched(tie, tie, 0.5) == [(0, 0, 1.0), (1, 1, 1.0)]  # each once
    assert matched(tie, tie.at(np.array([0])), 0.5) == [(0, 0, 1.0)]
    assert matched(tie.at(np.array([], np.int64)), tie, 0.5) == []


LABELS = np.full((2, 3, 5), -1.0)
LABELS[0, :2] = [[4, 4, 20, 24, 1], [30, 30, 60, 50, 0]]
LABELS[1, 1] = [10, 8, 40, 40, 2]


def test_map_of_cases_by_hand():
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    perfect = scored(rows(), rows([THINGS[0], []]), LABELS)
    assert (perfect["map"].value, perfect["map50"].value) == (pytest.approx(1.0), pytest.approx(1.0))
    assert perfect["map"].original == pytest.approx(2 / 3)  # one of three classes is never found
    # 2 px off: IoU .778, .875, .875, so 6, 8 and 8 of the ten thresholds hold.
    moved = scored(rows(things(shift=2.0)), None, LABELS)
    assert moved["map"].value == pytest.approx((0.6 + 0.8 + 0.8) / 3, abs=1e-9)
    assert moved["map50"].value == pytest.approx(1.0)
    nothing = scored(rows([[(1, 1, 2, 2, 1e-4, 0)], []]), None, LABELS)
    assert nothing["map"].value == 0.0
    without = scored(rows(), None, np.full((2, 1, 5), -1))
    assert (without["map"].value, without["map"].why) == (None, "the labels hold no box")
    nan = LABELS.copy()
    nan[LABELS[..., 4] < 0] = np.nan
    assert scored(rows(), None, nan)["map"].value == pytest.approx(1.0)


def test_map_without_its_library(monkeypatch: pytest.MonkeyPatch):
    load = builtins.__import__

    def absent(name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return load(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    assert scored(rows(), rows())["box-agreement"].value == 1.0  # which needs none
    with pytest.raises(RunError, match=r"pip install 'onnxprune\[detection\]'"):
        scored(rows(), None, LABELS)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (LABELS[..., :4], "takes boxes"),
        (np.array([0, 1]), "takes boxes"),
        (LABELS[..., [2, 3, 0, 1, 4]], "second corner is in front"),
        (LABELS / [64, 64, 64, 64, 1], "give them in the model's coordinates"),
    ],
)
def test_labels_that_do_not_fit(labels: Array, match: str):
    with pytest.raises(CalibrationError, match=match):
        scored(rows(), None, labels)


@pytest.mark.parametrize(
    "y",
    [
        RANDOM.standard_normal((2, 80, 8)),  # scores that are none
        RANDOM.standard_normal((2, 10)),
        RANDOM.uniform(0, 1, (2, 60, 8)) - [0, 0, 9, 9, 0, 0, 0, 0],  # sizes below zero, on no grid
        RANDOM.uniform(0, 1, (2, 6, 8)),
    ],
)
def test_what_holds_no_boxes(y: Array):
    assert not BY_NAME["detection"].likely(Answered({"o": y}, 2, shapes=IMAGE))
    with pytest.raises(UsageError, match="no output holds boxes"):
        scored({"o": y})


def test_text_lines_are_no_boxes():
    """Fails where what a reader of text gives, probabilities of letters at each step, passes for boxes."""
    y = RANDOM.uniform(0, 1, (2, 100, 37))
    assert not BY_NAME["detection"].likely(Answered({"o": y / y.sum(axis=2, keepdims=True)}, 2, shapes=IMAGE))
    assert not BY_NAME["detection"].likely(Answered(rows(), 2))  # no image comes in


def test_a_detector_that_lists_what_it_finds():
    """Fails where a model with its own choice of boxes, more or fewer on each image, has nothing that is compared."""
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> main (float[1,3,8,8] x) => (float[1,K,6] things) {'
        "shape = Constant <value = int64[3] {1, 32, 6}> ()  c = Conv (x, w)  rows = Reshape (c, shape)"
        "four = Constant <value = int64 {4}> ()  score = Gather <axis = 2> (rows, four)"
        "least = Constant <value = float {LEAST}> ()  sure = Greater (score, least)"
        "flat = Constant <value = int64[1] {-1}> ()  keep = Reshape (sure, flat)"
        "things = Compress <axis = 1> (rows, keep) }"
    )
    original, strict = (onnx.parser.parse_model(text.replace("LEAST", v)) for v in ("0.5", "0.75"))
    for model in (original, strict):
        kernel = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
        model.graph.initializer.append(onnx.numpy_helper.from_array(kernel, "w"))
    x = np.zeros((2, 32, 6), np.float32)
    x[:, :5] = rows()["o"]
    data = {"x": x.reshape(2, 3, 8, 8), "boxes": LABELS}
    e = evaluate(strict, data, against=original)
    assert e.task == "detection"
    assert e.agreement == pytest.approx(2 * 2 / (3 + 2), abs=1e-12)  # the one with a score of 0.7 is gone
    gate(e, max_metric={"boxes-lost": 0.34}, min_metric={"box-iou": 1.0})
    with pytest.raises(CheckFailed, match="box-agreement"):
        gate(e, min_agreement=0.9)
    if find_spec("pycocotools") is not None:
        e = evaluate(strict, data, against=original, labels="boxes")
        assert e.drop == pytest.approx(100 / 3, abs=1e-6)
