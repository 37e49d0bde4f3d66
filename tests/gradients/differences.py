"""Gradients of the reverse pass against central differences along random directions.

L = Σ over outputs of Σ seed ⊙ output. For a direction v of a tensor x, <dL/dx, v> must equal
(L(x + hv) - L(x - hv)) / 2h.
The outputs are float32; L is summed in float64.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnxprune.gradients import Backward, backward
from onnxprune.graph import protobuf
from onnxprune.normalise import normalise
from onnxprune.numerics.arrays import Array, is_float
from onnxprune.runtime.session import Session
from tests.installed import needs_opset

RELATIVE = 1e-3


def reverse_of(proto: onnx.ModelProto, feeds: Mapping[str, Array], tensors: Sequence[str]) -> Backward:
    """The reverse pass of a model, normalised or not, whose shapes are measured on `feeds`."""
    n = normalise(proto, dict(feeds))
    graph = protobuf.view(n.proto, n.shapes, n.known_values, n.binding)
    return backward(n.proto, graph, n.types, tensors=tensors)


def compare(
    proto: onnx.ModelProto,
    feeds: Mapping[str, Array],
    *,
    tensors: Sequence[str] | None = None,
    measured: Mapping[str, Array] | None = None,
    step: float = 1e-2,
    relative: float = RELATIVE,
    directions: int = 3,
    seed: int = 0,
) -> None:
    """Fail unless the gradients of the graph inputs `tensors` (all floating-point ones) agree with differences.

    measured: the inputs that the shapes are measured on, where not `feeds`. The error is relative to
    ||g|| · ||v|| / √size, what <g, v> is of the order of.
    """
    wanted = [k for k, v in feeds.items() if is_float(v.dtype)] if tensors is None else list(tensors)
    back = reverse_of(proto, feeds if measured is None else measured, wanted)
    assert not back.missing, back.missing
    assert set(back.of_tensor) == set(wanted)
    rng = np.random.default_rng(seed)
    forward = Session(protobuf.submodel(back.proto, {}, list(back.seeds)))
    outputs = forward.run(feeds)
    seeds = {s: rng.standard_normal(outputs[o].shape).astype(outputs[o].dtype) for o, s in back.seeds.items()}
    names = [back.of_tensor[t] for t in wanted]
    found = Session(protobuf.submodel(back.proto, {}, names)).run({**feeds, **seeds})

    def value(shifted: Mapping[str, Array]) -> float:
        y = forward.run(shifted)
        return sum(float((y[o].astype(np.float64) * seeds[s].astype(np.float64)).sum()) for o, s in back.seeds.items())

    for tensor, name in zip(wanted, names, strict=True):
        g = found[name].astype(np.float64)
        assert g.shape == feeds[tensor].shape, (tensor, g.shape, feeds[tensor].shape)
        for _ in range(directions):
            v = rng.standard_normal(g.shape)
            h = step * v
            up, down = (
                value({**feeds, tensor: np.asarray(feeds[tensor] + sign * h, feeds[tensor].dtype)}) for sign in (1, -1)
            )
            expected, got = (up - down) / (2 * step), float((g * v).sum())
            scale = max(float(np.linalg.norm(g)) * float(np.linalg.norm(v)) / np.sqrt(g.size), abs(expected), 1e-6)
            assert abs(got - expected) <= relative * scale, (tensor, got, expected, scale)


def one_node(
    op: str,
    inputs: Mapping[str, Array | None],
    *,
    opset: int = 18,
    constant: Collection[str] = (),
    outputs: Sequence[str] = ("y",),
    strict: bool = True,
    domains: Sequence[str] = (),
    **attrs: Any,
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """(a model of one node, what to feed it): inputs are named values in the node's order, None for an omitted one.

    constant: inputs that are initializers. outputs: of the node, "" for an omitted one. strict: shape inference.
    domains: of onnxruntime's own, that are imported beside the standard one.
    Skips the test where the opset is too new for what is installed.
    """
    needs_opset(opset)
    given = {k: np.asarray(v) for k, v in inputs.items() if v is not None}
    feeds = {k: v for k, v in given.items() if k not in constant}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, [k if k in given else "" for k in inputs], list(outputs), **attrs)],
        "g",
        [
            onnx.helper.make_tensor_value_info(k, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in feeds.items()
        ],
        [onnx.helper.make_empty_tensor_value_info(o) for o in outputs if o],
        [onnx.numpy_helper.from_array(given[k], k) for k in constant],
    )
    imports = [onnx.helper.make_opsetid("", opset), *(onnx.helper.make_opsetid(d, 1) for d in domains)]
    proto = onnx.helper.make_model(graph, ir_version=8, opset_imports=imports)
    return onnx.shape_inference.infer_shapes(proto, strict_mode=strict), feeds


def run(proto: onnx.ModelProto, feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    """Tensors of a model, whether they are its outputs or not."""
    return Session(protobuf.submodel(proto, {}, names)).run(feeds)
