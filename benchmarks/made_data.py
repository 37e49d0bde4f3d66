"""Data for a model of which only the file is there, made from what its inputs are declared as.

A table of kinds, first match wins: what an input of a kind looks like (type, number of axes, which are free, its name
where that alone tells), and what stands in for it. Free dimensions get a size by their symbol, the same wherever it
stands. Nothing here knows a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

Array = np.ndarray[Any, Any]
_CHANNELS = (1, 3)
_SAMPLES_PER_SECOND = 16000
# Names of what a stream hands from one step to the next: zeros at its start.
_STATE = re.compile(r"(^|_)[hc]\d*$|state|hidden|cache|past", re.IGNORECASE)
# Scalars that only their names explain: bounds of a voice's pitch, in Hz.
_NAMED = {"fmin": 46.875, "fmax": 2093.75, "sr": 16000.0, "sample_rate": 16000.0}
_TEXT_LINE, _PICTURE, _FRAMES, _NODES, _EDGES = (48, 320), (320, 320), 100, 24, 52


@dataclass(frozen=True)
class Port:
    """An input: its name, numpy type, sizes (None where free) and the symbols of its axes ("" where there is none)."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | None, ...]
    symbols: tuple[str, ...]

    @property
    def is_float(self) -> bool:
        """Whether it holds floating-point numbers."""
        return self.dtype.kind == "f"


@dataclass(frozen=True)
class Asked:
    """What an array is made for: the port, its shape with all samples, and a generator of its own."""

    port: Port
    shape: tuple[int, ...]
    rng: np.random.Generator
    ids: int


@dataclass(frozen=True)
class Kind:
    """What inputs look like that `make` makes an array for."""

    name: str
    fits: Callable[[Port], bool]
    make: Callable[[Asked], Array]


def ports_of(proto: onnx.ModelProto) -> tuple[Port, ...]:
    """The inputs that have to be fed."""
    weights = {t.name for t in proto.graph.initializer}
    return tuple(_port(v) for v in proto.graph.input if v.name not in weights)


def _port(v: onnx.ValueInfoProto) -> Port:
    dims = v.type.tensor_type.shape.dim
    sizes = tuple(int(d.dim_value) if d.dim_value > 0 else None for d in dims)
    dtype = helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)
    return Port(v.name, np.dtype(dtype), sizes, tuple(d.dim_param if d.dim_param != "?" else "" for d in dims))


# what stands in


def _smooth(a: Asked) -> Array:
    """Noise that varies slowly along the last two axes, as pictures and spectra do, of mean 0 and deviation 1."""
    *before, height, width = a.shape
    coarse = a.rng.standard_normal((*before, height // 8 + 2, width // 8 + 2))
    rows = np.minimum(np.arange(height) // 8, coarse.shape[-2] - 2), np.arange(height) % 8 / 8
    columns = np.minimum(np.arange(width) // 8, coarse.shape[-1] - 2), np.arange(width) % 8 / 8
    down = coarse[..., rows[0], :] * (1 - rows[1])[:, None] + coarse[..., rows[0] + 1, :] * rows[1][:, None]
    both = down[..., columns[0]] * (1 - columns[1]) + down[..., columns[0] + 1] * columns[1]
    noisy = both + 0.2 * a.rng.standard_normal(a.shape)
    return noisy / noisy.std()


def _picture(a: Asked) -> Array:
    """A bright, uneven ground with rows of dark strokes on it, as a page or a sign has."""
    count, channels, height, width = a.shape
    ground = 1 + 0.2 * _smooth(a)
    ink = np.zeros((count, 1, height, width))
    for i in range(count):
        size = int(a.rng.integers(12, max(13, min(height, 40))))
        for top in range(0, height - size + 1, size + 6):
            left = int(a.rng.integers(0, 9))
            while left + size < width * a.rng.uniform(0.7, 1.0):
                _glyph(ink[i, 0, top : top + size, left : left + size * 2 // 3], a.rng)
                left += size * 2 // 3 + 2
    return np.clip(ground - 2 * ink, -1, 1.5) * np.ones((1, channels, 1, 1))


def _glyph(box: Array, rng: np.random.Generator) -> None:
    """Draw a letter: some upright and level strokes, in place."""
    height, width = box.shape
    thick = max(1, height // 10)
    for _ in range(int(rng.integers(2, 5))):
        if rng.random() < 0.5:
            at = int(rng.integers(0, max(1, width - thick)))
            box[int(rng.integers(0, height // 3 + 1)) : height - thick, at : at + thick] = 1
        else:
            at = int(rng.integers(0, max(1, height - thick)))
            box[at : at + thick, : width - thick] = 1


def _wave(a: Asked) -> Array:
    """A voice: harmonics of a pitch that differs by sample, swelling and fading, with a little noise."""
    axis = int(np.argmax(a.shape[1:])) + 1
    count, length = a.shape[0], a.shape[axis]
    t = np.arange(length) / _SAMPLES_PER_SECOND
    pitch = a.rng.uniform(80, 400, (count, 1))
    voice = sum(np.sin(2 * np.pi * k * pitch * t + a.rng.uniform(0, 6.28, (count, 1))) / k for k in range(1, 9))
    loud = 0.1 * (1 + np.sin(2 * np.pi * a.rng.uniform(1, 4, (count, 1)) * t))
    return (loud * voice + 0.005 * a.rng.standard_normal((count, length))).reshape(a.shape)


def _unit(a: Asked) -> Array:
    drawn = a.rng.standard_normal(a.shape)
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def _ids(a: Asked) -> Array:
    """Numbers of words or bytes: few are frequent, most are rare."""
    return np.minimum(a.rng.zipf(1.3, a.shape) - 1, a.ids - 1)


def _edges(a: Asked) -> Array:
    """Edges of a graph, each in both directions."""
    half = a.rng.integers(0, _NODES, (2, (a.shape[1] + 1) // 2))
    return np.concatenate([half, half[::-1]], axis=1)[:, : a.shape[1]]


def _named(a: Asked) -> Array:
    return np.full(a.shape, _NAMED.get(a.port.name, 1.0))


def _free(p: Port, *axes: int) -> bool:
    return all(p.dims[a] is None for a in axes)


def is_picture(p: Port) -> bool:
    """Whether four axes are those of pictures: few channels, and no free time in front of a fixed number of bands."""
    return p.dims[1] in _CHANNELS and (p.dims[3] is None or p.dims[2] is not None)


KINDS: tuple[Kind, ...] = (
    Kind("number", lambda p: not p.dims, _named),
    Kind("state", lambda p: p.is_float and bool(_STATE.search(p.name)), lambda a: np.zeros(a.shape)),
    Kind("edges", lambda p: not p.is_float and len(p.dims) == 2 and p.dims[0] == 2 and _free(p, 1), _edges),
    Kind("owner", lambda p: not p.is_float and len(p.dims) == 1, lambda a: np.zeros(a.shape)),
    Kind("ids", lambda p: not p.is_float, _ids),
    Kind("flag", lambda p: len(p.dims) == 1, lambda a: np.ones(a.shape)),
    Kind("picture", lambda p: len(p.dims) == 4 and is_picture(p), _picture),
    Kind("spectra", lambda p: len(p.dims) == 4, _smooth),
    Kind("wave", lambda p: len(p.dims) == 2 and _free(p, 1), _wave),
    Kind("wave of one channel", lambda p: len(p.dims) == 3 and p.dims[2] == 1, _wave),
    Kind("features by time", lambda p: len(p.dims) == 3, _smooth),
    Kind("embedding or features", lambda p: len(p.dims) == 2, _unit),
)


# sizes


def sizes(proto: onnx.ModelProto, ports: tuple[Port, ...]) -> dict[tuple[str, int], int]:
    """The size of each free axis that counts no samples, by name of the input and axis."""
    outputs = [len(v.type.tensor_type.shape.dim) for v in proto.graph.output]
    found: dict[tuple[str, int], int] = {}
    for p in ports:
        for axis, size in enumerate(p.dims):
            if size is None:
                found[p.name, axis] = _size(p, axis, outputs)
    return found


def _size(p: Port, axis: int, outputs: list[int]) -> int:
    if len(p.dims) == 4 and is_picture(p):
        # A row of classes per picture is a line of text that is read; a map is a picture.
        return (_TEXT_LINE if outputs[0] <= 3 else _PICTURE)[axis - 2]
    if len(p.dims) == 2 and axis == 1 and p.is_float:
        return _SAMPLES_PER_SECOND
    return _FRAMES


def is_graph(ports: tuple[Port, ...]) -> bool:
    """Whether nodes and edges stand in front: then a file is one run."""
    return any(KINDS[2].fits(p) for p in ports)


def states_of(path: Path) -> list[tuple[str, str]]:
    """(output, input) of each state: where as many outputs are declared as the inputs of that kind are, in order."""
    proto = onnx.load(path)
    asked = {p.name for p in ports_of(proto) if next(k for k in KINDS if k.fits(p)).name == "state"}
    inputs = [v for v in proto.graph.input if v.name in asked]
    pairs: list[tuple[str, str]] = []
    for declared in dict.fromkeys(v.type.SerializeToString(deterministic=True) for v in inputs):
        own, given = (
            [v.name for v in side if v.type.SerializeToString(deterministic=True) == declared]
            for side in (inputs, proto.graph.output)
        )
        pairs += zip(given, own, strict=True) if len(given) == len(own) else ()
    return pairs


def make(path: Path, folder: Path, count: int, seed: int = 0) -> tuple[Path, dict[str, Array]]:
    """Write data for a model file: (a .npz or a folder of them, the feeds of one run).

    States that the model hands itself are none of the data, but among the feeds.
    """
    proto = onnx.load(path)
    ports = ports_of(proto)
    ids = min([t.dims[0] for t in proto.graph.initializer if len(t.dims) == 2 and t.dims[0] > 1] or [256])
    rng = np.random.default_rng(seed)
    if is_graph(ports):
        target = folder / f"{path.stem}_data"
        target.mkdir()
        runs = [_graph(ports, rng) for _ in range(count)]
        for i, feeds in enumerate(runs):
            np.savez(target / f"{i:04}.npz", **feeds)
        return target, runs[0]
    free = sizes(proto, ports)
    batch = next((p.symbols[0] for p in ports if p.dims and p.dims[0] is None), "")
    arrays, first = {}, {}
    for p in ports:
        kind = next(k for k in KINDS if k.fits(p))
        axis = _samples_axis(p, batch)
        shape = [free.get((p.name, i), d) or 1 for i, d in enumerate(p.dims)]
        one = p.dims[axis] or 1 if axis is not None else 1
        if axis is not None and not (kind.name == "state" and p.dims[axis] is not None):
            shape[axis] = -(-count // one) * one
        # Samples are made in front and moved where they belong.
        moved = [shape.pop(axis), *shape] if axis is not None else shape
        made = kind.make(Asked(p, tuple(moved), rng, ids)).astype(p.dtype)
        arrays[p.name] = np.moveaxis(made, 0, axis) if axis is not None else made
        first[p.name] = arrays[p.name] if axis is None else np.take(arrays[p.name], range(one), axis)
    target = folder / f"{path.stem}_data.npz"
    fed = {i for _, i in states_of(path)}
    np.savez(target, **{k: v for k, v in arrays.items() if k not in fed})
    return target, first


def _samples_axis(p: Port, batch: str) -> int | None:
    """The axis that counts samples: the one of the batch's symbol, else the first."""
    if not p.dims:
        return None
    return p.symbols.index(batch) if batch and batch in p.symbols else 0


def _graph(ports: tuple[Port, ...], rng: np.random.Generator) -> dict[str, Array]:
    """One graph: what stands along the axis of the edges has one entry for each, and so of the nodes and graphs."""
    edges = next(p for p in ports if KINDS[2].fits(p))
    lengths = {edges.symbols[1]: _EDGES}
    for p in ports:
        if p is not edges and p.symbols and p.symbols[0] not in lengths:
            lengths[p.symbols[0]] = _NODES if len(p.dims) > 1 else 1
    feeds = {}
    for p in ports:
        kind = next(k for k in KINDS if k.fits(p))
        shape = tuple(lengths[s] if d is None else d for s, d in zip(p.symbols, p.dims, strict=True))
        feeds[p.name] = kind.make(Asked(p, shape, rng, _NODES)).astype(p.dtype)
    return feeds


def entries(path: Path) -> int:
    """Entries of the largest input in one sample; its free axes have the sizes that data are made with."""
    proto = onnx.load(path)
    ports = ports_of(proto)
    free = sizes(proto, ports)
    return max(
        int(np.prod([free.get((p.name, i), d) or 1 for i, d in enumerate(p.dims)][1:], initial=1)) for p in ports
    )


def described(path: Path) -> Mapping[str, str]:
    """The kind of every input of a model file, by name."""
    return {p.name: next(k.name for k in KINDS if k.fits(p)) for p in ports_of(onnx.load(path))}
