"""Operators that compute with codes of 8 bits, as the same operators on numbers between quantizing nodes.

    y = QLinearOp(x, …)    y = QuantizeLinear(Op(DequantizeLinear(x), …))

Both are one function of real numbers, and onnxruntime makes the operator on codes of the nodes again when it loads
them: the same kernel on the same codes, bit for bit. Where it does not (int8 activations on x86), or is told to compute
the nodes as they are written, a sum that falls on the middle between two codes may come out as the code beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import onnx

from onnxprune.graph.quantized import DEQUANTIZE, QUANTIZE
from onnxprune.normalise.unfused.products import CONVOLUTION
from onnxprune.normalise.unfused.site import Refusal, Rows, Site, Unknown

MICROSOFT = "com.microsoft"
# From this opset on the standard operators know a scale for each position of an axis.
_PER_AXIS = 13
# And from this one on MaxPool takes codes.
_MAXIMA_OF_CODES = 12
_POOLING = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")


def dequantized(site: Site, codes: str, scale: str, zero: str, axis: int = 0, *, single: bool = False) -> str:
    """The numbers that codes stand for, with one scale, or with one for each position of `axis`.

    single: several scales are not understood. Raises Unknown.
    """
    several = max(_count(site, scale), _count(site, zero) if zero else 1) > 1
    if several and single:
        raise Unknown(f"{codes!r} has more than one scale")
    if several:
        scale, zero = _alike(site, scale, zero)
    return _dequantize(site, codes, scale, zero, axis if several else None)


def _dequantize(site: Site, codes: str, scale: str, zero: str, axis: int | None) -> str:
    domain = "" if site.opset >= _PER_AXIS else MICROSOFT
    attrs: dict[str, Any] = {} if axis is None else {"axis": axis}
    return site.node(DEQUANTIZE, [codes, scale, zero], [site.unused(f"{codes}__real")], domain=domain, **attrs)


def operand(site: Site, codes: str, scale: str, zero: str) -> str:
    """The numbers of codes that have one scale. Raises Unknown."""
    return dequantized(site, codes, scale, zero, single=True)


def _operand(site: Site, slot: int) -> str:
    """The numbers of the codes at a slot, whose scale and zero point stand at the two next ones."""
    return dequantized(site, site.input(slot), site.input(slot + 1), site.input(slot + 2), single=True)


def _count(site: Site, name: str) -> int:
    return prod(site.shape_of(name))


def _alike(site: Site, scale: str, zero: str) -> tuple[str, str]:
    """Scale and zero point, (n,) each: quantizing nodes know no others for an axis."""
    shapes = {site.shape_of(n) for n in (scale, zero) if n}
    if len(shapes) == 1 and len(next(iter(shapes))) == 1:
        return scale, zero
    width = max(prod(s) for s in shapes)
    if any(prod(s) not in (1, width) for s in shapes):
        raise Unknown(f"the scale {scale!r} and its zero point are of different sizes")
    s, z = site.constant(scale), site.constant(zero) if zero else None
    spread = [np.broadcast_to(v.ravel(), width) for v in ([s] if z is None else [s, z])]
    names = [site.weight(v, what) for v, what in zip(spread, ("scales", "zero_points"), strict=False)]
    return names[0], names[1] if zero else ""


def _with_channels_first(site: Site, codes: str) -> str:
    """Codes (N, *S, C) as (N, C, *S), where a node says that its channels stand last."""
    if not site.attribute("channels_last", 0):
        return codes
    rank = site.rank_of(codes)
    return site.op("Transpose", codes, perm=[0, rank - 1, *range(1, rank - 1)])


def quantized(site: Site, x: str, scale: str, zero: str, kind: int, rank: int = 0) -> None:
    """The output of the site: `x` as codes of the element type `kind`.

    rank: of x, where its channels have to be turned to the end again.
    """
    if max(_count(site, scale), _count(site, zero) if zero else 1) > 1:
        raise Unknown("its output has more than one scale")
    if not zero and kind != onnx.TensorProto.UINT8:
        zero = site.weight(np.zeros((), onnx.helper.tensor_dtype_to_np_dtype(kind)), "zero_point")
    domain = "" if site.opset >= _PER_AXIS else MICROSOFT
    codes = site.unused(f"{site.output()}__turned") if rank else site.output()
    site.node(QUANTIZE, [x, scale, zero], [codes], domain=domain)
    if rank:
        site.op("Transpose", codes, perm=[0, *range(2, rank), 1], to=site.output())


def _turned(site: Site) -> int:
    """The rank of the output where its channels have to stand last again; else 0."""
    return site.rank_of(site.input(0)) if site.attribute("channels_last", 0) else 0


def _bias(site: Site, name: str, x_scale: str, w_scale: str, factor: float = 1.0) -> str:
    """A bias of int32, which has the scale of the product and no zero point."""
    x, w = site.constant(x_scale), site.constant(w_scale)
    several, rank = w.size > 1, site.rank_of(name)
    scale = (x.ravel()[0] * w.ravel() * np.float32(factor)).astype(w.dtype)
    stored = site.weight(scale if several else scale.reshape(()), "bias_scale")
    return _dequantize(site, name, stored, "", max(rank - 1, 0) if several else None)


def _conv(site: Site) -> None:
    """QLinearConv: x, w (M, C / group, *K) and a bias (M), scales of w for all or for each of the M.

    x and the output of onnxruntime's own may have their channels last; w lies as ever.
    """
    x, xs, xz, w, ws, wz, ys, yz, bias = (site.input(k) for k in range(9))
    operands = [
        dequantized(site, _with_channels_first(site, x), xs, xz, single=True),
        dequantized(site, w, ws, wz),
    ]
    if bias:
        operands.append(_bias(site, bias, xs, ws))
    y = site.op("Conv", *operands, main=True, **site.attributes(*CONVOLUTION))
    quantized(site, y, ys, yz, site.type_of(yz), _turned(site))


def _matmul(site: Site) -> None:
    """QLinearMatMul: the scales of b for all, or for each of its columns."""
    a, a_scale, a_zero, b, b_scale, b_zero, ys, yz = (site.input(k) for k in range(8))
    operands = dequantized(site, a, a_scale, a_zero, single=True), columns(site, b, b_scale, b_zero)
    quantized(site, site.op("MatMul", *operands, main=True), ys, yz, site.type_of(yz))


def columns(site: Site, b: str, scale: str, zero: str) -> str:
    """The numbers of a matrix whose columns may have scales of their own. Raises Unknown."""
    if site.rank_of(b) < 2:
        return operand(site, b, scale, zero)
    return dequantized(site, b, scale, zero, site.rank_of(b) - 1)


def _gemm(site: Site) -> None:
    """QGemm: the bias is added before the product is scaled; without a scale of the output that is a real number."""
    a, a_scale, a_zero, b, b_scale, b_zero, c, ys, yz = (site.input(k) for k in range(9))
    alpha = float(site.attribute("alpha", 1.0))
    axis = 0 if site.attribute("transB", 0) else 1
    operands = [dequantized(site, a, a_scale, a_zero, single=True), dequantized(site, b, b_scale, b_zero, axis)]
    if c:
        operands.append(_bias(site, c, a_scale, b_scale, alpha))
    elif site.opset < 11:
        operands.append(site.scalar(0.0, a_scale))
    last = "" if ys else site.output()
    y = site.op("Gemm", *operands, to=last, main=True, **site.attributes("alpha", "transA", "transB"))
    if ys:
        quantized(site, y, ys, yz, site.type_of(yz) if yz else onnx.TensorProto.UINT8)


def _entrywise(operator: str) -> Callable[[Site], None]:
    """Two operands with a scale each, which broadcast."""

    def row(site: Site) -> None:
        operands = [_operand(site, slot) for slot in (0, 3)]
        y = site.op(operator, *operands, main=True)
        quantized(site, y, site.input(6), site.input(7), site.type_of(site.input(0)))

    return row


def _of_one(operator: str, *names: str) -> Callable[[Site], None]:
    """One operand; the attributes `names` go on to the operator on numbers."""

    def row(site: Site) -> None:
        x, scale, zero, ys, yz = (site.input(k) for k in range(5))
        real = dequantized(site, _with_channels_first(site, x), scale, zero, single=True)
        y = site.op(operator, real, main=True, **site.attributes(*names))
        quantized(site, y, ys, yz, site.type_of(x), _turned(site))

    return row


def _max_pool(site: Site) -> Refusal | None:
    """NhwcMaxPool: the greatest of codes whose channels stand last."""
    if site.opset < _MAXIMA_OF_CODES:
        return Refusal(f"MaxPool of codes has no standard form in opset {site.opset}")
    x = site.input(0)
    rank = site.rank_of(x)
    first = site.op("Transpose", x, perm=[0, rank - 1, *range(1, rank - 1)])
    names = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")
    y = site.op("MaxPool", first, main=True, **site.attributes(*names))
    site.op("Transpose", y, perm=[0, *range(2, rank), 1], to=site.output())
    return None


def _softmax(site: Site) -> Refusal | None:
    """QLinearSoftmax says itself of which opset its Softmax is: before 13 all axes from `axis` on are one."""
    rank = site.rank_of(site.input(0))
    newer = int(site.attribute("opset", site.opset)) >= _PER_AXIS
    axis = int(site.attribute("axis", -1 if newer else 1)) % max(rank, 1)
    if axis != rank - 1 and newer != (site.opset >= _PER_AXIS):
        return Refusal("its Softmax is that of another opset than the model's")
    x, scale, zero, ys, yz = (site.input(k) for k in range(5))
    y = site.op("Softmax", dequantized(site, x, scale, zero, single=True), axis=axis, main=True)
    quantized(site, y, ys, yz, site.type_of(x))
    return None


def _concat(site: Site) -> Refusal | None:
    """QLinearConcat: the scale of the output comes first, and each of its inputs brings its own."""
    parts = range(2, len(site.inputs), 3)
    if any(site.type_of(site.input(k)) not in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8) for k in parts):
        return Refusal("one of its inputs is a table")
    y = site.op("Concat", *(_operand(site, k) for k in parts), main=True, axis=int(site.attribute("axis")))
    quantized(site, y, site.input(0), site.input(1), site.type_of(site.input(1)))
    return None


def _where(site: Site) -> None:
    """QLinearWhere: a condition, and two operands with a scale each."""
    x, y = (_operand(site, slot) for slot in (1, 4))
    z = site.op("Where", site.input(0), x, y, main=True)
    quantized(site, z, site.input(7), site.input(8), site.type_of(site.input(1)))


def _to_float(site: Site) -> None:
    """MatMulIntegerToFloat: two matrices of codes, and a bias of numbers."""
    a, b, a_scale, b_scale, a_zero, b_zero, bias = (site.input(k) for k in range(7))
    real = dequantized(site, a, a_scale, a_zero, single=True)
    _biased_product(site, real, columns(site, b, b_scale, b_zero), bias)


def _dynamic_matmul(site: Site) -> None:
    """DynamicQuantizeMatMul: a matrix of numbers, whose scale is taken at run time, and one of codes."""
    a, b, b_scale, b_zero, bias = (site.input(k) for k in range(5))
    real = quantized_at_run_time(site, a)
    _biased_product(site, real, columns(site, b, b_scale, b_zero), bias)


def quantized_at_run_time(site: Site, x: str) -> str:
    """The numbers of `x` as they are behind codes of 8 bits with a scale of their own range."""
    codes, scale, zero = (site.unused(f"{x}__{what}") for what in ("codes", "scale", "zero_point"))
    site.node("DynamicQuantizeLinear", [x], [codes, scale, zero])
    return _dequantize(site, codes, scale, zero, None)


def _biased_product(site: Site, a: str, b: str, bias: str) -> None:
    product = site.op("MatMul", a, b, to="" if bias else site.output(), main=True)
    if bias:
        site.op("Add", product, bias, to=site.output())


TABLE: Rows = {
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    **{
        f"{MICROSOFT}.{name}": row
        for name, row in {
            "QLinearConv": _conv,
            "QGemm": _gemm,
            "QLinearAdd": _entrywise("Add"),
            "QLinearMul": _entrywise("Mul"),
            "QLinearSigmoid": _of_one("Sigmoid"),
            "QLinearLeakyRelu": _of_one("LeakyRelu", "alpha"),
            "QLinearAveragePool": _of_one("AveragePool", *_POOLING),
            "QLinearGlobalAveragePool": _of_one("GlobalAveragePool"),
            "QLinearSoftmax": _softmax,
            "QLinearConcat": _concat,
            "QLinearWhere": _where,
            "NhwcMaxPool": _max_pool,
            "MatMulIntegerToFloat": _to_float,
            "DynamicQuantizeMatMul": _dynamic_matmul,
        }.items()
    },
}
