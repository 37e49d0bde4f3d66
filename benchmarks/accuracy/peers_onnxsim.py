"""onnxsim's structured pruning of the graph, its ridge refit of linear layers as refit "ridge", and its fine-tuning of
whole blocks as "blocks".

Methods: "magnitude" (apply_structured_pruning) and "wanda" (apply_structured_wanda_pruning: weights times activations).
It takes a share of channels; the one that leaves the wanted MACs is searched by bisection.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import onnx
import onnxsim

from benchmarks.accuracy.case import NEAR, Case, Found, macs_of, shares_left

STEPS = 12
REFITS = ("none", "ridge", "blocks")
_BATCH = 64
# Samples for the fine-tuning of blocks, which takes a minute or more for each batch of these.
_FEW = 64


def prune(case: Case) -> Found:
    """Prune, refit, count. Raises ValueError where the MACs do not come near what is wanted."""
    run = case.run
    batches = case.batches(_BATCH)
    original = str(case.path)

    def cut(sparsity: float) -> onnx.ModelProto:
        if run.method == "magnitude":
            return onnxsim.apply_structured_pruning(original, sparsity=sparsity)
        if run.method == "wanda":
            return onnxsim.apply_structured_wanda_pruning(original, batches, sparsity=sparsity)
        raise ValueError(f"onnxsim has no method {run.method!r}; choose magnitude or wanda")

    if run.refit not in REFITS:
        raise ValueError(f"onnxsim has no refit {run.refit!r}; choose {', '.join(REFITS)}")
    sparsity = searched(cut, case, 1 - run.ratio)
    start = time.perf_counter()
    pruned = cut(sparsity)
    if run.refit == "ridge":
        pruned = onnxsim.apply_pruning_finetune(original, pruned, batches)
    if run.refit == "blocks":
        few = case.batches(_FEW)[:1]
        pruned, _ = onnxsim.apply_block_finetune_all_blocks(original, pruned, calibration_data=few)
    seconds = time.perf_counter() - start
    onnx.save(pruned, case.out)
    return shares_left(case.path, case.out, case.example) | {"seconds": seconds, "sparsity": sparsity}


def searched(cut: Callable[[float], onnx.ModelProto], case: Case, wanted: float) -> float:
    """The share of channels whose cut leaves `wanted` of the MACs, to within NEAR; `case.out` is overwritten.

    Raises ValueError, with the MACs nearest to that, where none does.
    """
    whole = macs_of(case.path, case.example)
    low, high = 0.0, 1.0
    nearest = (float("inf"), 1.0, 0.0)
    for _ in range(STEPS):
        middle = (low + high) / 2
        onnx.save(cut(middle), case.out)
        left = macs_of(case.out, case.example) / whole
        nearest = min(nearest, (abs(left - wanted), left, middle))
        if nearest[0] <= NEAR / 8:
            break
        low, high = (middle, high) if left > wanted else (low, middle)
    if nearest[0] > NEAR:
        raise ValueError(f"no share of channels leaves {wanted:g} of the MACs: the nearest found is {nearest[1]:.3f}")
    return nearest[2]
