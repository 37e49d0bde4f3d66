"""Latency: what is fed, what is compared, and what is refused. Clocks are faked where a time is looked at."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import Progress, bench, prune
from onnxprune.benchmark import cuda, tensorrt_engine
from onnxprune.benchmark import measure as module
from onnxprune.benchmark.measure import (
    Candidate,
    Comparison,
    Feeds,
    Ready,
    Settings,
    common_inputs,
    feeds_for,
    measure,
    median_interval,
)
from onnxprune.benchmark.own_sizes import fitted
from onnxprune.benchmark.profile import NodeTime
from onnxprune.errors import CalibrationError, ModelError, RunError, UsageError
from onnxprune.runtime.session import CPU, Session
from onnxprune.runtime.timing import Times
from tests import digits
from tests.decoder import GROUPS, decoder, empty, prompts
from tests.runtime.test_timing import Machine

QUICK: dict[str, Any] = {"runs": 2, "warmup": 0}


def model(*inputs: str, body: str = "y = Identity (x)", out: str = "float[N,M] y") -> onnx.ModelProto:
    text = f'<ir_version: 8, opset_import: ["" : 13]> main ({", ".join(inputs)}) => ({out}) {{ {body} }}'
    return onnx.parser.parse_model(text)


FREE, FIXED = model("float[N,3] x"), model("float[1,3] x")


# figures


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Models that take the seconds that their names say."""
    found = Machine(monkeypatch)

    def start(x: Candidate, *_: Any) -> Ready:
        action = found.action(x.name, float(x.name))
        return Ready(action, lambda runs, warmup: (NodeTime(x.name, "Conv", "", runs + warmup, 1.0),), 0.5, "cpu")

    monkeypatch.setattr(module, "_session", start)
    return found


def timed(*names: str, **options: Any) -> module.Bench:
    models = [Candidate(n, FREE, 100) for n in names]
    return measure(models, Feeds({"x": np.zeros((4, 3), np.float32)}, 4, "here"), Settings(**options))


def test_figures(machine: Machine):
    found = timed("2", "1", runs=3, warmup=1)
    assert "".join(machine.calls) == "21" + "21" + "12" + "21"
    first, second = found.models
    assert (first.median, first.p90, first.throughput) == (pytest.approx(2.0), pytest.approx(2.0), pytest.approx(2.0))
    assert (second.median, second.throughput) == (pytest.approx(1.0), pytest.approx(4.0))
    assert found.comparison is not None
    assert found.comparison.ratio == pytest.approx(0.5)
    assert (found.rounds, found.warmup, found.batch, found.inputs) == (3, 1, 4, {"x": (4, 3)})


def test_one_model_is_compared_with_nothing(machine: Machine):
    assert timed("1", runs=1).comparison is None


def test_a_profile_has_runs_of_its_own(machine: Machine):
    """Fails where the slow runs of the profiler are among those that are timed."""
    found = timed("1", runs=7, profile=True)
    assert found.rounds == 7
    assert found.models[0].nodes[0].seconds == 12.0
    assert found.as_dict()["models"][0]["operators"][0]["share"] == 1.0


def test_seconds_bound_the_rounds(machine: Machine):
    assert timed("1", seconds=50.0).rounds == 50
    assert timed("10", seconds=0.1).rounds == 20


@pytest.mark.parametrize(
    ("n", "rank"),
    # The sign test's table: the largest r with P(B < r) <= 0.025 for B ~ Bin(n, 1/2).
    [(6, 1), (8, 1), (9, 2), (10, 2), (12, 3), (15, 4), (20, 6), (25, 8), (50, 18), (100, 40)],
)
def test_interval_of_the_median(n: int, rank: int):
    values = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))
    assert median_interval(values) == (rank, n + 1 - rank)


def test_too_few_rounds_for_an_interval():
    assert median_interval(np.arange(5.0)) is None


def test_pairs_decide_not_medians():
    """Fails where two medians are divided, which here says that the slower model is the faster one."""
    first, second = np.array([1.0, 1.0, 10.0, 10.0, 10.0]), np.array([2.0, 2.0, 20.0, 5.0, 5.0])
    assert np.median(second) < np.median(first)
    found = Comparison.of(Times(np.tile(first, 40)), Times(np.tile(second, 40)))
    assert found.ratio == 2.0
    assert found.interval == (2.0, 2.0)
    assert found.quartiles == (0.5, 2.0)
    assert found.clear


@pytest.mark.parametrize(
    ("interval", "clear"),
    [((0.5, 0.6), True), ((0.9, 1.1), False), ((0.995, 0.996), False), ((0.98, 0.995), False), ((1.02, 1.03), True)],
)
def test_what_sessions_differ_by_is_no_difference(interval: tuple[float, float], clear: bool):
    assert Comparison(1.0, interval, interval).clear == clear
    assert not Comparison(0.5, interval, None).clear


# what is fed


def shapes_of(found: Feeds) -> dict[str, tuple[int, ...]]:
    return {k: v.shape for k, v in found.arrays.items()}


def test_one_random_sample_unless_told():
    found = feeds_for([FREE], None, None, {})
    assert (shapes_of(found), found.batch, found.origin) == ({"x": (1, 3)}, 1, "random, seed 0")
    again = feeds_for([FREE], None, None, {})
    assert np.array_equal(found.arrays["x"], again.arrays["x"])


def test_batch_reaches_every_input():
    two = model("float[N,3] x", "float[N,4] z", body="y = Concat <axis=1> (x, z)")
    found = feeds_for([two], None, 5, {})
    assert (shapes_of(found), found.batch) == ({"x": (5, 3), "z": (5, 4)}, 5)


def test_shapes_bind_symbolic_sizes_and_the_batch():
    two = model("float[N,T] x", "float[N,4] z", body="y = Concat <axis=1> (x, z)")
    found = feeds_for([two], None, None, {"x": (3, 7)})
    assert (shapes_of(found), found.batch) == ({"x": (3, 7), "z": (3, 4)}, 3)
    assert shapes_of(feeds_for([two], None, 3, {"x": (3, 7)})) == shapes_of(found)


def test_a_batch_that_the_model_fixes():
    assert feeds_for([FIXED], None, None, {}).batch == 1
    eight = model("float[8,3] x")
    found = feeds_for([eight], None, 8, {})
    assert (shapes_of(found), found.batch) == ({"x": (8, 3)}, 8)
    with pytest.raises(UsageError, match="takes 8 samples at a time, not 2"):
        feeds_for([eight], None, 2, {})
    with pytest.raises(UsageError, match="takes 1 samples at a time, not 2"):
        feeds_for([FIXED], None, 2, {})


def test_sizes_that_run_are_tried():
    """Fails where a size is taken that the model cannot run: 32 x 32 is the first that fits the weights."""
    body = "s = Constant <value = int64[2] {0, 1024}> ()  y = Reshape (x, s)"
    found = feeds_for([model("float[N,H,W] x", body=body)], None, None, {})
    assert shapes_of(found) == {"x": (1, 32, 32)}


def test_no_size_runs():
    body = "s = Constant <value = int64[2] {0, 5}> ()  y = Reshape (x, s)"
    with pytest.raises(CalibrationError, match="name their sizes with --shape"):
        feeds_for([model("float[N,H,W] x", body=body)], None, None, {})


@pytest.mark.parametrize(
    ("batch", "shapes", "match"),
    [
        (0, {}, "batch is 0"),
        (None, {"z": (1, 3)}, "'z', which is no input: the model reads 'x'"),
        (None, {"x": (1, 4)}, "the shape 1x4 does not fit the input x float32 Nx3"),
        (None, {"x": (3,)}, "the shape 3 does not fit"),
        (2, {"x": (4, 3)}, "do not agree in the number of samples"),
    ],
)
def test_inputs_that_are_refused(batch: int | None, shapes: dict[str, tuple[int, ...]], match: str):
    with pytest.raises(UsageError, match=match):
        feeds_for([FREE], None, batch, shapes)


def test_data():
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    found = feeds_for([FREE], {"x": x}, 2, {})
    assert np.array_equal(found.arrays["x"], x[:2])
    assert (found.batch, found.notes) == (2, ())
    assert np.array_equal(feeds_for([FIXED], {"x": x}, None, {}).arrays["x"], x[:1])


def test_few_data_are_repeated_and_that_is_said():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = feeds_for([FREE], {"x": x}, 5, {})
    assert np.array_equal(found.arrays["x"], x[[0, 1, 0, 1, 0]])
    assert found.notes == ("the data holds 2 samples, and they are repeated for a batch of 5",)


def test_data_has_its_shapes():
    with pytest.raises(UsageError, match="the data has its own shapes"):
        feeds_for([FREE], {"x": np.ones((1, 3), np.float32)}, None, {"x": (1, 3)})


def test_the_stricter_model_says_the_sizes():
    """Fails where a fixed size of the second model is not seen, and it is fed what it cannot take."""
    assert shapes_of(feeds_for([model("float[N,M] x"), model("float[1,7] x")], None, None, {})) == {"x": (1, 7)}
    with pytest.raises(UsageError, match="takes 1 samples at a time"):
        feeds_for([FREE, FIXED], None, 4, {})


@pytest.mark.parametrize("other", ["float[N,4] x", "double[N,3] x", "float[N,3] y2", "float[3] x"])
def test_models_that_read_different_inputs(other: str):
    second = model(other, body=f"y = Identity ({other.split()[1]})", out="float[N,M] y")
    with pytest.raises(ModelError, match="the two models read different inputs: x float32 Nx3 against"):
        feeds_for([FREE, second], None, None, {})


# runs


def test_each_model_gets_caches_of_its_own_size():
    """Fails where a model with fewer heads in its caches, or fewer caches, is fed those of the other, or refused."""
    whole, small = decoder(), decoder(groups=2, heads=4)
    for data in (None, prompts(2)):
        found = bench(whole, small, data=data, batch=2, **QUICK)
        assert found.inputs["past_key_values.0.key"][:2] == (2, GROUPS)
    fed = fitted({**prompts(2), **empty(2)}, small, whole)
    assert {v.shape for k, v in fed.items() if k.startswith("past")} == {(2, 2, 0, 16)}
    one = onnx.ModelProto()
    one.CopyFrom(whole)
    one.graph.input.pop()
    assert fitted({**prompts(2), **empty(2)}, one, whole).keys() == {v.name for v in one.graph.input}
    assert common_inputs([whole, one]) == common_inputs([whole])
    # Whichever of them is timed against which.
    held = {**prompts(2), "attention_mask": np.ones((2, 8), np.int64)}
    held |= {name: np.ones((2, GROUPS, 2, 16), np.float32) for name in empty(2)}
    for data in (None, held):
        for pair in ((whole, small), (whole, one)):
            there, back = (shapes_of(feeds_for(models, data, 2, {})) for models in (pair, pair[::-1]))
            assert there == back
            assert there["past_key_values.0.key"][1] == GROUPS
    with pytest.raises(ModelError, match="different inputs"):
        common_inputs([model("float[N,3,H] x"), model("float[N,1,H] x")])


def test_two_models_for_real():
    found = bench(digits.path("resnet"), digits.path("mobilenet"), data=digits.CALIB, batch=2, profile=True, **QUICK)
    assert [x.bytes for x in found.models] == [digits.path(n).stat().st_size for n in digits.NAMES]
    assert [Path(x.model).stem for x in found.models] == ["digits_resnet", "digits_mobilenet"]
    assert (found.provider, found.device, found.batch, found.inputs) == (CPU, "cpu", 2, {"input": (2, 1, 8, 8)})
    assert {"Conv"} <= {n.operator for n in found.models[0].nodes}
    data = json.loads(found.to_json())
    assert data["comparison"]["ratio"] > 0
    assert sum(o["share"] for o in data["models"][1]["operators"]) == pytest.approx(1.0)


def test_a_model_in_memory():
    found = bench(FREE, shapes={"x": (2, 3)}, **QUICK)
    assert (found.models[0].model, found.batch) == ("(in memory)", 2)


def test_a_copy_in_half_precision_is_timed(monkeypatch: pytest.MonkeyPatch):
    """Fails where --precision does nothing: the session's weights are float16, inputs and outputs are not."""
    seen: list[onnx.ModelProto] = []
    real = Session

    def watched(proto: onnx.ModelProto, **options: Any) -> Session:
        seen.append(proto)
        return real(proto, **options)

    monkeypatch.setattr(module, "Session", watched)
    bench(digits.path("resnet"), precision="fp16", **QUICK)
    (proto,) = seen
    floats = {t.data_type for t in proto.graph.initializer} - {onnx.TensorProto.INT64}
    assert floats == {onnx.TensorProto.FLOAT16}
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_a_twin_is_named():
    """Fails where float32 is timed in place of bfloat16 without a word."""
    found = bench(model("bfloat16[N,3] x", body="y = Relu (x)", out="bfloat16[N,3] y"), **QUICK)
    assert found.notes == ("(in memory) ran as its float32 twin, as onnxruntime lacks operators in its own type",)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"runs": 0}, "runs is 0"),
        ({"warmup": -1}, "warmup is -1"),
        ({"threads": -1}, "threads is -1"),
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"precision": "int3"}, "precision 'int3' is unknown; choose one of model, fp16"),
        ({"provider": "abacus"}, "provider 'abacus' is not among those of this onnxruntime: .*cpu.*; or tensorrt"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], match: str):
    with pytest.raises(UsageError, match=match):
        bench(FREE, **options)


# providers


@pytest.mark.parametrize("name", ["cpu", "CPU", " cpuexecutionprovider ", "CPUExecutionProvider"])
def test_names_of_providers(name: str):
    assert module.provider_named(name) == "CPUExecutionProvider"


def test_tensorrt_has_two_names(monkeypatch: pytest.MonkeyPatch):
    """Fails where an engine is asked for and onnxruntime's provider comes, or the other way round."""
    monkeypatch.setattr(module, "available_providers", lambda: ("TensorrtExecutionProvider", "CPUExecutionProvider"))
    monkeypatch.setattr(tensorrt_engine, "library", lambda: None)
    assert module.provider_named("TensorRT") == "tensorrt"
    assert module.provider_named("tensorrtexecutionprovider") == "TensorrtExecutionProvider"
    with pytest.raises(UsageError, match=": TensorrtExecutionProvider, cpu; or tensorrt"):
        module.provider_named("x")


def test_without_the_package_tensorrt(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(RunError, match="the Python package tensorrt and an NVIDIA GPU are needed: pip install tensor"):
        bench(FREE, provider="tensorrt")


class Placed:
    """A session that says where its nodes run."""

    stands_in, device = False, "cpu"

    def __init__(self, **nodes: int):
        self._nodes = nodes

    def placement(self) -> dict[str, int]:
        return self._nodes


def test_a_provider_that_runs_nothing_is_refused():
    """Fails where the CPU's latency is reported as that of another device."""
    with pytest.raises(RunError, match="Abacus runs no operator of m: its latency would be that of the CPU"):
        list(module._about(Candidate("m", FREE, 0), Placed(CPU=3), Settings("Abacus")))


def test_what_runs_elsewhere_is_said():
    notes = list(module._about(Candidate("m", FREE, 0), Placed(Abacus=3, CPU=1), Settings("Abacus")))
    assert notes[0] == "1 of the 4 nodes of m ran on CPU"
    assert "what Abacus copies" in notes[1]


@pytest.mark.parametrize(("blocking", "match"), [("0", "those of queueing"), ("1", "wait for each other")])
def test_times_of_queued_operators_are_explained(monkeypatch: pytest.MonkeyPatch, blocking: str, match: str):
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", blocking)
    (note,) = module._about_nodes(Settings("CUDAExecutionProvider", profile=True))
    assert match in note
    assert module._about_nodes(Settings("CUDAExecutionProvider")) == ()


def test_threads_are_no_matter_of_tensorrt():
    with pytest.raises(UsageError, match="threads are onnxruntime's"):
        Settings("tensorrt", threads=2)


def test_tensorrt_reads_the_file_and_everything_is_given_back(monkeypatch: pytest.MonkeyPatch):
    """Fails where the engine is built from something else than the model's file, or the GPU is kept."""
    events: list[Any] = []

    class Gpu:
        name = "Fake GPU"

        def close(self) -> None:
            events.append("gpu")

    class Engine:
        seconds = 3.0

        def __init__(self, source: Any, feeds: Any, gpu: Any, *, layers: bool):
            events.append((source, layers))

        def run(self) -> None: ...

        def node_times(self, runs: int, warmup: int) -> tuple[NodeTime, ...]:
            return (NodeTime("a + b", "Conv", "tensorrt", 1.0, 1.0),)

        def close(self) -> None:
            events.append("engine")

    monkeypatch.setattr(module, "Gpu", Gpu)
    monkeypatch.setattr(tensorrt_engine, "Engine", Engine)
    monkeypatch.setattr(tensorrt_engine, "library", lambda: type("trt", (), {"__version__": "10.9"}))
    path = str(digits.path("resnet"))
    found = bench(path, provider="tensorrt", profile=True, **QUICK)
    assert events == [(path, True), "engine", "gpu"]
    assert (found.library, found.device, found.models[0].start) == ("TensorRT 10.9, Fake GPU", "Fake GPU", 3.0)
    bench(path, provider="tensorrt", precision="fp16", **QUICK)
    assert isinstance(events[3][0], onnx.ModelProto)


def test_no_gpu(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda.ctypes, "CDLL", missing)
    with pytest.raises(RunError, match="there is no NVIDIA GPU here, or no driver for it: "):
        cuda.Gpu()


# prune


def test_prune_reports_the_latency(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    seen: list[Any] = []

    def fake(models: Any, feeds: Feeds, settings: Settings) -> module.Bench:
        seen.extend([[x.name for x in models], [x.proto for x in models], shapes_of(feeds), settings])
        return replace(bench(FREE, FREE, **QUICK), notes=("a note of the bench",))

    monkeypatch.setattr("onnxprune.stages.report.measure", fake)
    out, report = tmp_path / "out.onnx", tmp_path / "report.json"
    watched: list[Progress] = []
    found = prune(
        *(digits.path("resnet"), out, digits.CALIB),
        **{"report_file": report, "bench": True, "watch": watched.append, "method": "magnitude", "refit": "none"},
    )
    names, protos, shapes, settings = seen
    assert names == [str(digits.path("resnet")), str(out)]
    assert digits.widths(protos[0]) != digits.widths(protos[1]) == digits.widths(onnx.load(out))
    assert (shapes, settings) == ({"input": (1, 1, 8, 8)}, Settings())
    assert found.report.notes[-1] == "a note of the bench"
    assert json.loads(report.read_text())["latency"]["comparison"]["ratio"] > 0
    assert [p.stage for p in watched][-2:] == ["bench", "save"]
    assert "bench" not in found.report.effort.stages


def test_a_failed_bench_keeps_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def fail(*_: Any) -> None:
        raise RunError("CUDAExecutionProvider did not start")

    monkeypatch.setattr("onnxprune.stages.report.measure", fail)
    out = tmp_path / "out.onnx"
    found = prune(digits.path("resnet"), out, digits.CALIB, bench="cpu", method="magnitude", refit="none")
    assert out.is_file()
    assert found.report.latency is None
    assert "the latency was not measured: CUDAExecutionProvider did not start" in found.report.notes


def test_prune_refuses_a_bench_that_cannot_be(tmp_path: Path):
    with pytest.raises(UsageError, match="provider 'abacus'"):
        prune(digits.path("resnet"), tmp_path / "out.onnx", digits.CALIB, bench="abacus")
    with pytest.raises(UsageError, match="a dry run makes no model"):
        prune(digits.path("resnet"), None, digits.CALIB, bench=True, dry_run=True)
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_in_the_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    bench(digits.path("resnet"), profile=True, **QUICK)
    assert list(tmp_path.iterdir()) == []
