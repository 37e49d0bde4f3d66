"""Gradients of LSTM, GRU and RNN against central differences: both directions, states, and what is left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.numerics.arrays import Array
from tests.gradients.differences import compare, one_node, reverse_of

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, INPUTS, HIDDEN = 5, 3, 4, 6
WEIGHTS = ("W", "R", "B", "P")


def _random(*shape: int, seed: int) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.6).astype(np.float32)


def _net(
    op: str, *, directions: int = 1, bias: bool = True, states: bool = True, peepholes: bool = False
) -> dict[str, Array | None]:
    """Inputs in the order of the operator, omitted ones None."""
    rows, lead = GATES[op] * HIDDEN, (directions, BATCH, HIDDEN)
    inputs: dict[str, Array | None] = {
        "x": _random(STEPS, BATCH, INPUTS, seed=0),
        "W": _random(directions, rows, INPUTS, seed=1),
        "R": _random(directions, rows, HIDDEN, seed=2),
        "B": _random(directions, 2 * rows, seed=3) if bias else None,
        "lengths": None,
        "h": _random(*lead, seed=4) if states else None,
    }
    if op == "LSTM":
        inputs["c"] = _random(*lead, seed=5) if states else None
        inputs["P"] = _random(directions, 3 * HIDDEN, seed=6) if peepholes else None
    return inputs


def _check(
    op: str, inputs: dict[str, Array | None], *, opset: int = 14, outputs: tuple[str, ...], **attrs: Any
) -> None:
    constant = [k for k in WEIGHTS if inputs.get(k) is not None]
    proto, feeds = one_node(op, inputs, opset=opset, constant=constant, outputs=outputs, hidden_size=HIDDEN, **attrs)
    compare(proto, feeds, step=3e-3)


VARIANTS = [
    ("LSTM", {}),
    ("GRU", {}),
    ("GRU", {"linear_before_reset": 1}),
    ("RNN", {}),
]


@pytest.mark.parametrize(("op", "attrs"), VARIANTS)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("opset", [9, 11, 14, 18])
def test_directions(op: str, attrs: dict[str, Any], direction: str, opset: int):
    """Fails where a direction goes through the steps in the other order, or where a state's gradient is lost."""
    inputs = _net(op, directions=2 if direction == "bidirectional" else 1)
    outputs = ("y", "yh", "yc")[: 3 if op == "LSTM" else 2]
    _check(op, inputs, opset=opset, outputs=outputs, direction=direction, **attrs)


@pytest.mark.parametrize(("op", "attrs"), VARIANTS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("outputs", [("y",), ("", "yh"), ("", "", "yc")])
def test_what_may_be_left_out(op: str, attrs: dict[str, Any], bias: bool, states: bool, outputs: tuple[str, ...]):
    """Fails where an omitted bias or state is not zero, or an output that nobody reads is needed."""
    if len(outputs) == 3 and op != "LSTM":
        pytest.skip("only LSTM has two states")
    _check(op, _net(op, bias=bias, states=states), outputs=outputs, **attrs)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_peepholes(direction: str):
    """Fails where a gate that looks at the cell sees the other cell."""
    inputs = _net("LSTM", directions=2 if direction == "bidirectional" else 1, peepholes=True)
    _check("LSTM", inputs, outputs=("y", "yh", "yc"), direction=direction)


def test_activations_of_each_direction():
    """Fails where the second direction has the activation of the first."""
    inputs = _net("RNN", directions=2)
    _check("RNN", inputs, outputs=("y",), direction="bidirectional", activations=["Tanh", "Relu"])


def test_usual_activations_by_name():
    """Fails where naming the usual activations is refused."""
    _check("GRU", _net("GRU"), outputs=("y",), activations=["Sigmoid", "Tanh"])


@pytest.mark.parametrize(
    ("attrs", "why"),
    [
        ({"clip": 0.5}, "clip"),
        ({"input_forget": 1}, "input_forget"),
        ({"activations": ["HardSigmoid", "Tanh", "Tanh"]}, "hardsigmoid"),
    ],
)
def test_refusals(attrs: dict[str, Any], why: str):
    """Fails where an attribute without a rule is ignored."""
    proto, feeds = one_node("LSTM", _net("LSTM"), constant=["W", "R", "B"], opset=14, hidden_size=HIDDEN, **attrs)
    assert why in reverse_of(proto, feeds, ["x"]).missing["x"]


def test_lengths_are_refused():
    """Fails where sequences of different lengths are taken for whole ones."""
    inputs = _net("GRU") | {"lengths": np.array([5, 3, 2], np.int32)}
    proto, feeds = one_node("GRU", inputs, constant=["W", "R", "B"], opset=14, hidden_size=HIDDEN)
    assert "lengths" in reverse_of(proto, feeds, ["x"]).missing["x"]


def test_computed_weights_are_refused():
    """Fails where the gradient of computed weights is silently zero."""
    proto, feeds = one_node("RNN", _net("RNN"), constant=["R", "B"], opset=14, hidden_size=HIDDEN)
    assert "weights" in reverse_of(proto, feeds, ["W"]).missing["W"]
