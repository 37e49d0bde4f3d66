"""Reverse passes of models in half precision: typed throughout, and equal to those of the float32 model."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxprune.graph import protobuf
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Session
from tests.gradients.differences import reverse_of
from tests.gradients.single import normal, single

CASES: list[tuple[str, list[tuple[int, ...]], dict[str, Array], dict[str, Any]]] = [
    ("Attention", [(2, 4, 3, 5), (2, 2, 6, 5), (2, 2, 6, 7)], {}, {"softcap": 0.7}),
    ("AveragePool", [(2, 3, 6, 7)], {}, {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 1, 1, 1]}),
    ("BatchNormalization", [(2, 3, 4)], dict.fromkeys("sbmv", np.ones(3, np.float32)), {}),
    ("Clip", [(3, 4)], {"low": np.float32(-0.5), "high": np.float32(0.5)}, {}),
    ("Conv", [(2, 3, 6, 7)], {"w": normal(4, 3, 3, 3)}, {}),
    ("Conv", [(2, 3, 6, 7)], {"w": normal(4, 3, 3, 3)}, {"strides": [2, 2]}),
    ("ConvTranspose", [(2, 3, 6, 7)], {"w": normal(3, 4, 3, 3)}, {"strides": [2, 2]}),
    ("Einsum", [(2, 3)], {"w": normal(3, 4)}, {"equation": "ij,jk->ik"}),
    ("Gemm", [(2, 3)], {"w": normal(3, 4)}, {"alpha": 0.5}),
    ("GlobalMaxPool", [(2, 3, 4, 5)], {}, {}),
    ("GroupNormalization", [(2, 4, 5)], {"s": normal(4), "b": normal(4)}, {"num_groups": 2}),
    ("InstanceNormalization", [(2, 4, 5)], {"s": normal(4), "b": normal(4)}, {}),
    ("LRN", [(2, 4, 5, 3)], {}, {"size": 3, "alpha": 0.5}),
    ("LayerNormalization", [(2, 4, 5)], {"s": normal(5)}, {}),
    ("LpPool", [(2, 3, 4, 5)], {}, {"p": 3, "kernel_shape": [2, 2]}),
    ("LpNormalization", [(2, 4, 5)], {}, {}),
    ("MatMul", [(2, 4, 5)], {"w": normal(5, 3)}, {}),
    ("MaxPool", [(2, 3, 7, 7)], {}, {"kernel_shape": [3, 3], "strides": [2, 2]}),
    ("RMSNormalization", [(2, 4, 5)], {"s": normal(5)}, {}),
    ("Relu", [(3, 4)], {}, {}),
    ("Resize", [(2, 3, 4, 5)], {"scales": np.array([1, 1, 2, 1.5], np.float32)}, {"mode": "linear"}),
    ("Softmax", [(3, 4)], {}, {}),
]


def _gradients(dtype: Any, op: str, shapes: Any, weights: dict[str, Array], attrs: dict[str, Any]) -> list[Array]:
    """Gradients of all inputs, for seeds that do not depend on the type."""
    data = [normal(*s, seed=i).astype(dtype) for i, s in enumerate(shapes)]
    order = None
    if op == "Resize":
        order = ["x0", "", "scales"]
    else:
        weights = {k: v.astype(dtype) for k, v in weights.items()}
    model, feeds = single(op, data, weights, order=order, opset=23, **attrs)
    model.graph.output[0].type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    back = reverse_of(model, feeds, list(feeds))
    assert not back.missing
    onnx.shape_inference.infer_shapes(back.proto, check_type=True, strict_mode=True)
    seeds = {}
    for o, s in back.seeds.items():
        y = Session(protobuf.submodel(back.proto, {}, [o]), single=True).run(feeds)[o]
        seeds[s] = normal(*y.shape, seed=9).astype(dtype)
    found = Session(protobuf.submodel(back.proto, {}, [back.of_tensor[k] for k in feeds]), single=True).run(
        {**feeds, **seeds}
    )
    return [found[back.of_tensor[k]].astype(np.float32) for k in feeds]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float16, 5e-3), (ml_dtypes.bfloat16, 4e-2)])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c[0])
def test_half_precision(case: Any, dtype: Any, tolerance: float):
    """Inputs, weights and seeds are rounded, which is what the tolerance is for."""
    if case[0] == "Einsum" and dtype != np.float16:
        pytest.skip("ONNX defines no Einsum of bfloat16")
    found, expected = _gradients(dtype, *case), _gradients(np.float32, *case)
    for g, e in zip(found, expected, strict=True):
        assert np.linalg.norm(g - e) <= tolerance * np.linalg.norm(e)
