"""Data for a prepared model, its activations as onnxruntime gives them, and what calibration knows of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.allocation.trial_cuts import TrialNetwork
from onnxprune.calibration.input_moments import InputMoments, collect
from onnxprune.calibration.layers import Layer, layers_of
from onnxprune.data.inputs import input_specs
from onnxprune.data.samples import Samples
from onnxprune.graph import protobuf
from onnxprune.runtime.session import Session
from tests.prepared import Prepared, prepare
from tests.topologies.text import Topology

Array = NDArray[Any]


def prepare_text(text: str, *, opset: int = 18) -> Prepared:
    """A graph in the shorthand of the topologies, normalised and traced at batch 2."""
    row = Topology(text, (), opset=opset)
    return prepare(row.model(), row.feeds(2))


def samples_of(p: Prepared, count: int, *, seed: int = 0, rank: int = 6) -> Samples:
    """`count` smooth samples: mixtures of `rank` patterns and a little noise, so that channels resemble each other."""
    specs = input_specs(p.original)
    rng = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for s in specs:
        shape = p.example[s.name].shape[1:]
        patterns = rng.standard_normal((rank, int(np.prod(shape))))
        mixed = rng.standard_normal((count, rank)) @ patterns / np.sqrt(rank)
        noise = 0.1 * rng.standard_normal(mixed.shape)
        arrays[s.name] = (mixed + noise + 0.3).reshape(count, *shape).astype(s.dtype)
    return Samples(specs, arrays)


def values(proto: onnx.ModelProto, names: Iterable[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Tensors of a model by one run of the part that computes them."""
    wanted = list(dict.fromkeys(names))
    found = {n: feeds[n] for n in wanted if n in feeds}
    computed = [n for n in wanted if n not in feeds]
    if computed:
        found.update(Session(protobuf.submodel(proto, {}, computed), optimize=False).run(feeds))
    return found


def every_position(layer: Layer, output: Array) -> NDArray[np.int64]:
    """All flat output positions."""
    axes = output.shape[2:] if layer.window is not None else output.shape[1:-1]
    return np.arange(int(np.prod(axes)))


def moments_of(p: Prepared, samples: Samples, seed: int = 0) -> tuple[tuple[Layer, ...], dict[str, InputMoments]]:
    """The layers, and the input moments of each."""
    layers = layers_of(p.channels)
    return layers, collect(p.normalised.proto, layers, samples, p.normalised.shapes, seed)


def trial_network(p: Prepared, layers: Sequence[Layer], moments: Mapping[str, InputMoments]) -> TrialNetwork:
    """The network as trials cut it."""
    return TrialNetwork(
        proto=p.normalised.proto, channels=p.channels, layers=layers, moments=moments, types=p.normalised.types
    )
