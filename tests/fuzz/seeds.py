"""The models that are mutated: the rows of the table of topologies, random graphs, the models of the project."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

from tests.graphs import TABLE
from tests.random_graphs import MAKERS, built, is_unknown
from tests.random_graphs.build import Build

_MODELS = Path(__file__).parents[2] / "models"
_SHARE_OF_RANDOM, _SHARE_OF_MODELS = 0.4, 0.02

EXTRA = (
    # A function that calls another one, and an attribute that is passed on.
    """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    main (float[N,2] x) => (float[N,2] y)
    <float[2,3] w = {1,2,3,4,5,6}, float[3,2] v = {1,2,3,4,5,6}>
    { h = local.layer (x, w)
      y = MatMul (h, v) }
    <domain: "local", opset_import: ["" : 17, "local" : 1]>
    layer (a, w) => (b) { c = MatMul (a, w)
      b = local.leak <slope = 0.2> (c) }
    <domain: "local", opset_import: ["" : 17]>
    leak <slope> (a) => (b) { b = LeakyRelu <alpha: float = @slope> (a) }""",
    # Sequences inside and at the border.
    """<ir_version: 8, opset_import: ["" : 17]>
    main (seq(float[4]) s, float[N,4] x) => (float[N,2] y)
    <float[4,3] w = {1,2,3,4,5,6,7,8,9,1,2,3}, float[3,2] v = {1,2,3,4,5,6}, int64 i = {0}>
    { e = SequenceAt (s, i)
      a = Add (x, e)
      h = MatMul (a, w)
      q = SequenceConstruct (h, h)
      z = SequenceAt (q, i)
      y = MatMul (z, v) }""",
    # Integers that index and size.
    """<ir_version: 8, opset_import: ["" : 17]>
    main (int64[N,L] ids, int64[2] target) => (float[a,b] y)
    <float[5,2] table = {1,2,3,4,5,6,7,8,9,1}, float[2,6] w = {1,2,3,4,5,6,7,8,9,1,2,3}>
    { e = Gather (table, ids)
      h = MatMul (e, w)
      y = Reshape (h, target) }""",
)


class Drawn(Build):
    """A graph whose choices come from a generator of numpy."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(lambda _: 0, 0)
        self._rng = rng

    def below(self, n: int) -> int:
        """0 to n - 1."""
        return int(self._rng.integers(n)) if n > 1 else 0


def seed_model(rng: np.random.Generator) -> tuple[str, onnx.ModelProto]:
    """A sound model, and what it is."""
    kind = rng.random()
    if kind < _SHARE_OF_RANDOM:
        names = sorted(k for k in MAKERS if not is_unknown(k))
        focus = names[int(rng.integers(len(names)))]
        return f"random graph with {focus}", built(Drawn(rng), focus, 4).model
    copy = onnx.ModelProto()
    if kind < _SHARE_OF_RANDOM + _SHARE_OF_MODELS:
        paths = sorted(_MODELS.glob("*.onnx"))
        path = paths[int(rng.integers(len(paths)))]
        copy.CopyFrom(_loaded(path))
        return path.name, copy
    rows = sorted(TABLE)
    at = int(rng.integers(len(rows) + 3 * len(EXTRA)))
    if at < len(rows):
        copy.CopyFrom(_row(rows[at]))
        return rows[at], copy
    which = at % len(EXTRA)
    return f"extra model {which}", onnx.parser.parse_model(EXTRA[which])


@cache
def _loaded(path: Path) -> onnx.ModelProto:
    return onnx.load(path)


@cache
def _row(name: str) -> onnx.ModelProto:
    return TABLE[name].model()
