"""ONNX's checker on a file, in the child process."""

from __future__ import annotations

from pathlib import Path

from onnxprune.errors import ModelError, OnnxPruneError
from onnxprune.intake.child import ask


def check_file(path: Path, size: int) -> None:
    """Raises ModelError where onnx's checker refuses the model file, and RunError where it crashes or hangs on it.

    size: of the model with all of its weights.
    """
    try:
        ask("check file", str(path.resolve()), what="checking this model", size=size)
    except OnnxPruneError:
        raise
    except Exception as e:
        raise ModelError(f"{path} is not a valid ONNX model: {' '.join(str(e).split())[:300]}") from e
