"""What the samples do inside Loop and Scan: which way each If in their bodies goes, and whether a body runs at all.

A copy of the model gives out the conditions of all turns, and their numbers. Bodies inside bodies are not looked into.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from onnxprune.data.batches import BATCH
from onnxprune.data.samples import Samples
from onnxprune.errors import RunError
from onnxprune.graph import bodies, protobuf
from onnxprune.graph.protobuf import copied
from onnxprune.runtime.session import Session


@dataclass(frozen=True)
class Turns:
    """branches: the first output of each If that takes one branch only, in all turns → whether that is the first.

    idle: the main outputs of the Loops that no sample turns.
    """

    branches: dict[str, bool]
    idle: frozenset[str]


def turns_of(proto: onnx.ModelProto, parts: Sequence[Samples]) -> Turns:
    """Of the Loops and Scans of the main graph, over all samples; nothing is told where the copy does not run."""
    watched = copied(proto)
    conditions: dict[str, str] = {}
    numbers: dict[str, str] = {}
    for node in watched.graph.node:
        if node.op_type in ("Loop", "Scan") and not node.domain:
            _watch(node, conditions, numbers)
    wanted = [*conditions.values(), *numbers.values()]
    if not wanted:
        return Turns({}, frozenset())
    met: dict[str, set[bool]] = {name: set() for name in wanted}
    try:
        session = Session(protobuf.submodel(watched, {}, wanted))
        for part in parts:
            for feeds in part.batches(BATCH):
                for name, value in session.run(feeds).items():
                    met[name].update(np.ravel(value >= 0 if name in numbers.values() else value).astype(bool).tolist())
    except RunError:
        return Turns({}, frozenset())
    branches = {first: next(iter(met[name])) for first, name in conditions.items() if len(met[name]) == 1}
    return Turns(branches, frozenset(main for main, name in numbers.items() if not met[name]))


def _watch(node: onnx.NodeProto, conditions: dict[str, str], numbers: dict[str, str]) -> None:
    """Have a Loop or Scan give out, for each turn, the conditions of the Ifs in its body, and a Loop its number."""
    main = bodies.main_output(node)
    ((_, body),) = bodies.bodies_of(node)
    loop = node.op_type == "Loop"
    given = len(body.output) - loop
    node.output.extend([""] * (given - len(node.output)))
    asked = [(bodies.main_output(n), n.input[0], conditions, onnx.TensorProto.BOOL) for n in body.node if _is_if(n)]
    if loop:
        asked.append((main, body.input[0].name, numbers, onnx.TensorProto.INT64))
    for i, (key, source, found, kind) in enumerate(asked):
        name = f"{main}__turns{i}"
        body.node.append(helper.make_node("Identity", [source], [f"{name}_each"]))
        body.output.append(helper.make_tensor_value_info(f"{name}_each", kind, None))
        node.output.append(name)
        found[key] = name
    for a in node.attribute:
        if a.name in ("scan_output_axes", "scan_output_directions"):
            a.ints.extend([0] * len(asked))


def _is_if(node: onnx.NodeProto) -> bool:
    return node.op_type == "If" and not node.domain
