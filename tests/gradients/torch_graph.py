"""ONNX graphs in torch: a small interpreter, written against torch.nn.functional alone, as an oracle of gradients."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.graph.view import Graph, Node
from onnxprune.numerics.arrays import Array

Use = tuple[int, int]
Values = list[Any]  # of a node's inputs, None for an omitted one


def evaluate(
    graph: Graph, feeds: Mapping[str, Array], uses: Collection[Use] = ()
) -> tuple[dict[str, Any], dict[Use, Tensor]]:
    """(values by name, what the node of each use reads: a copy of its own, so that its gradient is that of the use)."""
    values: dict[str, Any] = {k: torch.tensor(v) for k, v in {**graph.constants, **feeds}.items()}
    at: dict[Use, Tensor] = {}
    for node in graph.nodes:
        given = [values[i] if i else None for i in node.inputs]
        for slot, v in enumerate(given):
            if (node.index, slot) in uses:
                own = v.clone() if v.requires_grad else v.clone().requires_grad_()
                own.retain_grad()
                at[node.index, slot] = given[slot] = own
        found = OPERATORS[node.op](node, given, graph)
        values.update(zip(node.outputs, found if isinstance(found, (tuple, list)) else [found], strict=False))
    return values, at


def gradients(
    graph: Graph, feeds: Mapping[str, Array], seeds: Mapping[str, Array], uses: Collection[Use]
) -> dict[Use, Array]:
    """The gradient of L = Σ seed ⊙ output at each use: that of what its node alone makes of the tensor."""
    values, at = evaluate(graph, feeds, uses)
    loss = sum((values[o] * torch.tensor(s)).sum() for o, s in seeds.items())
    loss.backward()
    return {u: torch.zeros_like(t).numpy() if t.grad is None else t.grad.numpy() for u, t in at.items()}


def _ints(v: Any) -> list[int]:
    return [int(n) for n in v]


def _padded(x: Tensor, begin: list[int], end: list[int], value: float = 0.0) -> Tensor:
    """torch names the last axis first."""
    return functional.pad(x, [n for pair in reversed(list(zip(begin, end, strict=True))) for n in pair], value=value)


def _around(node: Node, x: Tensor, kernel: list[int], value: float = 0.0) -> tuple[Tensor, list[int], list[int]]:
    """x with its pads, strides and dilations."""
    rank = len(kernel)
    strides = _ints(node.attrs.get("strides") or [1] * rank)
    dilations = _ints(node.attrs.get("dilations") or [1] * rank)
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode.startswith("SAME"):
        total = [
            max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            for n, s, d, k in zip(x.shape[2:], strides, dilations, kernel, strict=True)
        ]
        begin = [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total]
        pads = [*begin, *(t - b for t, b in zip(total, begin, strict=True))]
    else:
        pads = _ints(node.attrs.get("pads") or [0] * (2 * rank))
    assert not node.attrs.get("ceil_mode"), "not written"
    return _padded(x, pads[:rank], pads[rank:], value) if any(pads) else x, strides, dilations


def _conv(node: Node, v: Values, graph: Graph) -> Tensor:
    x, strides, dilations = _around(node, v[0], list(v[1].shape[2:]))
    conv = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[v[1].ndim - 2]
    bias = v[2] if len(v) > 2 else None
    return conv(x, v[1], bias, strides, 0, dilations, int(node.attrs.get("group", 1)))


def _max_pool(node: Node, v: Values, graph: Graph) -> Tensor:
    kernel = _ints(node.attrs["kernel_shape"])
    x, strides, dilations = _around(node, v[0], kernel, -torch.inf)
    return functional.max_pool2d(x, kernel, strides, 0, dilations)


def _average_pool(node: Node, v: Values, graph: Graph) -> Tensor:
    kernel = _ints(node.attrs["kernel_shape"])
    x, strides, _ = _around(node, v[0], kernel)
    assert x is v[0], "not written"
    return functional.avg_pool2d(x, kernel, strides)


def _gemm(node: Node, v: Values, graph: Graph) -> Tensor:
    a, b = (t.T if node.attrs.get(f"trans{k}", 0) else t for t, k in zip(v[:2], "AB", strict=True))
    y = node.attrs.get("alpha", 1.0) * (a @ b)
    return y + node.attrs.get("beta", 1.0) * v[2] if len(v) > 2 else y


def _reshape(node: Node, v: Values, graph: Graph) -> Tensor:
    return v[0].reshape([v[0].shape[i] if n == 0 else n for i, n in enumerate(_ints(v[1]))])


def _axes(node: Node, v: Values) -> list[int]:
    return _ints(node.attrs["axes"]) if "axes" in node.attrs else _ints(v[1])


def _mean(node: Node, v: Values, graph: Graph) -> Tensor:
    return v[0].mean(_axes(node, v), keepdim=bool(node.attrs.get("keepdims", 1)))


def _slice(node: Node, v: Values, graph: Graph) -> Tensor:
    starts, ends = _ints(v[1]), _ints(v[2])
    axes = _ints(v[3]) if len(v) > 3 else range(len(starts))
    steps = _ints(v[4]) if len(v) > 4 else [1] * len(starts)
    x = v[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        n = x.shape[axis]
        x = x.index_select(axis, torch.arange(n)[slice(max(start, -n), max(min(end, n), -n), step)])
    return x


def _pad(node: Node, v: Values, graph: Graph) -> Tensor:
    assert node.attrs.get("mode", "constant") == "constant"
    pads = _ints(v[1])
    rank = len(pads) // 2
    assert len(v) < 4, "not written"
    return _padded(v[0], pads[:rank], pads[rank:], float(v[2]) if len(v) > 2 and v[2] is not None else 0.0)


def _gather(node: Node, v: Values, graph: Graph) -> Tensor:
    axis = int(node.attrs.get("axis", 0)) % v[0].ndim
    indices = v[1].to(torch.int64) % v[0].shape[axis]
    picked = v[0].index_select(axis, indices.reshape(-1))
    return picked.reshape([*v[0].shape[:axis], *indices.shape, *v[0].shape[axis + 1 :]])


def _split(node: Node, v: Values, graph: Graph) -> tuple[Tensor, ...]:
    axis = int(node.attrs.get("axis", 0))
    if len(v) > 1:
        return v[0].split(_ints(v[1]), axis)
    return v[0].split(-(-v[0].shape[axis] // len(node.outputs)), axis)


def _batch_norm(node: Node, v: Values, graph: Graph) -> Tensor:
    x, scale, bias, mean, variance = v
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, node.attrs.get("epsilon", 1e-5))


def _layer_norm(node: Node, v: Values, graph: Graph) -> Tensor:
    axis = int(node.attrs.get("axis", -1)) % v[0].ndim
    return functional.layer_norm(
        v[0], v[0].shape[axis:], v[1], v[2] if len(v) > 2 else None, node.attrs.get("epsilon", 1e-5)
    )


def _instance_norm(node: Node, v: Values, graph: Graph) -> Tensor:
    return functional.instance_norm(v[0], weight=v[1], bias=v[2], eps=node.attrs.get("epsilon", 1e-5))


def _clip(node: Node, v: Values, graph: Graph) -> Tensor:
    low, high = v[1:]
    return functional.hardtanh(v[0], float(low), float(high))  # as torch's ReLU6: no gradient on a bound itself


def _prelu(node: Node, v: Values, graph: Graph) -> Tensor:
    return torch.where(v[0] > 0, v[0], v[0] * v[1])


def _flatten(node: Node, v: Values, graph: Graph) -> Tensor:
    axis = int(node.attrs.get("axis", 1))
    return v[0].reshape(int(torch.tensor(v[0].shape[:axis]).prod()), -1)


def _unsqueeze(node: Node, v: Values, graph: Graph) -> Tensor:
    x = v[0]
    for axis in sorted(_axes(node, v)):
        x = x.unsqueeze(axis)
    return x


def _global_average(node: Node, v: Values, graph: Graph) -> Tensor:
    return v[0].mean(tuple(range(2, v[0].ndim)), keepdim=True)


def _plain(f: Callable[..., Any]) -> Callable[[Node, Values, Graph], Any]:
    return lambda node, v, graph: f(*v)


OPERATORS: dict[str, Callable[[Node, Values, Graph], Any]] = {
    "Add": _plain(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": lambda node, v, graph: torch.cat(v, int(node.attrs["axis"])),
    "Conv": _conv,
    "Div": _plain(torch.div),
    "Erf": _plain(torch.erf),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "Identity": _plain(torch.clone),
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "MatMul": _plain(torch.matmul),
    "MaxPool": _max_pool,
    "Mul": _plain(torch.mul),
    "PRelu": _prelu,
    "Pad": _pad,
    "ReduceMean": _mean,
    "Relu": _plain(functional.relu),
    "Reshape": _reshape,
    "Shape": lambda node, v, graph: torch.tensor(v[0].shape, dtype=torch.int64),
    "Slice": _slice,
    "Split": _split,
    "Sub": _plain(torch.sub),
    "Transpose": lambda node, v, graph: v[0].permute(_ints(node.attrs["perm"])),
    "Unsqueeze": _unsqueeze,
    "Where": _plain(torch.where),
}
