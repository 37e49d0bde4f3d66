"""onnxsim's structured pruning of the graph, with its ridge refit of linear layers as refit "ridge".

Methods: "magnitude" (apply_structured_pruning) and "wanda" (apply_structured_wanda_pruning: weights times activations).
It takes a share of channels; the one that leaves the wanted MACs is searched by bisection.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxsim

from benchmarks.accuracy.case import NEAR, Case, Found, macs_of, shares_left
from benchmarks.accuracy.kits import input_name

STEPS = 12
_BATCH = 64


def prune(case: Case) -> Found:
    """Prune, refit, count. Raises ValueError where the MACs do not come near what is wanted."""
    run = case.run
    if case.calib is None:
        raise ValueError("give onnxsim calibration data: choose a source")
    name = input_name(case.path)
    batches = [{name: case.calib[i : i + _BATCH]} for i in range(0, len(case.calib), _BATCH)]
    original = str(case.path)

    def cut(sparsity: float) -> onnx.ModelProto:
        if run.method == "magnitude":
            return onnxsim.apply_structured_pruning(original, sparsity=sparsity)
        if run.method == "wanda":
            return onnxsim.apply_structured_wanda_pruning(original, batches, sparsity=sparsity)
        raise ValueError(f"onnxsim has no method {run.method!r}; choose magnitude or wanda")

    if run.refit not in ("none", "ridge"):
        raise ValueError(f"onnxsim has no refit {run.refit!r}; choose none or ridge")
    sparsity = searched(cut, case.path, case.out, 1 - run.ratio)
    start = time.perf_counter()
    pruned = cut(sparsity)
    if run.refit == "ridge":
        pruned = onnxsim.apply_pruning_finetune(original, pruned, batches)
    seconds = time.perf_counter() - start
    onnx.save(pruned, case.out)
    return shares_left(case.path, case.out) | {"seconds": seconds, "sparsity": sparsity}


def searched(cut: Callable[[float], onnx.ModelProto], path: Path, out: Path, wanted: float) -> float:
    """The share of channels whose cut leaves `wanted` of the MACs, to within NEAR.

    Raises ValueError, with the MACs nearest to that, where none does.
    """
    whole = macs_of(path)
    low, high = 0.0, 1.0
    nearest = (float("inf"), 1.0, 0.0)
    for _ in range(STEPS):
        middle = (low + high) / 2
        onnx.save(cut(middle), out)
        left = macs_of(out) / whole
        nearest = min(nearest, (abs(left - wanted), left, middle))
        if nearest[0] <= NEAR / 8:
            break
        low, high = (middle, high) if left > wanted else (low, middle)
    if nearest[0] > NEAR:
        raise ValueError(f"no share of channels leaves {wanted:g} of the MACs: the nearest found is {nearest[1]:.3f}")
    return nearest[2]
