"""Section 9: selection methods and refit modes at equal MACs, each a full run of `prune`; section 10 reads the same."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from benchmarks.accuracy.kits import answers
from experiments.paper.networks import MOBILENET, RESNET20, RESNET56, Kit, Network, scores
from experiments.paper.records import Records, Row
from onnxprune import prune

SECTION = "ablation"
# Every refit that says something of the method: those that find coefficients with them, the scores of units without.
REFITS = {
    "gfs": ("greedy", "least-squares", "lockstep"),
    "local": ("greedy", "least-squares", "lockstep"),
    "global": ("greedy", "least-squares", "lockstep"),
    "combined": ("greedy", "least-squares", "lockstep"),
    "obs": ("least-squares", "lockstep"),
    "taylor": ("none", "least-squares", "lockstep"),
    "magnitude": ("none", "least-squares", "lockstep"),
    "random": ("none", "least-squares", "lockstep"),
}
BAR = ("local", "global", "combined")
ONCE = ("gfs", "obs", "taylor", "magnitude", "random")


@dataclass(frozen=True)
class Run:
    """One run of `prune`."""

    network: str
    ratio: float
    method: str
    refit: str
    seed: int
    samples: int
    metric: str = "gates"
    coefficients: str = "convex"

    @property
    def key(self) -> str:
        """Of its row."""
        return f"{self.network} {self.ratio:g} {self.label} {self.refit} seed {self.seed}"

    @property
    def label(self) -> str:
        """The method, and what of it is not as usual."""
        metric = "" if self.metric == "gates" else f", {self.metric}"
        return f"{self.method}{metric}{'' if self.coefficients == 'convex' else ', free'}"


def runs(quick: bool) -> Iterator[Run]:
    """What is measured, the rows that a claim rests on first."""
    if quick:
        for method in ("gfs", *BAR, "taylor"):
            yield Run(RESNET20, 0.5, method, "least-squares", 0, 256)
        return
    for ratio in (0.5, 0.3):
        for method in BAR:
            yield Run(RESNET56, ratio, method, "lockstep", 0, 512)
    for ratio in (0.5, 0.3):
        for method in ONCE:
            for refit in REFITS[method]:
                yield Run(RESNET56, ratio, method, refit, 0, 512)
    for refit in ("greedy", "least-squares"):
        for ratio in (0.5, 0.3):
            for method in BAR:
                yield Run(RESNET56, ratio, method, refit, 0, 512)
    for method in BAR:
        yield Run(RESNET56, 0.5, method, "greedy", 0, 512, coefficients="free")
    for ratio in (0.5, 0.3):
        for method, refits in REFITS.items():
            for refit in refits:
                yield Run(RESNET20, ratio, method, refit, 0, 512)
    for ratio in (0.2, 0.1):
        for method in ("local", "gfs", "obs", "taylor"):
            yield Run(MOBILENET, ratio, method, "lockstep", 0, 384)
    for seed in (1, 2):
        for ratio in (0.5, 0.3):
            for method in BAR:
                yield Run(RESNET56, ratio, method, "lockstep", seed, 512)
    for ratio in (0.2, 0.1):
        for method in ("global", "combined"):
            yield Run(MOBILENET, ratio, method, "lockstep", 0, 384)


def measure(network: Network, run: Run) -> Row:
    """Prune, then top-1 and agreement on the test split."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        report = prune(
            network.path,
            out,
            network.samples(run.samples, run.seed),
            ratio=run.ratio,
            method=run.method,
            refit=run.refit,
            seed=run.seed,
            round_to=1,
            metric=run.metric,
            coefficients=run.coefficients,
            fast=True,
        ).report
        before, after = answers(network.path, network.test), answers(out, network.test)
    return {
        **asdict(run),
        "label": run.label,
        **scores(before, after, network.labels),
        "macs_left": 1 - report.achieved,
        "parameters_left": report.after.parameters / report.before.parameters,
        "refit_kept": report.checks["refit"],
        "seconds": report.effort.seconds,
        "stages": report.effort.stages,
        "plain_pass_seconds": report.effort.plain_pass_seconds,
        "passes": report.effort.passes,
    }


def measure_all(kit: Kit, records: Records, quick: bool) -> None:
    """All runs, but for those that are there."""
    for run in runs(quick):
        records.add(SECTION, run.key, partial(_of, kit, run))


def _of(kit: Kit, run: Run) -> Row:
    return measure(kit.network(run.network), run)
