"""Every method on the architectures of Ye, Wu & Liu (NeurIPS 2020), made small: ResNets, MobileNets and DGCNN."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune import prune
from onnxprune.methods import METHODS, with_scales
from onnxprune.numerics.arrays import Array
from tests.calibrated import samples_of
from tests.kit import NO_KIT, kit_folder
from tests.prepared import prepare
from tests.sampled import every, share
from tests.topologies.text import Topology

GREEDY = with_scales()
BASIC = """(float[N,3,6,6] x) => (float[N,5] y) {
    a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
    r = Relu (a)
    c = Conv <pads=[1,1,1,1]> (r, w2[6,8,3,3], b2[6])
    d = Relu (c)
    e = Conv <pads=[1,1,1,1]> (d, w3[8,6,3,3], b3[8])
    s = Add (e, r)
    t = Relu (s)
    u = Conv <strides=[2,2]> (t, w4[10,8,1,1], b4[10])
    f = Conv <pads=[1,1,1,1], strides=[2,2]> (t, w5[8,8,3,3], b5[8])
    g = Relu (f)
    h = Conv <pads=[1,1,1,1]> (g, w6[10,8,3,3], b6[10])
    i = Add (h, u)
    j = Relu (i)
    p = GlobalAveragePool (j)
    q = Flatten (p)
    y = Gemm <transB=1> (q, w7[5,10], b7[5])
}"""
BOTTLENECK = """(float[N,3,6,6] x) => (float[N,5] y) {
    a = Conv (x, w1[12,3,1,1])
    n = BatchNormalization (a, s1[12], o1[12], m1[12], var1[12])
    r = Relu (n)
    c = Conv (r, w2[6,12,1,1], b2[6])
    d = Relu (c)
    e = Conv <pads=[1,1,1,1]> (d, w3[6,6,3,3], b3[6])
    f = Relu (e)
    g = Conv (f, w4[12,6,1,1])
    h = BatchNormalization (g, s2[12], o2[12], m2[12], var2[12])
    s = Add (h, r)
    t = Relu (s)
    p = GlobalAveragePool (t)
    q = Flatten (p)
    y = Gemm <transB=1> (q, w5[5,12], b5[5])
}"""
MOBILENET_V2 = """(float[N,3,6,6] x) => (float[N,5] y) {
    a = Conv <pads=[1,1,1,1]> (x, w1[6,3,3,3], b1[6])
    r = Clip (a, lo{:0.0}, hi{:6.0})
    c = Conv (r, w2[12,6,1,1], b2[12])
    d = Clip (c, lo, hi)
    e = Conv <group=12, pads=[1,1,1,1]> (d, w3[12,1,3,3], b3[12])
    f = Clip (e, lo, hi)
    g = Conv (f, w4[6,12,1,1], b4[6])
    s = Add (r, g)
    h = Conv (s, w5[10,6,1,1], b5[10])
    i = Clip (h, lo, hi)
    p = ReduceMean <keepdims=0> (i, hw{2,3})
    y = Gemm (p, w6[10,5], b6[5])
}"""
MOBILENET_V3 = """(float[N,3,6,6] x) => (float[N,5] y) {
    a = Conv <pads=[1,1,1,1]> (x, w1[6,3,3,3], b1[6])
    r = HardSwish (a)
    c = Conv (r, w2[12,6,1,1], b2[12])
    d = HardSwish (c)
    e = Conv <group=12, pads=[1,1,1,1]> (d, w3[12,1,3,3], b3[12])
    p = GlobalAveragePool (e)
    q = Conv (p, w4[4,12,1,1], b4[4])
    t = Relu (q)
    u = Conv (t, w5[12,4,1,1], b5[12])
    v = HardSigmoid (u)
    m = Mul (e, v)
    f = HardSwish (m)
    g = Conv (f, w6[6,12,1,1], b6[6])
    s = Add (r, g)
    h = GlobalAveragePool (s)
    i = Flatten (h)
    y = Gemm <transB=1> (i, w7[5,6], b7[5])
}"""
# Points, their nearest neighbours by distance in the features of the layer before, and the edges to them.
DGCNN = """(float[N,3,8] x) => (float[N,5] y) {
    a = Conv (x, w1[10,3,1], b1[10])
    r = LeakyRelu <alpha=0.2> (a)
    t = Transpose <perm=[0,2,1]> (r)
    d = MatMul (t, r)
    v, i = TopK <axis=-1> (d, k{3})
    j = Unsqueeze (i, last{-1})
    n = GatherND <batch_dims=1> (t, j)
    c = Unsqueeze (t, two{2})
    e = Sub (n, c)
    w = Expand (c, wide{1,1,3,1})
    o = Concat <axis=-1> (e, w)
    f = Transpose <perm=[0,3,1,2]> (o)
    g = Conv (f, w2[12,20,1,1], b2[12])
    h = LeakyRelu <alpha=0.2> (g)
    m = ReduceMax <keepdims=0> (h, three{3})
    q = Concat <axis=1> (r, m)
    u = Conv (q, w3[16,22,1], b3[16])
    z = Relu (u)
    p = GlobalMaxPool (z)
    s = Flatten (p)
    y = Gemm <transB=1> (s, w4[5,16], b4[5])
}"""
NETWORKS = {
    "resnet_basic": BASIC,
    "resnet_bottleneck": BOTTLENECK,
    "mobilenet_v2": MOBILENET_V2,
    "mobilenet_v3": MOBILENET_V3,
    "dgcnn": DGCNN,
}
KIT = (
    "arch/mobilenetv3_small",
    "arch/resnet50_w8",
    "arch/resnet18_w16_bn",
    "arch/mobilenetv2_bn",
    "arch/dgcnn",
    "models/cifar10_resnet20_dynamo",
    "models/cifar10_resnet20_legacy_bn",
)
# Those on which the method that walks twice is quick.
BOTH = ("arch/resnet18_w16_bn", "arch/dgcnn", "models/cifar10_resnet20_legacy_folded")
RATIO = 0.4


@cache
def material(name: str) -> tuple[Any, dict[str, Array]]:
    """The model and 32 samples."""
    row = Topology(NETWORKS[name], ())
    model = row.model()
    return model, dict(samples_of(prepare(model, row.feeds(2)), 32).arrays)


def check(report: Any) -> None:
    assert report.achieved >= RATIO
    assert report.after.macs < report.before.macs
    assert report.checks["slice_against_oracle"] <= report.checks["tolerance"] <= 1e-4
    assert np.isfinite(report.output_error)


WAYS = [*((m, "lockstep") for m in METHODS), *((m, "greedy") for m in GREEDY)]


@pytest.mark.parametrize(
    ("name", "method", "refit"), [(n, *way) for i, n in enumerate(NETWORKS) for way in share(i, 2, WAYS)]
)
def test_every_method(name: str, method: str, refit: str) -> None:
    """Fails where a method cannot prune an architecture that its authors did, or what it writes is not exact."""
    model, data = material(name)
    result = prune(model, None, data, method=method, refit=refit, ratio=RATIO, round_to=1, fast=True)
    check(result.report)
    assert result.report.checks["refit"] in ({refit, "least-squares"} if refit == "lockstep" else {refit})
    assert not any("no gradient" in n for n in result.report.notes)
    given = [g for g in result.plan.groups if g.coefficients is not None]
    assert bool(given) == (method in GREEDY)
    for g in given:
        assert g.coefficients is not None
        assert min(g.coefficients) >= 0.0


@pytest.mark.parametrize(
    ("name", "method"), every(2, [*((n, "global") for n in KIT), *((n, "combined") for n in BOTH)])
)
def test_exported_models(name: str, method: str, tmp_path: Path) -> None:
    """As above, on graphs as exporters write them."""
    path = kit_folder() / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(NO_KIT)
    result = prune(path, tmp_path / "out.onnx", method=method, refit="greedy", ratio=RATIO, round_to=1, samples=16)
    check(result.report)
    assert (tmp_path / "out.onnx").is_file()
