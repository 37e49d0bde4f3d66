"""Quantized weights are read as onnxruntime reads them, and new ones are stored as near as can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune.calibration.layers import Layer, layers_of
from onnxprune.calibration.regressions import magnitude
from onnxprune.channels.describe import describe
from onnxprune.graph import protobuf
from onnxprune.graph.quantized import Quantized, behind_quantization, real_values
from onnxprune.graph.view import Graph
from onnxprune.runtime.session import Session
from tests.compare import assert_same
from tests.graphs import TABLE
from tests.prepared import Prepared, prepare
from tests.topologies.convolution import PLAIN
from tests.topologies.quantization import BRANCHES, ROWS, Packer, Quantizer
from tests.topologies.text import Topology

Array = NDArray[Any]
Lookup = Callable[[str], Prepared]
PRUNABLE = [name for name in ROWS if name.startswith("quantized")]


def _dequantized(p: Prepared, name: str, values: Mapping[str, Array]) -> Array:
    """A tensor behind DequantizeLinear as onnxruntime computes it from these constants."""
    proto = onnx.ModelProto()
    proto.CopyFrom(p.normalised.proto)
    for t in proto.graph.initializer:
        if t.name in values:
            t.CopyFrom(numpy_helper.from_array(values[t.name], t.name))
    found: Array = Session(protobuf.submodel(proto, {}, [name]), optimize=False).run({}, [name])[name]
    return found


def _parts(layer: Layer) -> list[tuple[str, Quantized]]:
    pairs = ((layer.weight, layer.stored_weight), (layer.bias, layer.stored_bias))
    return [(name, q) for name, q in pairs if q is not None]


def _steps(q: Quantized, constants: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    """The step between the codes of every entry of a weight."""
    scale = np.abs(constants[q.scales[0]].astype(np.float64))
    if q.block:
        return np.repeat(scale, q.block, axis=q.axis)[: shape[0]]
    return np.broadcast_to(
        scale.reshape([-1 if a == q.axis and scale.size > 1 else 1 for a in range(len(shape))]), shape
    )


@pytest.mark.parametrize("name", PRUNABLE)
def test_every_layer_is_found_and_read_as_onnxruntime_reads_it(name: str, prepared: Lookup):
    """Fails where a quantized layer has no statistics and no refit, or an axis of scales is mistaken."""
    p = prepared(name)
    graph = p.channels.graph
    layers = layers_of(p.channels)
    assert len(layers) == sum(n.op in ("Conv", "ConvTranspose", "Gemm", "MatMul") for n in graph.nodes)
    for layer in layers:
        for tensor, q in _parts(layer):
            assert_same(q.read(graph.constants).astype(np.float32), _dequantized(p, tensor, {}), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("name", PRUNABLE)
def test_new_weights_are_stored_within_half_a_step(name: str, prepared: Lookup):
    """Fails where codes saturate, zero points are off, or a bias does not follow the scale of its weight."""
    p = prepared(name)
    constants = p.channels.graph.constants
    rng = np.random.default_rng(0)
    for layer in layers_of(p.channels):
        old = layer.matrix(constants)
        matrix = 3 * old * rng.uniform(0.2, 1.0, old.shape) + 0.1 * rng.standard_normal(old.shape)
        written = layer.weights(matrix, constants)
        present = {**constants, **written}
        assert all(written[k].dtype == constants[k].dtype for _, q in _parts(layer) for k in q.names)
        exact = Layer(**{**vars(layer), "stored_weight": None, "stored_bias": None}).weights(matrix, {})
        for tensor, q in _parts(layer):
            if q.rounds:
                assert_same(written[q.values].astype(np.float32), exact[tensor].astype(np.float32), rtol=0.0, atol=0.0)
            back = _dequantized(p, tensor, written).astype(np.float64)
            steps = _steps(q, present, back.shape)
            wanted = exact[tensor].reshape(back.shape)
            # Half a step; the zero point of an asymmetric type is rounded, too, and the scale is stored in float32.
            most = 0.5 if q.symmetric else 1.0
            if q.kind == "float8_e4m3fn":
                # Three bits after the point, down to steps of 2 ** -9.
                most = np.maximum(2.0**-4 * np.abs(wanted) / steps, 2.0**-10)
            assert (np.abs(back - wanted) <= (most + 1e-4) * steps + 1e-6 * np.abs(wanted)).all(), tensor
        if layer.step is not None and layer.stored_weight is not None and layer.stored_bias is not None:
            w, b = present[layer.stored_weight.scales[0]], present[layer.stored_bias.scales[0]]
            product = np.float32(layer.step) * w
            assert_same(b, np.tile(product, b.size // max(w.size, 1)).reshape(b.shape), rtol=0.0, atol=0.0)


def test_biases_of_integer_kernels_are_found(prepared: Lookup):
    """Fails where the bias scale is not tied to the scales of input and weight."""
    layers = layers_of(prepared("quantized").channels)
    assert [layer.step for layer in layers] == [pytest.approx(0.05), None, pytest.approx(0.05)]


def test_a_large_bias_widens_the_scale_of_its_weight(prepared: Lookup):
    """Fails where a bias overflows int32 at the scale of a weight that is nearly zero."""
    p = prepared("quantized")
    constants = p.channels.graph.constants
    layer = layers_of(p.channels)[0]
    matrix = layer.matrix(constants)
    matrix[0, :-1, 2] *= 1e-12
    matrix[0, -1, 2] = 1.5
    back = layer.rounded(matrix, constants)
    assert back[0, -1, 2] == pytest.approx(1.5, rel=1e-6)


def test_weights_that_vanish_keep_their_scale(prepared: Lookup):
    """Fails where a scale of zero divides."""
    p = prepared("quantized")
    constants = p.channels.graph.constants
    layer = layers_of(p.channels)[1]
    matrix = layer.matrix(constants)
    matrix[..., 3] = 0.0
    written = layer.weights(matrix, constants)
    assert all(np.isfinite(v).all() for v in written.values())
    assert layer.stored_weight is not None
    scale = layer.stored_weight.scales[0]
    assert written[scale][3] == constants[scale][3]
    assert not layer.rounded(matrix, constants)[..., 3].any()


@pytest.mark.parametrize(("kind", "most"), [(np.int8, 64), (np.uint8, 127)])
def test_codes_of_seven_bits_stay_so(kind: type, most: int):
    """Fails where a model that was quantized for 16-bit accumulators would overflow them after the refit."""

    def seven_bits(model: onnx.ModelProto) -> None:
        Quantizer(np.int8)(model)
        for t in model.graph.initializer:
            if t.name.startswith("w") and t.name.endswith(("_codes", "_zero")):
                values = numpy_helper.to_array(t).astype(np.int64)
                values = values // 2 if kind is np.int8 else values // 2 + 64
                t.CopyFrom(numpy_helper.from_array(values.astype(kind), t.name))

    row = Topology(PLAIN, (), edit=seven_bits)
    p = prepare(row.model(), row.feeds(2))
    constants = p.channels.graph.constants
    for layer in layers_of(p.channels):
        assert layer.stored_weight is not None
        codes = layer.weights(-5 * layer.matrix(constants), constants)[layer.stored_weight.values]
        assert codes.max() <= most
        assert codes.min() >= (-64 if kind is np.int8 else 0)
        assert int(codes.max()) - int(codes.min()) > 100


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packed_codes_stay_of_their_bits(bits: int, zeros: bool, prepared: Lookup):
    """Fails where new codes need more bits than there are, or leave the longer side of them unused.

    Without zero points the largest number of a block, whatever its sign, gets the least code.
    """
    row = TABLE["quantized_packed_eight_bits"]
    p = prepare(replace(row, edit=Packer(("w1",), bits=bits, zeros=zeros)).model(), row.feeds(2))
    constants = p.channels.graph.constants
    [layer] = (x for x in layers_of(p.channels) if x.stored_weight is not None)
    q = layer.stored_weight
    assert q is not None
    assert q.symmetric is not zeros
    matrix = np.random.default_rng(0).standard_normal(layer.matrix(constants).shape)
    written = layer.weights(matrix, constants)
    codes = written[q.values].astype(int)
    assert codes.min() == 0
    assert 0.8 * 2**bits <= codes.max() + 1 <= 2**bits
    blocks = [slice(0, 16), slice(16, 20)]
    for k, rows in enumerate(blocks):
        if zeros:
            assert (np.ptp(codes[rows], axis=0) >= 2 ** (bits - 1)).all()
        else:
            assert (written[q.zero_points[0]][k].astype(int) == 2 ** (bits - 1)).all()
            largest = np.abs(matrix[0, rows]).argmax(axis=0)
            assert (codes[rows][largest, range(codes.shape[1])] == 0).all()


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_magnitude_ranks_what_the_codes_stand_for(kind: type):
    """Fails where codes are ranked: with a scale for each channel they are all alike."""
    full, small = Topology(PLAIN, ()), Topology(PLAIN, (), edit=Quantizer(kind, asymmetric=kind is np.uint8))
    a, b = (prepare(row.model(), row.feeds(2)).channels for row in (full, small))
    for g, h in zip(sorted(a.groups, key=lambda g: -g.size), sorted(b.groups, key=lambda g: -g.size), strict=True):
        assert_same(magnitude(h, b), magnitude(g, a), rtol=0.02, atol=0.0)


def test_real_values_of_plain_weights_are_themselves(prepared: Lookup):
    graph = prepared("plain").channels.graph
    for name, values in graph.constants.items():
        assert real_values(graph, name) is values


def test_a_shared_quantized_weight_is_no_layer():
    """Fails where two uses of the same codes would be fitted one after the other."""

    def shared(model: onnx.ModelProto) -> None:
        Quantizer()(model)
        for n in model.graph.node:
            if n.op_type == "DequantizeLinear" and n.input[0] == "w2_codes":
                copy = helper.make_node("DequantizeLinear", list(n.input), ["again"], axis=0)
        model.graph.node.insert(0, copy)
        model.graph.node[-1].input[1] = "again"

    text = """(float[N,3,8,8] x) => (float[N,8,8,8] y) {
        a = Conv (x, w1[8,3,1,1], b1[8])
        c = Conv (a, w2[8,8,1,1], b2[8])
        r = Relu(c)
        y = Conv (r, w3[8,8,1,1], b3[8])
    }"""
    row = Topology(text, (), edit=shared)
    p = prepare(row.model(), row.feeds(2))
    assert len(layers_of(p.channels)) == 1


@pytest.mark.parametrize(("zero", "through"), [(128, True), (0, False), (255, False)])
def test_a_pair_that_acts_as_a_relu_is_not_looked_through(zero: int, through: bool):
    """Fails where a layer would be fitted to what stands behind a saturation."""

    def shift(model: onnx.ModelProto) -> None:
        Quantizer()(model)
        for t in model.graph.initializer:
            if t.name == "centre":
                t.CopyFrom(numpy_helper.from_array(np.array(zero, np.uint8), t.name))

    row = Topology(BRANCHES, (), edit=shift)
    graph: Graph = prepare(row.model(), row.feeds(2)).channels.graph
    assert behind_quantization(graph, "d") == ("d_real" if through else "d")
    assert behind_quantization(graph, "r") == "r"


@pytest.mark.parametrize("name", PRUNABLE)
def test_weights_are_shown_at_the_layers_that_use_them(name: str, prepared: Lookup):
    """Fails where `inspect` would name the DequantizeLinear of every weight instead of its layer."""
    described = describe(prepared(name).channels, "model", "", macs=(1.0, 0.0))
    assert described.share > 0.5
    for g in described.groups:
        assert {p.operator for p in (*g.producers, *g.consumers)} <= {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def test_four_bits_are_packed_again(prepared: Lookup):
    """Fails where a cut weight of half a byte is written with a whole one."""
    stored = {t.name: t for t in prepared("quantized_four_bits").normalised.proto.graph.initializer}
    assert stored["w2_codes"].data_type == onnx.TensorProto.INT4
    assert numpy_helper.to_array(stored["w2_codes"]).dtype == ml_dtypes.int4
    assert TABLE["quantized_four_bits"].units == (12, 8)
