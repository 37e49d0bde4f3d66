"""Reverse passes of models in half precision are those of their twin: their nodes keep to the types of the model."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.graph import protobuf
from onnxprune.normalise import normalise
from onnxprune.runtime import single_precision
from onnxprune.runtime.session import Session
from tests.gradients.test_coverage import gradients_at, taken
from tests.graphs import TABLE
from tests.number_types import converted, data_of

ROWS = (
    "residual batch_norm pooling transposed squeeze_excite option_a_shortcut split_join slice_stride slice_backwards "
    "gather_run_time neighbours scatter_channels compress shuffle_dynamic depth_to_space_crd resize_sizes pad_axes "
    "lstm_bidirectional gru_linear_before_reset rnn layer_norm_convolution group_norm_as_instance_norm_wide "
    "softmax_channels rankings reductions where_and_compare expand_widens"
).split()


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision(name: str, kind: str):
    """Fails where a rule writes a number of another type than the tensors that it meets."""
    proto = converted(TABLE[name].model(), kind)
    n = normalise(proto, data_of(TABLE[name].feeds(2), kind))
    half = taken(n)
    assert half.back.of_use
    feeds = data_of(TABLE[name].feeds(3), kind)
    single = {k: v.astype(np.float32) if v.dtype.itemsize == 2 else v for k, v in feeds.items()}
    reference = taken(
        normalise(single_precision.single_precision(n.proto, single_precision.HALF), TABLE[name].feeds(2))
    )
    found, expected = gradients_at(half, feeds)[0], gradients_at(reference, single)[0]
    for (use, g), want in zip(found.items(), expected.values(), strict=True):
        np.testing.assert_allclose(
            g, want, rtol=1e-5, atol=1e-5 * float(np.abs(want).max()), err_msg=half.node(use).name
        )


def test_half_precision_runs_as_such():
    """Fails where onnxruntime refuses a reverse pass in float16 that it does not run as a twin."""
    name = "opset_13"
    n = normalise(converted(TABLE[name].model(), "float16"), data_of(TABLE[name].feeds(2), "float16"))
    t = taken(n)
    feeds = data_of(TABLE[name].feeds(2), "float16")
    outputs = Session(protobuf.submodel(n.proto, {}, list(t.back.seeds))).run(feeds)
    seeds = {s: np.ones_like(outputs[o]) for o, s in t.back.seeds.items()}
    names = list(dict.fromkeys(t.back.of_use.values()))
    found = Session(protobuf.submodel(t.back.proto, {}, names)).run({**feeds, **seeds})
    assert all(g.dtype == np.float16 and np.isfinite(g).all() for g in found.values())
