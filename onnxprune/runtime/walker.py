"""Run a model forward in instalments over all samples, keeping only the tensors that later parts still need.

Between two instalments a frontier of activations is kept for every batch, so that nothing upstream runs twice. Batches
that would exceed the memory limit lie in files (`spill.Spilled`) and are read one by one. A frontier that takes longer
to write and to read than to compute again is not kept: the next instalment starts from the last one that was.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from math import prod

import onnx

from onnxprune.data.batches import BATCH, HOLD_OUT, batch_size
from onnxprune.data.samples import Samples
from onnxprune.errors import RunError
from onnxprune.graph import protobuf
from onnxprune.graph.bodies import captured_names
from onnxprune.graph.operators import FIRST_ONLY, NARY, UNARY
from onnxprune.graph.view import sample_bytes
from onnxprune.numerics.arrays import Array
from onnxprune.process.spill import Spilled
from onnxprune.runtime.session import PROVIDERS, Session
from onnxprune.runtime.taps import Tap, as_expected, with_taps

# Tensors of a batch that a runtime holds at the same time, about: the few largest.
_HELD_AT_ONCE = 6
# Batches whose tensors have other shapes than expected, after which taps are given up.
_UNEXPECTED = 2
# Files of less than this stay in the system's cache, and to use them costs no more than any copy.
_CACHED_BYTES = 2 << 30
# Nanoseconds, about: a byte written to a larger file or read from one, a byte that an operator gives out, and a
# multiplication. They only have to tell an elementwise or a thin operator from a heavy one.
_FILE_NS, _OUTPUT_NS, _MULTIPLICATION_NS = 1.0, 0.1, 0.02
_QUICK = {*UNARY, *FIRST_ONLY, *NARY, "BatchNormalization", "Concat", "Transpose"}


class Walker:
    """One model on one data set. `proto` may be changed between calls, behind what was already asked for."""

    def __init__(
        self,
        proto: onnx.ModelProto,
        samples: Samples,
        types: Mapping[str, int],
        shapes: Mapping[str, tuple[int, ...]],
        memory: int,
        *,
        hold_out: bool = True,
        batch: int | None = None,
        provider: str = "cpu",
    ) -> None:
        """hold_out: make the batches small enough that some can be held out from a fit; batch: samples of each, where
        that is known already; provider: of PROVIDERS, what the model runs on."""
        self.proto: onnx.ModelProto = proto
        self.samples: Samples = samples
        self.memory: int = memory
        self._providers = PROVIDERS[provider]
        self._types = dict(types)
        self._shapes, self._bound = shapes, samples.arrangement.samples_in(shapes)
        if batch is None:
            batch = runtime_batch(shapes, proto, len(samples) if hold_out else None, bound=self._bound)
        size = samples.run_size(batch)
        starts = range(0, len(samples), size)
        self._batches: list[Mapping[str, Array]] = [_Inputs(samples, start, start + size) for start in starts]
        self.counts: list[int] = [min(size, len(samples) - start) for start in starts]
        self._available = {s.name for s in samples.specs}
        self._done: set[int] = set()
        self._weights = {t.name: tuple(t.dims) for t in proto.graph.initializer}
        self._readers: dict[str, list[int]] = {}
        self._producer: dict[str, int] = {}
        for i, n in enumerate(proto.graph.node):
            for name in (*n.input, *captured_names(n)):
                self._readers.setdefault(name, []).append(i)
            self._producer.update((o, i) for o in n.output if o)

    @property
    def frontier(self) -> dict[str, int]:
        """The tensors that are kept at present, with their element types."""
        return {t: self._types[t] for t in sorted(self._available)}

    @property
    def batches(self) -> Sequence[Mapping[str, Array]]:
        """The kept tensors of every batch, read when they are asked for."""
        return self._batches

    @property
    def available(self) -> AbstractSet[str]:
        """The names of the kept tensors."""
        return self._available

    def advance(
        self,
        names: Sequence[str],
        *,
        stay: bool = False,
        taps: Sequence[Tap] = (),
        positions: Callable[[int], Mapping[str, Array]] = lambda _: {},
    ) -> Iterator[dict[str, Array]]:
        """The tensors `names`, batch by batch; everything that they need is run, nothing behind them.

        stay: look ahead only; what is kept between two instalments does not move. taps: of tensors that are not kept;
        what they give comes too, or the whole tensors where these have other shapes than expected. positions: of a
        batch, by the inputs of the taps.
        """
        tapped = [tap.tensor for tap in taps]
        executed = self._done | self._needed((*names, *tapped))
        reached = self._available | {o for i in executed for o in self.proto.graph.node[i].output if o}
        frontier = {t for t in reached if any(i not in executed for i in self._readers.get(t, ()))}
        # What is no tensor (a sequence, say) cannot be fed back, so such a frontier is not one to start from.
        move = frontier <= set(self._types) | self._available and not stay
        move = move and self._worth_keeping(frontier, executed - self._done)
        in_memory = self._in_memory(frontier)
        produced = [t for t in dict.fromkeys((*names, *sorted(frontier if move else ()))) if t not in self._available]
        run = self._runs(produced, taps, positions)
        for index, before in enumerate(self._batches):
            values = run(index, before)
            given = [x for t in taps for x in (t.name, t.tensor) if x in values]
            yield {t: values[t] if t in values else before[t] for t in (*names, *given)}
            if move:
                self._batches[index] = _Kept.of(before, values, frontier, spill=index >= in_memory)
        if move:
            self._available, self._done = frontier, executed

    def move_to(self, names: Sequence[str]) -> None:
        """Run everything that the tensors `names` need, for all batches, and start from there from now on."""
        for _ in self.advance(names):
            pass

    def _runs(
        self, produced: Sequence[str], taps: Sequence[Tap], positions: Callable[[int], Mapping[str, Array]]
    ) -> Callable[[int, Mapping[str, Array]], dict[str, Array]]:
        """What computes the tensors `produced` of a batch from those that are kept, and what the taps give."""
        if not produced and not taps:
            return lambda index, before: {}
        whole = [*dict.fromkeys((*produced, *(tap.tensor for tap in taps)))]
        part = protobuf.submodel(self.proto, self.frontier, whole)

        @cache
        def plain() -> Session:
            return Session(part, pooled=True, providers=self._providers)

        if not taps:
            return lambda index, before: plain().run({t: before[t] for t in plain().inputs})
        session = Session(with_taps(part, produced, taps), pooled=True, providers=self._providers)
        unexpected: list[int] = []

        def run(index: int, before: Mapping[str, Array]) -> dict[str, Array]:
            chosen = positions(index)
            values: dict[str, Array] = {}
            if len(unexpected) < _UNEXPECTED:  # sizes that follow the batch are never as expected
                # A position that a smaller tensor does not have is an error; the other session tells if it is another.
                with suppress(RunError):
                    values = session.run({**{t: before[t] for t in session.inputs if t not in chosen}, **chosen})
            if values and as_expected(taps, values):
                return values
            unexpected.append(index)
            return plain().run({t: before[t] for t in plain().inputs})

        return run

    def _needed(self, names: Sequence[str]) -> set[int]:
        needed: set[int] = set()
        stack = [n for n in names if n not in self._available]
        while stack:
            i = self._producer.get(stack.pop())
            if i is None or i in needed or i in self._done:
                continue
            needed.add(i)
            node = self.proto.graph.node[i]
            stack.extend(x for x in (*node.input, *captured_names(node)) if x and x not in self._available)
        return needed

    def _in_memory(self, names: AbstractSet[str]) -> int:
        """How many of the first batches stay in memory."""
        per_sample = self._bytes(names)
        return bisect_right(list(accumulate(per_sample * count for count in self.counts)), self.memory)

    def _worth_keeping(self, frontier: AbstractSet[str], nodes: AbstractSet[int]) -> bool:
        """Whether to keep a frontier costs less than to run these nodes anew from the present one."""
        if self._bytes(frontier) * len(self.samples) <= self.memory + _CACHED_BYTES:
            return True
        write_and_read = 2 * _FILE_NS * self._bytes(frontier - self._available)
        read = _FILE_NS * self._bytes(self._available - frontier) if self._done else 0.0
        return write_and_read <= read + sum(self._nanoseconds(i) for i in nodes)

    def _nanoseconds(self, index: int) -> float:
        """What one sample costs in a node, about; infinite where that is not known."""
        node = self.proto.graph.node[index]
        outputs = [o for o in node.output if o]
        if node.domain or any(o not in self._shapes for o in outputs):
            return float("inf")
        if node.op_type in _QUICK:
            return _OUTPUT_NS * self._bytes(outputs)
        summed = self._summed(node)
        return self._bytes(outputs) * (_OUTPUT_NS + _MULTIPLICATION_NS * summed / 4)

    def _summed(self, node: onnx.NodeProto) -> float:
        """Products that a convolution or a matrix product adds up for one entry; infinite for other operators."""
        if node.op_type == "Conv" and node.input[1] in self._weights:
            return float(prod(self._weights[node.input[1]][1:]))
        if node.op_type in ("MatMul", "Gemm") and self._shapes.get(node.input[0]):
            return float(self._shapes[node.input[0]][-1])
        return float("inf")

    def _bytes(self, names: Iterable[str]) -> int:
        """How many bytes these tensors take for one sample."""
        return sample_bytes(self._shapes, self._bound, names)


@dataclass(frozen=True, eq=False)
class _Inputs(Mapping[str, Array]):
    """The model's inputs for some samples."""

    samples: Samples
    start: int
    stop: int

    def __getitem__(self, name: str) -> Array:
        return self.samples.slice(self.start, self.stop, (name,))[name]

    def __iter__(self) -> Iterator[str]:
        return (s.name for s in self.samples.specs)

    def __len__(self) -> int:
        return len(self.samples.specs)


@dataclass(frozen=True, eq=False)
class _Kept(Mapping[str, Array]):
    """Activations of one batch, in memory or in files."""

    stored: Mapping[str, Array | Spilled]

    @classmethod
    def of(cls, before: Mapping[str, Array], values: Mapping[str, Array], names: set[str], *, spill: bool) -> _Kept:
        """The tensors `names`: new `values`, or what was kept `before`; spill: in files, where they are not yet."""
        kept: dict[str, Array | Spilled] = {}
        for t in names:
            old = before.stored.get(t) if isinstance(before, _Kept) else before.get(t)
            value = old if old is not None else values[t]
            kept[t] = Spilled(value, briefly=True) if spill and not isinstance(value, Spilled) else value
        return cls(kept)

    def __getitem__(self, name: str) -> Array:
        value = self.stored[name]
        return value.load() if isinstance(value, Spilled) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def runtime_batch(
    shapes: Mapping[str, tuple[int, ...]], proto: onnx.ModelProto, samples: int | None = None, *, bound: int
) -> int:
    """Samples that a run of the whole model takes at once; samples: as many that some batches can be held out.

    bound: samples with which the tensors have these shapes.
    """
    most = BATCH * 2 * HOLD_OUT if samples is None else samples
    return batch_size(shapes, bound, _widest(shapes, proto), most)


def runtime_bytes(shapes: Mapping[str, tuple[int, ...]], proto: onnx.ModelProto, *, bound: int) -> int:
    """What a run of the whole model holds for each sample, about. bound: samples with these shapes."""
    return sample_bytes(shapes, bound, _widest(shapes, proto))


def _widest(shapes: Mapping[str, tuple[int, ...]], proto: onnx.ModelProto) -> list[str]:
    """The largest tensors, those that are fed among them."""
    weights = {t.name for t in proto.graph.initializer}
    fed = [i.name for i in proto.graph.input if i.name not in weights]
    sized = [(prod(shapes[o]), o) for o in (*fed, *(o for n in proto.graph.node for o in n.output)) if shapes.get(o)]
    return [o for _, o in sorted(sized, reverse=True)[:_HELD_AT_ONCE]]
