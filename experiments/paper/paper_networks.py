"""Section 11: the architectures of the paper, each through every method, on the weights that there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from benchmarks.accuracy.kits import answers
from experiments.paper.ablation import Run, measure
from experiments.paper.networks import Array, Kit, Network
from experiments.paper.records import Records, Row
from onnxprune import OnnxPruneError
from onnxprune.methods import METHODS, REFITS, with_scales

SECTION = "networks"
RATIOS = (0.5, 0.3)
DRAWN = 256
EVERY_REFIT = ("lockstep", "least-squares", "greedy")


@dataclass(frozen=True)
class Architecture:
    """A model file, and how many samples calibrate it; folder: of the kit, `arch` for weights that nobody trained.

    ratios, refits: what is measured; where a run takes minutes, one cut with the refit that users get.
    """

    name: str
    folder: str
    samples: int
    ratios: tuple[float, ...] = RATIOS
    refits: tuple[str, ...] = EVERY_REFIT

    @property
    def trained(self) -> bool:
        """Whether there is something to classify."""
        return self.folder == "models"


ARCHITECTURES = (
    Architecture("mnist_bottleneck_resnet_legacy", "models", 256),
    Architecture("mnist_mobilenetv2_legacy", "models", 256, (0.5,), ("lockstep",)),
    Architecture("mobilenetv3_small", "arch", 64, (0.5,), ("lockstep",)),
    Architecture("dgcnn", "arch", 64),
)


def runs(quick: bool) -> Iterator[Run]:
    """Every method with the refits of the architecture that it has, coefficients being folded where it finds some.

    quick: a trained and an untrained network, one ratio, 32 samples.
    """
    for a in (ARCHITECTURES[0], ARCHITECTURES[-1]) if quick else ARCHITECTURES:
        for refit in a.refits:
            for ratio in a.ratios[:1] if quick else a.ratios:
                for method in with_scales() if REFITS[refit].scales else METHODS:
                    yield Run(a.name, ratio, method, refit, 0, 32 if quick else a.samples)


def drawn(path: Path, calib: int, test: int, seed: int = 0) -> Network:
    """The model with standard normal inputs; its labels are -1, which no class is."""
    graph = onnx.load(path).graph
    weights = {t.name for t in graph.initializer}
    [given] = [v for v in graph.input if v.name not in weights]
    sample = [d.dim_value for d in given.type.tensor_type.shape.dim][1:]
    x: Array = np.random.default_rng(seed).standard_normal((calib + test, *sample)).astype(np.float32)
    return Network(path, x[:calib], x[calib:], np.full(test, -1))


def measured(network: Network, run: Run, *, trained: bool) -> Row:
    """One run, without top-1 where there are no labels; or why there is none.

    common: the share of the test samples, in percent, that the original gives the class that it gives most often. A
    network that always says the same agrees with the original in so many.
    """
    try:
        row = measure(network, run)
    except OnnxPruneError as refusal:
        return {**asdict(run), "trained": trained, "refused": str(refusal)}
    if not trained:
        del row["top1_before"], row["top1"]
    classes = answers(network.path, network.test).argmax(axis=1)
    return {**row, "trained": trained, "tests": len(classes), "common": 100 * np.bincount(classes).max() / len(classes)}


def measure_all(kit: Kit, records: Records, quick: bool) -> None:
    """All runs, but for those that are there."""
    for run in runs(quick):
        key = f"{run.network} {run.ratio:g} {run.label} {run.refit}"
        records.add(SECTION, key, partial(_of, kit, run))


def _of(kit: Kit, run: Run) -> Row:
    a = next(a for a in ARCHITECTURES if a.name == run.network)
    path = kit.folder / a.folder / f"{a.name}.onnx"
    network = kit.network(a.name) if a.trained else drawn(path, run.samples, DRAWN)
    return measured(network, run, trained=a.trained)
