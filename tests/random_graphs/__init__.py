"""Random graphs: a table of makers, one per operator and per construct, and what strings them together.

A new operator is a function and a row in its family's file; what no maker covers stands in `WITHOUT_MAKER`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxprune.channels.rules.quantization import INTEGER, INTEGER_MICROSOFT
from onnxprune.channels.rules.refusals import REFUSALS
from onnxprune.graph.bodies import bodies_of, every_node
from tests.installed import common_opset
from tests.random_graphs import (
    attention,
    contraction,
    contributed_attention,
    contributed_states,
    control,
    elementwise,
    indexing,
    layout,
    motifs,
    normalization,
    quantization,
    recurrent,
    reduction,
    sampling,
    unfused,
)
from tests.random_graphs.build import SIZES, Array, Build, Live, feeds
from tests.random_graphs.maker import Maker, defined_from, is_unknown

__all__ = ["FAMILIES", "MAKERS", "OPSETS", "SIZES", "UNFUSED", "WITHOUT_MAKER", "Case", "graphs", "is_unknown"]

# Family → its makers, and how often it is chosen.
FAMILIES: tuple[tuple[Mapping[str, Maker], int], ...] = (
    (contraction.MAKERS, 4),
    (layout.MAKERS, 6),
    (motifs.MAKERS, 5),
    (elementwise.MAKERS, 5),
    (normalization.MAKERS, 2),
    (reduction.MAKERS, 2),
    (recurrent.MAKERS, 1),
    (quantization.MAKERS, 1),
    (control.MAKERS, 1),
    (indexing.MAKERS, 2),
    (sampling.MAKERS, 1),
    (attention.MAKERS, 1),
    (contributed_attention.MAKERS, 0),
    (contributed_states.MAKERS, 0),
    (unfused.MAKERS, 0),
)
MAKERS: Mapping[str, Maker] = {name: maker for family, _ in FAMILIES for name, maker in family.items()}
UNFUSED = frozenset(unfused.MAKERS)
"""Operators that have no rule of their own, as standard ones are written for them."""

_INTEGER = (*INTEGER, "DynamicQuantizeLinear", *(f"com.microsoft.{op}" for op in INTEGER_MICROSOFT))
WITHOUT_MAKER: Mapping[str, str] = {
    **dict.fromkeys(
        ("CausalConvWithState", "LinearAttention", "SwiGLU"), "onnxruntime runs no operator set that defines it"
    ),
    **{op: f"it {reason.text}: always refused" for op, reason in REFUSALS.items()},
    **dict.fromkeys(_INTEGER, "computes with codes, whose rounding no tolerance allows for: tests/test_quantizer.py"),
    "com.microsoft.DecoderMaskedMultiHeadAttention": "reads one position at a time: tests/topologies",
    "com.microsoft.DynamicQuantizeLSTM": "rounds its state at every step: tests/verification/test_rounded.py",
    **{f"com.microsoft.{op}": f"the same rule as {op}" for op in quantization.MAKERS},
}
"""Operators of the rule table that no maker makes, and why."""

# Those that the installed onnx and onnxruntime both know: graphs are made by the schemas of one, and run by the other.
OPSETS = tuple(o for o in (18, 13, 21, 17, 11, 9, 20, 12, 23, 26, 16, 10, 24) if o <= common_opset())
_MOST_OUTPUTS = 3


@dataclass(frozen=True, eq=False)
class Case:
    """A random model, and what feeds it."""

    model: onnx.ModelProto
    inputs: tuple[Live, ...]
    attention: str  # which units of attention are traced: "heads" or "head-dim"

    def feeds(self, which: int, seed: int = 0) -> dict[str, Array]:
        """Inputs at the sizes SIZES[which]."""
        return feeds(self.inputs, SIZES[which], seed)

    def __repr__(self) -> str:
        return self.text()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.text())  # else hypothesis prints the fields of a dataclass

    def text(self) -> str:
        """The nodes, with the sizes of weights and the values of indices."""
        weights = {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer}

        def operand(name: str) -> str:
            w = weights.get(name)
            if w is None:
                return name
            return f"{name}{w.tolist()}" if w.dtype == np.int64 else f"{name}<{'x'.join(map(str, w.shape))}>"

        def describe(n: onnx.NodeProto, margin: str) -> None:
            held = bodies_of(n)
            skipped = {"value", *(name for name, _ in held)}
            attrs = {a.name: helper.get_attribute_value(a) for a in n.attribute if a.name not in skipped}
            values = ", ".join(map(operand, n.input))
            lines.append(f"{margin}{', '.join(n.output)} = {n.op_type}({values}) {attrs or ''}")
            for name, body in held:
                weights.update((t.name, numpy_helper.to_array(t)) for t in body.initializer)
                lines.append(f"{margin}  {name} ({', '.join(i.name for i in body.input)})")
                for inner in body.node:
                    describe(inner, margin + "    ")
                lines.append(f"{margin}    return {', '.join(o.name for o in body.output)}")

        head = f"opset {self.model.opset_import[0].version}, attention {self.attention}"
        lines = [head, *(f"{t.name} = input {t.dims}" for t in self.inputs)]
        for n in self.model.graph.node:
            describe(n, "")
        return "\n  ".join([*lines, "output " + ", ".join(o.name for o in self.model.graph.output)])


@st.composite
def graphs(draw: st.DrawFn, focus: str, steps: int = 6) -> Case:
    """Graphs in which `focus`, a row of MAKERS, stands among up to `steps` others."""
    return built(Build(draw, 0), focus, steps)


def built(b: Build, focus: str, steps: int = 6) -> Case:
    """The same of choices that need not come from hypothesis."""
    opsets = [o for o in OPSETS if MAKERS[focus].fits(focus, o)] or [defined_from(focus)]
    b.opset = b.choice(opsets)
    choices = [
        [name for name, m in family.items() if m.fits(name, b.opset) for _ in range(m.weight)] for family, _ in FAMILIES
    ]
    often = [i for i, (_, n) in enumerate(FAMILIES) if choices[i] for _ in range(n)]
    before = b.below(steps // 2 + 1)
    for step in range(before + 1 + b.below(steps - before)):
        name = focus if step == before else b.choice(choices[b.choice(often)])
        start = len(b.live)
        MAKERS[name].make(b, name)
        if step == before:
            made = {t.name for t in b.live[start:]}
    _finish(b, made)
    model = b.model()
    if b.chance(5):
        # As before version 4 of the format. Not sizes and indices: shape inference needs those constant.
        weights = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1]
        model.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in weights)
    return Case(model, tuple(b.inputs), "head-dim" if b.chance(40) else "heads")


def _finish(b: Build, made: set[str]) -> None:
    """Make outputs of what nobody reads: mostly behind a last layer, which leaves the channels free."""
    read = {i for n in every_node(b.model().graph) for i in n.input}
    downstream = set(made)
    for n in b.nodes:
        if downstream & set(n.input):
            downstream.update(n.output)
    leaves = [t for t in b.live[::-1] if t.name not in read and t.kind != "bool"]
    leaves.sort(key=lambda t: t.name not in downstream)
    for t in leaves[:_MOST_OUTPUTS] or b.live[-1:]:
        axis = b.channel_axis(t)
        if t.kind == "float" and isinstance(t.dims[axis], int) and not b.chance(10):
            t = b.linear(t, axis, b.choice((2, 3, 5)))
        b.outputs.append(t)
    inner = b.pick(lambda t: t.name not in {o.name for o in b.outputs})
    if inner is not None and b.chance(8) and inner not in b.inputs:
        b.outputs.append(inner)
