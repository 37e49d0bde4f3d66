"""Positions inside the heads of attention turned to the directions that say most, as `--attention rank` wants it.

Queries and keys are turned to the coordinates in which the terms of their products are uncorrelated; values to what
tells most of what the layer behind attention makes of them. Both are exact, and change weights alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.calibration import input_moments
from onnxprune.calibration.logits import ByHead, covariance_of_rows, moments_of_rows, moments_turned
from onnxprune.channels.head_layout import Heads, Mixed, Turnable, turnable
from onnxprune.channels.products import products_of, weighted_sums
from onnxprune.config import PruneConfig
from onnxprune.errors import UsageError
from onnxprune.graph import external
from onnxprune.methods import METHODS, Looks
from onnxprune.numerics.arrays import Array, Doubles
from onnxprune.numerics.rotation import balanced, telling
from onnxprune.options import first_of
from onnxprune.plan import Plan
from onnxprune.stages.couple import Coupled
from onnxprune.stages.load import Loaded
from onnxprune.stages.rotate import Rotated, as_it_was, held
from onnxprune.surgery.rotate import with_heads_turned

RANK = "rank"
_REFUSED = "no head was turned (--attention rank)"
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class HeadsToTurn:
    """What may be turned, by group; why others may not."""

    turnable: Mapping[int, Sequence[Turnable]] = field(default_factory=dict)
    stays: tuple[str, ...] = ()

    def names(self, coupled: Coupled) -> frozenset[str]:
        """The names of these groups."""
        return frozenset(coupled.channels.groups[g].name for g in self.turnable)


def heads_to_turn(
    loaded: Loaded, coupled: Coupled, settings: PruneConfig, replayed: Plan | None = None, *, asked: bool = True
) -> HeadsToTurn:
    """The positions inside heads that the options want turned, and that may be; of a replay those that its plan names.

    Raises UsageError where there is nothing that turning could serve, and that was `asked` for.
    """
    if settings.attention != RANK or (replayed is not None and not replayed.rotated):
        return HeadsToTurn()
    if replayed is None:
        _demand_use(loaded, settings)
    channels = coupled.channels
    found: dict[int, Sequence[Turnable]] = {}
    stays: list[str] = []
    for g in sorted({p.group for p in (*products_of(channels), *weighted_sums(channels))}):
        name = channels.groups[g].name
        if g in coupled.choices.frozen if replayed is None else name not in replayed.rotated:
            continue
        try:
            found[g] = _turnable(loaded, coupled, g)
        except Mixed as e:
            stays.append(f"those of {name!r}: {e}")
    if not found and replayed is None and asked:
        why = stays[0] if stays else "no product of two activations has positions inside heads that may go"
        raise UsageError(f"--attention rank can turn no head: {why}; choose --attention heads or head-dim")
    return HeadsToTurn(found, tuple(stays))


def _turnable(loaded: Loaded, coupled: Coupled, group: int) -> list[Turnable]:
    """What of a group may be turned. Raises Mixed."""
    found = turnable(coupled.channels, group)
    named = {n for t in found for h in t.sides for n in (*h.tensors, *(c for c, _ in h.axes))}
    if named & {*loaded.normalised.tables, *coupled.observed.tensors, *loaded.with_defaults.weights}:
        raise Mixed("they are looked at as outputs, or their weights are generated or given")
    return found


def turn_heads(
    loaded: Loaded,
    coupled: Coupled,
    heads: HeadsToTurn,
    settings: PruneConfig,
    replayed: Plan | None = None,
    provider: str = "cpu",
) -> Rotated:
    """The model with these positions turned, held against the original at every size before anything is cut.

    provider: of PROVIDERS, what the samples run on.
    Where it differs the model stays as it was, with a note; a replay cannot go on without: raises CheckFailed.
    """
    n = loaded.normalised
    seed = settings.seed if replayed is None else replayed.divided_by
    pieces = [t for own in heads.turnable.values() for t in own]
    # What the layer behind attention reads, where there is one: else queries and keys.
    seen = [h for t in pieces for h in (t.writers if t.reader is None else (t.reader,))]
    read = {h.operand.tensor: ByHead.of(h.layer.node, h.operand, n.shapes) for h in seen}
    moments = input_moments.grams(coupled.taken.proto, list(read.values()), loaded.fit, n.shapes, seed, provider)
    if not all(np.isfinite(p).all() for p in moments.values()):
        return as_it_was(loaded, f"{_REFUSED}: what heads compute is not finite on all samples")
    stored = external.Weights(n.proto.graph.initializer)
    turns = [found for t in pieces for found in _matrices(t, moments, stored)]
    groups = tuple(sorted(heads.names(coupled)))
    notes = [
        f"turned to the directions that say most (--attention rank): positions in heads of {first_of(groups, _SHOWN)}"
    ]
    if heads.stays:
        notes.append(f"--attention rank leaves some positions as they are: {first_of(heads.stays, _SHOWN, '; ')}")
    result = held(loaded, with_heads_turned(n.proto, turns), groups, notes, _REFUSED, replays=replayed is not None)
    if not result.groups:
        return result
    products = {h.operand.tensor for t in pieces if t.reader is None for h in t.sides}
    now = {h.operand.tensor: matrices for h, matrices in turns if h.operand.tensor in products}
    # Heads that share keys have one matrix.
    own = {k: matrices[:: len(matrices) // len(moments[k])] for k, matrices in now.items()}
    return replace(result, moments={k: moments_turned(moments[k], matrices) for k, matrices in own.items()})


def _demand_use(loaded: Loaded, settings: PruneConfig) -> None:
    if loaded.fit.synthetic:
        raise UsageError("--attention rank needs calibration data (--calib): random inputs have no directions")
    if METHODS[settings.method].looks not in (Looks.LAYERS, Looks.OUTPUTS) or settings.level != "least-squares":
        raise UsageError(
            "--attention rank needs a method that looks at statistics, and weights that are fitted: leave --method and "
            "--refit out, or choose --attention head-dim"
        )


def _matrices(t: Turnable, moments: Mapping[str, Doubles], stored: Mapping[str, Array]) -> list[tuple[Heads, Doubles]]:
    """The matrices of each head, (h, d, d); heads that lie in the same places are turned alike."""
    if t.reader is None:
        mine, theirs = t.writers
        queries, keys = (
            moments_of_rows(moments[mine.operand.tensor]),
            covariance_of_rows(moments[theirs.operand.tensor]),
        )
        keys = keys.repeat(len(queries) // len(keys), axis=0)
        a, b = np.empty_like(queries), np.empty_like(keys)
        for alike in _sharing(theirs):
            a[alike], b[alike] = balanced(queries[alike].sum(axis=0), keys[alike].mean(axis=0))
        return [(mine, a), (theirs, b)]
    (values,), (weight, axis) = t.writers, t.reader.axes[0]
    seen, rows = (
        moments_of_rows(moments[t.reader.operand.tensor]),
        np.moveaxis(np.asarray(stored[weight], np.float64), axis, 0),
    )
    matrices = np.empty_like(seen)
    for alike in _sharing(values):
        own = [rows[t.reader.places[head]] for head in alike]
        matrices[alike] = telling(seen[alike].sum(axis=0), np.sum([w @ w.T for w in own], axis=0))
    return [(values, matrices), (t.reader, matrices)]


def _sharing(heads: Heads) -> Sequence[list[int]]:
    """The heads that lie in the same places, together."""
    alike: dict[bytes, list[int]] = {}
    for head, places in enumerate(heads.places):
        alike.setdefault(np.ascontiguousarray(places).tobytes(), []).append(head)
    return list(alike.values())
