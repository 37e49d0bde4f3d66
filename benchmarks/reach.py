"""What of each model can be pruned, and why the rest cannot: a table.

    python -m benchmarks.reach FOLDER... [--prune] [--output docs/reach.md]

FOLDER holds ONNX files. With --prune half of the MACs of each is removed as well (16 random samples, --round-to 1), and
the largest relative difference between the cut model and the masked oracle is a column, with the number of sizes of
symbolic dimensions that the result was run at. Each model runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PRUNE = ("--ratio", "0.5", "--round-to", "1", "--samples", "16", "--refit", "least-squares", "--quiet")
TIME_LIMIT = 1800
REASONS = 3


def main() -> None:
    """Print the table, or write it into a document between its two marks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--prune", action="store_true", help="also remove half of the MACs of each")
    parser.add_argument("--output", type=Path, help="a markdown file whose table is replaced")
    args = parser.parse_args()
    head = "| model | parameters | MACs | groups | " + ("slice against oracle | sizes | " if args.prune else "")
    lines = [head + "what stays, and why |", "|---" * (head.count("|")) + "|"]
    for path in sorted(p for folder in args.folders for p in folder.glob("*.onnx")):
        lines.append(row(path, prune=args.prune))
        print(lines[-1], flush=True)
    if args.output is not None:
        write(args.output, "\n".join(lines))


def row(path: Path, *, prune: bool) -> str:
    """One line of the table."""
    name = f"{path.parent.name}/{path.stem}"
    done = _tool("inspect", str(path), "--json")
    if done.returncode:
        return f"| {name} | - | - | - | {'- | - | ' if prune else ''}{_last_line(done)} |"
    found = json.loads(done.stdout)
    cells = [name, _share(found["share"]), _share(found["share_of_macs"]), str(len(found["groups"]))]
    if prune:
        cells += _pruned(path)
    return "| " + " | ".join([*cells, why(found["pinned"])]) + " |"


def why(pinned: list[dict[str, Any]]) -> str:
    """The commonest reasons, with names of tensors left out, by the channels that they keep."""
    reasons: dict[str, int] = {}
    for p in pinned:
        text = re.sub(r" '[^']*'", "", p["reason"])
        text = re.sub(r" \(\w+ \)", "", text)
        reasons[f"{p['operator']}: {text}"] = reasons.get(f"{p['operator']}: {text}", 0) + p["channels"]
    most = sorted(reasons, key=lambda r: -reasons[r])
    shown = "; ".join(f"{r} ({reasons[r]})" for r in most[:REASONS])
    return shown + (f"; {len(most) - REASONS} more" if len(most) > REASONS else "") if most else "nothing stays"


def _pruned(path: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = _tool(str(path), str(Path(folder) / "out.onnx"), *PRUNE, "--report", str(report))
        if done.returncode:
            return [f"exit {done.returncode}: {_last_line(done)}", "-"]
        checks = json.loads(report.read_text(encoding="utf-8"))["checks"]
        return [f"{checks['slice_against_oracle']:.1e}", str(checks["input_sizes_run"])]


def _share(value: float) -> str:
    return f"{value:.4f}" if value in (0.0, 1.0) else f"{min(max(value, 0.0001), 0.9999):.4f}"


def _tool(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxprune", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip() or done.stdout.strip()).splitlines()[-1].replace("|", "/")


def write(path: Path, table: str) -> None:
    """Replace what stands between <!-- table --> and <!-- end of table -->."""
    text = path.read_text(encoding="utf-8")
    before, rest = text.split("<!-- table -->", 1)
    _, after = rest.split("<!-- end of table -->", 1)
    path.write_text(f"{before}<!-- table -->\n{table}\n<!-- end of table -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
