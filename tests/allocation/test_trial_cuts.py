"""Trial cuts, against the masked oracle of the whole model with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxprune.allocation import trial_cuts
from onnxprune.allocation.trial_cuts import measure
from onnxprune.calibration.layers import layers_of
from onnxprune.calibration.regressions import consumers_of
from onnxprune.channels import branches
from onnxprune.jobs import Here, Work
from onnxprune.measures.answers import Answers
from onnxprune.objective import relative_error
from onnxprune.process import spill
from onnxprune.refit.layerwise import in_place
from onnxprune.selection.known import Choice
from onnxprune.stages.select import paths
from onnxprune.surgery import cut, replace_initializers
from onnxprune.threads import limited
from onnxprune.verification.oracle import masked_model
from tests.calibrated import moments_of, prepare_text, samples_of, trial_network, values
from tests.compare import assert_same
from tests.prepared import Prepared

Lookup = Callable[[str], Prepared]
# Relative errors of float32 outputs, accumulated in float64 by other batches.
RTOL = 1e-3
ROWS = (
    "plain",
    "residual",
    "dense_concat",
    "two_layouts",
    "grouped_few_large",
    "transposed",
    "depthwise",
    "batch_norm",
)


TWO_OUTPUTS = """(float[N,6] x) => (float[N,5] y, float[N,4] z) {
    a = Gemm (x, w1[6,8], b1[8])
    r = Relu(a)
    y = Gemm (r, w2[8,5], b2[5])
    c = Gemm (x, w3[6,8], b3[8])
    s = Relu(c)
    z = Gemm (s, w4[8,4], b4[4])
}"""
WITH_LABELS = """(float[N,6] x) => (float[N,5] y, int64[N,1] v, float[N,4] z) {
    a = Gemm (x, w1[6,8], b1[8])
    r = Relu(a)
    y = Gemm (r, w2[8,5], b2[5])
    v = ArgMax <axis=1> (y)
    c = Gemm (x, w3[6,8], b3[8])
    s = Relu(c)
    z = Gemm (s, w4[8,4], b4[4])
}"""


@pytest.mark.parametrize("row", ["residual", "branch_through_a_norm", "transformer"])
def test_a_trial_without_the_whole_branch(row: str, prepared: Lookup):
    """Fails where the curve at no unit is that of another width: the readers' bias is all that is left."""
    p = prepared(row)
    samples = samples_of(p, 96)
    layers, moments = moments_of(p, samples)
    chosen = paths(p.channels, layers, moments, "obs", Choice())
    reference = Answers.of(values(p.normalised.proto, p.channels.graph.outputs, samples.arrays), len(samples))
    gone = set(branches.drops(p.channels))
    found, narrowed = (
        measure(
            trial_network(p, layers, moments),
            samples,
            reference,
            chosen,
            only=gone,
            memory=1 << 40,
            whole=whole,
        )
        for whole in (gone, set[int]())
    )
    for g in gone:
        keep = p.channels.keep_classes({g: np.zeros(p.channels.groups[g].size, bool)})
        fitted = replace_initializers(
            p.normalised.proto, in_place(layers, moments, p.channels.graph.constants, keep, "least-squares")
        )
        outputs = values(cut(fitted, p.channels, keep), p.channels.graph.outputs, samples.arrays)
        assert found[g].pop(0) == pytest.approx(relative_error(outputs, reference.values), rel=RTOL)
        assert found[g] == narrowed[g]


def expected_trials(p: Prepared, count: int, method: str) -> tuple[list[dict[int, float]], list[dict[int, float]]]:
    """(found, expected) output errors."""
    samples = samples_of(p, count)
    layers, moments = moments_of(p, samples)
    chosen = paths(p.channels, layers, moments, method, Choice())
    graph = p.channels.graph
    original = values(p.normalised.proto, graph.outputs, samples.arrays)
    answers = Answers.of(original, count)
    arguments = (trial_network(p, layers, moments), samples, answers, chosen)
    every = set(range(len(p.channels.groups)))
    found = measure(*arguments, only=every, memory=1 << 40)
    again = measure(*arguments, only=every, memory=0)
    for a, b in zip(found, again, strict=True):
        assert a.keys() == b.keys()
        assert_same(np.array([*a.values()]), np.array([*b.values()]), rtol=RTOL, atol=0.0)
    expected: list[dict[int, float]] = []
    for g, consumers in enumerate(consumers_of(p.channels, layers)):
        trials: dict[int, float] = {}
        for width in found[g]:
            keep = p.channels.keep_classes({g: chosen[g].kept(width)})
            weights = in_place(consumers, moments, graph.constants, keep, "least-squares")
            model = masked_model(
                replace_initializers(p.normalised.proto, weights), p.channels, keep, p.normalised.types
            )
            outputs = values(model, graph.outputs, samples.arrays)
            errors = [
                np.sum((outputs[o].astype(float) - y) ** 2) / np.sum((y - y.mean(axis=0, dtype=float)) ** 2)
                for o, y in original.items()
                if np.issubdtype(y.dtype, np.floating)
            ]
            trials[width] = float(np.mean(errors))
        expected.append(trials)
    return found, expected


@pytest.mark.parametrize("name", ROWS)
def test_trials_equal_masking_the_whole_model(name: str, prepared: Lookup) -> None:
    """Fails where a trial runs on the wrong activations, forgets a consumer, or leaks into the next one."""
    p = prepared(name)
    found, expected = expected_trials(p, 100, "obs")
    assert any(found)
    for g, trials in zip(p.channels.groups, found, strict=True):
        assert not trials or sorted(trials) == trial_cuts.trial_widths(g.size, g.step)
        assert all(width % g.step == 0 for width in trials)
    for a, b in zip(found, expected, strict=True):
        assert_same(np.array([*a.values()]), np.array([*b.values()]), rtol=RTOL, atol=0.0)


def test_groups_without_a_consumer_that_can_be_refitted_are_masked_instead(prepared: Lookup) -> None:
    """Fails where a group whose consumers share a kernel looks free to cut."""
    p = prepared("kernel_square")
    samples = samples_of(p, 40)
    layers, moments = moments_of(p, samples)
    consumers = consumers_of(p.channels, layers)
    found = measure(
        trial_network(p, layers, moments),
        samples,
        Answers.of(values(p.normalised.proto, p.channels.graph.outputs, samples.arrays), 40),
        paths(p.channels, layers, moments, "magnitude", Choice()),
        only=set(range(len(consumers))),
        memory=0,
    )
    for g, trials in zip(p.channels.groups, found, strict=True):
        assert len(trials) > 0 or g.size == 1
        assert all(error > 0 for error in trials.values())


def test_relative_error_is_measured_against_the_spread() -> None:
    """Fails where a constant part of the output makes an error look small, or integer outputs count."""
    rng = np.random.default_rng(0)
    y = rng.standard_normal((50, 4)) + 100.0
    z = y + 0.1 * rng.standard_normal(y.shape)
    expected = ((z - y) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum()
    labels = np.arange(50)
    found = relative_error({"y": z, "labels": labels + 1}, {"y": y, "labels": labels})
    assert_same(np.float64(found), np.float64(expected), rtol=1e-12, atol=0.0)
    assert relative_error({"y": y}, {"y": y}) == 0.0
    single = relative_error({"y": z[:1]}, {"y": y[:1]})
    assert_same(np.float64(single), ((z[:1] - y[:1]) ** 2).sum() / (y[:1] ** 2).sum(), rtol=1e-12, atol=0.0)
    assert relative_error({"labels": labels}, {"labels": labels}) == 0.0


@pytest.mark.parametrize("text", [TWO_OUTPUTS, WITH_LABELS])
def test_outputs_out_of_reach_count_as_exact_and_integers_not_at_all(text: str) -> None:
    """Fails where errors of groups do not compare, as the mean is over other outputs for each of them."""
    found, expected = expected_trials(prepare_text(text), 100, "magnitude")
    for a, b in zip(found, expected, strict=True):
        assert len(a) == len(trial_cuts.LEVELS)
        assert_same(np.array([*a.values()]), np.array([*b.values()]), rtol=RTOL, atol=0.0)


def test_trials_look_at_no_more_samples_than_they_may(prepared: Lookup) -> None:
    """Fails where the work of a trial is that of the whole model, of what lies before it, or of one width alone."""
    p = prepared("plain")
    samples = samples_of(p, 100)
    layers, _ = moments_of(p, samples)
    graph = p.channels.graph
    reference = Answers.of(values(p.normalised.proto, graph.outputs, samples.arrays), 100)
    macs = {}
    for x in layers:
        w, y = graph.constants[x.weight], graph.shapes[x.node.outputs[0]]
        macs[x.node.index] = w.size * np.prod(y[2:]) if w.ndim == 4 else w.size
    runs = 0.0
    for g, consumers in zip(p.channels.groups, consumers_of(p.channels, layers), strict=True):
        first = min(x.node.index for x in consumers)
        share = sum(m for i, m in macs.items() if i >= first) / sum(macs.values())
        runs += len(trial_cuts.trial_widths(g.size, g.step)) * share
    every = set(range(len(p.channels.groups)))
    arguments = (p.channels, layers, every, samples, reference)
    for passes, expected in ((runs * 0.25, 25), (runs * 0.013, trial_cuts.LEAST_TRIED), (runs, 100), (9 * runs, 100)):
        some, outputs, levels = trial_cuts.affordable(*arguments, passes * (1 + 1e-9))
        assert len(some) == expected
        # Two levels of the least number of samples cost 8 % of all runs.
        assert levels == (trial_cuts.LEVELS if passes > 0.08 * runs else trial_cuts.FEW_LEVELS)
        for name, y in reference.values.items():
            assert_same(outputs.values[name], y[:expected], rtol=0.0, atol=0.0)
        assert_same(some.slice(0, 3)["x"], samples.slice(0, 3)["x"], rtol=0.0, atol=0.0)


@pytest.mark.parametrize(("only", "passes"), [({0, 1}, 0.15), ({0, 1}, 0.25), ({0}, 0.15), ({0}, 0.2)])
def test_trials_on_the_masked_model_cost_what_lies_behind_the_first_reader(
    only: set[int], passes: float, prepared: Lookup
) -> None:
    """Fails where such trials count for nothing or for whole runs, or groups that are not tried do count."""
    p = prepared("plain")
    samples = samples_of(p, 100)
    layers, _ = moments_of(p, samples)
    y = np.arange(500.0, dtype=np.float32).reshape(100, 5)
    reference = Answers.of({"y": y, "labels": y.argmax(axis=1)}, 100)
    refitted, _, _ = trial_cuts.affordable(p.channels, layers, only, samples, reference, passes)
    some, outputs, _ = trial_cuts.affordable(p.channels, (), only, samples, reference, passes)
    assert trial_cuts.LEAST_TRIED < len(some) == len(refitted) < 100
    assert_same(some.slice(0, 100)["x"], samples.slice(0, len(some))["x"], rtol=0.0, atol=0.0)
    assert outputs.values.keys() == {"y"}
    assert_same(outputs.values["y"], y[: len(some)], rtol=0.0, atol=0.0)
    assert outputs.spreads == (pytest.approx(((y[: len(some)] - y[: len(some)].mean(axis=0)) ** 2).sum()),)


@pytest.mark.parametrize(("count", "only"), [(trial_cuts.LEAST_TRIED, {0, 1}), (5, {0, 1}), (100, set[int]())])
def test_few_samples_or_no_trials_need_no_cut(count: int, only: set[int], prepared: Lookup) -> None:
    """Fails where fewer samples are tried than the least, more than there are, or none where nothing is tried."""
    p = prepared("plain")
    samples = samples_of(p, count)
    reference = Answers.of({"y": np.zeros((count, 5), np.float32)}, count)
    some, outputs, _ = trial_cuts.affordable(p.channels, layers_of(p.channels), only, samples, reference, 1e-6)
    assert some is samples and outputs is reference


def test_an_output_without_an_axis_is_looked_at_whole(prepared: Lookup) -> None:
    """Fails where the length of a number is asked for."""
    p = prepared("plain")
    samples = samples_of(p, 100)
    reference = Answers.of({"loss": np.array(1.0, np.float32), "y": np.zeros((100, 5), np.float32)}, 100)
    some, outputs, _ = trial_cuts.affordable(p.channels, layers_of(p.channels), {0}, samples, reference, 1e-9)
    assert some is samples and outputs is reference


def test_outputs_that_are_not_of_single_samples_are_looked_at_whole(prepared: Lookup) -> None:
    """Fails where rows of such an output are taken for samples."""
    p = prepared("plain")
    samples = samples_of(p, 100)
    layers, _ = moments_of(p, samples)
    reference = Answers.of({"y": np.zeros((7, 3), np.float32)}, 100)
    some, outputs, _ = trial_cuts.affordable(p.channels, layers, {0}, samples, reference, 1e-9)
    assert some is samples and outputs is reference


class Heard(Here):
    """This process, which remembers what it was given to do."""

    def map(self, work: Work[Any, Any], items: Iterable[Any], count: int) -> Iterator[Any]:
        self.work, self.items = work, list(items)
        return super().map(work, self.items, count)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("memory", [0, 1 << 40])
@pytest.mark.parametrize("name", ["residual", "squeeze_excite"])
def test_trials_do_not_depend_on_the_others_nor_on_their_order(
    name: str, memory: int, masked: bool, prepared: Lookup
) -> None:
    """Fails where trials that run at once share a walk, which has then gone on to another group, or a session."""
    p = prepared(name)
    samples = samples_of(p, 70)
    layers, moments = moments_of(p, samples)
    reference = Answers.of(values(p.normalised.proto, p.channels.graph.outputs, samples.arrays), len(samples))
    chosen = paths(p.channels, layers, moments, "obs", Choice())
    every, here = set(range(len(p.channels.groups))), Heard()
    arguments = (trial_network(p, layers, moments), samples, reference, chosen)
    with spill.spilling():
        measured = measure(*arguments, only=every, memory=memory, scheduler=here)
        assert isinstance(here.work, trial_cuts.Trials) and here.work.side_by_side
        assert [i.stop for i in here.items] == [*range(len(here.items))] and len(here.items) > 1
        items = [replace(item, masked=item.masked or masked) for item in here.items]
        alone = [replace(here.work)(item) for item in items]
        one_by_one, backwards = replace(here.work), replace(here.work)
        assert [one_by_one(item) for item in items] == alone
        assert [backwards(item) for item in reversed(items)] == alone[::-1]
        for threads in (1, 3):
            with limited(threads):
                assert [*Here().map(replace(here.work), iter(items), len(items))] == alone
    for item, errors in zip(items, alone, strict=True):
        assert len(errors) == len(item.widths) == 2
        assert errors == pytest.approx(measured[item.group], rel=RTOL)


def test_only_the_groups_asked_for_have_trials(prepared: Lookup) -> None:
    """Fails where the others are measured too, or what one group finds depends on the others."""
    p = prepared("residual")
    samples = samples_of(p, 100)
    layers, moments = moments_of(p, samples)
    reference = Answers.of(values(p.normalised.proto, p.channels.graph.outputs, samples.arrays), len(samples))
    chosen = paths(p.channels, layers, moments, "obs", Choice())
    arguments = (trial_network(p, layers, moments), samples, reference, chosen)
    both, last = (measure(*arguments, only=only, memory=1 << 40) for only in ({0, 1}, {1}))
    assert last[0] == {}
    assert_same(np.array([*last[1].values()]), np.array([*both[1].values()]), rtol=RTOL, atol=0.0)


def test_one_output_off_by_a_hundredth_is_seen(prepared: Lookup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation check: trials whose refitted weights are 1 % off fail the comparison above."""
    p = prepared("plain")

    def nudged(*arguments: object) -> dict[str, np.ndarray]:
        return {k: v * 1.01 for k, v in in_place(*arguments).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(trial_cuts, "in_place", nudged)
    found, expected = expected_trials(p, 100, "obs")
    with pytest.raises(AssertionError, match="times the bound"):
        for a, b in zip(found, expected, strict=True):
            assert_same(np.array([*a.values()]), np.array([*b.values()]), rtol=RTOL, atol=0.0)
