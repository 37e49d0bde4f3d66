"""Small models with a vocabulary: token ids (B, S) → logits (B, S, TOKENS), written in the ways of exporters."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

TOKENS, WIDTH, INNER = 64, 16, 24


def random(*shape: int, seed: int = 0) -> NDArray[Any]:
    """Numbers of the size of weights."""
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def model(
    *,
    embedding: str = "Gather",
    head: str = "MatMul",
    behind: tuple[str, ...] = (),
    ids: tuple[str, ...] = (),
    opset: int = 17,
    element: int = TensorProto.FLOAT,
    width: int = WIDTH,
) -> onnx.ModelProto:
    """An embedding, a feed-forward layer with a residual connection, and a head.

    embedding: "Gather", "dequantized", "packed" (GatherBlockQuantized), "shared" (the same of a packed head's codes, by
    a shape that a Constant node gives), "fused" (EmbedLayerNormalization, which reads int32). head: "MatMul", "bias",
    "Gemm", "tied", "packed" (MatMulNBits, of the embedding's codes where that is packed), "none". behind, ids: what
    stands behind the head ("capped", "Softmax", "read", "Cast") and between ids and embedding ("Clip", "Cast").
    """
    dtype = helper.tensor_dtype_to_np_dtype(element)
    weights: dict[str, NDArray[Any]] = {
        "table": random(TOKENS, width),
        "up": random(width, INNER, seed=1).astype(dtype),
        "bias": random(INNER, seed=2).astype(dtype),
        "down": random(INNER, width, seed=3).astype(dtype),
    }
    nodes: list[onnx.NodeProto] = []

    def add(op: str, inputs: list[str], output: str, **attrs: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}", **attrs))
        return output

    read = "input_ids"
    for kind in ids:
        if kind == "Clip":
            weights |= {"least": np.array(0, np.int64), "most": np.array(TOKENS - 1, np.int64)}
            read = add("Clip", [read, "least", "most"], "clipped")
        else:
            read = add("Cast", [read], "cast_ids", to=TensorProto.INT32)
    codes = np.random.default_rng(4).integers(0, 256, (TOKENS, width // 16, 8), np.uint8)
    scales = np.abs(random(TOKENS, width // 16, seed=5)) + np.float32(0.01)
    if embedding == "packed":
        weights |= {"codes": codes.reshape(TOKENS, -1), "scales": scales}
        attrs = {"bits": 4, "block_size": 16, "domain": "com.microsoft"}
        x = add("GatherBlockQuantized", ["codes", read, "scales"], "embedded", **attrs)
    elif embedding == "shared":
        weights |= {"blocks": codes, "scales": scales}
        weights["zeros"] = np.random.default_rng(6).integers(0, 256, (TOKENS, width // 32), np.uint8)
        flat = numpy_helper.from_array(np.array([TOKENS, width // 2], np.int64), "flat_value")
        add("Reshape", ["blocks", add("Constant", [], "flat", value=flat)], "codes")
        attrs = {"bits": 4, "block_size": 16, "domain": "com.microsoft"}
        x = add("GatherBlockQuantized", ["codes", read, "scales", "zeros"], "embedded", **attrs)
    elif embedding == "fused":
        weights |= {"places": random(8, width, seed=8), "gamma": np.ones(width, np.float32)}
        weights["beta"] = np.zeros(width, np.float32)
        x = "embedded"
        tensors = [read, "", "table", "places", "", "gamma", "beta"]
        nodes.append(
            helper.make_node("EmbedLayerNormalization", tensors, [x, "mask"], name="/embedded", domain="com.microsoft")
        )
    elif embedding == "dequantized":
        step = np.abs(weights["table"]).max(1) / 127
        weights["table"] = np.round(weights["table"] / step[:, None]).astype(np.int8)
        weights |= {"step": step, "zero": np.zeros(TOKENS, np.int8)}
        table = add("DequantizeLinear", ["table", "step", "zero"], "real", axis=0)
        x = add("Gather", [table, read], "embedded")
    else:
        weights["table"] = weights["table"].astype(dtype)
        x = add("Gather", ["table", read], "embedded")
    add("Add", [add("MatMul", [x, "up"], "raw"), "bias"], "inner")
    x = add("Add", [x, add("MatMul", [add("Relu", ["inner"], "active"), "down"], "lowered")], "stream")
    if head == "tied":
        x = add(
            "MatMul",
            [x, add("Transpose", ["real" if embedding == "dequantized" else "table"], "turned", perm=[1, 0])],
            "product",
        )
    elif head == "packed":
        given = ["blocks", "scales", "zeros"]
        if embedding != "shared":
            weights["steps"] = scales.reshape(-1) if embedding != "packed" else scales
            given = ["blocks", "steps"]
        if embedding == "packed":
            weights["shape"] = np.array([TOKENS, width // 16, 8], np.int64)
            add("Reshape", ["codes", "shape"], "blocks")
        else:
            weights["blocks"] = codes
        attrs = {"K": width, "N": TOKENS, "bits": 4, "block_size": 16, "domain": "com.microsoft"}
        x = add("MatMulNBits", [x, *given], "product", **attrs)
    elif head == "Gemm":
        weights |= {"flat": np.array([-1, width], np.int64), "head": random(TOKENS, width, seed=6)}
        weights |= {"shift": random(TOKENS, seed=7), "back": np.array([-1, 5, TOKENS], np.int64)}
        add("Gemm", [add("Reshape", [x, "flat"], "rows"), "head", "shift"], "made", transB=1)
        x = add("Reshape", ["made", "back"], "product")
    elif head != "none":
        weights["head"] = random(width, TOKENS, seed=6).astype(dtype)
        x = add("MatMul", [x, "head"], "product")
        if head == "bias":
            weights["shift"] = random(TOKENS, seed=7)
            x = add("Add", ["shift", x], "shifted")
    for kind in behind:
        if kind == "capped":
            weights["cap"] = np.array(3.0, np.float32)
            x = add("Mul", [add("Tanh", [add("Div", [x, "cap"], "small")], "tamed"), "cap"], "capped")
        elif kind == "read":
            add("ArgMax", [x], "best", axis=-1)
        else:
            x = add(kind, [x], kind.lower(), **({"to": TensorProto.FLOAT} if kind == "Cast" else {}))
    nodes[-1].output[0] = "best" if "read" in behind else "logits"
    if "read" in behind:
        add("Identity", [x], "logits")
    shape = ["batch", 5 if head == "Gemm" else "length", width if head == "none" else TOKENS]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT if "Cast" in behind else element, shape)]
    if "read" in behind:
        outputs.append(helper.make_tensor_value_info("best", TensorProto.INT64, [*shape[:2], 1]))
    graph = helper.make_graph(
        nodes,
        "vocabulary",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", shape[1]])],
        outputs,
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)
