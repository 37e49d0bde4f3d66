"""Steps down a loss for the weights of a network: Adam, where the inputs of each layer are white.

The weights and the bias of a linear layer move in the coordinates of `numerics.whitening`, and a step is relative: the
rate is about the share of its own spread by which a step moves the outputs of the layer, in root mean square. One rate
then serves wide and narrow layers, and networks whose activations are small or large. All weights of a layer may share
the second moment of Adam: in these coordinates no input has a scale of its own that it would have to find, and what
only noise moves stays nearly where it is. What belongs to no such layer (the parameters of a
normalization, shared kernels, layers too wide for a Gram) moves relative to its own size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.layers import Layer
from onnxprune.numerics.adam import Adam
from onnxprune.numerics.arrays import Array, Doubles
from onnxprune.numerics.whitening import output_spread, whitening

DAMPING = 0.05
# Of a plain parameter, what counts as its size at least: gains and biases may start at zero.
_LEAST_SIZE = 0.1


@dataclass(frozen=True, eq=False)
class _White:
    """A layer, B (g, D, D) of its inputs, and the spread of its outputs over √D, (g, 1, M)."""

    layer: Layer
    basis: NDArray[np.float32]
    reach: NDArray[np.float32]


class Descent:
    """Gradient descent on the weights of a network.

    weights: by name, in floating point; `step` changes them in place.

    layers: those of the network that holds the weights. grams: E[x xᵀ] (g, D, D) of a layer's input, by weight name.
    shared: whether the weights of a layer share Adam's second moment. Raises SolveFailed where a Gram matrix is none.
    """

    def __init__(
        self, weights: dict[str, Array], layers: Sequence[Layer], grams: Mapping[str, Doubles], *, shared: bool = False
    ) -> None:
        self.weights = weights
        self._shared = shared
        self._white = [_white(x, weights, grams[x.weight]) for x in layers if x.weight in grams and _fits(x, weights)]
        own = {n for w in self._white for n in w.layer.stored}
        self._sizes = {
            k: max(float(np.sqrt(np.mean(np.square(w, dtype=np.float64)))), _LEAST_SIZE)
            for k, w in weights.items()
            if k not in own
        }
        shapes = {w.layer.weight: w.basis.shape[:2] + w.reach.shape[2:] for w in self._white}
        self._shapes: dict[str, tuple[int, ...]] = {k: weights[k].shape for k in self._sizes} | shapes
        self._adam = self._new()

    def restart(self) -> None:
        """Forget the steps so far, in the same coordinates."""
        self._adam = self._new()

    def _new(self) -> Adam:
        return Adam(self._shapes, shared=[w.layer.weight for w in self._white if self._shared])

    @property
    def steps(self) -> int:
        """How many steps were taken so far."""
        return self._adam.steps

    def step(self, gradients: Mapping[str, Array], rate: float) -> None:
        """One step down the gradients, which name every weight."""
        turned = {w.layer.weight: _turned(w, gradients) for w in self._white}
        directions = self._adam.directions({k: gradients[k] for k in self._sizes} | turned)
        for k, size in self._sizes.items():
            self.weights[k] -= (rate * size * directions[k]).astype(self.weights[k].dtype)
        for w in self._white:
            step = (w.basis @ directions[w.layer.weight]) * (rate * w.reach)
            moved = w.layer.weights(w.layer.matrix(self.weights) - step, self.weights)
            for k, values in moved.items():
                self.weights[k][...] = np.reshape(values, self.weights[k].shape)


def _fits(layer: Layer, weights: Mapping[str, Array]) -> bool:
    """Whether all that the layer stores is trained, as it is stored."""
    return (layer.alpha, layer.beta) == (1.0, 1.0) and not layer.quantized and all(n in weights for n in layer.stored)


def _white(layer: Layer, weights: Mapping[str, Array], gram: Doubles) -> _White:
    matrix = layer.matrix(weights)
    spread = output_spread(gram, matrix, constant=bool(layer.bias))
    reach = (spread / np.sqrt(matrix.shape[1])).astype(np.float32)
    return _White(layer, whitening(gram, DAMPING), reach[:, None, :])


def _turned(white: _White, gradients: Mapping[str, Array]) -> NDArray[np.float32]:
    matrix = white.layer.matrix(gradients).astype(np.float32)
    turned: NDArray[np.float32] = (white.basis.transpose(0, 2, 1) @ matrix) * white.reach
    return turned
