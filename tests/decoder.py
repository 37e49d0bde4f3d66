"""A small decoder as onnxruntime-genai's builder writes it: packed projections, grouped queries, caches, tables."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
VOCABULARY, WIDTH, INNER, HEADS, GROUPS, SIZE, LAYERS = 24, 32, 40, 8, 4, 16, 2


def caches_of(layers: int) -> tuple[str, ...]:
    """The names of caches, without their sides."""
    return tuple(f"{layer}.{what}" for layer in range(layers) for what in ("key", "value"))


CACHES = caches_of(LAYERS)


def decoder(
    *,
    groups: int = GROUPS,
    heads: int = HEADS,
    window: int = 0,
    size: int | str = "size",
    layers: int = LAYERS,
    windowed: Collection[int] = (0,),
) -> onnx.ModelProto:
    """Token ids (B, S), mask (B, T) and caches (B, groups, P, SIZE) → logits and caches of all positions.

    window: the layers `windowed` attend to so many positions, and their caches have as many rows; 0 for all.
    size: how the caches declare the last axis, of SIZE.
    """
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {}
    nodes: list[onnx.NodeProto] = []

    def weight(name: str, *shape: int) -> str:
        values = rng.standard_normal(shape) / np.sqrt(shape[0]) if len(shape) > 1 else rng.uniform(0.5, 1.5, shape)
        weights[name] = values.astype(np.float32)
        return name

    def add(op: str, inputs: list[str], outputs: list[str], domain: str = "", **attrs: Any) -> str:
        nodes.append(helper.make_node(op, inputs, outputs, name=f"/{outputs[0]}", domain=domain, **attrs))
        return outputs[0]

    def linear(x: str, name: str, *shape: int) -> str:
        return add("MatMul", [x, weight(f"{name}.weight", *shape)], [name])

    angles = np.outer(np.arange(64), 1.0 / 100.0 ** (np.arange(SIZE // 2) / (SIZE / 2)))
    weights |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    weights |= {"one": np.array([1], np.int64), "place": np.array(1, np.int64)}
    add("ReduceSum", ["attention_mask", "one"], ["counted"], keepdims=0)
    add("Sub", ["counted", "one"], ["last"])
    add("Cast", ["last"], ["lengths"], to=TensorProto.INT32)
    add("Shape", ["attention_mask"], ["sizes"])
    add("Gather", ["sizes", "place"], ["whole"], axis=0)
    add("Cast", ["whole"], ["total"], to=TensorProto.INT32)
    add("Gather", [weight("embedding", VOCABULARY, WIDTH), "input_ids"], ["embedded"])
    stream = "embedded"
    norm = add("SimplifiedLayerNormalization", [stream, weight("norm", WIDTH)], ["normal"], axis=-1, epsilon=1e-6)
    for k in range(layers):
        qkv = linear(norm, f"qkv{k}", WIDTH, (heads + 2 * groups) * SIZE)
        past = [f"past_key_values.{k}.key", f"past_key_values.{k}.value"]
        attended = add(
            "GroupQueryAttention",
            [qkv, "", "", *past, "lengths", "total", "cos", "sin"],
            [f"attended{k}", f"present.{k}.key", f"present.{k}.value"],
            "com.microsoft",
            num_heads=heads,
            kv_num_heads=groups,
            do_rotary=1,
            **({"local_window_size": window, "sliding_window_cache": 1} if window and k in windowed else {}),
        )
        for half, made in enumerate((linear(attended, f"o{k}", heads * SIZE, WIDTH), "")):
            if half:
                gate = linear(norm, f"gate{k}", WIDTH, INNER)
                up = linear(norm, f"up{k}", WIDTH, INNER)
                open_ = add("Mul", [gate, add("Sigmoid", [gate], [f"open{k}"])], [f"silu{k}"])
                made = linear(add("Mul", [open_, up], [f"inner{k}"]), f"down{k}", INNER, WIDTH)
            scale = weight(f"scale{k}.{half}", WIDTH)
            outputs = [f"normal{k}.{half}", "", "", f"stream{k}.{half}"]
            norm = add(
                "SkipSimplifiedLayerNormalization", [stream, made, scale], outputs, "com.microsoft", epsilon=1e-6
            )
            stream = outputs[3]
    add("MatMul", [norm, weight("head", WIDTH, VOCABULARY)], ["logits"])

    def port(name: str, dims: list[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, dims)

    def cache(side: str, length: str) -> list[onnx.ValueInfoProto]:
        names = caches_of(layers)
        rows = {name: "rows" if window and int(name.split(".")[0]) in windowed else length for name in names}
        return [port(f"{side}.{name}", ["batch", groups, rows[name], size]) for name in names]

    ids = [port("input_ids", ["batch", "new"], TensorProto.INT64), port("attention_mask", ["batch", "all"], 7)]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [*ids, *cache("past_key_values", "past")],
        [port("logits", ["batch", "new", VOCABULARY]), *cache("present", "all")],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def prompts(count: int, length: int = 6, seed: int = 0) -> dict[str, Array]:
    """Random prompts, without caches."""
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, (count, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def empty(
    count: int, groups: int = GROUPS, window: int = 0, layers: int = LAYERS, windowed: Collection[int] = (0,)
) -> dict[str, Array]:
    """Caches without a position; those of the layers `windowed` with rows for a window."""
    rows = {name: window if int(name.split(".")[0]) in windowed else 0 for name in caches_of(layers)}
    return {f"past_key_values.{k}": np.zeros((count, groups, n, SIZE), np.float32) for k, n in rows.items()}


def fed_back(outputs: dict[str, Array]) -> dict[str, Array]:
    """The caches of the next step."""
    return {k.replace("present.", "past_key_values."): v for k, v in outputs.items() if k.startswith("present.")}
