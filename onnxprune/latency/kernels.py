"""What onnxruntime runs as one, in the order of a run, with the time of each: by its own profiler."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.runtime.saturation import DEPLOYED
from onnxprune.runtime.session import CPU, Feeds, Session


@dataclass(frozen=True)
class Kernel:
    """What onnxruntime ran as one: its name in the optimised graph, operator, seconds, shapes.

    shapes: types and sizes of inputs and outputs as the profiler writes them, weights in a packed form left out.
    """

    name: str
    op: str
    seconds: float
    shapes: str


def kernel_times(
    model: onnx.ModelProto | str | os.PathLike[str],
    feeds: Feeds,
    *,
    warmup: int = 2,
    least_runs: int = 4,
    most_runs: int = 60,
    budget: float = 0.2,
    threads: int = 0,
    providers: Sequence[str] = (CPU,),
) -> tuple[Kernel, ...]:
    """The kernels that one run executes, in their order, as onnxruntime's profiler times them.

    Of each kernel the mean of its quicker half of the runs counts: what disturbs a run only adds to it, and the mean is
    finer than the profiler's microseconds. Runs go on until `budget` seconds have passed, within `least_runs` and
    `most_runs`. A loop's kernels count all their iterations. Raises RunError.
    """
    with tempfile.TemporaryDirectory(prefix="onnxprune-", ignore_cleanup_errors=True) as folder:
        profile = str(Path(folder) / "profile")
        session = Session(model, spin=True, threads=threads, providers=providers, kernels=DEPLOYED, profile=profile)
        start = time.perf_counter()
        for done in range(warmup + most_runs):
            if done == warmup:
                start = time.perf_counter()
            if done >= warmup + least_runs and time.perf_counter() - start >= budget:
                break
            session.run(feeds)
        events = session.end_profile()
    return kernels_of(events, warmup)


_KERNEL = "_kernel_time"
# These hold other nodes, whose kernels are in the profile too.
_HOLDERS = ("If", "Loop", "Scan")


def kernels_of(events: Sequence[Mapping[str, Any]], warmup: int) -> tuple[Kernel, ...]:
    """The kernels of a profile (a list of Chrome trace events), the first `warmup` runs left out."""
    ran = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(_KERNEL)]
    ran = sorted((e for e in ran if e["args"]["op_name"] not in _HOLDERS), key=lambda e: int(e["ts"]))
    starts = sorted(int(e["ts"]) for e in events if e["name"] == "model_run")[warmup:]
    runs: list[dict[str, float]] = []
    for start, end in pairwise([*starts, 1 << 62]):
        seconds: dict[str, float] = {}
        for e in ran:
            if start <= int(e["ts"]) < end:
                name = e["name"].removesuffix(_KERNEL)
                seconds[name] = seconds.get(name, 0.0) + int(e["dur"]) / 1e6
        runs.append(seconds)
    arguments = {e["name"].removesuffix(_KERNEL): e["args"] for e in reversed(ran)}
    return tuple(
        Kernel(
            name,
            arguments[name]["op_name"],
            _quicker_half([r[name] for r in runs if name in r]),
            json.dumps([arguments[name].get(k) for k in ("input_type_shape", "output_type_shape")]),
        )
        for name in (runs[0] if runs else ())
    )


def _quicker_half(seconds: Sequence[float]) -> float:
    return float(np.mean(sorted(seconds)[: (len(seconds) + 1) // 2]))
