"""Every weight of a model at every node that reads it: as it was, what stays of it, and what it is in the slim model.

One initializer may be several parameters, since exporters store equal ones once; so a weight is looked at where it is
read, by the node's first output and the slot. Both survive normalisation and the cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.channels import ChannelGraph
from onnxprune.graph import bodies
from onnxprune.graph.protobuf import int_attribute
from onnxprune.handover.kept import kept_shape, masks_of
from onnxprune.handover.stored import Stored, Weights
from onnxprune.numerics.arrays import Array, Mask, is_float


@dataclass(frozen=True, eq=False)
class Reading:
    """A weight where a node reads it.

    node: of the original. tensor, normal: the weight in the normalised model, by name and value. before: what the
    original stores there; None where it has nothing, or computes it in another way. masks: what stays of `normal`.
    after: what the slim model stores there; None where it has nothing. groups: of the slim model's convolution.
    """

    node: onnx.NodeProto
    slot: int
    tensor: str
    normal: Array
    before: Stored | None
    masks: tuple[Mask, ...]
    after: Array | None
    groups: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight in the normalised model."""
        return self.normal.shape

    @property
    def original(self) -> Array:
        """The weight as it was; where the original computes it of constants, what that gives."""
        return self.normal if self.before is None else self.before.values

    @property
    def place(self) -> str:
        """How a message calls it."""
        return f"{self.tensor} ({self.node.op_type} {self.node.name or self.node.output[0]})"

    @property
    def gone(self) -> bool:
        """Whether some axis keeps no position."""
        return 0 in kept_shape(self.shape, self.masks)

    @property
    def fits(self) -> bool:
        """Whether the slim model's weight has the shape that the plan says."""
        return self.after is None or self.after.shape == kept_shape(self.shape, self.masks)

    @property
    def changed(self) -> bool:
        """Whether the slim model has something else there than the normalised one."""
        if self.after is None:
            return bool(self.normal.any())
        return self.after.shape != self.normal.shape or not np.array_equal(self.after, self.normal)


def readings(
    original: onnx.ModelProto, normalised: onnx.ModelProto, slim: onnx.ModelProto, channels: ChannelGraph, keep: Mask
) -> Iterator[Reading]:
    """Every floating-point weight at every node, node by node.

    normalised: what `channels` is of. slim: the result of the cut, as it is written. keep: which classes stay.
    """
    constants = channels.graph.constants
    was, now = Weights(original), Weights(slim)
    for n in bodies.every_node(normalised.graph):
        weights = [(i, name) for i, name in enumerate(n.input) if name in constants and is_float(constants[name].dtype)]
        if not weights:
            continue
        old, new = was.node(n.output[0]), now.node(n.output[0])
        old, new = (None if x is None or x.op_type != n.op_type else x for x in (old, new))
        for slot, tensor in weights:
            before, after = (
                w.read(x.input[slot]) if x is not None and slot < len(x.input) else None
                for w, x in ((was, old), (now, new))
            )
            if before is not None and before.values.shape != constants[tensor].shape:
                before = None
            yield Reading(
                n if old is None else old,
                slot,
                tensor,
                constants[tensor],
                before,
                masks_of(channels, tensor, keep),
                None if after is None else after.values,
                1 if new is None else int_attribute(new, "group", 1),
            )
