"""The true discrepancy of the network's outputs as a function of one group's coefficients.

The part of the network behind the group is run with a gate (`gates`) on every channel of the group; a reverse pass
gives the gradient with respect to all coefficients at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from onnxprune.calibration.probe import Batch, differentiable, located
from onnxprune.channels import ChannelGraph
from onnxprune.channels.gates import Gate, sums_of, values_of
from onnxprune.gradients import backward
from onnxprune.graph import bodies, protobuf
from onnxprune.graph.protobuf import copied
from onnxprune.numerics.arrays import Array, Doubles
from onnxprune.objective import Objective
from onnxprune.runtime.session import PROVIDERS, Session


class GatedNetwork:
    """Discrepancy (see `selection.quadratic`) of a model, or the part of one behind a frontier, in one group's gates.

    batches: what to run it on, with the outputs that the part does not compute; provider: of PROVIDERS, by what.
    Raises ValueError where there is no gradient.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        channels: ChannelGraph,
        group: int,
        gates: Sequence[Gate],
        types: Mapping[str, int],
        batches: Sequence[Batch],
        objective: Objective,
        provider: str = "cpu",
    ) -> None:
        self._channels, self._group, self._batches, self._objective = channels, group, batches, objective
        proto, graph, types = differentiable(proto, channels.graph, types)
        gates = located(gates, graph)
        gated = copied(proto)
        del gated.graph.node[:]
        shapes, element_types = dict(graph.shapes), dict(types)
        self._gates = {f"gate:{i}": gate for i, gate in enumerate(gates)}
        fronts: dict[int, list[tuple[str, Gate]]] = {}
        for name, gate in self._gates.items():
            fronts.setdefault(gate.node.index, []).append((name, gate))
            element_types[name] = element_types[gate.data]
            shapes[name] = gate.classes.shape
            gated.graph.input.append(helper.make_tensor_value_info(name, element_types[name], gate.classes.shape))
        for n, node in zip(proto.graph.node, graph.nodes, strict=True):
            copy = bodies.copy_node(n)
            for name, gate in fronts.get(node.index, ()):
                factor = f"{name}:product"
                # A tensor may carry two factors: their gates multiply.
                gated.graph.node.append(helper.make_node("Mul", [copy.input[gate.slot], name], [factor]))
                element_types[factor], shapes[factor] = element_types[gate.data], graph.shapes[gate.data]
                copy.input[gate.slot] = factor
            gated.graph.node.append(copy)
        view = protobuf.view(gated, shapes, graph.known_values, graph.binding, samples=graph.samples)
        back = backward(gated, view, element_types, tensors=list(self._gates))
        if back.missing:
            raise ValueError(next(iter(back.missing.values())))
        self._dtypes = {name: helper.tensor_dtype_to_np_dtype(element_types[name]) for name in self._gates}
        self._seeds, self._gradients = back.seeds, back.of_tensor
        self._value = Session(
            protobuf.submodel(gated, _ports(gated), [v.name for v in gated.graph.output]),
            single=True,
            providers=PROVIDERS[provider],
        )
        self._slope = Session(
            protobuf.submodel(back.proto, _ports(back.proto), list(back.of_tensor.values())),
            single=True,
            providers=PROVIDERS[provider],
        )

    def at(self, a: Doubles) -> float:
        """The discrepancy with the coefficients a (units,), 1 for each in the network as it is."""
        fed = self._fed(a)
        return sum(self._objective.value(self._outputs(x, fed), x.index) for x in self._batches)

    def gradient(self, a: Doubles) -> Doubles:
        """The gradient of the discrepancy at these coefficients, (units,)."""
        fed = self._fed(a)
        gradient = np.zeros(a.size)
        for x in self._batches:
            outputs = self._outputs(x, fed)
            wanted = self._objective.gradient(outputs, x.index)
            seeds = {s: wanted[o] if o in wanted else np.zeros_like(outputs[o]) for o, s in self._seeds.items()}
            values = self._slope.run({**x.feeds, **fed, **seeds})
            for name, tensor in self._gradients.items():
                gate = self._gates[name]
                gradient += sums_of(self._channels, self._group, gate, values[tensor].astype(np.float64)[None])[0]
        return gradient

    def _outputs(self, x: Batch, fed: Mapping[str, Array]) -> dict[str, Array]:
        return {**x.outputs, **self._value.run({**x.feeds, **fed})}

    def _fed(self, a: Doubles) -> dict[str, Array]:
        return {
            name: values_of(self._channels, self._group, gate, a).astype(self._dtypes[name])
            for name, gate in self._gates.items()
        }


def _ports(proto: onnx.ModelProto) -> dict[str, int]:
    """The inputs with their element types."""
    return {v.name: v.type.tensor_type.elem_type for v in proto.graph.input}
