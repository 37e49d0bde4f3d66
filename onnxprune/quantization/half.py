"""A model in half precision, by onnxruntime's converter, with nodes in float where numbers would overflow.

Half precision ends at 65,504. A node stays in single where it reads or gives numbers of more than half of that on the
samples, or holds such weights; where what it gives goes to another such node, no cast stands between them. Inputs and
outputs keep their type.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto
from onnxruntime.transformers import float16

from onnxprune.data.samples import Samples
from onnxprune.errors import ModelError, RunError
from onnxprune.graph import external
from onnxprune.graph.bodies import captured_names, rename
from onnxprune.graph.protobuf import copied, inferred
from onnxprune.quantization.preparation import constants_of, prepared
from onnxprune.quantization.ranges import seen
from onnxprune.quantization.tidy import declared, in_order

# A sum may be twice as large on other samples.
_LARGEST = 65504.0 / 2.0
_CAST = "Cast"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A node that stays in single precision. largest: of what it reads or gives; None where it was named, or where a
    tensor of it was `unseen`: it had no entries on any sample, as a cache that starts empty.
    """

    name: str
    operator: str
    largest: float | None
    unseen: bool = False

    @property
    def why(self) -> str:
        """The reason, for the report."""
        if self.unseen:
            return "reads or gives a tensor that had no entries on any sample"
        return "was named" if self.largest is None else f"reads or gives numbers of up to {self.largest:.3g}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Halved:
    """The model in half precision. kept: what is not. nodes: how many are. samples: that ranges are of."""

    model: onnx.ModelProto
    kept: tuple[Kept, ...]
    nodes: int
    samples: int
    notes: tuple[str, ...]


def halved(
    model: onnx.ModelProto,
    samples: Samples,
    named: Collection[str],
    told: Callable[[int, int], None] = lambda _, __: None,
) -> Halved:
    """The model in half precision. Raises ModelError and RunError.

    named: what stays in single, by the names of nodes or of what they give.
    """
    given = prepared(model, "half precision")
    constants = constants_of(given.model)
    activations = {t for n in given.model.graph.node for t in (*n.input, *n.output) if t} - constants.keys()
    there = seen(given.model, activations, samples, {}, told)
    largest = {k: h.reach for k, h in there.histograms.items()}
    unseen = {k for k, h in there.histograms.items() if not h.seen and k in there.types}
    for name, t in constants.items():
        if t.data_type == TensorProto.FLOAT and t.dims:
            values = external.array_of(t)
            largest[name] = float(np.abs(values).max()) if values.size else 0.0
    kept = []
    for n in given.model.graph.node:
        around = [t for t in (*n.input, *n.output) if t]
        most = max((largest.get(t, 0.0) for t in around), default=0.0)
        if {n.name, *n.output} & set(named):
            kept.append(Kept(name=n.name, operator=n.op_type, largest=None))
        elif most > _LARGEST:
            kept.append(Kept(name=n.name, operator=n.op_type, largest=most))
        elif not unseen.isdisjoint(around):
            kept.append(Kept(name=n.name, operator=n.op_type, largest=None, unseen=True))
    result = _converted(declared(inferred(copied(given.model)), there.types), [k.name for k in kept])
    nodes = _in_half(result, {k.name for k in kept})
    if not nodes:
        raise ModelError(
            "no operator is left that could compute in half precision: each was to stay in float (--keep-float), or "
            "reads or gives numbers beyond it"
        )
    for n in result.graph.node:
        if n.name in given.named:
            n.ClearField("name")
    return Halved(model=result, kept=tuple(kept), nodes=nodes, samples=there.samples, notes=given.notes)


def _converted(model: onnx.ModelProto, blocked: list[str]) -> onnx.ModelProto:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of each number that is rounded
            result: onnx.ModelProto = float16.convert_float_to_float16(
                model, keep_io_types=True, disable_shape_infer=True, node_block_list=blocked
            )
    except Exception as e:  # it raises whatever comes
        text = " ".join(str(e).split())[:300]
        raise RunError(f"onnxruntime's converter cannot bring the model to half precision: {text}") from e
    _without_casts_there_and_back(result)
    del result.graph.value_info[:]
    in_order(result)
    return result


def _without_casts_there_and_back(model: onnx.ModelProto) -> None:
    """Let, in place, what is in single read what is in single: between two such nodes the converter casts to half and
    back, and it casts once for each reader, by the same name."""
    graph = model.graph
    seen_outputs: set[str] = set()
    for n in list(graph.node):
        if n.op_type == _CAST and n.output[0] in seen_outputs:
            graph.node.remove(n)
        seen_outputs.update(n.output)
    casts = {n.output[0]: n for n in graph.node if n.op_type == _CAST}
    types = {n.output[0]: next((a.i for a in n.attribute if a.name == "to"), 0) for n in casts.values()}
    for n in graph.node:
        for i, name in enumerate(n.input):
            back = casts.get(name)
            there = casts.get(back.input[0]) if back is not None else None
            if back is None or there is None or not back.name.endswith("_cast_to_fp32_node"):
                continue
            by_converter = there.name.endswith("_cast_to_fp16_node") or there.name.startswith("graph_input_cast")
            if by_converter and (types[name], types[there.output[0]]) == (TensorProto.FLOAT, TensorProto.FLOAT16):
                n.input[i] = there.input[0]
    _without_casts_at_outputs(model, casts)
    while True:  # what one cast alone has read, nobody reads without it
        read = {i for n in graph.node for i in (*n.input, *captured_names(n))} | {o.name for o in graph.output}
        idle = [n for n in graph.node if n.op_type == _CAST and n.output[0] not in read and n.name.endswith("_node")]
        if not idle:
            return
        for n in idle:
            graph.node.remove(n)


def _without_casts_at_outputs(model: onnx.ModelProto, casts: Mapping[str, onnx.NodeProto]) -> None:
    """Let, in place, what is in single be an output of the model as it is: the converter casts it to half and back.

    What it gives in single then has its own name again, and what is cast to half the converter's. casts: by output.
    """
    graph = model.graph
    ports = {v.name for v in (*graph.input, *graph.output)}
    produced = {o for n in graph.node for o in n.output}
    for end in [n for n in graph.node if n.op_type == _CAST and n.name.startswith("graph_output_cast")]:
        there = casts.get(end.input[0])
        if there is None or not there.name.endswith("_cast_to_fp16_node"):
            continue
        single, name = there.input[0], end.output[0]
        if single in produced - ports:
            graph.node.remove(end)
            rename(graph.node, {single: name})
    names: dict[str, str] = {}
    for n in graph.node:
        if n.name.endswith("_cast_to_fp16_node") and n.input[0] == f"{n.output[0]}_cast_to_fp16":
            names |= {n.input[0]: n.output[0], n.output[0]: n.input[0]}
    rename(graph.node, names)


def _in_half(model: onnx.ModelProto, kept: Collection[str]) -> int:
    """How many nodes compute with numbers of half precision."""
    halves = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16}
    count = 0
    for n in model.graph.node:
        to_half = n.op_type == _CAST and any(a.name == "to" and a.i == TensorProto.FLOAT16 for a in n.attribute)
        if to_half or (n.op_type != _CAST and n.name not in kept and any(i in halves for i in n.input)):
            halves.update(n.output)
            count += n.op_type != _CAST
    return count
