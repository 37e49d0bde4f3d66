"""TensorRT engines: on a fake package and a fake driver everywhere, and for real where there is a GPU.

The fake knows those names of TensorRT's Python interface that versions 10.9 and 11.4 both have.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import bench
from onnxprune.benchmark import cuda
from onnxprune.benchmark.cuda import Gpu
from onnxprune.benchmark.tensorrt_engine import Engine
from onnxprune.errors import RunError
from tests import digits


class Driver:
    """The driver's functions over a dictionary of buffers."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.calls: list[str] = []
        self.fails: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*args: Any) -> int:
            self.calls.append(name)
            if name in self.fails:
                return self.fails[name]
            act = {
                "cuStreamCreate": lambda: setattr(args[0]._obj, "value", 77),
                "cuMemAlloc_v2": lambda: self._allocate(*args),
                "cuMemcpyHtoD_v2": lambda: ctypes.memmove(self.memory[args[0].value], args[1].value, args[2].value),
                "cuMemFree_v2": lambda: self.memory.pop(args[0].value),
                "cuDeviceGetName": lambda: setattr(args[0], "value", b"Fake GPU"),
                "cuGetErrorString": lambda: setattr(args[1]._obj, "value", b"out of luck"),
            }.get(name)
            if act is not None:
                act()
            return 0

        return call

    def _allocate(self, address: Any, size: Any) -> None:
        address._obj.value = 1000 + len(self.calls)
        self.memory[address._obj.value] = ctypes.create_string_buffer(size.value)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: found)
    return found


class TensorRT(ModuleType):
    """The package. Its engines answer "is the input positive?", to whatever model."""

    __version__ = "10.9.0"
    dims = (-1, 3)
    refuses, builds, runs = "", True, True

    def __init__(self, driver: Driver) -> None:
        super().__init__("tensorrt")
        self.parsed: Any = None
        self.profiles: list[tuple[Any, ...]] = []
        self.flags = 0
        self.detail: Any = None
        fake = self

        class Base:
            def __init__(self) -> None:
                self.alive = True

        class ILogger(Base):
            Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

        class Builder:
            def __init__(self, log: Any) -> None:
                self.log = log

            def create_network(self, flags: int) -> Any:
                fake.flags = flags
                x = SimpleNamespace(name="x", shape=fake.dims, is_shape_tensor=False)
                n = SimpleNamespace(name="n", shape=(1,), is_shape_tensor=True)
                return SimpleNamespace(num_inputs=2, get_input=lambda i: (x, n)[i])

            def create_builder_config(self) -> Any:
                return SimpleNamespace(add_optimization_profile=lambda p: fake.profiles.append(("added",)))

            def create_optimization_profile(self) -> Any:
                return SimpleNamespace(
                    set_shape=lambda *a: fake.profiles.append(("shape", *a)),
                    set_shape_input=lambda *a: fake.profiles.append(("values", *a)),
                )

            def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
                fake.detail = getattr(config, "profiling_verbosity", None)
                self.log.log(2, "a warning")
                if not fake.builds:
                    self.log.log(1, "no kernel\nfor it")
                    self.log.log(1, "and so it failed")
                return b"plan" if fake.builds else None

        class OnnxParser:
            num_errors = 1

            def __init__(self, network: Any, log: Any) -> None: ...

            def parse(self, content: bytes) -> bool:
                fake.parsed = content
                return not fake.refuses

            def parse_from_file(self, path: str) -> bool:
                fake.parsed = path
                return not fake.refuses

            def get_error(self, i: int) -> Any:
                return SimpleNamespace(desc=lambda: fake.refuses)

        class Context:
            profiler: Any = None

            def __init__(self) -> None:
                self.shapes: dict[str, Any] = {}
                self.places: dict[str, int] = {}

            def set_input_shape(self, name: str, shape: Any) -> None:
                self.shapes[name] = shape

            def get_max_output_size(self, name: str) -> int:
                return int(np.prod(self.shapes["x"]))

            def set_tensor_address(self, name: str, address: int) -> None:
                self.places[name] = address

            def execute_async_v3(self, stream: int) -> bool:
                assert stream == 77
                x = np.frombuffer(driver.memory[self.places["x"]], np.float32)
                count = ctypes.cast(self.places["n"], ctypes.POINTER(ctypes.c_int64))[0]
                assert (count, self.shapes["n"]) == (5, (1,))
                ctypes.memmove(driver.memory[self.places["y"]], (x > 0).astype(np.uint8).tobytes(), x.size)
                if self.profiler is not None:
                    for layer, ms in (("a + b", 2.0), ("shuffle", 1.0)):
                        self.profiler.report_layer_time(layer, ms)
                return fake.runs

        layers = {"Layers": [{"Name": "a + b", "LayerType": "Convolution"}, "shuffle"]}

        class RunnableEngine:
            num_io_tensors = 3

            def create_execution_context(self) -> Context:
                return Context()

            def get_tensor_name(self, i: int) -> str:
                return ("y", "x", "n")[i]

            def get_tensor_mode(self, name: str) -> str:
                return "out" if name == "y" else "in"

            def get_tensor_location(self, name: str) -> str:
                return "host" if name == "n" else "device"

            def create_engine_inspector(self) -> Any:
                return SimpleNamespace(get_engine_information=lambda form: json.dumps(layers))

        self.ILogger, self.IProfiler, self.Builder, self.OnnxParser = ILogger, Base, Builder, OnnxParser
        self.Runtime = lambda log: SimpleNamespace(
            deserialize_cuda_engine=lambda plan: RunnableEngine() if plan == b"plan" else None
        )
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="all")
        self.LayerInformationFormat = SimpleNamespace(JSON="json")
        self.TensorIOMode = SimpleNamespace(INPUT="in")
        self.TensorLocation = SimpleNamespace(HOST="host")


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> TensorRT:
    found = TensorRT(driver)
    monkeypatch.setitem(sys.modules, "tensorrt", found)
    return found


FEEDS = {"x": np.array([[1, -1, 2], [-3, 4, 5]], np.float32), "n": np.array([5], np.int64)}


def test_a_run_reads_and_writes_the_memory_of_the_gpu(trt: TensorRT, driver: Driver):
    gpu = Gpu()
    engine = Engine("a.onnx", FEEDS, gpu)
    before = len(driver.calls)
    engine.run()
    # Nothing but the wait: a run copies nothing.
    assert driver.calls[before:] == ["cuStreamSynchronize"]
    written = [m.raw for m in driver.memory.values() if len(m) == 6]
    assert written == [bytes([1, 0, 1, 0, 1, 1])]
    engine.close()
    gpu.close()
    assert driver.memory == {}
    assert driver.calls[-2:] == ["cuStreamDestroy_v2", "cuDevicePrimaryCtxRelease_v2"]


def test_the_network_has_the_types_of_the_model(trt: TensorRT, driver: Driver):
    Engine("a.onnx", FEEDS, Gpu())
    assert trt.flags == 1 << 1


def test_shapes_of_the_profile(trt: TensorRT, driver: Driver):
    """Fails where a symbolic size, or values that are a shape, are not bound to those of the feeds."""
    Engine("a.onnx", FEEDS, Gpu())
    assert trt.profiles == [("shape", "x", (2, 3), (2, 3), (2, 3)), ("values", "n", [5], [5], [5]), ("added",)]
    trt.profiles.clear()
    trt.dims = (2, 3)
    Engine("a.onnx", FEEDS, Gpu())
    assert [p[0] for p in trt.profiles] == ["values", "added"]


def test_files_are_read_by_tensorrt_and_messages_given_to_it(trt: TensorRT, driver: Driver, tmp_path: Path):
    Engine("a.onnx", FEEDS, Gpu())
    assert trt.parsed == str(Path("a.onnx").resolve())
    proto = onnx.load(digits.path("resnet"))
    Engine(proto, FEEDS, Gpu())
    assert onnx.load_from_string(trt.parsed) == proto


def test_layers(trt: TensorRT, driver: Driver):
    engine = Engine("a.onnx", FEEDS, Gpu(), layers=True)
    assert trt.detail == "all"
    fused, other = engine.node_times(runs=4, warmup=2)
    assert (fused.name, fused.operator, fused.seconds, fused.calls) == ("a + b", "Convolution", pytest.approx(2e-3), 1)
    assert (other.name, other.operator) == ("shuffle", "layer")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"refuses": "no importer for\nAbacus"}, "TensorRT cannot read the model: no importer for Abacus$"),
        ({"builds": False}, "TensorRT cannot build the model: no kernel for it$"),
        ({"Runtime": None}, "TensorRT cannot build the model: 'NoneType' object is not callable$"),
    ],
)
def test_models_that_tensorrt_refuses(trt: TensorRT, driver: Driver, changes: dict[str, Any], match: str):
    for name, value in changes.items():
        setattr(trt, name, value)
    with pytest.raises(RunError, match=match):
        Engine("a.onnx", FEEDS, Gpu())


def test_a_run_that_fails(trt: TensorRT, driver: Driver):
    engine = Engine("a.onnx", FEEDS, Gpu())
    trt.runs = False
    with pytest.raises(RunError, match="TensorRT cannot run the model: it gives no reason"):
        engine.run()


def test_errors_of_the_driver(driver: Driver):
    driver.fails["cuInit"] = 100
    with pytest.raises(RunError, match=r"the GPU cannot be used: cuInit: out of luck \(100\)"):
        Gpu()


def test_memory_that_does_not_suffice(driver: Driver):
    gpu = Gpu()
    driver.fails["cuMemAlloc_v2"] = 2
    with pytest.raises(RunError, match="cuMemAlloc_v2: out of luck"):
        gpu.upload(np.ones(3))
    gpu.close()


def test_name_of_the_gpu(driver: Driver):
    assert Gpu().name == "Fake GPU"


def _no_engines() -> str:
    """Why engines cannot be built here, "" where they can."""
    if importlib.util.find_spec("tensorrt") is None:
        return "the package tensorrt is not installed"
    try:
        Gpu().close()
    except RunError as e:
        return str(e)
    return ""


@pytest.mark.skipif(bool(_no_engines()), reason=_no_engines())
@pytest.mark.parametrize("precision", ["model", "fp16"])
def test_real_engines(precision: str):
    found = bench(
        *(digits.path("resnet"), digits.path("mobilenet")),
        **{"provider": "tensorrt", "batch": 4, "precision": precision, "runs": 20, "profile": True},
    )
    assert found.library.startswith("TensorRT ")
    assert all(x.median > 0 and x.nodes for x in found.models)
