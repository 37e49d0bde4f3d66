"""How well a latency budget is predicted, and how well it is met.

    python -m benchmarks.latency_budget MODEL... [--ratio 0.3 --ratio 0.5] [--threads 1] [--cpu-time]

For each model the layers are measured afresh. Then whole models cut at random widths are timed against the original,
and compared with the prediction: the root of the mean squared relative error over --cuts of them. Last, each ratio is
allocated and met as by `onnxprune --budget latency --ratio R`; every unit of a group counts the same there, since what
the outputs lose has no part in the time. `first` is the measured share of the time without a correction by what was
measured, `rounds` the allocations that were, and `measured` the result's share in sessions of its own.

--cpu-time counts the seconds of the processor instead of the wall clock's: with one thread, on a machine that others
use, the only thing that can be compared. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from onnxprune.allocation import budget
from onnxprune.config import PruneConfig
from onnxprune.latency.cache import Cache
from onnxprune.latency.machine import OnnxRuntime
from onnxprune.latency.search import KeptUnits, meet
from onnxprune.latency.stopwatch import Stopwatch, feeds_of
from onnxprune.stages.couple import couple
from onnxprune.stages.load import load

SAMPLES = 4
HEAD = "| model | layers (kinds) | seconds to measure | error of prediction | requested | first | measured | rounds |"


def stopwatch(path: str, machine: OnnxRuntime, folder: str, settings: PruneConfig) -> Stopwatch:
    """The stopwatch of a model on random inputs, with nothing measured yet."""
    loaded = load(path, None, settings)
    coupled = couple(loaded, settings)
    widths = coupled.widths.allowed
    cache = Cache(Path(folder), machine.identity())
    feeds = feeds_of(loaded.fit, 1)
    return Stopwatch(
        loaded.original, loaded.normalised.proto, coupled.channels, widths, feeds, machine, cache, 1, settings.round_to
    )


def error_of_prediction(watch: Stopwatch, cuts: int, seed: int) -> float:
    """Root mean squared relative error over cuts at random widths, around a random share of each group."""
    rng = np.random.default_rng(seed)
    errors = []
    for _ in range(cuts):
        centre = rng.random()
        at = [np.clip(rng.normal(centre, 0.2), 0.0, 0.999) for _ in watch.widths]
        kept = tuple(w[int(a * len(w))] for w, a in zip(watch.widths, at, strict=True))
        if watch.cut(kept) is not None:
            errors.append(watch.cost.at(kept) / watch.share(kept) - 1.0)
    return float(np.sqrt(np.mean(np.square(errors))))


def met(watch: Stopwatch, ratio: float) -> tuple[float, float, int] | None:
    """(share of the time after the first allocation, after the last in new sessions, rounds); None if unreachable."""
    curves = [np.linspace(1.0, 0.0, w[-1] + 1) ** 2 * w[-1] for w in watch.widths]
    least = budget.smallest(watch.cost, watch.widths)
    if least > 1.0 - ratio:
        return None
    first: list[float] = []

    def decide(limit: float) -> KeptUnits:
        return budget.allocate(curves, watch.cost, budget.Budget(limit, watch.widths)).kept

    def measure(kept: KeptUnits) -> float:
        first.append(watch.share(kept))
        return first[-1]

    best = meet(decide, measure, 1.0 - ratio, least)[0]
    model = watch.cut(best.kept)
    assert model is not None
    return first[0], watch.compared(model)[0], len(first)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--ratio", type=float, action="append")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cuts", type=int, default=8)
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true")
    given = parser.parse_args()
    clock = time.process_time if given.cpu_time else time.perf_counter
    machine = OnnxRuntime(threads=given.threads, clock=clock)
    settings = PruneConfig(samples=SAMPLES, round_to=given.round_to)
    print(f"{machine.identity()}\n\n{HEAD}\n|---" + "|---:" * (HEAD.count("|") - 2) + "|")
    for path in given.models:
        with tempfile.TemporaryDirectory() as folder:
            watch = stopwatch(path, machine, folder, settings)
            start = time.perf_counter()
            watch.measure()
            seconds = time.perf_counter() - start
            error = error_of_prediction(watch, given.cuts, given.seed)
            layers, kinds, _ = watch.counts
            for ratio in given.ratio or [0.3, 0.5]:
                done = met(watch, ratio)
                row = "unreachable | | |" if done is None else f"{1 - done[0]:.1%} | {1 - done[1]:.1%} | {done[2]} |"
                name = f"{Path(path).stem} | {layers} ({kinds}) | {seconds:.0f} | {error:.1%}"
                print(f"| {name} | {ratio:.0%} | {row}", flush=True)


if __name__ == "__main__":
    main()
