"""Layers as regressions: rows times matrix is what onnxruntime computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest

from onnxprune.calibration.layers import InputGates, Layer, StateGates, layers_of
from tests.calibrated import every_position, prepare_text, values
from tests.compare import assert_same
from tests.graphs import PRUNABLE, TABLE
from tests.prepared import Array, Prepared, random_keep, sliced

Lookup = Callable[[str], Prepared]
# float32 activations against their product in float64.
RTOL = 1e-4

GRAPHS = {
    "gemm": """(float[N,7] x) => (float[N,5] y) {
        a = Gemm <transB=1, alpha=0.5, beta=-2.0> (x, w1[8,7], b1[8])
        r = Relu(a)
        c = Gemm <alpha=3.0> (r, w2[8,6], b2[1,6])
        s = Relu(c)
        y = Gemm <transB=1, beta=0.25> (s, w3[5,6], b3[5])
    }""",
    "gemm_bias_without_weight": """(float[N,7] x) => (float[N,5] y) {
        a = Gemm <beta=0.0> (x, w1[7,8], b1[8])
        r = Relu(a)
        y = Gemm (r, w2[8,5], b2[5])
    }""",
    "gemm_without_product": """(float[N,7] x) => (float[N,5] y) {
        a = Gemm <alpha=0.0> (x, w1[7,8], b1[8])
        r = Relu(a)
        y = Gemm (r, w2[8,5], b2[5])
    }""",
    "gemm_column_of_constants": """(float[5,7] x) => (float[5,5] y) {
        a = Gemm (x, w1[7,5], b1[5,1])
        r = Relu(a)
        y = Gemm (r, w2[5,5], b2[5])
    }""",
    "matmul_and_add": """(float[N,4,7] x) => (float[N,4,5] y) {
        a = MatMul(x, w1[7,8])
        ab = Add(b1[8], a)
        r = Relu(ab)
        c = MatMul(r, w2[8,6])
        cb = Add(c, b2[1,1,6])
        s = Tanh(cb)
        y = MatMul(s, w3[6,5])
    }""",
    "matmul_rank_4": """(float[N,2,3,7] x) => (float[N,2,3,5] y) {
        a = MatMul(x, w1[7,8])
        r = Relu(a)
        y = MatMul(r, w2[8,5])
    }""",
    "same_pads": """(float[N,3,7,8] x) => (float[N,5,8,8] y) {
        a = Conv <auto_pad="SAME_LOWER", strides=[2,2]> (x, w1[8,3,3,3], b1[8])
        r = Relu(a)
        y = ConvTranspose <auto_pad="SAME_UPPER", strides=[2,2]> (r, w2[8,5,3,3], b2[5])
    }""",
    "transposed_to_a_size": """(float[N,3,6,6] x) => (float[N,5,11,11] y) {
        a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
        r = Relu(a)
        y = ConvTranspose <strides=[2,2], output_shape=[11,11]> (r, w2[8,5,3,3], b2[5])
    }""",
}


def check_layers(p: Prepared, layers: tuple[Layer, ...]) -> None:
    names = [n for layer in layers for n in (layer.data, layer.output) if n]
    found = values(p.normalised.proto, names, p.example)
    for layer in layers:
        x = found[layer.data]
        y = found[layer.output] if layer.output else gates(layer, x, p.channels.graph.constants)
        rng = np.random.default_rng(0)
        shape = layer.output_shape(x.shape)
        assert tuple(s or y.shape[a] for a, s in enumerate(shape)) == y.shape
        for at in (every_position(layer, y), layer.positions(shape, 5, rng)):
            product = layer.rows(x, at).astype(np.float64) @ layer.matrix(p.channels.graph.constants)
            assert_same(product, layer.targets(y, at).astype(np.float64), rtol=RTOL, atol=0.0)


def gates(layer: Layer, x: Array, constants: Mapping[str, Array]) -> Array:
    """What a recurrent net adds up before its activations, (B, T, D * gates): its input's share or its state's."""
    w = constants[layer.weight]
    if layer.node.op == "DynamicQuantizeLSTM":  # its rounding at run time aside
        scale, zero = (constants[f"{layer.weight}_{what}"].astype(np.float64) for what in ("scale", "zero"))
        w = ((w - zero) * scale).swapaxes(1, 2)
    if isinstance(layer, StateGates):
        y = np.einsum("tdbh,dgh->btdg", x, w)
    else:
        y = np.einsum("tbi,dgi->btdg", x, w) + (constants[layer.bias][:, : w.shape[1]] if layer.bias else 0.0)
    return y.reshape(*y.shape[:2], -1)


@pytest.mark.parametrize("name", TABLE)
def test_rows_times_matrix_is_the_output(name: str, prepared: Lookup) -> None:
    """Fails where the rows of a layer, its weights or its bias are ordered differently from each other."""
    p = prepared(name)
    check_layers(p, layers_of(p.channels))


@pytest.mark.parametrize("name", GRAPHS)
def test_factors_biases_and_pads_of_single_operators(name: str) -> None:
    """Fails where an attribute that few exporters write is overlooked."""
    p = prepare_text(GRAPHS[name])
    layers = layers_of(p.channels)
    assert layers
    check_layers(p, layers)


def test_a_constant_added_behind_a_product_is_its_bias() -> None:
    """Fails where the bias of a linear layer with tokens is not found, or one is invented."""
    p = prepare_text(GRAPHS["matmul_and_add"])
    assert [(x.output, bool(x.bias)) for x in layers_of(p.channels)] == [("ab", True), ("cb", True), ("y", False)]


def test_constants_per_row_are_no_bias() -> None:
    """Fails where a column that is as long as the output is wide is taken for a bias, or a factor of zero divides."""
    assert [x.weight for x in layers_of(prepare_text(GRAPHS["gemm_column_of_constants"]).channels)] == ["w2"]
    assert [x.weight for x in layers_of(prepare_text(GRAPHS["gemm_without_product"]).channels)] == ["w2"]
    assert layers_of(prepare_text(GRAPHS["gemm_bias_without_weight"]).channels)[0].bias == ""


@pytest.mark.parametrize("name", [*TABLE, *GRAPHS])
def test_weights_invert_matrix(name: str, prepared: Lookup) -> None:
    """Fails where refitted weights would be written back in another order or scale."""
    p = prepared(name) if name in TABLE else prepare_text(GRAPHS[name])
    constants = p.channels.graph.constants
    for layer in layers_of(p.channels):
        if layer.quantized:
            continue  # rounded anew: tests/graph/test_quantized.py
        for tensor, back in layer.weights(layer.matrix(constants), constants).items():
            stored = constants[tensor].astype(np.float64)
            assert_same(back.reshape(stored.shape), stored, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("name", PRUNABLE)
def test_a_sliced_layer_fits_the_cut_model(name: str, prepared: Lookup) -> None:
    """Fails where the columns kept of a matrix are not those that the cut weights have."""
    p = prepared(name)
    keep = random_keep(p.channels, 1)
    small = sliced(p, keep)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in small.graph.initializer}
    nodes = {n.output[0]: n for n in small.graph.node}
    for layer in layers_of(p.channels):
        node = nodes[layer.node.outputs[0]]
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        full = layer.matrix(p.channels.graph.constants)
        found = layer.sliced(keep, groups).matrix(weights)
        columns = layer.kept_columns(keep)
        outputs = layer.kept_outputs(keep).reshape(layer.groups, -1)
        # A group that keeps no output is gone as a whole.
        expected = [full[g][columns[g]][:, outputs[g]] for g in range(layer.groups) if outputs[g].any()]
        assert_same(found, np.stack(expected), rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    "text",
    [
        # A kernel that two layers share, one that is also an output, one that a branch reads.
        "(float[N,3,8,8] x) => (float[N,3,8,8] y) { a = Conv(x, w[3,3,1,1])\n r = Relu(a)\n y = Conv(r, w) }",
        "(float[N,7] x) => (float[N,8] y, float[7,8] w) { y = MatMul(x, w[7,8]) }",
        """(float[N,7] x, bool c) => (float[N,8] y, float[N,8] v) {
            y = MatMul(x, w[7,8])
            v = If (c) <
                then_branch = t () => (float[N,8] p) { p = MatMul(x, w) },
                else_branch = e () => (float[N,8] q) { r = Neg(x)
                    q = MatMul(r, w) }
            >
        }""",
    ],
)
def test_weights_that_something_else_reads_are_no_layer(text: str) -> None:
    """Fails where a refit of one use would change another."""
    assert layers_of(prepare_text(text).channels) == ()


def test_a_batch_that_the_model_has_emptied_has_no_rows() -> None:
    """Fails where numpy is asked to divide nothing."""
    (layer,) = layers_of(prepare_text("(float[N,6,4] x) => (float[N,6,5] y) { y = MatMul(x, w[4,5]) }").channels)
    at = np.arange(6)
    assert layer.rows(np.zeros((0, 6, 4), np.float32), at).shape == (1, 0, 4)
    assert layer.targets(np.zeros((0, 6, 5), np.float32), at).shape == (1, 0, 5)
    assert layer.values_at(np.zeros((2, 6, 0), np.float32), at).shape == (12, 0)


def test_positions_are_distinct_sorted_and_enough() -> None:
    """Fails where a position is drawn twice, or the small map loses some."""
    layer = layers_of(prepare_text(GRAPHS["same_pads"]).channels)[0]
    rng = np.random.default_rng(0)
    assert layer.positions((2, 0, 4, 4), 16, rng).tolist() == list(range(16))
    picked = layer.positions((2, 0, 9, 9), 16, rng)
    assert len(set(picked.tolist())) == 16
    assert (np.diff(picked) > 0).all()
    assert picked.max() < 81


@pytest.mark.parametrize("name", ["gemm", "matmul_and_add", "same_pads"])
def test_one_weight_off_by_a_hundredth_is_seen(name: str) -> None:
    """The mutation check: one entry of each matrix that is 1 % off fails the comparison above."""
    p = prepare_text(GRAPHS[name])
    for layer in layers_of(p.channels):
        found = values(p.normalised.proto, [layer.data, layer.output], p.example)
        at = every_position(layer, found[layer.output])
        matrix = layer.matrix(p.channels.graph.constants)
        rows = layer.rows(found[layer.data], at).astype(np.float64)
        power = np.abs(rows).max(axis=1)[:, :, None] * np.abs(matrix)
        matrix.flat[power.argmax()] *= 1.01
        with pytest.raises(AssertionError, match="times the bound"):
            assert_same(rows @ matrix, layer.targets(found[layer.output], at).astype(np.float64), rtol=RTOL, atol=0.0)


@pytest.mark.parametrize("name", ["lstm_on_codes", "lstm_on_codes_never_zero"])
def test_an_lstm_on_codes_has_the_layers_of_one_on_numbers(name: str, prepared: Lookup) -> None:
    """Fails where what such an operator reads is not fitted, or is rounded by other scales than it is stored with."""
    p = prepared(name)
    constants = p.channels.graph.constants
    gates = [x for x in layers_of(p.channels) if x.node.op == "DynamicQuantizeLSTM"]
    assert [type(x) for x in gates] == [InputGates, StateGates]
    for layer, w in zip(gates, ("w1", "r1"), strict=True):
        codes, scale, zero = (constants[n].astype(np.float64) for n in (w, f"{w}_scale", f"{w}_zero"))
        assert_same(layer.matrix(constants)[0, : codes.shape[1]], ((codes - zero) * scale)[0], rtol=1e-12, atol=0.0)
        wider = 1.5 * layer.matrix(constants)
        step = np.abs(wider).max() / 120
        assert np.abs(layer.rounded(wider, constants) - wider)[:, : codes.shape[1]].max() <= step
