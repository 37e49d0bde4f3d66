"""Weights that nothing reads any more."""

from __future__ import annotations

from collections.abc import Container

import onnx

from onnxprune.graph import bodies
from onnxprune.normalise.constants import returned


def drop_unread(proto: onnx.ModelProto, before: Container[str] | None = None) -> None:
    """Remove, in place, the initializers that nothing reads; before: only those that something read then."""
    read = {i for n in bodies.every_node(proto.graph) for i in n.input} | returned(proto)
    kept = [t for t in proto.graph.initializer if t.name in read or (before is not None and t.name not in before)]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
