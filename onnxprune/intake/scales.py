"""Whether the data has the scale that the model was trained on, as far as the model says what that is.

Two things tell. A BatchNormalization behind the first layer stores the mean and the variance of what it was trained on:
z = (x - mean) / sqrt(variance) has a mean square of about 1 on such data. Without one, pixels from 0 to 255 are told
from scaled ones by what the first layer makes of them: weights that were trained on values around 1 make values around
1 of those, and a hundred times as much of raw pixels. Networks that scale their input themselves, or whose weights were
trained on raw pixels with a normalization that was folded since, stay far below the limit; some that never had one do
not, so that the text asks and does not claim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.data.samples import Samples
from onnxprune.errors import RunError
from onnxprune.graph import external, protobuf
from onnxprune.intake.figures import InputFigures
from onnxprune.numerics.arrays import Array, is_float
from onnxprune.runtime.session import Session

_SAMPLES = 16
# Of the root mean square of z, and of the spread against the stored one: trained networks have about 1.
_MOST_Z, _LEAST_SPREAD = 10.0, 0.03
_RAW_MOST, _RAW_STD = 100.0, 20.0
_LINEAR = ("Conv", "Gemm", "MatMul")
# What a value passes on the way from an input to the first layer, and between that and its normalization.
_PLAIN = tuple(
    "Add Cast Concat Div Flatten Gather Identity Mul Pad Reshape Slice Squeeze Sub Transpose Unsqueeze".split()
)
_OF_THE_DATA = ("InstanceNormalization", "LayerNormalization", "GroupNormalization", "LpNormalization")


@dataclass(frozen=True)
class _Reached:
    """A tensor that one input alone decides, and whether a linear layer lies between."""

    source: str
    linear: bool


@dataclass(frozen=True)
class _FirstLayers:
    """By input: tensors behind the first layer (with its node's name), and normalizations with stored statistics."""

    behind: Mapping[str, Sequence[tuple[str, str]]]
    normalised: Mapping[str, Sequence[onnx.NodeProto]]
    scale_free: frozenset[str]


def doubts(proto: onnx.ModelProto, samples: Samples, figures: Sequence[InputFigures]) -> list[str]:
    """Warnings of inputs whose scale is not the one that the (normalised) model was trained on."""
    specs = {s.name for s in samples.sampled if is_float(s.dtype)}
    first_layers = _first_layers(proto, specs)
    wanted = {n.input[0] for nodes in first_layers.normalised.values() for n in nodes[:1]}
    wanted |= {tensors[0][0] for tensors in first_layers.behind.values()}
    computed = sorted(wanted - {v.name for v in proto.graph.input})
    values: dict[str, Array] = {}
    some = samples.part(0, samples.whole_runs(min(len(samples), _SAMPLES)))
    with suppress(RunError):  # the run itself will tell that the model does not run on this data
        session = Session(protobuf.submodel(proto, {}, computed)) if computed else None
        runs = [{**feeds, **(session.run(feeds) if session else {})} for feeds in some.batches(_SAMPLES)]
        if all(len({r[t].shape[1:] for r in runs}) == 1 for t in wanted):
            values = {t: np.concatenate([r[t] for r in runs]).astype(np.float64) for t in wanted}
    if not values:
        return []
    said: list[str] = []
    alone = len(figures) > 1 and not all(f.least == f.most == 0.0 for f in figures)
    for f in figures:
        norms = first_layers.normalised.get(f.name, ())
        if alone and f.name in first_layers.behind and f.least == f.most == 0.0:
            said.append(f"input {f.name!r} is zero in every calibration sample; is it what the model sees in use?")
        elif norms:
            said += _against_statistics(f, norms[0], values[norms[0].input[0]], proto)
        elif f.name in first_layers.behind and f.name not in first_layers.scale_free and _like_raw_pixels(f):
            tensor, node = first_layers.behind[f.name][0]
            said += _behind_the_first_layer(f, node, values[tensor])
    return said


def _first_layers(proto: onnx.ModelProto, inputs: set[str]) -> _FirstLayers:
    constants = {t.name for t in proto.graph.initializer}
    reached: dict[str, _Reached] = {name: _Reached(name, linear=False) for name in inputs}
    behind: dict[str, list[tuple[str, str]]] = {}
    normalised: dict[str, list[onnx.NodeProto]] = {}
    scale_free: set[str] = set()
    for n in proto.graph.node:
        read = {i for i in n.input if i and i not in constants}
        if len(read) != 1 or n.domain not in ("", "ai.onnx"):
            continue
        origin = reached.get(next(iter(read)))
        if origin is None:
            continue
        if n.op_type in _OF_THE_DATA:
            scale_free.add(origin.source)
        elif n.op_type == "BatchNormalization":
            normalised.setdefault(origin.source, []).append(n)
        elif n.op_type in _PLAIN:
            reached[n.output[0]] = origin
        elif n.op_type in _LINEAR and not origin.linear:
            reached[n.output[0]] = _Reached(origin.source, linear=True)
            behind.setdefault(origin.source, []).append((n.output[0], n.name or n.op_type))
    return _FirstLayers(behind, normalised, frozenset(scale_free))


def _by_channel(values: Array) -> Array:
    """The values of each channel in a row, (channels, entries); channels lie on axis 1."""
    return np.moveaxis(values, 1, 0).reshape(values.shape[1], -1) if values.ndim > 1 else values.reshape(1, -1)


def _against_statistics(f: InputFigures, norm: onnx.NodeProto, values: Array, proto: onnx.ModelProto) -> list[str]:
    stored = {t.name: t for t in proto.graph.initializer}
    if any(i not in stored for i in norm.input[3:5]):
        return []
    mean, variance = (external.array_of(stored[i]).astype(np.float64) for i in norm.input[3:5])
    x = _by_channel(values)
    if x.shape[0] != mean.size or not variance.any():
        return []
    spread = np.sqrt(variance + 1e-5)[:, None]
    z = float(np.median(np.sqrt(np.mean(np.square((x - mean[:, None]) / spread), axis=1))))
    ratio = float(np.median(x.std(axis=1) / spread[:, 0]))
    name = norm.name or norm.op_type
    advice = "is the data scaled as in training?"
    if z > _MOST_Z:
        return [f"input {f.name!r} is {z:.0f} times as large at {name} as the statistics that it stores; {advice}"]
    if 0.0 < ratio < _LEAST_SPREAD:
        return [
            f"input {f.name!r} varies {1 / ratio:.0f} times less at {name} than the statistics that it stores; {advice}"
        ]
    return []


def _like_raw_pixels(f: InputFigures) -> bool:
    image = f.least is not None and f.most is not None and len(f.shape) > 2
    return image and f.least >= 0.0 and _RAW_MOST < f.most <= 255.0  # type: ignore[operator]  # an image has them


def _behind_the_first_layer(f: InputFigures, node: str, values: Array) -> list[str]:
    std = float(np.median(_by_channel(values).std(axis=1)))
    if std <= _RAW_STD:
        return []
    return [
        f"input {f.name!r} holds values from {f.least:.4g} to {f.most:.4g}, as raw pixels do, and {node} makes values "
        f"with a standard deviation of {std:.0f} of them: was the model trained on scaled pixels? Then scale the data "
        "likewise"
    ]
