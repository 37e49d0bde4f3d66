"""The only user of onnxruntime's quantization tools: pairs of QuantizeLinear and DequantizeLinear around nodes.

Ranges come from elsewhere (`ranges`), so that all ways to find them share one pass over the data.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import add_infer_metadata

from onnxprune.errors import RunError
from onnxprune.graph.protobuf import copied, inferred
from onnxprune.quantization.tidy import declared, in_order
from onnxprune.targets.precision import Placement

_INFERRED = "onnx.infer"


def with_pairs(
    model: onnx.ModelProto,
    nodes: Sequence[str],
    ranges: Mapping[str, tuple[float, float]],
    types: Mapping[str, int],
    placement: Placement,
    *,
    reduce_range: bool,
    per_channel: bool = True,
) -> onnx.ModelProto:
    """A copy in which these nodes, by name, stand between pairs. Raises RunError where the quantizer gives up.

    ranges: (least, greatest) of every activation that they read or write. types: element types of activations that
    inference does not know.
    """
    given = declared(inferred(copied(model)), types)
    add_infer_metadata(given)
    measured = {
        k: TensorData(lowest=np.float32(low), highest=np.float32(high)) for k, (low, high) in sorted(ranges.items())
    }
    operators = sorted({n.op_type for n in model.graph.node})
    options = {
        "ActivationSymmetric": placement.symmetric,
        "WeightSymmetric": True,
        "AddQDQPairToWeight": placement.pairs,
        "QuantizeBias": placement.biases,
        "OpTypesToExcludeOutputQuantization": [] if placement.outputs else operators,
        "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
    }
    with _quietly():
        try:
            quantizer = QDQQuantizer(
                given,
                per_channel,
                reduce_range,
                QuantType.QInt8,
                QuantType.QInt8 if placement.symmetric else QuantType.QUInt8,
                TensorsData(CalibrationMethod.MinMax, measured),
                list(nodes),
                [],
                operators,
                options,
            )
            result: onnx.ModelProto = quantizer.quantize_model()
        except Exception as e:  # it raises whatever comes, and its own errors share no base class
            text = " ".join(str(e).split())[:300]
            raise RunError(f"onnxruntime's quantizer cannot quantize the model: {text}; leave out int8") from e
    return _as_given(result, model)


def _as_given(result: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """The result in the order of its data, with what the file said of itself, where the quantizer names itself."""
    result = copied(result)
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    kept = [p for p in result.metadata_props if p.key != _INFERRED]
    del result.metadata_props[:]
    result.metadata_props.extend(kept)
    del result.graph.value_info[:]
    result.graph.value_info.extend(model.graph.value_info)
    in_order(result)
    return result


@contextmanager
def _quietly() -> Iterator[None]:
    """Nothing is printed or logged: these tools do both, and set up the logging of the whole process for it."""
    root = logging.getLogger()
    handlers, silent = root.handlers[:], logging.NullHandler()
    root.handlers[:] = [silent]
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        root.handlers[:] = handlers
