"""One thing to measure, and what was found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.kits import Array
from benchmarks.accuracy.runs import Run
from onnxprune.stages import couple, load

Found = dict[str, Any]
# How far from the wanted share of MACs a peer may end, where whole channels allow no less.
NEAR = 0.02


@dataclass(frozen=True, eq=False)
class Case:
    """A run with its files and data. calib: samples (N, ...), or None for no data; threads: that it may use."""

    run: Run
    path: Path
    calib: Array | None
    out: Path
    threads: int


def shares_left(before: Path, after: Path) -> Found:
    """The shares of MACs and parameters that a model kept, both counted by the library on the graphs."""
    import onnx

    from onnxprune.graph import protobuf

    return {
        "macs_left": macs_of(after) / macs_of(before),
        "params_left": protobuf.parameters(onnx.load(after)) / protobuf.parameters(onnx.load(before)),
    }


def macs_of(path: Path) -> float:
    """Multiply-accumulates of a graph for one sample, as the library counts them."""
    from onnxprune import PruneConfig, cost

    channels = couple.trace(load.load(path, None, PruneConfig(samples=1)), PruneConfig())
    return cost.macs(channels).at([g.size for g in channels.groups]) / channels.graph.batch
