"""The largest cut that holds a limit, by bisection and by brute force: every hundredth of the budget, tried in a sweep.

    python -m benchmarks.largest_cut models/digits_resnet.onnx models/digits_calib.npz --test models/digits_test.npz \
        --max-drop 1.0

Both without recovery. Prints JSON: the share that went in either, and the first over the second.
"""

from __future__ import annotations

import argparse
import json

from onnxprune import prune, sweep


def main() -> None:
    """Search, try all, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("calib")
    parser.add_argument("--test")
    parser.add_argument("--max-drop", type=float)
    parser.add_argument("--min-agreement", type=float)
    parser.add_argument("--max-error", type=float)
    parser.add_argument("--ratios", default="0.01:0.95:0.01")
    given = parser.parse_args()
    limits = {k: getattr(given, k) for k in ("max_drop", "min_agreement", "max_error")}
    found = prune(given.model, None, given.calib, test=given.test, largest=True, fast=True, **limits).report
    every = sweep(given.model, None, given.calib, ratios=given.ratios, test=given.test, fast=True, **limits)
    best = every.best
    assert best is not None and best.achieved is not None
    shares = {"bisection": found.achieved, "brute_force": best.achieved, "ratio": found.achieved / best.achieved}
    print(json.dumps({"model": given.model, "limits": limits, **shares}, indent=1))


if __name__ == "__main__":
    main()
