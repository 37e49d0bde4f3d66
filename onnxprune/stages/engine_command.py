"""How to build an engine of the result, where the target is TensorRT: the command, with the shapes of the data."""

from __future__ import annotations

import os

import onnx

from onnxprune.config import PruneConfig
from onnxprune.data.samples import Samples
from onnxprune.stages.load import Loaded
from onnxprune.targets import tensorrt_command
from onnxprune.targets.alignment import TARGETS
from onnxprune.targets.tensorrt_command import Span

# Samples whose sizes are looked at, where these differ.
_MOST = 1024


def engine_command(
    model: onnx.ModelProto, loaded: Loaded, output: str | os.PathLike[str] | None, settings: PruneConfig
) -> str:
    """The command for the model that is written to `output`; "" for another target, or where nothing is written."""
    if output is None or not TARGETS[settings.target].tensorrt:
        return ""
    return tensorrt_command.command(os.fspath(output), model, spans_of(loaded.fit, settings.batch))


def spans_of(samples: Samples, batch: int) -> dict[str, Span]:
    """The shapes of each input over the samples; where any number of samples may be fed, from one to `batch`."""
    per_run = samples.run_size(1)
    starts = range(0, min(len(samples), _MOST) - per_run + 1, per_run) if samples.ragged else (0,)
    runs = [samples.slice(i, per_run) for i in starts]
    spans: dict[str, Span] = {}
    for name in (s.name for s in samples.specs):
        span = Span.over([run[name].shape for run in runs])
        axis = samples.arrangement.axes.get(name)
        spans[name] = span if axis is None or samples.fixed_batch else span.with_batch(axis, batch)
    return spans
