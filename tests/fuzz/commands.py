"""What a worker runs: the command line in process, and onnxruntime alone."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

import onnx


def command(argv: list[str], temporary: str | None = None) -> int:
    """The exit code of `onnxprune ARGV`; `temporary` stands for TMPDIR."""
    from onnxprune.cli import main

    tempfile.tempdir = temporary
    try:
        return main(argv)
    finally:
        tempfile.tempdir = None


def runs_alone(path: str, feeds: Mapping[str, Any] | None = None) -> bool:
    """Load a model file in onnxruntime and, where there are feeds, run it; raises what onnxruntime raises."""
    from onnxprune.runtime import Session

    session = Session(path)
    if feeds is not None:
        session.run(feeds)
    return True


def unlike(original: str, output: str) -> str:
    """What is wrong with a model that was written: it does not load where the original does, or declares other things.

    Empty where nothing is. Weights that are also graph inputs are none of the interface.
    """
    from onnxprune.errors import OnnxPruneError
    from onnxprune.runtime import Session

    try:
        Session(output)
    except OnnxPruneError as e:
        try:
            Session(original)
        except OnnxPruneError:
            return ""
        return f"the output does not load: {e}"
    before, after = (onnx.load(p, load_external_data=False) for p in (original, output))
    weights = {t.name for t in before.graph.initializer}
    weights |= {t.values.name for t in before.graph.sparse_initializer}
    if [v for v in before.graph.input if v.name not in weights] != list(after.graph.input):
        return "the output has other inputs"
    return "" if list(before.graph.output) == list(after.graph.output) else "the output has other outputs"
