"""Copies that onnxruntime has saved itself, pruned as their originals are: a table.

    python -m benchmarks.saved_copies MODEL... [--seconds 5] [--output docs/reach.md]

Of each model onnxruntime saves a copy at every level of its optimization. Original and copies lose half of the channels
of every group (--uniform 0.5, random samples, no refit), and the pruned copy is timed against the pruned original, in
turns in one process. The table has the prunable share of the MACs of both, the ratio of the times with its interval,
and as a measure of the measurement the ratio of the unpruned copy to the unpruned original.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime as ort

from benchmarks.page import put
from onnxprune import PruneConfig, prune
from onnxprune.benchmark.measure import Comparison, bench
from onnxprune.pipeline import inspect

LEVELS = ("basic", "extended", "all")
_CONFIG = PruneConfig(uniform=0.5, refit="none", samples=16, round_to=8)
_HEAD = "| model | saved at | share of MACs | of the original | time, pruned alike | time, unpruned |"


def main() -> None:
    """Print the table, or write it into a document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--output", type=Path, help="a markdown file whose table `saved-copies` is replaced")
    args = parser.parse_args()
    lines = [_HEAD, "|---" * (_HEAD.count("|") - 1) + "|"]
    for path in args.models:
        for line in rows(path, args.seconds):
            lines.append(line)
            print(line, flush=True)
    if args.output is not None:
        put(args.output, "table", "saved-copies", "\n".join(lines))


def saved(model: onnx.ModelProto | Path, level: str, path: Path) -> onnx.ModelProto:
    """The model as onnxruntime saves it at `path`, at a level of optimization (LEVELS) and for this processor."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}")
    options.optimized_model_filepath = str(path)
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


def rows(path: Path, seconds: float) -> Sequence[str]:
    """A line for each level."""
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as name:
        folder = Path(name)
        share = inspect(path).share_of_macs
        prune(path, folder / "original.onnx", None, config=_CONFIG)
        for level in LEVELS:
            copy, cut = folder / f"{level}.onnx", folder / f"{level}_pruned.onnx"
            saved(path, level, copy)
            prune(copy, cut, None, config=_CONFIG)
            after = bench(folder / "original.onnx", cut, batch=1, seconds=seconds).comparison
            before = bench(path, copy, batch=1, seconds=seconds).comparison
            cells = [
                path.stem,
                level,
                f"{inspect(copy).share_of_macs:.3f}",
                f"{share:.3f}",
                _said(after),
                _said(before),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _said(comparison: Comparison | None) -> str:
    if comparison is None:
        return "-"
    if comparison.interval is None:
        return f"{comparison.ratio:.3f}"
    low, high = comparison.interval
    return f"{comparison.ratio:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
