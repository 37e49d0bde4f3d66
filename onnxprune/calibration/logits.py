"""What the positions inside heads say of the logits of attention.

With queries q and keys k of a head as independent, positions S that go take from a logit Σ_{i∈S} q_i k_i, and from its
mean square over all queries and keys
    Σ_{i,j∈S} E[q_i q_j] E[k_i k_j].
That is the discrepancy of a layer that reads q (d,) with weights of which the rows have the inner products E[k kᵀ], so
that selection has nothing new to learn. Keys count without their mean: what all keys share adds the same to all logits
of a query, and softmax does not see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import onnx

from onnxprune.calibration import input_moments
from onnxprune.calibration.layers import Layer
from onnxprune.channels import ChannelGraph
from onnxprune.channels.products import Operand, products_of
from onnxprune.data.samples import Samples
from onnxprune.graph.view import Node
from onnxprune.numerics.arrays import Doubles, Floats, Ints
from onnxprune.numerics.gram import augmented
from onnxprune.selection import Regression

_NONE: Ints = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class ByHead(Layer):
    """Stands for what reads an operand head by head: its rows are (h, R, d + 1), the last column ones.

    size: h and d.
    """

    operand: Operand = field(default_factory=lambda: Operand(""))
    size: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, node: Node, operand: Operand, shapes: Mapping[str, tuple[int, ...]]) -> ByHead:
        """For an operand, which a node reads or gives."""
        name = operand.tensor
        size = operand.sizes(shapes[name])
        return cls(node, name, "", name, "", _NONE, _NONE, None, operand=operand, size=size)

    @property
    def groups(self) -> int:
        """The heads."""
        return self.size[0]

    def columns(self, group: int) -> Ints:
        """As many as rows have; none is of a class."""
        return np.full(self.size[1] + 1, -1, np.int64)

    def output_shape(self, x: tuple[int, ...]) -> tuple[int, ...]:
        """(B, S, 0)."""
        return x[0], self.operand.places(x), 0

    def rows(self, x: Floats, positions: Ints) -> Floats:
        """X (h, R, d + 1) at these places S of every sample."""
        at = self.operand.by_head(x)[:, :, positions]
        return augmented(at.transpose(1, 0, 2, 3).reshape(at.shape[1], -1, at.shape[3]))


def moments_of_rows(p: Doubles) -> Doubles:
    """E[x xᵀ], (h, d, d), of the moments (h, d + 1, d + 1) of rows of a `ByHead`."""
    return p[:, :-1, :-1]


def covariance_of_rows(p: Doubles) -> Doubles:
    """E[x xᵀ] - E[x] E[x]ᵀ, (h, d, d), likewise."""
    mean = p[:, :-1, -1]
    covariance: Doubles = p[:, :-1, :-1] - mean[:, :, None] * mean[:, None]
    return covariance


def moments_turned(p: Doubles, matrices: Doubles) -> Doubles:
    """The moments (h, d + 1, d + 1) of rows of a `ByHead` once the positions x of each head are M x, M (h, d, d)."""
    h, d = matrices.shape[:2]
    whole = np.zeros((h, d + 1, d + 1))
    whole[:, :d, :d], whole[:, d, d] = matrices, 1.0
    turned: Doubles = whole @ p @ whole.swapaxes(1, 2)
    return turned


def logit_regressions(
    proto: onnx.ModelProto,
    channels: ChannelGraph,
    samples: Samples,
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
    provider: str = "cpu",
    known: Mapping[str, Doubles] = MappingProxyType({}),
) -> dict[int, list[Regression]]:
    """By group, a regression for each head of a product whose positions may go: the error of its logits, of the spread
    of those of all heads together. One pass over the samples, where there is such a product with an operand of which
    the moments are not `known`, by tensor; provider: of PROVIDERS, what runs it."""
    products, sizes = list(products_of(channels)), channels.graph.shapes
    both = [(ByHead.of(p.node, p.first, sizes), ByHead.of(p.node, p.second, sizes)) for p in products]
    unknown = [x for pair in both for x in pair if x.weight not in known]
    moments = {**known, **input_moments.grams(proto, unknown, samples, shapes, seed, provider)}
    found: dict[int, list[Regression]] = {}
    for product, (q, k) in zip(products, both, strict=True):
        queries, keys = moments_of_rows(moments[q.weight]), covariance_of_rows(moments[k.weight])
        keys = keys.repeat(len(queries) // len(keys), axis=0)
        power = float(np.einsum("hij,hij->", queries, keys))
        if not np.isfinite(power) or power <= 0.0:
            continue
        place = {c: i for i, c in enumerate(channels.groups[product.group].units.tolist())}
        unit = np.array([place[c] for c in product.units.tolist()], np.int64)
        for of_queries, of_keys in zip(queries, keys, strict=True):
            values, vectors = np.linalg.eigh(of_keys)
            root: Doubles = vectors * np.sqrt(np.maximum(values, 0.0))
            found.setdefault(product.group, []).append(Regression(of_queries, root, unit, 1.0 / power, centred=False))
    return found
