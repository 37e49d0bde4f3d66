"""Models of opsets before 9, brought to 9 by onnx's own converter: what is written into graphs is in that one.

Models with weights in blocks of codes are brought to 21 in the same way, the first opset that has such blocks.

The converter does not know every operator, may leave bodies as they are, and loses values that lie in files: so it gets
the graph without these, what it makes is checked and held against the model as it was, and all of it is done in the
child process. The original itself, which the result is measured against, stays in its opset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.version_converter

from onnxprune.errors import ModelError, NothingPrunable, RunError
from onnxprune.graph import bodies, external, protobuf
from onnxprune.graph.packed_codes import MIXTURE
from onnxprune.graph.protobuf import copied
from onnxprune.normalise.unfused import PACKED, operator_of
from onnxprune.normalise.unfused.packed_codes import FROM_OPSET
from onnxprune.numerics.arrays import Array, is_float
from onnxprune.runtime.session import Session

OLDEST = 9
_MIXTURE = f"com.microsoft.{MIXTURE}"
# Relative to the largest entry: the same kernels compute the same, other operators in their place nearly so.
_TOLERANCE = 1e-5


def is_older(proto: onnx.ModelProto) -> bool:
    """Whether the standard operators are of a version that is converted."""
    return any(o.domain in ("", "ai.onnx") for o in proto.opset_import) and protobuf.opset_of(proto) < OLDEST


def brought_up(proto: onnx.ModelProto, example: Mapping[str, Array]) -> tuple[onnx.ModelProto, str]:
    """(the model in an opset that its graph is written in, what to say of it); the model itself where that cannot be.

    Weights in blocks of codes are written in a newer opset than others. Where a model with such cannot be brought to
    it, they stay as they are, and so do their channels; the normal form says why.
    """
    older = is_older(proto)
    wanted = OLDEST if older else FROM_OPSET if _has_blocks(proto) else 0
    if protobuf.opset_of(proto) >= wanted:
        return proto, ""
    try:
        newer = converted(proto, example, wanted)
    except ModelError as e:
        return proto, str(e) if older else ""
    why = "" if older else ", as older ones know no blocks of codes"
    return newer, (
        f"the model is in opset {protobuf.opset_of(proto)}; onnx's converter brought it to opset {wanted}, in which "
        f"the result is written{why}"
    )


def _has_blocks(proto: onnx.ModelProto) -> bool:
    # A function imports an opset of its own, which would stay as it is.
    return not proto.functions and any(operator_of(n) in {*PACKED, _MIXTURE} for n in bodies.every_node(proto.graph))


def check(proto: onnx.ModelProto, notes: Sequence[str]) -> None:
    """Raises NothingPrunable for a normal form that nothing can be written into. notes: of `brought_up`, and others."""
    if is_older(proto):
        raise NothingPrunable(f"no channel can be removed: {notes[0]}")


def converted(proto: onnx.ModelProto, example: Mapping[str, Array], wanted: int = OLDEST) -> onnx.ModelProto:
    """A copy in the opset `wanted`. Raises ModelError where it is not to be had, or computes otherwise on `example`."""
    opset = protobuf.opset_of(proto)
    refused = f"the model is in opset {opset}, and cannot be cut, as it cannot be brought to opset {wanted}"
    advice = "export it anew with a newer opset"
    result = copied(proto)
    for o in result.opset_import:
        if o.domain in ("", "ai.onnx"):
            o.version = wanted
    # From 4 on an initializer need not be an input; blocks of codes may have four bits, which version 10 knows.
    result.ir_version = max(proto.ir_version, 4 if wanted == OLDEST else 10)
    try:
        result.graph.CopyFrom(_graph(proto, wanted))
        protobuf.check(result, strict=False)
    except Exception as e:  # the converter's and the checker's errors share no base class
        raise ModelError(f"{refused}: {' '.join(str(e).split())[:200]}; {advice}") from e
    before = Session(proto, optimize=False)
    expected = before.run(example)
    try:
        outputs = Session(result, optimize=False).run(example)
    except RunError as e:
        raise ModelError(f"{refused}: what onnx's converter makes of it does not run ({e}); {advice}") from e
    differing = [k for k, y in expected.items() if not _same(y, outputs.get(k))]
    if differing:
        again = before.run(example)  # what draws random numbers differs from itself
        differing = [k for k in differing if _same(expected[k], again[k])]
    if differing:
        raise ModelError(f"{refused}: what onnx's converter makes of it has another {differing[0]!r}; {advice}")
    return result


def _graph(proto: onnx.ModelProto, wanted: int) -> onnx.GraphProto:
    """The converted graph, with its weights as they are stored and its inputs and outputs as they are declared."""
    given = copied(proto)
    given.ir_version = max(proto.ir_version, 4)
    listed = {v.name for v in proto.graph.input}
    outside = [t for t in given.graph.initializer if external.is_external(t)]
    for t in outside:
        if t.name not in listed:
            given.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims))
        given.graph.initializer.remove(t)
    graph = onnx.version_converter.convert_version(given, wanted).graph
    stored = {t.name: t for t in proto.graph.initializer}
    made = [t for t in graph.initializer if t.name not in stored]
    del graph.initializer[:], graph.input[:], graph.output[:]
    graph.initializer.extend((*proto.graph.initializer, *made))
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    return graph


def _same(a: object, b: object) -> bool:
    """Whether two outputs are equal, up to rounding."""
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and is_float(a.dtype)):
        return repr(a) == repr(b) if not isinstance(a, np.ndarray) else np.array_equal(a, np.asarray(b))
    if a.shape != b.shape:
        return False
    wide, other = a.astype(np.float64), b.astype(np.float64)
    largest = float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0))
    return bool(np.allclose(wide, other, rtol=_TOLERANCE, atol=_TOLERANCE * largest, equal_nan=True))
