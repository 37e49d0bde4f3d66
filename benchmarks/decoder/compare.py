"""One cut of the trained decoder: made by a tool, counted, and judged on text that nothing was fitted to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from benchmarks.accuracy.case import NEAR, Found
from benchmarks.accuracy.runs import DEFAULT, OURS, Run
from benchmarks.decoder.texts import LENGTH, Ints, sequences
from onnxprune import PruneConfig, cost, evaluate, prune
from onnxprune.graph import protobuf
from onnxprune.stages import couple, load

MODEL, TOKENS, INPUT = "model.onnx", "tokens.npz", "input_ids"
TEST = 256
_BATCH, _STEPS = 64, 14
# Samples for onnxsim's refits, which take a minute or more for each batch of these.
_FEW = 64


@dataclass(frozen=True, eq=False)
class Case:
    """A run, the folder that `train.make` wrote, calibration ids (N, T), and where the result goes."""

    run: Run
    folder: Path
    ids: Ints
    out: Path

    @property
    def model(self) -> Path:
        """The original."""
        return self.folder / MODEL

    def macs_of(self, path: Path) -> float:
        """Multiply-accumulates of a graph for one of the samples, as the library counts them."""
        channels = couple.trace(load.load(path, {INPUT: self.ids[:8]}, PruneConfig()), PruneConfig())
        return cost.macs(channels).at([g.size for g in channels.groups]) / channels.graph.batch


def measure(run: Run, folder: Path, threads: int) -> Found:
    """Prune by calibration text alone, then compare with the original on text held out. threads: of this process."""
    with np.load(folder / TOKENS) as tokens:
        ids = sequences(tokens["learnt"], run.samples, run.seed, LENGTH)
    with TemporaryDirectory() as temporary:
        case = Case(run, folder, ids, Path(temporary) / "out.onnx")
        start = time.perf_counter()
        found = TOOLS[run.tool](case)
        found = {"seconds": time.perf_counter() - start, **found}
        left = case.macs_of(case.out) / case.macs_of(case.model)
        if abs(left - (1 - run.ratio)) > NEAR:
            raise ValueError(f"it leaves {left:.3f} of the MACs, and {1 - run.ratio:g} is wanted")
        sizes = [protobuf.parameters(onnx.load(p)) for p in (case.out, case.model)]
        found |= kept(folder, case.out)
    return found | {"macs_left": left, "params_left": sizes[0] / sizes[1]}


def kept(folder: Path, pruned: Path) -> Found:
    """What a pruned file keeps on text held out: perplexity of both, tokens that stay (%), error of the outputs."""
    with np.load(folder / TOKENS) as tokens:
        test = {INPUT: sequences(tokens["held"], TEST, 0, LENGTH)}
    judged = evaluate(pruned, test, against=folder / MODEL, metric="perplexity")
    scores = {s.name: s for s in judged.scores}
    perplexity = scores["perplexity"]
    return {
        "perplexity_before": perplexity.original,
        "perplexity_after": perplexity.value,
        "agreement": 100 * (scores["token-agreement"].value or 0.0),
        "output_error": judged.output_error,
    }


def ours(case: Case) -> Found:
    """The library; widths may be any number."""
    run = case.run
    options: dict[str, Any] = {"round_to": 1, "seed": run.seed, "samples": run.samples, **run.options}
    options |= {k: v for k, v in (("method", run.method), ("refit", run.refit)) if v != DEFAULT}
    report = prune(case.model, case.out, {INPUT: case.ids}, ratio=run.ratio, **options).report
    return {"passes": report.effort.passes}


def baseline(case: Case) -> Found:
    """Magnitude and FLAP, on the network's own definition; PyTorch is imported where it is used."""
    from benchmarks.decoder.baselines import pruned
    from benchmarks.decoder.network import export
    from benchmarks.decoder.train import stored

    tool, run = case.run.tool, case.run
    wanted = run.ratio * case.macs_of(case.model)
    adaptive = run.method == "adaptive"
    export(pruned(stored(case.folder), case.ids, tool, wanted, adaptive=adaptive), case.out)
    return {}


def onnxsim(case: Case) -> Found:
    """onnxsim's pruning of the graph at the share of channels that leaves the wanted MACs, and one of its refits."""
    import onnxsim as sim

    run, original = case.run, str(case.model)
    batches = [{INPUT: case.ids[k : k + _BATCH]} for k in range(0, len(case.ids), _BATCH)]

    def cut(sparsity: float) -> onnx.ModelProto:
        if run.method == "wanda":
            return sim.apply_structured_wanda_pruning(original, batches, sparsity=sparsity)
        return sim.apply_structured_pruning(original, sparsity=sparsity)

    if protobuf.parameters(cut(0.5)) == protobuf.parameters(onnx.load(original)):
        raise ValueError("it finds nothing to cut in this graph")
    low, high, whole = 0.0, 1.0, case.macs_of(case.model)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        onnx.save(cut(middle), case.out)
        left = case.macs_of(case.out) / whole
        if abs(left - (1 - run.ratio)) < NEAR / 8:
            break
        low, high = (middle, high) if left > 1 - run.ratio else (low, middle)
    few = [{INPUT: case.ids[:_FEW]}]
    start = time.perf_counter()
    result = cut(middle)
    if run.refit == "ridge":
        result = sim.apply_pruning_finetune(original, result, few)
    elif run.refit == "blocks":
        result, _ = sim.apply_block_finetune_all_blocks(original, result, calibration_data=few)
    onnx.save(result, case.out)
    return {"seconds": time.perf_counter() - start, "sparsity": middle}


TOOLS: Mapping[str, Callable[[Case], Found]] = {
    OURS: ours,
    "magnitude": baseline,
    "flap": baseline,
    "onnxsim": onnxsim,
}
