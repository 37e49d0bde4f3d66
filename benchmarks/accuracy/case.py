"""One thing to measure, and what was found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.kits import Array, Inputs
from benchmarks.accuracy.runs import Run
from onnxprune.stages import couple, load

Found = dict[str, Any]
# How far from the wanted share of MACs a peer may end, where whole channels allow no less.
NEAR = 0.02
_FEW = 8


@dataclass(frozen=True, eq=False)
class Case:
    """A run with its files and data. calib: samples (N, ...) by input, or None for no data; threads: for it."""

    run: Run
    path: Path
    calib: Inputs | None
    out: Path
    threads: int

    @property
    def images(self) -> Array:
        """The samples of the only input. Raises ValueError where there is no data, or more than one input."""
        if self.calib is None:
            raise ValueError(f"{self.run.tool} has no data of its own: choose a source of calibration data")
        if len(self.calib) != 1:
            raise ValueError(f"{self.run.tool} gets the samples of one input here, and the model has {len(self.calib)}")
        return next(iter(self.calib.values()))

    @property
    def example(self) -> Inputs | None:
        """Some of the samples, which tell the sizes that MACs are counted at."""
        return None if self.calib is None else {k: v[:_FEW] for k, v in self.calib.items()}

    def batches(self, size: int) -> list[Inputs]:
        """The samples, so many at a time. Raises ValueError where there is no data."""
        if self.calib is None:
            raise ValueError(f"{self.run.tool} has no data of its own: choose a source of calibration data")
        count = len(next(iter(self.calib.values())))
        return [{k: v[i : i + size] for k, v in self.calib.items()} for i in range(0, count, size)]


def shares_left(before: Path, after: Path, example: Inputs | None = None) -> Found:
    """The shares of MACs and parameters that a model kept, both counted by the library on the graphs."""
    import onnx

    from onnxprune.graph import protobuf

    return {
        "macs_left": macs_of(after, example) / macs_of(before, example),
        "params_left": protobuf.parameters(onnx.load(after)) / protobuf.parameters(onnx.load(before)),
    }


def macs_of(path: Path, example: Inputs | None = None) -> float:
    """Multiply-accumulates of a graph for one sample, as the library counts them, at the sizes of these samples."""
    from onnxprune import PruneConfig, cost

    data = None if example is None else dict(example)
    channels = couple.trace(load.load(path, data, PruneConfig(samples=1 if data is None else _FEW)), PruneConfig())
    return cost.macs(channels).at([g.size for g in channels.groups]) / channels.graph.batch
