"""Accuracy after pruning, on a folder of trained models with calibration and test data.

    python -m benchmarks.kit_accuracy KIT [--only PATTERN] [--seeds 1] [--out results.jsonl]

KIT holds `kit.py` (with `for_model(path, split)`) and `models/*.onnx`. Every row of TABLE is one run of the library's
default configuration at `round_to=1`; one line of JSON per run goes to --out, a table to the terminal.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxprune import prune

# (models, ratio, calibration samples, most points that top-1 may lose)
TABLE = [
    ("cifar10_resnet56_*", 0.5, 1024, 2.0),
    ("cifar10_resnet20_*", 0.3, 1024, 2.0),
    ("imagenet_mobilenet_v2_1.0_224", 0.1, 384, 2.5),
    ("imagenet_mobilenet_v2_1.0_224", 0.2, 384, 10.0),
    ("mnist_*", 0.3, 1024, 1.5),
]


def load_kit(folder: Path) -> Any:
    """The kit's own module."""
    spec = importlib.util.spec_from_file_location("kit", folder / "kit.py")
    if spec is None or spec.loader is None:
        sys.exit(f"{folder} holds no kit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answers(path: Path, x: np.ndarray) -> np.ndarray:
    """Top-1 class of every sample, (N,)."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: x[i : i + 50]})[0] for i in range(0, len(x), 50)]
    return np.concatenate([p.reshape(len(p), -1).argmax(1) for p in parts])


def measure(kit: Any, path: Path, ratio: float, samples: int, seed: int) -> dict[str, Any]:
    """One run: prune, then top-1 and agreement on the test split."""
    x, _ = kit.for_model(path, "calib")
    x = x[np.sort(np.random.default_rng(seed).permutation(len(x))[:samples])]
    xt, yt = kit.for_model(path, "test")
    name = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_inputs()[0].name
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        report = prune(path, out, {name: x}, ratio=ratio, round_to=1, seed=seed).report
        before, after = answers(path, xt), answers(out, xt)
    return {
        "model": path.stem,
        "ratio": ratio,
        "seed": seed,
        "samples": len(x),
        "macs_left": 1 - report.achieved,
        "top1_before": 100 * float((before == yt).mean()),
        "top1_after": 100 * float((after == yt).mean()),
        "agreement": 100 * float((before == after).mean()),
        "slice_error": report.checks["slice_against_oracle"],
        "seconds": report.effort.seconds,
        "passes": report.effort.passes,
        "peak_mib": (report.effort.peak_memory_bytes or 0) / 2**20,
    }


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path)
    parser.add_argument("--only", default="*")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    kit = load_kit(args.kit)
    print(f"{'model':34s} ratio  MACs left  top-1 before → after  lost (bar)  agree  passes")
    for pattern, ratio, samples, bar in TABLE:
        for path in sorted(args.kit.glob(f"models/{pattern}.onnx")):
            if not path.match(args.only):
                continue
            for seed in range(args.seeds):
                row = measure(kit, path, ratio, samples, seed)
                lost = row["top1_before"] - row["top1_after"]
                accuracy = f"{row['top1_before']:9.2f} → {row['top1_after']:5.2f}  {lost:+6.2f} ({bar:4.1f})"
                rest = f"{row['agreement']:6.2f}  {row['passes']:6.1f}" + ("" if lost <= bar else "  over the bar")
                print(f"{row['model']:34s} {ratio:5.2f}  {row['macs_left']:9.3f}  {accuracy}  {rest}", flush=True)
                if args.out is not None:
                    with args.out.open("a", encoding="utf-8") as f:
                        f.write(json.dumps(row | {"bar": bar}) + "\n")


if __name__ == "__main__":
    main()
