"""Section 9: selection methods and refit modes at equal MACs, each a full run of `prune`; section 10 reads the same."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from benchmarks.accuracy.kits import answers
from experiments.paper.networks import MOBILENET, RESNET20, RESNET56, Array, Kit, Network, scores
from experiments.paper.records import Records, Row
from onnxprune import prune
from onnxprune.config import PruneConfig
from onnxprune.methods import METHODS, REFITS

SECTION = "ablation"
SEEDS = (0, 1, 2)
# Networks and shares of the MACs that every selection is measured on, with every refit.
CELLS = ((RESNET20, 0.5), (RESNET56, 0.5), (RESNET20, 0.3))


class AtOnce(PruneConfig):
    """A method that selects in sequence, run on the uncut network alone."""

    @property
    def sequential(self) -> bool:
        """No group sees the cuts before it."""
        return False


@dataclass(frozen=True)
class Selection:
    """A method and how it is run."""

    method: str
    coefficients: str = "free"
    at_once: bool = False


# By the label of their rows.
SELECTIONS: Mapping[str, Selection] = MappingProxyType(
    {
        "random": Selection("random"),
        "magnitude": Selection("magnitude"),
        "taylor": Selection("taylor"),
        "obs": Selection("obs"),
        "gfs, at once": Selection("gfs", at_once=True),
        "gfs": Selection("gfs"),
        "gfs-outputs, at once": Selection("gfs-outputs", at_once=True),
        "gfs-outputs": Selection("gfs-outputs"),
        "local, convex": Selection("local", "convex"),
        "local": Selection("local"),
        "global, convex": Selection("global", "convex"),
        "global": Selection("global"),
        "combined, convex": Selection("combined", "convex"),
        "combined": Selection("combined"),
    }
)


@dataclass(frozen=True)
class Run:
    """One run of `prune`. label: of `SELECTIONS`."""

    network: str
    ratio: float
    label: str
    refit: str
    seed: int
    samples: int

    @property
    def key(self) -> str:
        """Of its row."""
        return f"{self.network} {self.ratio:g} {self.label} {self.refit} seed {self.seed}"

    @property
    def config(self) -> PruneConfig:
        """What `prune` is told."""
        selection = SELECTIONS[self.label]
        kind = AtOnce if selection.at_once else PruneConfig
        return kind(
            ratio=self.ratio,
            method=selection.method,
            coefficients=selection.coefficients,
            refit=self.refit,
            seed=self.seed,
            round_to=1,
            fast=True,
        )


def runs(quick: bool) -> Iterator[Run]:
    """What is measured: all of one seed, then the next."""
    if quick:
        for label in ("gfs", "local", "global", "combined", "taylor"):
            yield Run(RESNET20, 0.5, label, "least-squares", 0, 256)
        return
    for seed in SEEDS:
        for network, ratio in CELLS:
            for refit in REFITS:
                for label, selection in SELECTIONS.items():
                    if METHODS[selection.method].scales or not REFITS[refit].scales:
                        yield Run(network, ratio, label, refit, seed, 512)
    for ratio in (0.2, 0.1):
        for label in ("local", "gfs", "obs", "taylor"):
            yield Run(MOBILENET, ratio, label, "lockstep", 0, 384)


def measure(network: Network, run: Run) -> Row:
    """Prune, then top-1 and agreement on the test split. right: a bit for each of its images, in hexadecimal."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        report = prune(network.path, out, network.samples(run.samples, run.seed), config=run.config).report
        before, after = answers(network.path, network.test), answers(out, network.test)
    return {
        **asdict(run),
        **scores(before, after, network.labels),
        "images": len(network.labels),
        "right": packed(after.argmax(axis=1) == network.labels),
        "macs_left": 1 - report.achieved,
        "parameters_left": report.after.parameters / report.before.parameters,
        "refit_kept": report.checks["refit"],
        "seconds": report.effort.seconds,
        "stages": report.effort.stages,
        "plain_pass_seconds": report.effort.plain_pass_seconds,
        "passes": report.effort.passes,
    }


def packed(right: Array) -> str:
    """Hexadecimal digits of the bits, (N,)."""
    return np.packbits(right).tobytes().hex()


def unpacked(digits: str, count: int) -> Array:
    """The bits, (count,), as 0.0 and 1.0."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8))[:count].astype(np.float64)


def measure_all(kit: Kit, records: Records, quick: bool) -> None:
    """All runs, but for those that are there."""
    for run in runs(quick):
        records.add(SECTION, run.key, partial(_of, kit, run))


def _of(kit: Kit, run: Run) -> Row:
    return measure(kit.network(run.network), run)
