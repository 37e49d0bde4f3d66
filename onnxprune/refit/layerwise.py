"""Refit: fold the rescaling into the weights of the layers that read removed channels.

Three levels. `scale`: one scalar per kept channel of a consumer (the paper's a). `least-squares`: all kept weights and
the bias, towards the layer's own original output. `lockstep`: walk the original and the pruned model side by side in
topological order and fit each layer on the *pruned* network's inputs to the *original* network's target, so that later
layers repair what earlier ones lost.

Lockstep solves argmin ||T - X W'||² + ||W' - W||²_Λ with W the least-squares weights. The ridge in Λ (`numerics.ridge`)
is chosen on calibration batches held out from the fit, as a compact network overfits a few hundred images otherwise; no
change at all is one of the candidates. Where a layer's output goes only into a residual Add, the target is the value
behind it: (original sum) - (pruned other branch).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import csr_array

from onnxprune.calibration.input_moments import InputMoments
from onnxprune.calibration.layers import Layer
from onnxprune.numerics.arrays import Array, Doubles, Ints, Mask, cast
from onnxprune.numerics.least_squares import (
    restricted,
    restricted_by_inverse,
    scale,
)

# A layer that loses up to one in so many columns is refitted by the inverse for all columns, which is computed once.
_FEW = 8
_MOMENT_BYTES, _WEIGHT_BYTES = 12, 24


def in_place(
    layers: Sequence[Layer],
    moments: Mapping[str, InputMoments],
    weights: Mapping[str, Array],
    keep: Mask,
    level: str,
) -> dict[str, Array]:
    """Refitted weights at full size, removed columns zero: level "none", "scale" or "least-squares".

    Layers that lose no column are left out, and, but for "none", those without moments; those that are never
    fitted (`Layer.keeps`) keep what is left of their weights.
    """
    if level == "none":
        return scaled(layers, weights, keep, np.ones(keep.size))
    refitted: dict[str, Array] = {}
    for layer in layers:
        columns = layer.kept_columns(keep)
        if layer.keeps(keep):
            refitted.update(scaled((layer,), weights, keep, np.ones(keep.size)))
        elif not columns.all() and layer.weight in moments:
            w = layer.matrix(weights)
            refitted.update(layer.weights(_refitted(layer, w, moments[layer.weight], columns, keep, level), weights))
    return refitted


def memory_of(layers: Sequence[Layer]) -> int:
    """Bytes that `in_place` takes, about: the moments of one layer after the other, and the weights of all."""
    moments = max((layer.groups * len(layer.columns(0)) ** 2 for layer in layers), default=0)
    return _MOMENT_BYTES * moments + _WEIGHT_BYTES * entries_of(layers)


def entries_of(layers: Sequence[Layer]) -> int:
    """Entries of the weights of some layers."""
    return sum(len(layer.columns(0)) * layer.outputs.size for layer in layers)


def scaled(layers: Sequence[Layer], weights: Mapping[str, Array], keep: Mask, factors: Doubles) -> dict[str, Array]:
    """Weights at full size with each column times the factor of its class, (classes,), and removed columns zero.

    Layers of which no column changes are left out. The factors of those that are never fitted are 1.
    """
    changed: dict[str, Array] = {}
    for layer in layers:
        own = np.ones_like(factors) if layer.keeps(keep) else factors
        classes = np.stack([layer.columns(g) for g in range(layer.groups)])
        of_column = np.where(classes < 0, 1.0, np.where(keep, own, 0.0)[np.maximum(classes, 0)])
        if (of_column != 1.0).any():
            changed.update(layer.weights(layer.matrix(weights) * of_column[:, :, None], weights))
    return changed


def beyond(fitted: Mapping[str, Array], types: Mapping[str, np.dtype[np.generic]]) -> bool:
    """Whether any of the fitted weights is beyond the range of the type that stores it."""
    return not all(np.isfinite(cast(w, types[name])).all() for name, w in fitted.items())


def _refitted(layer: Layer, w: Doubles, moments: InputMoments, columns: Mask, keep: Mask, level: str) -> Doubles:
    """The weights refitted; scales are put into `w` itself, which may be half of the model."""
    if level == "scale" or moments.classes is not None:
        p = moments.p
        for g in range(layer.groups):
            contributions = moments.classes is not None
            w[g] *= _column_scales(layer.columns(g), w[g], p[g], keep, contributions=contributions)[:, None]
        return w
    gone = np.flatnonzero(~columns[0])
    if layer.groups == 1 and gone.size * _FEW <= columns.size:
        return restricted_by_inverse(moments.inverse(gone, moments.ridge), w[0], gone)[None]
    refitted = np.zeros_like(w)
    p = moments.p
    for g in range(layer.groups):
        if columns[g].any():
            # A mean needs no prior, however few the samples.
            ridge = 0.0 if columns[g].sum() == 1 and layer.bias else moments.ridge
            refitted[g][columns[g]] = restricted(p[g], w[g], columns[g], ridge)
    return refitted


def _column_scales(column_classes: Ints, w: Doubles, p: Doubles, keep: Mask, *, contributions: bool) -> Doubles:
    """One factor per column, shared inside a channel; untracked columns and the constant keep 1.

    p: moments of the columns, or those of the contributions of the classes.
    """
    classes, owner = np.unique(column_classes, return_inverse=True)
    if contributions:
        k = p
    else:
        member = csr_array((np.ones(owner.size), (owner, np.arange(owner.size))), shape=(classes.size, owner.size))
        k = member @ (member @ ((w @ w.T) * p)).T
    free = (classes >= 0) & keep[np.maximum(classes, 0)]
    gone = (classes >= 0) & ~free
    factor = np.ones(classes.size)
    factor[gone] = 0.0
    factor[free] = scale(k, free, gone)
    return factor[owner]
