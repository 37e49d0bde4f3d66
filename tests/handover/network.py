"""A small network by its parameters, as PyTorch names them, and the ONNX files that its exporters make of it.

    conv1, bn1, ReLU; conv2 (two groups), bn2, ReLU; the mean over positions; proj (a Linear as MatMul and Add), ReLU;
    fc (a Linear as Gemm)

`plain` keeps every name and every normalisation, so that it runs any parameters of any width: the oracle of what comes
back. `torchscript` and `dynamo` fold and rename as these exporters do.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

State = dict[str, NDArray[np.float32]]
EPSILON = 1e-5
_NAMES, _CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"


def trained(seed: int = 0) -> State:
    """Parameters as training leaves them, no two alike."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return (rng.normal(size=shape) * 0.5).astype(np.float32)

    state = {"conv1.weight": normal(12, 3, 3, 3), "conv2.weight": normal(8, 6, 3, 3), "conv2.bias": normal(8)}
    for bn, width in (("bn1", 12), ("bn2", 8)):
        state[f"{bn}.weight"] = (0.5 + rng.random(width)).astype(np.float32)
        state[f"{bn}.bias"] = normal(width)
        state[f"{bn}.running_mean"] = normal(width)
        state[f"{bn}.running_var"] = (0.5 + rng.random(width)).astype(np.float32)
    return state | {
        "proj.weight": normal(10, 8),
        "proj.bias": normal(10),
        "fc.weight": normal(5, 10),
        "fc.bias": normal(5),
    }


def plain(state: Mapping[str, NDArray[np.float32]], groups: int = 2) -> onnx.ModelProto:
    """The network with every parameter under its own name, as `dynamo=True, optimize=False` exports it."""
    bn1, bn2 = ([f"{m}.{k}" for k in ("weight", "bias", "running_mean", "running_var")] for m in ("bn1", "bn2"))
    first = ["conv1.weight", *(["conv1.bias"] if "conv1.bias" in state else [])]
    nodes = [
        _node("Conv", ["input", *first], "c1", "conv1", pads=[1] * 4),
        _node("BatchNormalization", ["c1", *bn1], "n1", "bn1", epsilon=EPSILON),
        _node("Relu", ["n1"], "r1", ""),
        _node("Conv", ["r1", "conv2.weight", "conv2.bias"], "c2", "conv2", pads=[1] * 4, group=groups),
        _node("BatchNormalization", ["c2", *bn2], "n2", "bn2", epsilon=EPSILON),
        _node("Relu", ["n2"], "r2", ""),
        _node("GlobalAveragePool", ["r2"], "g", ""),
        _node("Flatten", ["g"], "f", ""),
        _node("Transpose", ["proj.weight"], "t", "proj", perm=[1, 0]),
        _node("MatMul", ["f", "t"], "m", "proj"),
        _node("Add", ["m", "proj.bias"], "p", "proj"),
        _node("Relu", ["p"], "r3", ""),
        _node("Gemm", ["r3", "fc.weight", "fc.bias"], "logits", "fc", transB=1),
    ]
    return _model(nodes, state)


def dynamo(state: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """As `dynamo=True` exports it: normalisations folded, the transposed weight called `val_9`."""
    stored = {k: v for k, v in state.items() if not k.startswith("bn")}
    for layer, bn in (("conv1", "bn1"), ("conv2", "bn2")):
        stored[f"{layer}.weight"], stored[f"{layer}.weight_bias"] = _folded(state, layer, bn)
    del stored["conv2.bias"]
    stored["val_9"] = np.ascontiguousarray(stored.pop("proj.weight").T)
    return _model(_folded_nodes(("conv1.weight", "conv2.weight", "val_9"), "conv{}.weight_bias", "dynamo"), stored)


def torchscript(state: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """As `dynamo=False` exports it: normalisations folded, and numbers for names of what was computed."""
    stored = {k: v for k, v in state.items() if k.startswith(("fc", "proj.bias"))}
    for n, (layer, bn) in enumerate((("conv1", "bn1"), ("conv2", "bn2")), 1):
        stored[f"onnx::Conv_{n}0"], stored[f"onnx::Conv_{n}1"] = _folded(state, layer, bn)
    stored["onnx::MatMul_57"] = np.ascontiguousarray(state["proj.weight"].T)
    weights = ("onnx::Conv_10", "onnx::Conv_20", "onnx::MatMul_57")
    return _model(_folded_nodes(weights, "onnx::Conv_{}1", "torchscript"), stored)


def _folded(state: Mapping[str, NDArray[np.float32]], layer: str, bn: str) -> tuple[NDArray[np.float32], ...]:
    gamma, beta, mean, variance = (state[f"{bn}.{k}"] for k in ("weight", "bias", "running_mean", "running_var"))
    scale = gamma / np.sqrt(variance + EPSILON)
    bias = scale * (state.get(f"{layer}.bias", np.zeros(len(mean), np.float32)) - mean) + beta
    return (scale[:, None, None, None] * state[f"{layer}.weight"]).astype(np.float32), bias.astype(np.float32)


def _folded_nodes(weights: tuple[str, str, str], bias: str, exporter: str) -> list[onnx.NodeProto]:
    one, two, product = weights
    by_metadata = exporter == "dynamo"
    # The exporter says of a layer that it is where the normalisation was.
    first, second = ("bn1", "bn2") if by_metadata else ("conv1", "conv2")
    nodes = [
        _node("Conv", ["input", one, bias.format(1)], "c1", first, pads=[1] * 4),
        _node("Relu", ["c1"], "r1", ""),
        _node("Conv", ["r1", two, bias.format(2)], "c2", second, pads=[1] * 4, group=2),
        _node("Relu", ["c2"], "r2", ""),
        _node("GlobalAveragePool", ["r2"], "g", ""),
        _node("Flatten", ["g"], "f", ""),
        _node("MatMul", ["f", product], "m", "proj"),
        _node("Add", ["m", "proj.bias"], "p", "proj"),
        _node("Relu", ["p"], "r3", ""),
        _node("Gemm", ["r3", "fc.weight", "fc.bias"], "logits", "fc", transB=1),
    ]
    for n in nodes:
        if not by_metadata:
            module = next(p.value for p in n.metadata_props if p.key == "module")
            n.name = "/" + "/".join([*filter(None, [module]), f"{n.op_type}_{n.output[0]}"])
            del n.metadata_props[:]
    return nodes


def _node(op: str, inputs: list[str], output: str, module: str, **attributes: object) -> onnx.NodeProto:
    node = helper.make_node(op, inputs, [output], name=f"node_{output}", **attributes)
    said = {"module": module, _NAMES: str(["", *filter(None, [module]), output]), _CLASSES: ""}
    for key, value in said.items():
        node.metadata_props.add(key=key, value=value)
    return node


def _model(nodes: list[onnx.NodeProto], state: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in state.items() if v.dtype == np.float32],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model
