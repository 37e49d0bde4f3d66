"""The command that builds a TensorRT engine of a model: `trtexec`, which comes with TensorRT.

An ONNX model has its batch as an axis like any other (an explicit batch). Where it leaves sizes open, an engine is
built for a range of them, a profile: the least, those that it is tuned for, and the most. Precisions are asked of the
builder up to TensorRT 10; from 11 on the types of the model decide, and such flags are gone.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import onnx

from onnxprune.graph import bodies
from onnxprune.graph.protobuf import declared_sizes
from onnxprune.graph.view import Shape


@dataclass(frozen=True)
class Span:
    """The shapes of an input: the least and the largest size of each axis, and the usual one."""

    least: Shape
    usual: Shape
    most: Shape

    @classmethod
    def over(cls, shapes: Sequence[Shape]) -> Span:
        """Of shapes that were met, all of one rank: the usual size of an axis is its median."""
        axes = [sorted(sizes) for sizes in zip(*shapes, strict=True)]
        return cls(tuple(a[0] for a in axes), tuple(a[len(a) // 2] for a in axes), tuple(a[-1] for a in axes))

    def with_batch(self, axis: int, batch: int) -> Span:
        """The same from one sample on, and tuned for so many."""

        def put(shape: Shape, n: int) -> Shape:
            return (*shape[:axis], n, *shape[axis + 1 :])

        return Span(put(self.least, 1), put(self.usual, batch), put(self.most, batch))


def flags_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """What is asked of the builder up to TensorRT 10: half precision, and integers where the model says where."""
    quantized = any(n.op_type == "QuantizeLinear" for n in bodies.every_node(model.graph))
    return ("--int8", "--fp16") if quantized else ("--fp16",)


def open_inputs(model: onnx.ModelProto) -> tuple[str, ...]:
    """The inputs with sizes that the model leaves open."""
    weights = {t.name for t in model.graph.initializer}
    return tuple(
        v.name
        for v in model.graph.input
        if v.name not in weights and any(not isinstance(size, int) for size in declared_sizes(v))
    )


def command(path: str, model: onnx.ModelProto, spans: Mapping[str, Span]) -> str:
    """The command for the model in the file at `path`. spans: of its inputs; those that it leaves open are named."""
    engine = str(PurePath(path).with_suffix(".engine"))
    words = ["trtexec", f"--onnx={path}", f"--saveEngine={engine}", *flags_of(model)]
    named = {name: spans[name] for name in open_inputs(model) if name in spans}
    if named:
        for flag, part in (("--minShapes", "least"), ("--optShapes", "usual"), ("--maxShapes", "most")):
            shapes = ",".join(f"{name}:{'x'.join(map(str, getattr(s, part)))}" for name, s in named.items())
            words.append(f"{flag}={shapes}")
    return shlex.join(words)
