"""Time per operator, from onnxruntime's own profiler.

onnxruntime notes the time of every node in whole microseconds, rounded down, under the name that the node has after
optimisation. A run's events lie inside its `model_run`; those of a body lie inside the If, Loop or Scan that runs it,
whose own time is what they leave. On providers that only queue work (CUDA), a node's time is that of queueing it,
unless CUDA_LAUNCH_BLOCKING=1 makes it wait.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import CPU, profile_events

_SUFFIX = "_kernel_time"
RUNS, WARMUP = 50, 5


@dataclass(frozen=True)
class NodeTime:
    """Seconds that one node takes in a run of the model, over all of its calls there (several inside a Loop)."""

    name: str
    operator: str
    provider: str
    seconds: float
    calls: float


@dataclass(frozen=True)
class OperatorTime:
    """What the nodes of one operator take together in a run, and their share in the time of all nodes."""

    operator: str
    seconds: float
    share: float
    calls: float


def profiled(
    model: onnx.ModelProto,
    feeds: Mapping[str, Array],
    *,
    runs: int = RUNS,
    warmup: int = WARMUP,
    threads: int = 0,
    providers: Sequence[str] = (CPU,),
    optimize: bool = True,
) -> tuple[NodeTime, ...]:
    """Every node in the order of the first run, under the names that onnxruntime's optimisation leaves.

    feeds, threads, providers and optimize as for `Session`. Raises RunError.
    """
    events = profile_events(model, feeds, warmup + runs, optimize=optimize, threads=threads, providers=providers)
    return parse(events, warmup)


def parse(events: Iterable[Mapping[str, Any]], warmup: int = 0) -> tuple[NodeTime, ...]:
    """The nodes of a profile; the first `warmup` runs do not count."""
    complete = [e for e in events if e.get("ph") == "X"]
    starts = sorted(int(e["ts"]) for e in complete if e.get("name") == "model_run")[warmup:]
    nodes = [e for e in complete if e.get("cat") == "Node" and str(e.get("name", "")).endswith(_SUFFIX)]
    runs: dict[tuple[str, str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    # An enclosing node may start in the same microsecond as the first one inside.
    nodes.sort(key=lambda e: (int(e["ts"]), -int(e["dur"])))
    for event, own in zip(nodes, own_times(nodes), strict=True):
        run = int(np.searchsorted(starts, int(event["ts"]), side="right")) - 1
        if run >= 0:
            about = event.get("args", {})
            key = (event["name"].removesuffix(_SUFFIX), about.get("op_name", "?"), about.get("provider", ""))
            runs[key][run].append(own)
    return tuple(
        NodeTime(*key, typical([sum(times) for times in by_run.values()]), float(np.mean([*map(len, by_run.values())])))
        for key, by_run in runs.items()
    )


def own_times(nodes: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds of each node without those of the nodes inside it; sorted by start, the enclosing one first."""
    own = [float(e["dur"]) for e in nodes]
    open_: dict[Any, list[int]] = defaultdict(list)
    for i, e in enumerate(nodes):
        stack = open_[e.get("tid")]
        while stack and int(nodes[stack[-1]]["ts"]) + int(nodes[stack[-1]]["dur"]) <= int(e["ts"]):
            stack.pop()
        if stack:
            own[stack[-1]] -= own[i]
        stack.append(i)
    return [max(t, 0.0) * 1e-6 for t in own]


def typical(values: Sequence[float]) -> float:
    """The mean of the middle half: finer than a median of whole microseconds, and as deaf to interruptions."""
    ordered = np.sort(np.asarray(values, np.float64))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def by_operator(nodes: Iterable[NodeTime]) -> tuple[OperatorTime, ...]:
    """The nodes of each operator together, the slowest operator first."""
    seconds: dict[str, float] = defaultdict(float)
    calls: dict[str, float] = defaultdict(float)
    for n in nodes:
        seconds[n.operator] += n.seconds
        calls[n.operator] += n.calls
    total = sum(seconds.values()) or 1.0
    order = sorted(seconds, key=lambda op: -seconds[op])
    return tuple(OperatorTime(op, seconds[op], seconds[op] / total, calls[op]) for op in order)
