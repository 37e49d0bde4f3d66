"""Outputs of several runs, put together; runs on bound inputs; and providers that do not start."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import threads
from onnxprune.errors import RunError
from onnxprune.runtime.session import (
    CPU,
    CUDA,
    Session,
    _pool,
    _reason,
    available_providers,
    check_starts,
    concatenated,
    fallbacks,
    half_precision,
    ort,
    private_bytes,
    timing_on,
)
from onnxprune.threads import limited, mapped, prefetched
from tests import digits
from tests.started import PATIENCE


def test_samples_on_any_axis():
    """Fails where batches of another size are joined along steps instead of samples."""
    whole = np.arange(2 * 5 * 3).reshape(2, 5, 3)
    found = concatenated([{"y": whole[:, :3]}, {"y": whole[:, 3:]}])
    assert np.array_equal(found["y"], whole)
    assert np.array_equal(concatenated([{"y": whole}, {"y": whole}])["y"], np.concatenate([whole, whole]))


def test_what_is_no_array_is_left_out():
    assert set(concatenated([{"y": np.zeros(2), "s": [np.zeros(2)]}])) == {"y"}


@pytest.mark.parametrize("second", [np.zeros((3, 5)), np.zeros((2, 4, 1))], ids=["two axes", "another rank"])
def test_outputs_that_do_not_fit(second: np.ndarray):
    with pytest.raises(RunError, match="output 'y' has"):
        concatenated([{"y": np.zeros((2, 4))}, {"y": second}])


RELU = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 13]> main (float[N,2] x, float[N,2] u) => (float[N,2] y) { y = Relu (x) }'
)


def test_a_bound_run_gives_what_any_run_gives():
    session = Session(onnx.load(digits.path("resnet")), in_turns=True, spin=True)
    feeds = {"input": np.load(digits.CALIB)["input"][:3]}
    run = session.bound(feeds)
    run()
    run()
    (found,) = run.outputs()
    assert np.array_equal(found, session.run(feeds)["logits"])


def test_bound_inputs_live_as_long_as_the_runs():
    """Fails where onnxruntime reads memory that numpy has given to another array."""
    run = Session(RELU).bound({"x": np.full((1000, 2), 3.0, np.float32), "u": np.zeros((1000, 2), np.float32)})
    rubbish = [np.full((1000, 2), -1.0, np.float32) for _ in range(50)]
    run()
    assert np.all(run.outputs()[0] == 3.0)
    assert len(rubbish) == 50


def test_bound_outputs_that_are_no_tensors():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> main (float[4] x) => (seq(float[2]) y) { y = SplitToSequence (x) }'
    )
    Session(model).bound({"x": np.zeros(4, np.float32)})()


def test_inputs_that_do_not_fit_a_bound_run():
    with pytest.raises(RunError, match=r"onnxruntime cannot (take|run)"):
        Session(RELU).bound({"x": np.zeros((1, 3), np.float32), "u": np.zeros((1, 2), np.float32)})()


# memory that sessions share


def conv_sum(size: int) -> onnx.ModelProto:
    """A few layers, of which the activations have a size of their own."""
    graph = f"""main (float[N,3,{size},{size}] x) => (float[N,8,{size},{size}] s, float[N,8] y) {{
        a = Conv <pads=[1,1,1,1]> (x, w)
        r = Relu(a)
        s = Add(a, r)
        y = ReduceSum <keepdims=0> (s, axes)
    }}"""
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 13]> ' + graph)
    w = np.random.default_rng(size).standard_normal((8, 3, 3, 3)).astype(np.float32)
    for name, values in (("w", w), ("axes", np.array([2, 3]))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model


def images(size: int, count: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(count).standard_normal((count, 3, size, size)).astype(np.float32)}


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for k, y in expected.items():
        assert np.array_equal(found[k], y)


def option(session: Session, key: str) -> str:
    return str(session._session.get_session_options().get_session_config_entry(key))


def test_sessions_that_share_their_memory_give_what_others_give() -> None:
    """Fails where what a session gave out, or its weights, are overwritten by the next one, be it gone or not."""
    given, expected = [], []
    for i, size in enumerate((9, 16, 9, 5, 24)):
        model, feeds = conv_sum(size), images(size, 3 + i)
        session = Session(model, pooled=True)
        assert option(session, "session.use_env_allocators") == "1"
        given.append(session.run(feeds))
        expected.append(Session(model).run(feeds))
        if i == 0:
            first, first_feeds = session, feeds
        del session
        gc.collect()
    for found, those in zip(given, expected, strict=True):
        assert_equal(found, those)
    assert_equal(first.run(first_feeds), expected[0])


def test_sessions_share_their_memory_between_threads() -> None:
    """Fails where two sessions, or two runs of one session, that go on at the same time get the same memory."""
    sizes = (9, 16, 24, 31)
    models = {size: conv_sum(size) for size in sizes}
    feeds = {size: images(size, 4) for size in sizes}
    expected = {size: Session(models[size]).run(feeds[size]) for size in sizes}
    shared = Session(models[16], pooled=True)
    together = threading.Barrier(4, timeout=PATIENCE)

    def work(place: int) -> None:
        for turn in range(6):
            size = sizes[(place + turn) % 4]
            together.wait()
            session = Session(models[size], pooled=True)
            found = [session.run(feeds[size]) for _ in range(2)]
            again = shared.run(feeds[16])
            del session
            together.wait()
            for f in found:
                assert_equal(f, expected[size])
            assert_equal(again, expected[16])

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, place) for place in range(4)]:
            done.result()


def test_memory_that_is_shared_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where onnxruntime's refusal to make a second one, for another thread or library, ends in a traceback."""
    model, feeds = conv_sum(9), images(9, 2)
    Session(model, pooled=True)  # so that there is one
    asked: list[object] = []

    def refuse(*arguments: object) -> None:
        asked.append(arguments)
        raise RuntimeError("An allocator for this device has already been registered for sharing.")

    monkeypatch.setattr(ort, "create_and_register_allocator", refuse)
    _pool.cache_clear()
    assert_equal(Session(model, pooled=True).run(feeds), Session(model).run(feeds))
    assert len(asked) == 1


# threads


def threads_of(session: Session) -> int:
    return int(session._session.get_session_options().intra_op_num_threads)


def test_sessions_use_as_many_threads_as_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a limit on threads does not reach onnxruntime, from the caller or from work ahead of its use."""
    monkeypatch.setattr(
        "onnxprune.runtime.session.limit", threads.limit
    )  # as outside of tests, where 0 leaves it to onnxruntime

    def opened(_: object) -> int:
        return threads_of(Session(RELU))

    assert threads_of(Session(RELU)) == 0
    with limited(3):
        assert threads_of(Session(RELU)) == 3
        assert threads_of(Session(RELU, pooled=True)) == 3
        assert threads_of(Session(RELU, threads=2)) == 2
        assert list(prefetched(map(opened, range(2)))) == [3, 3]
        assert list(mapped(opened, range(4))) == [3, 3, 3, 3]
    assert threads_of(Session(RELU)) == 0


class Fallen:
    """A session that runs on the CPU, whatever was asked for."""

    def get_providers(self) -> list[str]:
        return [CPU]


def test_a_provider_that_did_not_start_is_refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Fails where onnxruntime's silent step down to the CPU goes unseen, or its log reaches the terminal."""

    def start(*_: Any, **options: Any) -> Fallen:
        assert options["enable_fallback"] == 0
        os.write(2, b"\x1b[1;31m2026 [E:onnxruntime:Default, x.cc:1 f()] FAIL : with error: libx.so: no file\n\x1b[m")
        return Fallen()

    monkeypatch.setattr(ort, "InferenceSession", start)
    with pytest.raises(RunError, match=r"Abacus did not start, and .* used the CPU: libx\.so: no file; install"):
        Session(RELU, providers=["Abacus", CPU])
    assert capfd.readouterr() == ("", "")


def test_a_provider_whose_library_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    """Fails where a model is blamed for a library that is not there, or a provider for a model."""
    why = {"probe": "libcublas.so.13: cannot open shared object file", "main": "no kernel"}

    def start(content: bytes, *_: Any, **__: Any) -> Any:
        name = onnx.ModelProto.FromString(content).graph.name
        if name in why:
            raise RuntimeError(why[name])
        return Fallen()

    monkeypatch.setattr(ort, "InferenceSession", start)
    model = onnx.ModelProto()
    model.CopyFrom(RELU)
    model.graph.name = "main"
    expected = r"^Abacus did not start: libcublas\.so\.13: cannot open shared object file; install .* another provider$"
    with pytest.raises(RunError, match=expected):
        Session(model, providers=["Abacus", CPU])
    with pytest.raises(RunError, match=expected):
        check_starts(["Abacus", CPU])
    del why["probe"]
    monkeypatch.setattr(Fallen, "get_providers", lambda _: ["Abacus", CPU])
    with pytest.raises(RunError, match=r"^onnxruntime cannot load the model: no kernel$"):
        Session(model, providers=["Abacus", CPU])


@pytest.mark.parametrize(
    ("given", "target", "found"),
    [
        (None, CPU, CPU),
        (None, CUDA, CUDA),
        ("cpu", CUDA, CPU),
        ("cuda", CPU, CUDA),
        ("cuda", "TensorrtExecutionProvider", CUDA),
    ],
)
def test_what_is_timed(given: str | None, target: str, found: str):
    """Fails where what a user says does not decide."""
    assert timing_on(given, target)[0] == found


def test_reasons_in_the_log():
    assert _reason(["[W:onnxruntime:Default, a.cc:1 f()] nothing"]) == ""
    assert _reason(["12:00 [E:onnxruntime:, a.cc:1 f()]  what it is"]) == "what it is"


def test_fallbacks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("onnxprune.runtime.session.available_providers", lambda: (CUDA, CPU))
    assert fallbacks(CPU) == (CPU,)
    assert fallbacks("TensorrtExecutionProvider") == ("TensorrtExecutionProvider", CUDA, CPU)
    assert fallbacks(CUDA) == (CUDA, CPU)


def test_half_precision_computes_nearly_the_same():
    model = onnx.load(digits.path("resnet"))
    before, paths = model.SerializeToString(), list(sys.path)
    feeds = {"input": np.load(digits.CALIB)["input"][:8]}
    half = Session(half_precision(model)).run(feeds)["logits"]
    np.testing.assert_allclose(half, Session(model).run(feeds)["logits"], rtol=0.0, atol=0.02)
    assert half.dtype == np.float32
    assert (model.SerializeToString(), sys.path) == (before, paths)


def test_a_model_can_be_quantized_behind_one_in_half_precision():
    """Fails where onnxruntime's quantization tools no longer find a module of its folder in the same process."""
    lines = "import sys, onnx\nfrom onnxprune.runtime.session import half_precision\n"
    lines += "half_precision(onnx.load(sys.argv[1]))\nimport onnxprune.quantization.quantizer\n"
    command = [sys.executable, "-c", lines, str(digits.path("resnet"))]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.skipif(CUDA not in available_providers(), reason="this onnxruntime is built without CUDA")
def test_cuda_runs_or_says_why_not(capfd: pytest.CaptureFixture[str]):
    """On a machine with a GPU its outputs are those of the CPU; on others one line says what is missing."""
    feeds = {"x": np.array([[1.0, -2.0]], np.float32), "u": np.zeros((1, 2), np.float32)}
    try:
        run = Session(RELU, providers=fallbacks(CUDA)).bound(feeds)
    except RunError as e:
        assert str(e).startswith("CUDAExecutionProvider did not start, and onnxruntime would have used the CPU: ")
        assert "\n" not in str(e)
        assert capfd.readouterr() == ("", "")
        return
    run()
    assert np.array_equal(run.outputs()[0], [[1.0, 0.0]])


_KEPT = """
import sys
import numpy as np
import onnx
from onnxprune.runtime import session
session._LARGE_BYTES = int(sys.argv[1])
nodes = [
    onnx.helper.make_node("Sin", ["x"], ["small"]),
    onnx.helper.make_node("Expand", ["small", "sizes"], ["wide"]),
    onnx.helper.make_node("ReduceMax", ["wide"], ["y"], keepdims=0),
]
x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [])
sizes = onnx.numpy_helper.from_array(np.array([40 << 20]), "sizes")
graph = onnx.helper.make_graph(nodes, "g", [x], [y], [sizes])
model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
opened = session.Session(model)
before = session.private_bytes()
assert opened.run({"x": np.zeros(1, np.float32)})["y"] == 0.0
print(session.private_bytes() - before)
"""


@pytest.mark.skipif(not private_bytes(), reason="this system does not tell what a process has")
@pytest.mark.parametrize(("limit", "least", "most"), [(1 << 60, 100 << 20, 1 << 30), (0, -(50 << 20), 50 << 20)])
def test_a_large_process_keeps_no_memory_between_runs(limit: int, least: int, most: int):
    """Fails where each of several sessions keeps what its largest run took.

    In a process of its own: what others have freed, and what is collected meanwhile, would be counted too.
    """
    done = subprocess.run([sys.executable, "-c", _KEPT, str(limit)], capture_output=True, text=True, check=True)
    assert least <= int(done.stdout) < most
