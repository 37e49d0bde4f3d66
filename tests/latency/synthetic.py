"""A machine whose times follow from the shapes of a model alone: nothing is run, and no clock is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, prod

import numpy as np
import onnx

from onnxprune.graph import protobuf
from onnxprune.latency.kernels import Kernel
from onnxprune.runtime.session import Feeds
from onnxprune.runtime.timing import Times

BLOCK = 4
NANO = 1e-9


class Synthetic:
    """A convolution takes a start, and a time for the blocks that it multiplies; any other node one for what it writes.

    A Relu is fused into the convolution before it, and the kernel is called after the Relu's output. start: nanoseconds
    of every kernel. overhead: of a run, beside its kernels. drag: by how much a whole run is slower than its kernels,
    the more the fewer seconds they take: what no sum of layers tells. block: channels that are computed together.
    """

    def __init__(self, start: float = 500.0, overhead: float = 20_000.0, drag: float = 0.0, block: int = BLOCK):
        self.start, self.overhead, self.drag, self.block = start, overhead, drag, block
        self.profiled = self.compared = 0

    def identity(self) -> Mapping[str, str]:
        return {"processor": "synthetic", "providers": "none", "threads": "1"}

    def kernels(self, model: onnx.ModelProto, feeds: Feeds) -> tuple[Kernel, ...]:
        self.profiled += 1
        return self._kernels(model, feeds)

    def compare(self, models: Sequence[onnx.ModelProto], feeds: Feeds) -> tuple[Times, ...]:
        self.compared += 1
        return tuple(Times(np.full(3, self.seconds(p, feeds))) for p in models)

    def seconds(self, model: onnx.ModelProto, feeds: Feeds) -> float:
        """Of a whole run."""
        work = sum(k.seconds for k in self._kernels(model, feeds))
        return self.overhead * NANO + work + self.drag * np.sqrt(work * 1e-5)

    def _kernels(self, model: onnx.ModelProto, feeds: Feeds) -> tuple[Kernel, ...]:
        shapes, _ = protobuf.inferred_shapes(protobuf.bind_inputs(model, {k: np.shape(v) for k, v in feeds.items()}))
        shapes |= {t.name: tuple(t.dims) for t in model.graph.initializer}
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        fused: set[str] = set()
        found: list[Kernel] = []
        for node in model.graph.node:
            out = node.output[0]
            if out in fused:
                continue
            name, x = node.name, shapes[out]
            if node.op_type == "Conv":
                w = shapes[node.input[1]]
                work = prod((*w[2:], *x[2:], x[0], *(ceil(c / self.block) * self.block for c in w[:2])))
                after = readers.get(out, [])
                if len(after) == 1 and after[0].op_type == "Relu":
                    fused.add(after[0].output[0])
                    name = f"{after[0].output[0]}_nchwc"
            else:
                work = prod((*x, 8))
            found.append(Kernel(name, node.op_type, (self.start + 0.1 * work) * NANO, f"{node.op_type}{x}"))
        return tuple(found)
