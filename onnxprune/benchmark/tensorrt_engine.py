"""The only user of tensorrt: an engine is built from the ONNX model and run, without onnxruntime.

The network is strongly typed: every tensor has the type that the model gives it, so a model in float16, or one with
QuantizeLinear and DequantizeLinear pairs, runs in those types, and one in float32 in float32 (or TensorFloat-32, which
TensorRT allows itself by default). That is the only way since TensorRT 11. The optimisation profile holds exactly the
shapes of the feeds. Inputs and outputs stay on the GPU; a run ends when its stream has.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.benchmark.cuda import Gpu
from onnxprune.benchmark.profile import NodeTime, typical
from onnxprune.errors import RunError
from onnxprune.graph import external
from onnxprune.numerics.arrays import Array

NAME = "tensorrt"
_MISSING = (
    "provider 'tensorrt' builds an engine, for which the Python package tensorrt and an NVIDIA GPU are needed: "
    "pip install tensorrt (onnxruntime's own is called TensorrtExecutionProvider)"
)
_LINE = 300


def library() -> Any:
    """The package tensorrt. Raises RunError where it is missing or does not load."""
    try:
        import tensorrt
    except ModuleNotFoundError as e:
        raise RunError(_MISSING) from e
    except (ImportError, OSError) as e:
        raise RunError(f"the package tensorrt does not load: {_one_line(e)}") from e
    return tensorrt


def version() -> str:
    """The version of tensorrt. Raises RunError where it is missing."""
    return str(library().__version__)


class Engine:
    """An engine for one model at the shapes of `feeds`, ready to run.

    model: a ModelProto, or a path where that is known, so that weights beside it are read from there. seconds: that
    building took. layers: keep what `node_times` needs to name the kind of a layer.
    Raises RunError where TensorRT refuses the model.
    """

    def __init__(
        self, model: onnx.ModelProto | str, feeds: Mapping[str, Array], gpu: Gpu, *, layers: bool = False
    ) -> None:
        self._trt, self._gpu = library(), gpu
        self._feeds = {k: np.ascontiguousarray(v) for k, v in feeds.items()}
        self._log = _log(self._trt)
        start = time.perf_counter()
        try:
            plan = self._built(model, layers)
            self._engine = self._trt.Runtime(self._log).deserialize_cuda_engine(plan)
            self._known(self._engine, "load the engine that it built")
            self.seconds: float = time.perf_counter() - start
            self._addresses: dict[str, int] = {}
            self._context = self._ready()
        except RunError:
            raise
        except Exception as e:  # whatever the bindings raise
            raise RunError(f"TensorRT cannot build the model: {self._log.first or _one_line(e)}") from e

    def _built(self, model: onnx.ModelProto | str, layers: bool) -> Any:
        trt = self._trt
        builder = trt.Builder(self._log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._log)
        if isinstance(model, str):
            parsed = parser.parse_from_file(str(Path(model).resolve()))
        else:
            whole = external.embedded(model)
            if external.embedded_bytes(whole) >= external.MOST_BYTES:
                raise RunError("TensorRT reads a model of this size from a file only; save it first")
            parsed = parser.parse(whole.SerializeToString())
        if not parsed:
            why = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
            raise RunError(f"TensorRT cannot read the model: {_one_line(why or self._log.first)}")
        config = builder.create_builder_config()
        if layers:
            config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        self._add_shapes(builder, network, config)
        return self._known(builder.build_serialized_network(network, config), "build the model")

    def _add_shapes(self, builder: Any, network: Any, config: Any) -> None:
        profile, dynamic = builder.create_optimization_profile(), False
        for tensor in (network.get_input(i) for i in range(network.num_inputs)):
            fed = self._feeds[tensor.name]
            if tensor.is_shape_tensor:
                values = [int(v) for v in fed.reshape(-1)]
                profile.set_shape_input(tensor.name, values, values, values)
                dynamic = True
            elif -1 in tuple(tensor.shape):
                profile.set_shape(tensor.name, fed.shape, fed.shape, fed.shape)
                dynamic = True
        if dynamic:
            config.add_optimization_profile(profile)

    def _ready(self) -> Any:
        """A context with shapes and addresses set."""
        trt, engine = self._trt, self._engine
        context = self._known(engine.create_execution_context(), "make a context")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        reads = {n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT}
        for name in (*(n for n in names if n in reads), *(n for n in names if n not in reads)):
            if name in reads:
                context.set_input_shape(name, self._feeds[name].shape)
            if name not in self._addresses:
                self._addresses[name] = self._placed(context, name, name in reads)
            context.set_tensor_address(name, self._addresses[name])
        return context

    def _placed(self, context: Any, name: str, reads: bool) -> int:
        if self._engine.get_tensor_location(name) == self._trt.TensorLocation.HOST:
            if not reads:
                size = max(int(context.get_max_output_size(name)), 1)
                self._feeds[name] = np.zeros(size, np.uint8)
            return int(self._feeds[name].ctypes.data)
        if reads:
            return self._gpu.upload(self._feeds[name])
        return self._gpu.allocate(int(context.get_max_output_size(name)))

    def run(self) -> None:
        """One run, to its end. Raises RunError."""
        self._execute(self._context)

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self._gpu.stream):
            raise RunError(f"TensorRT cannot run the model: {self._log.first or 'it gives no reason'}")
        self._gpu.synchronize()

    def node_times(self, runs: int, warmup: int) -> tuple[NodeTime, ...]:
        """Seconds of each layer, which may be several nodes in one, by TensorRT's own profiler."""
        context = self._ready()
        profiler = _profiler(self._trt)
        context.profiler = profiler
        for _ in range(warmup):
            self._execute(context)
        profiler.times.clear()
        for _ in range(runs):
            self._execute(context)
        kinds = self._kinds()
        return tuple(
            NodeTime(name, kinds.get(name, "layer"), NAME, typical(ms) * 1e-3, len(ms) / runs)
            for name, ms in profiler.times.items()
        )

    def close(self) -> None:
        """Free what TensorRT holds, before the GPU is given back."""
        self._context = self._engine = None

    def _kinds(self) -> dict[str, str]:
        """Layer → what it computes, where the engine tells."""
        text = self._engine.create_engine_inspector().get_engine_information(self._trt.LayerInformationFormat.JSON)
        try:
            layers = json.loads(text).get("Layers", [])
        except ValueError:
            return {}
        return {x["Name"]: x["LayerType"] for x in layers if isinstance(x, dict) and {"Name", "LayerType"} <= x.keys()}

    def _known(self, value: Any, what: str) -> Any:
        if value is None:
            raise RunError(f"TensorRT cannot {what}: {self._log.first or 'it gives no reason'}")
        return value


def _log(trt: Any) -> Any:
    """A quiet log that keeps the first error: those after it follow from it."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.first = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR) and not self.first:
                self.first = _one_line(message)

    return Log()


def _profiler(trt: Any) -> Any:
    """A profiler that collects the milliseconds of every layer, run by run."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: dict[str, list[float]] = defaultdict(list)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times[layer_name].append(ms)

    return Profiler()


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:_LINE]
