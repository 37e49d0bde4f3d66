"""The loss of the student with its gradients, and what learning from the original does to a pruned network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import PruneResult, prune
from onnxprune.calibration.layers import layers_of
from onnxprune.channels import branches
from onnxprune.errors import RunError
from onnxprune.graph import protobuf
from onnxprune.measures.answers import Answers
from onnxprune.numerics.arrays import Array, is_float
from onnxprune.objective import relative_error, spread
from onnxprune.recovery.recover import (
    CONVOLUTIONS,
    OTHERS,
    Manner,
    Material,
    Recovery,
    Schedule,
    manner_of,
    recover,
)
from onnxprune.recovery.student import Spread, Student, Teacher, features_of
from onnxprune.runtime.outputs import outputs_of
from onnxprune.runtime.session import Session
from onnxprune.surgery import replace_initializers
from tests import digits
from tests.calibrated import prepare_text, samples_of
from tests.decoder import decoder, prompts
from tests.number_types import converted
from tests.prepared import Prepared, random_keep, sliced

Keep = Any
ROWS = (
    *("plain", "residual", "batch_norm", "grouped_few_large", "depthwise", "transposed", "squeeze_excite", "conv_1d"),
    *("attention", "flatten_gemm", "gemm_variants", "channels_last", "layer_norm_convolution", "rms_normalization"),
    *("per_channel_constants", "several_inputs_and_outputs", "rows_and_columns", "gru"),
)
TOLERANCE = 2e-2
STEPS = (2e-3, 3e-4)
EPOCHS = 4


def _student(p: Prepared, keep: Keep) -> tuple[Student, Teacher, tuple[str, ...]]:
    layers = layers_of(p.channels)
    student = Student(sliced(p, keep), p.example, p.channels, layers, keep)
    tensors = [t for t in (*p.channels.graph.outputs, *features_of(p.channels.graph, layers)) if student.has(t)]
    teacher = Teacher(p.normalised.proto, p.channels, tensors, keep)
    return student, teacher, teacher.tensors


@pytest.mark.parametrize("row", [*ROWS, "if_weights_outside"])
def test_the_gradient_of_the_loss_is_that_of_differences(row: str, prepared: Callable[[str], Prepared]):
    """Fails where a target is cut wrongly, a seed has a wrong factor, or a weight's gradient lacks a term."""
    p = prepared(row)
    _check_gradients(p, random_keep(p.channels, 1))


@pytest.mark.parametrize("row", ["residual", "branch_through_a_norm", "transformer", "channels_last_branch"])
def test_what_a_branch_has_left_learns_too(row: str, prepared: Callable[[str], Prepared]):
    """Fails where the bias that stands for a branch has no gradient, or one of another shape."""
    p = prepared(row)
    keep = random_keep(p.channels, 1)
    for g in branches.drops(p.channels):
        keep[p.channels.groups[g].units] = False
    student = _check_gradients(p, keep)
    left = branches.left_of(p.channels, keep)
    assert left is not None
    biases = {x.bias for x in left.alone.values() if x.bias}
    assert biases <= student.weights.keys()


def _check_gradients(p: Prepared, keep: Keep) -> Student:
    student, teacher, tensors = _student(p, keep)
    rng = np.random.default_rng(0)
    student.follow({t: float(w) for t, w in zip(tensors, rng.uniform(0.5, 1.5, len(tensors)), strict=True)})
    assert student.weights
    targets = teacher(p.example)
    loss, gradients = student.step(p.example, targets)
    assert gradients.keys() == student.weights.keys()
    assert list(student.weights) == [k for k in student._candidates if k in student.weights]  # in no set's order
    expected_loss = _loss(p, keep, student, targets)
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    for name, w in student.weights.items():
        g = gradients[name].astype(np.float64)
        assert g.shape == w.shape
        v = rng.standard_normal(w.shape) * float(np.abs(w).max())
        found = float((g * v).sum())
        slopes = [_slope(student, p, targets, name, v, step) for step in STEPS]
        scale = max(float(np.linalg.norm(g) * np.linalg.norm(v)) / np.sqrt(g.size), abs(found), 1e-2 * loss)
        assert min(abs(found - slope) for slope in slopes) <= TOLERANCE * scale, (name, found, slopes)
    return student


def _slope(student: Student, p: Prepared, targets: dict[str, Array], name: str, v: Array, step: float) -> float:
    """The central difference of the loss along v, with one weight moved; a long step may cross the kink of a Relu."""
    w, values = student.weights[name], []
    for sign in (1, -1):
        student.weights[name] = (w + sign * step * v).astype(w.dtype)
        values.append(student.step(p.example, targets)[0])
    student.weights[name] = w
    return (values[0] - values[1]) / (2 * step)


def _loss(p: Prepared, keep: Keep, student: Student, targets: dict[str, Array]) -> float:
    """The loss by numpy, of the cut model's own tensors."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.5, 1.5, len(student.goals))
    own = Session(protobuf.submodel(sliced(p, keep), {}, student.goals), optimize=False).run(p.example)
    return sum(
        w * float(((own[t].astype(np.float64) - targets[t]) ** 2).sum())
        for w, t in zip(weights, student.goals, strict=True)
    )


def _recovered(p: Prepared, count: int = 64, seed: int = 0, **options: Any) -> tuple[dict[str, Array], Recovery, float]:
    """(weights, what was done, the error that these weights have by themselves)."""
    keep = random_keep(p.channels, seed)
    small = sliced(p, keep)
    samples = samples_of(p, count)
    held = samples if count < 16 else samples.take(np.arange(16))
    fit = samples if count < 16 else samples.take(np.arange(16, count))
    reference = outputs_of(p.original, held)
    schedule = Schedule(**{"epochs": EPOCHS, "rate": 3e-2, "batch": 16, **options})
    layers = layers_of(p.channels)
    material = Material(fit, held, Answers.of(reference, len(held)))
    weights, found = recover(p.normalised.proto, small, p.channels, layers, material, keep, schedule)
    given = outputs_of(replace_initializers(small, weights), held)
    answers = material.reference
    # Numbers of all samples together have no spread over samples.
    error = answers.error(given) if answers.left_out else relative_error(given, reference)
    return weights, found, error


@pytest.mark.parametrize("row", [*ROWS, "unknown_operator", "quantized", "lstm_stacked", "sequences", "batch_of_one"])
def test_recovery_is_never_worse(row: str, prepared: Callable[[str], Prepared]):
    """Fails where what is returned is not the state that was measured."""
    _, found, error = _recovered(prepared(row))
    assert found.after <= found.before
    assert error == pytest.approx(found.after, rel=1e-6)
    assert found.errors[0] == (0, found.before) if found.weights else found.why


@pytest.mark.parametrize("row", ["plain", "residual", "depthwise", "flatten_gemm", "batch_of_one", "attention"])
def test_recovery_helps(row: str, prepared: Callable[[str], Prepared]):
    _, found, _ = _recovered(prepared(row), epochs=30, rate=0.2)
    assert found.after < 0.8 * found.before
    assert found.epoch > 0


def test_recovery_repeats(prepared: Callable[[str], Prepared]):
    first, second = (_recovered(prepared("residual"))[0] for _ in range(2))
    assert first
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[k], second[k]) for k in first)


def test_too_high_a_rate_leaves_the_start(prepared: Callable[[str], Prepared]):
    """Fails where a run that diverged, or met a number that is none, is kept."""
    weights, found, error = _recovered(prepared("residual"), rate=1e18)
    assert not weights
    assert (found.epoch, found.after) == (0, found.before)
    assert "not finite" in found.why or found.steps == EPOCHS * 3
    assert error == found.before


@pytest.mark.parametrize(("row", "rate"), [("transformer", 3.0), ("attention", 30.0)])
def test_a_rate_that_does_harm_is_lowered(row: str, rate: float, prepared: Callable[[str], Prepared]):
    """Fails where training goes on at a rate that only does harm, or begins again from what that has left behind."""
    weights, found, error = _recovered(prepared(row), epochs=40, rate=rate)
    assert found.errors[1][1] > 1.2 * found.before
    assert found.rate < rate
    assert weights
    assert found.after < 0.9 * found.before
    assert error == pytest.approx(found.after, rel=1e-6)
    assert found.steps == 40 * 3


def test_training_ends_where_the_error_stands_still(
    prepared: Callable[[str], Prepared], monkeypatch: pytest.MonkeyPatch
):
    """Fails where passes are spent on nothing, or training ends before the rate falls."""
    answers = iter([1.0, 0.6, 0.599, 0.599, 0.598, 0.598, 0.597, 0.1, 0.1, 0.1, 0.1])
    monkeypatch.setattr(Answers, "error", lambda *_, **__: next(answers))
    p = prepared("residual")
    samples, keep = samples_of(p, 48), random_keep(p.channels, 0)
    material = Material(samples, samples, Answers.of(outputs_of(p.original, samples), len(samples)))
    heard: list[int] = []
    _, found = recover(
        *(p.normalised.proto, sliced(p, keep), p.channels, layers_of(p.channels), material, keep),
        Schedule(epochs=10, batch=16),
        lambda epoch, *_: heard.append(epoch),
    )
    assert found.errors[-1] == (6, 0.597)
    assert (found.epoch, found.after, heard[-1], found.why) == (6, 0.597, 6, "")


def test_tensors_that_would_take_all_memory_leave_the_start(
    prepared: Callable[[str], Prepared], monkeypatch: pytest.MonkeyPatch
):
    """Fails where a small model with a huge tensor is trained until the system ends the process."""
    monkeypatch.setattr("onnxprune.recovery.recover._SAMPLE_BYTES", 0)
    monkeypatch.setattr("onnxprune.recovery.recover._TIMES_THE_MODEL", 0)
    weights, found, _ = _recovered(prepared("residual"))
    assert not weights
    assert "left out: one sample and its gradients would hold" in found.why


def test_a_training_graph_that_does_not_run_leaves_the_start(
    prepared: Callable[[str], Prepared], monkeypatch: pytest.MonkeyPatch
):
    """Fails where a network that runs by itself is not written because its gradients do not."""

    def refuse(*_: Any) -> Any:
        raise RunError("no kernel")

    monkeypatch.setattr(Student, "step", refuse)
    weights, found, _ = _recovered(prepared("residual"))
    assert not weights
    assert "no kernel" in found.why


def test_only_what_lies_behind_an_unknown_operator_learns():
    """Fails where a gradient that lacks a term is used, or where one refusal stops everything."""
    p = prepare_text("""(float[N,4,4] x) => (float[N,4,4] y) {
        a = MatMul(x, w1[4,8])
        b = Relu(a)
        c = MatMul(b, w2[8,4])
        d = Det(c)
        e = Unsqueeze(d, i{1,2})
        f = Add(c, e)
        g = MatMul(f, w3[4,8])
        h = Relu(g)
        y = MatMul(h, w4[8,4])
    }""")
    student, _, _ = _student(p, random_keep(p.channels, 0))
    student.follow({"y": 1.0})
    assert set(student.weights) == {"w3", "w4"}
    assert "Det" in student.missing["w1"]


def test_constants_of_functions_do_not_learn(prepared: Callable[[str], Prepared]):
    """Fails where a clip bound, a mask, a size or a scale of codes is taken for a weight."""
    for row in ("quantized", "swish", "attention_mask_from_outside", "resize_scales"):
        p = prepared(row)
        student, _, tensors = _student(p, np.ones(p.channels.classes.pinned.size, bool))
        student.follow(dict.fromkeys(tensors, 1.0))
        carried = {r.tensor for g in p.channels.groups for r in (*g.producers, *g.consumers, *g.parameters)}
        stored = {name for x in layers_of(p.channels) for name in x.stored}
        assert set(student.weights) <= carried | stored
        assert all(is_float(p.channels.graph.constants[k].dtype) for k in student.weights)
    assert not any("scale" in k for k in student.weights)


def test_the_spread_is_that_of_all_batches():
    rng = np.random.default_rng(0)
    y = rng.standard_normal((30, 4, 5)).astype(np.float32) + 3
    found = Spread()
    for part in np.split(y, [7, 20]):
        found.update({"y": part, "still": np.ones_like(part), "broken": part * np.float32(np.nan)}, len(part))
    assert found.per_sample() == {"y": pytest.approx(spread(y) / 30, rel=1e-9)}


@pytest.mark.parametrize(
    ("row", "manner"), [("residual", CONVOLUTIONS), ("depthwise", CONVOLUTIONS), ("transformer", OTHERS)]
)
def test_the_manner_follows_from_the_network(row: str, manner: Manner, prepared: Callable[[str], Prepared]):
    """Fails where a transformer learns as convolutions do, which does it harm, or a given rate is passed over."""
    p = prepared(row)
    student, *_ = _student(p, random_keep(p.channels, 1))
    assert manner_of(student, Schedule(epochs=1)) == manner
    given = manner_of(student, Schedule(epochs=1, rate=0.5, batch=3))
    assert (given.rate, given.batch, given.shared) == (0.5, 3, manner.shared)


def test_parts_of_a_batch_add_up(prepared: Callable[[str], Prepared], monkeypatch: pytest.MonkeyPatch):
    """Fails where a batch that memory splits is weighted otherwise than a whole one."""
    whole, *_ = _recovered(prepared("residual"))
    monkeypatch.setattr("onnxprune.recovery.training._PASS_BYTES", 1)
    parts, *_ = _recovered(prepared("residual"))
    for k, w in whole.items():
        np.testing.assert_allclose(parts[k], w, rtol=1e-2, atol=1e-4 * float(np.abs(w).max()))


def test_half_precision_learns():
    model, data = onnx.load(digits.path("resnet")), np.load(digits.CALIB)
    half = converted(model, "float16")
    result = prune(half, None, {"input": data["input"].astype(np.float16)}, ratio=0.5, samples=192, recover=3)
    assert result.model is not None
    recovery = result.report.checks["recovery"]
    assert recovery["after"] < recovery["before"]
    assert {t.data_type for t in result.model.graph.initializer if t.dims} <= {10, 7}


@pytest.fixture(scope="module")
def learned() -> PruneResult:
    return digits.pruned("resnet", ratio=0.5, recover=10)


def test_the_digits_come_closer(learned: PruneResult):
    checks = learned.report.checks
    errors = checks["held_out_error"]
    assert checks["refit"] == "recovered"
    assert errors["recovered"] < 0.9 * min(errors["lockstep"], errors["least-squares"])
    assert learned.report.output_error == errors["recovered"] == pytest.approx(checks["recovery"]["after"], rel=1e-6)
    assert "recover" in learned.report.effort.stages
    test = {"input": np.load(digits.TEST)["input"]}
    assert learned.model is not None
    plain = digits.pruned("resnet", ratio=0.5, fast=True).model
    assert plain is not None
    original = Session(digits.path("resnet")).run(test)
    assert relative_error(Session(learned.model).run(test), original) < relative_error(
        Session(plain).run(test), original
    )


def test_a_plan_replays_to_the_same_bytes(learned: PruneResult):
    again = prune(digits.path("resnet"), None, digits.CALIB, from_plan=learned.plan)
    assert learned.model is not None
    assert again.model is not None
    assert again.model.SerializeToString() == learned.model.SerializeToString()


def test_a_decoder_with_caches_of_a_window_learns():
    """Fails where recovery stops, as an attention with such caches gives out no scores."""
    model, data = decoder(window=4), prompts(48)
    settings: dict[str, Any] = {"ratio": 0.3, "round_to": 1, "resize_io": ("past_key_values.*", "present.*")}
    found = prune(model, None, data, recover=2, **settings).report
    assert not [n for n in found.notes if n.startswith("recovery")]
    assert found.checks["refit"] == "recovered"
    # What looks at outputs needs the same gradients.
    assert prune(model, None, data, method="taylor", recover=0, **settings).report.output_error is not None
