"""States that a model is fed back: Gathers between them and the nodes that read and write them.

The axes of the state itself keep their size. Behind the Gathers that read it, every place is a unit of its own until
what reads it says more; those that write it read its units one by one, and where one is missing they give 0. What an
entry of the state means to those who write it and to those who read it is one unit.

Of an input that may change its size every place is a unit likewise. An output may lose what is a unit of such an input
too (the heads of a cache, which its past and its present have in common), and keeps all else.
"""

from __future__ import annotations

from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.rules import layout
from onnxprune.channels.trace import Rule, Trace
from onnxprune.graph.view import Node, StateGather

_STEPS = Reason("a state is handed on at every one of these positions", Remedy.POSITIONS)


def gather(node: Node, t: Trace) -> None:
    """Gather, between a state and a node where it is one of those."""
    own = t.graph.states.get(node.outputs[0])
    if own is None:
        layout.gather(node, t)
    elif own.written:
        _written(own, node, t)
    else:
        t.of(own.source)
        t.set(own.tensor, [t.state_units(own)] if own.tensor == own.units else ())


def _written(own: StateGather, node: Node, t: Trace) -> None:
    t.set(own.tensor, ())
    if own.source != own.units:
        t.of(own.source)
        return
    name = own.units
    aside = [a for a in range(len(t.shape(name))) if a not in own.axes]
    factors = t.untrack(name, t.of(name), aside, node, _STEPS)
    for other in own.read_as:
        read = t.state_units(t.graph.states[other])
        loose = [a for a in own.axes if not any(f.shape[a] > 1 for f in factors)]
        t.untrack(other, (read,), loose, node, t.untracked_reason(name, loose[0]) if loose else _STEPS)
        for f in factors:
            t.labels.unify(read, f)
    if not own.read_as:
        why = Reason(f"no input that may change has the units of the output {own.port!r}", Remedy.OUTPUT)
        t.keep_what_nothing_reads(name, factors, node, why)
    if factors:
        t.read(node, 0, "contraction", own.axes)


TABLE: dict[str, Rule] = {"Gather": gather}
