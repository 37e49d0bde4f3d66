"""Inputs that are declared without a shape: onnxruntime takes any number of axes there, and the data say how many.

Where there are none, numbers of axes are tried until the model runs on stand-ins. From here on such an input is one of
free sizes; the result is declared as the original is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product

import onnx

from onnxprune.data import sources, stand_ins
from onnxprune.data.accepted import BatchReader, Wanted
from onnxprune.data.inputs import tensor_specs
from onnxprune.data.states import State
from onnxprune.errors import CalibrationError
from onnxprune.graph.bodies import every_node
from onnxprune.graph.protobuf import copied
from onnxprune.intake import fed_back, first_run, sample_axes

# What is tried where nothing tells, the likeliest first; and how many combinations of several inputs.
_USUAL = (2, 4, 3, 1, 5, 0)
_MOST_TRIED = 36
# What the first reader says of its first input.
_READ_AS = {
    **dict.fromkeys(("GRU", "LSTM", "RNN"), 3),
    **dict.fromkeys(("AveragePool", "DepthToSpace", "GlobalAveragePool", "MaxPool", "SpaceToDepth"), 4),
    "Gemm": 2,
}
_LIKE_ITS_WEIGHT = ("Conv", "ConvTranspose")
_Ranks = dict[str, int]
# Samples that are read of what comes in batches.
_TWO = Wanted(2)


def without_shape(proto: onnx.ModelProto) -> tuple[str, ...]:
    """The inputs that are tensors of which no shape is declared, initializers excepted."""
    stored = {t.name for t in proto.graph.initializer}
    return tuple(
        v.name
        for v in proto.graph.input
        if v.name not in stored and v.type.HasField("tensor_type") and not v.type.tensor_type.HasField("shape")
    )


def declared(proto: onnx.ModelProto, source: object = None, states: Sequence[State] = ()) -> onnx.ModelProto:
    """The model with as many free sizes as its inputs without a shape need; itself where all have one.

    source: the data, None where random inputs stand in. Raises CalibrationError for data that cannot be read.
    """
    names = without_shape(proto)
    if not names:
        return proto
    if isinstance(source, (Iterator, BatchReader)):  # which can be read once: then stand-ins tell
        source, states = None, ()
    proposals = islice(_proposals(proto, names, source, {s.input for s in states}), _MOST_TRIED)
    first: onnx.ModelProto | None = None
    for ranks in proposals:
        candidate = _with(proto, ranks)
        if _runs(candidate, source, states):
            return candidate
        first = first or candidate
    return first or proto


def put_back(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy in which these inputs have no shape again; the model itself where there are none."""
    if not names:
        return proto
    result = copied(proto)
    for v in result.graph.input:
        if v.name in names:
            v.type.tensor_type.ClearField("shape")
    return result


def _proposals(proto: onnx.ModelProto, names: Sequence[str], source: object, fed: set[str]) -> Iterator[_Ranks]:
    """Numbers of axes by input, the likeliest first."""
    likely = {name: _likely(proto, name) for name in names}
    if source is not None:
        specs = tuple(s for s in tensor_specs(proto) if s.name not in fed)
        part = sources.taken(source, specs, _TWO).parts[0]
        for name in names:
            if name in part.inputs:  # with one entry for each run in front, or without
                rank = part.inputs[name].ndim
                likely[name] = [rank, max(rank - 1, 0)]
    for ranks in product(*likely.values()):
        yield dict(zip(names, ranks, strict=True))


def _likely(proto: onnx.ModelProto, name: str) -> list[int]:
    weights = {t.name: len(t.dims) for t in proto.graph.initializer}
    told = [_READ_AS[n.op_type] for n in _readers(proto, name) if n.op_type in _READ_AS]
    told += [
        weights[n.input[1]] for n in _readers(proto, name) if n.op_type in _LIKE_ITS_WEIGHT and n.input[1] in weights
    ]
    return list(dict.fromkeys([*told, *_USUAL]))


def _readers(proto: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    return [n for n in every_node(proto.graph) if len(n.input) and n.input[0] == name]


def _with(proto: onnx.ModelProto, ranks: Mapping[str, int]) -> onnx.ModelProto:
    result = copied(proto)
    for v in result.graph.input:
        if v.name in ranks:
            v.type.tensor_type.shape.SetInParent()
            for _ in range(ranks[v.name]):
                v.type.tensor_type.shape.dim.add()
    return result


def _runs(proto: onnx.ModelProto, source: object, states: Sequence[State]) -> bool:
    """Whether the model runs so. Raises RunError where it is not loaded, or hangs."""
    trial = first_run.Trial(proto)
    specs = tensor_specs(proto)
    try:
        if source is None:
            samples = stand_ins.random(proto, specs, 2, 0, trial, shapes=trial.shapes)
        elif states:
            samples = fed_back.read(proto, source, states, 1)
        else:
            samples = sample_axes.read(proto, sources.taken(source, specs, _TWO))
        return trial(samples.example())
    except CalibrationError:
        return False
