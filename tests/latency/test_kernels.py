"""Kernels of a profile: a written one, and that of a real run."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune.latency.kernels import Kernel, kernel_times, kernels_of
from tests import digits


def event(name: str, op: str, start: int, microseconds: int, cat: str = "Node") -> dict[str, object]:
    args = {"op_name": op, "input_type_shape": [{"float": [1, 3]}], "output_type_shape": [{"float": [1, 5]}]}
    return {"cat": cat, "name": name, "ts": start, "dur": microseconds, "args": args}


def test_kernels_are_in_their_order_with_the_mean_of_their_quicker_half():
    """Fails where warm-up counts, a loop's iterations are taken for runs, or what holds other kernels counts twice."""
    events: list[dict[str, object]] = []
    for run, times in enumerate([(900, 900), (4, 10), (6, 11), (50, 90), (8, 99)]):
        start = 10_000 * run
        events += [
            event("b_kernel_time", "Conv", start + 200, times[1]),
            event("a_kernel_time", "Gemm", start + 100, times[0]),
            event("a_kernel_time", "Gemm", start + 150, 1),
            event("loop_kernel_time", "Loop", start + 90, 5000),
            event("model_run", "", start, 5500, "Session"),
            event("a_fence_before", "Gemm", start + 99, 7),
        ]
    shapes = '[[{"float": [1, 3]}], [{"float": [1, 5]}]]'
    found = kernels_of(events, warmup=1)
    assert [(k.name, k.op, k.shapes) for k in found] == [("a", "Gemm", shapes), ("b", "Conv", shapes)]
    assert [k.seconds for k in found] == pytest.approx([6e-6, 10.5e-6])


def test_the_profiler_tells_of_every_kernel():
    feeds = {"input": np.load(digits.CALIB)["input"][:1]}
    found = kernel_times(digits.path("resnet"), feeds, most_runs=4)
    assert all(isinstance(k, Kernel) and k.seconds >= 0.0 for k in found)
    convolutions = sum(n.op_type == "Conv" for n in onnx.load(digits.path("resnet")).graph.node)
    assert sum("Conv" in k.op for k in found) == convolutions
    assert len({k.name for k in found}) == len(found)
