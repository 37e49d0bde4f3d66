"""From calibration to paths: which regressions each group has, and the chosen method run on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from onnxprune.calibration.gate_moments import OutputMoments
from onnxprune.calibration.input_moments import InputMoments
from onnxprune.calibration.layers import Layer
from onnxprune.calibration.regressions import consumers_of, magnitude, regressions_of
from onnxprune.channels import ChannelGraph, Group
from onnxprune.channels.gates import units_of
from onnxprune.config import PruneConfig
from onnxprune.jobs.kept import NOWHERE, Kept
from onnxprune.jobs.work import Here, Scheduler, Work
from onnxprune.jobs.workplace import HERE, Workplace
from onnxprune.methods import METHODS, Looks, tried
from onnxprune.numerics.arrays import Doubles
from onnxprune.selection import Path, Regression
from onnxprune.selection.known import Choice, Known, function_of
from onnxprune.selection.path import Regressions
from onnxprune.selection.quadratic import Quadratic
from onnxprune.stages.calibrate import Calibrated
from onnxprune.stages.couple import Coupled

# Arrays as large as its moments that the selection of a group holds at a time.
_COPIES = 3


def select(
    coupled: Coupled, calibrated: Calibrated, settings: PruneConfig, place: Workplace = HERE
) -> dict[str, list[Path]]:
    """By the method that is run, the paths of all groups; several where the chosen one takes the better of them."""
    choice = Choice(settings.seed, settings.coefficients == "free")
    statistics = coupled.taken.channels, coupled.layers, calibrated.moments
    return {
        name: paths(
            *statistics,
            name,
            choice,
            calibrated.outputs,
            settings.metric,
            place.scheduler,
            place.kept,
            calibrated.logits,
        )
        for name in tried(settings.method)
    }


def paths(
    channels: ChannelGraph,
    layers: Sequence[Layer],
    moments: Mapping[str, InputMoments],
    method: str,
    choice: Choice,
    outputs: OutputMoments | None = None,
    metric: str = "gates",
    scheduler: Scheduler | None = None,
    kept: Kept = NOWHERE,
    logits: Mapping[int, Sequence[Regression]] = MappingProxyType({}),
) -> list[Path]:
    """The path of every group, in the order of `channels.groups`.

    kept: those that an earlier run of the same has left are not computed again.
    metric: how "global" measures the outputs; "exact" is "gates" here. logits: by group, what products of activations
    make of it. Where a group has no gradients, or nothing reads it that is known here, the method's stand-in is run.
    """
    outputs = outputs or OutputMoments()
    consumers = consumers_of(channels, layers)
    powers: dict[str, list[float]] = {}

    def known_of(g: Group) -> Known:
        readers = [x for x in consumers[g.index] if x.weight in moments]
        regressions = regressions_of(g, readers, channels, moments, powers, inverses=METHODS[method].inverses)
        if g.index in logits:
            regressions = Regressions([*regressions, *logits[g.index]])
        globally = _global(g, readers, channels, moments, outputs, metric) if METHODS[method].gradients else None
        run = stood_in(method, outputs=globally is not None, layers=bool(regressions))
        scores = outputs.gates[g.index].square if METHODS[run].gradients else None
        if METHODS[run].looks is Looks.WEIGHTS:
            scores = magnitude(g, channels)
        return Known(run, g.index, g.size, g.rows, regressions, globally, scores)

    found = {g.index: Path.of_arrays(a) for g in channels.groups if (a := kept.get("path", f"{method} {g.index}"))}
    left = [g for g in channels.groups if g.index not in found]
    # One by one, so that not all of them are in memory at once.
    for g, path in zip(left, (scheduler or Here()).map(Selection(choice), map(known_of, left), len(left)), strict=True):
        kept.put("path", f"{method} {g.index}", path.arrays)
        found[g.index] = path
    return [found[g.index] for g in channels.groups]


@dataclass(frozen=True, eq=False)
class Selection(Work[Known, Path]):
    """The methods, run on one group after the other."""

    choice: Choice
    side_by_side = True

    def size(self, item: Known) -> int:
        """The moments, their inverse and a copy of it."""
        return _COPIES * item.regressions.held

    def __call__(self, item: Known) -> Path:
        """The path of a group; what is random in it depends on the seed and the group."""
        return function_of(item.method)(item, self.choice)


def stood_in(method: str, *, outputs: bool, layers: bool) -> str:
    """The method that is run on a group. outputs, layers: whether what these say of it is known."""
    while True:
        looks = METHODS[method].looks
        if (looks is not Looks.OUTPUTS or outputs) and (looks is not Looks.LAYERS or layers):
            return method
        method = METHODS[method].stand_in


def _global(
    g: Group,
    readers: Sequence[Layer],
    channels: ChannelGraph,
    moments: Mapping[str, InputMoments],
    outputs: OutputMoments,
    metric: str,
) -> Quadratic | None:
    """The discrepancy of the network's outputs, to second order; None where there are no gradients."""
    gate_moments = outputs.gates.get(g.index)
    if gate_moments is None:
        return None
    factored = all(x.weight in outputs.metrics and moments[x.weight].classes is None for x in readers)
    if metric != "kronecker" or not factored:
        return Quadratic.around(gate_moments.gram, gate_moments.slope, 0.0)
    unit = units_of(channels, g.index)
    total: Doubles = np.zeros((g.size, g.size))
    for x in readers:
        w, h, p = x.matrix(channels.graph.constants), outputs.metrics[x.weight], moments[x.weight].p
        for i in range(x.groups):
            total += Regression(p[i], w[i] @ square_root(h[i]), unit[x.columns(i)]).contributions(g.size)
    return Quadratic.around(total, gate_moments.slope, 0.0)


def square_root(h: Doubles) -> Doubles:
    """L with L Lᵀ = H for a symmetric positive semi-definite H (O, O)."""
    values, vectors = np.linalg.eigh(h)
    root: Doubles = vectors * np.sqrt(np.maximum(values, 0.0))
    return root
