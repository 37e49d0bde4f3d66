"""Products with what follows them: convolutions and matrix products with a sum, an activation, a scale, transpositions.

FusedConv     act(conv(X, W) + B + Z)
FusedGemm     act(α · A' · B' + β · C)
FusedMatMul   α · A' · B'
"""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.normalise.unfused.activations import fast_gelu, taken_in
from onnxprune.normalise.unfused.site import Refusal, Rows, Site

CONVOLUTION = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def convolution(site: Site, x: str, w: str, bias: str, other: str, to: str, **changed: int) -> str | Refusal:
    """Conv of `x`, the sum with `other` where there is one, and the activation behind it: the name of what they give.

    x, w, bias, other: tensors that may have been built; the type of the whole is that of the second input. to: the
    name to give, "" for any. changed: attributes that the convolution has instead of its own.
    """
    build = None
    given = [float(v) for v in site.attribute("activation_params", ())]
    if site.attributes("activation"):
        taken = taken_in(site)
        if isinstance(taken, Refusal):
            return taken
        build, names = taken
        if len(given) != len(names):
            return Refusal(f"its activation needs {len(names)} parameters, and has {len(given)}")
    last = site.op(
        "Conv", x, w, bias, to="" if other or build else to, main=True, **{**site.attributes(*CONVOLUTION), **changed}
    )
    if other:
        last = site.op("Add", last, other, to="" if build else to)
    return last if build is None else build(site, last, given, site.input(1), to)


def _fused_conv(site: Site) -> Refusal | None:
    x, w, bias, other = (site.input(k) for k in range(4))
    result = convolution(site, x, w, bias, other, site.output())
    return result if isinstance(result, Refusal) else None


def _fused_gemm(site: Site) -> Refusal | None:
    return _activated(site, _gemm)


def _gemm(site: Site) -> str:
    a, b, c = (site.input(k) for k in range(3))
    if not c and site.opset < 11:
        c = site.scalar(0.0, a)
    return site.op("Gemm", a, b, c, main=True, **site.attributes("alpha", "beta", "transA", "transB"))


def _activated(site: Site, product: Callable[[Site], str]) -> Refusal | None:
    """A product, then the activation, whose parameters are attributes of their own."""
    taken = taken_in(site)
    if isinstance(taken, Refusal):
        return taken
    build, names = taken
    keys = [f"activation_{name}" for name in names]
    if len(site.attributes(*keys)) < len(keys):
        return Refusal("its activation lacks parameters")
    build(site, product(site), [float(site.attribute(k)) for k in keys], site.input(0), site.output())
    return None


def _fused_matmul(site: Site) -> Refusal | None:
    """Both operands as they are multiplied, their product, and its scale."""
    _product(site, site.output())
    return None


def _fused_matmul_activation(site: Site) -> Refusal | None:
    return _activated(site, _product)


def _product(site: Site, to: str = "") -> str:
    """The scaled product of the operands, under the name `to`."""
    alpha = float(site.attribute("alpha", 1.0))
    operands = [
        _turned(site, site.input(slot), bool(site.attribute(f"trans{side}", 0)), bool(site.attribute(batch, 0)))
        for slot, (side, batch) in enumerate((("A", "transBatchA"), ("B", "transBatchB")))
    ]
    product = site.op("MatMul", *operands, to=to if alpha == 1.0 else "", main=True)
    return product if alpha == 1.0 else site.op("Mul", product, site.scalar(alpha, site.input(0)), to=to)


def _turned(site: Site, name: str, last: bool, batch: bool) -> str:
    """An operand with its last two axes exchanged, and with its first axis behind those of the batch.

    With both, the first axis goes to the end. A vector has nothing to exchange.
    """
    if not (last or batch):
        return name
    rank = site.rank_of(name)
    if rank < 2:
        return name
    order = list(range(rank))
    if batch:
        order = [*order[1:-1], order[0], order[-1]]
    if last:
        order[-2:] = reversed(order[-2:])
    return site.op("Transpose", name, perm=order)


def _gemm_fast_gelu(site: Site) -> None:
    """A matrix product, its bias, and FastGelu."""
    x, bias = site.input(0), site.input(2)
    product = site.op("MatMul", x, site.input(1), main=True)
    fast_gelu(site, site.op("Add", product, bias) if bias else product, x, site.output())


TABLE: Rows = {
    "com.microsoft.FusedConv": _fused_conv,
    "com.microsoft.FusedGemm": _fused_gemm,
    "com.microsoft.FusedMatMul": _fused_matmul,
    "com.microsoft.FusedMatMulActivation": _fused_matmul_activation,
    "com.microsoft.GemmFastGelu": _gemm_fast_gelu,
    "com.microsoft.TransposeMatMul": _fused_matmul,
}
