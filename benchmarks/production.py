"""Models that others ship, on made data: `inspect`, 30 % of the MACs removed, and the result in two runtimes.

    python -m benchmarks.production FOLDER [--only PATTERN] [--samples 64] [--output docs/reach.md] [--details FILE]

FOLDER holds ONNX files. Their data are made from their inputs by the table in `benchmarks/made_data.py`. Each model is
inspected without data (timed) and pruned with `--ratio 0.3 --fast`, both with `--state` where it has states; the result
is held against the file that was given: the same interface, ONNX's checker with all shapes, and the same values in
onnxruntime and in OpenVINO (`pip install openvino`). Exits with 1 where a model fails.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import made_data
from benchmarks.page import put
from benchmarks.reach import why
from tests.fuzz.commands import unlike

RATIO = "0.3"
MOST_PASSES = 40
MOST_SECONDS = 10.0
SHARE = 0.95
# Of the largest entry of an output: two runtimes add up in different orders.
TOLERANCE = 1e-3
TIME_LIMIT = 3600
# Of what is small there are more samples, as whoever has such data has.
_SMALL, _MORE = 1 << 14, 4


@dataclass
class Row:
    """What came of one model; empty fields were not reached."""

    model: str
    kinds: Mapping[str, str] = field(default_factory=dict)
    inspect_seconds: float | None = None
    inspect_cpu_seconds: float | None = None
    share: float | None = None
    why: str = ""
    code: int | None = None
    error: str = ""
    achieved: float | None = None
    passes: float | None = None
    slice_error: float | None = None
    interface: str = ""
    checker: str = ""
    runtimes: str = ""
    failures: list[str] = field(default_factory=list)


def row_of(path: Path, samples: int) -> Row:
    """All that is done with one model."""
    row = Row(path.stem, made_data.described(path))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start, before = time.perf_counter(), _computed()
        states = [x for o, i in made_data.states_of(path) for x in ("--state", f"{o}={i}")]
        done = _tool("inspect", str(path), "--json", *states)
        row.inspect_seconds, row.inspect_cpu_seconds = time.perf_counter() - start, _computed() - before
        if done.returncode:
            row.failures.append(f"inspect: {_last_line(done)}")
        else:
            found = json.loads(done.stdout)
            row.share, row.why = found["share_of_macs"], why(found["pinned"])
        count = samples * (_MORE if made_data.entries(path) < _SMALL else 1)
        data, feeds = made_data.make(path, folder, count)
        out, report = folder / "out.onnx", folder / "report.json"
        given = ("--calib", str(data), "--ratio", RATIO, "--fast", "--quiet", "--report", str(report))
        done = _tool(str(path), str(out), *given, *states)
        row.code = done.returncode
        if done.returncode:
            row.error = _last_line(done)
            row.failures.append(row.error)
            return row
        said = json.loads(report.read_text(encoding="utf-8"))
        row.achieved = 1 - said["after"]["macs"] / said["before"]["macs"]
        row.passes, row.slice_error = said["effort"]["passes"], said["checks"]["slice_against_oracle"]
        _judge(row, path, out, feeds)
    return row


def _judge(row: Row, path: Path, out: Path, feeds: Mapping[str, Any]) -> None:
    """What the result is worth to someone who loads it."""
    row.interface = unlike(str(path), str(out)) or "equal"
    row.checker = _checked(out)
    if row.checker != "passes":
        before = _checked(path)
        row.checker = f"{row.checker}; the original: {before}"
    row.runtimes = _compared(path, out, feeds)
    if row.interface != "equal":
        row.failures.append(row.interface)
    if "the original: passes" in row.checker:
        row.failures.append(f"checker: {row.checker}")
    if row.runtimes.startswith("differ"):
        row.failures.append(row.runtimes)
    if row.passes is not None and row.passes > MOST_PASSES:
        row.failures.append(f"{row.passes:.0f} plain passes")
    if row.share is not None and row.share < SHARE:
        row.failures.append(f"share {row.share:.4f}")


def _checked(path: Path) -> str:
    """What onnx's checker says of a file, with all shapes."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as e:  # noqa: BLE001  whatever it is, it is what the table says
        return " ".join(str(e).split())[:120]
    return "passes"


def _compared(path: Path, out: Path, feeds: Mapping[str, Any]) -> str:
    """How far the two runtimes are apart on the result, of the largest entry of an output; "differ" where too far.

    Products of integers are rounded where the runtimes see fit, so the original's own distance counts as well.
    """
    try:
        import openvino  # noqa: F401
    except ImportError:
        return "OpenVINO is not installed"
    try:
        before = _gap(path, feeds)
    except Exception as e:  # noqa: BLE001  whatever it is, it is what the table says
        return f"OpenVINO does not take the original: {_brief(e)}"
    try:
        after = _gap(out, feeds)
    except Exception as e:  # noqa: BLE001
        return f"differ: OpenVINO takes the original, not the result: {_brief(e)}"
    text = f"{after:.0e}" if before <= TOLERANCE else f"{after:.0e}, on the original {before:.0e}"
    return text if after <= max(TOLERANCE, 2 * before) else f"differ: {text}"


def _gap(path: Path, feeds: Mapping[str, Any]) -> float:
    return max(map(difference, _in_onnxruntime(path, feeds), _in_openvino(path, feeds)), default=0.0)


def difference(a: Any, b: Any) -> float:
    """The largest difference of two outputs over the largest entry of the first; infinite where the shapes differ."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        return float("inf")
    return float(np.abs(a - b).max(initial=0) / max(np.abs(a).max(initial=0), 1e-30))


def _in_onnxruntime(path: Path, feeds: Mapping[str, Any]) -> list[Any]:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def _in_openvino(path: Path, feeds: Mapping[str, Any]) -> list[Any]:
    import openvino

    core = openvino.Core()
    # Else some processors compute in bfloat16.
    model = core.read_model(str(path))
    # Some operators have kernels for known shapes alone.
    model.reshape({port: np.shape(feeds[_named(port, feeds)]) for port in model.inputs})
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    found = request.infer({port: feeds[_named(port, feeds)] for port in compiled.inputs})
    return [np.array(found[o]) for o in compiled.outputs]


def _named(port: Any, feeds: Mapping[str, Any]) -> str:
    return next(n for n in port.get_names() if n in feeds)


def _brief(error: Exception) -> str:
    lines = [x.strip() for x in str(error).splitlines() if x.strip()]
    return (lines[-1] if lines else type(error).__name__)[:100].replace("|", "/")


def _computed() -> float:
    """Seconds that the processes started from here have computed, on all cores together."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _tool(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxprune", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip() or "no word").splitlines()[-1].replace("|", "/")


def table(rows: list[Row]) -> str:
    """One line per model, then why some have less to prune, and what failed."""
    head = "model|exit|share of MACs|removed|slice against oracle|interface|checker|onnxruntime and OpenVINO"
    columns = [*head.split("|"), "plain passes", "`inspect`"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for r in rows:
        cells = [
            r.model,
            "-" if r.code is None else str(r.code),
            _number(r.share, ".4f"),
            _number(r.achieved, ".1%"),
            _number(r.slice_error, ".1e"),
            r.interface or "-",
            r.checker or "-",
            r.runtimes or "-",
            _number(r.passes, ".0f"),
            f"{_number(r.inspect_seconds, '.1f')} s ({_number(r.inspect_cpu_seconds, '.1f')} s)",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for r in rows:
        if r.share is not None and r.share < SHARE:
            lines += ["", f"*{r.model}* keeps: {r.why}."]
    made = ["", "Made data: " + "; ".join(f"{r.model}: {_kinds(r.kinds)}" for r in rows) + "."]
    return "\n".join([*lines, *made])


def _kinds(kinds: Mapping[str, str]) -> str:
    return ", ".join(dict.fromkeys(kinds.values()))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def main() -> None:
    """Go through the folder, then print the table or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of the names of the files")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--output", type=Path, help="a page whose block `production` is replaced")
    parser.add_argument("--details", type=Path, help="JSON with every result")
    args = parser.parse_args()
    rows = []
    for path in sorted(p for p in args.folder.glob("*.onnx") if fnmatch(p.stem, args.only)):
        rows.append(row_of(path, args.samples))
        print(json.dumps(asdict(rows[-1])), flush=True)
    if args.details is not None:
        args.details.write_text(json.dumps([asdict(r) for r in rows], indent=1), encoding="utf-8")
    text = table(rows)
    print(text)
    if args.output is not None:
        put(args.output, "table", "production", text)
    sys.exit(any(r.failures for r in rows))


if __name__ == "__main__":
    main()
