"""The finishing of a cut model, fitted or not: what only helped the fit goes, and bodies get their weights back."""

from __future__ import annotations

import onnx
from numpy import bool_
from numpy.typing import NDArray

from onnxprune.channels import ChannelGraph
from onnxprune.channels.branches import left_of
from onnxprune.graph.bodies import return_to_bodies
from onnxprune.graph.protobuf import copied
from onnxprune.normalise import Normalised
from onnxprune.surgery import experts, fused, packed_codes, states
from onnxprune.surgery.branches import settle
from onnxprune.surgery.slice import drop_zero_biases, merge_equal_clones
from onnxprune.surgery.tables import put_back


def finish(
    cut: onnx.ModelProto,
    normalised: Normalised,
    channels: ChannelGraph,
    keep: NDArray[bool_],
    *,
    keep_fused: bool = False,
) -> onnx.ModelProto:
    """The model as it is written: a copy of `cut`, in which equal clones are shared again, added biases that are still
    zero are gone, what became constant is a constant, generated tables are generated, and weights lie in the bodies
    from which they came. keep_fused: fused operators are put back where they can be."""
    final = copied(cut)
    merge_equal_clones(final, normalised.clones)
    drop_zero_biases(final, normalised.added_biases)
    left = left_of(channels, keep)
    if left is not None and left.alone:
        final = settle(final, channels, left)
    put_back(final, normalised, channels, keep)
    states.take_out(final, normalised.states)
    packed_codes.put_back(final, normalised.packed)
    experts.put_back(final, normalised.experts)
    if keep_fused:
        fused.put_back(final, normalised.fused)
    return_to_bodies(final, normalised.outside)
    return final
