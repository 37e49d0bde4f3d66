"""One run of the command line in a process of its own, and what it cost."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.execute import cores
from benchmarks.performance import networks

Row = dict[str, Any]
RATIO = 0.5
_SAID = 300


@dataclass(frozen=True)
class Case:
    """A network, so many samples, and further options of the command line.

    network: a name in `networks.MODELS`, or "cnn" with its width and depth. repeat: which of several equal runs.
    """

    network: str
    samples: int
    width: int = 0
    depth: int = 0
    options: tuple[str, ...] = ()
    repeat: int = 0

    @property
    def key(self) -> str:
        """Of its row."""
        size = f" width {self.width} depth {self.depth}" if self.network == "cnn" else ""
        parts = [f"{self.network}{size} samples {self.samples}", *self.options, *(["again"] * self.repeat)]
        return " ".join(parts)

    def model(self, work: Path) -> Path:
        """Its file, made where it is missing."""
        if self.network == "cnn":
            path = work / f"cnn_{self.width}_{self.depth}.onnx"
            return made(path, lambda part: networks.residual_cnn(part, self.width, self.depth))
        return made(work / f"{self.network}.onnx", lambda part: networks.well_known(self.network, part))

    def images(self, work: Path) -> Path:
        """The file of its samples, made where it is missing."""
        size = networks.CNN_SIZE if self.network == "cnn" else networks.SIZE
        path = work / f"noise_{size}_{self.samples}.npy"
        return made(path, lambda part: networks.images(part, self.samples, size))


def made(path: Path, write: Callable[[Path], None]) -> Path:
    """The file at `path`, written where there is none; a write that stops half-way leaves none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"part-{path.name}")
        write(part)
        part.replace(path)
    return path


def measure(case: Case, work: Path, seconds: float) -> Row:
    """The row of a case: effort as the program reports it, or its failure in words."""
    model, images = case.model(work), case.images(work)
    row: Row = {"key": case.key, **asdict(case), "model_bytes": model.stat().st_size, "cores": cores()}
    row["processor_load"] = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "onnxprune", str(model), str(Path(folder) / "out.onnx"), "--fast", "--quiet"]
        command += ["--calib", str(images), "--ratio", str(RATIO), "--report", str(report), *case.options]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        try:
            # OpenBLAS chooses its kernels itself, as it does for a user; a machine may ask for others.
            env = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
            ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, env=env)
        except subprocess.TimeoutExpired:
            return row | {"failure": f"did not finish in {seconds:.0f} s"}
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if ran.returncode:
            said = (ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1]
            return row | {"failure": said[:_SAID]}
        found = json.loads(report.read_text(encoding="utf-8"))
    if found["latency"] is not None:
        before_ms, after_ms = (1e3 * x["median"] for x in found["latency"]["models"])
        row["latency"] = {"before_ms": before_ms, "after_ms": after_ms, **found["latency"]["comparison"]}
    if found["timing"] is not None:
        row["timing"] = {k: found["timing"][k] for k in ("measured", "predicted")}
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return row | {
        **found["effort"],
        "processor_seconds": processor,
        "macs": found["before"]["macs"],
        "parameters": found["before"]["parameters"],
        "macs_left": found["after"]["macs"] / found["before"]["macs"],
        "versions": found["versions"],
    }
