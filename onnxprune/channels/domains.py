"""Tensors that flow into an operator which is only defined for some numbers: Log, Sqrt, a root, a divisor.

A layer in front of a Log gives positive numbers because its weights and what it reads are never negative, as with the
filter bank of a spectrogram. No sample can promise that fitted weights keep to that: least squares knows no signs, and
what is finite on all calibration samples may still be NaN on the next. So such layers keep the weights that they have.

The walk goes backwards from those operators, through what keeps or only shifts the sign (sums, products, layouts,
means, linear layers), and ends at what makes numbers positive by itself: Relu, Abs, Exp, Sigmoid, Softmax, Clip from 0
on, a square or any other even power. So a normalization that is written out, x / sqrt(mean(x²)), limits nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.graph.view import Graph, Node

# Input slots that take no negative numbers, or no zero.
_LIMITED = {"Log": 0, "Sqrt": 0, "Reciprocal": 0, "Div": 1, "Acosh": 0, "Pow": 0}
# What passes a sign on from these inputs, None for all.
_PASS_ON: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys("Add Sub Mul Mean Sum Concat Max Min".split()),
    **dict.fromkeys(
        (
            "AveragePool BatchNormalization Cast Clip CumSum DepthToSpace DequantizeLinear Div Dropout Expand Flatten "
            "Gather GlobalAveragePool GlobalMaxPool Identity LeakyRelu MaxPool Neg Pad PRelu QuantizeLinear ReduceMax "
            "ReduceMean ReduceMin ReduceSum Reshape Resize Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze "
            "Upsample"
        ).split(),
        (0,),
    ),
    **dict.fromkeys("Conv ConvTranspose Gemm MatMul".split(), (0, 1)),
    "Where": (1, 2),
}


def limited_by(graph: Graph) -> dict[str, str]:
    """Tensor → the operator behind it that is only defined for some numbers, in words."""
    found: dict[str, str] = {}
    for node in reversed(graph.nodes):
        for tensor, why in _limited_inputs(node, graph, found):
            if tensor not in graph.constants:
                found.setdefault(tensor, why)
    return found


def _limited_inputs(node: Node, graph: Graph, found: dict[str, str]) -> Iterator[tuple[str, str]]:
    """What a node reads that has to keep to its numbers, with the reason."""
    if node.domain:
        return
    if node.op in _LIMITED and not (node.op == "Pow" and not _is_root(node, graph)):
        yield node.inputs[_LIMITED[node.op]], f"{node.op} {node.name}".strip()
    behind = next((found[o] for o in node.outputs if o in found), None)
    if behind is None or _makes_positive(node, graph):
        return
    if node.op == "Pow":
        yield node.inputs[0], behind
    elif node.op in _PASS_ON:
        slots = _PASS_ON[node.op]
        for slot, name in enumerate(node.inputs):
            if name and (slots is None or slot in slots):
                yield name, behind


def _exponents(node: Node, graph: Graph) -> list[float]:
    """The exponents of a Pow; none where they are computed."""
    values = graph.constants.get(node.inputs[1])
    return [] if values is None else [float(v) for v in values.ravel()]


def _is_root(node: Node, graph: Graph) -> bool:
    return any(e != round(e) or e < 0 for e in _exponents(node, graph))


def _makes_positive(node: Node, graph: Graph) -> bool:
    """Whether the result has no negative numbers, whatever the node reads."""
    if node.op == "Mul":
        return node.inputs[0] == node.inputs[1]
    if node.op == "Pow":
        exponents = _exponents(node, graph)
        return bool(exponents) and all(e % 2 == 0 for e in exponents)
    if node.op == "Clip":
        low = graph.constants.get(node.input(1))
        return float(node.attrs.get("min", -1.0)) >= 0.0 or (low is not None and bool((low >= 0).all()))
    if node.op == "Max":
        return any((graph.constants[i] >= 0).all() for i in node.inputs if i in graph.constants)
    return False
