"""The cost of a reverse pass, and of the global statistics, as multiples of the forward pass alone.

    python -m benchmarks.gradient_cost MODEL.onnx … [--batch 32] [--runs 15]

Random inputs; the gradients of all data inputs of Conv, Gemm and MatMul are asked for, by use, as the calibration does.
The statistics are those of one probe: the gate moments of every group and, with them, the metrics of all layers. Times
are medians of runs that alternate between all of these, so that other work on the machine touches each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.calibration import gate_moments, probe
from onnxprune.calibration.layers import Layer
from onnxprune.channels.gates import gates_of
from onnxprune.config import PruneConfig
from onnxprune.gradients import backward
from onnxprune.graph import protobuf
from onnxprune.normalise import normalise
from onnxprune.objective import output_imitation
from onnxprune.runtime.outputs import outputs_of
from onnxprune.runtime.session import Session
from onnxprune.stages import couple, load

READERS = ("Conv", "Gemm", "MatMul")


def random_inputs(proto: onnx.ModelProto, batch: int) -> dict[str, Any]:
    """Normal numbers for every input; sizes that are not given are `batch`."""
    weights = {t.name for t in proto.graph.initializer}
    rng = np.random.default_rng(0)
    feeds = {}
    for v in proto.graph.input:
        t = v.type.tensor_type
        if v.name not in weights:
            shape = [d.dim_value or batch for d in t.shape.dim]
            feeds[v.name] = rng.standard_normal(shape).astype(onnx.helper.tensor_dtype_to_np_dtype(t.elem_type))
    return feeds


def statistics(path: Path, feeds: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """What collects the global statistics of one probe on these inputs, without and with the metrics of layers."""
    settings = PruneConfig()
    # One batch, nothing held out: the samples are those of the forward pass.
    loaded = load.load(path, feeds, settings)
    loaded = replace(loaded, fit=load.read_samples(loaded.original, feeds, settings))
    taken = (coupled := couple.couple(loaded, settings)).taken
    gates = probe.with_samples(gates_of(taken.channels), taken.proto, loaded.fit)
    reference = outputs_of(loaded.original, loaded.fit)
    batches = list(probe.batches_of(loaded.fit, taken.channels.graph, reference))
    goal = output_imitation(reference, len(loaded.fit))

    def collecting(layers: Sequence[Layer]) -> Callable[[], object]:
        probed = probe.Probe.of(taken.proto, taken.channels, gates, layers, loaded.normalised.types)
        assert probed.session.outputs  # opened before the clock starts
        return partial(gate_moments.collect, probed, taken.channels, batches, goal, probes=1, seed=0, slope=False)

    return {"gates": collecting(()), "gates and metrics": collecting(coupled.layers)}


def cost(path: Path, batch: int, runs: int) -> dict[str, Any]:
    """The forward pass in milliseconds, the others as its multiples; how many gradients there are and are missing."""
    proto = onnx.load(path)
    n = normalise(proto, random_inputs(proto, 2))
    graph = protobuf.view(n.proto, n.shapes, n.known_values, n.binding)
    uses = [
        (node.index, slot)
        for node in graph.nodes
        if node.op in READERS
        for slot in range(2 if node.op == "MatMul" else 1)
        if node.inputs[slot] not in graph.constants
    ]
    back = backward(n.proto, graph, n.types, uses=uses)
    feeds = random_inputs(proto, batch)
    forward = Session(protobuf.submodel(n.proto, {}, graph.outputs), single=True)
    answers = forward.run(feeds)
    seeds = {
        s: np.random.default_rng(1).standard_normal(answers[o].shape).astype(np.float32) for o, s in back.seeds.items()
    }
    both = Session(protobuf.submodel(back.proto, {}, dict.fromkeys(back.of_use.values())), single=True)
    timed: dict[str, Callable[[], object]] = {
        "forward": partial(forward.run, {**feeds, **seeds}),
        "gradients": partial(both.run, {**feeds, **seeds}),
        **statistics(path, feeds),
    }
    times: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(runs):
        for name, run in timed.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(t)) for name, t in times.items()}
    multiples = {name: medians[name] / medians["forward"] for name in medians if name != "forward"}
    return {"forward": 1e3 * medians["forward"], **multiples, "found": len(back.of_use), "missing": len(back.missing)}


def main() -> None:
    """Print a markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    print(
        "| model | forward, ms | with gradients | gate statistics | gate statistics and metrics | gradients | missing |"
    )
    print("|---|---|---|---|---|---|---|")
    for path in options.models:
        c = cost(path, options.batch, options.runs)
        times = f"{c['forward']:.1f} | {c['gradients']:.1f} | {c['gates']:.1f} | {c['gates and metrics']:.1f}"
        print(f"| {path.stem} | {times} | {c['found']} | {c['missing']} |", flush=True)


if __name__ == "__main__":
    main()
