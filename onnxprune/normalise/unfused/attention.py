"""Attention of onnxruntime with the projections of queries, keys and values in one weight, on numbers and on codes.

softmax(scale · Q Kᵀ + mask) V of every head, with (Q, K, V) = x W + b side by side
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from onnx import TensorProto

from onnxprune.normalise.unfused.codes import columns, operand
from onnxprune.normalise.unfused.site import Refusal, Rows, Site

# What onnxruntime adds where the mask leaves a key out.
_FILTER = -10000.0
# From this opset on axes are inputs, and shapes can be cut as below.
_OPSET = 13


def _on_numbers(site: Site) -> Refusal | None:
    """Attention: x (B, S, I), W (I, Q + K + V), b (Q + K + V), a mask, past keys and values, a bias of the scores."""
    why = _unknown(site, past=4)
    if why is not None:
        return why
    projected = site.op("MatMul", site.input(0), site.input(1), main=True)
    if site.input(2):
        projected = site.op("Add", projected, site.input(2))
    width = site.shape_of(site.input(1))[1]
    sizes = [int(v) for v in site.attribute("qkv_hidden_sizes", ())] or [width // 3] * 3
    return _attend(site, projected, sizes, site.input(3), site.input(5))


def _on_codes(site: Site) -> Refusal | None:
    """QAttention: codes of x and W, their scales in slots 3 and 4, their zero points in 6 and 7."""
    why = _unknown(site, past=8)
    if why is not None:
        return why
    x, w, bias, x_scale, w_scale, mask, x_zero, w_zero = (site.input(k) for k in range(8))
    real = operand(site, x, x_scale, x_zero), columns(site, w, w_scale, w_zero)
    projected = site.op("Add", site.op("MatMul", *real, main=True), bias)
    return _attend(site, projected, [site.shape_of(w)[1] // 3] * 3, mask, "")


def _unknown(site: Site, past: int) -> Refusal | None:
    """Why a node is not written anew; None where all of it is understood."""
    if site.input(past) or site.output(1):
        return Refusal("it keeps the keys and values of earlier steps")
    if site.attribute("do_rotary", 0):
        return Refusal("it turns queries and keys by their places")
    if site.attribute("unidirectional", 0):
        return Refusal("it masks the keys to come by itself")
    if site.opset < _OPSET:
        return Refusal(f"opset {site.opset} takes the axes of what is masked in another way")
    return None


def _attend(site: Site, projected: str, sizes: list[int], mask: str, bias: str) -> Refusal | None:
    """The attention of (B, S, Q + K + V), whose parts are of these sizes."""
    heads = int(site.attribute("num_heads"))
    size = sizes[0] // heads
    added = _mask(site, mask)
    if isinstance(added, Refusal):
        return added
    parts = [site.unused(f"{projected}__{what}") for what in ("q", "k", "v")]
    site.node("Split", [projected, site.integers(sizes, "parts")], parts, axis=2)
    q, k, v = (
        site.op("Reshape", part, site.integers([0, 0, heads, width // heads], "heads"))
        for part, width in zip(parts, sizes, strict=True)
    )
    q, v = (site.op("Transpose", part, perm=[0, 2, 1, 3]) for part in (q, v))
    scores = site.op("MatMul", q, site.op("Transpose", k, perm=[0, 2, 3, 1]))
    scale = float(site.attribute("scale", 0.0)) or 1.0 / sqrt(size)
    scores = site.op("Mul", scores, site.scalar(scale, _like(site), "scale"))
    for term in (added, bias):
        scores = site.op("Add", scores, term) if term else scores
    mixed = site.op("MatMul", site.op("Softmax", scores, axis=-1), v)
    mixed = site.op("Transpose", mixed, perm=[0, 2, 1, 3])
    site.op("Reshape", mixed, site.integers([0, 0, sizes[2]], "joined"), to=site.output())
    return None


def _like(site: Site) -> str:
    """A tensor of the model with the type in which the scores are computed: the bias, or what is read."""
    return site.input(2) or site.input(0)


def _mask(site: Site, mask: str) -> str | Refusal:
    """What is added to the scores (B, heads, S, T); "" where nothing is.

    The mask has how many keys of each sample count, (B), or tells of every key whether it does, (B, T) or (B, S, T).
    """
    if not mask:
        return ""
    shape, (batch, length) = site.shape_of(mask), site.shape_of(site.input(0))[:2]
    if len(shape) == 1 and shape == (batch,):
        # The sizes of what is read, as those of the run.
        size = site.op("Gather", site.op("Shape", site.input(0)), site.integers([1], "axis"), axis=0)
        first, step = (site.weight(np.array(v, np.int64), what) for v, what in ((0, "first"), (1, "step")))
        keys = site.op("Range", first, site.op("Squeeze", size), step)
        counts = site.cast(site.op("Unsqueeze", mask, site.integers([1], "axes")), TensorProto.INT64)
        counted = site.op("Less", keys, counts)
    elif len(shape) in (2, 3) and shape[0] == batch and shape[-1] == length:
        counted = site.op("Greater", mask, site.scalar(0, mask))
    else:
        return Refusal(f"a mask of the shape {shape} is not understood")
    between = [1, 2] if len(shape) < 3 else [1]
    counted = site.op("Unsqueeze", counted, site.integers(between, "axes"))
    like = _like(site)
    value = float(site.attribute("mask_filter_value", _FILTER))
    return site.op("Where", counted, site.scalar(0.0, like), site.scalar(value, like, "filter"))


TABLE: Rows = {"com.microsoft.Attention": _on_numbers, "com.microsoft.QAttention": _on_codes}
