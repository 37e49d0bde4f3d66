"""Lockstep."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxprune.calibration.input_moments import is_wide
from onnxprune.calibration.layers import Layer
from onnxprune.channels import ChannelGraph
from onnxprune.data.batches import HOLD_OUT
from onnxprune.data.samples import Samples
from onnxprune.graph import external, protobuf
from onnxprune.graph.protobuf import Model
from onnxprune.jobs.kept import NOWHERE, Kept
from onnxprune.jobs.work import Progress
from onnxprune.numerics.arrays import Array, Doubles, Floats, Ints, Mask
from onnxprune.numerics.gram import Gram, NormalEquations
from onnxprune.numerics.least_squares import (
    solve_spd,
    solve_spd_batch,
)
from onnxprune.numerics.ridge import RIDGES, random_sums, until_it_rises
from onnxprune.refit.layerwise import beyond
from onnxprune.refit.reference import Points, SharedPoints, Staying, points_of
from onnxprune.refit.targets import Target, changed_tensors, latest_layers, target_of
from onnxprune.runtime.walker import Walker
from onnxprune.surgery import set_initializers
from onnxprune.threads import prefetched
from onnxprune.verification.oracle import mask_of

_BATCHED_COLUMNS = 64


@dataclass(frozen=True)
class Fit:
    """What lockstep did to one layer: the ridge (infinite: it stayed as it was), the held-out error before, after."""

    layer: str
    ridge: float
    before: float
    after: float


def lockstep(
    original: Model,
    pruned: Model,
    channels: ChannelGraph,
    layers: Sequence[Layer],
    samples: Samples,
    keep: Mask,
    *,
    types: Mapping[str, int],
    seed: int,
    memory: int,
    shared: SharedPoints | None = None,
    kept: Kept = NOWHERE,
    progress: Progress = lambda done, count: None,
    provider: str = "cpu",
) -> list[Fit]:
    """Refit `pruned` (the cut model) in place, layer by layer; `original` is the normalised model.

    shared: as for `reference.points_of`. kept: fits that an earlier run of the same cut has left are not solved again;
    the networks are walked as if they were, so that all others come out the same. progress: is told of the layers.
    provider: of PROVIDERS, what both networks run on.

    Layers that read nothing changed, those too wide for their Gram, those whose weights would not fit in the model's
    type, those that are never fitted (`Layer.keeps`), those whose inputs or targets are not finite, and what a
    recurrent net makes of its own state (which depends on the weights in turn) keep their weights.
    """
    graph = channels.graph
    changed = changed_tensors(channels, keep)
    attributes = {n.output[0]: n for n in pruned.graph.node}
    latest = latest_layers(graph, layers)
    layers = [x for x in layers if not is_wide(x) and x.data not in x.node.outputs]
    targets = [target_of(x, graph, latest) for x in layers]

    def is_fitted(x: Layer) -> bool:
        if not (x.data in changed or not x.kept_columns(keep).all()) or x.node.outputs[0] not in attributes:
            return False
        if not (x.bias or x.kept_inputs(keep).any()) or x.keeps(keep):
            return False
        return mask_of(channels, x.data, keep, [0]) is None

    fitted = {i for i, x in enumerate(layers) if is_fitted(x)}
    stays = [Staying.of(x, channels, keep) if i in fitted else None for i, x in enumerate(layers)]
    reference = Walker(original, samples, types, graph.shapes, memory, provider=provider)
    slim = Walker(pruned, samples, types, graph.shapes, memory, provider=provider)
    fits: list[Fit] = []
    cut = hashlib.sha256(np.packbits(keep).tobytes()).hexdigest()
    for part in prefetched(points_of(layers, targets, fitted, graph, reference, keep, seed, stays, shared)):
        for layer, target, points in part:
            cut_layer = layer.sliced(keep, protobuf.int_attribute(attributes[layer.node.outputs[0]], "group", 1))
            known = kept.get("fit", f"{cut} {layer.weight}")
            if known is not None:
                slim.move_to([t for t in (cut_layer.data, target.other) if t])
                fit, stored_weights = _fit_of(layer.called, known)
                set_initializers(pruned, stored_weights)
                fits.append(fit)
                progress(len(fits), len(fitted))
                continue
            train, held = accumulate(cut_layer, target, points, slim, layer.kept_outputs(keep))
            weights = {t.name: external.array_of(t) for t in pruned.graph.initializer if t.name in layer.stored}
            stored = partial(cut_layer.rounded, present=weights) if cut_layer.quantized else None
            refitted: Mapping[str, Array] = {}
            if train.finite and held.finite:
                matrix, fit = fit_matrix(layer.called, train, held, cut_layer.matrix(weights), stored)
                refitted = cut_layer.weights(matrix, weights)
                if np.isfinite(fit.ridge) and beyond(refitted, {k: w.dtype for k, w in weights.items()}):
                    fit = Fit(fit.layer, float("inf"), fit.before, fit.before)
            else:
                fit = Fit(layer.called, float("inf"), float("inf"), float("inf"))
            if np.isfinite(fit.ridge):
                set_initializers(pruned, refitted)
            else:
                refitted = {}
            kept.put("fit", f"{cut} {layer.weight}", partial(_arrays_of, fit, refitted))
            fits.append(fit)
            progress(len(fits), len(fitted))
    return fits


def _arrays_of(fit: Fit, refitted: Mapping[str, Array]) -> dict[str, Array]:
    """What `_fit_of` reads; the weights by their place, as names may be anything."""
    arrays: dict[str, Array] = {"fit": np.array([fit.ridge, fit.before, fit.after]), "names": np.array([*refitted])}
    return arrays | {f"weight {i}": w for i, w in enumerate(refitted.values())}


def _fit_of(called: str, arrays: Mapping[str, Array]) -> tuple[Fit, dict[str, Array]]:
    ridge, before, after = arrays["fit"].tolist()
    weights = {str(name): arrays[f"weight {i}"] for i, name in enumerate(arrays["names"].tolist())}
    return Fit(called, ridge, before, after), weights


def accumulate(
    cut_layer: Layer, target: Target, points: Points, slim: Walker, outputs: Mask, *, stay: bool = False
) -> tuple[NormalEquations, NormalEquations]:
    """Normal equations of the fit, over the batches for it and over those held out; stay: as in `Walker.advance`."""
    g, columns = cut_layer.groups, len(cut_layer.columns(0))
    train, held = (NormalEquations.zeros(g, columns, cut_layer.outputs.size // g) for _ in range(2))
    regressions = prefetched(_regressions(cut_layer, target, points, slim, outputs, stay=stay))
    for index, (x, y) in enumerate(regressions):
        sums = held if index % HOLD_OUT == HOLD_OUT - 1 else train
        sums.update(x, y)
    return train, held


def _regressions(
    cut_layer: Layer, target: Target, points: Points, slim: Walker, outputs: Mask, *, stay: bool
) -> Iterator[tuple[Floats, Floats]]:
    """Rows X (g, R, D) and targets Y (g, R, M) of every batch."""
    wanted = [t for t in (cut_layer.data, target.other) if t]
    for (positions, values), small in zip(points, slim.advance(wanted, stay=stay), strict=True):
        y = values.load()
        if target.other:
            y = y - _rows_of(cut_layer, small[target.other], positions, len(y))
        if target.gain is not None and target.shift is not None:
            gain = target.gain[outputs]
            # A channel that BatchNormalization has switched off has no target to recover.
            dead = np.abs(gain) < 1e-6 * max(float(np.abs(gain).max(initial=0.0)), 1e-30)
            y = _floats((y - target.shift[outputs]) / np.where(dead, np.inf, gain))
        x = _floats(small[cut_layer.data] if cut_layer.data else np.zeros((len(y), 0)))
        yield cut_layer.rows(x, positions), cut_layer.by_group(y)


def _rows_of(layer: Layer, values: Array, positions: Ints, rows: int) -> Floats:
    """(rows or 1, channels) of a tensor shaped like the layer's output, or of what a branch that is gone left of it."""
    if values.size == values.shape[layer.channel_axis]:
        return _floats(values.reshape(1, -1))
    sampled = _floats(layer.values_at(values, positions))
    return np.tile(sampled, (rows // len(sampled), 1))


def on_present_inputs(
    layer: Layer, sums: tuple[NormalEquations, NormalEquations], weights: Mapping[str, Array], keep: Mask
) -> dict[str, Array]:
    """One layer fitted on the inputs of a network that is pruned so far, at full size with the removed columns zero.

    sums: normal equations at full size, to fit and to judge. weights: the present ones, the prior. Nothing where the
    weights stay as they are, or would not fit in their type.
    """
    columns = layer.kept_columns(keep)
    counts = columns.sum(axis=1)
    usable = not layer.keeps(keep) and all(s.finite for s in sums)
    if (counts != counts[0]).any() or not counts[0] or not usable:
        return {}
    kept = np.stack([np.flatnonzero(c) for c in columns])
    train, held = (_columns_of(s, kept) for s in sums)
    whole = layer.matrix(weights)

    def full(matrix: Doubles) -> Doubles:
        padded = np.zeros_like(whole)
        np.put_along_axis(padded, kept[:, :, None], matrix, axis=1)
        return padded

    def stored(matrix: Doubles) -> Doubles:
        return np.take_along_axis(layer.rounded(full(matrix), weights), kept[:, :, None], axis=1)

    prior = np.take_along_axis(whole, kept[:, :, None], axis=1)
    matrix, fit = fit_matrix(layer.called, train, held, prior, stored if layer.quantized else None)
    fitted = layer.weights(full(matrix), weights)
    if not np.isfinite(fit.ridge) or beyond(fitted, {k: weights[k].dtype for k in fitted}):
        return {}
    return fitted


def _columns_of(sums: NormalEquations, kept: Ints) -> NormalEquations:
    """The equations of some columns, (groups, kept); a copy."""
    xx = np.take_along_axis(np.take_along_axis(sums.xx, kept[:, :, None], axis=1), kept[:, None, :], axis=2)
    return NormalEquations(Gram(xx, sums.rows), np.take_along_axis(sums.xy, kept[:, :, None], axis=1), sums.yy.copy())


def _floats(x: Array) -> Floats:
    return np.asarray(x, np.float32)


def fit_matrix(
    name: str,
    train: NormalEquations,
    held: NormalEquations,
    prior: Doubles,
    stored: Callable[[Doubles], Doubles] | None = None,
) -> tuple[Doubles, Fit]:
    """The weights with the ridge that does best on the held-out rows, refitted on all rows.

    stored: weights as they are read back once they are stored: quantized ones are judged with their rounding.
    """
    if not held.rows:
        left = train.gaps(prior)
        before = float(train.error(prior, left).sum())
        return prior + _solve(train.xx, left, RIDGES[0]), Fit(name, RIDGES[0], before, before)
    gaps = held.gaps(prior)
    before = float(held.error(prior, gaps).sum())
    # Many outputs are judged by random sums, but quantized weights by each.
    sums = random_sums(prior.shape[2]) if stored is None else None
    left = train.gaps(prior) if sums is None else train.xy @ sums - train.xx @ (prior @ sums)
    judged = gaps if sums is None else gaps @ sums

    def error(s: float) -> float:
        step = _solve(train.xx, left, s)
        if stored is not None:
            return float(held.error(stored(prior + step)).sum())
        return max(before + float(np.sum(step * (held.xx @ step - 2.0 * judged))), 0.0)

    best, ridge = before, float("inf")
    for s, current in until_it_rises(error, RIDGES):
        if current < best:
            best, ridge = current, s
    if not np.isfinite(ridge):
        return prior, Fit(name, ridge, before, before)
    of_all = left if sums is None else train.gaps(prior)
    return prior + _solve(train.xx + held.xx, of_all + gaps, ridge), Fit(name, ridge, before, best)


def _solve(xx: Doubles, left: Doubles, ridge: float) -> Doubles:
    """How far the weights go from the prior: xx (g, D, D), left (g, D, M)."""
    if xx.shape[0] > 1 and xx.shape[1] <= _BATCHED_COLUMNS:
        return solve_spd_batch(xx, left, ridge)
    return np.stack([solve_spd(a, b, ridge) for a, b in zip(xx, left, strict=True)])
