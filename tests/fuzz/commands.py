"""What a worker runs: the command line in process, and onnxruntime alone."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

import onnx


def command(argv: list[str], temporary: str | None = None) -> int:
    """The exit code of `onnxprune ARGV`; `temporary` stands for TMPDIR."""
    from onnxprune.cli.program import main

    tempfile.tempdir = temporary
    try:
        return main(argv)
    finally:
        tempfile.tempdir = None


def runs_alone(path: str, feeds: Mapping[str, Any] | None = None) -> bool:
    """Load a model file in onnxruntime and, where there are feeds, run it; raises what onnxruntime raises."""
    from onnxprune.runtime.session import Session

    session = Session(path)
    if feeds is not None:
        session.run(feeds)
    return True


def unlike(original: str, output: str) -> str:
    """What is wrong with a model that was written: it does not load where the original does, or declares other things.

    Empty where nothing is. Weights that are also graph inputs are none of the interface.
    """
    from onnxprune.errors import OnnxPruneError
    from onnxprune.intake.declarations import with_free_dimensions
    from onnxprune.runtime.session import Session

    try:
        said = Session(output).output_types
    except OnnxPruneError as e:
        try:
            Session(original)
        except OnnxPruneError:
            return ""
        return f"the output does not load: {e}"
    # onnxruntime takes a size below 0, and a "?", for a free dimension.
    before, after = (with_free_dimensions(onnx.load(p, load_external_data=False)) for p in (original, output))
    if _asked(before) != _asked(after):
        return "the output has other inputs"
    outputs = [*zip(before.graph.output, after.graph.output, strict=False)]
    same = len(before.graph.output) == len(after.graph.output) and all(_fits(b, a) for b, a in outputs if _declares(b))
    if same and not all(_declares(b) for b, _ in outputs):  # then onnxruntime says the same of both
        known = Session(original).output_types
        same = all(b.name == a.name and _alike(known[b.name], said[b.name]) for b, a in outputs if not _declares(b))
    return "" if same else "the output has other outputs"


def _declares(v: onnx.ValueInfoProto) -> bool:
    """Whether a type is declared, and of a tensor its shape."""
    kind = v.type.WhichOneof("value")
    return kind is not None and (kind != "tensor_type" or v.type.tensor_type.HasField("shape"))


def _alike(before: tuple[str, Any], after: tuple[str, Any]) -> bool:
    """Whether two outputs have one type, and no sizes that contradict each other."""
    (kind, old), (same_kind, new) = before, after
    sizes = not old or (
        len(old) == len(new) and all(a == b for a, b in zip(old, new, strict=True) if {type(a), type(b)} == {int})
    )
    return kind == same_kind and sizes


def _asked(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs without those that have a default."""
    weights = {t.name for t in model.graph.initializer}
    weights |= {t.values.name for t in model.graph.sparse_initializer}
    return [v for v in model.graph.input if v.name not in weights]


def _fits(before: onnx.ValueInfoProto, after: onnx.ValueInfoProto) -> bool:
    """Whether an output is declared as it was; sizes that were declared falsely may be left out."""
    if before.name != after.name or not before.type.HasField("tensor_type"):
        return before == after
    old, new = before.type.tensor_type, after.type.tensor_type
    if old.elem_type != new.elem_type:
        return False
    if not new.HasField("shape"):
        return True
    free = onnx.TensorShapeProto.Dimension()
    if len(old.shape.dim) != len(new.shape.dim):  # the number of axes was false
        return all(d == free for d in new.shape.dim)
    return all(b in (a, free) for a, b in zip(old.shape.dim, new.shape.dim, strict=True))
