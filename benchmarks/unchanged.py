"""Whether a change of the code leaves what it does alone: plans, reports and bytes of many runs, before and after.

    python -m benchmarks.unchanged record FILE [--kit FOLDER] [--only PATTERN]
    python -m benchmarks.unchanged compare FILE [--kit FOLDER] [--only PATTERN]

Every model of `models/`, and a dozen networks of a kit (a folder as `benchmarks.accuracy` takes it, with `arch/*.onnx`
beside its models), is described by `inspect` and pruned by every row of RUNS. FILE holds the plan, the report without
what is measured in seconds and bytes of memory, the checksum of the model that was written, or the refusal. `compare`
runs the same again, names each difference, and exits with 1 where there is one. Bytes are only comparable on the same
processor with the same versions, so both are run on one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

import onnxprune
from benchmarks.accuracy.kits import Kit, input_name
from benchmarks.commit import ROOT, commit

# By name: options of `prune`. All methods and refits, attention and branches, budgets and a tolerance.
RUNS: dict[str, dict[str, Any]] = {
    "obs, recovered": {"method": "obs", "recover": 2},
    "obs, fast": {"method": "obs", "fast": True, "round_to": 1, "drop_branches": True},
    "obs, parameters": {"method": "obs", "fast": True, "budget": "params", "attention": "head-dim"},
    "local": {"method": "local", "fast": True, "coefficients": "convex"},
    "local, tolerance": {"method": "local", "fast": True, "tolerance": 0.05},
    "global": {"method": "global", "fast": True, "metric": "gates"},
    "combined": {"method": "combined", "fast": True, "metric": "kronecker", "refit": "greedy"},
    "gfs": {"method": "gfs", "refit": "greedy"},
    "taylor": {"method": "taylor", "refit": "least-squares"},
    "magnitude": {"method": "magnitude", "refit": "scale", "uniform": 0.4},
    "random": {"method": "random", "refit": "none", "target": "tensorrt-int8"},
}
RATIO, SAMPLES = 0.4, 48
TRAINED = (
    "cifar10_resnet20_legacy_bn",
    "kws_mlperftiny_dscnn",
    "mnist_bottleneck_resnet_dynamo",
    "mnist_convnext_dynamo",
    "mnist_densenet_legacy_bn",
    "mnist_groupnorm_prelu_legacy",
    "mnist_mlp_legacy",
    "mnist_mobilenetv2_legacy",
    "mnist_preact_flatten_legacy",
    "mnist_resnext_dynamo",
)
# With random inputs.
UNTRAINED = ("bert_tiny", "llama_tiny_dynamo", "lstm_bi", "shufflenetv2_x", "unet_convt_bn", "vit_tiny_d64")
# Of a report, what differs between two runs of the same code, and what names a file.
VOLATILE = frozenset({"effort", "versions", "timing", "latency", "output", "model", "created"})


def main() -> None:
    """Record, or compare with what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--kit", type=Path, help="a folder with kit.py, models/*.onnx and arch/*.onnx")
    parser.add_argument("--only", default="*", help="a shell pattern on MODEL: RUN")
    args = parser.parse_args()
    known = {} if args.what == "record" else json.loads(args.file.read_text(encoding="utf-8"))["runs"]
    runs: dict[str, Any] = {}
    different = 0
    for name, model, calibration, options in _runs(args.kit):
        if not fnmatch(name, args.only):
            continue
        runs[name] = _described(model) if options is None else _pruned(model, calibration, options)
        if args.what == "compare":
            found = _differences(known[name], runs[name]) if name in known else ["was not recorded"]
            different += bool(found)
            for line in found:
                print(f"{name}: {line}", flush=True)
    if args.what == "record":
        args.file.write_text(json.dumps({"commit": commit(), "runs": runs}, indent=1), encoding="utf-8")
        print(f"{len(runs)} runs recorded")
        return
    print(f"{len(runs)} runs, {different} differ")
    sys.exit(1 if different or not runs else 0)


def _runs(kit: Path | None) -> Iterator[tuple[str, Path, Any, dict[str, Any] | None]]:
    """Name, model, data and options of every run; without options the model is described."""
    models: list[tuple[Path, Any]] = [
        (path, str(ROOT / "models" / "digits_calib.npz")) for path in sorted((ROOT / "models").glob("*.onnx"))
    ]
    if kit is not None:
        trained = Kit(kit)
        for model in TRAINED:
            path = trained.path(model)
            models.append((path, {input_name(path): np.ascontiguousarray(trained.calib(model)[:SAMPLES])}))
        models += [(kit / "arch" / f"{model}.onnx", None) for model in UNTRAINED]
    for path, calibration in models:
        yield f"{path.stem}: inspect", path, None, None
        for run, options in RUNS.items():
            yield f"{path.stem}: {run}", path, calibration, options


def _described(model: Path) -> Any:
    try:
        return {"description": json.loads(onnxprune.inspect(model).to_json()) | {"model": model.name}}
    except onnxprune.OnnxPruneError as e:
        return {"refused": f"{type(e).__name__}: {e}"}


def _pruned(model: Path, calibration: Any, options: dict[str, Any]) -> Any:
    """Plan, report and checksum of the model, or why there is none."""
    share = {} if {"tolerance", "uniform"} & options.keys() else {"ratio": RATIO}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        try:
            done = onnxprune.prune(model, out, calibration, samples=SAMPLES, **share, **options)
        except onnxprune.OnnxPruneError as e:
            return {"refused": f"{type(e).__name__}: {e}"}
        report = {k: v for k, v in json.loads(done.report.to_json()).items() if k not in VOLATILE}
        report["calibration"]["origin"] = report["calibration"]["origin"].rpartition("/")[2]
        digest = hashlib.sha256(out.read_bytes()).hexdigest()
        return {"model": digest, "plan": json.loads(done.plan.to_json()), "report": report}


def _differences(before: Any, after: Any, at: str = "") -> list[str]:
    """One line for each place where two trees of plain data differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(k for k in after if k not in before)]
        return [line for k in keys for line in _differences(before.get(k), after.get(k), f"{at}.{k}" if at else str(k))]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for i, (a, b) in pairs for line in _differences(a, b, f"{at}[{i}]")]
    return [] if before == after else [f"{at}: {str(before)[:80]} -> {str(after)[:80]}"]


if __name__ == "__main__":
    main()
