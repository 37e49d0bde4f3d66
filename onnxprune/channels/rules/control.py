"""Control flow: labels pass into the bodies of If, Loop and Scan and out of them again.

Names are unique over the whole model, so a body reads an outer tensor as any node does. What remains is the border: an
output of If is either branch's, so these unify place by place; a state that a Loop or Scan carries is its initial
value, the body's input, the body's output and the node's output at once. What a Scan reads or writes step by step
loses or gains one axis, which carries no channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.channels.labels import Factor, Factors, as_ints
from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.trace import Rule, Trace, setting, unknown_shape
from onnxprune.graph.view import Body, Node


def if_(node: Node, t: Trace) -> None:
    """If: the outputs are the element-wise merge of the branches'; the condition is a setting."""
    for body in node.bodies:
        t.visit(body.nodes, inside=True)
    why = Reason("the branches of If give it different shapes", Remedy.BRANCH)
    for k, out in enumerate(node.outputs):
        _join([body.outputs[k] for body in node.bodies], out, why, node, t)


def _join(names: Sequence[str], out: str, reason: Reason, node: Node, t: Trace) -> None:
    """Unify tensors that take each other's place, and `out` with them; pin them where their shapes differ."""
    shapes = {t.graph.shape(n) for n in (*names, out) if n}
    if len(shapes) != 1 or None in shapes:
        why = unknown_shape(out or names[0]) if None in shapes else reason
        for n in names:
            t.pin(n, t.of(n), node, why)
        if out:
            t.factors[out] = ()
        return
    merged = t.merge([(n, t.of(n), t.shape(n)) for n in names], node)
    if out:
        t.set(out, merged)


def loop(node: Node, t: Trace) -> None:
    """Loop: inputs M, condition, states; the body reads iteration, condition, states; outputs states, stacked ones."""
    body = node.bodies[0]
    states = len(node.inputs) - 2
    for name in body.inputs[:2]:
        t.factors[name] = ()
    _iterate(node, body, node.inputs[2:], body.inputs[2:], body.outputs[1 : 1 + states], node.outputs[:states], t)
    t.pin(body.outputs[0], t.of(body.outputs[0]), node, setting(node), structural=True)
    for inner, out in zip(body.outputs[1 + states :], node.outputs[states:], strict=False):
        _stacked(node, inner, out, 0, t)


def scan(node: Node, t: Trace) -> None:
    """Scan: states, and inputs read along one axis; outputs are states, and others stacked along one axis."""
    body = node.bodies[0]
    if t.graph.opset < 9:
        t.pin_all(node, Reason("Scan before opset 9 has a batch axis of its own, which is not traced", Remedy.OPSET))
        return
    scanned = int(node.attrs["num_scan_inputs"])
    states = len(node.inputs) - scanned
    axes = as_ints(node.attrs.get("scan_input_axes") or [0] * scanned)
    for name, inner, axis in zip(node.inputs[states:], body.inputs[states:], axes, strict=True):
        axis %= len(t.shape(name))
        factors = t.untrack(name, t.of(name), [axis], node, Reason("Scan runs along this axis", Remedy.POSITIONS))
        t.factors[inner] = tuple(_without_axis(f, axis) for f in factors)
    _iterate(node, body, node.inputs[:states], body.inputs[:states], body.outputs[:states], node.outputs[:states], t)
    stacked = body.outputs[states:]
    axes = as_ints(node.attrs.get("scan_output_axes") or [0] * len(stacked))
    for inner, out, axis in zip(stacked, node.outputs[states:], axes, strict=False):
        _stacked(node, inner, out, axis, t)


def _without_axis(f: Factor, axis: int) -> Factor:
    return f.reshape(f.shape[:axis] + f.shape[axis + 1 :])


def _iterate(
    node: Node,
    body: Body,
    initial: Sequence[str],
    inputs: Sequence[str],
    outputs: Sequence[str],
    final: Sequence[str],
    t: Trace,
) -> None:
    """Walk a body once with its states, and unify what each state is before, inside and behind it."""
    reason = _changes(node)
    for before, inner, after in zip(initial, inputs, outputs, strict=True):
        factors: Factors = t.of(before)
        if t.graph.shape(before) != t.graph.shape(inner) or t.graph.shape(inner) != t.graph.shape(after):
            t.pin(before, factors, node, reason)
            factors = ()
        t.factors[inner] = factors
    t.visit(body.nodes, inside=True)
    for k, names in enumerate(zip(initial, inputs, outputs, strict=True)):
        _join(names, final[k] if k < len(final) else "", reason, node, t)


def _changes(node: Node) -> Reason:
    return Reason(f"it changes its shape from one step of {node.op} to the next", Remedy.UNROLL)


def _stacked(node: Node, inner: str, out: str, axis: int, t: Trace) -> None:
    """What each step gives, along a new axis."""
    shape, whole = t.graph.shape(inner), t.graph.shape(out) if out else None
    if shape is None or whole is None or len(whole) != len(shape) + 1:
        why = unknown_shape(inner) if out else Reason("nothing reads what it gives", Remedy.UNREAD)
        t.pin(inner, t.of(inner), node, why)
        if out:
            t.factors[out] = ()
        return
    axis %= len(whole)
    if whole[:axis] + whole[axis + 1 :] != shape:
        t.pin(inner, t.of(inner), node, _changes(node))
        t.factors[out] = ()
        return
    t.set(out, [f.reshape((*f.shape[:axis], 1, *f.shape[axis:])) for f in t.of(inner)])


TABLE: dict[str, Rule] = {"If": if_, "Loop": loop, "Scan": scan}
