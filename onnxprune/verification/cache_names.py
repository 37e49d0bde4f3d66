"""Whether caches that were numbered anew are still called as runtimes find them: told without what numbered them.

In the original a node reads the cache of its layer and gives out the longer one: "past_key_values.3.key" and
"present.3.key". Whatever the numbers are then, the names at each such node of the result have to be names of one node
of that kind in the original but for the number, which is the same on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from onnxprune.errors import CheckFailed
from onnxprune.graph.numbered_names import parted

# The operator, the slots of an input and an output of it, by which the ways to pair names are told apart.
_Place = tuple[str, int, int]
# The texts around the numbers of two names, and what the second number is more than the first.
_Pair = tuple[str, str, int]


def same_pairs(original: onnx.ModelProto, result: onnx.ModelProto) -> None:
    """Raises CheckFailed where a node of the result reads and gives caches that do not belong together."""
    names = {v.name for m in (original, result) for v in (*m.graph.input, *m.graph.output)}
    known: dict[_Place, set[_Pair]] = {}
    for place, pair, _ in _pairs(original, names):
        known.setdefault(place, set()).add(pair)
    for place, pair, (before, after) in _pairs(result, names):
        if place in known and pair not in known[place]:
            raise CheckFailed(
                f"the cache {before!r} would be continued by {after!r}, which is another one in the original: please "
                "report this model"
            )


def _pairs(proto: onnx.ModelProto, names: set[str]) -> Iterator[tuple[_Place, _Pair, tuple[str, str]]]:
    """Each numbered input and numbered output at the same node, with their names."""
    inputs, outputs = ({v.name for v in values} for values in (proto.graph.input, proto.graph.output))
    for n in proto.graph.node:
        for slot, before in ((k, i) for k, i in enumerate(n.input) if i in inputs):
            for place, after in ((k, o) for k, o in enumerate(n.output) if o in outputs):
                (a, i), (b, j) = parted(before, names), parted(after, names)
                if a and b:
                    yield (n.op_type, slot, place), (a, b, j - i), (before, after)
