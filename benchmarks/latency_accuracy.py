"""Accuracy at equal measured latency: a budget of latency against a budget of MACs.

    python -m benchmarks.latency_accuracy MODEL --calib DATA --data TEST --labels KEY [--ratio 0.5] [--seeds 3] [--fast]

The model is pruned with `--budget latency` at each ratio. Then with `--budget macs` at ratios that are corrected,
`--steps` times, until the result takes the same share of the original's time; every result is timed against the
original in turns, as `onnxprune bench` does. Accuracy of the MACs budget at the very same time is interpolated between
its two nearest results, where they lie on either side. Prints a markdown table, in shares of top-1 on the test data.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import prune
from onnxprune.errors import OnnxPruneError
from onnxprune.evaluation import evaluate

HEAD = "| seed | asked | time left | MACs left | top-1 | time left, MACs budget | MACs left | top-1 | at equal time |"


@dataclass(frozen=True)
class Point:
    """A result: shares of the original's time and MACs, and top-1."""

    time: float
    macs: float
    accuracy: float


def point(args: argparse.Namespace, ratio: float, seed: int, budget: str) -> Point:
    """Prune, time and judge."""
    options: dict[str, Any] = {"ratio": ratio, "seed": seed, "budget": budget, "fast": args.fast, "bench": True}
    if budget == "macs" and args.drop_branches:
        options["drop_branches"] = True
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        report = prune(args.model, out, args.calib, **options).report
        judged = evaluate(out, args.data, labels=args.labels)
    assert report.latency is not None and judged.accuracy is not None
    macs = report.after.macs / report.before.macs
    return Point(report.latency["comparison"]["ratio"], macs, judged.accuracy)


def at_time(points: Sequence[Point], time: float) -> float:
    """Accuracy at this share of the time, between the nearest points on either side; of the nearest where one lacks."""
    slower = min((p for p in points if p.time >= time), key=lambda p: p.time, default=None)
    quicker = max((p for p in points if p.time <= time), key=lambda p: p.time, default=None)
    if slower is None or quicker is None:
        return min(points, key=lambda p: abs(p.time - time)).accuracy
    return float(np.interp(time, [quicker.time, slower.time], [quicker.accuracy, slower.accuracy]))


def matched(args: argparse.Namespace, wanted: float, seed: int) -> list[Point]:
    """Results of MACs budgets that come closer and closer to this share of the time."""
    found: list[Point] = []
    limit = wanted
    for _ in range(args.steps):
        limit = min(max(limit, 0.02), 0.98)
        try:
            found.append(point(args, 1.0 - limit, seed, "macs"))
        except OnnxPruneError as e:
            print(f"MACs budget {1 - limit:.1%}: {e}", flush=True)
            break
        # The time falls more slowly than the MACs; beyond the wanted one a little, so that it lies between two.
        limit += 1.2 * (wanted - found[-1].time)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--ratio", type=float, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--drop-branches", action="store_true", help="for the budget of MACs too")
    args = parser.parse_args()
    print(f"{Path(args.model).stem}\n\n{HEAD}\n|" + "---:|" * (HEAD.count("|") - 1), flush=True)
    for ratio in args.ratio or [0.3, 0.5]:
        for seed in range(args.seeds):
            mine = point(args, ratio, seed, "latency")
            others = matched(args, mine.time, seed)
            if not others:
                continue
            near = min(others, key=lambda p: abs(p.time - mine.time))
            cells = [f"{ratio:.0%}", *(f"{v:.1%}" for v in (mine.time, mine.macs, mine.accuracy))]
            cells += [f"{v:.1%}" for v in (near.time, near.macs, near.accuracy, at_time(others, mine.time))]
            print(f"| {seed} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
