"""TensorRT as a machine that models are timed on: an engine for each, and its own profiler for their layers.

An engine's layer is called after the nodes that it holds, and so belongs to the first of them; what brings its input
into another format names it too. A transformer may become one layer, of which only the whole is then known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import onnx

from onnxprune.benchmark import tensorrt_engine
from onnxprune.benchmark.cuda import Gpu
from onnxprune.latency.kernels import Kernel
from onnxprune.runtime.session import Feeds
from onnxprune.runtime.timing import Times, paired

_RUNS, _WARMUP = 30, 5


@dataclass(frozen=True)
class TensorRT:
    """Engines on the first GPU. seconds: of one comparison. Raises RunError where TensorRT or the GPU refuses."""

    seconds: float = 0.6

    def identity(self) -> Mapping[str, str]:
        """The GPU, and TensorRT's version."""
        with closing(Gpu()) as gpu:
            return {"providers": tensorrt_engine.NAME, "tensorrt": tensorrt_engine.version(), "gpu": gpu.name}

    def kernels(self, model: onnx.ModelProto, feeds: Feeds) -> tuple[Kernel, ...]:
        """The layers of the model's engine, in its order, with the time of each."""
        with closing(Gpu()) as gpu:
            engine = tensorrt_engine.Engine(model, feeds, gpu, layers=True)
            try:
                times = engine.node_times(_RUNS, _WARMUP)
            finally:
                engine.close()
        return tuple(Kernel(n.name, n.operator, n.seconds, "") for n in times)

    def compare(self, models: Sequence[onnx.ModelProto], feeds: Feeds) -> tuple[Times, ...]:
        """Whole runs of engines, in turns; inputs and outputs stay on the GPU."""
        with closing(Gpu()) as gpu:
            engines = [tensorrt_engine.Engine(m, feeds, gpu) for m in models]
            try:
                return paired([e.run for e in engines], budget=self.seconds)
            finally:
                for e in engines:
                    e.close()
