"""Accuracy after pruning, on a folder of trained models with calibration and test data.

    python -m benchmarks.accuracy KIT --out FILE.jsonl --suite bars methods calibration peers [--jobs 2]
    python -m benchmarks.accuracy KIT --made FOLDER --make --out FILE.jsonl --suite bars --models minilm vit decoder ocr
    python -m benchmarks.accuracy KIT --out FILE.jsonl --models 'cifar10_*' --methods obs local --ratios 0.3 0.5
    python -m benchmarks.accuracy --out docs/accuracy/results-0.11.jsonl --also docs/accuracy/results-0.9.jsonl \\
        docs/accuracy/results.jsonl docs/accuracy/decoder.jsonl --render docs/accuracy.md

KIT holds `kit.py` (with `for_model(path, split)`) and `models/*.onnx`. Networks that are no classifiers of the kit
(benchmarks/accuracy/networks.py) lie in the folder --made; --make exports, fetches or trains those that are not there.
Without --suite every combination of what the other options name is run. Each run is a process of its own and a line of
FILE; what has a line, there or in a file of --also, is not run again, so that the same command takes up where it was
stopped. The test split is for measuring alone. --render replaces the tables and plots of a page by those of the results
(plots need the extra `bench`). The peers need the extra `peers`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks.accuracy.execute import Limits, execute
from benchmarks.accuracy.kits import Kit
from benchmarks.accuracy.networks import NETWORKS, Folders, Networks
from benchmarks.accuracy.runs import Row, Run, append, missing, read
from benchmarks.accuracy.sources import SOURCES
from benchmarks.accuracy.suites import SUITES, Choice, Grid
from benchmarks.accuracy.tools import TOOLS, not_installed

# Figures of a row that are said once it is there.
TOLD = ("top1_before", "top1_after", "perplexity_before", "perplexity_after", "read_before", "read_after")
TOLD += ("nearest10", "agreement", "output_error")
# Options that take lists, and the fields of a run that they are for.
LISTS = {
    "tools": "tool",
    "methods": "method",
    "refits": "refit",
    "ratios": "ratio",
    "samples": "samples",
    "sources": "source",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the page."""
    args = parser().parse_args(arguments)
    if args.kit is None and args.render is None:
        sys.exit("nothing to do: give a KIT to run, or --render PAGE, or both")
    if args.kit is not None:
        run_all(args)
    if args.render is not None:
        from benchmarks.accuracy.page import TABLES, render

        unknown = [n for n in args.only if n not in TABLES]
        if unknown:
            sys.exit(f"there is no table {unknown[0]!r}; there are {', '.join(TABLES)}")
        render(args.render, [row for path in (*args.also, args.out) for row in read(path).values()], args.only)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("kit", type=Path, nargs="?", metavar="KIT")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="the results, a JSON line per run")
    p.add_argument("--also", nargs="+", type=Path, default=[], metavar="FILE", help="more results, which are only read")
    p.add_argument("--made", type=Path, metavar="FOLDER", help=f"of networks that are made: {', '.join(NETWORKS)}")
    p.add_argument("--make", action="store_true", help="make those that are wanted and not there")
    p.add_argument("--suite", nargs="+", choices=list(SUITES), default=[], metavar="SUITE", help=", ".join(SUITES))
    p.add_argument("--models", nargs="+", default=["*"], metavar="PATTERN", help="shell patterns; also narrows suites")
    p.add_argument("--exports", choices=("one", "all"), default="one", help="of the networks of a suite")
    p.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N - 1; also of suites")
    lists = p.add_argument_group("what to combine; of a suite, what to leave in")
    lists.add_argument("--tools", nargs="+", choices=list(TOOLS), metavar="TOOL", help=", ".join(TOOLS))
    lists.add_argument("--methods", nargs="+", metavar="METHOD")
    lists.add_argument("--refits", nargs="+", metavar="REFIT")
    lists.add_argument("--ratios", nargs="+", type=float, metavar="RATIO")
    lists.add_argument("--samples", nargs="+", type=int, metavar="N")
    lists.add_argument("--sources", nargs="+", metavar="SOURCE", help=f"{', '.join(SOURCES)}, or another data set")
    p.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more options of the tool")
    p.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores")
    p.add_argument("--limit", type=float, default=3600.0, metavar="SECONDS", help="of one run")
    p.add_argument("--retry", action="store_true", help="run again what failed")
    p.add_argument("--again", action="store_true", help="run again what has a result")
    p.add_argument("--render", type=Path, metavar="PAGE", help="replace the tables and plots of this page")
    p.add_argument("--only", nargs="+", default=[], metavar="TABLE", help="replace these tables of the page alone")
    return p


def wanted(args: argparse.Namespace, kit: Kit) -> Iterator[Run]:
    """The runs that were asked for."""
    choice = Choice(args.models, args.exports, args.seeds)
    lists = {name: getattr(args, name) for name in LISTS if getattr(args, name) is not None}
    if not args.suite:
        yield from Grid(**lists, options=dict(option(text) for text in args.set)).runs(kit, choice)
    for name in args.suite:
        for run in SUITES[name](kit, choice):
            if all(getattr(run, LISTS[k]) in values for k, values in lists.items()):
                yield run


def option(text: str) -> tuple[str, Any]:
    """(key, value) of KEY=VALUE; the value is JSON where it reads as such, and text where it does not."""
    key, equals, value = text.partition("=")
    if not equals:
        sys.exit(f"--set wants KEY=VALUE, not {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def run_all(args: argparse.Namespace) -> None:
    """Add a line to the results for every run that has none."""
    if args.jobs < 1:
        sys.exit(f"--jobs is {args.jobs}; it must be at least 1")
    folders = Folders(args.kit, args.made)
    networks = Networks(folders)
    named = [n for n in NETWORKS if any(fnmatch(n, p) for p in args.models)]
    if args.make:
        if args.made is None:
            sys.exit("--make needs the folder that it writes into (--made)")
        networks.make(named)
    for why in filter(None, map(networks.missing, named)):
        print(f"left out: {why}", flush=True)
    runs = list(wanted(args, networks))
    if not runs:
        sys.exit(f"no model of {args.kit} fits these patterns and suites")
    todo = missing(runs, known(args), retry=args.retry, again=args.again)
    absent = not_installed({r.tool for r in todo})
    if absent:
        sys.exit(f"not installed: {', '.join(absent)}; `pip install '.[peers]'` brings them, or leave the peers out")
    print(f"{len(todo)} of {len({r.key for r in runs})} runs to do", flush=True)
    for n, row in enumerate(execute(todo, folders, Limits(args.jobs, args.limit)), 1):
        append(args.out, row)
        print(f"[{n}/{len(todo)}] {row['key']}: {said(row)}", flush=True)


def known(args: argparse.Namespace) -> dict[str, Row]:
    """What was measured, by key."""
    rows: dict[str, Row] = {}
    for path in (*args.also, args.out):
        rows |= read(path)
    return rows


def said(row: Row) -> str:
    """What a run found, in a few words."""
    if "failure" in row:
        return f"failed: {row['failure']}"
    told = [f"{k.replace('_', ' ')} {row[k]:.4g}" for k in TOLD if k in row]
    return f"{', '.join(told)}, MACs left {row['macs_left']:.3f}, {row['seconds']:.0f} s"


if __name__ == "__main__":
    main()
