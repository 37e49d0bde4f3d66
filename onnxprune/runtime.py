"""The only user of onnxruntime: sessions over in-memory models, with quiet logs and one-line errors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxprune.errors import RunError

Array = NDArray[Any]
Feeds = Mapping[str, Array]

_ERROR = 3
_FATAL = 4
_LINE = 300

# onnx-graphsurgeon opens sessions of its own to fold constants; their warnings speak of models that the user never saw.
ort.set_default_logger_severity(_ERROR)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:_LINE]


class Session:
    """An onnxruntime session on the CPU (or `providers`).

    model: a ModelProto or a path. optimize=False keeps every intermediate tensor as the graph defines it. spin: let
    idle workers spin, onnxruntime's own default; that takes the cores from numpy's BLAS between two runs.
    Raises RunError where onnxruntime refuses the model or a run.
    """

    def __init__(
        self,
        model: onnx.ModelProto | str | os.PathLike[str],
        *,
        optimize: bool = True,
        spin: bool = False,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else os.fspath(model)
        try:
            self._session = ort.InferenceSession(source, options, providers=list(providers))
        except Exception as e:  # onnxruntime's exceptions share no base class below Exception
            raise RunError(f"onnxruntime cannot load the model: {_one_line(e)}") from e
        self.overridable = frozenset(i.name for i in self._session.get_overridable_initializers())
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self.outputs = tuple(o.name for o in self._session.get_outputs())

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Outputs by name; feeds that the model does not read are ignored."""
        names = list(self.outputs if outputs is None else outputs)
        known = set(self.inputs)
        try:
            values = self._session.run(names, {k: v for k, v in feeds.items() if k in known or k in self.overridable})
        except Exception as e:  # as above
            raise RunError(f"onnxruntime cannot run the model: {_one_line(e)}") from e
        return dict(zip(names, values, strict=True))


def concatenated(parts: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """The outputs that are arrays in each of several runs, joined along the first axis."""
    arrays = [k for k in parts[0] if all(isinstance(p[k], np.ndarray) for p in parts)]
    return {k: np.concatenate([np.atleast_1d(p[k]) for p in parts]) for k in arrays}


def version() -> str:
    """The version of onnxruntime."""
    return str(ort.__version__)
