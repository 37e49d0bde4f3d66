"""Convolution as a matrix product at sampled output positions.

With x the input, patches X (g, R, D) and W (g, D, M/g), the output at those positions is Y = X W: one row per image and
position, D = C/g · k columns ordered by (channel, kernel position), g groups.

A transposed convolution is an ordinary one over the input spread by its strides, with the kernel flipped; so both are
exact, whatever the overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution over any number of spatial axes.

    auto_pad: "NOTSET", "VALID", "SAME_UPPER" or "SAME_LOWER". transposed: strides spread the input, and `pads`,
    `output_padding` and `output_shape` (the spatial size that decides the pads) are those of the transposed operator.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    groups: int = 1
    auto_pad: str = "NOTSET"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial size of the output."""
        before, after = self._padding(size)
        spread = self._spread_size(size)
        steps = self._steps()
        return tuple(
            (n + b + a - d * (k - 1) - 1) // s + 1
            for n, b, a, d, k, s in zip(spread, before, after, self.dilations, self.kernel, steps, strict=True)
        )

    def _steps(self) -> tuple[int, ...]:
        return (1,) * len(self.kernel) if self.transposed else self.strides

    def _spread_size(self, size: Sequence[int]) -> tuple[int, ...]:
        if not self.transposed:
            return tuple(size)
        return tuple((n - 1) * s + 1 for n, s in zip(size, self.strides, strict=True))

    def _padding(self, size: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        rank = len(self.kernel)
        reach = [d * (k - 1) for d, k in zip(self.dilations, self.kernel, strict=True)]
        if self.transposed:
            return self._transposed_padding(size, reach)
        if self.auto_pad == "VALID":
            return (0,) * rank, (0,) * rank
        if self.auto_pad.startswith("SAME"):
            total = [
                max((-(-n // s) - 1) * s + r + 1 - n, 0) for n, s, r in zip(size, self.strides, reach, strict=True)
            ]
            low = [t // 2 if self.auto_pad == "SAME_UPPER" else t - t // 2 for t in total]
            return tuple(low), tuple(t - x for t, x in zip(total, low, strict=True))
        return self.pads[:rank], self.pads[rank:]

    def _transposed_padding(self, size: Sequence[int], reach: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        rank = len(self.kernel)
        extra = self.output_padding or (0,) * rank
        before, after = self.pads[:rank], self.pads[rank:]
        if self.output_shape or self.auto_pad.startswith("SAME"):
            wanted = self.output_shape or tuple(n * s for n, s in zip(size, self.strides, strict=True))
            natural = [n + r + e for n, r, e in zip(self._spread_size(size), reach, extra, strict=True)]
            surplus = [n - w for n, w in zip(natural, wanted, strict=True)]
            total = [max(x, 0) for x in surplus]
            before = tuple(t // 2 if self.auto_pad == "SAME_UPPER" else t - t // 2 for t in total)
            after = tuple(t - b for t, b in zip(total, before, strict=True))
            if self.output_shape:
                # A size beyond what the input reaches is filled with the bias alone.
                after = tuple(a + min(x, 0) for a, x in zip(after, surplus, strict=True))
        return (
            tuple(r - b for r, b in zip(reach, before, strict=True)),
            tuple(r - a + e for r, a, e in zip(reach, after, extra, strict=True)),
        )

    def patches(self, x: Floats, positions: Ints) -> Floats:
        """X (g, N·P, C/g·k) of the input x (N, C, *S) at flat output positions (P,)."""
        n, c, *size = x.shape
        if self.transposed:
            spread: Floats = np.zeros((n, c, *self._spread_size(size)), x.dtype)
            every = (slice(None), slice(None), *(slice(None, None, s) for s in self.strides))
            spread[every] = x
            x = spread
        before, after = self._padding(size)
        x = _padded(x, before, after)
        grid = np.unravel_index(positions, self.output_size(size))
        flat = np.zeros((positions.size, 1), np.int64)
        axes = zip(grid, self._steps(), x.shape[2:], self._offsets().T, strict=True)
        for at, step, width, offset in axes:
            flat = flat * width + (at[:, None] * step + offset[None, :])
        picked = x.reshape(n, c, -1)[:, :, flat]
        g, k = self.groups, flat.shape[1]
        by_group = picked.reshape(n, g, c // g, positions.size, k).transpose(1, 0, 3, 2, 4)
        rows: Floats = by_group.reshape(g, n * positions.size, (c // g) * k)
        return rows

    def _offsets(self) -> Ints:
        """Offsets of the kernel's positions, (k, rank)."""
        steps = [[i * d for i in range(n)] for n, d in zip(self.kernel, self.dilations, strict=True)]
        return np.array(list(product(*steps)), np.int64).reshape(-1, len(self.kernel))

    def to_matrix(self, weight: Floats) -> Floats:
        """W (g, D, M/g) of a weight tensor: (M, C/g, *K), or (C, M/g, *K) when transposed."""
        g = self.groups
        if self.transposed:
            c, m = weight.shape[:2]
            flipped = np.flip(weight, tuple(range(2, weight.ndim))).reshape(g, c // g, m, -1)
            matrix: Floats = flipped.transpose(0, 1, 3, 2).reshape(g, -1, m)
        else:
            matrix = weight.reshape(g, weight.shape[0] // g, -1).transpose(0, 2, 1)
        return matrix

    def from_matrix(self, matrix: Floats, channels: int) -> Floats:
        """The weight tensor of W (g, D, M/g), for `channels` input channels in all."""
        g, _, m = matrix.shape
        if self.transposed:
            flipped = matrix.reshape(g, channels // g, -1, m).transpose(0, 1, 3, 2)
            spatial = tuple(range(2, 2 + len(self.kernel)))
            weight: Floats = np.flip(flipped.reshape(channels, m, *self.kernel), spatial)
        else:
            weight = matrix.transpose(0, 2, 1).reshape(g * m, channels // g, *self.kernel)
        return weight

    def outputs_at(self, y: Floats, positions: Ints) -> Floats:
        """Y (g, N·P, M/g) of the output y (N, M, *S) at flat positions (P,)."""
        n, m = y.shape[:2]
        g = self.groups
        picked = y.reshape(n, m, -1)[:, :, positions].reshape(n, g, m // g, positions.size)
        rows: Floats = picked.transpose(1, 0, 3, 2).reshape(g, n * positions.size, m // g)
        return rows


def _padded(x: Floats, before: Sequence[int], after: Sequence[int]) -> Floats:
    """Zero padding; negative amounts crop."""
    if any(b > 0 or a > 0 for b, a in zip(before, after, strict=True)):
        x = np.pad(x, [(0, 0), (0, 0), *((max(b, 0), max(a, 0)) for b, a in zip(before, after, strict=True))])
    inner = (slice(max(-b, 0), n - max(-a, 0)) for n, b, a in zip(x.shape[2:], before, after, strict=True))
    crop = (slice(None), slice(None), *inner)
    return x[crop]
