"""A folder of trained models with data: `kit.py` with `for_model(path, split)`, and `models/*.onnx`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.objective import relative_error
from onnxprune.runtime.session import Session

Array = NDArray[Any]
# By the names of a model's inputs, samples along the first axis.
Inputs = Mapping[str, Array]
_BATCH = 50
# Exports of a network that has another one in the kit: it says the same of accuracy.
_OTHER_EXPORTS = ("_legacy_bn", "_dynamo")


def load_kit(folder: Path) -> Any:
    """The kit's own module."""
    if not (folder / "kit.py").exists():
        sys.exit(f"{folder} holds no kit.py; give a folder with kit.py and models/*.onnx")
    return load_module(folder / "kit.py")


def load_module(path: Path) -> Any:
    """What a file of Python defines."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Kit:
    """The folder, its models and its data."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._module = folder, load_kit(folder)

    def path(self, model: str) -> Path:
        """The file of a model. Raises FileNotFoundError where there is none of this name."""
        path = self.folder / "models" / f"{model}.onnx"
        if not path.exists():
            raise FileNotFoundError(f"the kit has no models/{model}.onnx")
        return path

    def models(self, patterns: Iterable[str], *, exports: str = "all") -> list[str]:
        """Names that match one of the patterns, in order; exports "one" leaves out all but one export of a network."""
        names = sorted(p.stem for p in (self.folder / "models").glob("*.onnx"))
        patterns = list(patterns)
        found = [n for n in names if any(fnmatch(n, p) for p in patterns)]
        return found if exports == "all" else [n for n in found if not n.endswith(_OTHER_EXPORTS)]

    def calib(self, model: str) -> Array:
        """Calibration inputs, (N, ...)."""
        return np.asarray(self._module.for_model(self.path(model), "calib")[0])

    def test(self, model: str) -> tuple[Array, Array]:
        """Inputs (N, ...) and labels (N,) to measure with, and for nothing else."""
        x, labels = self._module.for_model(self.path(model), "test")
        return np.asarray(x), np.asarray(labels)

    def own(self, model: str, samples: int, seed: int) -> Inputs:
        """At most `samples` calibration inputs, a seeded choice."""
        return {input_name(self.path(model)): chosen(self.calib(model), samples, seed)}

    def judged(self, model: str, pruned: Path) -> dict[str, float]:
        """What a pruned file of this model keeps, on the test split."""
        test, labels = self.test(model)
        return scores(answers(self.path(model), test), answers(pruned, test), labels)


def chosen(x: Array, samples: int, seed: int) -> Array:
    """At most `samples` of them, a seeded choice in their own order."""
    return x[np.sort(np.random.default_rng(seed).permutation(len(x))[:samples])]


def input_name(path: Path) -> str:
    """Of the only input."""
    proto = onnx.load(path, load_external_data=False)
    weights = {t.name for t in proto.graph.initializer}
    return next(v.name for v in proto.graph.input if v.name not in weights)


def answers(model: onnx.ModelProto | Path, x: Array) -> Array:
    """The first output, (N, classes)."""
    found = answers_of(model, x)
    return found.reshape(len(found), -1)


def answers_of(model: onnx.ModelProto | Path, x: Array) -> Array:
    """The first output as it is, (N, ...)."""
    session = Session(model)
    parts = [session.run({session.inputs[0]: x[i : i + _BATCH]})[session.outputs[0]] for i in range(0, len(x), _BATCH)]
    return np.concatenate(parts)


def scores(before: Array, after: Array, labels: Sequence[int] | Array) -> dict[str, float]:
    """Top-1 of both and agreement, in percent, and the squared error of the outputs over their spread."""
    a, b = before.argmax(axis=1), after.argmax(axis=1)
    return {
        "top1_before": 100 * float((a == labels).mean()),
        "top1_after": 100 * float((b == labels).mean()),
        "agreement": 100 * float((a == b).mean()),
        "output_error": relative_error({"": after}, {"": before}),
    }
