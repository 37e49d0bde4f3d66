"""What a sweep costs, in single runs: CPU time of `onnxprune sweep` over that of one `onnxprune IN OUT`, both --fast.

    python -m benchmarks.sweep_cost models/digits_resnet.onnx models/digits_calib.npz

Each is a process of its own, with its start and its children, as a user has it. The single run is that of the middle
ratio. The least of several rounds counts: what other processes take from the cores only adds.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from onnxprune.sentence.sweep import RATIOS, ratios_of


def cpu_seconds(words: Sequence[str]) -> float:
    """What the command takes, its children included."""
    before = _of_children()
    subprocess.run([sys.executable, "-m", "onnxprune", *words], check=True, capture_output=True)
    return _of_children() - before


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("calib")
    parser.add_argument("--test")
    parser.add_argument("--ratios", default=RATIOS)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    ratios = ratios_of(given.ratios)
    middle = ratios[len(ratios) // 2]
    single, several = [], []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        test = ["--test", given.test] if given.test else []
        for _ in range(given.rounds):
            common = ["--calib", given.calib, "--fast", "--overwrite", "--quiet"]
            single.append(cpu_seconds([given.model, str(out / "one.onnx"), "--ratio", f"{middle:g}", *common]))
            words = ["sweep", given.model, str(out / "many"), "--ratios", given.ratios, *common, *test]
            several.append(cpu_seconds(words))
    found = {"model": given.model, "ratios": len(ratios), "single": min(single), "sweep": min(several)}
    print(json.dumps(found | {"single_runs": min(several) / min(single)}, indent=1))


if __name__ == "__main__":
    main()
