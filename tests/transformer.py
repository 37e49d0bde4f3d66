"""Small transformers of a few layers, as exporters write them: norms before, behind, or shared by both branches."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
WIDTH, HEADS, SIZE, INNER, CLASSES = 16, 2, 8, 24, 5
PRE, POST, BOTH = "norm before", "norm behind", "norm before and behind each block"
PARALLEL, TURNED = "side by side", "side by side, feed-forward first"
CROSS = "norm before, with cross-attention"


def transformer(form: str = PRE, layers: int = 3, *, quiet: int | None = None, seed: int = 0) -> onnx.ModelProto:
    """Features (B, S, WIDTH) → class scores (B, CLASSES); cross-attention also reads the features, as "memory".

    quiet: a layer that adds next to nothing.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, Array] = {}
    nodes: list[onnx.NodeProto] = []

    def weight(name: str, *shape: int) -> str:
        values = rng.standard_normal(shape) / np.sqrt(shape[0]) if len(shape) > 1 else rng.uniform(-0.5, 0.5, shape)
        weights[name] = values.astype(np.float32)
        return name

    def add(op: str, inputs: list[str], name: str, **attrs: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name=f"/{name.replace('.', '/')}/{op}", **attrs))
        return name

    def linear(x: str, name: str, *shape: int) -> str:
        product = add("MatMul", [x, weight(f"{name}.weight", *shape)], f"{name}_product")
        return add("Add", [product, weight(f"{name}.bias", shape[-1])], name)

    def norm(x: str, name: str) -> str:
        inputs = [x, weight(f"{name}.weight", WIDTH), weight(f"{name}.bias", WIDTH)]
        return add("LayerNormalization", inputs, name, axis=-1)

    def attention(x: str, at: str, memory: str = "") -> str:
        read = {"query": x, "key": memory or x, "value": memory or x}
        split = [linear(y, f"{at}.{what}", WIDTH, WIDTH) for what, y in read.items()]
        heads = [add("Reshape", [y, "heads"], f"{y}_heads") for y in split]
        q, k, v = (
            add("Transpose", [y], f"{y}_turned", perm=[0, 2, 3, 1] if i == 1 else [0, 2, 1, 3])
            for i, y in enumerate(heads)
        )
        scores = add("Softmax", [add("MatMul", [q, k], f"{at}.scores")], f"{at}.shares", axis=-1)
        back = add("Transpose", [add("MatMul", [scores, v], f"{at}.mixed")], f"{at}.back", perm=[0, 2, 1, 3])
        return linear(add("Reshape", [back, "joined"], f"{at}.joined"), f"{at}.output", WIDTH, WIDTH)

    def crossed(x: str, at: str) -> str:
        return attention(x, f"{at}.cross", "memory")

    def feed_forward(x: str, at: str) -> str:
        return linear(add("Relu", [linear(x, f"{at}.up", WIDTH, INNER)], f"{at}.relu"), f"{at}.down", INNER, WIDTH)

    weights |= {"heads": np.array([0, 0, HEADS, SIZE], np.int64), "joined": np.array([0, 0, WIDTH], np.int64)}
    stream = linear("x", "embed", WIDTH, WIDTH)
    if form == CROSS:
        linear(linear("x", "encoder", WIDTH, WIDTH), "memory", WIDTH, WIDTH)
    for k in range(layers):
        at = f"layers.{k}"
        if form in (PARALLEL, TURNED):
            y = norm(stream, f"{at}.norm")
            both = [attention(y, at), feed_forward(y, at)][:: 1 if form == PARALLEL else -1]
            stream = add("Add", [add("Add", [stream, both[0]], f"{at}.sum0"), both[1]], f"{at}.sum1")
            continue
        blocks = (attention, crossed, feed_forward) if form == CROSS else (attention, feed_forward)
        for i, block in enumerate(blocks):
            made = block(stream if form == POST else norm(stream, f"{at}.norm{i}"), at)
            made = norm(made, f"{at}.after{i}") if form == BOTH else made
            stream = add("Add", [stream, made], f"{at}.sum{i}")
            stream = norm(stream, f"{at}.norm{i}") if form == POST else stream
    mean = add("ReduceMean", [norm(stream, "last") if form != POST else stream], "pooled", axes=[1], keepdims=0)
    linear(mean, "head", WIDTH, CLASSES)
    if quiet is not None:
        for name in (f"layers.{quiet}.output", f"layers.{quiet}.down"):
            weights[f"{name}.weight"] *= 1e-3
    graph = helper.make_graph(
        nodes,
        "transformer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", WIDTH])],
        [helper.make_tensor_value_info("head", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def features(count: int, length: int = 6, seed: int = 1) -> dict[str, Array]:
    """Random sequences."""
    return {"x": np.random.default_rng(seed).standard_normal((count, length, WIDTH)).astype(np.float32)}


def zeroed(model: onnx.ModelProto, *layers: int) -> onnx.ModelProto:
    """The model where layers add nothing but the biases of what joins the stream: no channel of theirs is left."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for t in result.graph.initializer:
        if t.name in {f"layers.{k}.{name}.weight" for k in layers for name in ("output", "cross.output", "down")}:
            t.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(t)), t.name))
    return result
