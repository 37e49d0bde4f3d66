"""Fits that make what follows NaN are not made, or taken back; the layer is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune import prune
from onnxprune.numerics.arrays import Array
from onnxprune.refit import layerwise, lockstep
from onnxprune.runtime.session import Session
from tests.topologies.text import Topology

POINTS, BANDS = 32, 20
RNG = np.random.default_rng(0)
OPTIONS: dict[str, Any] = {"ratio": 0.4, "round_to": 1, "method": "magnitude"}

# Power spectrum, filter bank, logarithm, and a small network behind it.
SPECTRUM = """(float[N,32] x) => (float[N,5] y) {
    a = MatMul (x, re[32,17])  a2 = Mul (a, a)
    b = MatMul (x, im[32,17])  b2 = Mul (b, b)
    p = Add (a2, b2)
    bands = MatMul (p, mel[17,20])
    e = Add (bands, eps{:0.000001})
    l = Log (e)
    h = MatMul (l, w1[20,24])
    r = Relu (h)
    y = MatMul (r, w2[24,5])
}"""


def spectrum() -> onnx.ModelProto:
    proto = Topology(SPECTRUM, ()).model()
    t, f = np.arange(POINTS)[:, None], np.arange(17)[None]
    tables = {"re": np.cos(2 * np.pi * t * f / POINTS), "im": np.sin(2 * np.pi * t * f / POINTS)}
    tables["mel"] = np.maximum(0.0, 1.0 - np.abs(np.linspace(0, 16, BANDS)[None] - f.T) / 2)
    for i in proto.graph.initializer:
        if i.name in tables:
            i.CopyFrom(numpy_helper.from_array(tables[i.name].astype(np.float32), i.name))
    for node in proto.graph.node:
        node.name = f"at_{node.output[0]}"
    return proto


def sounds(count: int, seed: int) -> dict[str, Array]:
    """Three tones each, from loud to a thousandth of that."""
    rng = np.random.default_rng(seed)
    pitch, phase = rng.uniform(0.5, 15, (count, 3, 1)), rng.uniform(0, 6.3, (count, 3, 1))
    waves = np.sin(2 * np.pi * pitch * np.arange(POINTS) / POINTS + phase).sum(1)
    return {"x": (10 ** rng.uniform(-3, 0, (count, 1)) * waves).astype(np.float32)}


@pytest.mark.parametrize(("refit", "recover"), [("lockstep", 0), ("lockstep", 2), ("least-squares", 0), ("scale", 0)])
def test_a_filter_bank_stays_positive(refit: str, recover: int):
    """Fails where a fit, or learning, makes negative weights in front of a logarithm: fresh samples show it."""
    proto = spectrum()
    result = prune(proto, None, sounds(128, 1), refit=refit, recover=recover, **OPTIONS)
    assert result.model is not None
    (mel,) = (numpy_helper.to_array(t) for t in result.model.graph.initializer if t.name == "mel")
    assert mel.min() >= 0.0
    assert np.isfinite(Session(result.model).run(sounds(1000, 2))["y"]).all()
    if mel.shape[0] < 17:
        assert any(n.startswith("at_bands keeps") and "Log at_l" in n for n in result.report.notes)


# No operator here is limited, but what is fitted too large overflows in Exp.
OVERFLOW = """(float[N,8] x) => (float[N,5] y) {
    a = MatMul (x, w1[8,16])
    r = Relu (a)
    b = MatMul (r, w2[16,12])
    e = Exp (b)
    s = Softplus (e)
    y = MatMul (s, w3[12,5])
}"""


@pytest.mark.parametrize("refit", ["lockstep", "least-squares"])
def test_a_fit_that_overflows_is_taken_back(refit: str, monkeypatch: pytest.MonkeyPatch):
    """Fails where a model that gives infinity is judged, or refused with the advice to clean the data."""
    proto = Topology(OVERFLOW, ()).model()
    for node in proto.graph.node:
        node.name = f"at_{node.output[0]}"
    rng = np.random.default_rng(3)
    data = {"x": rng.standard_normal((128, 8)).astype(np.float32)}
    for module, name in ((layerwise, "restricted"), (layerwise, "restricted_by_inverse"), (lockstep, "_solve")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, real=real: 1e4 * real(*args))
    result = prune(proto, None, data, refit=refit, fast=True, **OPTIONS)
    assert result.model is not None
    assert np.isfinite(Session(result.model).run(data)["y"]).all()
    named = [n for n in result.report.notes if "not finite where the original's are" in n]
    assert any(n.startswith("at_b keeps") for n in named)
