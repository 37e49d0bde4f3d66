"""What prunes: a tool is a function (case) → what it found, which leaves the pruned model at `case.out`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from benchmarks.accuracy.case import Case, Found
from benchmarks.accuracy.runs import DEFAULT, OURS
from benchmarks.accuracy.suites import STATISTICS


def ours(case: Case) -> Found:
    """The library; `round_to` is 1 unless the run says otherwise."""
    from onnxprune import prune

    run = case.run
    options: dict[str, Any] = {"round_to": 1, "seed": run.seed, "samples": run.samples, **run.options}
    options |= {k: v for k, v in (("method", run.method), ("refit", run.refit)) if v != DEFAULT}
    data = None if case.calib is None else dict(case.calib)
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


def statistics(case: Case) -> Found:
    """What goes by the statistics of activations: FLAP and VBP, which the tool of the run names."""
    from benchmarks.accuracy.peers_statistics import remove

    return remove(case)


TOOLS: Mapping[str, Callable[[Case], Found]] = {
    OURS: ours,
    "torch-pruning": torch_pruning,
    "onnxsim": onnxsim,
    **dict.fromkeys(STATISTICS, statistics),
}
_NEEDS = {"torch-pruning": ("torch", "torch_pruning", "onnx2torch"), "onnxsim": ("onnxsim",)}


def not_installed(tools: set[str]) -> list[str]:
    """Packages that these tools need and that are not there."""
    return sorted(p for t in tools for p in _NEEDS.get(t, ()) if find_spec(p) is None)
