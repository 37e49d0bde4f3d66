"""Normalizations: of a root mean square, with a sum in front of them, of embeddings, in groups of channels.

SimplifiedLayerNormalization   x / √(mean(x²) + ε) · γ
SkipLayerNormalization         LayerNormalization(x + skip + bias)
EmbedLayerNormalization        LayerNormalization(words[ids] + positions[place] + segments[segment])
GroupNorm                      (x - mean) / √(var + ε) · γ + β, mean and variance over each group of channels
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto

from onnxprune.normalise.unfused.activations import quick_gelu
from onnxprune.normalise.unfused.codes import dequantized
from onnxprune.normalise.unfused.site import Refusal, Rows, Site

# Since which opset the standard has an operator.
_LAYER_NORM, _RMS_NORM = 17, 23
_SKIP_EPSILON, _EPSILON = 1e-12, 1e-5
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def layer_norm(site: Site, x: str, gamma: str, beta: str, epsilon: float, to: tuple[str, str, str]) -> None:
    """LayerNormalization over the last axis; `to`: the names of its output, mean and 1 / deviation, "" for neither."""
    output, mean, deviation = to
    if site.opset >= _LAYER_NORM:
        outputs = [output, mean, deviation]
        while not outputs[-1]:
            outputs.pop()
        site.node("LayerNormalization", [x, gamma, beta], outputs, main=True, axis=-1, epsilon=epsilon)
        return
    wide, number = _widened(site, x, gamma)
    average = site.mean_over(wide, [-1], to=mean)
    centred = site.op("Sub", wide, average)
    variance = site.mean_over(site.op("Pow", centred, number(2.0)), [-1])
    root = site.op("Sqrt", site.op("Add", variance, number(epsilon)))
    scaled = site.op("Div", centred, root)
    if wide != x:
        scaled = site.cast(scaled, site.type_of(gamma))
    scaled = site.op("Mul", scaled, gamma, to="" if beta else output)
    if beta:
        site.op("Add", scaled, beta, to=output)
    if deviation:
        site.op("Reciprocal", root, to=deviation)


def _widened(site: Site, x: str, like: str) -> tuple[str, Callable[[float], str]]:
    """The tensor `x`, in single precision where it is in half precision, and what makes a constant of its new type.

    like: a tensor of the model with the type of x.
    """
    if site.type_of(like) not in _HALVES:
        return x, lambda value: site.scalar(value, like)
    return site.cast(x, TensorProto.FLOAT), lambda value: site.weight(np.array(value, np.float32), "number")


def _root_mean_square(
    site: Site, x: str, like: str, gamma: str, to: tuple[str, str], *, axis: int, epsilon: float
) -> None:
    """x / √(mean(x²) + ε) · γ over the axes from `axis` on; in single precision, also of an x in half precision.

    like: a tensor of the model with the type and the rank of x. to: the names of the output and of 1 / √….
    """
    output, inverse = to
    if site.opset >= _RMS_NORM and not inverse and site.type_of(like) == site.type_of(gamma):
        site.op("RMSNormalization", x, gamma, to=output, main=True, axis=axis, epsilon=epsilon)
        return
    wide, number = _widened(site, x, like)
    axes = [-1] if axis == -1 else list(range(axis % site.rank_of(like), site.rank_of(like)))
    square = site.mean_over(site.op("Pow", wide, number(2.0)), axes)
    root = site.op("Sqrt", site.op("Add", square, number(epsilon)))
    if inverse:
        site.op("Reciprocal", root, to=inverse)
    scaled = site.op("Div", wide, root)
    if wide != x:
        scaled = site.cast(scaled, site.type_of(gamma))
    site.op("Mul", scaled, gamma, to=output, main=True)


def _simplified(site: Site) -> Refusal | None:
    """As onnxruntime registers it among the standard operators."""
    x, gamma = site.input(0), site.input(1)
    kinds = (site.type_of(x), site.type_of(gamma))
    if int(site.attribute("stash_type", 1)) != 1:
        return Refusal("it computes in another precision than the single one")
    if kinds[0] != kinds[1] and kinds[0] not in _HALVES:
        return Refusal("what it reads and its scale are of different types")
    epsilon = float(site.attribute("epsilon", _EPSILON))
    to = (site.output(), site.output(1))
    _root_mean_square(site, x, x, gamma, to, axis=int(site.attribute("axis", -1)), epsilon=epsilon)
    return None


def _summed(site: Site, bias: str, to: str) -> str:
    """The sum of the first two inputs and of a bias, which is `to` where something asks for it."""
    total = site.op("Add", site.input(0), site.input(1), to="" if bias else to)
    return site.op("Add", total, bias, to=to) if bias else total


def _skip_layer_norm(site: Site) -> None:
    total = _summed(site, site.input(4), site.output(3))
    epsilon = float(site.attribute("epsilon", _SKIP_EPSILON))
    layer_norm(site, total, site.input(2), site.input(3), epsilon, (site.output(), site.output(1), site.output(2)))


def _skip_simplified(site: Site) -> Refusal | None:
    if site.output(1):
        return Refusal("something reads the mean, which onnxruntime does not compute")
    total = _summed(site, site.input(3), site.output(3))
    epsilon = float(site.attribute("epsilon", _SKIP_EPSILON))
    to = (site.output(), site.output(2))
    _root_mean_square(site, total, site.input(0), site.input(2), to, axis=-1, epsilon=epsilon)
    return None


def _embed_layer_norm(site: Site) -> Refusal | None:
    return _looked_up(site, site.input(0), site.input(1), [site.input(k) for k in range(2, 9)])


def _embed_codes(site: Site) -> Refusal | None:
    """QEmbedLayerNormalization: the tables and parameters as codes, with a scale and a zero point for each."""
    if site.opset < _LAYER_NORM:
        return Refusal(f"opset {site.opset} has no LayerNormalization")
    parts = [
        dequantized(site, site.input(k), site.input(k + 6), site.input(k + 11), single=True) if site.input(k) else ""
        for k in range(2, 7)
    ]
    return _looked_up(site, site.input(0), site.input(1), [*parts, site.input(7), ""])


def _looked_up(site: Site, ids: str, segments: str, parts: Sequence[str]) -> Refusal | None:
    """The sum of what is looked up, then LayerNormalization; and how many words each sample has, where asked.

    parts: the tables of words, places and segments, scale and bias, the mask, and places other than the first ones.
    """
    words, places, kinds, gamma, beta, mask, positions = parts
    if site.opset < 13:
        return Refusal(f"opset {site.opset} takes the axes of what is cut and summed in another way")
    if bool(segments) != bool(kinds):
        return Refusal("it has segments without a table for them, or a table without segments")
    looked_up = site.op("Gather", words, ids, axis=0)
    if positions:
        placed = site.op("Gather", places, positions, axis=0)
    else:
        length = site.op("Gather", site.op("Shape", ids), site.integers([1], "axis"), axis=0)
        placed = site.op("Slice", places, site.integers([0], "first"), length, site.integers([0], "axis"))
    total = site.op("Add", looked_up, placed, to="" if segments else site.output(2))
    if segments:
        total = site.op("Add", total, site.op("Gather", kinds, segments, axis=0), to=site.output(2))
    layer_norm(site, total, gamma, beta, float(site.attribute("epsilon", _SKIP_EPSILON)), (site.output(), "", ""))
    if site.output(1):
        rows = site.op("Equal", mask or ids, site.weight(np.array(1, np.int32), "one"))
        counted = site.cast(rows, TensorProto.INT32)
        if not mask:
            counted = site.op("Sub", counted, counted)
        site.op("ReduceSum", counted, site.integers([1], "axes"), keepdims=0, to=site.output(1))
    return None


def _group_norm(site: Site) -> Refusal | None:
    return _in_groups(site, site.input(0), site.output())


def _skip_group_norm(site: Site) -> Refusal | None:
    """The sum with what is skipped, which may be one number for each channel, and with a bias."""
    x, skip, bias = site.input(0), site.input(3), site.input(4)
    last = bool(site.attribute("channels_last", 1))
    if not last:
        return Refusal("it has the channels first, for which onnxruntime has no kernel")
    if site.rank_of(skip) == 2:
        skip = site.unsqueezed(skip, [1, 2])
    total = site.op("Add", x, skip, to="" if bias else site.output(1))
    if bias:
        total = site.op("Add", total, bias, to=site.output(1))
    return _in_groups(site, total, site.output())


def _in_groups(site: Site, x: str, to: str) -> Refusal | None:
    """Statistics by InstanceNormalization over the channels of each group, as exporters write it."""
    gamma, beta, groups = site.input(1), site.input(2), int(site.attribute("groups"))
    activation = int(site.attribute("activation"))
    like = site.input(0)
    if activation not in (0, 1):
        return Refusal(f"its activation {activation} is not known")
    if site.rank_of(like) != 4:
        return Refusal("it reads something else than images")
    last = bool(site.attribute("channels_last", 1))
    first = site.op("Transpose", x, perm=[0, 3, 1, 2]) if last else x
    rows = site.op("Reshape", first, site.integers([0, groups, -1], "groups"))
    kind = site.numpy_type(like)
    ones, zeros = np.ones(groups, kind), np.zeros(groups, kind)
    epsilon = float(site.attribute("epsilon", _EPSILON))
    normal = site.op(
        "InstanceNormalization", rows, site.weight(ones, "ones"), site.weight(zeros, "zeros"), epsilon=epsilon
    )
    back = site.op("Reshape", normal, site.op("Shape", first))
    if site.type_of(gamma) != site.type_of(like):
        gamma, beta = (site.cast(name, site.type_of(like)) for name in (gamma, beta))
    scaled = site.op("Mul", back, site.unsqueezed(gamma, [1, 2]), main=True)
    done = not (activation or last)
    shifted = site.op("Add", scaled, site.unsqueezed(beta, [1, 2]), to=to if done else "")
    if activation:
        shifted = quick_gelu(site, shifted, 1.0, like, "" if last else to)
    if last:
        site.op("Transpose", shifted, perm=[0, 2, 3, 1], to=to)
    return None


TABLE: Rows = {
    "SimplifiedLayerNormalization": _simplified,
    "com.microsoft.SkipLayerNormalization": _skip_layer_norm,
    "com.microsoft.SkipSimplifiedLayerNormalization": _skip_simplified,
    "com.microsoft.EmbedLayerNormalization": _embed_layer_norm,
    "com.microsoft.QEmbedLayerNormalization": _embed_codes,
    "com.microsoft.GroupNorm": _group_norm,
    "com.microsoft.SkipGroupNorm": _skip_group_norm,
}
