"""Small models with mixtures of experts: a stream, and layers of a router and a mixture that are added to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WIDTH = 32


def model(
    *,
    experts: int = 4,
    chosen: int = 2,
    layers: int = 2,
    router: str = "MatMul",
    normal: bool = True,
    codes: bool = False,
    inner: int = 32,
    rare: tuple[int, ...] = (),
    tokens: int = 0,
    attention: bool = False,
) -> onnx.ModelProto:
    """x (N, L, 8) → y (N, L, 5); with `tokens` input_ids, attention_mask (N, L) → y (N, L, tokens).

    router: "MatMul", "bias", "Gemm", "read" (its logits are an output of the model too), "packed" (MatMulNBits),
    "twice" (two mixtures read it), "chooses" and "probable" (among sigmoids or probabilities, in front of the mixture).
    codes: QMoE of four bits. attention: each layer has some, in front of its mixture. rare: experts with a logit that
    is seldom among the greatest; the router has a bias then.
    """
    rng = np.random.default_rng(3)
    weights: dict[str, NDArray[Any]] = {"shape": np.array([-1, experts]), "flat": np.array([-1, WIDTH])}
    nodes: list[onnx.NodeProto] = []

    def real(name: str, *shape: int, by: int = 0) -> str:
        weights[name] = (rng.standard_normal(shape) / np.sqrt(by or shape[-1])).astype(np.float32)
        return name

    def packed(name: str, *shape: int) -> list[str]:
        weights[name] = rng.integers(0, 256, (*shape[:-1], shape[-1] // 2), np.uint8)
        weights[f"{name}_scales"] = rng.uniform(0.02, 0.06, (*shape[:-1], shape[-1] // 16)).astype(np.float32)
        return [name, f"{name}_scales"]

    def add(op: str, inputs: list[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}", domain=domain, **attributes))
        return output

    def constant(name: str, value: str) -> str:
        return add("Constant", [], name, value=numpy_helper.from_array(weights[value], name))

    def chooses(product: str, k: int) -> None:
        """Sigmoids chosen by a sum with a bias, or softmax; the logarithms of those that are chosen among -10000."""
        if router == "chooses":
            scores = add("Sigmoid", [product], f"scores{k}")
            biased = add("Add", [scores, real(f"offset{k}", experts)], f"biased{k}")
        else:
            scores = biased = add("Softmax", [product], f"scores{k}", axis=-1)
        weights["many"] = np.array([chosen])
        nodes.append(helper.make_node("TopK", [biased, "many"], [f"greatest{k}", f"places{k}"], axis=-1))
        best = add("GatherElements", [scores, f"places{k}"], f"best{k}", axis=1)
        sizes = add("Shape", [scores], f"all{k}")
        low = numpy_helper.from_array(np.array([-1e4], np.float32))
        none = add("ConstantOfShape", [sizes], f"none{k}", value=low)
        add("ScatterElements", [none, f"places{k}", add("Log", [best], f"log{k}")], f"logits{k}", axis=1)

    first = "x"
    if tokens:
        first = add("Gather", [real("table", tokens, 8, by=1), "input_ids"], "embedded")
    stream = add("MatMul", [first, real("embed", 8, WIDTH, by=8)], "stream")
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "L", tokens or 5])]
    for k in range(layers):
        logits = f"logits{k}"
        if attention:
            parts = [add("MatMul", [stream, real(f"{p}{k}", WIDTH, WIDTH)], f"{p}_of{k}") for p in ("q", "k", "v")]
            heads = add("MultiHeadAttention", parts, f"heads{k}", domain="com.microsoft", num_heads=4)
            answer = add("MatMul", [heads, real(f"o{k}", WIDTH, WIDTH)], f"answer{k}")
            stream = add("Add", [stream, answer], f"attended{k}")
        if router == "Gemm":
            rows = add("Reshape", [stream, "flat"], f"rows{k}")
            weight, bias = real(f"router{k}", experts, WIDTH, by=4), real(f"offset{k}", experts)
            add("Gemm", [rows, weight, bias], logits, transB=1)
        elif router == "packed":
            sizes = {"K": WIDTH, "N": experts, "bits": 4, "block_size": 16}
            weights[f"router{k}"] = rng.integers(0, 256, (experts, WIDTH // 16, 8), np.uint8)
            weights[f"router{k}_scales"] = rng.uniform(0.1, 0.2, experts * WIDTH // 16).astype(np.float32)
            read = [stream, f"router{k}", f"router{k}_scales"]
            product = add("MatMulNBits", read, f"product{k}", domain="com.microsoft", **sizes)
            add("Reshape", [product, "shape"], logits)
        else:
            product = add("MatMul", [stream, real(f"router{k}", WIDTH, experts, by=4)], f"product{k}")
            if router == "bias" or rare:
                product = add("Add", [product, real(f"offset{k}", experts)], f"offered{k}")
                weights[f"offset{k}"][[*rare]] -= 12
            if router in ("chooses", "probable"):
                product = add("Reshape", [product, constant(f"sizes{k}", "shape")], f"flat{k}")
                chooses(product, k)
            else:
                add("Reshape", [product, "shape"], logits)
        if router == "read":
            outputs.append(helper.make_tensor_value_info(logits, TensorProto.FLOAT, [None, experts]))
        for part in range(1 + (router == "twice")):
            name = f"{k}_{part}"
            sizes = {"k": chosen, "normalize_routing_weights": int(normal), "activation_type": "silu"}
            biases = real(f"b{name}", experts, inner), real(f"c{name}", experts, WIDTH)
            if codes:
                up, down = packed(f"u{name}", experts, inner, WIDTH), packed(f"v{name}", experts, WIDTH, inner)
                read, sizes = [*up, biases[0], *down, biases[1]], {**sizes, "block_size": 16, "expert_weight_bits": 4}
            else:
                up, down = real(f"u{name}", experts, inner, WIDTH), real(f"v{name}", experts, WIDTH, inner)
                read = [up, biases[0], down, biases[1]]
            kind = "QMoE" if codes else "MoE"
            mixed = add(kind, [stream, logits, *read], f"mixture{name}", domain="com.microsoft", **sizes)
            stream = add("Add", [stream, mixed], f"stream{name}")
    add("MatMul", [stream, real("head", WIDTH, tokens or 5)], "y")
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "L", 8])]
    if tokens:
        names = "input_ids", "attention_mask"
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "L"]) for name in names]
    stored = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "mixtures", inputs, outputs, stored)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def samples(count: int = 48, length: int = 4) -> dict[str, NDArray[Any]]:
    """Inputs of it."""
    return {"x": np.random.default_rng(1).standard_normal((count, length, 8)).astype(np.float32)}
