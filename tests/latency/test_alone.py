"""Layers as models of their own: which there are, what they hold, and how often each is timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxprune.errors import RunError
from onnxprune.latency.alone import Alone, chains_of
from onnxprune.runtime.session import Feeds, Session
from onnxprune.runtime.timing import Times

TEXT = """<ir_version: 9, opset_import: ["" : 18]>
chain (float[1, 4, 6, 6] x, int64[1] i) => (float[1, 4, 6, 6] y, float[1, 4] z)
<float[4, 4, 3, 3] w = {%s}, float[4, 4, 3, 3] v = {%s}, float[4] b = {1, 2, 3, 4}, int64[2] flat = {1, 4}>
{
  [c1] a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
  [r1] a1 = Relu (a)
  [c2] c = Conv <pads = [1, 1, 1, 1]> (a1, v, b)
  [r2] c1 = Relu (c)
  [c3] d = Conv <pads = [1, 1, 1, 1]> (c1, w)
  [s] e = Sigmoid (d)
  [m] y = Mul (d, e)
  [p] g = GlobalAveragePool (y)
  [f] z = Reshape (g, flat)
  [t] t0 = Gather <axis = 1> (x, i)
}"""


class Counting:
    """Runs what it is given, once, and says that it took as many milliseconds as it has weights."""

    def __init__(self, refuses: str = "") -> None:
        self.models: list[onnx.ModelProto] = []
        self.refuses = refuses

    def identity(self) -> Mapping[str, str]:
        return {"providers": "counting"}

    def kernels(self, model: onnx.ModelProto, feeds: Feeds) -> tuple[()]:
        raise AssertionError("no profiler is asked")

    def compare(self, models: Sequence[onnx.ModelProto], feeds: Feeds) -> tuple[Times, ...]:
        if self.refuses in [n.op_type for n in models[0].graph.node]:
            raise RunError("not here")
        self.models += models
        Session(models[0]).run(feeds)
        return (Times(np.full(3, 1e-3 * sum(np.prod(t.dims) for t in models[0].graph.initializer))),)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    numbers = [", ".join(f"{x:.3f}" for x in rng.standard_normal(144)) for _ in range(2)]
    return onnx.parser.parse_model(TEXT % tuple(numbers))


FEEDS = {"x": np.zeros((1, 4, 6, 6), np.float32), "i": np.zeros(1, np.int64)}


def test_activations_go_with_the_layer_in_front_where_nothing_else_reads_it(model: onnx.ModelProto):
    assert [[n.name for n in chain] for chain in chains_of(model)] == [
        ["c1", "r1"],
        ["c2", "r2"],
        ["c3"],
        ["s"],
        ["m"],
        ["p"],
        ["t"],
    ]


def test_equal_layers_are_timed_once_whatever_their_weights(model: onnx.ModelProto):
    """Fails where two layers with one shape are timed twice, or one with another shape is taken for them."""
    machine = Counting()
    alone = Alone(machine, machine)
    kernels = {k.name: k for k in alone.kernels(model, FEEDS)}
    assert kernels["c1"].seconds == kernels["c2"].seconds == pytest.approx(0.148)
    assert kernels["c3"].seconds == pytest.approx(0.144)
    ran = [[n.op_type for n in m.graph.node] for m in machine.models]
    assert ran == [["Conv", "Relu"], ["Conv"], ["Sigmoid"], ["Mul"], ["GlobalAveragePool"], ["Gather"]]
    alone.kernels(model, FEEDS)
    assert len(machine.models) == len(ran)


def test_a_layer_that_does_not_run_alone_is_missing(model: onnx.ModelProto):
    machine = Counting(refuses="Sigmoid")
    names = [k.name for k in Alone(machine, machine).kernels(model, FEEDS)]
    assert names == ["c1", "c2", "c3", "m", "p", "t"]
