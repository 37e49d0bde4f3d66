"""Convolutions of images with their channels last: turned, convolved, and turned back."""

from __future__ import annotations

from onnxprune.normalise.unfused.products import convolution
from onnxprune.normalise.unfused.site import Refusal, Rows, Site


def _turned(site: Site, name: str) -> str:
    """(N, H, W, C) as (N, C, H, W); likewise of other numbers of axes."""
    rank = site.rank_of(name)
    return site.op("Transpose", name, perm=[0, rank - 1, *range(1, rank - 1)])


def _nhwc_conv(site: Site) -> Refusal | None:
    """Its kernels have their input channels last too."""
    w = site.input(1)
    spatial = list(site.shape_of(w)[1:-1])
    if list(site.attribute("kernel_shape", spatial)) != spatial:
        return Refusal("its weight does not have the input channels last, as onnxruntime's kernel reads it")
    return _convolved(site, _turned(site, w))


def _nhwc_fused_conv(site: Site) -> Refusal | None:
    """Its kernels lie as those of Conv do."""
    return _convolved(site, site.input(1))


def _convolved(site: Site, w: str) -> Refusal | None:
    x, bias, other = site.input(0), site.input(2), site.input(3)
    rank = site.rank_of(x)
    result = convolution(site, _turned(site, x), w, bias, _turned(site, other) if other else "", "")
    if isinstance(result, Refusal):
        return result
    site.op("Transpose", result, perm=[0, *range(2, rank), 1], to=site.output())
    return None


TABLE: Rows = {"com.microsoft.NhwcConv": _nhwc_conv, "com.microsoft.NhwcFusedConv": _nhwc_fused_conv}
