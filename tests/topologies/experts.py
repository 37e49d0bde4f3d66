"""Mixtures of experts, whose inner units go expert by expert, equally many of each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.topologies.text import Topology

_CHOSEN = "Softmax compares"

_BLOCK = 16


def _in_codes(model: onnx.ModelProto) -> None:
    """Make QMoE of MoE, in place: four bits, two to a byte, with a scale and a zero point for each block of inputs."""
    [node] = (n for n in model.graph.node if n.op_type == "MoE")
    stored = {t.name: t for t in model.graph.initializer}
    for name in (node.input[2], node.input[4]):
        w = numpy_helper.to_array(stored[name]).astype(np.float64)
        blocks = w.reshape(*w.shape[:2], -1, _BLOCK)
        least, most = np.minimum(blocks.min(axis=-1), 0), np.maximum(blocks.max(axis=-1), 0)
        scales = (most - least) / 15
        zeros = np.rint(-least / scales)
        codes = np.clip(np.rint(blocks / scales[..., None]) + zeros[..., None], 0, 15).reshape(w.shape).astype(np.uint8)
        points = zeros.astype(np.uint8)
        values = {
            name: codes[..., 0::2] | codes[..., 1::2] << 4,
            f"{name}_scales": scales.astype(np.float32),
            f"{name}_zeros": points[..., 0::2] | points[..., 1::2] << 4,
        }
        stored[name].CopyFrom(numpy_helper.from_array(values.pop(name), name))
        model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in values.items())
    x, router, up, up_bias, down, down_bias = node.input
    node.op_type = "QMoE"
    node.input[:] = [
        *(x, router, up, f"{up}_scales", up_bias, down, f"{down}_scales", down_bias, "", "", ""),
        *(f"{up}_zeros", f"{down}_zeros"),
    ]
    node.attribute.append(helper.make_attribute("block_size", _BLOCK))


ROWS: Mapping[str, Topology] = {
    "experts": Topology(
        """(float[N,6] x) => (float[N,5] y) {
            a = MatMul (x, w1[6,12])
            r = MatMul (a, w2[12,4])
            m = com.microsoft.MoE <k=2, normalize_routing_weights=1> (a, r, u[4,8,12], b[4,8], v[4,12,8], c[4,12])
            s = Add (a, m)
            y = MatMul (s, w3[12,5])
        }""",
        (32, 12),
        (_CHOSEN, "which carries no channels"),
        domains=("com.microsoft",),
    ),
    "experts_in_sequences": Topology(
        # The halves of a gate lie in turns: a unit is one of each.
        """(float[N,L,6] x) => (float[N,L,5] y) {
            a = MatMul (x, w1[6,12])
            t = MatMul (a, w2[12,3])
            r = Reshape (t, i{-1,3})
            m = com.microsoft.MoE <activation_type="swiglu", swiglu_fusion=1> (a, r, u[3,10,12], , v[3,12,5])
            s = Add (a, m)
            y = MatMul (s, w3[12,5])
        }""",
        (15, 12),
        (_CHOSEN,),
        domains=("com.microsoft",),
        opset=21,
    ),
    "experts_in_codes": Topology(
        # Whole blocks of the stream go, and whole blocks of each expert's inner units.
        """(float[N,6] x) => (float[N,5] y) {
            a = MatMul (x, w1[6,32])
            r = MatMul (a, w2[32,3])
            m = com.microsoft.MoE <activation_type="silu", k=2> (a, r, u[3,64,32], b[3,64], v[3,32,64], c[3,32])
            s = Add (a, m)
            y = MatMul (s, w3[32,5])
        }""",
        (12, 2),
        (_CHOSEN, "which carries no channels"),
        domains=("com.microsoft",),
        opset=21,
        ir_version=10,
        edit=_in_codes,
    ),
}
