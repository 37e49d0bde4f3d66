"""What tells the time of a model at any widths: a stopwatch on this machine, or the record of another one."""

from __future__ import annotations

from typing import Protocol

import onnx

from onnxprune.channels import ChannelGraph
from onnxprune.latency.latency_cost import LatencyCost
from onnxprune.latency.search import KeptUnits
from onnxprune.latency.stopwatch import Latency


class Timer(Protocol):
    """Both of them. channels: of the model. measures: whether `share` runs anything; else it predicts."""

    channels: ChannelGraph
    measures: bool

    @property
    def cost(self) -> LatencyCost:
        """The predicted share of the original's time."""

    def measure(self) -> None:
        """Measure what `cost` needs."""

    def share(self, kept: KeptUnits) -> float:
        """The share of the original's time that the model takes at these widths."""

    def timed(self, model: onnx.ModelProto | None, kept: KeptUnits) -> Latency:
        """What is to report of a finished model, or of the cut at these widths where there is none."""
