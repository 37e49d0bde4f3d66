"""What prunes: a tool is a function (case) → what it found, which leaves the pruned model at `case.out`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.accuracy.kits import Array, input_name
from benchmarks.accuracy.runs import DEFAULT, OURS, Run
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


def ours(case: Case) -> Found:
    """The library; `round_to` is 1 unless the run says otherwise."""
    from onnxprune import prune

    run = case.run
    options: dict[str, Any] = {"round_to": 1, "seed": run.seed, "samples": run.samples, **run.options}
    options |= {k: v for k, v in (("method", run.method), ("refit", run.refit)) if v != DEFAULT}
    data = None if case.calib is None else {input_name(case.path): case.calib}
    start = time.perf_counter()
    report = prune(case.path, case.out, data, ratio=run.ratio, **options).report
    return {
        "macs_left": report.after.macs / report.before.macs,
        "params_left": report.after.parameters / report.before.parameters,
        "seconds": time.perf_counter() - start,
        "passes": report.effort.passes,
        "method_used": report.config["method"],
        "refit_used": report.checks["refit"],
    }


def torch_pruning(case: Case) -> Found:
    """Torch-Pruning; PyTorch is imported where it is used."""
    from benchmarks.accuracy.peers_torch import prune

    return prune(case)


def onnxsim(case: Case) -> Found:
    """onnxsim's structured pruning."""
    from benchmarks.accuracy.peers_onnxsim import prune

    return prune(case)


TOOLS: Mapping[str, Callable[[Case], Found]] = {OURS: ours, "torch-pruning": torch_pruning, "onnxsim": onnxsim}
_NEEDS = {"torch-pruning": ("torch", "torch_pruning", "onnx2torch"), "onnxsim": ("onnxsim",)}


def not_installed(tools: set[str]) -> list[str]:
    """Packages that these tools need and that are not there."""
    return sorted(p for t in tools for p in _NEEDS.get(t, ()) if find_spec(p) is None)


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
