"""Kernels that saturate: found by what they compute, replaced, and named in every report that they would falsify.

No test needs a processor of either kind: the answer of the probe is put in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from onnxprune import prune
from onnxprune.evaluation import evaluate
from onnxprune.runtime import saturation, session
from onnxprune.runtime.saturation import AS_WRITTEN, DEPLOYED, EXACT, Kernels
from onnxprune.runtime.session import Session, profile_events
from tests.graphs import TABLE

Array = NDArray[Any]
HEADER = '<ir_version: 9, opset_import: ["": 19, "com.microsoft": 1]>'
ROW = TABLE["quantized"]


@pytest.fixture(params=[True, False], ids=["saturating", "exact"])
def saturates(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """The probe's answer of either kind of processor; operators on integers are made exact on both."""
    monkeypatch.setattr(session, "saturates", lambda kernels=DEPLOYED: request.param and not kernels.exact)
    yield request.param


def _model(text: str, **stored: Array) -> onnx.ModelProto:
    model = parser.parse_model(f"{HEADER} agraph {text}")
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in stored.items())
    return model


def _product(kind: type = np.uint8, scale: float = 1.0) -> tuple[onnx.ModelProto, Array]:
    """Products between QuantizeLinear and DequantizeLinear, whose pairs do not fit into 16 bits; and its input."""
    model = _model(
        """(float[N,64] x) => (float[N,32] y) {
            q = QuantizeLinear (x, s, z)
            r = DequantizeLinear (q, s, z)
            v = DequantizeLinear (w, s, zw)
            m = MatMul (r, v)
            p = QuantizeLinear (m, sy, z)
            y = DequantizeLinear (p, sy, z)
        }""",
        w=np.where(np.arange(32) % 2, -128, 127).astype(np.int8) * np.ones((64, 1), np.int8),
        s=np.float32(scale),
        z=np.zeros((), kind),
        zw=np.zeros((), np.int8),
        sy=np.float32(scale**2 * 64 * 128 * np.iinfo(kind).max / 100),
    )
    return model, np.full((4, 64), np.iinfo(kind).max * scale, np.float32)


def _pairwise(x: Array, w: Array) -> Array:
    """x @ w as vpmaddubsw adds: two products of uint8 by int8 at a time, in 16 bits; int8 is made uint8 in front."""
    shift = 128 if x.dtype == np.int8 else 0
    products = (x.astype(np.int32) + shift)[:, :, None] * w.astype(np.int32)
    pairs = np.clip(products[:, 0::2] + products[:, 1::2], -(2**15), 2**15 - 1)
    return (pairs.sum(axis=1) - shift * w.sum(axis=0, dtype=np.int32)).astype(np.int32)


def _exact(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    return np.asarray(ReferenceEvaluator(model).run(None, dict(feeds))[0])


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("op", ["MatMulInteger", "QLinearConv"])
def test_one_kernel_that_saturates_is_found(op: str, kind: type):
    """Fails where one of the four products is not asked for, or with sums that fit into 16 bits."""

    def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
        x = feeds["x"]
        if (model.graph.node[0].op_type, x.dtype) != (op, kind):
            return _exact(model, feeds)
        stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        if op == "MatMulInteger":
            return _pairwise(x, stored["w"])
        y = np.rint(_pairwise(x[..., 0, 0], stored["w"][..., 0, 0].T) / stored["s"])
        return np.clip(y, np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)[..., None, None]

    assert saturation.saturate(run)


def test_exact_kernels_do_not_saturate():
    """Fails where the answers that the probe calls right are not."""
    assert not saturation.saturate(_exact)


def test_this_processor_is_asked_once(monkeypatch: pytest.MonkeyPatch):
    """Fails where the probe's own sessions ask again, or every session does."""
    found = session.saturates()
    monkeypatch.setattr(saturation, "saturate", lambda run: pytest.fail("asked again"))
    assert session.saturates() is found
    Session(_product()[0])


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("kernels", [None, AS_WRITTEN])
def test_pairs_are_right_on_every_processor(kernels: Kernels | None, kind: type):
    """Fails without VNNI where pairs are fused into kernels that saturate, int8 made uint8 in front among them."""
    model, x = _product(kind)
    np.testing.assert_array_equal(Session(model, kernels=kernels).run({"x": x})["y"], _exact(model, {"x": x}))


def _operators(session: Session, feeds: Mapping[str, Array]) -> set[str]:
    """The operators that a session runs; it was started with a profile."""
    session.run(feeds)
    return {e["args"]["op_name"] for e in session.end_profile() if "op_name" in e.get("args", {})}


def test_pairs_are_fused_where_that_is_exact(saturates: bool, tmp_path: Path):
    """Fails where a processor that saturates computes pairs as integers, or one that does not leaves them apart."""
    model, x = _product()
    ran = _operators(Session(model, profile=str(tmp_path / "run")), {"x": x})
    assert ("QLinearMatMul" in ran) is not saturates
    assert ("MatMul" in ran) is saturates


@pytest.mark.usefixtures("saturates")
def test_what_is_timed_runs_as_deployed():
    """Fails where a latency is that of the nodes as written, which no deployment runs."""
    model, x = _product()
    events = profile_events(model, {"x": x}, 2)
    assert "QLinearMatMul" in {e["args"]["op_name"] for e in events if "op_name" in e.get("args", {})}


def test_integer_operators_with_constant_weights_are_exact():
    """Fails where `exact` does nothing on a processor that it was made for, or a note does not own up to it."""
    model = _model("(uint8[N,64] x) => (int32[N,32] y) { y = MatMulInteger (x, w) }", w=np.full((64, 32), 127, np.int8))
    x = np.full((4, 64), 255, np.uint8)
    right = np.array_equal(Session(model, kernels=EXACT).run({"x": x})["y"], np.full((4, 32), 255 * 127 * 64))
    assert right is not session.saturates(EXACT)
    (note,) = saturation.notes_on(model, remedied=right)
    assert ("MatMulInteger" in note) is not right


@pytest.mark.usefixtures("saturates")
def test_static_int8_activations_are_run():
    """Fails where onnxruntime is left without a kernel: it makes weights uint8, and has none for int8 by uint8."""
    model = _model(
        "(int8[N,8] x) => (int8[N,4] y) { y = QLinearMatMul (x, s, z, w, s, z, t, z) }",
        w=np.arange(32, dtype=np.int8).reshape(8, 4),
        s=np.float32(1),
        t=np.float32(25),
        z=np.zeros((), np.int8),
    )
    x = np.arange(24, dtype=np.int8).reshape(3, 8)
    np.testing.assert_array_equal(Session(model).run({"x": x})["y"], _exact(model, {"x": x}))


_FLOAT = "(float[N,8] x, float[8,4] w) => (float[N,4] y) { y = MatMul (x, w) }"
_DYNAMIC = """(float[N,8] x, float[8,4] w) => (int32[N,4] y) {
    a, s, z = DynamicQuantizeLinear (x)
    b, t, u = DynamicQuantizeLinear (w)
    y = MatMulInteger (a, b, z, u)
}"""
_COMPUTED = "(uint8[N,8] x, float[8,4] v) => (int32[N,4] y) { w = Cast <to=3> (v) y = MatMulInteger (x, w) }"
_SIGNED = "(int8[N,8] x, float[8,4] v) => (int32[N,4] y) { w = Cast <to=3> (v) y = MatMulInteger (x, w) }"
_BODY = """(bool c, uint8[N,8] x, int8[8,4] w) => (int32[N,4] y) {
    y = If (c) <
        then_branch = a () => (int32[N,4] p) { p = MatMulInteger (x, w) },
        else_branch = b () => (int32[N,4] q) { q = MatMulInteger (x, w) }
    >
}"""
_MIXED = """(uint8[N,8] x, int8[N,8] v) => (uint8[N,4] y, int8[N,4] u) {
    y = QLinearMatMul (x, s, zu, w, s, z, s, zu)
    u = QLinearMatMul (v, s, z, w, s, z, s, z)
}"""


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (_FLOAT, None),
        (_DYNAMIC, ""),
        (_COMPUTED, "MatMulInteger"),
        (_SIGNED, ""),
        (_BODY, "MatMulInteger"),
        (_MIXED, "QLinearMatMul"),
    ],
)
def test_what_stays_inexact_is_named(text: str, left: str | None):
    """Fails where a figure passes for exact that is not, or a float model is given a note."""
    z = {"z": np.zeros((), np.int8), "zu": np.zeros((), np.uint8), "s": np.float32(1), "w": np.ones((8, 4), np.int8)}
    model = _model(text, **(z if text == _MIXED else {}))
    notes = saturation.notes_on(model)
    assert len(notes) == (left is not None)
    if left is not None:
        assert notes[0].partition("kernel: ")[2] == left


def _says_so(notes: tuple[str, ...]) -> bool:
    return any("16 bits, which overflow" in n for n in notes)


def test_a_quantized_model_is_pruned_with_a_note(saturates: bool):
    """Fails where a report does not say that the processor's kernels were not used."""
    result = prune(ROW.model(), None, ROW.feeds(64), ratio=0.3, round_to=1)
    assert _says_so(result.report.notes) is saturates
    assert result.report.checks["slice_against_oracle"] <= 1e-5


def test_a_float_model_is_pruned_without(saturates: bool):
    assert not _says_so(prune(TABLE["plain"].model(), None, TABLE["plain"].feeds(64), ratio=0.3).report.notes)


@pytest.mark.parametrize("quantized_first", [True, False])
def test_eval_says_so_of_either_model(saturates: bool, quantized_first: bool):
    """Fails where a quantized model, or the one that it is held against, is measured without a note."""
    pair = (ROW.model(), TABLE["plain"].model())
    model, against = pair if quantized_first else pair[::-1]
    found = evaluate(model, ROW.feeds(8), against=against)
    assert _says_so(found.notes) is saturates
