"""Products with what follows them: convolutions and matrix products with a sum, an activation, a scale, transpositions.

FusedConv     act(conv(X, W) + B + Z)
FusedGemm     act(α · A' · B' + β · C)
FusedMatMul   α · A' · B'
"""

from __future__ import annotations

from onnxprune.normalise.unfused.activations import taken_in
from onnxprune.normalise.unfused.site import Refusal, Rows, Site

CONVOLUTION = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def _fused_conv(site: Site) -> Refusal | None:
    """The activation comes last, behind the sum with Z."""
    x, w, bias, other = (site.input(k) for k in range(4))
    activated = "activation" in site.attributes("activation")
    given = [float(v) for v in site.attribute("activation_params", ())]
    build = None
    if activated:
        taken = taken_in(site)
        if isinstance(taken, Refusal):
            return taken
        build, names = taken
        if len(given) != len(names) and site.attribute("activation") != "HardSwish":
            return Refusal(f"its activation needs {len(names)} parameters, and has {len(given)}")
    last = site.output()
    conv = site.op("Conv", x, w, bias, to="" if other or build else last, main=True, **site.attributes(*CONVOLUTION))
    if other:
        conv = site.op("Add", conv, other, to="" if build else last)
    if build is not None:
        build(site, conv, given, w, last)
    return None


def _fused_gemm(site: Site) -> Refusal | None:
    """Gemm, then the activation, whose parameters are attributes of their own."""
    taken = taken_in(site)
    if isinstance(taken, Refusal):
        return taken
    build, names = taken
    keys = [f"activation_{name}" for name in names]
    if len(site.attributes(*keys)) < len(keys):
        return Refusal("its activation lacks parameters")
    a, b, c = (site.input(k) for k in range(3))
    if not c and site.opset < 11:
        c = site.scalar(0.0, a)
    product = site.op("Gemm", a, b, c, main=True, **site.attributes("alpha", "beta", "transA", "transB"))
    build(site, product, [float(site.attribute(k)) for k in keys], a, site.output())
    return None


def _fused_matmul(site: Site) -> Refusal | None:
    """Both operands as they are multiplied, their product, and its scale."""
    alpha = float(site.attribute("alpha", 1.0))
    operands = [
        _turned(site, site.input(slot), bool(site.attribute(f"trans{side}", 0)), bool(site.attribute(batch, 0)))
        for slot, (side, batch) in enumerate((("A", "transBatchA"), ("B", "transBatchB")))
    ]
    product = site.op("MatMul", *operands, to=site.output() if alpha == 1.0 else "", main=True)
    if alpha != 1.0:
        site.op("Mul", product, site.scalar(alpha, site.input(0)), to=site.output())
    return None


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


TABLE: Rows = {
    "com.microsoft.FusedConv": _fused_conv,
    "com.microsoft.FusedGemm": _fused_gemm,
    "com.microsoft.FusedMatMul": _fused_matmul,
    "com.microsoft.TransposeMatMul": _fused_matmul,
}
