"""How well a budget of latency is met on a device that the run never saw, by its timing file.

    python -m benchmarks.another_device record MODEL timing.json [--provider NAME --threads N]   # on the device
    python -m benchmarks.another_device cut MODEL timing.json FOLDER [--ratio 0.3 --ratio 0.5]   # anywhere
    python -m benchmarks.another_device measure MODEL timing.json FOLDER                         # on the device again

`record` is `onnxprune bench --layers`. `cut` meets each ratio by the file alone, every unit of a group counting the
same, as what the outputs lose has no part in the time, and writes the cut models, nothing fitted, with what the file
predicts. `measure` times each against the original in sessions of its own, with the provider and the threads that the
file names, and prints a row of a markdown table: requested and predicted share of the time, the measured one, and how
far it is from the requested.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnx

from benchmarks.latency_budget import SAMPLES
from onnxprune.allocation import budget
from onnxprune.config import PruneConfig
from onnxprune.latency import timing_file
from onnxprune.latency.machine import OnnxRuntime
from onnxprune.latency.recorded import Recorded
from onnxprune.latency.search import KeptUnits, meet
from onnxprune.latency.stopwatch import Stopwatch, feeds_of
from onnxprune.runtime.timing import quick_ratio
from onnxprune.sentence.recording import record_layers
from onnxprune.stages.couple import Coupled, couple
from onnxprune.stages.load import Loaded, load
from onnxprune.stages.time_layers import Timings, recorded_of, stopwatch_of

HEAD = "| network | device | layers | left out | asked for | predicted | measured | off by |"
SESSIONS = 5


def opened(path: str, settings: PruneConfig) -> tuple[Loaded, Coupled]:
    """A model on random inputs."""
    loaded = load(path, None, settings)
    return loaded, couple(loaded, settings)


def allocated(recorded: Recorded, watch: Stopwatch, wanted: float) -> KeptUnits | None:
    """Units that take this share of the time by the file; None where no widths do."""
    curves = [np.linspace(1.0, 0.0, w[-1] + 1) ** 2 * w[-1] for w in watch.positive]
    least = budget.smallest(recorded.cost, watch.positive)
    if least > wanted:
        return None

    def decide(limit: float) -> KeptUnits:
        return budget.allocate(curves, recorded.cost, budget.Budget(limit, watch.positive)).kept

    return meet(decide, recorded.share, wanted, least)[0].kept


def cut(model: str, timing: str, folder: Path, ratios: list[float], settings: PruneConfig) -> None:
    """Write the cut models, and cuts.json beside them."""
    loaded, coupled = opened(model, settings)
    recorded = recorded_of(loaded, coupled, Timings.of([timing], [], settings))
    watch = stopwatch_of(loaded, coupled, settings, OnnxRuntime())
    (device,) = recorded.devices
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for ratio in ratios:
        kept = allocated(recorded, watch, 1.0 - ratio)
        proto = None if kept is None else watch.cut(kept)
        if kept is None or proto is None:
            print(f"{ratio:.0%} is out of reach by {timing}", flush=True)
            continue
        onnx.save(proto, folder / f"{ratio:g}.onnx")
        rows.append({"ratio": ratio, "predicted": recorded.share(kept), "error": device.error})
    (folder / "cuts.json").write_text(json.dumps(rows), encoding="utf-8")


def measure(model: str, timing: str, folder: Path, settings: PruneConfig) -> None:
    """Print the rows."""
    loaded, _ = opened(model, settings)
    (target,) = timing_file.read(timing).targets
    facts = target.machine
    machine = OnnxRuntime(int(facts["threads"]), tuple(facts["providers"].split()))
    feeds = feeds_of(loaded.fit, 1)
    for row in json.loads((folder / "cuts.json").read_text(encoding="utf-8")):
        proto = onnx.load(folder / f"{row['ratio']:g}.onnx")
        pairs = [machine.compare([proto, loaded.original], feeds) for _ in range(SESSIONS)]
        share = float(np.median([quick_ratio(new, old) for new, old in pairs]))
        wanted = 1.0 - row["ratio"]
        print(
            f"| {Path(model).stem} | {target.name} | {len(target.layers)} | {row['error']:.1%} | {wanted:.0%} | "
            f"{row['predicted']:.1%} | {share:.1%} | {abs(share / wanted - 1.0):.1%} |",
            flush=True,
        )


def main() -> None:
    """One of the three steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("record", "cut", "measure"))
    parser.add_argument("model")
    parser.add_argument("timing")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--ratio", type=float, action="append")
    parser.add_argument("--round-to", type=int)
    given = parser.parse_args()
    settings = PruneConfig(samples=SAMPLES, budget="latency", round_to=given.round_to or "auto")
    if given.step == "record":
        name = f"{given.provider}, {given.threads or 'all'} threads"
        options = {"provider": given.provider, "threads": given.threads, "round_to": settings.round_to}
        record_layers(given.model, given.timing, name=name, overwrite=True, **options)
    elif given.step == "cut":
        cut(given.model, given.timing, given.folder, given.ratio or [0.3, 0.5], settings)
    else:
        print(f"{HEAD}\n|---|---" + "|---:" * (HEAD.count("|") - 3) + "|")
        measure(given.model, given.timing, given.folder, settings)


if __name__ == "__main__":
    main()
