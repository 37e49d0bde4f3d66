"""Small networks as text, with random weights, that tests quantize."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

RESIDUAL = """(float[N,3,8,8] x) => (float[N,5] y) {
    c1 = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
    r1 = Relu (c1)
    c2 = Conv <pads=[1,1,1,1]> (r1, w2[8,8,3,3], b2[8])
    s = Add (c2, r1)
    r2 = Relu (s)
    g = GlobalAveragePool (r2)
    f = Flatten (g)
    y = Gemm <transB=1> (f, w3[5,8], b3[5])
}"""
TRANSFORMER = """(float[N,4,8] x) => (float[N,4,8] y) {
    n = LayerNormalization <axis=-1> (x, g1[8], h1[8])
    m = MatMul (n, w1[8,16])
    b = Add (m, b1[16])
    r = Relu (b)
    k = MatMul (r, w2[16,8])
    y = Add (k, x)
}"""
NORMALIZED = """(float[N,3,8,8] x) => (float[N,4,8,8] y) {
    c = Conv <pads=[1,1,1,1]> (x, w1[6,3,3,3])
    n = BatchNormalization (c, g1[6], h1[6], m1[6], v1[6])
    r = Relu (n)
    y = Conv (r, w2[4,6,1,1], b2[4])
}"""


def network(text: str, *, opset: int = 17, seed: int = 0, wide: float = 1.0) -> onnx.ModelProto:
    """The model of a text, in which `w1[8,3,3,3]` is a random weight. wide: a factor on half of the channels
    that a normalization gives, which the layer behind it takes back."""
    rng = np.random.default_rng(seed)
    ports, _, body = text.partition("{")
    shapes = {k: tuple(map(int, v.split(","))) for k, v in re.findall(r"(\w+)\[([\d,]+)\](?=[,)])", body)}
    body = re.sub(r"(\w+)\[[\d,]+\](?=[,)])", r"\1", body)
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> net {ports} {{{body}')
    for k, shape in shapes.items():
        w = rng.standard_normal(shape).astype(np.float32) / np.float32(max(np.prod(shape[1:]), 1)) ** 0.5
        if k[0] in "gv":
            w = np.abs(w) + np.float32(0.5)
        if k in ("g1", "h1"):
            w[::2] *= np.float32(wide)
        if k == "w2" and len(shape) > 2:
            w[:, ::2] /= np.float32(wide)
        elif k == "w1" and len(shape) == 2:
            w[::2] /= np.float32(wide)
        model.graph.initializer.append(numpy_helper.from_array(w, k))
    for i, n in enumerate(model.graph.node):
        n.name = f"{n.op_type}_{i}"
    return model
