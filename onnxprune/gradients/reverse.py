"""The reverse pass: from seeds at the outputs to gradients at the uses that were asked for.

A gradient is that of L = Σ over the seeded outputs of Σ seed ⊙ output. The result is the model with further nodes,
constants and one input per seeded output; it runs wherever the model runs. Where a node on the way has no rule, or its
rule refuses, nothing upstream of it has a gradient, and `missing` says for which reason: a sum that lacks a term would
be wrong, not approximate.

Baydin et al. 2018 (arXiv 1502.05767), section 3.2. Oracles: central differences, and torch (tests).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx
from onnx import helper

from onnxprune.gradients.build import Builder, NoGradient
from onnxprune.gradients.rules import NO_DERIVATIVE, TABLE, WITHOUT
from onnxprune.graph.protobuf import copied
from onnxprune.graph.view import Graph, Node

Use = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Backward:
    """proto: the model, its outputs unchanged, with the gradients as further tensors.

    seeds: output → the input that takes its seed, of the same shape and type. of_use: (node index, input slot) → tensor
    with the gradient of what that node alone makes of that input. of_tensor: tensor → its whole gradient.
    missing: wanted uses and tensors without a gradient → the reason. What the outputs do not depend on is in neither.
    """

    proto: onnx.ModelProto
    seeds: Mapping[str, str]
    of_use: Mapping[Use, str]
    of_tensor: Mapping[str, str]
    missing: Mapping[Use | str, str]


def backward(
    proto: onnx.ModelProto,
    graph: Graph,
    types: Mapping[str, int],
    *,
    uses: Collection[Use] = (),
    tensors: Collection[str] = (),
) -> Backward:
    """Differentiate the floating-point outputs of `proto` with respect to uses and tensors.

    graph: the view of `proto`; types: element type of each tensor. uses: (node index, input slot).
    """
    b = Builder(graph, types)
    walk = _Walk(b, set(uses), set(tensors))
    seeds = {o: f"seed:{o}" for o in graph.outputs if b.is_float(o) and o in graph.producer}
    for o, seed in seeds.items():
        walk.add(o, b.op("Identity", seed))  # an input cannot be fetched
    for node in reversed(graph.nodes):
        walk.visit(node)
    walk.finish()
    result = copied(proto)
    result.graph.node.extend(b.nodes)
    result.graph.initializer.extend(b.constants)
    result.graph.value_info.extend(b.typed)
    for o, seed in seeds.items():
        result.graph.input.append(helper.make_tensor_value_info(seed, types[o], None))
    return Backward(result, seeds, walk.of_use, walk.of_tensor, walk.missing)


class _Walk:
    def __init__(self, b: Builder, uses: set[Use], tensors: set[str]) -> None:
        self.b = b
        self.uses, self.tensors = uses, tensors
        self.of_use: dict[Use, str] = {}
        self.of_tensor: dict[str, str] = {}
        self.missing: dict[Use | str, str] = {}
        self._terms: dict[str, list[str]] = {}
        self._broken: dict[str, str] = {}
        self._wanted: dict[int, set[int]] = {}
        for index, slot in uses:
            self._wanted.setdefault(index, set()).add(slot)
        self._leads = self._leading()

    def _leading(self) -> set[str]:
        """Tensors through which a gradient must pass to reach something that was asked for."""
        leads = set(self.tensors)
        for n in self.b.graph.nodes:
            if n.index in self._wanted or any(i in leads for i in (*n.inputs, *n.captures)):
                leads.update(o for o in n.outputs if self._depends(n, o))
        return leads

    def _depends(self, node: Node, output: str) -> bool:
        """Whether an output changes with a node's inputs by more than steps between which it stands still.

        Integers of an operator with a rule do not (indices, masks). Those of others may stand for numbers (codes of a
        quantized model, rows of bits), and what is no tensor may hold some: to stop there would lose a term.
        """
        kind = self.b.types.get(output)
        still = node.domain == "" and (node.op in NO_DERIVATIVE or node.op in TABLE)
        return bool(output) and (kind is None or self.b.is_float(output) or not still)

    def _may_change(self, tensor: str) -> bool:
        return tensor in self._leads or self.b.is_float(tensor)

    def add(self, tensor: str, gradient: str) -> None:
        """Add one more term to a tensor's gradient."""
        self._terms.setdefault(tensor, []).append(gradient)

    def _gradient(self, tensor: str) -> str | None:
        terms = self._terms.get(tensor, [])
        if len(terms) > 1:
            self._terms[tensor] = terms = [self.b.op("Sum", *terms)]
        return terms[0] if terms else None

    def visit(self, node: Node) -> None:
        """Pass the gradients of a node's outputs on to its inputs."""
        wanted = self._wanted.get(node.index, set())
        slots = sorted(wanted | {s for s, i in enumerate(node.inputs) if i in self._leads})
        slots = [s for s in slots if s < len(node.inputs) and self._may_change(node.inputs[s])]
        captured = [c for c in node.captures if c in self._leads]
        grads = [self._gradient(o) if o in self._leads or wanted else None for o in node.outputs]
        broken = next((self._broken[o] for o in node.outputs if o in self._broken), None)
        if not (slots or captured) or (broken is None and not any(grads)):
            return
        input_grads: Mapping[int, str] = {}
        why = broken
        if why is None:
            try:
                input_grads = self._differentiate(node, grads, slots, bool(captured))
            except NoGradient as e:
                why = f"{node.name} ({node.op}): {e}"
        for s in slots:
            if s in wanted:
                if why is not None:
                    self.missing[node.index, s] = why
                elif s in input_grads:
                    self.of_use[node.index, s] = input_grads[s]
            if node.inputs[s] in self._leads:
                if why is not None:
                    self._broken.setdefault(node.inputs[s], why)
                elif s in input_grads:
                    self.add(node.inputs[s], input_grads[s])
        if why is not None:
            for c in captured:
                self._broken.setdefault(c, why)

    def _differentiate(
        self, node: Node, grads: list[str | None], slots: list[int], captures: bool
    ) -> Mapping[int, str]:
        if node.domain == "" and node.op in NO_DERIVATIVE:
            return {}
        operator = f"{node.domain}.{node.op}" if node.domain else node.op
        rule = TABLE.get(operator)
        if rule is None or captures:
            raise NoGradient(WITHOUT.get(operator, "no rule for its gradient"))
        for s in slots:
            if not self.b.is_float(node.inputs[s]):
                raise NoGradient(f"{node.inputs[s]!r} is no tensor of floating-point numbers")
        input_grads = rule(self.b, node, grads, slots)
        return {s: g for s, g in input_grads.items() if s in slots}

    def finish(self) -> None:
        """Gather the whole gradients of the tensors that were asked for; name the uses that nothing could reach."""
        inside = {n.index: n.name for n in self.b.graph.every_node if n.index in self.b.graph.inside}
        for use in self.uses:
            if use[0] in inside:
                self.missing[use] = f"{inside[use[0]]} lies in the body of another node"
        for t in self.tensors:
            if t in self._broken:
                self.missing[t] = self._broken[t]
            else:
                g = self._gradient(t)
                if g is not None:
                    self.of_tensor[t] = g
