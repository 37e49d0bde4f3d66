"""What one pass over the samples tells of activations: histograms, and how large each channel gets.

A range is [a, b] around 0, in which numbers are told by 256 codes; what lies outside is cut off. Three ways to choose
it: the least and the greatest number, the same without a ten-thousandth of the numbers at the ends (`_PERCENTILE`), and
where the distribution loses least of its entropy (`numerics.entropy`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from math import gcd

import numpy as np
import onnx

from onnxprune.data.samples import Samples
from onnxprune.graph.protobuf import element_type
from onnxprune.measures.observed import observing
from onnxprune.numerics.arrays import Array, Doubles
from onnxprune.numerics.entropy import bins_kept
from onnxprune.numerics.histogram import Histogram
from onnxprune.runtime.session import Session
from onnxprune.targets.precision import ENTROPY, MIN_MAX, PERCENTILE

# Of all activations of one run.
_RUN_BYTES = 256 << 20
_MOST_AT_ONCE = 32
# Bins of the search for a range by entropy, which takes time with their square.
_ENTROPY_BINS = 512
_PERCENTILE = 99.99
# Of an activation with more numbers than this in all samples, a part of them is counted; its ends are those of all.
_COUNTED = 1 << 23


@dataclass(frozen=True, eq=False, kw_only=True)
class Seen:
    """What was seen of each activation. sizes: entries of one sample. types: element types. largest: of each channel,
    (channels,), of those of which it was asked. samples: how many were run."""

    histograms: Mapping[str, Histogram]
    sizes: Mapping[str, int]
    types: Mapping[str, int]
    largest: Mapping[str, Doubles]
    samples: int

    def with_those_of(self, other: Seen) -> Seen:
        """The same with the activations that were seen anew."""
        return replace(self, histograms={**self.histograms, **other.histograms})

    def ranges(self, method: str) -> dict[str, tuple[float, float]]:
        """(least, greatest) of every activation that was finite, by one of `targets.precision.RANGES`."""
        find = _METHODS[method]
        usable = {k: h for k, h in self.histograms.items() if h.seen and not h.infinite}
        return {k: find(h) for k, h in usable.items()}


def seen(
    model: onnx.ModelProto,
    tensors: Collection[str],
    samples: Samples,
    channels: Mapping[str, int],
    told: Callable[[int, int], None],
) -> Seen:
    """Run the model on all samples and look at these tensors.

    channels: the axis of the channels of tensors whose channels are told apart. told: how many samples are done, of
    how many. What is no array of single or half precision is left out.
    """
    given = {i.name for i in model.graph.input}
    names = sorted(set(tensors) - given)
    fed = sorted(set(tensors) & given)
    histograms = {k: Histogram() for k in (*names, *fed)}
    largest: dict[str, Doubles] = {}
    sizes: dict[str, int] = {}
    types: dict[str, int] = {}
    session = Session(observing(model, names, {}))
    size, done = samples.run_size(1), 0
    while done < len(samples):
        feeds = samples.slice(done, done + size)
        values: dict[str, Array] = session.run(feeds) if names else {}
        values |= {k: feeds[k] for k in fed if k in feeds}
        count = samples.count(feeds)
        whole = 0
        for name, value in values.items():
            if not isinstance(value, np.ndarray) or value.dtype not in (np.float32, np.float16):
                continue
            whole += value.nbytes
            types[name] = element_type(value.dtype)
            sizes[name] = max(value.size // count, sizes.get(name, 0))
            _count(histograms[name], value, len(samples) * value.size // count)
            if name in channels and value.size:
                axis = channels[name] % value.ndim
                others = tuple(a for a in range(value.ndim) if a != axis)
                peak = np.maximum(value.max(axis=others), -value.min(axis=others)).astype(np.float64)
                before = largest.get(name)
                largest[name] = peak if before is None or before.shape != peak.shape else np.maximum(before, peak)
        done += size
        told(min(done, len(samples)), len(samples))
        if samples.per_run is None:  # as many as fit
            size = int(np.clip(_RUN_BYTES * count // max(whole, 1), 1, _MOST_AT_ONCE))
    return Seen(
        histograms={k: histograms[k] for k in types},
        sizes=sizes,
        types=types,
        largest=largest,
        samples=len(samples),
    )


def _count(histogram: Histogram, value: Array, every: int) -> None:
    """Count the numbers of an activation of which there are so many in all samples."""
    if every <= _COUNTED:
        histogram.add(value)
        return
    finite = histogram.reach_to(value)
    step = -(-every // _COUNTED)
    while gcd(step, value.size) > 1:  # else whole columns of a picture were left out
        step += 1
    histogram.add(finite[::step])


def _by_ends(h: Histogram) -> tuple[float, float]:
    return h.least, h.most


def _by_percentile(h: Histogram) -> tuple[float, float]:
    total = h.counts.sum()
    if not total or h.edge == 0.0:
        return h.least, h.most
    left_out = (100.0 - _PERCENTILE) / 200.0
    below = np.cumsum(h.counts) / total
    low = h.edges[int(np.searchsorted(below, left_out))]
    high = h.edges[min(int(np.searchsorted(below, 1.0 - left_out)) + 1, h.bins)]
    return max(float(low), h.least), min(float(high), h.most)


def _by_entropy(h: Histogram) -> tuple[float, float]:
    if h.edge == 0.0:
        return h.least, h.most
    counts = h.counts.reshape(_ENTROPY_BINS, -1).sum(axis=1)
    reach = h.edge * 2.0 * bins_kept(counts) / _ENTROPY_BINS
    return max(-reach, h.least), min(reach, h.most)


_METHODS: Mapping[str, Callable[[Histogram], tuple[float, float]]] = {
    MIN_MAX: _by_ends,
    ENTROPY: _by_entropy,
    PERCENTILE: _by_percentile,
}
