"""What the child process does with a model: onnx's checker, a first run, the normal form. Runs anywhere, too."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from time import perf_counter

import onnx

from onnxprune.errors import RunError
from onnxprune.graph import external, protobuf
from onnxprune.graph.view import Shape
from onnxprune.intake import declarations, older
from onnxprune.normalise import Normalised, normalise
from onnxprune.runtime import extent, single_precision
from onnxprune.runtime.child import NotLoaded
from onnxprune.runtime.session import Feeds, Session, check_types

_LINE = 200


def check_file(path: str) -> None:
    """ONNX's checker on a file, as a model above 2 GiB cannot be checked in memory. Raises onnx's own errors."""
    onnx.checker.check_model(path)


def opens(content: bytes) -> str:
    """What onnx's checker says against a model that onnxruntime opens, if anything. Raises RunError."""
    proto = onnx.ModelProto.FromString(content)
    try:
        external.check(declarations.with_any_shapes(proto))
    except Exception as e:  # noqa: BLE001  onnx's own errors share no base class
        Session(proto, optimize=False)
        return " ".join(str(e).split())[:_LINE]
    return ""


def output_types(content: bytes) -> dict[str, tuple[str, tuple[int | str | None, ...]]]:
    """Type and sizes of each output, in onnxruntime's words. Raises RunError."""
    return dict(Session(onnx.ModelProto.FromString(content), optimize=False).output_types)


def infer(content: bytes) -> None:
    """Run shape inference to see whether the process outlives it; what it refuses is no matter here."""
    with contextlib.suppress(Exception):
        onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(content), data_prop=True)


def shapes(content: bytes, sizes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The static shapes of the tensors where the inputs have these."""
    return protobuf.shapes_at(onnx.ModelProto.FromString(content), sizes)


def run(content: bytes, feeds: Feeds) -> float:
    """Run a model as it will be run later, optimized and as written; the seconds of the slower run.

    Raises RunError where onnxruntime refuses it, be it that only its float32 twin has kernels and its types do not fit.
    """
    try:
        optimized, plain, size = _sessions(content)
    except RunError as e:
        raise NotLoaded(str(e)) from e
    seconds = 0.0
    for session in (optimized, plain):
        start = perf_counter()
        outputs = session.run(feeds)
        seconds = max(seconds, perf_counter() - start)
        extent.check_run(outputs, size, feeds)
    return seconds


def run_again(content: bytes, feeds: Feeds) -> None:
    """Run a model that has run before, as the calibration will. Raises RunError."""
    _sessions(content)[0].run(feeds)


@lru_cache(maxsize=1)
def _sessions(content: bytes) -> tuple[Session, Session, int]:
    """Load a model: (its session optimized, its session as written, bytes of the model)."""
    proto = onnx.ModelProto.FromString(content)
    if single_precision.uses(proto, single_precision.BFLOAT16 | single_precision.DOUBLE):
        check_types(single_precision.with_distinct_types(proto))
    return Session(proto), Session(proto, optimize=False), external.model_bytes(proto)


def normalised(content: bytes, example: Feeds) -> Normalised:
    """The normal form; in a newer opset, where that can be had, for a model of an old one."""
    proto = onnx.ModelProto.FromString(content)
    newer, note = older.brought_up(proto, example)
    normal_form = normalise(newer, example)
    return replace(normal_form, notes=(note, *normal_form.notes)) if note else normal_form
