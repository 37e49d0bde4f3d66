"""What the samples do inside bodies: which way each If goes, and whether the body of a Loop or Scan runs at all.

A copy of the model carries a flag for each branch and each body out to the main graph: through an If as one more output
of both branches, through a Loop or Scan as one more state, which is true once any turn has set it.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.data.batches import BATCH
from onnxprune.data.samples import Samples
from onnxprune.errors import RunError
from onnxprune.graph import bodies, protobuf
from onnxprune.graph.names import tensors_of
from onnxprune.graph.protobuf import copied
from onnxprune.runtime.session import Session

_THEN, _ELSE, _BODY = "then_branch", "else_branch", "body"
_BOOL = onnx.TensorProto.BOOL


@dataclass(frozen=True)
class Turns:
    """branches: the main output of each If that takes one branch only, wherever it is → whether that is the first.

    idle: the main outputs of the Loops and Scans that are reached and that no sample turns. unseen: those of the nodes
    of the main graph whose bodies could not be watched.
    """

    branches: dict[str, bool]
    idle: frozenset[str]
    unseen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Flag:
    """The tensor `name`, of the graph that is being watched, says whether a body of the node `main` has run.

    within: the body that the node is in, by main output and attribute; None in the main graph.
    """

    main: str
    body: str
    name: str
    within: tuple[str, str] | None

    @property
    def key(self) -> tuple[str, str]:
        """What names the body: the main output of its node, and its attribute."""
        return self.main, self.body


def turns_of(proto: onnx.ModelProto, parts: Sequence[Samples]) -> Turns:
    """Watch all bodies of a model over all samples, or over as many as it takes to see every branch taken."""
    holders = frozenset(bodies.main_output(n) for n in proto.graph.node if bodies.bodies_of(n))
    if not holders:
        return Turns({}, frozenset())
    watched = copied(proto)
    flags = _watch(watched.graph, None, protobuf.opset_of(proto), _fresh(proto))
    try:
        seen = _seen(protobuf.submodel(watched, {}, [f.name for f in flags]), flags, parts) if flags else set()
    except RunError:
        return Turns({}, frozenset(), holders)
    mains = {f.main for f in flags if f.body != _BODY}
    ways = {main: {way for way in (_THEN, _ELSE) if (main, way) in seen} for main in sorted(mains)}
    branches = {main: way == {_THEN} for main, way in ways.items() if len(way) == 1}
    idle = (f for f in flags if f.body == _BODY and f.key not in seen and (f.within is None or f.within in seen))
    return Turns(branches, frozenset(f.main for f in idle), holders - {f.main for f in flags})


def _seen(proto: onnx.ModelProto, flags: Sequence[_Flag], parts: Sequence[Samples]) -> set[tuple[str, str]]:
    """The bodies that ran."""
    session = Session(proto)
    seen: set[tuple[str, str]] = set()
    for part in parts:
        for feeds in part.batches(BATCH):
            values = session.run(feeds)
            seen.update(f.key for f in flags if np.any(values[f.name]))
            if len(seen) == len(flags):
                return seen
    return seen


def _fresh(proto: onnx.ModelProto) -> Iterator[str]:
    """Names that the model does not use."""
    taken = tensors_of(proto)
    return (name for name in (f"flag{k}" for k in count()) if name not in taken)


def _watch(graph: onnx.GraphProto, within: tuple[str, str] | None, opset: int, fresh: Iterator[str]) -> list[_Flag]:
    """Have a graph compute, in place, a flag for each body of its nodes and of the nodes inside these."""
    flags: list[_Flag] = []
    for node in list(graph.node):
        if node.domain in ("", "ai.onnx") and node.op_type == "If":
            flags += _watch_if(graph, node, within, opset, fresh)
        elif node.domain in ("", "ai.onnx") and (node.op_type == "Loop" or (node.op_type == "Scan" and opset >= 9)):
            flags += _watch_turns(graph, node, within, opset, fresh)
    return flags


def _watch_if(
    graph: onnx.GraphProto, node: onnx.NodeProto, within: tuple[str, str] | None, opset: int, fresh: Iterator[str]
) -> list[_Flag]:
    main = bodies.main_output(node)
    branch = dict(bodies.bodies_of(node))
    then, other = next(fresh), next(fresh)
    graph.node.append(helper.make_node("Squeeze", [node.input[0]], [then]))
    graph.node.append(helper.make_node("Not", [then], [other]))
    flags = [_Flag(main, _THEN, then, within), _Flag(main, _ELSE, other, within)]
    _name_all(node.output, len(branch[_THEN].output), fresh)
    for way, opposite in ((_THEN, _ELSE), (_ELSE, _THEN)):
        for f in _watch(branch[way], (main, way), opset, fresh):
            outside, never = next(fresh), next(fresh)
            branch[way].output.append(helper.make_tensor_value_info(f.name, _BOOL, None))
            branch[opposite].node.append(_constant(never, value=False))
            branch[opposite].output.append(helper.make_tensor_value_info(never, _BOOL, None))
            node.output.append(outside)
            flags.append(_Flag(f.main, f.body, outside, f.within))
    return flags


def _watch_turns(
    graph: onnx.GraphProto, node: onnx.NodeProto, within: tuple[str, str] | None, opset: int, fresh: Iterator[str]
) -> list[_Flag]:
    main = bodies.main_output(node)
    ((_, body),) = bodies.bodies_of(node)
    # A Loop's body also reads its turn and a condition, and gives a condition.
    loop = 2 if node.op_type == "Loop" else 0
    states = len(body.input) - (loop or protobuf.int_attribute(node, "num_scan_inputs", 0))
    inner = _watch(body, (main, _BODY), opset, fresh)
    ran, never = next(fresh), next(fresh)
    body.node.append(_constant(ran, value=True))
    graph.node.insert(0, _constant(never, value=False))
    _name_all(node.output, len(body.output) - bool(loop), fresh)
    node.input.extend([""] * (loop + states - len(node.input)))
    flags: list[_Flag] = []
    for f in (_Flag(main, _BODY, ran, within), *inner):
        before, after, outside = next(fresh), next(fresh), next(fresh)
        body.node.append(helper.make_node("Or", [before, f.name], [after]))
        body.input.insert(loop + states, helper.make_tensor_value_info(before, _BOOL, []))
        body.output.insert(bool(loop) + states, helper.make_tensor_value_info(after, _BOOL, []))
        node.input.insert(loop + states, never)
        node.output.insert(states, outside)
        states += 1
        flags.append(_Flag(f.main, f.body, outside, f.within))
    return flags


def _constant(name: str, *, value: bool) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value)))


def _name_all(outputs: MutableSequence[str], number: int, fresh: Iterator[str]) -> None:
    """Give the outputs that a node leaves out names, in place: others come behind them."""
    outputs.extend([""] * (number - len(outputs)))
    outputs[:] = [o or next(fresh) for o in outputs]
