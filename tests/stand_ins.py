"""Small networks of the kinds that the how-to pages are about, with random weights: what the pages' commands run on.

A page asks for one by a comment that no reader sees:

    <!-- stand-in: detector yolo.onnx yolo.npz -->

The model goes to the first file, samples for it to the second one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tests.topologies.text import Topology

Data = dict[str, NDArray[Any]]

# Two scales; each gives the centre and the size of a box, in pixels, and the scores of three classes at every place.
DETECTOR = """(float[N,3,32,32] images) => (float[N,7,80] output0) {
    a = Conv <pads=[1,1,1,1], strides=[2,2]> (images, stem[16,3,3,3], stem_b[16])
    as = Sigmoid(a)
    au = Mul(a, as)
    b = Conv <pads=[1,1,1,1], strides=[2,2]> (au, down[24,16,3,3], down_b[24])
    bs = Sigmoid(b)
    bu = Mul(b, bs)
    l, r = Split <axis=1, num_outputs=2> (bu)
    c = Conv <pads=[1,1,1,1]> (r, bottleneck[12,12,3,3], bottleneck_b[12])
    cs = Sigmoid(c)
    cu = Mul(c, cs)
    d = Concat <axis=1> (l, r, cu)
    e = Conv <pads=[1,1,1,1], strides=[2,2]> (d, deep[32,36,3,3], deep_b[32])
    es = Sigmoid(e)
    eu = Mul(e, es)
    fine = Conv(d, head_fine[7,36,1,1], head_fine_b[7])
    coarse = Conv(eu, head_coarse[7,32,1,1], head_coarse_b[7])
    flat_fine = Reshape(fine, flat{0,7,-1})
    flat_coarse = Reshape(coarse, flat)
    every = Concat <axis=2> (flat_fine, flat_coarse)
    raw, logits = Split <axis=1> (every, four_three{4,3})
    shares = Sigmoid(raw)
    side = Constant <value = float {32.0}> ()
    boxes = Mul(shares, side)
    scores = Sigmoid(logits)
    output0 = Concat <axis=1> (boxes, scores)
}"""

_ENCODER = """
    table = Gather(words[64,24], input_ids)
    x = LayerNormalization <axis=-1> (table, first_s[24], first_b[24])
    q = MatMul(x, wq[24,24])
    k = MatMul(x, wk[24,24])
    v = MatMul(x, wv[24,24])
    qh = Reshape(q, heads{0,-1,4,6})
    kh = Reshape(k, heads)
    vh = Reshape(v, heads)
    qt = Transpose <perm=[0,2,1,3]> (qh)
    kt = Transpose <perm=[0,2,3,1]> (kh)
    vt = Transpose <perm=[0,2,1,3]> (vh)
    scores = MatMul(qt, kt)
    seen = Cast <to=1> (attention_mask)
    there = Unsqueeze(seen, one_two{1,2})
    unseen = Sub(one, there)
    low = Mul(unseen, far)
    masked = Add(scores, low)
    p = Softmax <axis=-1> (masked)
    m = MatMul(p, vt)
    mt = Transpose <perm=[0,2,1,3]> (m)
    joined = Reshape(mt, back{0,-1,24})
    o = MatMul(joined, wo[24,24])
    y = Add(x, o)
    z = LayerNormalization <axis=-1> (y, second_s[24], second_b[24])
    inner = MatMul(z, up[24,96])
    shifted = Add(inner, up_b[96])
    erf = Sigmoid(shifted)
    gelu = Mul(shifted, erf)
    outer = MatMul(gelu, down[96,24])
    w = Add(z, outer)
    hidden = LayerNormalization <axis=-1> (w, third_s[24], third_b[24])
"""
_TOKENS = "(int64[N,T] input_ids, int64[N,T] attention_mask)"
_NUMBERS = "<float one = {1.0}, float far = {-10000.0}>"
CLASSIFIER = f"""{_TOKENS} => (float[N,3] logits) {_NUMBERS} {{{_ENCODER}
    first = Gather <axis=1> (hidden, start{{:0}})
    logits = MatMul(first, classes[24,3])
}}"""
EMBEDDER = f"""{_TOKENS} => (float[N,24] embedding) {_NUMBERS} {{{_ENCODER}
    column = Unsqueeze(seen, last{{2}})
    kept = Mul(hidden, column)
    sum = ReduceSum <keepdims=0> (kept, rows{{1}})
    count = ReduceSum <keepdims=0> (column, rows)
    mean = Div(sum, count)
    embedding = LpNormalization <axis=-1, p=2> (mean)
}}"""

DECODER = """(int64[N,T] input_ids) => (float[N,T,64] logits) {
    x = Gather(words[64,24], input_ids)
    a = LayerNormalization <axis=-1> (x, first_s[24])
    q = MatMul(a, wq[24,24])
    k = MatMul(a, wk[24,12])
    v = MatMul(a, wv[24,12])
    m = Attention <q_num_heads=4, kv_num_heads=2, is_causal=1> (q, k, v)
    o = MatMul(m, wo[24,24])
    y = Add(x, o)
    b = LayerNormalization <axis=-1> (y, second_s[24])
    g = MatMul(b, gate[24,64])
    u = MatMul(b, up[24,64])
    gs = Sigmoid(g)
    silu = Mul(g, gs)
    h = Mul(silu, u)
    d = MatMul(h, down[64,24])
    z = Add(y, d)
    n = LayerNormalization <axis=-1> (z, third_s[24])
    logits = MatMul(n, head[24,64])
}"""

DENOISER = """(float[N,16] frame, float[1,N,24] state) => (float[N,16] mask, float[1,N,24] state_out) {
    a = MatMul(frame, encode[16,32])
    b = Relu(a)
    step = Unsqueeze(b, zero{0})
    seq, state_out = GRU <hidden_size=24> (step, w[1,72,32], r[1,72,24], bias[1,144], , state)
    out = Squeeze(seq, zero_one{0,1})
    c = MatMul(out, decode[24,16])
    mask = Sigmoid(c)
}"""


def _images(rng: np.random.Generator) -> Data:
    return {"images": rng.random((64, 3, 32, 32), dtype=np.float32)}


def _tokens(rng: np.random.Generator) -> Data:
    mask = (np.arange(12) < rng.integers(4, 13, (128, 1))).astype(np.int64)
    return {"input_ids": rng.integers(1, 64, (128, 12)) * mask, "attention_mask": mask}


def _ids(rng: np.random.Generator) -> Data:
    """Texts that need 40 of 64 tokens."""
    return {"input_ids": rng.integers(0, 40, (64, 16))}


def _frames(rng: np.random.Generator) -> Data:
    return {"frame": rng.standard_normal((128, 16), dtype=np.float32)}


KINDS: Mapping[str, tuple[Topology, Callable[[np.random.Generator], Data]]] = {
    "detector": (Topology(DETECTOR, ()), _images),
    "classifier": (Topology(CLASSIFIER, ()), _tokens),
    "embedder": (Topology(EMBEDDER, ()), _tokens),
    "decoder": (Topology(DECODER, (), opset=23, ir_version=10), _ids),
    "denoiser": (Topology(DENOISER, ()), _frames),
}


def write(kind: str, model: str, data: str) -> None:
    """Write a network of that kind, and samples for it."""
    topology, samples = KINDS[kind]
    onnx.save(topology.model(), model)
    np.savez(data, **samples(np.random.default_rng(0)))
