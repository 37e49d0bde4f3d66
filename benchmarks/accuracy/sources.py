"""Where calibration samples come from: a source is a function (kit, model, samples, seed) → inputs, or None for none.

`own`: a seeded choice of the model's own calibration inputs. `random`: none at all, so that the library uses its own
random inputs. The others are of images alone. `noise`: uniform over the range of every channel. Any other name is that
of another data set in the kit, the first part of its models' names: its images brought to the model's shape and
encoding. Each channel's range, from the least to the greatest value, is mapped onto that of the model's own inputs,
which is the same as to undo the one normalization of pixel values and to apply the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.accuracy.kits import Array, Inputs, Kit, chosen, input_name
from benchmarks.accuracy.runs import OWN

Source = Callable[[Kit, str, int, int], "Inputs | None"]


def own(kit: Kit, model: str, samples: int, seed: int) -> Inputs:
    """The calibration inputs that belong to this model."""
    return kit.own(model, samples, seed)


def random(kit: Kit, model: str, samples: int, seed: int) -> None:
    """No data: the library makes its own."""
    del kit, model, samples, seed


def noise(kit: Kit, model: str, samples: int, seed: int) -> Inputs:
    """Uniform over each channel's range."""
    like = kit.calib(model)
    low, high = ranges(like)
    shape = (samples, *like.shape[1:])
    return {input_name(kit.path(model)): np.random.default_rng(seed).uniform(low, high, shape).astype(like.dtype)}


def other(name: str) -> Source:
    """Inputs of another data set in the kit."""

    def images(kit: Kit, model: str, samples: int, seed: int) -> Inputs:
        """Resized, with as many channels, in the same range."""
        models = kit.models([f"{name}_*"])
        if not models:
            raise LookupError(f"no model of the kit starts with {name}_: its images cannot be had")
        every = kit.calib(models[0])
        found = brought(chosen(every, samples, seed), ranges(every), kit.calib(model))
        return {input_name(kit.path(model)): found}

    return images


SOURCES: Mapping[str, Source] = {OWN: own, "random": random, "noise": noise}


def source(name: str) -> Source:
    """By its name."""
    return SOURCES.get(name) or other(name)


def brought(x: Array, limits: tuple[Array, Array], like: Array) -> Array:
    """Images (N, C, H, W) of a set with these ranges, in the shape and the ranges of `like`."""
    low, high = limits
    share = (x - low) / np.where(high > low, high - low, 1.0)
    if x.shape[1] != like.shape[1]:
        share = np.repeat(share.mean(axis=1, keepdims=True), like.shape[1], axis=1)
    for axis in (2, 3):
        weights = resize_weights(share.shape[axis], like.shape[axis])
        share = np.moveaxis(np.tensordot(share, weights, (axis, 1)), -1, axis)
    low, high = ranges(like)
    return (low + share * (high - low)).astype(like.dtype)


def ranges(x: Array) -> tuple[Array, Array]:
    """Least and greatest value of each channel (axis 1), to broadcast against one sample."""
    axes = (0, *range(2, x.ndim))
    shape = (x.shape[1], *(1,) * (x.ndim - 2))
    return x.min(axis=axes).reshape(shape), x.max(axis=axes).reshape(shape)


def resize_weights(size: int, wanted: int) -> Array:
    """Bilinear resampling of an axis as a matrix (wanted, size), float32; averages over what it leaves out."""
    scale = size / wanted
    centres = (np.arange(wanted) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(size) - centres[:, None]) / max(scale, 1.0)
    weights = np.maximum(1.0 - distance, 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
