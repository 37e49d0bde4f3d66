"""One streaming pass over the data: the input Gram of every layer that reads removable channels.

Memory does not depend on the number of samples. A layer with more columns than `WIDE` gets the Gram of its channels'
*contributions* to its output instead of that of its columns: then only the scale of a channel can be refitted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune import model as m
from onnxprune import storage
from onnxprune.calibrate.layers import Layer
from onnxprune.calibrate.samples import Samples
from onnxprune.graph import Array
from onnxprune.numerics.gram import Gram
from onnxprune.numerics.least_squares import JUDGED_OUTPUTS, inverse_spd, random_sums, solve_spd
from onnxprune.prefetch import prefetched
from onnxprune.runtime import Session

WIDE = 5000
# Every HOLD_OUT-th batch judges what the others fit.
HOLD_OUT = 4
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
BATCH = 64
_ROWS_PER_COLUMN = 24
_MIN_POSITIONS, _MAX_POSITIONS = 16, 64
_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class InputMoments:
    """What calibration knows of one layer's input.

    moments: E[x xᵀ], (g, D, D), where the layer is not wide; else (1, U, U), the Gram of the contributions of its U
    distinct classes, with `classes` (U,) naming them; in a file where it is large. ridge: the relative ridge with which
    a refit on some of the batches does best on the others: near zero where the data is plenty, large where columns are
    many and samples few.
    """

    moments: NDArray[np.float64] | storage.Kept
    ridge: float
    classes: NDArray[np.int64] | None = None
    _inverses: dict[float, storage.Kept] = field(default_factory=dict, repr=False)

    @property
    def p(self) -> NDArray[np.float64]:
        """The moments, read anew each time where they lie in a file."""
        if isinstance(self.moments, storage.Kept):
            return self.moments.load().astype(np.float64)
        return self.moments

    def block(self, at: NDArray[np.int64]) -> NDArray[np.float64]:
        """p[0] at some columns alone, (k, k)."""
        rows = self.moments.rows(at) if isinstance(self.moments, storage.Kept) else self.moments[:, at]
        found: NDArray[np.float64] = rows[0][:, at].astype(np.float64)
        return found

    def inverse(self, at: NDArray[np.int64], ridge: float) -> NDArray[np.float64]:
        """Rows `at` of (p[0] + Λ)⁻¹ with Λ = (JITTER + ridge) diag(p[0]), (k, D); computed once for every ridge.

        For layers that many groups share: each asks for the rows of its own columns.
        """
        if ridge not in self._inverses:
            self._inverses[ridge] = storage.Kept(inverse_spd(self.p[0], ridge).T)
        return self._inverses[ridge].rows(at)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_inverses": {}}  # as large as the moments, and computed as fast as they are sent


def positions_for(columns: int, samples: int) -> int:
    """Output positions to sample per image, so that a regression has some 24 rows per column."""
    wanted = -(-_ROWS_PER_COLUMN * columns // max(samples, 1))
    return int(np.clip(wanted, _MIN_POSITIONS, _MAX_POSITIONS))


def batch_size(
    shapes: Mapping[str, tuple[int, ...]], names: Sequence[str], samples: int, limit_bytes: int = 128 << 20
) -> int:
    """Samples per batch, so that the tensors `names` fit in `limit_bytes` and there are batches to hold out."""
    per_sample = sum(4 * int(np.prod(shapes[n][1:])) for n in names if n in shapes)
    most = min(BATCH, max(samples // (2 * HOLD_OUT), 1))
    return int(np.clip(limit_bytes // max(per_sample, 1), 1, most))


def collect(
    proto: onnx.ModelProto,
    layers: Sequence[Layer],
    samples: Samples,
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
) -> dict[str, InputMoments]:
    """Input moments of each layer, by weight name."""
    weights = storage.Weights(proto.graph.initializer)
    accumulators = {layer.weight: _accumulator(layer, weights) for layer in layers}
    for layer, rows, held in sampled_rows(proto, layers, samples, shapes, seed):
        accumulators[layer.weight].update(rows, held=held)
    return {name: a.result() for name, a in accumulators.items()}


def grams(
    proto: onnx.ModelProto,
    layers: Sequence[Layer],
    samples: Samples,
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
) -> dict[str, NDArray[np.float64]]:
    """P = E[x xᵀ] of each layer's input, (g, D, D), by weight name; wide layers are left out."""
    narrow = [layer for layer in layers if not is_wide(layer)]
    sums = {layer.weight: Gram.zeros(layer.groups, len(layer.columns(0))) for layer in narrow}
    for layer, rows, _ in sampled_rows(proto, narrow, samples, shapes, seed):
        sums[layer.weight].update(rows)
    return {name: s.result() for name, s in sums.items()}


def sampled_rows(
    proto: onnx.ModelProto,
    layers: Sequence[Layer],
    samples: Samples,
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
) -> Iterator[tuple[Layer, NDArray[np.floating], bool]]:
    """In one pass, each layer's rows X (g, R, D) of each batch at sampled positions, and whether it is held out."""
    tensors = sorted({layer.data for layer in layers})
    if not tensors:
        return
    session = Session(m.submodel(proto, {}, tensors))
    rng = np.random.default_rng(seed)
    batches = samples.batches(batch_size(shapes, tensors, len(samples)))
    for index, values in enumerate(prefetched(session.run(feeds) for feeds in batches)):
        for layer in layers:
            x = values[layer.data]
            limit = positions_for(len(layer.columns(0)), len(samples))
            at = layer.positions(layer.output_shape(x.shape), limit, rng)
            yield layer, layer.rows(_single(x), at), index % HOLD_OUT == HOLD_OUT - 1


def _single(x: Array) -> NDArray[np.floating]:
    """Half precision is widened: its products overflow."""
    return x.astype(np.float32) if x.dtype.itemsize < 4 else x


def is_wide(layer: Layer) -> bool:
    """Whether a layer's columns are too many for their Gram."""
    return layer.groups == 1 and len(layer.columns(0)) > WIDE


class _Columns:
    def __init__(self, layer: Layer, weights: Mapping[str, Array]) -> None:
        self.layer, self.weights = layer, weights
        self.fit, self.held = (Gram.zeros(layer.groups, len(layer.columns(0))) for _ in range(2))

    def update(self, rows: NDArray[np.floating], *, held: bool) -> None:
        (self.held if held else self.fit).update(rows)

    def result(self) -> InputMoments:
        """The moments; the sums are given up."""
        ridge = RIDGES[-1]
        fit, held = self.fit, self.held
        del self.fit, self.held
        if held.rows:
            # The groups of a convolution are alike; one of them tells enough.
            w = self.layer.matrix(self.weights)
            ridge = choose_ridge(fit.first(), held.first(), w[0], self.layer.columns(0))
        fit.merge(held)
        del held
        return InputMoments(_kept(fit), ridge)


def _kept(gram: Gram) -> NDArray[np.float64] | storage.Kept:
    """The result of a Gram, in a file where it is large: those of all layers are more than the model itself."""
    found = gram.result()
    return storage.Kept(found.astype(gram.total.dtype)) if gram.packed else found


def choose_ridge(
    fit: NDArray[np.float64], held: NDArray[np.float64], w: NDArray[np.float64], classes: NDArray[np.int64]
) -> float:
    """The ridge of RIDGES that does best on `held` (D, D) when a random half of the classes is removed.

    The layer w (D, M) is refitted with the moments `fit` (D, D); classes (D,): -1 for columns that stay. Of many
    outputs, a few random sums stand for all: the mean of their errors is that of all errors.
    """
    present = np.unique(classes[classes >= 0])
    cut = np.isin(classes, np.random.default_rng(present.size).permutation(present)[: max(present.size // 2, 1)])
    sums = random_sums(w.shape[1], JUDGED_OUTPUTS)
    w = w if sums is None else w @ sums
    keep, gone = np.flatnonzero(~cut), np.flatnonzero(cut)
    xx, lost = (m[np.ix_(keep, keep)] for m in (fit, held))
    xy, left = (m[np.ix_(keep, gone)] @ w[gone] for m in (fit, held))
    errors: list[float] = []
    for ridge in reversed(RIDGES):
        step = solve_spd(xx, xy, ridge)
        # But for what the removed columns lose by themselves, which is the same for all.
        errors.append(float(np.sum(step * (lost @ step - 2.0 * left))))
        if len(errors) > 1 and errors[-1] > errors[-2]:  # it falls and rises once
            break
    return RIDGES[-1 - int(np.argmin(errors))]


class _Contributions:
    """Gram of the contributions of whole classes of columns: O(rows · U² · M) instead of D² memory."""

    def __init__(self, layer: Layer, weights: Mapping[str, Array]) -> None:
        self.classes, owner = np.unique(layer.columns(0), return_inverse=True)
        order = np.argsort(owner, kind="stable")
        self.members = np.split(order, np.cumsum(np.bincount(owner))[:-1])
        self.w = layer.matrix(weights)[0].astype(np.float32)
        self.gram = Gram.zeros(1, self.classes.size)

    def update(self, rows: NDArray[np.floating], *, held: bool) -> None:
        x = rows[0].astype(np.float32)
        outputs = self.w.shape[1]
        chunk = max(1, _CHUNK_BYTES // (4 * self.classes.size * outputs))
        for start in range(0, len(x), chunk):
            part = x[start : start + chunk]
            s = np.stack([part[:, c] @ self.w[c] for c in self.members])
            self.gram.update(s.reshape(1, len(self.members), -1).transpose(0, 2, 1))

    def result(self) -> InputMoments:
        # The Gram's rows are pairs of a row of the layer and an output.
        return InputMoments(self.gram.result() * self.w.shape[1], RIDGES[0], self.classes)


def _accumulator(layer: Layer, weights: Mapping[str, Array]) -> _Columns | _Contributions:
    return _Contributions(layer, weights) if is_wide(layer) else _Columns(layer, weights)
