"""Grams that the model computes itself, on the CPU, which runs the same graph, against those of rows that leave it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from onnxprune import RunError, config, prune
from onnxprune.calibration import input_moments
from onnxprune.calibration.input_moments import InputSums, Shard
from onnxprune.calibration.layers import layers_of
from onnxprune.data.inputs import input_specs
from onnxprune.data.samples import Samples
from onnxprune.numerics.gram import Gram
from onnxprune.runtime.session import PROVIDERS, Session, check_provider
from tests import digits
from tests.calibrated import prepare_text, samples_of
from tests.compare import assert_same
from tests.graphs import PRUNABLE, TABLE
from tests.prepared import Prepared
from tests.stages import test_rotate, test_turn_heads

Lookup = Callable[[str], Prepared]
# Products in float32, added up in another order.
RTOL = 1e-5

# Maps larger than what is sampled of them: pads, strides, dilations, groups, a transposed one, and all kinds of rows.
TEXT = """(float[N,4,14,14] x) => (float[N,P,6] y, float[N,5] z) {
    a = Conv <pads=[1,0,2,1], strides=[1,2]> (x, w1[8,4,3,3], b1[8])
    c = Conv <group=2, auto_pad="SAME_UPPER", strides=[2,1]> (a, w2[8,4,3,3])
    d = ConvTranspose <pads=[1,1,1,1], strides=[2,2], output_padding=[1,1]> (c, w3[8,6,3,3], b3[6])
    e = Conv <dilations=[2,2]> (d, w4[6,6,2,2], b4[6])
    f = Flatten(e)
    z = Gemm <transB=1> (f, w5[5,1008], b5[5])
    r = Reshape(e, sh{0,6,-1})
    u = Transpose <perm=[0,2,1]> (r)
    y = MatMul(u, w6[6,6])
}"""


def has_gpu() -> bool:
    """Whether onnxruntime computes on one here."""
    try:
        check_provider("cuda")
    except RunError:
        return False
    return True


def both(p: Prepared, samples: Samples) -> tuple[dict[str, tuple[Gram, ...]], dict[str, tuple[Gram, ...]]]:
    """Sums of one pass, computed here and by the model."""
    layers = layers_of(p.channels)
    arguments = (p.normalised.proto, layers, samples, p.normalised.shapes, 7)
    here, there = (InputSums.of(*arguments, appended=x)(Shard(0, samples)) for x in (False, True))
    return here, there


def check(p: Prepared, samples: Samples) -> None:
    if not layers_of(p.channels):
        return
    here, there = both(p, samples)
    assert here.keys() == there.keys()
    for name, sums in here.items():
        for a, b in zip(sums, there[name], strict=True):
            assert a.rows == b.rows
            largest = float(np.abs(a.total).max(initial=0.0))
            assert_same(b.sums(), a.sums(), rtol=RTOL, atol=RTOL * largest)


def test_grams_are_those_of_the_sampled_rows() -> None:
    """Fails where other positions are gathered, padding is read, or columns are in another order; the last batch is
    smaller than the others."""
    p = prepare_text(TEXT)
    check(p, samples_of(p, 530))


@pytest.mark.parametrize("name", PRUNABLE)
def test_grams_of_every_topology(name: str, prepared: Lookup) -> None:
    """Fails where a kind of layer, of precision or of stored weights has no such graph."""
    p = prepared(name)
    specs, feeds = input_specs(p.original), TABLE[name].feeds(2)
    if len({len(feeds[s.name]) for s in specs if s.batched}) > 1:
        pytest.skip("one of its inputs holds a size, not an entry for each sample")
    check(p, Samples(specs, feeds))


def test_only_matrices_leave_the_model() -> None:
    """Fails where activations are copied all the same; a wide layer's are, as its contributions are summed here."""
    p = prepare_text(TEXT)
    samples = samples_of(p, 300)
    work = InputSums.of(p.normalised.proto, layers_of(p.channels), samples, p.normalised.shapes, 0, appended=True)
    assert work.inputs is not None
    graph, session = work._appended
    assert set(session.outputs) == {*graph.grams.values(), *graph.shapes.values()}


def test_wide_layers_keep_their_contributions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the Gram of a wide layer's columns is computed after all."""
    monkeypatch.setattr(input_moments, "WIDE", 100)
    p = prepare_text(TEXT)
    here, there = both(p, samples_of(p, 100))
    assert [len(x) for x in here.values()].count(1) == 1
    for name, sums in here.items():
        for a, b in zip(sums, there[name], strict=True):
            assert_same(b.sums(), a.sums(), rtol=RTOL, atol=RTOL * float(np.abs(a.total).max()))


def test_inputs_of_other_sizes_than_expected_are_summed_here() -> None:
    """Fails where positions of another map are gathered: sizes that the data decides are known only after the run."""
    p = prepare_text("(float[N,3,8,8] x) => (float[N,4,8,8] y) { y = Conv (x, w[4,3,1,1], b[4]) }")
    samples = samples_of(p, 40)
    layers = layers_of(p.channels)
    work = InputSums.of(p.normalised.proto, layers, samples, p.normalised.shapes, 0, appended=True)
    assert work.inputs is not None
    # As if the first batch had shown a smaller map.
    smaller = {n: {t: ((*s[:2], 5, 5), d) for t, (s, d) in x.items()} for n, x in work.inputs.items()}
    found = list(work.on_device(Shard(0, samples), smaller))
    assert found
    assert not any(isinstance(rows, Gram) for _, rows, _ in found)
    here: list[tuple[object, np.ndarray, bool]] = []
    work.on_host(Shard(0, samples), lambda layer, rows, held: here.append((layer, rows, held)))
    for (_, a, held), (_, b, expected) in zip(found, here, strict=True):
        assert held == expected
        assert isinstance(a, np.ndarray)
        assert np.array_equal(a, b)


def test_one_position_off_is_seen() -> None:
    """The mutation check: positions that are shifted by one fail the comparison above."""
    p = prepare_text("(float[N,3,16,16] x) => (float[N,4,16,16] y) { y = Conv (x, w[4,3,1,1], b[4]) }")
    samples = samples_of(p, 100)
    work = InputSums.of(p.normalised.proto, layers_of(p.channels), samples, p.normalised.shapes, 0, appended=True)
    right = work(Shard(0, samples))["w"][0].sums()
    graph, _ = work._appended
    feeds = type(graph).feeds

    def shifted(*arguments: object) -> dict[str, np.ndarray]:
        found = feeds(*arguments)  # type: ignore[arg-type]
        return {k: (v + 1) % 256 if k.endswith(":at") else v for k, v in found.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(graph), "feeds", shifted)
        wrong = work(Shard(0, samples))["w"][0].sums()
    with pytest.raises(AssertionError, match="times the bound"):
        assert_same(wrong, right, rtol=RTOL, atol=RTOL * float(np.abs(right).max()))


def test_a_provider_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fails where onnxruntime falls back to the CPU without a word, or where it says too much."""
    assert tuple(PROVIDERS) == config.PROVIDERS
    if has_gpu():
        pytest.skip("CUDA starts here")
    with pytest.raises(RunError, match=r"^CUDAExecutionProvider did not start, .* or choose another provider$"):
        prune(digits.path("resnet"), None, digits.CALIB, provider="cuda")
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU and onnxruntime's CUDA provider")
def test_a_gpu_finds_the_same_moments() -> None:
    """Fails where the GPU multiplies in TensorFloat-32, or gathers elsewhere than the CPU does."""
    p = prepare_text(TEXT)
    samples = samples_of(p, 300)
    arguments = (p.normalised.proto, layers_of(p.channels), samples, p.normalised.shapes, 0)
    here, there = (input_moments.collect(*arguments, provider=x) for x in config.PROVIDERS)
    for name, known in here.items():
        assert_same(there[name].p, known.p, rtol=1e-4, atol=1e-4 * float(np.abs(known.p).max()))


@pytest.mark.parametrize(
    ("settings", "places"),
    [
        ({"recover": 1, "fast": False}, {"runtime.walker", "allocation.trial_cuts", "recovery.student"}),
        ({"method": "global", "ratio": 0.3}, {"calibration.probe", "runtime.walker", "stages.imitate_group"}),
        ({"method": "global", "metric": "exact", "exclude": ("/0/*", "/5/*", "/6/*")}, {"calibration.gated_network"}),
    ],
    ids=["walks, trials and recovery", "another selection", "its exact discrepancy"],
)
def test_all_work_on_samples_is_done_there(
    settings: dict[str, Any], places: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where a step stays on the CPU, or a check of the result leaves it: it is judged by what users will run."""
    opened = _opened_on(monkeypatch)
    chosen = config.PruneConfig(samples=48, ratio=0.01, fast=True).with_options(**settings)
    prune(digits.path("resnet"), None, digits.CALIB, config=chosen, provider="cuda")
    assert opened[True] >= {"calibration.input_moments", *places}
    assert opened[False] >= {"verification.checks"}
    assert opened[False] & opened[True] <= {"calibration.probe"}  # looks at two samples first


@pytest.mark.parametrize("turning", [test_rotate, test_turn_heads], ids=["streams", "heads"])
def test_what_is_seen_before_turning_is_seen_there(turning: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the pass that directions come from stays on the CPU."""
    opened = _opened_on(monkeypatch)
    model = turning.MODEL if turning is test_rotate else turning.PLAIN
    result = prune(model.model(), None, turning.data(), config=turning.QUICK, provider="cuda")
    assert result.plan.rotated
    assert "calibration.input_moments" in opened[True] - opened[False]


def _opened_on(monkeypatch: pytest.MonkeyPatch) -> dict[bool, set[str]]:
    """The modules that open sessions from now on: on what stands for a GPU, and elsewhere."""
    device = (("CPUExecutionProvider", {}),)
    monkeypatch.setitem(cast("dict[str, Any]", PROVIDERS), "cuda", device)
    opened: dict[bool, set[str]] = {True: set(), False: set()}
    start = Session.__init__

    def noted(self: Session, *args: Any, **options: Any) -> None:
        frame = sys._getframe(1)
        opened[options.get("providers") is device].add(frame.f_globals["__name__"].removeprefix("onnxprune."))
        start(self, *args, **options)

    monkeypatch.setattr(Session, "__init__", noted)
    return opened
