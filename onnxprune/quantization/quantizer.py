"""The only user of onnxruntime's quantization tools: pairs of QuantizeLinear and DequantizeLinear around nodes.

Ranges come from elsewhere (`ranges`), so that all ways to find them share one pass over the data.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import add_infer_metadata

from onnxprune.errors import RunError
from onnxprune.graph.bodies import captured_names, copy_node
from onnxprune.graph.protobuf import copied, inferred
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
    given = _declared(inferred(copied(model)), types)
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


def _declared(model: onnx.ModelProto, types: Mapping[str, int]) -> onnx.ModelProto:
    """With the types of activations that inference knows nothing of: the quantizer leaves those in float."""
    known = {v.name for v in (*model.graph.input, *model.graph.value_info, *model.graph.output)}
    for name in sorted(types.keys() - known):
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, types[name], None))
    return model


def _as_given(result: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """The result in the order of its data, with what the file said of itself, where the quantizer names itself."""
    result = copied(result)
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    kept = [p for p in result.metadata_props if p.key != _INFERRED]
    del result.metadata_props[:]
    result.metadata_props.extend(kept)
    del result.graph.value_info[:]
    result.graph.value_info.extend(model.graph.value_info)
    nodes = in_order(result.graph.node, _available(result))
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def _available(model: onnx.ModelProto) -> set[str]:
    return (
        {i.name for i in model.graph.input}
        | {t.name for t in model.graph.initializer}
        | {t.values.name for t in model.graph.sparse_initializer}
    )


def in_order(nodes: Collection[onnx.NodeProto], available: set[str]) -> list[onnx.NodeProto]:
    """The nodes, each behind those that it reads, and otherwise as they stood; copies.

    available: what is known before the first. The quantizer appends its pairs, and sorts names anew in each process.
    """
    waiting = [(copy_node(n), {i for i in (*n.input, *captured_names(n)) if i}) for n in nodes]
    made = {o for n in nodes for o in n.output if o}
    done = set(available)
    readers: dict[str, list[int]] = {}
    missing = []
    for k, (_, wanted) in enumerate(waiting):
        open_ = {w for w in wanted if w in made and w not in done}
        missing.append(open_)
        for w in open_:
            readers.setdefault(w, []).append(k)
    ready = sorted(k for k, m in enumerate(missing) if not m)
    result = []
    heapq.heapify(ready)
    while ready:
        k = heapq.heappop(ready)
        node = waiting[k][0]
        result.append(node)
        for o in node.output:
            for r in readers.pop(o, ()):
                missing[r].discard(o)
                if not missing[r]:
                    heapq.heappush(ready, r)
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
