"""Quantization. QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear pass labels; what computes with codes pins.

In a graph of Quantize and Dequantize pairs every layer computes in floating point on real numbers, so removal means
what it means elsewhere. An operator that multiplies the codes themselves folds scales and zero points of its inputs,
weights and output together; there the float model has to be pruned first.
"""

from __future__ import annotations

import numpy as np

from onnxprune.channels.labels import Factors
from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.trace import Rule, Trace
from onnxprune.graph.quantized import DEQUANTIZE, DOMAINS, QUANTIZE
from onnxprune.graph.view import Node, Shape

INTEGER = "ConvInteger MatMulInteger QLinearConv QLinearMatMul".split()
# Of onnxruntime's own domain, where they are not written in standard operators.
INTEGER_MICROSOFT = (
    "DynamicQuantizeMatMul MatMulIntegerToFloat QAttention QEmbedLayerNormalization QGemm QLinearAdd "
    "QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearSigmoid "
    "QLinearSoftmax QLinearWhere"
).split()


def quantize(node: Node, t: Trace) -> None:
    """QuantizeLinear and DequantizeLinear: x, and a scale and zero point per tensor, per position of `axis`, or blocks.

    The positions of a block share one scale, so whole blocks are the units there.
    """
    x = node.input(0)
    shape = t.shape(x)
    axis = int(node.attrs.get("axis", 1))
    block = int(node.attrs.get("block_size", 0))
    operands = [(x, t.of(x), shape)]
    for name in node.inputs[1:3]:
        if not name:
            continue
        if not block and int(np.prod(t.shape(name))) > 1 and not -len(shape) <= axis < len(shape):
            why = Reason(f"{node.op} names an axis that {x!r} does not have", Remedy.AXIS)
            t.pin(x, t.of(x), node, why)
            t.pin(name, t.of(name), node, why)
            continue
        operands.append((name, *_spread(name, shape, axis % max(len(shape), 1), block, t)))
    t.set(node.outputs[0], t.merge(operands, node))


def _spread(name: str, shape: Shape, axis: int, block: int, t: Trace) -> tuple[Factors, Shape]:
    """Factors and shape of a scale or zero point, so that they broadcast against a tensor of `shape`."""
    factors, own = t.of(name), t.shape(name)
    if not block or not shape:
        lifted = tuple(int(np.prod(own)) if a == axis else 1 for a in range(len(shape)))
        return tuple(f.reshape(lifted) for f in factors), lifted
    if own[axis] == 1:
        return factors, own
    if any(f.shape[axis] > 1 for f in factors):
        places = np.arange(shape[axis]) // block
        factors = tuple(f if f.shape[axis] == 1 else f.take(places, axis=axis) for f in factors)
    return factors, (*own[:axis], shape[axis], *own[axis + 1 :])


def dynamic_quantize(node: Node, t: Trace) -> None:
    """DynamicQuantizeLinear: one scale and zero point for the whole tensor, from its extremes, at run time.

    0 is always between them. So a channel that is zero, as what is removed counts, moves neither, and its codes are the
    zero point.
    """
    x = node.input(0)
    factors = t.of(x)
    t.set(node.outputs[0], factors)
    for out in node.outputs[1:]:
        t.set(out, ())
    if factors:
        t.read(node, 0, "range", range(len(t.shape(x))))


def integer(node: Node, t: Trace) -> None:
    """An operator that computes on codes: its channels are those of the operator on numbers."""
    for name in node.inputs:
        if name:
            t.pin(name, t.of(name), node, Reason(f"{node.op} computes with integers", Remedy.QUANTIZE_LATER))
    for out in node.outputs:
        if out:
            t.factors[out] = ()


TABLE: dict[str, Rule] = {
    **{f"{d}.{op}" if d else op: quantize for d in DOMAINS for op in (QUANTIZE, DEQUANTIZE)},
    "DynamicQuantizeLinear": dynamic_quantize,
    **dict.fromkeys(INTEGER, integer),
    **dict.fromkeys((f"com.microsoft.{op}" for op in INTEGER_MICROSOFT), integer),
}
