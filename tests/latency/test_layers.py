"""Which kernel belongs to which layer, and what its time depends on."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.channels import ChannelGraph
from onnxprune.latency.kernels import Kernel, kernel_times
from onnxprune.latency.layers import Layers, layers_of, marked, owners_of
from onnxprune.surgery import cut
from tests.prepared import Prepared, prepare, prepare_row, random_keep

MICRO = 1e-6


@pytest.fixture(scope="module")
def chain() -> Prepared:
    """Three convolutions with 16 and 24 channels between them; nodes 0 to 4."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (16, 3, 3, 3), "w2": (24, 16, 1, 1), "w3": (5, 24, 1, 1)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "w3"], ["y"]),
    ]
    ports = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", c, 8, 8])] for n, c in (("x", 3), ("y", 5))]
    graph = helper.make_graph(nodes, "chain", *ports, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return prepare(model, {"x": rng.standard_normal((2, 3, 8, 8)).astype(np.float32)})


def kernel(name: str, op: str, seconds: float = MICRO) -> Kernel:
    return Kernel(name, op, seconds, "")


def least(channels: ChannelGraph) -> list[int]:
    return [g.step for g in channels.groups]


def found(p: Prepared, *kernels: Kernel, at_least: list[int] | None = None) -> Layers:
    return layers_of(p.channels, kernels, at_least or least(p.channels), 8)


def test_a_fused_kernel_is_that_of_the_product_inside(chain: Prepared):
    layers = found(
        chain, kernel("b_nchwc", "Conv"), kernel("@2@", "Conv"), kernel("@3@", "Sigmoid"), kernel("@4@", "C")
    )
    full = [g.size for g in chain.channels.groups]
    assert [tuple(x.at(full) for x in layer.lengths) for layer in layers.layers] == [(16,), (16, 24), (24,), (24,)]


def test_a_kernel_may_be_called_after_its_first_node(chain: Prepared):
    layers = found(chain, kernel("fused @0@", "Conv"), kernel("@2@/Fusion/", "Conv"), kernel("@4@", "Conv"))
    full = [g.size for g in chain.channels.groups]
    assert [tuple(x.at(full) for x in layer.lengths) for layer in layers.layers] == [(16,), (16, 24), (24,)]


def test_times_go_to_the_layers_whatever_is_fused_in_a_cut_model(chain: Prepared):
    layers = found(
        chain, kernel("b_nchwc", "Conv"), kernel("c_nchwc", "Conv"), kernel("d_nchwc", "S"), kernel("@4@", "C")
    )
    apart = [kernel("@0@", "Conv", 1), kernel("@1@", "Relu", 2), kernel("@2@", "Conv", 4), kernel("@3@", "Sigmoid", 8)]
    assert layers.seconds([*apart, kernel("y_nchwc", "Conv", 16)]) == [3, 4, 8, 16]


def test_what_has_a_name_of_its_own_counts_with_what_it_stands_beside(chain: Prepared):
    ran = [kernel("@0@", "Conv"), kernel("ReorderOutput", "ReorderOutput"), kernel("ReorderInput_1", "ReorderInput")]
    ran += [kernel("@2@", "Conv"), kernel("Gelu_7", "Gelu")]
    layers = found(chain, *ran)
    assert owners_of(ran, layers.producers, layers.layer_of) == [0, 0, 2, 2, 2]
    assert owners_of(ran[2:3], layers.producers, layers.layer_of) == [None]


def test_a_group_that_stays_whole_is_no_length(chain: Prepared):
    full = [g.size for g in chain.channels.groups]
    assert not found(chain, kernel("@2@", "Conv"), at_least=full).layers
    half = found(chain, kernel("@2@", "Conv"), at_least=[8, full[1]])
    assert [len(layer.lengths) for layer in half.layers] == [1]


def test_signatures_tell_what_decides_on_a_time(chain: Prepared):
    """Fails where two layers would share measurements that hold for one of them only."""

    def signature(shapes: str = "a", op: str = "Conv", node: str = "@2@", alignment: int = 8, low: int = 1) -> str:
        at_least = [low, 1]
        return layers_of(chain.channels, [Kernel(node, op, 0.0, shapes)], at_least, alignment).layers[0].signature

    base = signature()
    others = [
        signature("b"),
        signature(op="FusedConv"),
        signature(node="@0@"),
        signature(alignment=1),
        signature(low=4),
    ]
    assert signature() == base
    assert len({base, *others}) == 1 + len(others)


@pytest.mark.parametrize("row", ["residual", "squeeze_excite", "lstm_bidirectional", "attention", "shuffle_static"])
def test_onnxruntime_names_its_kernels_so_that_all_time_is_accounted_for(row: str):
    """The sum over kernels that belong to a node is the sum over all of them, also of a cut model."""
    p = prepare_row(row)
    for proto in (marked(p.normalised.proto), cut(marked(p.normalised.proto), p.channels, random_keep(p.channels, 0))):
        kernels = kernel_times(proto, p.example, warmup=0, least_runs=1, most_runs=1)
        layers = layers_of(p.channels, kernels, least(p.channels), 1)
        assert kernels
        assert None not in owners_of(kernels, layers.producers, layers.layer_of)
