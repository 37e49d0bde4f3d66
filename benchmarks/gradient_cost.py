"""The cost of a reverse pass: forward + backward as a multiple of the forward pass alone.

    python -m benchmarks.gradient_cost MODEL.onnx … [--batch 32] [--runs 15]

Random inputs; the gradients of all data inputs of Conv, Gemm and MatMul are asked for, by use, as the calibration does.
Times are medians of runs that alternate between the two, so that other work on the machine touches both.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune import model as m
from onnxprune.gradients import backward
from onnxprune.normalise import normalise
from onnxprune.runtime import Session

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


def cost(path: Path, batch: int, runs: int) -> dict[str, Any]:
    """Medians in milliseconds, the multiple, and how many gradients there are and are missing."""
    proto = onnx.load(path)
    n = normalise(proto, random_inputs(proto, 2))
    graph = m.view(n.proto, n.shapes, n.known_values, n.binding)
    uses = [
        (node.index, slot)
        for node in graph.nodes
        if node.op in READERS
        for slot in range(2 if node.op == "MatMul" else 1)
        if node.inputs[slot] not in graph.constants
    ]
    back = backward(n.proto, graph, n.types, uses=uses)
    feeds = random_inputs(proto, batch)
    forward = Session(m.submodel(n.proto, {}, graph.outputs), single=True)
    outputs = forward.run(feeds)
    seeds = {
        s: np.random.default_rng(1).standard_normal(outputs[o].shape).astype(np.float32) for o, s in back.seeds.items()
    }
    both = Session(m.submodel(back.proto, {}, dict.fromkeys(back.of_use.values())), single=True)
    times: dict[str, list[float]] = {"forward": [], "both": []}
    for _ in range(runs):
        for name, session in (("forward", forward), ("both", both)):
            start = time.perf_counter()
            session.run({**feeds, **seeds})
            times[name].append(1e3 * (time.perf_counter() - start))
    one, two = (float(np.median(t)) for t in times.values())
    return {"forward": one, "both": two, "multiple": two / one, "found": len(back.of_use), "missing": len(back.missing)}


def main() -> None:
    """Print a markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    print("| model | forward, ms | with gradients, ms | multiple | gradients | missing |")
    print("|---|---|---|---|---|---|")
    for path in options.models:
        c = cost(path, options.batch, options.runs)
        times = f"{c['forward']:.1f} | {c['both']:.1f} | {c['multiple']:.1f}"
        print(f"| {path.stem} | {times} | {c['found']} | {c['missing']} |", flush=True)


if __name__ == "__main__":
    main()
