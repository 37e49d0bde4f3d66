"""A large model in instalments, against the same model in one session."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.errors import RunError
from onnxprune.graph import external, tensor_files
from onnxprune.process import spill
from onnxprune.runtime import instalments
from onnxprune.runtime import session as session_module
from onnxprune.runtime.instalments import Instalments
from onnxprune.runtime.session import Session
from tests.compare import assert_same

Array = NDArray[Any]

WIDTH = 128  # a matrix takes 64 KiB, from which on weights lie in files

# A mask that every layer reads, a residual stream, one weight read twice, and one that is computed from another.
LAYERS = """(float[N,128] x, int64[1] at) => (float[N,128] y, float[N,128] early, float[N,128] x) {
    zero = Constant <value = float[1] {0.0}> ()
    positive = Greater(x, zero)
    a = MatMul(x, w1)
    b = Where(positive, a, zero)
    early = Relu(b)
    turned = Transpose <perm = [1, 0]> (w2)
    c = MatMul(early, turned)
    d = Add(c, b)
    e = MatMul(d, w3)
    parts = SplitToSequence <axis = 1, keepdims = 1> (e)
    g = MatMul(d, w1)
    f = SequenceAt(parts, at)
    h = Add(g, f)
    i = Where(positive, h, zero)
    yes = ReduceMax <keepdims = 0> (positive8)
    y = If (yes) <
        then_branch = then () => (float[N,128] t) { t0 = MatMul(i, w4) t = Add(t0, d) },
        else_branch = other () => (float[N,128] o) { o = Identity(i) }
    >
}"""


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(instalments, "WHOLE_BYTES", 1 << 16)
    monkeypatch.setattr(instalments, "PART_BYTES", 100 << 10)
    with spill.spilling():
        yield


def stored_outside(proto: onnx.ModelProto) -> onnx.ModelProto:
    """With every matrix in a file."""
    outside = tensor_files.outside(proto)
    assert external.external_bytes(outside) > 1 << 16
    return outside


def model(names: tuple[str, ...] = ("w1", "w2", "w3", "w4")) -> onnx.ModelProto:
    """The layers above, with random weights."""
    text = LAYERS.replace("ReduceMax <keepdims = 0> (positive8)", "Constant <value = bool {1}> ()")
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> g {text}')
    rng = np.random.default_rng(0)
    for n in names:
        values = rng.standard_normal((WIDTH, WIDTH), dtype=np.float32) / np.float32(WIDTH**0.5)
        proto.graph.initializer.append(numpy_helper.from_array(values, n))
    return stored_outside(proto)


def feeds(count: int = 3) -> dict[str, Array]:
    return {"x": np.random.default_rng(1).standard_normal((count, WIDTH), dtype=np.float32), "at": np.array([5])}


def whole(proto: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Session:
    """One session of everything, that packs no weights either: kernels for packed ones add up in another order."""
    with monkeypatch.context() as m:
        m.setattr(session_module, "_PREPACK_BYTES", 0)
        m.setattr(instalments, "WHOLE_BYTES", 1 << 40)
        session = Session(proto, **options)
    assert not isinstance(session._session, Instalments)
    return session


def parts_of(session: Session) -> list[onnx.ModelProto]:
    inner = session._session
    assert isinstance(inner, Instalments)
    return [p.proto for p in inner._parts]


def test_outputs_equal_those_of_one_session_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a part lacks what it reads, gives too little, or frees what a later one needs."""
    proto = model()
    session = Session(proto, optimize=False)
    expected = whole(proto, monkeypatch, optimize=False)
    assert session.inputs == expected.inputs
    assert session.outputs == expected.outputs
    assert session.output_types == expected.output_types
    for count in (3, 1, 7):
        found = session.run(feeds(count))
        for name, values in expected.run(feeds(count)).items():
            assert_same(found[name], values, rtol=0.0, atol=0.0)


def test_each_part_maps_its_own_weights_alone() -> None:
    """Fails where one session holds the weights of all, or a part ends inside of what hands over a sequence."""
    parts = parts_of(Session(model(), optimize=False))
    assert len(parts) > 2
    assert all(external.external_bytes(p) <= 2 * 4 * WIDTH**2 for p in parts)
    assert sum("SplitToSequence" in [n.op_type for n in p.graph.node] for p in parts) == 1
    in_one = next(p for p in parts if "SplitToSequence" in [n.op_type for n in p.graph.node])
    assert "SequenceAt" in [n.op_type for n in in_one.graph.node]


def test_no_part_is_open_between_two_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where sessions of parts live on, or two of them at the same time, as then all weights stay mapped."""
    alive: list[int] = []
    opened = 0

    class Counted:
        def __init__(self, session: Any) -> None:
            nonlocal opened
            self.session = session
            opened += 1
            alive.append(opened)
            self.number = opened

        def __getattr__(self, name: str) -> Any:
            return getattr(self.session, name)

        def __del__(self) -> None:
            alive.remove(self.number)

        def run(self, *arguments: Any) -> Any:
            gc.collect()
            assert alive == [self.number]
            return self.session.run(*arguments)

    session = Session(model(), optimize=False)
    inner = session._session
    start = inner._start
    monkeypatch.setattr(inner, "_start", lambda part: Counted(start(part)))
    session.run(feeds())
    gc.collect()
    assert opened == len(inner._parts)
    assert alive == []


def test_parts_behind_what_is_asked_for_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where an early output costs a run of the whole model."""
    session = Session(model(), optimize=False)
    inner = session._session
    started: list[int] = []
    start = inner._start
    monkeypatch.setattr(inner, "_start", lambda part: (started.append(1), start(part))[1])
    assert [*session.run(feeds(), ["early"])] == ["early"]
    assert 0 < len(started) < len(inner._parts)


def test_weights_that_a_run_replaces_reach_the_part_that_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a part forgets that a weight is an input too."""
    proto = model()
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w3", onnx.TensorProto.FLOAT, [WIDTH, WIDTH]))
    session, expected = Session(proto, optimize=False), whole(proto, monkeypatch, optimize=False)
    assert session.overridable == expected.overridable == {"w3"}
    assert session.inputs == expected.inputs
    other = {**feeds(), "w3": np.random.default_rng(4).standard_normal((WIDTH, WIDTH), dtype=np.float32)}
    changed, plain = session.run(other)["y"], session.run(feeds())["y"]
    assert_same(changed, expected.run(other)["y"], rtol=0.0, atol=0.0)
    assert np.abs(changed - plain).max() > 0.1


def test_the_twin_of_half_precision_keeps_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the files of a twin's weights go before its parts are opened again, or stay when it is gone."""
    proto = model()
    for t in proto.graph.initializer:
        half = external.array_of(t).astype(np.float16)
        t.CopyFrom(tensor_files.tensor_of(np.concatenate([half, half]), t.name, outside=True))
    del proto.graph.node[:], proto.graph.input[:], proto.graph.output[:]
    text = """(float16[N,128] x) => (float16[N,256] y) {
        a = Gemm <transB = 1> (x, w1)
        b = Relu(a)
        c = MatMul(b, w2)
        y = Gemm <transB = 1> (c, w3)
    }"""
    graph = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> g {text}').graph
    proto.graph.node.extend(graph.node)
    proto.graph.input.extend(graph.input)
    proto.graph.output.extend(graph.output)
    monkeypatch.setattr(instalments, "PART_BYTES", 150 << 10)
    session = Session(proto, single=True)
    assert len(parts_of(session)) > 1
    x = np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float16)
    w1, w2, w3 = (external.array_of(t).astype(np.float32) for t in proto.graph.initializer[:3])
    expected = np.maximum(x.astype(np.float32) @ w1.T, 0) @ w2 @ w3.T
    assert_same(session.run({"x": x})["y"], expected, rtol=1e-4, atol=1e-3)
    used = {t.location for p in parts_of(session) for t in map(external.FileRange.of, p.graph.initializer) if t.length}
    assert used
    assert all(Path(f).exists() for f in used)
    del session
    gc.collect()
    assert not any(Path(f).exists() for f in used)


def test_a_part_that_is_refused_is_one_line() -> None:
    """Fails where an error of a part says anything else than that of the whole."""
    proto = model()
    next(n for n in proto.graph.node if n.op_type == "Greater").op_type = "Grater"
    with pytest.raises(RunError, match=r"onnxruntime cannot load the model: .*Grater"):
        Session(proto)
    session = Session(model())
    with pytest.raises(RunError, match="onnxruntime cannot run the model"):
        session.run({**feeds(), "x": np.zeros((3, WIDTH + 1), np.float32)})


def test_small_models_and_what_is_timed_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the runs that are timed pay for opening parts."""
    session = Session(model())
    run = session.bound({"x": feeds()["x"], "at": feeds()["at"]})
    run()
    assert len(run.outputs()) == 3
    monkeypatch.setattr(instalments, "WHOLE_BYTES", 1 << 30)
    assert not isinstance(Session(model())._session, Instalments)
