"""Labels: read from the data, chosen and split with their samples, and held against the first output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import PruneConfig, methods, plan, prune
from onnxprune.data import class_labels
from onnxprune.data.inputs import input_specs
from onnxprune.data.samples import Samples
from onnxprune.data.sources import checked
from onnxprune.data.sources import load as load_samples
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.graph.view import Graph
from onnxprune.numerics.arrays import Array
from onnxprune.report.terminal import Screen, prune_report
from onnxprune.stages.load import load, read_samples
from tests import digits
from tests.calibrated import prepare_text
from tests.compare import assert_same

RESNET = digits.path("resnet")
DATA = dict(np.load(digits.CALIB))
COUNT = len(DATA["input"])
CLASSES = np.arange(COUNT) % 10
QUICK: dict[str, Any] = {"method": "magnitude", "refit": "none", "uniform": 0.5}


def samples(**extras: Array) -> Samples:
    return checked({**DATA, **extras}, input_specs(onnx.load(RESNET)))


@pytest.fixture
def labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if selection by magnitude read labels."""
    monkeypatch.setattr(methods, "reading_labels", lambda: ("magnitude",))


# reading


def test_classes_and_targets():
    assert_same(class_labels.of(samples(c=CLASSES.astype(np.uint8)[:, None]), "c"), CLASSES, rtol=0.0, atol=0.0)
    targets = np.ones((COUNT, 10), np.float32)
    assert class_labels.of(samples(t=targets), "t") is not None
    assert class_labels.of(samples(t=targets), "t").dtype == np.float32
    with pytest.raises(CalibrationError, match="'t' are float32; they must be integers, the class of each sample"):
        class_labels.classes_of(samples(t=targets), "t")


@pytest.mark.parametrize(
    ("found", "match"),
    [
        (np.full(COUNT, "cat"), r"'label' are <U3; they must be integers \(classes\) or floating-point targets"),
        (np.ones(COUNT, bool), "are bool"),
        (np.ones(COUNT, complex), "are complex128"),
        (CLASSES[:-1], rf"have shape \({COUNT - 1},\); there are {COUNT} samples"),
        (np.ones((COUNT, 2), int), rf"have shape \({COUNT}, 2\)"),
        (np.ones((COUNT + 1, 10)), "there are"),
        (np.array(3), r"have shape \(\)"),
        (np.array(3.0), r"have shape \(\)"),
    ],
)
def test_no_label_for_each_sample(found: Array, match: str):
    with pytest.raises(CalibrationError, match=match):
        class_labels.of(samples(label=found), "label")


def test_missing():
    with pytest.raises(CalibrationError, match="no labels under 'label'; beside the inputs it holds 'a', 'b'"):
        class_labels.of(samples(a=CLASSES, b=CLASSES), "label")


def test_files_of_a_folder(tmp_path: Path):
    """Fails where labels of one file are taken for samples of the next."""
    specs = input_specs(onnx.load(RESNET))
    half = COUNT // 2
    np.savez(tmp_path / "a.npz", input=DATA["input"][:half], label=CLASSES[:half])
    np.savez(tmp_path / "b.npz", input=DATA["input"][half:], label=CLASSES[half:])
    assert_same(class_labels.of(load_samples(tmp_path, specs), "label"), CLASSES, rtol=0.0, atol=0.0)
    np.savez(tmp_path / "a.npz", input=DATA["input"][:half], label=CLASSES[: half + 1])
    np.savez(tmp_path / "b.npz", input=DATA["input"][half:], label=CLASSES[half + 1 :])
    with pytest.raises(CalibrationError, match="some files hold fewer or more 'label' than samples"):
        load_samples(tmp_path, specs)


# in the pipeline


def settings(**options: Any) -> PruneConfig:
    return PruneConfig(**(QUICK | {"labels": "label"} | options))


@pytest.mark.usefixtures("labelled")
@pytest.mark.parametrize("count", [None, 40, 5])
def test_labels_follow_their_samples(count: int | None):
    """Fails where the seeded choice or the split into fit and held parts a sample from its label."""
    data = {**DATA, "label": CLASSES}
    loaded = load(RESNET, data, settings(samples=count, seed=3))
    by_image = {DATA["input"][i].tobytes(): int(CLASSES[i]) for i in range(COUNT)}
    assert len({DATA["input"][i].tobytes() for i in range(COUNT)}) == COUNT
    parts = {id(p): p for p in (loaded.fit, loaded.held)}.values()
    assert sum(map(len, parts)) == (count or COUNT)
    for part in parts:
        found = class_labels.of(part, "label")
        assert [by_image[x.tobytes()] for x in part.arrays["input"]] == found.tolist()


@pytest.mark.usefixtures("labelled")
def test_the_label_key_is_no_unread_key():
    notes = load(RESNET, {**DATA, "label": CLASSES}, settings()).notes
    assert not any("does not read" in n for n in notes)
    notes = load(RESNET, {**DATA, "label": CLASSES, "weight": CLASSES}, settings()).notes
    assert [n for n in notes if "does not read" in n] == [
        "the calibration data holds keys that the model does not read: weight"
    ]


@pytest.mark.usefixtures("labelled")
def test_labels_count_in_the_checksum():
    """Fails where two runs on other labels claim the same data."""
    a, b = (load(RESNET, {**DATA, "label": c}, settings()).data_sha256 for c in (CLASSES, CLASSES[::-1]))
    plain = load(RESNET, {**DATA, "label": CLASSES}, PruneConfig(**QUICK)).data_sha256
    assert len({a, b, plain}) == 3
    assert plain == load(RESNET, DATA, PruneConfig(**QUICK)).data_sha256


@pytest.mark.usefixtures("labelled")
@pytest.mark.parametrize(
    ("data", "options", "error", "match"),
    [
        ({}, {}, CalibrationError, "no labels under 'label'; beside the inputs it holds no other keys"),
        ({"label": CLASSES[:-1]}, {}, CalibrationError, f"there are {COUNT} samples"),
        # Samples that were chosen would hide that: only keys with one entry per sample are chosen from.
        ({"label": CLASSES[:-1]}, {"samples": 20}, CalibrationError, f"there are {COUNT} samples"),
        ({"label": CLASSES + 1}, {}, CalibrationError, "labels run from 1 to 10, the model has the classes 0 to 9"),
        ({"label": CLASSES - 1}, {}, CalibrationError, "labels run from -1 to 8"),
        ({"label": np.ones((COUNT, 9))}, {}, CalibrationError, "have shape 256x9, the first output has 256x10"),
        ({"label": np.full((COUNT, 10), np.inf)}, {}, CalibrationError, "hold NaN or infinite values"),
        ({"label": np.full(COUNT, "one")}, {}, CalibrationError, "are <U3"),
    ],
)
def test_refused_before_any_work(
    data: Mapping[str, Array], options: dict[str, Any], error: type[Exception], match: str
):
    with pytest.raises(error, match=match):
        load(RESNET, {**DATA, **data}, settings(**options))


@pytest.mark.usefixtures("labelled")
def test_labels_without_data():
    with pytest.raises(
        UsageError, match=r"labels 'label' are a key of the calibration data; give that too \(--calib\)"
    ):
        read_samples(onnx.load(RESNET), None, settings())


def test_methods_that_read_no_labels():
    with pytest.raises(
        UsageError, match="method 'magnitude' reads no labels, only global, combined, gfs-outputs, taylor do; leave"
    ):
        settings()


@pytest.mark.usefixtures("labelled")
def test_report_and_replay():
    """The report names the labels; a plan that they decided is replayed with the same bytes where there are none."""
    first = prune(RESNET, None, {**DATA, "label": CLASSES}, config=settings())
    assert first.report.calibration["labels"] == "label"
    assert json.loads(first.report.to_json())["config"]["labels"] == "label"
    assert f"{COUNT} samples, with the labels 'label', 32 of them held out" in " ".join(
        prune_report(first.report, Screen(200)).split()
    )
    saved = replace(first.plan, config=json.loads(first.plan.to_json())["config"])
    again = prune(RESNET, None, DATA, from_plan=saved)
    assert first.model is not None
    assert again.model is not None
    assert again.model.SerializeToString() == first.model.SerializeToString()
    assert again.plan.to_json() == first.plan.to_json()
    assert again.report.calibration["labels"] is None
    assert isinstance(again.plan, plan.Plan)


def test_report_without_labels():
    report = digits.pruned("resnet", **QUICK).report
    assert report.calibration["labels"] is None
    assert "with the labels" not in prune_report(report, Screen())


# probabilities or scores


def traced(body: str, out: str) -> Graph:
    text = f"(float[N,6] x) => ({out} y) {{\n    a = Gemm (x, w1[6,8], b1[8])\n{body}\n}}"
    return prepare_text(text).channels.graph


@pytest.mark.parametrize(
    ("body", "out", "expected"),
    [
        ("y = Softmax <axis=1> (a)", "float[N,8]", True),
        ("y = Softmax (a)", "float[N,8]", True),
        ("p = Softmax <axis=-1> (a)\n y = Identity (p)", "float[N,8]", True),
        (
            "s = Constant <value_ints = [0, 8, 1, 1]> ()\n p = Softmax (a)\n y = Reshape (p, s)",
            "float[N,8,1,1]",
            True,
        ),
        ("p = Softmax <axis=0> (a)\n y = Identity (p)", "float[N,8]", False),
        ("p = Softmax (a)\n y = Log (p)", "float[N,8]", False),
        ("y = LogSoftmax (a)", "float[N,8]", False),
        ("y = Sigmoid (a)", "float[N,8]", False),
        ("y = Relu (a)", "float[N,8]", False),
        (
            "s = Constant <value_ints = [0, 2, 4]> ()\n t = Constant <value_ints = [0, 8]> ()\n"
            " b = Reshape (a, s)\n p = Softmax (b)\n y = Reshape (p, t)",
            "float[N,8]",
            False,
        ),
    ],
)
def test_after_softmax(body: str, out: str, expected: bool):
    assert class_labels.after_softmax(traced(body, out), "y") is expected


@pytest.mark.parametrize(("axis", "expected"), [(1, True), (2, False), (0, False)])
def test_softmax_of_older_opsets(axis: int, expected: bool):
    """Fails where the flattening of axes before opset 13 is forgotten: from axis 1 on, all are one."""
    text = f"(float[N,8,1] x) => (float[N,8,1] y) {{\n a = Relu (x)\n y = Softmax <axis={axis}> (a)\n}}"
    assert class_labels.after_softmax(prepare_text(text, opset=11).channels.graph, "y") is expected
