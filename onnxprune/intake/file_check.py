"""ONNX's checker on a file, in the child process."""

from __future__ import annotations

from pathlib import Path

from onnxprune.errors import ModelError, OnnxPruneError
from onnxprune.runtime.child import ask


def check_file(path: Path, size: int) -> None:
    """Raises ModelError where onnx's checker refuses the model file, and RunError where it crashes or hangs on it.

    size: of the model with all of its weights.
    """
    try:
        str(path.resolve()).encode()
    except UnicodeEncodeError:  # which neither onnx nor onnxruntime takes
        raise ModelError(f"{path} has a name, or lies in a folder with one, that is not UTF-8; rename it") from None
    try:
        ask("check file", str(path.resolve()), what="checking this model", size=size)
    except OnnxPruneError:
        raise
    except Exception as e:
        raise ModelError(f"{path} is not a valid ONNX model: {' '.join(str(e).split())[:300]}") from e
