"""States that a model is fed back: met step by step, and handed on as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxprune import prune
from onnxprune.cli.program import main
from onnxprune.data.states import State, states_of
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.evaluation import evaluate
from onnxprune.intake import fed_back
from onnxprune.runtime.outputs import outputs_fed_back
from onnxprune.stages.load import split
from tests.compare import assert_same

Array = NDArray[Any]
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def model(text: str, **weights: Array) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in weights.items())
    return proto


WA, WB, W1, W2 = normal(4, 8) / 2, normal(8, 8) / 4, normal(8, 24) / 3, normal(24, 3) / 5
HN = State("hn", "h")


def recurrent(x: str = "1", h: str = "1") -> onnx.ModelProto:
    """One step of a recurrent network: the sizes of the axis that counts samples."""
    return model(
        f"""g (float[{x}, 4] x, float[1, {h}, 8] h) => (float[{x}, 3] y, float[1, {h}, 8] hn) {{
            a = MatMul(x, wa)  b = MatMul(h, wb)  c = Add(a, b)  hn = Tanh(c)  q = Squeeze(hn, zero)
            d = MatMul(q, w1)  e = Relu(d)  y = MatMul(e, w2)
        }}""",
        wa=WA,
        wb=WB,
        w1=W1,
        w2=W2,
        zero=np.array([0]),
    )


def growing() -> onnx.ModelProto:
    """A past that every step makes longer."""
    return model(
        """g (float[N, 1, 4] x, float[N, P, 4] past) => (float[N, 1, 3] y, float[N, Q, 4] present) {
            present = Concat<axis = 1>(past, x)  s = ReduceMean<axes = [1]>(present)
            d = MatMul(s, w1)  e = Relu(d)  y = MatMul(e, w2)
        }""",
        w1=normal(4, 24),
        w2=W2,
    )


def states_by_hand(x: Array, start: Array) -> list[Array]:
    """What the recurrent network is fed at each step."""
    met = [start]
    for row in x[:-1]:
        met.append(np.tanh(row[None] @ WA + met[-1] @ WB))
    return met


@pytest.mark.parametrize(("x", "h", "per_run"), [("1", "1", 1), ("N", "N", None)])
def test_states_are_those_of_a_run_by_hand(x: str, h: str, per_run: int | None, tmp_path: Path):
    """Fails where a state is that of another step or sequence, or the second sequence starts where the first ended."""
    first, second, start = normal(5, 4), normal(3, 4), normal(1, 1, 8)
    np.savez(tmp_path / "a.npz", x=first)
    np.savez(tmp_path / "b.npz", x=second, h=start)
    samples = fed_back.read(recurrent(x, h), tmp_path, (HN,))
    by_hand = [*states_by_hand(first, np.zeros((1, 1, 8), np.float32)), *states_by_hand(second, start)]
    assert (len(samples), samples.per_run) == (8, per_run)
    assert samples.sequence is not None and samples.sequence.tolist() == [0] * 5 + [1] * 3
    for i, expected in enumerate(by_hand):
        assert_same(samples.slice(i, i + 1)["h"], expected, rtol=1e-5, atol=1e-6)
    if per_run is None:
        assert_same(samples.slice(2, 5)["h"], np.concatenate(by_hand[2:5], axis=1), rtol=1e-5, atol=1e-6)
    assert "h" not in samples.extras


def test_files_of_one_step_each_are_one_sequence(tmp_path: Path):
    """Fails where every step starts at zeros again."""
    x = normal(6, 4)
    for k, row in enumerate(x):
        np.savez(tmp_path / f"{k}.npz", x=row[None])
    samples = fed_back.read(recurrent(), tmp_path, (HN,))
    assert samples.sequence is not None and samples.sequence.tolist() == [0] * 6
    assert_same(samples.slice(5, 6)["h"], states_by_hand(x, np.zeros((1, 1, 8), np.float32))[5], rtol=1e-5, atol=1e-6)


def test_a_past_grows_from_nothing():
    """Fails where the first step has a past, or all steps have one of the same length."""
    x = normal(6, 1, 4)
    samples = fed_back.read(growing(), {"x": x}, (State("present", "past"),))
    assert samples.ragged and samples.per_run == 1
    for i in range(6):
        assert_same(samples.slice(i, i + 1)["past"], x[None, :i, 0], rtol=0.0, atol=0.0)


def test_so_many_steps():
    """Fails where more steps are run than were asked for, or others than the first ones."""
    x = normal(9, 4)
    samples = fed_back.read(recurrent(), {"x": x}, (HN,), 4)
    assert_same(np.concatenate([f["x"] for f in samples.batches(1)]), x[:4], rtol=0.0, atol=0.0)


def test_what_is_held_out_follows_in_time():
    """Fails where steps that judge lie between those that the fits know."""
    samples = fed_back.read(recurrent(), {"x": normal(32, 4)}, (HN,))
    fit, held = split(samples, 0)
    assert held is not None and (len(fit), len(held)) == (28, 4)
    assert_same(held.slice(0, 1)["x"], samples.slice(28, 29)["x"], rtol=0.0, atol=0.0)


def test_outputs_with_own_states():
    """Fails where a model keeps on getting the states of the samples instead of its own, or the first is not theirs."""
    samples = fed_back.read(recurrent(), {"x": normal(12, 4)}, (HN,))
    other = recurrent()
    next(t for t in other.graph.initializer if t.name == "wb").CopyFrom(onnx.numpy_helper.from_array(WB * 0.5, "wb"))
    part = samples.part(4, 12)
    found = outputs_fed_back(other, part, (HN,))["hn"]
    state = part.slice(0, 1)["h"]
    for i in range(8):
        state = np.tanh(part.slice(i, i + 1)["x"] @ WA + state @ (WB * 0.5))
        assert_same(found[i : i + 1], state, rtol=1e-5, atol=1e-6)


def test_the_checksum_is_of_what_was_given():
    """Fails where a plan belongs to the last digits of states, which another processor computes differently."""
    x = normal(5, 4)
    one, two = (fed_back.read(recurrent(n, n), {"x": x}, (HN,)) for n in ("1", "N"))
    assert one.sha256() == two.sha256() != fed_back.read(recurrent(), {"x": x + 1}, (HN,)).sha256()


def test_pruned_and_judged_with_states(tmp_path: Path):
    """Fails where the option reaches no stage, a plan forgets it, or nothing is said of errors that are fed back."""
    onnx.save(recurrent("N", "N"), tmp_path / "in.onnx")
    np.savez(tmp_path / "x.npz", x=normal(96, 4))
    result = prune(
        tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "x.npz", ratio=0.3, state=("hn=h",), fast=True
    )
    assert result.report.calibration["samples"] == 96
    assert any("each model fed its own states" in n for n in result.report.notes)
    assert result.plan.settings().state == ("hn=h",)
    again = prune(tmp_path / "in.onnx", None, tmp_path / "x.npz", from_plan=result.plan)
    assert again.report.after.macs == result.report.after.macs
    judged = evaluate(tmp_path / "out.onnx", tmp_path / "x.npz", against=tmp_path / "in.onnx", state=("hn=h",))
    assert judged.samples == 96 and any("each model fed its own states" in n for n in judged.notes)


@pytest.mark.parametrize("command", ["inspect in.onnx --calib x.npz", "bench in.onnx --data x.npz --runs 6 --warmup 0"])
def test_other_commands_take_states(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where these ask for data of an input that is a state."""
    monkeypatch.chdir(tmp_path)
    onnx.save(recurrent("N", "N"), "in.onnx")
    np.savez("x.npz", x=normal(8, 4))
    assert main([*command.split(), "--state", "hn=h"]) == 0


def test_names_that_hold_the_sign():
    """Fails where such a name is cut at the wrong place."""
    proto = model("g (float[1] x, float[1] a) => (float[1] b) { b = Add(x, a) }")
    proto.graph.node[0].output[0] = proto.graph.output[0].name = "b=1"
    proto.graph.node[0].input[1] = proto.graph.input[1].name = "a=0"
    assert states_of(proto, ["b=1=a=0"]) == (State("b=1", "a=0"),)


def test_patterns_name_every_pair():
    """Fails where a star stands for other letters on the two sides, or letters of a name are taken for a pattern."""
    text = "g (float[1] x, float[1] a, float[1] b) => (float[1] c, float[1] d) { c = Add(x, a) d = Add(x, b) }"
    proto = model(text)
    for k, name in enumerate(("0.key", "1.v[a]")):
        proto.graph.node[k].output[0] = proto.graph.output[k].name = f"present.{name}"
        proto.graph.node[k].input[1] = proto.graph.input[k + 1].name = f"past.{name}"
    pairs = (State("present.0.key", "past.0.key"), State("present.1.v[a]", "past.1.v[a]"))
    assert states_of(proto, ["present.*=past.*"]) == pairs
    assert states_of(proto, ["present.*.*=past.*.*"]) == pairs
    assert states_of(proto, ["present.*.key=past.*.key"]) == pairs[:1]
    with pytest.raises(UsageError, match=r"makes an input 'pst.0.key' of the output 'present.0.key'"):
        states_of(proto, ["present.*=pst.*"])
    with pytest.raises(UsageError, match="names no output"):
        states_of(proto, ["presence.*=past.*"])
    with pytest.raises(UsageError, match="at most 3"):
        states_of(proto, ["****=****"])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["hn"], "'hn' is no pair; write OUT=IN"),
        (["q=h"], "names no output: the model gives 'y', 'hn'"),
        (["hn=q"], "names no input: the model reads 'x', 'h'"),
        (["hn=h", "y=h"], "input 'h' gets two states"),
        (["hn=h", "y=x"], "every input is a state"),
    ],
)
def test_states_that_are_refused(given: list[str], reason: str):
    """Fails where a typing error ends in an error of onnxruntime."""
    with pytest.raises(UsageError, match=reason):
        states_of(recurrent(), given)


@pytest.mark.parametrize(
    ("state", "data", "reason"),
    [
        (State("y", "h"), {}, "the state y=h cannot be fed back: the output is float32 1x3, the input float32 1x1x8"),
        (HN, {"h": normal(1, 1, 7)}, "'h' has shape 1x1x7, the model wants 1x1x8"),
    ],
)
def test_states_that_do_not_fit(state: State, data: dict[str, Array], reason: str):
    """Fails where a state of another size is fed, or the message does not name it."""
    with pytest.raises(CalibrationError, match=reason) as e:
        fed_back.read(recurrent(), {"x": normal(5, 4), **data}, (state,))
    assert "\n" not in str(e.value)
