"""Models that crash, hang or explode do so in the child process, and are one error here."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import RunError, UsageError
from onnxprune.intake import first_run
from onnxprune.runtime import child, overdue
from onnxprune.runtime.child import Late, Stopped
from tests.started import started

FEEDS = {"x": np.ones((2, 6), np.float32)}


def graph_of(nodes, weights=(), inputs=(("x", TensorProto.FLOAT, ["N", 6]),), outputs=("y",), opset=17):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in dict(weights).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def relu():
    return graph_of([helper.make_node("Relu", ["x"], ["y"])])


def endless():
    """A Loop of 2**62 turns."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Neg", ["s"], ["t"])],
        "b",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
            helper.make_tensor_value_info("t", TensorProto.FLOAT, None),
        ],
    )
    return graph_of([helper.make_node("Loop", ["turns", "", "x"], ["y"], body=body)], {"turns": np.int64(2**62)})


def large(size):
    """A constant of so many floats, computed from a few bytes."""
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["c"]),
        helper.make_node("ReduceMax", ["c"], ["m"], keepdims=0),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    return graph_of(nodes, {"s": [size]})


def no_groups():
    """Versions of onnxruntime divide by its zero, and are ended by the system."""
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=0)]
    return graph_of(nodes, {"w": np.ones((4, 4, 3, 3), np.float32)}, (("x", TensorProto.FLOAT, [1, 4, 8, 8]),))


def test_an_honest_model_runs():
    assert first_run.run(relu(), FEEDS) < 30
    assert first_run.Trial(relu())(FEEDS)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals end no process here")
def test_a_crash_is_one_error_and_the_next_model_is_tried():
    first_run.run(relu(), FEEDS)
    process = child._PLACE.child._process
    threading.Timer(0.5, process.send_signal, [signal.SIGSEGV]).start()
    with pytest.raises(Stopped, match=r"crashes \(SIGSEGV\)"):
        first_run.run(endless(), FEEDS)
    assert first_run.run(relu(), FEEDS) < 30


def test_a_convolution_of_no_groups_is_one_error():
    with pytest.raises(RunError):
        first_run.run(no_groups(), {"x": np.ones((1, 4, 8, 8), np.float32)})


def test_a_loop_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch):
    first_run.run(relu(), FEEDS)
    monkeypatch.setenv(child.PATIENCE, "0.02")
    with pytest.raises(Late, match="does not end"):
        first_run.run(endless(), FEEDS)


@pytest.mark.parametrize("patience", ["inf", "1e308", "0.5", ""])
def test_any_patience_is_one_that_clocks_can_have(monkeypatch: pytest.MonkeyPatch, patience: str):
    """Fails where the thread that counts the time ends in an OverflowError of its own."""
    monkeypatch.setenv(child.PATIENCE, patience)
    assert 0.0 <= child.limits(10**15, 1e9)[0] <= threading.TIMEOUT_MAX


@pytest.mark.parametrize("patience", ["-1", "0", "nan", "-inf", "much", "1,5"])
def test_no_other_patience_is_taken(monkeypatch: pytest.MonkeyPatch, patience: str):
    """Fails where a slip stops every model at once, or is passed over, instead of being named wherever it is read."""
    monkeypatch.setenv(child.PATIENCE, patience)
    line = f"ONNXPRUNE_PATIENCE is '{patience}'; it is a number above 0"
    for reads in (lambda: first_run.run(relu(), FEEDS), lambda: child.limits(0), lambda: overdue.allowed(0)):
        with pytest.raises(UsageError, match=re.escape(line)):
            reads()


@pytest.mark.parametrize("size", [2 << 30, 2**40])
def test_a_constant_of_gigabytes_is_refused(size: int):
    with pytest.raises(RunError, match=r"memory|alloc"):
        first_run.run(large(size), FEEDS)
    assert first_run.run(large(1000), FEEDS) < 30


def test_memory_grows_with_the_size_of_the_model():
    few, many = child.limits(0)[1], child.limits(2 << 30)[1]
    assert few < 4 << 30
    assert many - few >= 8 << 30


def test_want_of_memory_is_said_as_such(monkeypatch: pytest.MonkeyPatch):
    """Fails where the line says "std::bad_alloc" and nothing more."""

    def answered(_: child._Child) -> object:
        return None, RunError("Cast node: std::bad_alloc"), ""

    monkeypatch.setattr(child._Child, "receive", answered)
    with pytest.raises(
        Stopped, match=r"^this model's first run needs more than .* GiB of memory.* give smaller inputs"
    ):
        first_run.run(relu(), FEEDS)
    with child._PLACE.lock:
        child._PLACE.drop()


def test_a_refusal_of_onnxruntime_is_no_crash():
    model = graph_of([helper.make_node("Add", ["x", "b"], ["y"])], {"b": np.ones(6)})
    with pytest.raises(RunError, match="Type Error") as e:
        first_run.run(model, FEEDS)
    assert not isinstance(e.value, Stopped)


@pytest.mark.parametrize("name", ["float64", "bfloat16"])
def test_a_twin_stands_in_for_kernels_not_for_types(name: str):
    """onnxruntime convolves neither; where the types do not fit each other no runtime does."""
    kind = {"float64": TensorProto.DOUBLE, "bfloat16": TensorProto.BFLOAT16}[name]
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1)).astype(helper.tensor_dtype_to_np_dtype(kind)), "w")
    feeds = {"x": np.ones((1, 3, 2, 2), helper.tensor_dtype_to_np_dtype(kind))}
    model = graph_of([helper.make_node("Conv", ["x", "w"], ["y"])], inputs=(("x", kind, [1, 3, 2, 2]),))
    model.graph.output[0].type.tensor_type.elem_type = kind
    model.graph.initializer.append(weight)
    first_run.run(model, feeds)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w"))
    with pytest.raises(RunError, match="Type Error"):
        first_run.run(model, feeds)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL") or sys.platform != "linux", reason="elsewhere its pipe tells it")
def test_it_dies_with_its_parent(tmp_path: Path):
    """Killed while the child is busy in compiled code, which looks at no pipe."""
    code = (
        "import threading, time, os\n"
        "from onnxprune.intake import first_run\nfrom onnxprune.runtime import child\n"
        "from tests.runtime.test_child import FEEDS, endless, relu\n"
        "first_run.run(relu(), FEEDS)\n"
        "print(child._PLACE.child._process.pid, flush=True)\n"
        "first_run.run(endless(), FEEDS)\n"
    )
    own = {**os.environ, "TMPDIR": str(tmp_path)}  # what is killed cannot clear up
    with started([sys.executable, "-c", code], env=own, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as p:
        assert p.stdout is not None
        pid = int(p.stdout.readline())
        p.kill()
        p.wait()
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the child lives on")


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no process can be stopped here")
def test_a_child_that_does_not_start_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    """Fails where a child that takes no question holds up the run for ever."""
    monkeypatch.setenv(child.PATIENCE, "0.03")
    with child._PLACE.lock:
        child._PLACE.drop()
    child.warm()
    started = child._PLACE.child
    assert started is not None
    started._process.send_signal(signal.SIGSTOP)
    with pytest.raises(Late, match=r"does not start: .* ONNXPRUNE_PATIENCE=10"):
        first_run.run(relu(), FEEDS)
    assert not started.alive
    monkeypatch.delenv(child.PATIENCE)
    assert first_run.run(relu(), FEEDS) < 30


def test_another_child_takes_over_from_one_that_has_ended():
    first_run.run(relu(), FEEDS)
    kept = child._PLACE.child
    assert kept is not None
    kept.kill()
    assert first_run.run(relu(), FEEDS) < 30
    assert child._PLACE.child is not kept


def test_errors_of_the_child_keep_their_class():
    broken = onnx.ModelProto()
    broken.CopyFrom(relu())
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(RunError, match="NoSuchOperator"):
        first_run.run(broken, FEEDS)
