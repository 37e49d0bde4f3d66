"""From paths to curves: every group cut alone, and what that does to the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from onnxprune.allocation import trial_cuts
from onnxprune.channels.whole_layers import WholeLayer
from onnxprune.config import PruneConfig
from onnxprune.jobs.workplace import HERE, Workplace
from onnxprune.selection import Path
from onnxprune.stages.calibrate import Calibrated
from onnxprune.stages.couple import Coupled
from onnxprune.stages.load import Loaded

# Trial cuts run the original's size again and again; together they may cost so many runs over all samples.
TRIAL_PASSES, FAST_TRIAL_PASSES = 2.0, 0.5


@dataclass(frozen=True, eq=False)
class Tried:
    """By selection method: the paths of all groups and, of each group, units kept → the error of the outputs then.

    groups: those that were tried; empty: those that were tried with no unit too. layers: by number, the error without
    a whole layer. Without a budget nothing is tried.
    """

    paths: Mapping[str, Sequence[Path]]
    errors: Mapping[str, Sequence[Mapping[int, float]]] = field(default_factory=dict)
    groups: frozenset[int] = frozenset()
    empty: frozenset[int] = frozenset()
    layers: Mapping[int, float] = field(default_factory=dict)

    @property
    def alone(self) -> list[Tried]:
        """What each method says by itself."""
        return [
            replace(self, paths={k: p}, errors={k: self.errors[k]} if k in self.errors else {})
            for k, p in self.paths.items()
        ]

    def serves(self, coupled: Coupled) -> bool:
        """Whether with these widths the same trials would be run."""
        groups, empty, layers = _tried_in(coupled)
        return (self.groups, self.empty, {*self.layers}) == (groups, empty, {x.number for x in layers})


def try_cuts(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    candidates: Mapping[str, Sequence[Path]],
    settings: PruneConfig,
    place: Workplace = HERE,
) -> Tried:
    """The trial cuts of every method, where a budget asks for them."""
    if not settings.ratio:
        return Tried(candidates)
    groups, empty, whole = _tried_in(coupled)
    errors: dict[str, Sequence[Mapping[int, float]]] = {}
    layers: dict[int, float] = {}
    for k, p in candidates.items():
        measured = errors_of(loaded, coupled, calibrated, p, settings, place, k)
        errors[k], of_layers = measured[: -len(whole) or None], measured[len(coupled.channels.groups) :]
        # Without a unit a layer is the same by every method.
        for x, error in zip(whole, of_layers, strict=True):
            layers[x.number] = min(error.get(0, inf), layers.get(x.number, inf))
    return Tried(candidates, errors, groups, empty, layers)


def _tried_in(coupled: Coupled) -> tuple[frozenset[int], frozenset[int], tuple[WholeLayer, ...]]:
    """(groups that may be cut, groups of which all may go, layers that may)."""
    widths = coupled.widths.allowed
    only = {g.index for g, w in zip(coupled.channels.groups, widths, strict=True) if w not in ((g.size,), (0,))}
    layers = tuple(x for x in coupled.widths.layers if not coupled.seen.idle.intersection(x.groups))
    return frozenset(only - coupled.seen.idle), frozenset(i for i in only if widths[i][0] == 0), layers


def errors_of(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    paths: Sequence[Path],
    settings: PruneConfig,
    place: Workplace = HERE,
    method: str = "",
) -> list[dict[int, float]]:
    """Per group: units kept → the error of the network's outputs when it alone is cut so far; behind these, of each
    layer that may go as a whole, 0 → the error without it. method: of the paths."""
    only, empty, layers = _tried_in(coupled)
    sets = [x.groups for x in layers]
    most = TRIAL_PASSES if settings.epochs else FAST_TRIAL_PASSES
    passes = most * loaded.count / len(loaded.held)
    samples, reference, levels = trial_cuts.affordable(
        coupled.seen.channels, coupled.layers, only, loaded.held, calibrated.reference, passes, sets
    )
    return trial_cuts.measure(
        trial_network(loaded, coupled, calibrated, settings),
        samples,
        reference,
        paths,
        only=only,
        levels=levels,
        whole=empty,
        together=sets,
        memory=settings.memory,
        scheduler=place.scheduler,
        kept=place.kept,
        method=f"{method} {settings.ratio}",
    )


def trial_network(
    loaded: Loaded, coupled: Coupled, calibrated: Calibrated, settings: PruneConfig
) -> trial_cuts.TrialNetwork:
    """What the samples run, as trials cut it."""
    return trial_cuts.TrialNetwork(
        proto=coupled.seen.proto,
        channels=coupled.seen.channels,
        layers=coupled.layers,
        moments=calibrated.moments,
        types=loaded.normalised.types,
        level=settings.level,
        provider=calibrated.provider,
    )
