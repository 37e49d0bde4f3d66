"""Time and memory of a whole run, as a multiple of one plain onnxruntime pass over the same samples.

    python -m benchmarks.run_cost MODEL CALIB [--ratio 0.5] [--repeat 3] [-- more options of onnxprune]

Every repetition is a fresh process. Both figures come from the report of that process, so that they were measured in
the same run; machines are noisy, so the median is given with the range.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("calib")
    parser.add_argument("--ratio", default="0.5")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("more", nargs="*")
    args = parser.parse_args()
    efforts = []
    for _ in range(args.repeat):
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            command = [sys.executable, "-m", "onnxprune", args.model, str(Path(folder) / "out.onnx")]
            command += [
                "--calib",
                args.calib,
                "--ratio",
                args.ratio,
                "--round-to",
                "1",
                "--report",
                str(report),
                "--quiet",
            ]
            subprocess.run([*command, *args.more], check=True)
            efforts.append(json.loads(report.read_text(encoding="utf-8"))["effort"])
    passes = [e["passes"] for e in efforts]
    print(f"whole run: {statistics.median(passes):.1f} plain passes (from {min(passes):.1f} to {max(passes):.1f})")
    print(
        f"           {statistics.median(e['seconds'] for e in efforts):.1f} s, one plain pass "
        f"{statistics.median(e['plain_pass_seconds'] for e in efforts):.2f} s"
    )
    print(f"peak memory: {max(e['peak_memory_bytes'] or 0 for e in efforts) / 2**20:.0f} MiB")
    for stage in efforts[0]["stages"]:
        print(f"  {stage:10s} {statistics.median(e['stages'][stage] for e in efforts):6.2f} s")


if __name__ == "__main__":
    main()
