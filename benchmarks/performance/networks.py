"""What is pruned: well-known networks with random weights, a plain residual CNN of any size, and images of noise.

Time and memory do not depend on what the weights are, as long as activations stay at a usual scale; so nothing has to
be downloaded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

MODELS = ("mobilenet_v2", "densenet121", "resnet50", "vit_b_32", "vgg16")
SIZE = 224
CNN_SIZE = 32
_CHUNK = 32


def well_known(model: str, path: Path) -> None:
    """Write torchvision's definition of a network, at full size, with random weights. Needs the extra `peers`."""
    from benchmarks.peers import build, export

    network, example, _ = build(model)
    export(network, example, path, dynamo=False)


def residual_cnn(path: Path, width: int = 16, depth: int = 2, seed: int = 0) -> None:
    """Write a residual CNN for 3 x 32 x 32: three stages of `depth` blocks, `width`, 2 and 4 times `width` channels."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def parameter(name: str, values: NDArray[np.float64]) -> str:
        weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(x: str, name: str, fan_in: int, fan_out: int, kernel: int = 3, stride: int = 1) -> str:
        scale = np.sqrt(2.0 / (fan_in * kernel * kernel))
        w = parameter(f"{name}.weight", rng.standard_normal((fan_out, fan_in, kernel, kernel)) * scale)
        b = parameter(f"{name}.bias", 0.1 * rng.standard_normal(fan_out))
        pads, strides = [kernel // 2] * 4, [stride] * 2
        nodes.append(helper.make_node("Conv", [x, w, b], [name], name=name, pads=pads, strides=strides))
        return name

    def relu(x: str) -> str:
        nodes.append(helper.make_node("Relu", [x], [f"{x}.relu"], name=f"{x}.relu"))
        return f"{x}.relu"

    x, channels = relu(conv("input", "stem", 3, width)), width
    for stage in range(3):
        wider = width << stage
        for block in range(depth):
            name, stride = f"stage{stage}.{block}", 2 if stage and not block else 1
            y = conv(relu(conv(x, f"{name}.conv1", channels, wider, stride=stride)), f"{name}.conv2", wider, wider)
            past = x if stride == 1 else conv(x, f"{name}.past", channels, wider, kernel=1, stride=stride)
            nodes.append(helper.make_node("Add", [y, past], [name], name=name))
            # Sums of many blocks would grow with the depth.
            half = parameter(f"{name}.half", np.array(np.sqrt(0.5)))
            nodes.append(helper.make_node("Mul", [name, half], [f"{name}.scaled"], name=f"{name}.scaled"))
            x, channels = relu(f"{name}.scaled"), wider
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["features"], name="flatten"))
    head = parameter("head.weight", rng.standard_normal((10, channels)) / np.sqrt(channels))
    nodes.append(
        helper.make_node("Gemm", ["features", head, parameter("head.bias", np.zeros(10))], ["output"], transB=1)
    )
    graph = helper.make_graph(
        nodes,
        f"residual_cnn_{width}_{depth}",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, CNN_SIZE, CNN_SIZE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def images(path: Path, count: int, size: int, seed: int = 0) -> None:
    """Write `count` images of 3 x size x size as `.npy`: noise with the spectrum of photographs (power ~ 1 / f²)."""
    rng = np.random.default_rng(seed)
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]) * size
    amplitude = 1.0 / np.maximum(f, 1.0)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, 3, size, size))
    for start in range(0, count, _CHUNK):
        n = min(_CHUNK, count - start)
        # Colours of photographs go together for the most part.
        grey, colour = rng.standard_normal((n, 1, size, size)), rng.standard_normal((n, 3, size, size))
        smooth = np.fft.irfft2(np.fft.rfft2(grey + 0.5 * colour) * amplitude, s=(size, size))
        out[start : start + n] = smooth / smooth.std(axis=(1, 2, 3), keepdims=True)
    out.flush()
