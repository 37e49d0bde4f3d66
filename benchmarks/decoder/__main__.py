"""A small decoder trained on the sources of Python's standard library, and its perplexity after pruning.

    python -m benchmarks.decoder FOLDER --train
    python -m benchmarks.decoder FOLDER --out docs/accuracy/decoder.jsonl [--tools onnxprune flap] [--seeds 3]
    python -m benchmarks.decoder --out docs/accuracy/decoder.jsonl --render docs/accuracy.md

--train writes the model and its text into FOLDER, in about ten minutes of two cores; it needs torch and tokenizers.
Then every run is a process of its own and a line of FILE, and what has a line is not run again. Calibration is text
that the decoder was trained on, without labels; perplexity is that of the next token on files that were held out, as
`onnxprune eval --metric perplexity` measures it. onnxsim needs the extra `peers`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.accuracy.execute import Limits, execute
from benchmarks.accuracy.runs import DEFAULT, OURS, Row, Run, append, missing, read
from benchmarks.accuracy.tables import by_seed, failures, grouped, spread, succeeded, table
from benchmarks.decoder.compare import MODEL, TOOLS, measure
from benchmarks.page import put

RATIOS, SAMPLES, SEEDS = (0.2, 0.3), 512, 3
FAST: dict[str, Any] = {"fast": True}
# (tool, method, refit, options)
WAYS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    (OURS, DEFAULT, DEFAULT, {}),
    (OURS, DEFAULT, DEFAULT, FAST),
    (OURS, "magnitude", "none", FAST),
    ("magnitude", "uniform", "none", {}),
    ("magnitude", "adaptive", "none", {}),
    ("flap", "adaptive", "bias", {}),
    ("onnxsim", "magnitude", "none", {}),
    ("onnxsim", "magnitude", "ridge", {}),
    ("onnxsim", "magnitude", "blocks", {}),
    ("onnxsim", "wanda", "none", {}),
)
TABLE = "decoder"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, run what is missing, then write the page."""
    args = parser().parse_args(arguments)
    if args.train:
        if args.folder is None:
            sys.exit("--train needs a FOLDER to write into")
        from benchmarks.decoder.train import make

        make(args.folder)
    if args.out is None:
        if not args.train:
            sys.exit("nothing to do: give --train, or --out FILE for results")
        return
    if args.folder is not None:
        if not (args.folder / MODEL).exists():
            sys.exit(f"{args.folder} holds no {MODEL}: give --train too")
        run_all(args)
    if args.render is not None:
        put(args.render, "table", TABLE, f"\n{rendered(list(read(args.out).values()))}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.decoder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("folder", type=Path, nargs="?", metavar="FOLDER")
    p.add_argument("--train", action="store_true", help="make the decoder anew")
    p.add_argument("--out", type=Path, metavar="FILE", help="the results, a JSON line per run")
    p.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(TOOLS), metavar="TOOL")
    p.add_argument("--ratios", nargs="+", type=float, default=RATIOS, metavar="RATIO", help="shares of MACs to remove")
    p.add_argument("--samples", type=int, default=SAMPLES, metavar="N", help="calibration sequences")
    p.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help="seeds 0 to N - 1")
    p.add_argument("--limit", type=float, default=3600.0, metavar="SECONDS", help="of one run")
    p.add_argument("--retry", action="store_true", help="run again what failed")
    p.add_argument("--again", action="store_true", help="run again what has a result")
    p.add_argument("--render", type=Path, metavar="PAGE", help="replace the table of this page")
    return p


def runs(args: argparse.Namespace) -> Iterator[Run]:
    """What is asked for, the first seed of everything first; of what reads no samples that one alone."""
    for seed in range(args.seeds):
        for ratio in args.ratios:
            for tool, method, refit, options in WAYS:
                blind = tool == "magnitude" or (tool == "onnxsim" and method == "magnitude" and refit == "none")
                if tool in args.tools and not (seed and blind):
                    yield Run("decoder", ratio, tool, method, refit, seed, args.samples, options=options)


def run_all(args: argparse.Namespace) -> None:
    """Add a line to the results for every run that has none."""
    todo = missing(runs(args), read(args.out), retry=args.retry, again=args.again)
    for n, row in enumerate(execute(todo, args.folder, Limits(1, args.limit), measure), 1):
        append(args.out, row)
        told = f"failed: {row['failure']}" if "failure" in row else f"perplexity × {_times(row):.3f}"
        print(f"[{n}/{len(todo)}] {row['key']}: {told}", flush=True)


def rendered(rows: Sequence[Row]) -> str:
    """The table, means over seeds, and what failed."""
    head = ["MACs removed", "tool", "selection", "refit", "MACs left", "parameters left", "perplexity before", "after"]
    head += ["more perplexity, %", "tokens kept, %", "seeds", "seconds"]
    lines = []
    kinds = grouped(succeeded(rows), lambda r: (r["ratio"], _place(r)))
    for (ratio, place), found in sorted(kinds.items()):
        tool, method, refit, options = WAYS[place]
        if tool == OURS and method == DEFAULT:
            method = "fast" if options else "default"
        more = by_seed(found, lambda r: 100 * (_times(r) - 1))
        cells = [f"{ratio:.0%}", tool, method, "" if refit == DEFAULT else refit]
        cells += [f"{mean(r[k] for r in found):.3f}" for k in ("macs_left", "params_left")]
        cells += [f"{mean(r['perplexity_before'] for r in found):.2f}", spread([r["perplexity_after"] for r in found])]
        cells += [spread(more), spread([r["agreement"] for r in found]), str(len(more))]
        lines.append([*cells, f"{mean(r['seconds'] for r in found):.0f}"])
    return table(head, lines) + failures(rows)


def _times(row: Row) -> float:
    return float(row["perplexity_after"] / row["perplexity_before"])


def _place(row: Row) -> int:
    return next(
        k
        for k, (tool, method, refit, options) in enumerate(WAYS)
        if (tool, method, refit, options) == (row["tool"], row["method"], row["refit"], row["options"])
    )


if __name__ == "__main__":
    main()
