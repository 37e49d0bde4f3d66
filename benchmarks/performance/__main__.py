"""Time and memory of whole runs, as multiples of one plain onnxruntime pass over the same samples; speed of results.

    python -m benchmarks.performance WORK --out FILE.jsonl [--suite networks speed growth] [--render PAGE.md]
    python -m benchmarks.performance WORK --out FILE.jsonl --suite networks --models resnet50 --samples 256
    python -m benchmarks.performance --out docs/performance/results.jsonl --render docs/performance.md

Networks and images are made in the folder WORK by a script (random weights, images of noise), which needs the extra
`peers` for the suites `networks` and `speed`. Every run is a process of its own and a line of FILE, one at a time; what
has a line is not run again, so that the same command takes up where it was stopped. `speed` prunes half of the MACs,
and half of the latency, at widths that are multiples of 8, and times the result against the original (`--bench`). What
stands behind `--options` goes to onnxprune as it is. Variables of OpenBLAS in the environment are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.accuracy.runs import append, plain, read
from benchmarks.page import fill
from benchmarks.performance import tables
from benchmarks.performance.measure import Case, Row, measure
from benchmarks.performance.networks import MODELS

SAMPLES = (256, 2048)
WIDTH, DEPTH, COUNT = 16, 2, 128
WIDER, DEEPER, MORE = (1, 2, 4), (1, 2, 4), (1, 4, 16)
REPEATS = 3
SUITES = ("networks", "speed", "growth")
SPEED_SAMPLES = 64


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the page."""
    args = parser().parse_args(arguments)
    if args.work is None and args.render is None:
        sys.exit("nothing to do: give a folder WORK to run in, or --render PAGE, or both")
    if args.work is not None:
        known = {} if args.again else read(args.out)
        todo = [c for c in dict.fromkeys(cases(args)) if c.key not in known]
        for n, case in enumerate(todo, 1):
            row = plain(measure(case, args.work, args.limit))
            append(args.out, row)
            print(f"[{n}/{len(todo)}] {said(row)}", flush=True)
    if args.render is not None:
        rows = list(read(args.out).values())
        fill(args.render, {"table": {k: lambda make=make: make(rows) for k, make in tables.TABLES.items()}})


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.performance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("work", type=Path, nargs="?", metavar="WORK")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="the results, a JSON line per run")
    p.add_argument("--suite", nargs="+", choices=SUITES, default=list(SUITES))
    p.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL", help=", ".join(MODELS))
    p.add_argument("--samples", nargs="+", type=int, default=list(SAMPLES), metavar="N", help="of the networks")
    p.add_argument("--repeats", type=int, default=REPEATS, metavar="N", help="runs of each size in the suite growth")
    p.add_argument("--limit", type=float, default=7200.0, metavar="SECONDS", help="of one run")
    p.add_argument("--again", action="store_true", help="run again what has a result")
    p.add_argument("--render", type=Path, metavar="PAGE", help="replace the tables of this page")
    p.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="the rest goes to onnxprune")
    return p


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """The runs that were asked for."""
    options = tuple(args.options)
    if "networks" in args.suite:
        for samples in args.samples:
            for model in args.models:
                yield Case(model, samples, options=options)
    if "speed" in args.suite:
        for model in args.models:
            for budget in ("macs", "latency"):
                yield Case(model, SPEED_SAMPLES, options=("--round-to", "8", "--budget", budget, "--bench", *options))
    if "growth" in args.suite:
        sizes = [(WIDTH * w, DEPTH, COUNT) for w in WIDER]
        sizes += [(WIDTH, DEPTH * d, COUNT) for d in DEEPER] + [(WIDTH, DEPTH, COUNT * n) for n in MORE]
        for repeat in range(args.repeats):
            for width, depth, samples in sizes:
                yield Case("cnn", samples, width, depth, options, repeat)


def said(row: Row) -> str:
    """What a run found, in a few words."""
    if "failure" in row:
        return f"{row['key']}: failed: {row['failure']}"
    return (
        f"{row['key']}: {row['passes']:.1f} passes of {row['plain_pass_seconds']:.2f} s, "
        f"peak {row['peak_memory_bytes'] / 1e6:,.0f} MB"
    )


if __name__ == "__main__":
    main()
