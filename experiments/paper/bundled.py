"""The page reduced to the models that come with the source, and how long that takes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from experiments.paper import ablation
from experiments.paper.ablation import Run
from experiments.paper.networks import Bundled, Kit
from experiments.paper.records import Records, Row
from experiments.paper.scope import DIGITS_RESNET

SECTION = "start"
ROOT = Path(__file__).resolve().parents[2]
# As a reader types them, from a clone.
PAGE = "python -m experiments.paper --bundled --output FOLDER"
PRUNE = "python -m onnxprune models/digits_resnet.onnx FOLDER/slim.onnx --calib models/digits_calib.npz --ratio 0.5"
_METHODS = ("random", "taylor", "gfs", "obs", "local", "global", "combined")


def runs(quick: bool) -> Iterator[Run]:
    """Section 9's, few enough for a minute."""
    for method in ("local",) if quick else _METHODS:
        for refit in (
            ("none",) if method in ("random", "taylor") else ("least-squares",) if method == "obs" else ("greedy",)
        ):
            yield Run(DIGITS_RESNET, 0.5, method, refit, 0, 256)
        if not quick:
            yield Run(DIGITS_RESNET, 0.5, method, "lockstep", 0, 256)


def ablate(kit: Kit, records: Records, quick: bool) -> None:
    """Section 9."""
    for run in runs(quick):
        records.add(ablation.SECTION, run.key, partial(_of, kit, run))


def _of(kit: Kit, run: Run) -> Row:
    return ablation.measure(kit.network(run.network), run)


def duration(command: str) -> Row:
    """Seconds of a command of this page, by the clock and of the processor; FOLDER is an empty one."""
    with tempfile.TemporaryDirectory() as folder:
        words = [w.replace("FOLDER", folder) for w in command.split()]
        start, before = time.perf_counter(), os.times()
        subprocess.run([sys.executable, *words[1:]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds, after = time.perf_counter() - start, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {"command": command, "seconds": seconds, "processor": used}


def measure_start(kit: Kit, records: Records, quick: bool) -> None:
    """How long the first commands take that a reader is told of; the page itself is not made by those it times."""
    if not isinstance(kit, Bundled):
        for name, command in (("prune", PRUNE), ("page", PAGE + (" --quick" if quick else ""))):
            records.add(SECTION, name, partial(duration, command))
