"""The whole job on every model of the kit.

Each success passed the pipeline's own comparison of slice and oracle; the figure is asserted here once more, and the
written file is run from disk. The trained models also keep their accuracy.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import prune
from onnxprune.objective import relative_error
from onnxprune.runtime.session import Session
from tests.kit import NO_KIT, kit_folder, kit_models, one_export_each

SLICE_TOLERANCE = 1e-4


@pytest.mark.parametrize("path", one_export_each(kit_models("models", "arch", "wild")))
def test_half_of_every_model(path: Path, tmp_path: Path) -> None:
    """A model that cannot lose half of its MACs, or whose slice is not exact, breaks this."""
    out = tmp_path / "out.onnx"
    report = prune(path, out, ratio=0.5, round_to=1, samples=16, refit="least-squares", untried_branches="cut").report
    assert report.checks["slice_against_oracle"] <= SLICE_TOLERANCE
    assert report.checks["normalised_against_original"] <= SLICE_TOLERANCE
    assert report.achieved >= 0.5
    assert report.after.parameters < report.before.parameters
    before, after = onnx.load(path), onnx.load(out)
    assert before.graph.output == after.graph.output
    weights = {t.name for t in (*before.graph.initializer, *after.graph.initializer)}
    assert [v for v in before.graph.input if v.name not in weights] == [
        v for v in after.graph.input if v.name not in weights
    ]
    assert all(v in before.graph.input for v in after.graph.input)  # a weight that was listed, too, may be as it was
    assert Session(str(out)).outputs == tuple(o.name for o in before.graph.output)


def _kit_module() -> Any:
    file = kit_folder() / "kit.py"
    if not file.is_file():
        pytest.skip(NO_KIT)
    spec = importlib.util.spec_from_file_location("kit", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _answers(model: Path, x: np.ndarray) -> np.ndarray:
    session = Session(str(model))
    name = session.inputs[0]
    parts = [session.run({name: x[i : i + 50]})[session.outputs[0]] for i in range(0, len(x), 50)]
    return np.concatenate([p.reshape(len(p), -1).argmax(1) for p in parts])


@pytest.mark.parametrize(
    "path",
    one_export_each(
        [p for p in kit_models("models") if p.id.startswith(("models/mnist", "models/cifar10_resnet20", "no-kit"))]
    ),
)
def test_trained_models_keep_their_accuracy(path: Path, tmp_path: Path) -> None:
    """30 % of the MACs, the default configuration without recovery, 1,024 unlabelled samples: small losses only.

    The bars are those that the project promises: 2.0 points for the CIFAR network on 500 images, 1.5 on the others.
    """
    kit = _kit_module()
    x, _ = kit.for_model(path, "calib", 1024)
    xt, yt = kit.for_model(path, "test")
    out = tmp_path / "out.onnx"
    report = prune(path, out, {Session(str(path)).inputs[0]: x}, ratio=0.3, round_to=1, fast=True).report
    lost = 100 * float((_answers(path, xt) == yt).mean() - (_answers(out, xt) == yt).mean())
    assert report.achieved >= 0.3
    assert lost <= (2.0 if path.stem.startswith("cifar10") else 1.5)


@pytest.mark.parametrize(
    "path", [p for p in kit_models("models") if p.id.startswith(("models/mnist_shufflenetv2_legacy_bn", "no-kit"))]
)
def test_recovery_brings_a_trained_model_closer(path: Path, tmp_path: Path) -> None:
    """On test samples that it never saw, the outputs of a hard cut come at least a fifth closer to the original's."""
    kit = _kit_module()
    x, _ = kit.for_model(path, "calib", 512)
    xt, _ = kit.for_model(path, "test")
    name = Session(str(path)).inputs[0]
    reference = Session(str(path)).run({name: xt})
    errors = []
    for fast in (True, False):
        out = tmp_path / f"{fast}.onnx"
        prune(path, out, {name: x}, ratio=0.5, round_to=1, fast=fast)
        errors.append(relative_error(Session(str(out)).run({name: xt}), reference))
    assert errors[1] < 0.8 * errors[0]
