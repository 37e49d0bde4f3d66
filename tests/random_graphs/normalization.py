"""Normalizations of each kind, with what exporters put around them."""

from __future__ import annotations

from collections.abc import Mapping

from tests.random_graphs.build import Build, Live
from tests.random_graphs.maker import Maker


def _epsilon(b: Build) -> float:
    return b.choice((0.1, 0.01, 0.05))


def _batch_norm(b: Build, op: str) -> None:
    x = b.matrix() if b.chance(20) else b.image(known=False)
    c = int(x.dims[1])
    vectors = [b.weight(c), b.weight(c), b.weight(c), b.weight(c, positive=True)]
    b.node(op, [x, *vectors], x.dims, peak=2 * x.peak, epsilon=_epsilon(b))


def _last_axes(b: Build, op: str) -> None:
    x = b.any()
    first = x.rank - 1
    while first > 1 and isinstance(x.dims[first - 1], int) and b.chance(25):
        first -= 1
    if not all(isinstance(d, int) for d in x.dims[first:]):
        x = b.sequence()
        first = 2
    shape = [int(d) for d in x.dims[first:]]
    affine = [b.weight(*shape)]
    if op == "LayerNormalization" and b.chance(60):
        affine.append(b.weight(*shape))
    b.node(op, [x, *affine], x.dims, peak=4.0, axis=b.choice((first, first - x.rank)), epsilon=_epsilon(b))


def instance_norm(b: Build, x: Live) -> Live:
    """InstanceNormalization of channels along axis 1."""
    c = int(x.dims[1])
    return b.node(
        "InstanceNormalization", [x, b.weight(c), b.weight(c)], x.dims, peak=4.0, epsilon=_epsilon(b), hidden=True
    )


def _instance_norm(b: Build, op: str) -> None:
    b.live.append(instance_norm(b, b.image(least=2, known=False)))


def _group_norm(b: Build, op: str) -> None:
    x = b.image(least=2, known=False)
    c = int(x.dims[1])
    groups = b.factor(c, proper=b.chance(80))
    per = c if b.opset >= 21 else groups
    b.node(op, [x, b.weight(per), b.weight(per)], x.dims, peak=4.0, num_groups=groups, epsilon=_epsilon(b))


def _lp_norm(b: Build, op: str) -> None:
    x = b.tame(b.any(), "above")
    b.node(op, [x], x.dims, peak=1.0, axis=b.channel_axis(x), p=b.choice((2, 1)))


def _lrn(b: Build, op: str) -> None:
    x = b.bounded(b.image((4,)))
    b.node(op, [x], x.dims, peak=3.0, alpha=0.1, beta=0.5, size=b.choice((3, 1, 5)))


def _mean_variance(b: Build, op: str) -> None:
    x = b.image((4,), least=2, known=False)
    # The axes are always named: ONNX's own shape inference refuses the default ones.
    b.node(op, [x], x.dims, peak=4.0, axes=b.choice(([0, 2, 3], [2, 3], [1, 2, 3], [0, 1, 2, 3], [0, 2])))


MAKERS: Mapping[str, Maker] = {
    "BatchNormalization": Maker(_batch_norm, weight=3),
    "LayerNormalization": Maker(_last_axes, weight=3),
    "RMSNormalization": Maker(_last_axes, weight=3),
    "InstanceNormalization": Maker(_instance_norm, weight=2),
    "GroupNormalization": Maker(_group_norm, weight=3, first=21),
    "LpNormalization": Maker(_lp_norm),
    "LRN": Maker(_lrn),
    "MeanVarianceNormalization": Maker(_mean_variance),
}
