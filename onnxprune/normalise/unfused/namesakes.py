"""Operators that onnxruntime had before the standard did, under their present names."""

from __future__ import annotations

from onnx import TensorProto

from onnxprune.normalise.unfused.site import Refusal, Row, Rows, Site


def _since(opset: int, build: Row) -> Row:
    """A row for models in which the standard has the operator."""

    def row(site: Site) -> Refusal | None:
        if site.opset < opset:
            return Refusal(f"the standard has it from opset {opset} on; the model is in {site.opset}")
        return build(site)

    return row


def _trilu(site: Site) -> None:
    site.op("Trilu", *site.inputs, to=site.output(), **site.attributes("upper"))


def _gather_nd(site: Site) -> None:
    """Its places may be of 32 bits."""
    places = site.input(1)
    if site.type_of(places) != TensorProto.INT64:
        places = site.cast(places, TensorProto.INT64)
    site.op("GatherND", site.input(0), places, to=site.output())


def _grid_sample(site: Site) -> None:
    mode = site.attribute("mode", "bilinear")
    if site.opset >= 20:
        mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    names = ("align_corners", "padding_mode")
    site.op("GridSample", site.input(0), site.input(1), to=site.output(), mode=mode, **site.attributes(*names))


def _range(site: Site) -> None:
    """The step may be left out."""
    step = site.input(2) or site.scalar(1, site.input(0), "one")
    site.op("Range", site.input(0), site.input(1), step, to=site.output())


def _pad(site: Site) -> None:
    """Its pads may be a matrix of one row."""
    pads = site.input(1)
    if site.rank_of(pads) != 1:
        pads = site.op("Reshape", pads, site.integers([-1], "flat"))
    site.op("Pad", site.input(0), pads, site.input(2), to=site.output(), **site.attributes("mode"))


def _expand_dims(site: Site) -> Refusal | None:
    """The place of the new axis is a constant."""
    axis = site.constant(site.input(1))
    if axis.size != 1:
        return Refusal("it adds several axes")
    site.node("Unsqueeze", [site.input(0), site.integers(axis.ravel().tolist(), "axis")], [site.output()])
    return None


TABLE: Rows = {
    "com.microsoft.ExpandDims": _since(13, _expand_dims),
    "com.microsoft.GatherND": _since(11, _gather_nd),
    "com.microsoft.GridSample": _since(16, _grid_sample),
    "com.microsoft.Pad": _since(11, _pad),
    "com.microsoft.Range": _since(11, _range),
    "com.microsoft.Trilu": _since(14, _trilu),
}
