"""The bundled digit models and their data, and runs over them that several tests share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune import PruneResult, prune
from onnxprune.runtime.session import Session

FOLDER = Path(__file__).resolve().parent.parent / "models"
NAMES = ("resnet", "mobilenet")
CALIB = FOLDER / "digits_calib.npz"
TEST = FOLDER / "digits_test.npz"


def path(name: str) -> Path:
    """The file of a bundled model."""
    return FOLDER / f"digits_{name}.onnx"


@cache
def pruned(name: str, **options: Any) -> PruneResult:
    """One run of the library over the bundled calibration data; nothing may edit the result."""
    return prune(path(name), None, CALIB, **options)


def top1(model: onnx.ModelProto | Path) -> float:
    """Share of the test images that get their label."""
    data = np.load(TEST)
    scores = next(iter(Session(model).run({"input": data["input"]}).values()))
    return float(np.mean(scores.argmax(axis=1) == data["label"]))


def widths(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape of every weight."""
    return {t.name: tuple(t.dims) for t in model.graph.initializer}


def values(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    """One weight."""
    return onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))
