"""ONNX's checker on a file, in the child process, and onnxruntime's word where the checker refuses it."""

from __future__ import annotations

from pathlib import Path

import onnx

from onnxprune.errors import ModelError, OnnxPruneError
from onnxprune.intake import first_run, unknown
from onnxprune.runtime.child import ask


def check_file(path: Path, proto: onnx.ModelProto, size: int) -> str:
    """What to say of a file that onnx's checker refuses and onnxruntime opens; "" where there is nothing to say.

    proto: the model of the file, as it is used from here on (`intake.loose`); where only the file is refused, the
    checker has nothing against it. size: of the model with all of its weights. Raises ModelError where neither takes
    it, and RunError where the checker crashes or hangs on the file.
    """
    try:
        str(path.resolve()).encode()
    except UnicodeEncodeError:  # which neither onnx nor onnxruntime takes
        raise ModelError(f"{path} has a name, or lies in a folder with one, that is not UTF-8; rename it") from None
    try:
        ask("check file", str(path.resolve()), what="checking this model", size=size)
    except OnnxPruneError:
        raise
    except Exception as e:  # noqa: BLE001  onnx's own errors share no base class
        refused = ModelError(f"{path} is not a valid ONNX model: {' '.join(str(e).split())[:300]}")
        try:
            why = first_run.opens(unknown.cut_off(proto)[0])
        except OnnxPruneError:
            raise refused from e
        return f"onnx's checker refuses the model, and onnxruntime opens it ({why})" if why else ""
    return ""
