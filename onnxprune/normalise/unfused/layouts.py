"""What is computed on tensors whose channels lie in blocks (see `blocked.py`), in the plain layout."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.normalise.unfused.blocked import DOMAIN, plain
from onnxprune.normalise.unfused.products import convolution
from onnxprune.normalise.unfused.site import Refusal, Row, Rows, Site

_POOLING = ("auto_pad", "kernel_shape", "pads", "strides")


def _conv(site: Site) -> Refusal | None:
    """With the weights that are more than filling, in their plain layout."""
    x, w, bias, other = (site.input(k) for k in range(4))
    layout = site.blocked
    outputs, groups = layout.channels[site.output()], int(site.attribute("group", 1))
    stored = site.constant(w)
    depthwise = groups > 1 and stored.shape[1] == 1 and groups == stored.shape[0]
    inputs = layout.channels[x] if groups == 1 and x in layout.channels else stored.shape[1]
    key = (w, outputs, inputs)
    if key not in layout.kernels:
        layout.kernels[key] = site.weight(plain(stored, layout.block)[:outputs, :inputs], "weight")
    if bias:
        key = (bias, outputs, 0)
        if key not in layout.kernels:
            layout.kernels[key] = site.weight(site.constant(bias)[:outputs], "bias")
        bias = layout.kernels[key]
    kernel = layout.kernels[w, outputs, inputs]
    changed = {"group": outputs} if depthwise else {}
    result = convolution(site, x, kernel, bias, other, site.output(), **changed)
    return result if isinstance(result, Refusal) else None


def _max_pool(site: Site) -> Refusal | None:
    attributes = site.attributes(*_POOLING, "ceil_mode", "dilations")
    return _pooled(site, "MaxPool", attributes, {"ceil_mode": 10, "dilations": 10})


def _average_pool(site: Site) -> Refusal | None:
    attributes = site.attributes(*_POOLING, "ceil_mode", "dilations", "count_include_pad")
    return _pooled(site, "AveragePool", attributes, {"ceil_mode": 10, "dilations": 19})


def _pooled(site: Site, operator: str, attributes: dict[str, Any], since: dict[str, int]) -> Refusal | None:
    """A pool with those attributes that its opset knows; since: when the standard got the newer ones."""
    for name, opset in since.items():
        value = attributes.get(name)
        plain_ones = value is None or not np.any(np.asarray(value) != (1 if name == "dilations" else 0))
        if plain_ones:
            attributes.pop(name, None)
        elif site.opset < opset:
            return Refusal(f"its {name} has no standard form in opset {site.opset}")
    site.node(operator, [site.input(0)], [site.output()], **attributes)
    return None


def _global(operator: str) -> Row:
    def build(site: Site) -> None:
        site.op(operator, site.input(0), to=site.output())

    return build


def _upsample(site: Site) -> Refusal | None:
    """Resize by whole factors."""
    scales = site.weight(np.array(site.attribute("scales"), np.float32), "scales")
    mode, place = site.attribute("mode", "nearest"), site.attribute("coordinate_transformation_mode", "asymmetric")
    x, y = site.input(0), [site.output()]
    if site.opset >= 11:
        region = "" if site.opset >= 13 else site.weight(np.zeros(0, np.float32), "region")
        how: dict[str, Any] = {"nearest_mode": "floor"} if mode == "nearest" else {}
        site.node("Resize", [x, region, scales], y, mode=mode, coordinate_transformation_mode=place, **how)
        return None
    if place != "asymmetric":
        return Refusal(f"its places ({place}) have no standard form in opset {site.opset}")
    site.node("Resize" if site.opset == 10 else "Upsample", [x, scales], y, mode=mode)
    return None


def _reorder_input(site: Site) -> None:
    """What comes in, filled up with zeros where a kernel behind it reads more channels."""
    x = site.input(0)
    last = bool(site.attribute("channels_last", 0))
    more = site.blocked.channels[site.output()] - site.shape_of(x)[-1 if last else 1]
    if last:
        x = site.op("Transpose", x, perm=[0, 3, 1, 2], to="" if more else site.output())
    elif not more:
        site.op("Identity", x, to=site.output())
    if more:
        pads = [0, 0, 0, 0, 0, more, 0, 0]
        if site.opset >= 11:
            site.op("Pad", x, site.integers(pads, "pads"), to=site.output())
        else:
            site.op("Pad", x, pads=pads, to=site.output())


def _reorder_output(site: Site) -> None:
    """Those of the channels that are asked for."""
    x = site.input(0)
    there = site.blocked.channels[x]
    asked = int(site.attribute("channels", there))
    last = bool(site.attribute("channels_last", 0))
    if asked < there:
        to = "" if last else site.output()
        if site.opset >= 10:
            bounds = (site.integers([v], what) for v, what in ((0, "from"), (asked, "until"), (1, "axis")))
            x = site.op("Slice", x, *bounds, to=to)
        else:
            x = site.op("Slice", x, starts=[0], ends=[asked], axes=[1], to=to)
    elif not last:
        site.op("Identity", x, to=site.output())
    if last:
        site.op("Transpose", x, perm=[0, 2, 3, 1], to=site.output())


TABLE: Rows = {
    f"{DOMAIN}.{name}": row
    for name, row in {
        "AveragePool": _average_pool,
        "Conv": _conv,
        "GlobalAveragePool": _global("GlobalAveragePool"),
        "GlobalMaxPool": _global("GlobalMaxPool"),
        "MaxPool": _max_pool,
        "ReorderInput": _reorder_input,
        "ReorderOutput": _reorder_output,
        "Upsample": _upsample,
    }.items()
}
