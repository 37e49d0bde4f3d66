"""Models of one node on normal numbers, for tests of gradient rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnxprune.numerics.arrays import Array
from tests.gradients.differences import compare, one_node


def normal(*shape: int, seed: int = 1) -> Array:
    """Normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def single(
    op: str,
    data: Sequence[Array | tuple[int, ...]],
    weights: Mapping[str, Array] | None = None,
    *,
    order: Sequence[str] | None = None,
    **more: Any,
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model of one node and its feeds; more: as for `one_node`.

    data: graph inputs x0, x1, … as values, or as shapes of normal numbers. weights: initializers by name. order: the
    node's inputs ("" for an omitted one); by default the data, then the weights.
    """
    given = {f"x{i}": normal(*d, seed=i + 11) if isinstance(d, tuple) else d for i, d in enumerate(data)}
    given |= weights or {}
    names = list(given) if order is None else order
    return one_node(
        op, {n or f"none{i}": given.get(n) for i, n in enumerate(names)}, constant=list(weights or {}), **more
    )


def compare_any_batch(model: onnx.ModelProto, feeds: Mapping[str, Array], batched: Sequence[str] = ("x0",)) -> None:
    """As `compare`, at more than twice the samples that the shapes were measured on."""
    for v in model.graph.input:
        if v.name in batched:
            v.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    for v in model.graph.output:
        v.ClearField("type")
    more = {k: np.concatenate([v, v, v[:1]]) if k in batched else v for k, v in feeds.items()}
    compare(model, more, measured=feeds)
