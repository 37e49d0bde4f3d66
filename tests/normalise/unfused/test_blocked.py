"""The layout in blocks of channels: told from what onnxruntime writes, and given back exactly, or left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from benchmarks.saved_copies import saved
from onnxprune.graph.protobuf import copied, parameters
from onnxprune.normalise import normalise
from onnxprune.normalise.unfused import TABLE, unfuse
from onnxprune.normalise.unfused.blocked import DOMAIN, block_size, plain
from onnxprune.normalise.unfused.site import Unknown
from onnxprune.runtime.session import Session
from tests.topologies.text import Topology

Array = NDArray[Any]
needs_blocks = pytest.mark.skipif(block_size() < 2, reason="this processor has no layout in blocks")

NETWORKS = {
    "filled": Topology(  # 20 and 12 channels are filled up; a kernel that reads an image is not
        """(float[N,3,16,16] x) => (float[N,20,8,8] y) {
            a = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w1[20,3,3,3], b1[20])
            r = Relu (a)
            c = Conv (r, w2[12,20,1,1], b2[12])
            s = HardSigmoid (c)
            d = Conv (s, w3[20,12,1,1])
            e = Add (d, r)
            y = Sigmoid (e)
        }""",
        (),
    ),
    "depthwise, joined and pooled": Topology(
        """(float[N,3,16,16] x) => (float[N,48] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1[32,3,3,3], b1[32])
            r = Relu (a)
            m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r)
            d = Conv <pads=[1,1,1,1], group=32> (m, w2[32,1,3,3], b2[32])
            v = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1> (m)
            j = Concat <axis=1> (d, v)
            c = Conv <auto_pad="SAME_UPPER"> (j, w3[48,64,3,3])
            g = GlobalAveragePool (c)
            y = Flatten (g)
        }""",
        (),
    ),
    "largest": Topology(
        """(float[N,16,8,8] x) => (float[N,16,8,8] y) {
            a = Conv (x, w1[16,16,1,1], b1[16])
            g = GlobalMaxPool (a)
            h = Conv (g, w2[16,16,1,1])
            t = Mul (a, h)
            y = Conv (t, w3[16,16,1,1], b3[16])
        }""",
        (),
    ),
    "enlarged": Topology(
        """(float[N,16,8,8] x) => (float[N,16,16,16] y) {
            a = Conv (x, w1[16,16,1,1], b1[16])
            u = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">
                (a, , scales{1.,1.,2.,2.})
            y = Conv (u, w3[16,16,1,1], b3[16])
        }""",
        (),
        opset=13,
    ),
    "enlarged smoothly": Topology(
        """(float[N,16,8,8] x) => (float[N,16,16,24] y) {
            a = Conv (x, w1[16,16,1,1], b1[16])
            u = Resize <mode="linear", coordinate_transformation_mode="half_pixel"> (a, none{0:.}, scales{1.,1.,2.,3.})
            y = Conv (u, w3[16,16,1,1], b3[16])
        }""",
        (),
        opset=11,
    ),
    "groups": Topology(
        """(float[N,64,8,8] x) => (float[N,64,8,8] y) {
            a = Conv <group=2, pads=[1,1,1,1]> (x, w1[64,32,3,3], b1[64])
            r = Relu (a)
            y = Conv (r, w2[64,64,1,1])
        }""",
        (),
    ),
    "channels last": Topology(
        """(float[N,8,8,16] x) => (float[N,8,8,20] y) {
            t = Transpose <perm=[0,3,1,2]> (x)
            a = Conv (t, w1[20,16,1,1], b1[20])
            r = Relu (a)
            y = Transpose <perm=[0,2,3,1]> (r)
        }""",
        (),
    ),
    "sizes that are not declared": Topology(
        """(float[N,16,H,W] x, float[N,16,L,L] z) => (float[N,20,H,W] y) {
            a = Conv (x, w1[20,16,1,1], b1[20])
            b = Conv (z, w2[20,16,1,1])
            s = Add (a, b)
            r = Relu (s)
            y = Conv (r, w3[20,20,1,1])
        }""",
        (),
    ),
}


def _feeds(name: str) -> dict[str, Array]:
    feeds = NETWORKS[name].feeds(2)
    return {k: feeds["x"][..., ::-1].copy() if k == "z" else v for k, v in feeds.items()}


@needs_blocks
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_come_back_as_they_were(name: str, tmp_path: Path):
    """Fails where a kernel is not in its plain layout again, keeps its filling, or something else is computed."""
    original, feeds = NETWORKS[name].model(), _feeds(name)
    model = saved(original, "all", tmp_path / "saved.onnx")
    there = Counter(n.op_type for n in model.graph.node if n.domain == DOMAIN)
    assert there["Conv"] >= 1
    found = normalise(model, feeds)
    assert {n.domain for n in found.proto.graph.node} == {""}
    assert parameters(found.proto) - sum(
        int(np.prod(t.dims)) for t in found.proto.graph.initializer if t.name in found.added_biases
    ) <= parameters(original)
    kernels = [numpy_helper.to_array(t) for t in found.proto.graph.initializer if len(t.dims) == 4]
    for t in original.graph.initializer:
        if len(t.dims) == 4:
            assert sum(k.shape == tuple(t.dims) and (k == numpy_helper.to_array(t)).all() for k in kernels) == 1
    y = Session(found.proto, optimize=False).run(feeds)["y"]
    np.testing.assert_allclose(y, Session(original, optimize=False).run(feeds)["y"], rtol=1e-4, atol=1e-5)


@needs_blocks
def test_every_row_of_the_layout_is_met(tmp_path: Path):
    """Fails where an operator of the layout is in no network above."""
    models = [saved(row.model(), "all", tmp_path / "saved.onnx") for row in NETWORKS.values()]
    assert {f"{DOMAIN}.{n.op_type}" for m in models for n in m.graph.node if n.domain == DOMAIN} == {
        name for name in TABLE if name.startswith(DOMAIN)
    }


def _in_blocks(w: Array, block: int) -> Array:
    """An independent oracle: the place of every number, one by one, as it is documented for these layouts."""
    outputs, inputs, height, width = w.shape
    flat = []
    for o in range(0, outputs, block):
        for i in range(0, inputs, block) if inputs >= block else range(inputs):
            for place in np.ndindex(height, width):
                for inner in range(block if inputs >= block else 1):
                    flat += [w[(o + k, i + inner, *place)] for k in range(block)]
    if inputs < block:  # kernels of one input lie together
        flat = [
            w[(o + k, i, *place)]
            for o in range(0, outputs, block)
            for i in range(inputs)
            for place in np.ndindex(height, width)
            for k in range(block)
        ]
    return np.array(flat, w.dtype).reshape(w.shape)


@pytest.mark.parametrize("block", [8, 16])
@pytest.mark.parametrize("shape", [(32, 32, 2, 3), (32, 1, 3, 2), (16, 3, 2, 2)])
def test_kernels_in_blocks(shape: tuple[int, ...], block: int):
    """Fails where a processor with other blocks than this one gets its weights in another order."""
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(plain(_in_blocks(w, block), block), w)


def test_blocks_of_another_processor():
    """Fails where weights that do not fit are put in some order all the same."""
    with pytest.raises(Unknown, match="blocks of 16"):
        plain(np.zeros((24, 16, 1, 1), np.float32), 16)
    with pytest.raises(Unknown, match="blocks of 16"):
        plain(np.zeros((32, 24, 1, 1), np.float32), 16)


def _replaceable(model: onnx.ModelProto) -> None:
    kernel = next(t for t in model.graph.initializer if len(t.dims) == 4)
    model.graph.input.append(helper.make_tensor_value_info(kernel.name, kernel.data_type, kernel.dims))


def _leaves(model: onnx.ModelProto) -> None:
    made = next(n.output[0] for n in model.graph.node if n.domain == DOMAIN and n.op_type == "Conv")
    model.graph.output.append(helper.make_tensor_value_info(made, onnx.TensorProto.FLOAT, [None] * 4))


def _read_otherwise(model: onnx.ModelProto) -> None:
    made = next(n.output[0] for n in model.graph.node if n.domain == DOMAIN and n.op_type == "Conv")
    model.graph.node.append(helper.make_node("ReduceSum", [made], ["other"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, []))


@needs_blocks
@pytest.mark.parametrize(
    ("edit", "why"),
    [(_replaceable, "callers may replace it"), (_leaves, "leaves its graph"), (_read_otherwise, "ReduceSum reads")],
)
def test_all_of_it_or_nothing(edit: Callable[[onnx.ModelProto], None], why: str, tmp_path: Path):
    """Fails where a part of what lies in blocks is read as if it did not."""
    model = saved(NETWORKS["filled"].model(), "all", tmp_path / "saved.onnx")
    edit(model)
    proto = copied(model)
    listed = {v.name for v in proto.graph.input} & {t.name for t in proto.graph.initializer}
    unfused = unfuse(proto, _feeds("filled"), listed)
    assert [n.op_type for n in proto.graph.node] == [n.op_type for n in model.graph.node]
    assert not unfused.fused
    assert all(why in note for note in unfused.notes)
    assert len(unfused.notes) >= 1
