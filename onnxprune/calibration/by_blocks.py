"""Input moments of a large model, block by block: the sums of one block of layers are held at a time.

The same moments as `input_moments.collect` gives, of the same batches at the same positions. A walk of the model goes
from block to block and keeps what the next one reads, so nothing runs twice; what a layer's sums come to lies in a file
before those of the next block are begun. Workers of a scheduler hold the sums of one block at a time, too; each block
is a pass of the model up to it for them, as what lies between two blocks stays in no worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnxprune.calibration.input_moments import (
    InputMoments,
    InputSums,
    accumulator,
    gram_bytes,
    moments_of,
    sharing,
    summed,
)
from onnxprune.calibration.layers import Layer
from onnxprune.data.samples import Samples
from onnxprune.graph import external
from onnxprune.jobs.kept import Kept
from onnxprune.jobs.work import Here, Scheduler
from onnxprune.numerics.arrays import Array, Floats
from onnxprune.numerics.gram import Gram
from onnxprune.runtime.walker import Walker
from onnxprune.threads import prefetched

# Layers whose sums take more together are gone through block by block, and those of a block take so much.
ALL_BYTES = 1 << 30
BLOCK_BYTES = 256 << 20


def too_many(layers: Sequence[Layer]) -> bool:
    """Whether the sums of all layers should not be held at once."""
    shared = sharing(layers)
    return sum(gram_bytes(x) for x in layers if x.weight in shared) > ALL_BYTES


@dataclass(frozen=True, eq=False, kw_only=True)
class Blocks:
    """A pass over the samples in blocks of layers.

    shapes, types: of the tensors. memory: as for `Walker`. kept: what an earlier run of the same work has left, which
    is not computed again, and where new results go. said: is told how many blocks are done, of how many. scheduler: its
    workers, if it has any, sum a block in shards of the samples, and it says how far they are.
    """

    proto: onnx.ModelProto
    samples: Samples
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, int]
    seed: int
    memory: int
    kept: Kept
    said: Callable[[int, int], None]
    scheduler: Scheduler = field(default_factory=Here)

    def collect(self, layers: Sequence[Layer]) -> dict[str, InputMoments]:
        """Input moments of each layer, by weight name."""
        shared = sharing(layers)
        work = InputSums.of(self.proto, [x for x in layers if x.weight in shared], self.samples, self.shapes, self.seed)
        walker = Walker(self.proto, self.samples, self.types, self.shapes, self.memory, batch=work.batch)
        weights = external.Weights(self.proto.graph.initializer)
        moments: dict[str, InputMoments] = {}
        blocks = blocks_of(work.layers)
        for number, block in enumerate(blocks, start=1):
            left = [x for x in block if not self._known(shared[x.weight], moments)]
            if left:
                if self.scheduler.workers:
                    sums = summed(work.of_block(left), self.samples, self.scheduler)
                else:
                    walk = walker.advance(sorted({x.data for x in left}), stay=number == len(blocks))
                    sums = self._sums(work, left, walk, weights)
                moments.update(moments_of(left, shared, weights, sums))
                for x in left:
                    self._keep(shared[x.weight], moments)
            if not self.scheduler.workers:
                self.said(number, len(blocks))
        return moments

    def _sums(
        self, work: InputSums, left: Sequence[Layer], walk: Iterable[Mapping[str, Array]], weights: Mapping[str, Array]
    ) -> dict[str, tuple[Gram, ...]]:
        """The sums of some layers over all batches."""
        accumulators = {x.weight: accumulator(x, weights) for x in left}

        def add(layer: Layer, rows: Floats, held: bool) -> None:
            accumulators[layer.weight].update(rows, held=held)

        for index, values in enumerate(prefetched(walk)):
            work.take_batch(index, values, work.positions_of(index, values), left, add)
        return {name: a.sums for name, a in accumulators.items()}

    def _known(self, alike: Sequence[Layer], moments: dict[str, InputMoments]) -> bool:
        """Whether an earlier run has left the moments of these layers, which share them."""
        found = self.kept.get("moments", alike[0].weight)
        if found is None:
            return False
        shared = InputMoments.of_arrays(found)
        ridges = found["ridges"].tolist()
        moments.update((x.weight, shared.with_ridge(r)) for x, r in zip(alike, ridges, strict=True))
        return True

    def _keep(self, alike: Sequence[Layer], moments: Mapping[str, InputMoments]) -> None:
        """Leave the moments of these layers to a later run."""
        ridges = np.array([moments[x.weight].ridge for x in alike])
        self.kept.put("moments", alike[0].weight, lambda: {**moments[alike[0].weight].arrays(), "ridges": ridges})


def blocks_of(layers: Sequence[Layer]) -> list[list[Layer]]:
    """The layers in the order of the model, as many at a time as have sums of `BLOCK_BYTES` together, one at least."""
    blocks: list[list[Layer]] = []
    size = 0
    for layer in sorted(layers, key=lambda x: x.node.index):
        size += gram_bytes(layer)
        if not blocks or size > BLOCK_BYTES:
            blocks.append([])
            size = gram_bytes(layer)
        blocks[-1].append(layer)
    return blocks
