"""States that a model is fed back: zeros where units are missing, and no Gather where none is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from onnxprune.graph import external, surgeon
from onnxprune.graph.names import unused
from onnxprune.graph.view import StateGather
from onnxprune.surgery.editing import Cut

# From this version on, Pad reads its amounts; before, they are an attribute.
_PADS_ARE_READ = 11


def repair(node: Any, state: StateGather, cut: Cut) -> None:
    """A Gather that reads a state picks the units that are left; one that writes it gives zeros for the others.

    A zero is put behind the units that are written, which stands for all that went.
    """
    mask = cut.mask(state.units, state.axis)
    if mask is None:
        return
    if not state.written:
        node.inputs[1] = cut.constant(f"{state.tensor}__kept", np.flatnonzero(mask).astype(np.int64))
        return
    kept = int(mask.sum())
    name = unused(f"{state.tensor}__with_zero", cut.taken)
    padded = surgeon.Variable(name, dtype=node.outputs[0].dtype)
    rank = len(cut.channels.graph.shape(state.source) or ())
    pads = [0] * (2 * rank)
    pads[rank + state.axis] = 1
    inputs, attrs = [node.inputs[0]], {"pads": pads}
    if cut.channels.graph.opset >= _PADS_ARE_READ:
        inputs, attrs = [node.inputs[0], cut.constant(f"{name}_pads", np.array(pads, np.int64))], {}
    cut.editing.nodes.append(surgeon.GraphNode("Pad", name=name, attrs=attrs, inputs=inputs, outputs=[padded]))
    places = np.where(mask, np.cumsum(mask) - 1, kept)
    node.inputs = [padded, cut.constant(f"{state.tensor}__places", places.astype(np.int64))]


def take_out(proto: onnx.ModelProto, gathers: Sequence[StateGather]) -> None:
    """Take out, in place, the Gathers between states and nodes that give all that they read."""
    stored = {t.name: t for t in proto.graph.initializer}
    outputs = {o.name for o in proto.graph.output}
    names: dict[str, str] = {}
    gone: set[str] = set()
    # From the back: of several in a row the last one has the name of the output.
    for g in reversed(gathers):
        tensor, source = (names.get(t, t) for t in (g.tensor, g.source))
        whole = [k for k, n in enumerate(proto.graph.node) if list(n.input) == [source, g.indices]]
        if not whole or list(proto.graph.node[whole[0]].output) != [tensor]:
            continue
        indices = external.array_of(stored[g.indices])
        if not np.array_equal(indices, np.arange(g.positions)):
            continue
        del proto.graph.node[whole[0]]
        gone.add(g.indices)
        was, now = (source, tensor) if tensor in outputs else (tensor, source)
        names[was] = now
        _rename(proto, was, now)
    kept = [t for t in proto.graph.initializer if t.name not in gone]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def _rename(proto: onnx.ModelProto, was: str, now: str) -> None:
    for n in proto.graph.node:
        n.input[:] = [now if i == was else i for i in n.input]
        n.output[:] = [now if o == was else o for o in n.output]
    kept = [v for v in proto.graph.value_info if v.name != was]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
