"""Pairs of QuantizeLinear and DequantizeLinear that do more harm than good: behind what nobody reads as codes."""

from __future__ import annotations

from collections.abc import Collection

import onnx

from onnxprune.graph.bodies import every_body, rename
from onnxprune.graph.quantized import DEQUANTIZE, QUANTIZE
from onnxprune.quantization.preparation import readers_of

# Kernels of integers that can give float numbers.
_GIVE_FLOATS = frozenset({"MatMul", "Gemm"})


def without_idle_pairs(model: onnx.ModelProto, before: onnx.ModelProto, quantized: Collection[str]) -> None:
    """Take out, in place, pairs whose numbers are read by float operators alone.

    before: the model without pairs. quantized: names of the nodes that compute in integers. Behind a MatMul or a Gemm
    onnxruntime has kernels that read codes and give floats. An output of the model is not rounded to 256 values. A pair
    that stands for an activation, whose zero point cuts off what lies below, stays.
    """
    left = {n.name for n in model.graph.node}
    activations = {o for n in before.graph.node if n.name not in left for o in n.output}
    counts = readers_of(model)
    producer = {o: n for n in model.graph.node for o in n.output if o}
    outputs = {o.name for o in model.graph.output}
    inside = {i for body in every_body(model.graph) for n in body.node for i in n.input}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for n in model.graph.node:
        for i in n.input:
            readers.setdefault(i, []).append(n)
    for back in [n for n in model.graph.node if n.op_type == DEQUANTIZE]:
        pair = producer.get(back.input[0])
        if pair is None or pair.op_type != QUANTIZE or len(readers.get(pair.output[0], ())) != 1:
            continue
        source, end = pair.input[0], back.output[0]
        made_by = producer.get(source)
        if made_by is None or {source, end} & (inside | activations):
            continue
        reads = readers.get(end, [])
        if any(n.name in quantized for n in reads) or counts[source] != 1:
            continue
        if end not in outputs and made_by.op_type not in _GIVE_FLOATS:
            continue
        for n in (pair, back):
            model.graph.node.remove(n)
        if end in outputs:
            rename([made_by], {source: end})
        else:
            rename(reads, {end: source})
    _drop_unread(model)


def without_pairs_on_sums(model: onnx.ModelProto, layers: Collection[str]) -> None:
    """Take out, in place, the pair between a layer and the addition that alone reads it: TensorRT computes both at once
    then, and the other summand is what has to come in codes.

    layers: names of the layers that compute in integers.
    """
    producer = {o: n for n in model.graph.node for o in n.output if o}
    counts = readers_of(model)
    for n in [n for n in model.graph.node if n.op_type == "Add"]:
        for slot, end in enumerate(n.input):
            back = producer.get(end)
            pair = producer.get(back.input[0]) if back is not None and back.op_type == DEQUANTIZE else None
            if back is None or pair is None or pair.op_type != QUANTIZE:
                continue
            made_by = producer.get(pair.input[0])
            alone = counts[end] == counts[pair.output[0]] == counts[pair.input[0]] == 1
            if made_by is not None and made_by.name in layers and alone:
                n.input[slot] = pair.input[0]
                model.graph.node.remove(pair)
                model.graph.node.remove(back)
                break  # the other one stays
    _drop_unread(model)


def _drop_unread(model: onnx.ModelProto) -> None:
    """Drop, in place, the scales and zero points that nothing reads any more."""
    read = readers_of(model)
    given = {i.name for i in model.graph.input}
    for t in [t for t in model.graph.initializer if not read[t.name] and t.name not in given]:
        model.graph.initializer.remove(t)
