"""What pruning and 8-bit integers cost together, and what they save, beside each alone.

    python -m benchmarks.then_int8 MODEL CALIB TEST --labels KEY [--ratio 0.3] [--full] [--seconds 5]

prunes MODEL, quantizes it, does both in one command, and quantizes the pruned model as onnxruntime's own
`quantize_static` does with its defaults ("glued"). A row of a table for each: error on the samples held out, top-1 on
TEST, the file, and onnxruntime's time in turns with the original, in one thread.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from onnxprune import bench, evaluate, prune, quantize

_GLUED_SAMPLES = 128


class _Samples(CalibrationDataReader):
    """The samples of a .npz one by one, for the inputs that the model reads."""

    def __init__(self, path: str, inputs: tuple[str, ...], count: int) -> None:
        with np.load(path) as data:
            values = {k: data[k] for k in inputs}  # each look into the file reads all of it
        self._feeds: Iterator[dict[str, Any]] = iter(
            [{k: v[i : i + 1] for k, v in values.items()} for i in range(min(count, len(values[inputs[0]])))]
        )

    def get_next(self) -> dict[str, Any] | None:
        """The next sample; None behind the last one."""
        return next(self._feeds, None)


def glued(model: Path, output: Path, calib: str) -> None:
    """What a user glues behind a pruned model: onnxruntime's defaults, per channel."""
    inputs = tuple(i.name for i in onnxruntime.InferenceSession(str(model)).get_inputs())
    reader = _Samples(calib, inputs, _GLUED_SAMPLES)
    quantize_static(str(model), str(output), reader, quant_format=QuantFormat.QDQ, per_channel=True)


def rows(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, ...]]:
    """(what, error held out, error on the test data, top-1, size, time over the original's) of each."""
    files = {k: folder / f"{k}.onnx" for k in ("pruned", "int8", "both", "glued")}
    given = {"samples": args.samples, "seed": args.seed}
    cut = given | {"ratio": args.ratio, "fast": not args.full}
    first = prune(args.model, files["pruned"], args.calib, **cut)
    second = quantize(args.model, files["int8"], args.calib, **given)
    third = prune(args.model, files["both"], args.calib, then="int8", **cut)
    glued(files["pruned"], files["glued"], args.calib)
    errors = {
        "pruned": first.report.output_error,
        "int8": second.report.output_error,
        "both": third.report.output_error,
        "glued": None,
    }
    size = Path(args.model).stat().st_size
    before = evaluate(args.model, args.test, against=args.model, labels=args.labels)
    yield "original", "", "", f"{before.accuracy:.1%}", f"{size / 1024:.0f} KiB", "1"
    for name, path in files.items():
        found = evaluate(path, args.test, against=args.model, labels=args.labels)
        timed = bench(args.model, path, seconds=args.seconds, threads=1)
        ratio = timed.comparison.ratio if timed.comparison else float("nan")
        held = errors[name]
        yield (
            name,
            "" if held is None else f"{held:.2%}",
            f"{found.output_error:.2%}",
            f"{found.accuracy:.1%}",
            f"{path.stat().st_size / 1024:.0f} KiB",
            f"{ratio:.2f}",
        )
    row = third.report.fewer_bits
    print(f"ranges {row.ranges}, equalised {row.equalised}, in float {[x.name for x in row.floating]}")
    together = errors["both"] / (errors["pruned"] + errors["int8"])
    print(f"error of both over the sum of both alone: {together:.2f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("calib")
    parser.add_argument("test")
    parser.add_argument("--labels", required=True)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--full", action="store_true", help="with recovery")
    args = parser.parse_args()
    print("| | error, held out | error, test | top-1 | file | time, 1 thread |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(args, Path(folder)):
            print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
