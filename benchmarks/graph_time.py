"""Time to build the channel graph: of a full-size DenseNet-121, and against the number of nodes.

    python -m benchmarks.graph_time

Prints a markdown table. Seconds are those of the processor, on which one thread does all the work, and the best of some
repetitions, so that other work on a shared machine does not count; the last column, time per node relative to the
smallest graph of the series, stays near 1 where the time is in proportion.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.channels import build
from onnxprune.graph import protobuf
from onnxprune.normalise import normalise

REPETITIONS = 5
DENSENET_121 = (6, 12, 24, 16)
GROWTH = 32


class _Net:
    """Appends nodes and random weights; `x` is the tensor that the next node reads."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(seed)

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        out = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        values = self.rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]) or 1)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, x: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> str:
        pad = kernel // 2
        return self.op("Conv", x, self.weight(outputs, inputs, kernel, kernel), strides=[stride] * 2, pads=[pad] * 4)

    def norm(self, x: str, channels: int) -> str:
        vectors = [self.weight(channels) for _ in range(3)]
        variance = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ones(channels, np.float32), variance))
        return self.op("BatchNormalization", x, *vectors, variance)

    def model(self, size: int) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, size, size])],
            [helper.make_empty_tensor_value_info(self.nodes[-1].output[0])],
            self.weights,
        )
        graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def densenet121(size: int = 64) -> onnx.ModelProto:
    """DenseNet-121 (Huang et al. 2017) with BatchNormalization kept: the widths of the paper, a smaller image."""
    net = _Net()
    channels = 64
    x = net.op("Relu", net.norm(net.conv("image", 3, channels, 7, 2), channels))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for index, layers in enumerate(DENSENET_121):
        parts = [x]
        for _ in range(layers):
            joined = net.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
            y = net.conv(net.op("Relu", net.norm(joined, channels)), channels, 4 * GROWTH, 1)
            y = net.conv(net.op("Relu", net.norm(y, 4 * GROWTH)), 4 * GROWTH, GROWTH, 3)
            parts.append(y)
            channels += GROWTH
        x = net.op("Relu", net.norm(net.op("Concat", *parts, axis=1), channels))
        if index + 1 < len(DENSENET_121):
            x = net.conv(x, channels, channels // 2, 1)
            channels //= 2
            x = net.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    net.op("Gemm", x, net.weight(1000, channels), net.weight(1000), transB=1)
    return net.model(size)


def residual_chain(nodes: int, channels: int = 8) -> onnx.ModelProto:
    """Residual blocks of five nodes, every fourth of them with a new stream."""
    net = _Net()
    x = net.conv("image", 3, channels, 1)
    while len(net.nodes) < nodes - 5:
        for _ in range(4):
            y = net.op("Relu", net.conv(x, channels, channels, 1))
            x = net.op("Relu", net.op("Add", net.conv(y, channels, channels, 1), x))
        x = net.conv(x, channels, channels, 1)
    return net.model(4)


def measure(proto: onnx.ModelProto, size: int) -> tuple[int, float]:
    """(nodes, processor seconds) of building the channel graph of the normalised model."""
    n = normalise(proto, {"image": np.zeros((1, 3, size, size), np.float32)})
    view = protobuf.view(n.proto, n.shapes, n.known_values, n.binding)
    seconds = []
    for _ in range(REPETITIONS):
        start = time.process_time()
        build(view)
        seconds.append(time.process_time() - start)
    return len(view.nodes), min(seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1250, 2500, 5000, 10000])
    args = parser.parse_args()
    print("| graph | nodes | seconds | microseconds per node | relative |")
    print("|---|---|---|---|---|")
    jobs: list[tuple[str, Callable[[], onnx.ModelProto], int]] = [("DenseNet-121", densenet121, 64)]
    jobs += [("residual chain", lambda n=n: residual_chain(n), 4) for n in args.nodes]
    first = 0.0
    for name, make, size in jobs:
        nodes, seconds = measure(make(), size)
        per_node = seconds / nodes * 1e6
        chain = name != "DenseNet-121"
        first = first or (per_node if chain else 0.0)
        relative = f"{per_node / first:.2f}" if chain else ""
        print(f"| {name} | {nodes} | {seconds:.3f} | {per_node:.0f} | {relative} |", flush=True)


if __name__ == "__main__":
    main()
