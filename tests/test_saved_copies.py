"""Copies that onnxruntime saves of a network lose what the network loses, and are written in standard operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.saved_copies import LEVELS, saved
from onnxprune import prune
from onnxprune.pipeline import inspect
from onnxprune.runtime.session import Session
from tests.topologies.text import Topology

NETWORKS = {
    "convolutions": Topology(
        """(float[N,3,12,12] x) => (float[N,5] y) {
            a = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w1[20,3,3,3], b1[20])
            r = Relu (a)
            c = Conv <pads=[1,1,1,1]> (r, w2[24,20,3,3], b2[24])
            s = Sigmoid (c)
            t = Mul (c, s)
            d = Conv (t, w3[20,24,1,1], b3[20])
            e = Add (d, r)
            f = Relu (e)
            g = GlobalAveragePool (f)
            h = Flatten (g)
            y = Gemm (h, w4[20,5], b4[5])
        }""",
        (),
    ),
    "a block of a transformer": Topology(
        """(float[N,4,12] x) => (float[N,4,6] y) {
            q = MatMul (x, wq[12,24])
            e = Add (q, be[24])
            n = LayerNormalization <axis=-1> (e, g1[24], h1[24])
            u = MatMul (n, w1[24,40])
            b = Add (u, b1[40])
            d = Div (b, root{:1.4142135})
            f = Erf (d)
            o = Add (f, one{:1.})
            m = Mul (b, o)
            v = Mul (m, half{:0.5})
            w = MatMul (v, w2[40,24])
            c = Add (w, b2[24])
            s = Add (c, e)
            p = LayerNormalization <axis=-1> (s, g2[24], h2[24])
            y = MatMul (p, w3[24,6])
        }""",
        (),
    ),
}
_FUSED = {
    "convolutions": {"FusedConv", "QuickGelu"},
    "a block of a transformer": {"BiasGelu", "SkipLayerNormalization"},
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", NETWORKS)
def test_as_much_can_go(name: str, level: str, tmp_path: Path):
    """Fails where a copy keeps channels that its original can lose, or has layers of another size."""
    original = NETWORKS[name].model()
    copy = saved(original, level, tmp_path / "copy.onnx")
    fused = {n.op_type for n in copy.graph.node if n.domain.startswith("com.microsoft")}
    assert not fused if level == "basic" else level == "all" or fused >= _FUSED[name]
    before, after = inspect(original), inspect(copy)
    assert after.macs == before.macs
    assert abs(after.share_of_macs - before.share_of_macs) <= 0.01
    assert sorted(g.units for g in after.groups) == sorted(g.units for g in before.groups)
    stays = [note for note in after.notes if "written in standard ones" in note]
    assert bool(stays) == bool(fused)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_result_is_in_standard_operators(name: str, tmp_path: Path):
    """Fails where the result is bound to one runtime, or to one processor, as the copy was; or is no longer valid."""
    copy = saved(NETWORKS[name].model(), "all", tmp_path / "copy.onnx")
    out = tmp_path / "out.onnx"
    result = prune(copy, out, None, ratio=0.4, refit="none", samples=8, round_to=1)
    written = onnx.load(out)
    assert {n.domain for n in written.graph.node} == {""}
    assert not any(o.domain.startswith("com.microsoft") for o in written.opset_import)
    onnx.checker.check_model(written, full_check=True)
    assert result.report.after.macs < 0.7 * result.report.before.macs
    feeds = NETWORKS[name].feeds(3)
    assert np.isfinite(Session(written).run(feeds)["y"]).all()
