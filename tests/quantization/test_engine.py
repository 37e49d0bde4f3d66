"""Quantization step by step: what goes where, that what is done to float models is exact, and what is left in float."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.evaluation import samples_for
from onnxprune.measures.compared import Asked, compared
from onnxprune.measures.figures import figures_of
from onnxprune.numerics.histogram import Histogram
from onnxprune.quantization import int8, ranges
from onnxprune.quantization.equalise import equalised, pairs_in
from onnxprune.quantization.places import Places
from onnxprune.quantization.preparation import prepared, refused
from onnxprune.quantization.ranges import Seen, seen
from onnxprune.runtime.session import Session
from onnxprune.targets.precision import ONNXRUNTIME, TENSORRT, Placement, reduces
from tests.compare import relative_error
from tests.quantization.networks import NORMALIZED, RESIDUAL, TRANSFORMER, network

RNG = np.random.default_rng(1)
# Samples of different strength and colour, so that what is left of them behind a mean differs.
X = {"x": (RNG.standard_normal((48, 3, 8, 8)) + 2.0 * RNG.standard_normal((48, 3, 1, 1))).astype(np.float32)}
TOKENS = {"x": RNG.standard_normal((48, 4, 8)).astype(np.float32)}


def quantized(model: onnx.ModelProto, data: dict[str, np.ndarray], **options: object) -> int8.Quantized:
    samples, asked = samples_for(model, data), Asked()

    def error(proto: onnx.ModelProto) -> float | None:
        outputs, answers, observed = compared(proto, model, samples, (), asked)
        return figures_of(observed, answers, outputs, held_out=True).error

    wanted = {"placement": ONNXRUNTIME, "method": "min-max", "reduce_range": False, "float_share": 0.0} | options
    return int8.quantized(model, samples, error, int8.Wanted(**wanted))  # type: ignore[arg-type]


def error_of(proto: onnx.ModelProto, model: onnx.ModelProto, data: dict[str, np.ndarray]) -> float:
    y, y0 = (Session(m).run(data)["y"].astype(np.float64) for m in (proto, model))
    return float(((y - y0) ** 2).sum() / ((y0 - y0.mean(axis=0)) ** 2).sum())


def edited(model: onnx.ModelProto, name: str, edit: Callable[[np.ndarray], None]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    edit(values)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def kinds(model: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


def test_a_residual_network_for_onnxruntime():
    """Fails where codes do not pass from the first layer to the last, or the outputs are rounded to 256 values."""
    model = network(RESIDUAL)
    result = quantized(model, X)
    assert (result.layers, result.share, result.floating) == (3, 1.0, ())
    assert kinds(result.model).count("Relu") == 0  # the zero point cuts off what lies below 0
    last = result.model.graph.node[-1]
    assert (last.op_type, last.output[0]) == ("Gemm", "y")
    producer = {o: n for n in result.model.graph.node for o in n.output}
    for n in result.model.graph.node:
        if n.op_type in ("Conv", "Add", "GlobalAveragePool", "Flatten", "Gemm"):
            assert {producer[i].op_type for i in n.input} == {"DequantizeLinear"}, n.name
    types = {t.name: t.data_type for t in result.model.graph.initializer}
    assert types["w2_quantized"] == TensorProto.INT8
    assert types["r1_zero_point"] == TensorProto.UINT8
    assert types["b2_quantized"] == TensorProto.INT32
    scale = next(t for t in result.model.graph.initializer if t.name == "w2_scale")
    assert list(scale.dims) == [8]  # one for each channel
    assert error_of(result.model, model, X) < 1e-3
    assert result.model.producer_name == model.producer_name
    onnx.checker.check_model(result.model, full_check=True)


def test_a_residual_network_for_tensorrt():
    """Fails where activations have a zero point, biases are quantized, or a pair stands in the way of a fusion."""
    model = network(RESIDUAL)
    result = quantized(model, X, placement=TENSORRT)
    stored = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
    zeros = [v for k, v in stored.items() if k.endswith("_zero_point")]
    assert zeros
    assert all(v.dtype == np.int8 and not v.any() for v in zeros)
    assert all(stored[b].dtype == np.float32 for b in ("b1", "b2", "b3", "w1", "w2", "w3"))
    producer = {o: n for n in result.model.graph.node for o in n.output}
    add = next(n for n in result.model.graph.node if n.op_type == "Add")
    assert [producer[i].op_type for i in add.input] == ["Conv", "DequantizeLinear"]
    for n in result.model.graph.node:
        if n.op_type in ("Conv", "Gemm"):
            assert {producer[i].op_type for i in n.input[:2]} == {"DequantizeLinear"}
    assert error_of(result.model, model, X) < 3e-3


def test_what_lies_between_float_layers_stays_in_float():
    """Fails where the residual stream of a transformer, which no layer reads as codes, is rounded."""
    result = quantized(network(TRANSFORMER), TOKENS)
    producer = {o: n for n in result.model.graph.node for o in n.output}
    for n in result.model.graph.node:
        if n.name in ("Add_5", "LayerNormalization_0"):
            assert "DequantizeLinear" not in {producer[i].op_type for i in n.input if i in producer}, n.name
        if n.op_type == "MatMul":
            assert {producer[i].op_type for i in n.input} == {"DequantizeLinear"}
    assert error_of(result.model, network(TRANSFORMER), TOKENS) < 1e-3


def test_a_pair_that_stands_for_an_activation_stays():
    """Fails where the pair behind a Gemm goes though its zero point is what is left of a Relu."""
    model = network("(float[N,8] x) => (float[N,6] y) { a = Gemm <transB=1> (x, w1[6,8], b1[6]) y = Relu (a) }")
    data = {"x": X["x"][:, 0, 0]}
    result = quantized(model, data)
    assert Session(model).run(data)["y"].min() == 0.0
    assert Session(result.model).run(data)["y"].min() >= 0.0
    assert error_of(result.model, model, data) < 1e-3


@pytest.mark.parametrize("read", ["r", "c"], ids=["what the activation gives", "what it reads"])
def test_bodies_read_what_they_read_before(read: str):
    """Fails where the codes of a layer stand for its activation, and a body finds what is in front of that."""
    model = network(
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            c = Conv <pads=[1,1,1,1]> (x, w1[4,3,3,3], b1[4])
            r = Relu (c)
            d = Conv (r, w2[5,4,1,1], b2[5])
            yes = ReduceMax <keepdims=0> (x)
            positive = Greater (yes, yes)
        }"""
    )
    branches = []
    for sign in (-1.0, 1.0):
        nodes = [
            helper.make_node("Constant", [], [f"k{sign}"], value_float=sign),
            helper.make_node("ReduceMean", [read], [f"m{sign}"], axes=[1], keepdims=1),
            helper.make_node("Mul", [f"m{sign}", f"k{sign}"], [f"p{sign}"]),
            helper.make_node("Add", ["d", f"p{sign}"], [f"o{sign}"]),
        ]
        out = helper.make_tensor_value_info(f"o{sign}", TensorProto.FLOAT, None)
        branches.append(helper.make_graph(nodes, f"branch {sign}", [], [out]))
    model.graph.node.append(
        helper.make_node("If", ["positive"], ["y"], name="if", then_branch=branches[0], else_branch=branches[1])
    )
    onnx.checker.check_model(model)
    assert error_of(quantized(model, X).model, model, X) < 1e-3


def test_normalizations_become_part_of_convolutions():
    """Fails where the prepared model computes something else."""
    model = network(NORMALIZED)
    given = prepared(model)
    assert kinds(given.model) == ["Conv", "Relu", "Conv"]
    assert any("1 BatchNormalizations" in n for n in given.notes)
    assert relative_error(Session(given.model).run(X)["y"], Session(model).run(X)["y"]) < 1e-5


@pytest.mark.parametrize(("text", "data", "count"), [(NORMALIZED, X, 1), (TRANSFORMER, TOKENS, 2), (RESIDUAL, X, 0)])
def test_equalised_channels_change_nothing(text: str, data: dict[str, np.ndarray], count: int):
    """Fails where a factor is not taken back by all that read the channel; with an addition behind there is no pair."""
    model = prepared(network(text, wide=20.0)).model
    pairs = pairs_in(model)
    if text is TRANSFORMER:  # a bias that is added stands between
        assert {p.tensors[0] for p in pairs} == {"n"}
    else:
        assert len(pairs) == count
    if not pairs:
        return
    there = seen(model, (), samples_for(model, data), {p.tensors[-1]: p.axis for p in pairs}, lambda _, __: None)
    assert not there.largest
    names = {p.tensors[-1] for p in pairs}
    there = seen(model, names, samples_for(model, data), {p.tensors[-1]: p.axis for p in pairs}, lambda _, __: None)
    level = equalised(model, pairs, there.largest)
    assert any(a != b for a, b in zip(level.graph.initializer, model.graph.initializer, strict=True))
    assert relative_error(Session(level).run(data)["y"], Session(model).run(data)["y"]) < 1e-5


def test_wide_channels_are_equalised_where_that_helps():
    """Fails where channels twenty times as wide as the others take the codes from these."""
    model = network(NORMALIZED, wide=300.0)
    result = quantized(model, X)
    assert result.equalised == 1
    assert result.before_equalising is not None
    assert error_of(result.model, model, X) < 0.7 * result.before_equalising


def test_a_costly_layer_stays_in_float():
    """Fails where the layer that takes nearly all of the error is quantized though it is a small share of the work, or
    one stays in float that was not worth it."""
    model = network(RESIDUAL)
    # Weights of a channel that is always 0 leave no codes to the others.
    edited(model, "b1", lambda b: b[:1].fill(-100.0))
    edited(model, "w2", lambda w: w[:1].fill(0.0))
    edited(model, "b2", lambda b: b[:1].fill(0.0))
    edited(model, "w3", lambda w: w[:, 0].fill(100.0))
    whole = quantized(model, X)
    assert error_of(whole.model, model, X) > 1e-3
    result = quantized(model, X, float_share=0.3)
    assert [x.name for x in result.floating] == ["Gemm_7"]
    assert "of the error that integers add" in result.floating[0].why
    assert error_of(result.model, model, X) < 0.5 * error_of(whole.model, model, X)
    named = quantized(model, X, floating=frozenset({"Conv_0", "s"}))
    assert [(x.name, x.why) for x in named.floating] == [("Conv_0", "was named")]
    assert 0.0 < named.share < 1.0


def test_only_what_was_moved_is_looked_at_again(monkeypatch: pytest.MonkeyPatch):
    """Fails where the second pass looks at activations that no scale has changed, or its ranges are not those of the
    model whose channels have one scale."""
    looked: list[set[str]] = []
    made: list[Seen] = []

    def looking(model: onnx.ModelProto, tensors: set[str], *rest: object) -> Seen:
        looked.append(set(tensors))
        made.append(seen(model, tensors, *rest))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(int8, "seen", looking)
    model = network(NORMALIZED, wide=300.0)
    result = quantized(model, X)
    assert result.equalised == 1
    assert looked == [{"x", "n", "r", "y"}, {"n", "r"}]
    whole = made[0].with_those_of(made[1])
    level = equalised(prepared(model).model, pairs_in(prepared(model).model), made[0].largest)
    again = seen(level, looked[0], samples_for(model, X), {}, lambda _, __: None)
    assert whole.ranges("min-max").keys() == again.ranges("min-max").keys() == looked[0]
    for k, ends in again.ranges("min-max").items():
        np.testing.assert_allclose(whole.ranges("min-max")[k], ends, rtol=1e-5, atol=1e-6)


def test_of_large_activations_a_part_is_counted(monkeypatch: pytest.MonkeyPatch):
    """Fails where the ends are not those of all numbers, or a part of the channels or columns is left out."""
    model = network(NORMALIZED)
    monkeypatch.setattr(ranges, "_COUNTED", 1 << 60)
    whole = seen(model, {"x", "r"}, samples_for(model, X), {}, lambda _, __: None)
    monkeypatch.setattr(ranges, "_COUNTED", 48 * 6 * 64 // 8)
    part = seen(model, {"x", "r"}, samples_for(model, X), {}, lambda _, __: None)
    assert part.ranges("min-max") == whole.ranges("min-max")
    assert whole.histograms["r"].counts.sum() == 48 * 6 * 64
    counted = part.histograms["r"].counts.sum()
    assert 48 * 6 * 64 // 16 < counted <= 48 * 6 * 64 // 8
    assert part.histograms["r"].square == pytest.approx(whole.histograms["r"].square, rel=0.1)


def test_a_part_holds_every_column():
    """Fails where a step through the numbers has a divisor in common with the sizes, so that it meets few columns."""
    seen_of: list[np.ndarray] = []

    class Listening(Histogram):
        def add(self, values: np.ndarray) -> None:
            seen_of.append(values)

    values = np.broadcast_to(np.arange(112, dtype=np.float32), (8, 32, 112, 112))
    ranges._count(Listening(), values, 28 * ranges._COUNTED)
    assert set(np.unique(seen_of[0])) == set(range(112))


def test_the_way_with_the_least_error_is_taken():
    """Fails where ranges are not those of the way whose error is least."""
    data = {"x": X["x"].copy()}
    data["x"][0, 0, 0, 0] = 300.0  # a single number that would take all the codes
    result = quantized(network(RESIDUAL), data, method="auto")
    assert set(result.tried) == {"min-max", "entropy", "percentile"}
    assert result.tried[result.method] == min(v for v in result.tried.values() if v is not None)


def test_places_need_what_is_around():
    """Fails where nodes are quantized whose activations have no range."""
    model = prepared(network(RESIDUAL)).model
    places = Places.of(model, ONNXRUNTIME)
    every = places.tensors()
    assert len(places.nodes(every)) == 8
    assert places.nodes(every - {"x"}) == ["Conv_2", "Gemm_7"]
    assert places.nodes(()) == []


def test_what_cannot_be_quantized():
    """Fails where a model in codes, or of other numbers, is taken, or one without layers gives anything but a line."""
    coded = quantized(network(RESIDUAL), X).model
    assert "quantized already" in refused(coded)
    half = network(RESIDUAL)
    for t in half.graph.initializer:
        t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name))
    assert "float16" in refused(half)
    with pytest.raises(ModelError, match="no layer can compute"):
        quantized(network("(float[N,8] x) => (float[N,8] y) { y = Relu (x) }"), {"x": X["x"][:, 0, 0]})
    assert refused(network(RESIDUAL)) == ""


def test_an_older_opset_is_brought_up():
    """Fails where scales per channel are written into an opset that does not know them."""
    model = network(RESIDUAL.replace("<axis=-1>", ""), opset=11)
    result = quantized(model, X)
    assert result.model.opset_import[0].version == 13
    assert any("opset 13" in n for n in result.notes)
    assert error_of(result.model, model, X) < 1e-3


@pytest.mark.parametrize(
    ("choice", "tensorrt", "machine", "instructions", "wanted"),
    [
        ("yes", True, "aarch64", ("neon",), True),
        ("no", False, "x86_64", ("avx2",), False),
        ("auto", False, "x86_64", ("avx2",), True),
        ("auto", False, "AMD64", ("avx2", "vnni"), False),
        ("auto", False, "x86_64", (), False),
        ("auto", False, "aarch64", ("neon",), False),
        ("auto", True, "x86_64", ("avx2",), False),
    ],
)
def test_reduced_ranges(choice: str, tensorrt: bool, machine: str, instructions: tuple[str, ...], wanted: bool):
    assert reduces(choice, tensorrt, machine, instructions) is wanted


def test_reduced_ranges_are_seven_bits():
    """Fails where a weight has a code that overflows 16 bits."""
    result = quantized(network(RESIDUAL), X, reduce_range=True)
    codes = [numpy_helper.to_array(t) for t in result.model.graph.initializer if t.data_type == TensorProto.INT8]
    weights = [c for c in codes if c.ndim > 1]
    assert weights
    assert max(int(np.abs(c.astype(int)).max()) for c in weights) <= 64


def test_placements_name_operators_of_the_standard():
    for p in (ONNXRUNTIME, TENSORRT):
        assert isinstance(p, Placement)
        for op in (*p.layers, *p.between, *p.through):
            assert onnx.defs.has(op), op
