"""What TensorRT's parser accepts: the table, its conditions, and that no rewriting goes beyond them.

The lists of names are those of the document that `onnxprune.targets.tensorrt_support` cites, in its order.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import inspect, prune
from onnxprune.cli import program
from onnxprune.errors import CheckFailed
from onnxprune.graph import bodies
from onnxprune.intake import model_file
from onnxprune.stages import finish
from onnxprune.targets import tensorrt_check
from onnxprune.targets.tensorrt_support import NEWEST, TABLE
from tests import digits
from tests.graphs import PRUNABLE
from tests.graphs import TABLE as TOPOLOGIES
from tests.kit import has_batch, kit_feeds, kit_models, one_export_each
from tests.prepared import Prepared, prepare, random_keep, sliced
from tests.sampled import every

Lookup = Callable[[str], Prepared]
FAST: dict[str, Any] = {"method": "magnitude", "refit": "none", "target": "tensorrt-fp16"}

ACCEPTED = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BlackmanWindow Cast
CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace
DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu
Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization GRU HammingWindow
HannWindow HardSigmoid HardSwish Hardmax Identity If ImageScaler InstanceNormalization IsInf IsNaN LayerNormalization
LeakyRelu Less LessOrEqual Log LogSoftmax Loop LRN LSTM LpNormalization LpPool MatMul Max MaxPool Mean
MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad ParametricSoftplus Pow PRelu
QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2
ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
ReverseSequence RMSNormalization RNN RoiAlign RotaryEmbedding Round STFT ScaledTanh Scan Scatter ScatterElements
ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze
Sub Sum Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
""".split()
REFUSED = """
AffineGrid Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Col2Im CenterCropPad Compress
ConcatFromSequence ConvInteger DFT Det DynamicQuantizeLinear ImageDecoder MatMulInteger MaxRoiPool MaxUnpool
MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional OptionalGetElement OptionalHasElement QLinearConv
QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength
SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer StringSplit TfIdfVectorizer Unique
""".split()


def test_the_table_is_that_of_the_document():
    assert set(TABLE) == set(ACCEPTED)
    assert not set(TABLE) & set(REFUSED)


def test_every_operator_of_these_opsets_is_decided_about():
    """Fails where a name is misspelt, or an operator that the document's opsets have was passed over."""
    known = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == "" and s.since_version <= NEWEST}
    decided = {*ACCEPTED, *REFUSED}
    # Experimental ones of the first operator sets; and those that stand nowhere in the document.
    gone = {"ATen", "Affine", "Crop", "DynamicSlice", "GRUUnit", "GivenTensorFill", "Scale"}
    unnamed = {"GlobalLpPool", "Swish", "LabelEncoder"}
    assert known - decided <= gone | unnamed
    assert decided - known <= {"ImageScaler", "ParametricSoftplus", "ScaledTanh"}


def reasons(text: str, *, opset: int = 18, **weights: Any) -> set[str]:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>\nmain {text}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    return {p.reason for p in tensorrt_check.problems(model)}


W1 = np.ones((4, 3, 1), np.float32)
W2 = np.ones((4, 3, 1, 1), np.float32)
POOLED = "(float[N,3,8,8] x) => (float[N,3,a,b] y) { y = %s (x) }"
LINES = "(float[N,3,8] x) => (float[N,3,a] y) { y = %s (x) }"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (POOLED % "MaxPool <kernel_shape=[2,2]>", ""),
        (LINES % "MaxPool <kernel_shape=[2]>", "only pooling in 2 or 3 dimensions is supported"),
        (POOLED % "MaxPool <kernel_shape=[2,2], dilations=[2,2]>", "dilations are not supported"),
        (POOLED % "LpPool <kernel_shape=[2,2], p=3>", "p must be 1 or 2"),
        (
            "(float[N,3,8,8] x) => (float[N,3,a,b] y, int64[N,3,a,b] z) { y, z = MaxPool <kernel_shape=[2,2]> (x) }",
            "its second output, Indices, is not supported",
        ),
        ("(float[N,3] x) => (float[N,3] y) { y = LayerNormalization (x, s) }", ""),
        (
            "(float[N,3] x) => (float[N,3] y, float[N,1] u) { y, u = LayerNormalization (x, s) }",
            "only its first output is supported",
        ),
        ("(float[N,3] x) => (float[M,3] y) { y = Compress <axis=0> (x, c) }", "the operator is not supported"),
        ("(int8[N,3] x) => (int8[N,3] y) { y = Add (x, x) }", "int8 is not supported"),
        ("(int16[N,3] x) => (float[N,3] y) { y = Cast <to=1> (x) }", "int16 is not supported"),
        ("(uint8[N,3] x) => (float[N,3] y) { y = Cast <to=1> (x) }", ""),
        ("(double[N,3] x) => (double[N,3] y) { y = Relu (x) }", "float64 is computed in float32"),
        ("(float[N,3] x) => (float[N,3] y) { y = com.microsoft.FastGelu (x) }", "it needs a plugin"),
        ("(float[N,3] x, int64[1] a) => (float[N,1] y) { y = ReduceSum (x, a) }", "axes must be a constant"),
        ("(float[N,3] x) => (float[N,1] y) { y = ReduceSum (x, one) }", ""),
        ("(float[N,3] x) => (float[N,1] y) { i = Identity (one) y = ReduceSum (x, i) }", ""),
        ("(float[N,3] x, int64[1] a) => (float[N,b,c] y) { y = Unsqueeze (x, a) }", "axes must be a constant"),
        ("(float[N,9] x) => (float[N,2] y, int64[N,2] z) { y, z = TopK (x, two) }", ""),
        ("(float[N,9] x) => (float[N,2] y, int64[N,2] z) { y, z = TopK <sorted=0> (x, two) }", "sorted must be 1"),
        ("(float[N,9] x) => (float[N,2] y, int64[N,2] z) { y, z = TopK (x, many) }", "K must be less than 3840"),
        ('(float[N,3,8,8] x) => (float[N,3,a,b] y) { y = Resize <mode="linear"> (x, "", twice) }', ""),
        (
            '(float[N,3,8,8] x) => (float[N,3,a,b] y) { y = Resize <mode="cubic"> (x, "", twice) }',
            "mode 'cubic' is not supported",
        ),
        (
            '(float[N,3,8,8] x) => (float[N,3,a,b] y) { y = Resize <mode="linear", antialias=1> (x, "", twice) }',
            "antialias is not supported",
        ),
        ("(float[N,3] x) => (float[N,3] y) { q = QuantizeLinear (x, k, zero) y = DequantizeLinear (q, k, zero) }", ""),
        (
            "(float[N,3] x) => (float[N,3] y) { q = QuantizeLinear (x, k, off) y = DequantizeLinear (q, k, off) }",
            "the zero point must be 0",
        ),
        (
            "(float[N,3] x) => (uint8[N,3] y) { y = QuantizeLinear (x, k, byte) }",
            "uint8 is not supported as its result",
        ),
        ("(float[N,3,8,8] x) => (float[N,4,8,8] y) { y = Conv (x, w2) }", ""),
        (
            "(float[N,C,8,8] x) => (float[N,4,8,8] y) { y = Conv (x, w2) }",
            "the number of its input channels is not fixed",
        ),
        ("(float[N,C] x) => (float[N,4] y) { y = MatMul (x, m) }", "the number of its input channels is not fixed"),
        ("(float[N,3] x) => (float[N,4] y) { y = MatMul (x, m) }", ""),
        ("(float[3,N] x) => (float[N,4] y) { y = Gemm <transA=1> (x, m) }", ""),
        ("(float[N,C] x, float[C,5] z) => (float[N,5] y) { y = MatMul (x, z) }", ""),
        ("(float[L,N,3] x) => (float[L,1,N,2] y) { y = LSTM <hidden_size=2> (x, w, r) }", ""),
        (
            "(float[L,N,3] x) => (float[L,1,N,2] y) { y = LSTM <hidden_size=2, input_forget=1> (x, w, r) }",
            "input_forget is not supported",
        ),
        (
            "(float[N,L,3] x) => (float[N,L,1,2] y) { y = LSTM <hidden_size=2, layout=1> (x, w, r) }",
            "layout 1 is not supported",
        ),
        (
            "(float[N,3] x, bool f) => (float[N,3] y) { y = If (f) "
            "<then_branch = a () => (float[N,3] t) { t = Relu (x) }, "
            "else_branch = b () => (float[N,3] t) { t = Neg (x) }> }",
            "outputs of its branches must have different names",
        ),
        (
            "(float[N,3] x, bool f) => (float[N,3] y) { y = If (f) "
            "<then_branch = a () => (float[N,3] t) { t = Relu (x) }, "
            "else_branch = b () => (float[M,3] e) { e = Compress <axis=0> (x, c) }> }",
            "the operator is not supported",
        ),
    ],
)
def test_conditions(text: str, reason: str):
    found = reasons(
        text,
        **{"w2": W2, "s": np.ones(3, np.float32), "c": np.array([True]), "one": np.array([1]), "two": np.array([2])},
        **{"many": np.array([4000]), "twice": np.array([1, 1, 2, 2], np.float32), "k": np.float32(0.1)},
        **{"zero": np.int8(0), "off": np.int8(3), "byte": np.uint8(0), "m": np.ones((3, 4), np.float32)},
        **{"w": np.ones((1, 8, 3), np.float32), "r": np.ones((1, 8, 2), np.float32)},
    )
    assert len(found) == bool(reason)
    assert all(reason in f for f in found)


@pytest.mark.parametrize(("opset", "expected"), [(8, True), (9, False), (24, False), (25, True)])
def test_opsets(opset: int, expected: bool):
    found = reasons("(float[N,3] x) => (float[N,3] y) { y = Relu (x) }", opset=opset)
    assert any("is not among those that it supports" in r for r in found) is expected


def test_sequences():
    """Fails where a value that is no tensor passes unnoticed."""
    port = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("SequenceConstruct", ["x"], ["y"])], "main", [x], [port])
    found = tensorrt_check.problems(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    assert {p.reason for p in found} == {"inputs and outputs must be tensors", "the operator is not supported"}


def test_both_directions_have_the_same_activations():
    text = (
        "(float[L,N,3] x) => (float[L,2,N,2] y) "
        '{ y = GRU <hidden_size=2, direction="bidirectional", activations=%s> (x, w, r) }'
    )
    weights = {"w": np.ones((2, 6, 3), np.float32), "r": np.ones((2, 6, 2), np.float32)}
    assert not reasons(text % '["Sigmoid","Tanh","Sigmoid","Tanh"]', **weights)
    assert reasons(text % '["Sigmoid","Tanh","Sigmoid","Relu"]', **weights) == {
        "both directions must have the same activations"
    }


def test_nodes_are_named_once():
    """Fails where the same reason fills the report, once for every node."""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> main (float[N,3,8] x) => (float[N,3,6] y) '
        "{ [first] a = MaxPool <kernel_shape=[2]> (x) [second] y = MaxPool <kernel_shape=[2]> (a) }"
    )
    assert tensorrt_check.warnings(model) == [
        "TensorRT (by its documentation): MaxPool 'first' and 1 more: only pooling in 2 or 3 dimensions is supported"
    ]


# pruning brings nothing in


def as_written(p: Prepared, seed: int) -> onnx.ModelProto:
    small = sliced(p, random_keep(p.channels, seed))
    bodies.return_to_bodies(small, p.normalised.outside)
    return small


@pytest.mark.parametrize("name", PRUNABLE)
def test_cutting_brings_nothing_in(name: str, prepared: Lookup):
    """Fails where a repair writes an operator, a type or a size that the parser takes the original without."""
    p = prepared(name)
    for seed in range(2):
        assert tensorrt_check.introduced(TOPOLOGIES[name].model(), as_written(p, seed), p.normalised.proto) == ()


@pytest.mark.parametrize("path", every(2, one_export_each(kit_models("models", "arch", "wild"))))
def test_cutting_a_real_model_brings_nothing_in(path: Path):
    proto, _ = model_file.load(path)
    p = prepare(proto, kit_feeds(path, proto, 2 if has_batch(proto) else 1))
    small = as_written(p, 0)
    assert tensorrt_check.introduced(proto, small) == ()


def test_what_is_brought_in_fails_the_check(monkeypatch: pytest.MonkeyPatch):
    """Fails where a pruned model that TensorRT refuses, unlike its original, would be written."""

    real = finish.in_form

    def spoiled(*args: Any, **options: Any) -> onnx.ModelProto:
        proto = real(*args, **options)
        proto.graph.node.append(helper.make_node("Unique", [proto.graph.initializer[0].name], ["useless"], axis=0))
        return proto

    clean = prune(digits.path("resnet"), None, digits.CALIB, **FAST).report
    assert clean.notes == ()
    monkeypatch.setattr(finish, "in_form", spoiled)
    with pytest.raises(CheckFailed, match=r"TensorRT would refuse .* Unique: the operator is not supported"):
        prune(digits.path("resnet"), None, digits.CALIB, **FAST)
    forced = prune(digits.path("resnet"), None, digits.CALIB, force=True, **FAST).report
    assert any("Unique" in n for n in forced.notes)
    prune(digits.path("resnet"), None, digits.CALIB, **(FAST | {"target": "ort-cuda"}))


def test_what_the_original_has_is_a_warning():
    """Fails where the user learns of it from TensorRT only, or is kept from pruning for another one."""
    row = TOPOLOGIES[
        next(n for n in PRUNABLE if _has(TOPOLOGIES[n].model(), "MaxUnpool", "Col2Im", "AffineGrid", "Det"))
    ]
    options: dict[str, Any] = {**FAST, "ratio": 0.2, "round_to": 1}
    wanted = "the operator is not supported"
    for dry_run in (False, True):
        notes = prune(row.model(), None, row.feeds(8), dry_run=dry_run, **options).report.notes
        assert sum(wanted in n for n in notes) == 1
    assert not any(
        wanted in n for n in prune(row.model(), None, row.feeds(8), **(options | {"target": "ort-cpu"})).report.notes
    )
    assert any(wanted in n for n in inspect(row.model(), row.feeds(2), target="tensorrt-int8").notes)
    assert not any(wanted in n for n in inspect(row.model(), row.feeds(2)).notes)


def _has(model: onnx.ModelProto, *operators: str) -> bool:
    return any(n.op_type in operators for n in bodies.every_node(model.graph))


def test_inspect_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where the option is dropped on its way."""
    path = tmp_path / "lines.onnx"
    text = (
        "(float[N,3,8] x) => (float[N,5,7] y) { a = Conv (x, w1) b = MaxPool <kernel_shape=[2]> (a) y = Conv (b, w2) }"
    )
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> main {text}')
    weights = {"w1": np.ones((8, 3, 1), np.float32), "w2": np.ones((5, 8, 1), np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    onnx.save(model, path)
    for target, warned in (("tensorrt-fp16", True), ("ort-cpu", False)):
        assert program.main(["inspect", str(path), "--target", target]) == 0
        assert ("only pooling in 2 or 3 dimensions" in " ".join(capsys.readouterr().out.split())) is warned
