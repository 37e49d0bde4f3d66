"""One streaming pass over the data: the input Gram of every layer that reads removable channels.

Memory does not depend on the number of samples. A layer with more columns than `WIDE`, many of them to each channel,
gets the Gram of its channels' *contributions* to its output instead of that of its columns: then only the scale of a
channel can be refitted. Where each column is a channel of its own, that Gram would be as large, and much more work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import starmap
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.calibration.gram_graph import GramGraph, Inputs
from onnxprune.calibration.layers import Layer
from onnxprune.data.batches import HOLD_OUT, batch_size
from onnxprune.data.samples import Samples
from onnxprune.graph import external, protobuf
from onnxprune.jobs.work import Here, Scheduler, Work
from onnxprune.numerics.arrays import Array, Doubles, Floats, Ints
from onnxprune.numerics.gram import PACKED, Gram
from onnxprune.numerics.least_squares import inverse_spd
from onnxprune.numerics.ridge import RIDGES, chosen
from onnxprune.process import spill
from onnxprune.runtime.session import PROVIDERS, Session
from onnxprune.threads import mapped, prefetched

WIDE = 5000
# Columns of a channel, on average, from which on the contributions of channels are summed.
_COLUMNS_PER_CHANNEL = 2
_ROWS_PER_COLUMN = 24
_MIN_POSITIONS, _MAX_POSITIONS = 16, 64
_CHUNK_BYTES = 64 << 20
# What a batch feeds takes no more; that of images and texts is far from it.
_FED_BYTES = 256 << 20
# Parts of a pass, where there are workers: fewer where all of their sums would take more than so much memory.
SHARDS = 8
_SHARD_BYTES = 1 << 30
# What the moments of one layer take while its ridge is chosen, for each of their entries.
_RESULT_BYTES = 20


@dataclass(frozen=True, eq=False)
class InputMoments:
    """What calibration knows of one layer's input.

    moments: E[x xᵀ], (g, D, D), where the layer is not wide; else (1, U, U), the Gram of the contributions of its U
    distinct classes, with `classes` (U,) naming them; in a file where it is large. ridge: the relative ridge with which
    a refit on some of the batches does best on the others: near zero where the data is plenty, large where columns are
    many and samples few.
    """

    moments: Doubles | spill.Spilled
    ridge: float
    classes: Ints | None = None
    _inverses: dict[float, spill.Spilled] = field(default_factory=dict, repr=False)

    @property
    def p(self) -> Floats:
        """The moments, read anew each time where they lie in a file, then in the precision that they lie there in."""
        return self.moments.load() if isinstance(self.moments, spill.Spilled) else self.moments

    def block(self, columns: Ints) -> Doubles:
        """p[0] at these columns alone, (k, k)."""
        rows = self.moments.rows(columns) if isinstance(self.moments, spill.Spilled) else self.moments[:, columns]
        block: Doubles = rows[0][:, columns].astype(np.float64)
        return block

    def inverse(self, columns: Ints, ridge: float) -> Doubles:
        """Rows `columns` of (p[0] + Λ)⁻¹ with Λ = (JITTER + ridge) diag(p[0]), (k, D); computed once for every ridge.

        For layers that many groups share: each asks for the rows of its own columns.
        """
        if ridge not in self._inverses:
            self._inverses[ridge] = spill.Spilled(inverse_spd(self.p[0], ridge).T)
        return self._inverses[ridge].rows(columns)

    def with_ridge(self, ridge: float) -> InputMoments:
        """The same moments for another layer that reads the same."""
        return replace(self, ridge=ridge)

    def arrays(self) -> dict[str, Array]:
        """What `of_arrays` makes the same moments of, but for the ridge."""
        return {"moments": self.p} if self.classes is None else {"moments": self.p, "classes": self.classes}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Array]) -> InputMoments:
        """Moments of what `arrays` gave, in a file where they are large."""
        p = arrays["moments"]
        large = p.shape[-1] >= PACKED
        return cls(spill.Spilled(p) if large else p, RIDGES[0], arrays.get("classes"))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_inverses": {}}  # as large as the moments, and computed as fast as they are sent


def positions_for(columns: int, samples: int) -> int:
    """Output positions to sample per image, so that a regression has some 24 rows per column."""
    wanted = -(-_ROWS_PER_COLUMN * columns // max(samples, 1))
    return int(np.clip(wanted, _MIN_POSITIONS, _MAX_POSITIONS))


def collect(
    proto: onnx.ModelProto,
    layers: Sequence[Layer],
    samples: Samples,
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
    scheduler: Scheduler | None = None,
    provider: str = "cpu",
) -> dict[str, InputMoments]:
    """Input moments of each layer, by weight name. provider: of `runtime.session.PROVIDERS`, for this pass."""
    if not layers:
        return {}
    scheduler = scheduler or Here()
    shared = sharing(layers)
    leaders = [x for x in layers if x.weight in shared]
    work = InputSums.of(proto, leaders, samples, shapes, seed, provider)
    total = summed(work, samples, scheduler)
    return dict(moments_of(leaders, shared, external.Weights(proto.graph.initializer), total))


def summed(work: InputSums, samples: Samples, scheduler: Scheduler) -> dict[str, tuple[Gram, ...]]:
    """The sums of all samples by weight name, computed where the scheduler says."""
    # One process adds everything up in one place; sums of parts would take as much memory again.
    parts = shards(samples, work.batch, _shards_for(work.layers) if scheduler.workers else 1)
    total: dict[str, tuple[Gram, ...]] = {}
    for sums in scheduler.map(work, parts, len(parts)):
        for name, layer_sums in sums.items():
            for old, new in zip(total.setdefault(name, layer_sums), layer_sums, strict=True):
                if old is not new:
                    old.merge(new)
    return total


def sharing(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """The layers that have one Gram, by the weight of the first of them: they read one tensor in the same way."""
    found: dict[tuple[Any, ...], list[Layer]] = {}
    for x in layers:
        own = x.window is not None or is_wide(x)
        key = (x.weight,) if own else (type(x), x.data, x.bias != "", x.groups, x.columns(0).tobytes())
        found.setdefault(key, []).append(x)
    return {alike[0].weight: alike for alike in found.values()}


def moments_of(
    leaders: Sequence[Layer],
    shared: Mapping[str, Sequence[Layer]],
    weights: Mapping[str, Array],
    sums: dict[str, tuple[Gram, ...]],
) -> Iterator[tuple[str, InputMoments]]:
    """Weight and moments of each layer, of those that share the sums of a leader one after the other.

    sums: by the weight of the leader; they are given up.
    """

    def moments(leader: Layer) -> list[tuple[str, InputMoments]]:
        return accumulator(leader, weights, sums.pop(leader.weight)).results(shared[leader.weight])

    # The widest last: by then the sums of the others lie in files.
    narrowest = sorted(leaders, key=_summed)
    for found in mapped(moments, narrowest, lambda layer: _RESULT_BYTES * _summed(layer) ** 2):
        yield from found


def grams(
    proto: onnx.ModelProto,
    layers: Sequence[Layer],
    samples: Samples,
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
    provider: str = "cpu",
) -> dict[str, Doubles]:
    """P = E[x xᵀ] of each layer's input, (g, D, D), by weight name; wide layers are left out.

    provider: of PROVIDERS, what the model runs on; the products are summed here.
    """
    narrow = [layer for layer in layers if not is_wide(layer)]
    sums = {layer.weight: Gram.zeros(layer.groups, len(layer.columns(0))) for layer in narrow}
    if narrow:
        work = replace(InputSums.of(proto, narrow, samples, shapes, seed), provider=provider)
        work.on_host(Shard(0, samples), lambda layer, rows, _: sums[layer.weight].update(rows))
    return {name: s.result() for name, s in sums.items()}


# Number, positions, outputs and Grams of one batch.
_Computed = tuple[int, Mapping[str, Ints], Mapping[str, Array], Mapping[str, Gram]]


@dataclass(frozen=True, eq=False)
class Shard:
    """Some consecutive batches of a pass: the number of the first, and the samples of all of them."""

    first: int
    samples: Samples


def shards(samples: Samples, batch: int, count: int) -> list[Shard]:
    """The whole pass in at most `count` shards of whole batches, of `batch` samples each."""
    batches = -(-len(samples) // batch)
    per_shard = -(-batches // count)
    return [
        Shard(first, samples.part(first * batch, (first + per_shard) * batch)) for first in range(0, batches, per_shard)
    ]


def _shards_for(layers: Sequence[Layer]) -> int:
    """Shards of one pass: each gives back the moments of all layers. They depend on nothing but the layers."""
    size = sum(2 * 8 * x.groups * _summed(x) ** 2 for x in layers)
    return int(np.clip(_SHARD_BYTES // max(size, 1), 2, SHARDS))


@dataclass(frozen=True, eq=False)
class InputSums(Work[Shard, dict[str, tuple[Gram, ...]]]):
    """The sums of one shard by weight name, as `merge` of the accumulators takes them.

    proto: what computes the layers' inputs. weights: of the layers whose contributions are summed. batch, total:
    samples of a batch, and of the whole pass. inputs: by the samples of a batch, what layers read in it, where the
    Grams are computed by the model itself; None where they are computed here. among: where these layers are a block of
    those of the pass, all of them; shapes: of the tensors, as far as they are known.
    """

    proto: onnx.ModelProto
    layers: tuple[Layer, ...]
    weights: Mapping[str, Array]
    batch: int
    total: int
    seed: int
    provider: str = "cpu"
    inputs: Mapping[int, Inputs] | None = None
    among: tuple[Layer, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        proto: onnx.ModelProto,
        layers: Sequence[Layer],
        samples: Samples,
        shapes: Mapping[str, tuple[int, ...]],
        seed: int,
        provider: str = "cpu",
        *,
        appended: bool | None = None,
    ) -> InputSums:
        """For one pass over `samples`. appended: whether the model computes the Grams; so it does but on the CPU."""
        tensors = sorted({layer.data for layer in layers})
        bound = samples.arrangement.samples_in(shapes)
        fed = [s.name for s in samples.sampled if s.name in shapes]
        most = batch_size(shapes, bound, fed, len(samples), _FED_BYTES)  # what is read next lies beside it
        batch = samples.run_size(min(batch_size(shapes, bound, tensors, len(samples)), most))
        stored = {n for layer in layers if is_wide(layer) for n in layer.stored}
        weights = external.Weights(t for t in proto.graph.initializer if t.name in stored)
        part = protobuf.submodel(proto, {}, tensors)
        work = cls(part, tuple(layers), weights, batch, len(samples), seed, provider, shapes=shapes)
        if provider == "cpu" if appended is None else not appended:
            return work
        # The graph needs positions before the run that shows the shapes; these depend on the size of the batch alone.
        inputs: dict[int, Inputs] = {}
        last = (len(samples) - 1) // batch * batch
        for start in (0, last):
            feeds = samples.slice(start, start + batch)
            if samples.count(feeds) not in inputs:
                values = work.session.run(feeds)
                inputs[samples.count(feeds)] = {t: (values[t].shape, values[t].dtype) for t in tensors}
        return replace(work, inputs=inputs)

    def of_block(self, layers: Sequence[Layer]) -> InputSums:
        """The sums of some of the layers alone, at the positions of the whole pass."""
        part = protobuf.submodel(self.proto, {}, sorted({x.data for x in layers}))
        return replace(self, proto=part, layers=tuple(layers), among=self.among or self.layers)

    def __call__(self, item: Shard) -> dict[str, tuple[Gram, ...]]:
        """Sums over the batches of a shard."""
        accumulators = {layer.weight: accumulator(layer, self.weights) for layer in self.layers}
        if self.inputs is None:
            self.on_host(item, lambda layer, rows, held: accumulators[layer.weight].update(rows, held=held))
            return {name: a.sums for name, a in accumulators.items()}
        for layer, rows_or_gram, held in self.on_device(item, self.inputs):
            a = accumulators[layer.weight]
            if isinstance(rows_or_gram, Gram):
                a.add(rows_or_gram, held=held)
            else:
                a.update(rows_or_gram, held=held)
        return {name: a.sums for name, a in accumulators.items()}

    def portable(self) -> InputSums:
        """The same work with the weights inside, as another machine needs it."""
        weights = {k: np.array(v) for k, v in self.weights.items()}
        return replace(self, proto=external.sendable(self.proto), weights=weights)

    @cached_property
    def session(self) -> Session:
        """Runs the part of the model that computes the layers' inputs."""
        return Session(self.proto, providers=PROVIDERS[self.provider])

    def on_host(self, shard: Shard, take: Callable[[Layer, Floats, bool], None]) -> None:
        """`take` each layer's rows X (g, R, D) of each batch at sampled positions, and whether it is held out.

        Layers are taken in several threads, the batches of one layer one after the other.
        """
        for index, values in enumerate(prefetched(self.session.run(f) for f in self._batches(shard)), shard.first):
            self.take_batch(index, values, self.positions_of(index, values), self.layers, take)

    def take_batch(
        self,
        index: int,
        values: Mapping[str, Array],
        positions: Mapping[str, Ints],
        layers: Sequence[Layer],
        take: Callable[[Layer, Floats, bool], None],
    ) -> None:
        """`take` the rows of these layers in one batch, several layers at the same time."""
        one = partial(self._taken, values, positions, self.is_held(index), take)
        deque(mapped(one, sorted(layers, key=lambda layer: -len(layer.columns(0)))), maxlen=0)

    @staticmethod
    def _taken(
        values: Mapping[str, Array],
        positions: Mapping[str, Ints],
        held: bool,
        take: Callable[[Layer, Floats, bool], None],
        layer: Layer,
    ) -> None:
        take(layer, layer.rows(_single(values[layer.data]), positions[layer.weight]), held)

    @cached_property
    def _appended(self) -> tuple[GramGraph, Session]:
        """The model with the Grams of all layers but the wide ones, whose inputs it gives out."""
        batch_inputs = next(iter((self.inputs or {}).values()))
        wide = sorted({x.data for x in self.layers if is_wide(x)})
        graph = GramGraph.of(self.proto, [x for x in self.layers if not is_wide(x)], batch_inputs, wide)
        return graph, Session(graph.proto, providers=PROVIDERS[self.provider])

    def on_device(self, shard: Shard, inputs: Mapping[int, Inputs]) -> Iterator[tuple[Layer, Floats | Gram, bool]]:
        """Yield what `on_host` passes on, with the Gram of the rows in their place where the model computes it."""
        graph, session = self._appended

        def run(index: int, feeds: Mapping[str, Array]) -> _Computed:
            batch_inputs = inputs[shard.samples.count(feeds)]
            positions = self.positions(index, {t: shape for t, (shape, _) in batch_inputs.items()})
            values = session.run({**feeds, **graph.feeds(positions, batch_inputs)})
            sums = graph.sums(values, positions, batch_inputs)
            if sums is None:  # sizes that depend on the data were not known in time
                values = self.session.run(feeds)
                positions = self.positions(index, {t: v.shape for t, v in values.items()})
            return index, positions, values, sums or {}

        for index, positions, values, sums in prefetched(starmap(run, enumerate(self._batches(shard), shard.first))):
            for layer in self.layers:
                gram = sums.get(layer.weight)
                rows = layer.rows(_single(values[layer.data]), positions[layer.weight]) if gram is None else gram
                yield layer, rows, self.is_held(index)

    def _batches(self, shard: Shard) -> Iterator[dict[str, Array]]:
        return shard.samples.batches(self.batch)

    def drawn(self, layer: Layer, shape: tuple[int, ...], rng: np.random.Generator) -> Ints:
        """The positions of one layer in a batch. shape: of the tensor that it reads."""
        return layer.positions(layer.output_shape(shape), positions_for(len(layer.columns(0)), self.total), rng)

    def positions(self, index: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Ints]:
        """The sampled output positions of each layer in one batch, by weight name.

        They depend on the seed and the number of the batch, not on who runs it.
        """
        rng = np.random.default_rng((self.seed, index))
        return {x.weight: self.drawn(x, shapes[x.data], rng) for x in self.among or self.layers}

    def positions_of(self, index: int, values: Mapping[str, Array]) -> dict[str, Ints]:
        """The sampled positions in one batch, of which `values` may be a part: those of a run of the whole model, where
        sizes are as they are known.

        One sequence of random numbers serves all layers. Where a tensor has another size than it is known to have, its
        place in that sequence cannot be told from a part of the model: then each layer draws for itself.
        """
        among = self.among or self.layers
        tensors = {x.data for x in among}
        if tensors <= values.keys():
            return self.positions(index, {t: values[t].shape for t in tensors})
        if tensors <= self.shapes.keys() and all(v.shape[1:] == tuple(self.shapes[t][1:]) for t, v in values.items()):
            return self.positions(index, {t: tuple(self.shapes[t]) for t in tensors})
        return {
            x.weight: self.drawn(x, values[x.data].shape, np.random.default_rng((self.seed, index, place)))
            for place, x in enumerate(among)
            if x.data in values
        }

    @staticmethod
    def is_held(index: int) -> bool:
        """Whether a batch judges what the others fit."""
        return index % HOLD_OUT == HOLD_OUT - 1


def _single(x: Array) -> Floats:
    """Half precision is widened: its products overflow."""
    return x.astype(np.float32) if x.dtype.itemsize < 4 else x


def is_wide(layer: Layer) -> bool:
    """Whether a layer's columns are too many for their Gram, and its channels fewer."""
    columns = len(layer.columns(0))
    return layer.groups == 1 and columns > WIDE and columns >= _COLUMNS_PER_CHANNEL * np.unique(layer.columns(0)).size


def gram_bytes(layer: Layer) -> int:
    """What the sums of a layer take while batches are added, those for judging included."""
    columns, entry = _summed(layer), 8
    if columns >= PACKED:
        columns, entry = columns + 1, 2  # single precision, and one triangle
    return 2 * entry * layer.groups * columns**2


def _summed(layer: Layer) -> int:
    """Columns of the Gram that a layer gets."""
    return np.unique(layer.columns(0)).size if is_wide(layer) else len(layer.columns(0))


class _Columns:
    def __init__(self, layer: Layer, weights: Mapping[str, Array], sums: tuple[Gram, ...] = ()) -> None:
        self.layer, self.weights = layer, weights
        shape = layer.groups, len(layer.columns(0))
        self.fit, self.held = self.sums = sums or (Gram.zeros(*shape), Gram.zeros(*shape))

    def update(self, rows: Floats, *, held: bool) -> None:
        (self.held if held else self.fit).update(rows)

    def add(self, gram: Gram, *, held: bool) -> None:
        (self.held if held else self.fit).merge(gram)

    def results(self, layers: Sequence[Layer]) -> list[tuple[str, InputMoments]]:
        """Weight and moments of the layers that share the sums, which are given up."""
        fit, held = self.sums
        del self.fit, self.held, self.sums
        ridges = [RIDGES[0]] * len(layers)
        if held.rows:
            # The groups of a convolution are alike; one of them tells enough.
            p, q = fit.first(), held.first()
            ridges = [chosen(p, q, x.matrix(self.weights)[0], x.columns(0)) for x in layers]
            del p, q
        fit.merge(held)
        del held
        moments, inverses = _kept(fit), dict[float, spill.Spilled]()
        return [(x.weight, InputMoments(moments, r, None, inverses)) for x, r in zip(layers, ridges, strict=True)]


def _kept(gram: Gram) -> Doubles | spill.Spilled:
    """The result of a Gram, in a file where it is large: those of all layers are more than the model itself."""
    return spill.Spilled(gram.means()) if gram.packed else gram.result()


class _Contributions:
    """Gram of the contributions of whole classes of columns: O(rows · U² · M) instead of D² memory."""

    def __init__(self, layer: Layer, weights: Mapping[str, Array], sums: tuple[Gram, ...] = ()) -> None:
        self.classes, owner = np.unique(layer.columns(0), return_inverse=True)
        order = np.argsort(owner, kind="stable")
        self.members = np.split(order, np.cumsum(np.bincount(owner))[:-1])
        self.layer, self.weights = layer, weights
        (self.gram,) = self.sums = sums or (Gram.zeros(1, self.classes.size),)

    @cached_property
    def w(self) -> NDArray[np.float32]:
        """The weight matrix, (D, M); it is read once rows come."""
        matrix: NDArray[np.float32] = self.layer.matrix(self.weights, np.float32)[0]
        return matrix

    def update(self, rows: Floats, *, held: bool) -> None:
        x = rows[0].astype(np.float32)
        outputs = self.w.shape[1]
        chunk = max(1, _CHUNK_BYTES // (4 * self.classes.size * outputs))
        for start in range(0, len(x), chunk):
            part = x[start : start + chunk]
            s = np.stack([part[:, c] @ self.w[c] for c in self.members])
            self.gram.update(s.reshape(1, len(self.members), -1).transpose(0, 2, 1))

    def add(self, gram: Gram, *, held: bool) -> None:
        del held  # no ridge is chosen
        self.gram.merge(gram)

    def results(self, layers: Sequence[Layer]) -> list[tuple[str, InputMoments]]:
        """Weight and moments of the one layer."""
        # The Gram's rows are pairs of a row of the layer and an output.
        moments = InputMoments(self.gram.result() * self.layer.outputs.size, RIDGES[-1], self.classes)
        return [(x.weight, moments) for x in layers]


def accumulator(layer: Layer, weights: Mapping[str, Array], sums: tuple[Gram, ...] = ()) -> _Columns | _Contributions:
    """sums: those of an accumulator for the same layer, elsewhere."""
    return _Contributions(layer, weights, sums) if is_wide(layer) else _Columns(layer, weights, sums)
