"""Convolution as a matrix product at sampled output positions.

With x the input, patches X (g, R, D) and W (g, D, M/g), the output at those positions is Y = X W: one row per image and
position, D = k · C/g columns ordered by (kernel position, channel), g groups.

A transposed convolution is an ordinary one over the input spread by its strides, with the kernel flipped; so both are
exact, whatever the overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from onnxprune.numerics.arrays import Floats, Ints


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
        before, after = self.padding(size)
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

    def padding(self, size: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Zeros before and after each spatial axis of the input; a transposed one is spread first."""
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

    @property
    def reads_padding(self) -> bool:
        """Whether a kernel position may lie outside the input, or between what strides spread."""
        return self.transposed or self.auto_pad.startswith("SAME") or any(self.pads)

    def patches(self, x: Floats, positions: Ints) -> Floats:
        """X (g, N·P, k·C/g) of the input x (N, C, *S) at flat output positions (P,)."""
        n, c, *size = x.shape
        sources = self.sources(size, positions)
        needed, indices = (
            (sources[:, 0], np.arange(sources.size)[:, None])
            if self._pointwise
            else _needed(sources, int(np.prod(size)))
        )
        # Channels last, so that a gather copies whole runs of them; the last row is the zero of the padding.
        rows = np.zeros((n, needed.size + 1, c), x.dtype)
        rows[:, :-1] = x.reshape(n, c, int(np.prod(size))).take(needed, axis=2).transpose(0, 2, 1)
        g, k = self.groups, indices.shape[1]
        by_group = rows.take(indices, axis=1).reshape(n * positions.size, k, g, c // g).transpose(2, 0, 1, 3)
        patches: Floats = by_group.reshape(g, n * positions.size, k * (c // g))
        return patches

    def sources(self, size: Sequence[int], positions: Ints) -> Ints:
        """Flat input position that each kernel position reads, (P, k); the number of input positions for padding."""
        before, _ = self.padding(size)
        grid = np.unravel_index(positions, self.output_size(size))
        offsets = self._offsets()
        flat = np.zeros((positions.size, len(offsets)), np.int64)
        inside = np.ones(flat.shape, bool)
        for a, width in enumerate(size):
            place = grid[a][:, None] * self._steps()[a] + offsets[None, :, a] - before[a]
            if self.transposed:
                inside &= place % self.strides[a] == 0
                place = place // self.strides[a]
            inside &= (place >= 0) & (place < width)
            flat = flat * width + place
        flat[~inside] = int(np.prod(size))
        return flat

    @property
    def _pointwise(self) -> bool:
        """Whether each output position reads one input position, and not that of padding."""
        return all(k == 1 for k in self.kernel) and not self.reads_padding

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
            matrix: Floats = flipped.transpose(0, 3, 1, 2).reshape(g, -1, m)
        else:
            m, c = weight.shape[0] // g, weight.shape[1]
            matrix = weight.reshape(g, m, c, -1).transpose(0, 3, 2, 1).reshape(g, -1, m)
        return matrix

    def from_matrix(self, matrix: Floats, channels: int) -> Floats:
        """The weight tensor of W (g, D, M/g), for `channels` input channels in all."""
        g, _, m = matrix.shape
        if self.transposed:
            flipped = matrix.reshape(g, -1, channels // g, m).transpose(0, 2, 3, 1)
            spatial = tuple(range(2, 2 + len(self.kernel)))
            weight: Floats = np.flip(flipped.reshape(channels, m, *self.kernel), spatial)
        else:
            by_output = matrix.reshape(g, -1, channels // g, m).transpose(0, 3, 2, 1)
            weight = by_output.reshape(g * m, channels // g, *self.kernel)
        return weight

    def outputs_at(self, y: Floats, positions: Ints) -> Floats:
        """(N·P, M) of the output y (N, M, *S) at flat positions (P,)."""
        n, m = y.shape[:2]
        places = int(np.prod(y.shape[2:]))
        rows: Floats = y.reshape(n, m, places)[:, :, positions].transpose(0, 2, 1).reshape(n * len(positions), m)
        return rows


def pointwise(window: Window) -> Window:
    """The convolution that reads single positions, all of them, where `window` reads several."""
    ones = (1,) * len(window.kernel)
    return Window(kernel=ones, strides=ones, dilations=ones, pads=(0,) * (2 * len(ones)))


def _needed(sources: Ints, inside: int) -> tuple[Ints, Ints]:
    """(the input positions that are read, where each entry of `sources` stands among them): few of a large map's are.

    inside: the number of input positions, which stands for padding.
    """
    read = np.zeros(inside + 1, bool)
    read[sources] = True
    read[inside] = False
    places = np.cumsum(read) - 1
    needed = np.flatnonzero(read)
    places[inside] = needed.size
    return needed, places[sources]
