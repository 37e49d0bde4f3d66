"""What TensorRT's ONNX parser accepts: operators, the types of their data, and conditions that a graph shows.

Source: `docs/operators.md` of onnx/onnx-tensorrt as of TensorRT 10.15 ("operators in the inclusive range of opset 9 to
opset 24"), operator by operator; `training_mode` of BatchNormalization and the p of LpPool and LpNormalization from its
`builtin_op_static_checkers.cpp` (2cb1f39f). An operator that stands there with "N", or not at all, is in no list here.

Types are those of the data. float64 is accepted everywhere and computed in float32. Of the restrictions those are left
out that no model shows before it runs: whether what a Loop carries keeps its shape, and how much a scan puts out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxprune.numerics.arrays import Array

OLDEST, NEWEST = 9, 24

_T = onnx.TensorProto
_FLOAT_HALF = frozenset({_T.FLOAT, _T.FLOAT16})
_FLOAT = _FLOAT_HALF | {_T.BFLOAT16}
_NUMBER = _FLOAT | {_T.INT32, _T.INT64}
_ANY = _NUMBER | {_T.BOOL}
_QUANTIZED = frozenset({_T.INT8, _T.INT4, _T.FLOAT8E4M3FN, _T.FLOAT4E2M1})
_STORED = _ANY | (_QUANTIZED - {_T.INT8})

_OPERATORS: tuple[tuple[frozenset[int], str], ...] = (
    (
        _FLOAT,
        "Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh "
        "CumSum Dropout Einsum Elu Erf Exp Floor Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization "
        "GRU HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization IsInf LayerNormalization LeakyRelu Log "
        "LogSoftmax LRN LSTM LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization ParametricSoftplus "
        "PRelu QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Reciprocal Resize "
        "RMSNormalization RNN RotaryEmbedding Round ScaledTanh Scan Selu Sigmoid Sin Sinh Softmax Softplus Softsign "
        "Sqrt Tan Tanh ThresholdedRelu Upsample",
    ),
    (
        _FLOAT_HALF,
        "BlackmanWindow DeformConv GridSample HammingWindow HannWindow Mish NonMaxSuppression NonZero RoiAlign",
    ),
    (
        _NUMBER,
        "Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Min Mod Mul "
        "Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK",
    ),
    (
        _ANY,
        "Concat Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop OneHot Reshape ReverseSequence "
        "Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where",
    ),
    (frozenset({_T.BOOL}), "And Not Or Xor"),
    (_ANY | {_T.UINT8}, "Cast CastLike"),
    (_STORED, "Constant ConstantOfShape"),
    (_QUANTIZED, "DequantizeLinear"),
    (_FLOAT | {_T.INT8, _T.FLOAT8E4M3FN}, "Attention"),
    (_NUMBER | {_T.INT8}, "Gelu"),
    (_NUMBER | {_T.FLOAT8E4M3FN}, "Mean"),
    (_FLOAT | {_T.INT32}, "TensorScatter"),
    (frozenset({_T.FLOAT}), "STFT"),
)

# Where the data is, if not in the first input: (input slots, output slots).
_DATA: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "Where": ((1, 2), ()),
    "OneHot": ((2,), ()),
    "Cast": ((0,), (0,)),
    "CastLike": ((0,), (0,)),
    **dict.fromkeys(("Constant", "ConstantOfShape", "EyeLike", "If", "Loop", "Scan"), ((), (0,))),
    **dict.fromkeys(("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"), ((), (0,))),
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), ((), (0,))),
}


@dataclass(frozen=True, eq=False)
class Use:
    """A node of the standard domain, and what the graph around it says.

    types: ONNX element types; shapes: sizes, None where one is not fixed; constants: whatever depends on weights alone,
    with the value where it is a weight. A name may be missing from each.
    """

    node: onnx.NodeProto
    types: Mapping[str, int]
    shapes: Mapping[str, tuple[int | None, ...]]
    constants: Mapping[str, Callable[[], Array] | None]

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, strings as text."""
        value = next((onnx.helper.get_attribute_value(a) for a in self.node.attribute if a.name == name), default)
        if isinstance(value, list):
            return [v.decode() if isinstance(v, bytes) else v for v in value]
        return value.decode() if isinstance(value, bytes) else value

    def input(self, slot: int) -> str:
        """The name at `slot`, "" where it is left out."""
        return self.node.input[slot] if slot < len(self.node.input) else ""

    def output(self, slot: int) -> str:
        """The name of the output at `slot`, "" where it is left out."""
        return self.node.output[slot] if slot < len(self.node.output) else ""

    def shape(self, slot: int) -> tuple[int | None, ...] | None:
        """The shape of an input; None where its rank is unknown."""
        return self.shapes.get(self.input(slot))

    def computed(self, slot: int) -> bool:
        """Whether an input that is given depends on more than weights."""
        return bool(self.input(slot)) and self.input(slot) not in self.constants

    def value(self, slot: int) -> Array | None:
        """The entries of an input that is a weight; None of any other."""
        load = self.constants.get(self.input(slot))
        return None if load is None else load()


Condition = Callable[[Use], str]
"""What of a use is refused, "" where nothing is; the text does not depend on sizes."""


def _attention(u: Use) -> str:
    ranks = {len(s) for s in (u.shape(i) for i in range(4) if u.input(i)) if s is not None}
    if ranks - {4}:
        return "its inputs must have 4 axes"
    if u.input(4) or u.input(5) or u.input(6):
        return "past_key, past_value and nonpad_kv_seqlen are not supported"
    if u.output(1) or u.output(2) or u.output(3):
        return "present_key, present_value and qk_matmul_output are not supported"
    return "softcap is not supported" if u.attribute("softcap", 0.0) else ""


def _pool(u: Use) -> str:
    kernel, shape = u.attribute("kernel_shape", ()), u.shape(0)
    if len(kernel) not in (2, 3) or (shape is not None and len(shape) not in (4, 5)):
        return "only pooling in 2 or 3 dimensions is supported"
    if any(d != 1 for d in u.attribute("dilations", ())):
        return "dilations are not supported"
    if u.node.op_type == "MaxPool" and u.output(1):
        return "its second output, Indices, is not supported"
    return _norm(u) if u.node.op_type == "LpPool" else ""


def _norm(u: Use) -> str:
    return "" if u.attribute("p", 2) in (1, 2) else "p must be 1 or 2"


def _batch_normalization(u: Use) -> str:
    return "training_mode is not supported" if u.attribute("training_mode", 0) else ""


def _constant(u: Use) -> str:
    unsupported = {a.name for a in u.node.attribute} & {"sparse_value", "value_string", "value_strings"}
    return "sparse values and strings are not supported" if unsupported else ""


def _deform_conv(u: Use) -> str:
    shape, pads = u.shape(0), u.attribute("pads", ())
    if shape is not None and len(shape) not in (3, 4):
        return "its input must have 1 or 2 spatial dimensions"
    half = len(pads) // 2
    return "" if list(pads[:half]) == list(pads[half:]) else "pads must be the same at both ends of an axis"


def _zero_point(u: Use) -> str:
    point = u.value(2)
    return "the zero point must be 0" if point is not None and np.any(point.astype(np.float32) != 0) else ""


def _quantize(u: Use) -> str:
    kind = u.types.get(u.output(0))
    if kind is not None and kind not in _QUANTIZED:
        return f"{type_name(kind)} is not supported as its result"
    return _zero_point(u)


def _dropout(u: Use) -> str:
    training = u.value(2)
    if u.computed(2) or (training is not None and bool(np.any(training))):
        return "training_mode must be a constant False"
    return ""


def _eye_like(u: Use) -> str:
    shape = u.shape(0)
    return "" if shape is not None and None not in shape else "its input must have fixed sizes"


def _grid_sample(u: Use) -> str:
    shape = u.shape(0)
    return "its input must have 4 axes" if shape is not None and len(shape) != 4 else ""


def _recurrent(u: Use) -> str:
    gates = {"LSTM": 3, "GRU": 2, "RNN": 1}[u.node.op_type]
    if u.attribute("direction", "forward") == "bidirectional":
        for name in ("activations", "activation_alpha", "activation_beta"):
            values = u.attribute(name, ())
            forward = len(values) // 2 if name != "activations" else gates
            if list(values[:forward]) != list(values[forward:]):
                return "both directions must have the same activations"
    if u.node.op_type == "LSTM" and u.attribute("input_forget", 0):
        return "input_forget is not supported"
    return "layout 1 is not supported" if u.node.op_type == "LSTM" and u.attribute("layout", 0) else ""


def _hardmax(u: Use) -> str:
    shape, axis = u.shape(0), u.attribute("axis", -1)
    return "" if shape is not None and shape[axis] is not None else "the size of its axis must be fixed"


def _if(u: Use) -> str:
    branches = [a.g for a in u.node.attribute if a.type == onnx.AttributeProto.GRAPH]
    for ports in zip(*(b.output for b in branches), strict=True):
        if len({p.name for p in ports}) < len(ports):
            return "outputs of its branches must have different names"
        tensors = [p.type.tensor_type for p in ports]
        ranks = {len(t.shape.dim) for t in tensors if t.HasField("shape")}
        if len(ranks) > 1:
            return "outputs of its branches must have the same number of axes"
    return ""


def _layer_normalization(u: Use) -> str:
    return "only its first output is supported" if u.output(1) or u.output(2) else ""


def _resize(u: Use) -> str:
    for name, default, supported in (
        ("mode", "nearest", ("nearest", "linear")),
        (
            "coordinate_transformation_mode",
            "half_pixel",
            ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"),
        ),
        ("nearest_mode", "round_prefer_floor", ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")),
        ("keep_aspect_ratio_policy", "stretch", ("stretch",)),
    ):
        value = u.attribute(name, default)
        if value not in supported:
            return f"{name} {value!r} is not supported"
    if u.attribute("antialias", 0):
        return "antialias is not supported"
    axes, scales = u.attribute("axes", None), u.input(2)
    if scales and u.computed(2) and axes is not None and list(axes) != list(range(len(u.shape(0) or axes))):
        return "axes must be all axes where scales are computed"
    return ""


def _rotary_embedding(u: Use) -> str:
    kind = u.types.get(u.input(3))
    return "position_ids must be int64" if kind not in (None, _T.INT64) else ""


def _scatter_nd(u: Use) -> str:
    return "" if u.attribute("reduction", "none") == "none" else "a reduction is not supported"


def _tensor_scatter(u: Use) -> str:
    if any(s is not None and len(s) != 4 for s in (u.shape(0), u.shape(1))):
        return "its inputs must have 4 axes"
    return "" if u.attribute("axis", -2) == -2 else "axis must be -2"


def _top_k(u: Use) -> str:
    k = u.value(1)
    if k is not None and k.size and int(k.max()) >= 3840:
        return "K must be less than 3840"
    return "" if u.attribute("sorted", 1) == 1 else "sorted must be 1"


def _constant_input(slot: int, name: str) -> Condition:
    def condition(u: Use) -> str:
        return f"{name} must be a constant" if u.computed(slot) else ""

    return condition


def _stft(u: Use) -> str:
    return "frame_step and window must be constants" if u.computed(1) or u.computed(2) else ""


_REDUCTIONS = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"
_CONDITIONS: Mapping[str, Condition] = {
    "Attention": _attention,
    "AveragePool": _pool,
    "LpPool": _pool,
    "MaxPool": _pool,
    "LpNormalization": _norm,
    "BatchNormalization": _batch_normalization,
    "Constant": _constant,
    "CumSum": _constant_input(1, "axis"),
    "DeformConv": _deform_conv,
    "DequantizeLinear": _zero_point,
    "QuantizeLinear": _quantize,
    "Dropout": _dropout,
    "EyeLike": _eye_like,
    "GridSample": _grid_sample,
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent),
    "Hardmax": _hardmax,
    "If": _if,
    "LayerNormalization": _layer_normalization,
    "OneHot": _constant_input(1, "depth"),
    **{f"Reduce{r}": _constant_input(1, "axes") for r in _REDUCTIONS.split()},
    "Resize": _resize,
    "RotaryEmbedding": _rotary_embedding,
    "STFT": _stft,
    "ScatterND": _scatter_nd,
    "Squeeze": _constant_input(1, "axes"),
    "Unsqueeze": _constant_input(1, "axes"),
    "TensorScatter": _tensor_scatter,
    "TopK": _top_k,
}


@dataclass(frozen=True)
class Support:
    """What of an operator is accepted: the types of its data, and a condition on the rest where there is one."""

    types: frozenset[int]
    condition: Condition | None = None


TABLE: Mapping[str, Support] = {
    op: Support(types, _CONDITIONS.get(op)) for types, names in _OPERATORS for op in names.split()
}


def refused(use: Use) -> str:
    """Why the parser does not take a node, "" where nothing speaks against it."""
    op = use.node.op_type
    if use.node.domain not in ("", "ai.onnx"):
        return f"the domain {use.node.domain!r} is not ONNX's own: it needs a plugin"
    support = TABLE.get(op)
    if support is None:
        return "the operator is not supported"
    ins, outs = _DATA.get(op, ((0,), ()))
    kinds = (use.types.get(name) for name in (*map(use.input, ins), *map(use.output, outs)))
    for kind in kinds:
        if kind not in (None, _T.UNDEFINED, _T.DOUBLE) and kind not in support.types:
            return f"{type_name(kind)} is not supported"
    return support.condition(use) if support.condition else ""


def type_name(kind: int) -> str:
    """An ONNX element type as numpy calls it."""
    name: str = _T.DataType.Name(kind).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)
