"""What is said of two models' outputs, and what it means."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxprune.errors import CheckFailed
from onnxprune.measures.answers import Answers, parts_in
from onnxprune.measures.figures import DIFFER, ERROR, NOT_MEASURED, Figure, Figures, figures_of, interval_of, percent
from onnxprune.measures.observed import Observed, Whole
from onnxprune.measures.verdict import BAD, DOUBTFUL, GOOD, UNKNOWN, demand, verdict_of
from onnxprune.numerics.arrays import Array

N = 100


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def told(observed: Observed, y0: dict[str, Array], y: dict[str, Array], *, held_out: bool = True) -> Figures:
    parts = parts_in([(w.tensors, w.outputs, w.columns) for w in observed.wholes], y0)
    return figures_of(observed, Answers.of(y0, N, parts), y, held_out=held_out)


SCORES = Observed(("y",), (Whole(("y",), ("y",)),))
LABELS = Observed(
    ("o",), (Whole(("y",), ("o",)),), ranked=frozenset({"o"}), choices=frozenset({"o"})
)  # o is the best class by y


def test_class_scores():
    y0, y = {"y": normal(N, 5)}, {"y": normal(N, 5) + 0.3 * normal(N, 5, seed=1)}
    found = told(SCORES, y0, y)
    assert [(f.kind, f.name) for f in found.each] == [(ERROR, "y")]
    assert found.error == found.each[0].value == pytest.approx(0.09, rel=0.2)
    assert found.agreement == np.mean(y["y"].argmax(axis=1) == y0["y"].argmax(axis=1))
    assert found.interval is not None
    assert found.interval[0] < found.error < found.interval[1]
    assert told(SCORES, y0, y, held_out=False).interval is None
    json.dumps(found.as_dicts())


def test_labels_that_change_are_counted():
    """Fails where a class map of which 41 of 100 entries change is said to differ by nothing, or not told at all."""
    y0 = {"y": normal(N, 5), "o": np.zeros(N, np.int64)}
    y = {"y": y0["y"] * 1.01, "o": (np.arange(N) < 41).astype(np.int64)}
    found = told(LABELS, y0, y)
    assert [(f.kind, f.name, f.value) for f in found.each if f.kind == DIFFER] == [(DIFFER, "o", 0.41)]
    assert found.agreement == 0.59
    assert found.error == pytest.approx(1e-4, rel=0.1)
    assert verdict_of(found).level == DOUBTFUL
    assert "41.0% of the entries differ (o)" in verdict_of(found).text
    with pytest.raises(CheckFailed, match=r"41\.0% of the entries differ \(o\)"):
        demand(found, 0.2)
    demand(found, 0.41)


def test_rounded_numbers_do_not_count_as_wrong():
    """Fails where an image whose every entry is off by one of 256 levels is called bad."""
    image = replace(LABELS, choices=frozenset())
    y0 = {"y": normal(N, 5), "o": np.zeros((N, 5), np.uint8)}
    y = {"y": y0["y"] * 1.001, "o": np.ones((N, 5), np.uint8)}
    found = told(image, y0, y)
    assert [f.value for f in found.each if f.kind == DIFFER] == [1.0]
    assert found.agreement is None
    assert verdict_of(found).level == GOOD
    demand(found, 0.01)


def test_boolean_and_text_outputs():
    only = Observed(("o",), (), missing=frozenset({"o"}))
    for kind in (np.bool_, np.str_):
        y0 = {"o": np.zeros((N, 2)).astype(kind)}
        y = {"o": (np.arange(2 * N).reshape(N, 2) < 50).astype(int).astype(kind)}
        y["o"] = np.where(np.arange(2 * N).reshape(N, 2) < 50, np.array(1).astype(kind), y0["o"])
        found = told(only, y0, y)
        assert (found.error, found.each[0].value) == (None, 0.25)
        assert verdict_of(found).level == DOUBTFUL


@pytest.mark.parametrize(
    ("observed", "y", "why"),
    [
        (replace(LABELS, sized_by_values=frozenset({"o"})), {"o": np.zeros(7, np.int64)}, "size depends"),
        (replace(LABELS, random=frozenset({"o"})), {"o": np.zeros(N, np.int64)}, "random"),
        (LABELS, {}, "no tensor"),
        (LABELS, {"o": np.zeros((N, 1), np.int64)}, "shape"),
    ],
)
def test_outputs_that_cannot_be_compared(observed: Observed, y: dict[str, Array], why: str):
    y0 = {"y": normal(N, 5), "o": np.zeros(N, np.int64)}
    found = told(observed, y0, {"y": y0["y"] * 1.1} | y)
    figure = next(f for f in found.each if f.outputs == ("o",) and f.kind == NOT_MEASURED)
    assert figure.value is None
    assert why in figure.why
    assert found.error == pytest.approx(0.01, rel=0.1)


def test_what_cannot_be_measured_is_not_zero():
    """Fails where NaN, or no number at all, becomes a figure or passes a limit."""
    y0 = {"y": normal(N, 5)}
    y0["y"][0, 0] = np.nan
    found = told(SCORES, y0, {"y": y0["y"] + 1.0})
    assert found.error is None
    assert "not finite" in found.why
    assert verdict_of(found).level == UNKNOWN
    with pytest.raises(CheckFailed, match="not measured"):
        demand(found, 10.0)
    broken = normal(N, 5)
    broken[2, 2] = np.inf
    found = told(SCORES, {"y": normal(N, 5)}, {"y": broken})
    assert found.error is None
    assert verdict_of(found).level == UNKNOWN
    with pytest.raises(CheckFailed, match="not finite"):
        demand(found, 10.0)


def test_an_output_that_does_not_vary():
    """Fails where it gets a percentage of its rounding, or where it may change unseen."""
    two = Observed(("y", "c"), (Whole(("y",), ("y",)), Whole(("c",), ("c",))))
    y0 = {"y": normal(N, 5), "c": np.full((N, 2), 7.0, np.float32)}
    same = told(two, y0, y0 | {"y": y0["y"] * 1.1})
    assert same.error == pytest.approx(0.01, rel=0.1)
    demand(same, 0.02)
    assert verdict_of(same).level == GOOD
    changed = told(two, y0, {"y": y0["y"] * 1.1, "c": np.full((N, 2), 8.0, np.float32)})
    assert verdict_of(changed).level == DOUBTFUL
    with pytest.raises(CheckFailed, match="c: it does not vary over the samples, and it is not the original's"):
        demand(changed, 0.02)


def test_the_worst_part_decides():
    """Fails where one part hides behind the mean."""
    parts = Observed(("o",), (Whole(("a", "b"), ("o",)),))
    y0 = {"a": 1e3 * normal(N, 40), "b": normal(N, 2, seed=1)}
    y = {"a": 1.001 * y0["a"], "b": normal(N, 2, seed=2)}
    found = told(parts, y0, y)
    assert found.worst is not None
    assert (found.worst.name, found.worst.at) == ("o at b", "b")
    assert verdict_of(found).level == BAD
    assert "b" in verdict_of(found).text
    with pytest.raises(CheckFailed, match=r"error of .*\(o at b\)"):
        demand(found, 0.5)


@pytest.mark.parametrize(
    ("error", "agreement", "changes", "level"),
    [
        (0.05, 0.97, {}, GOOD),
        (0.199, None, {}, GOOD),
        (0.2, 0.97, {}, DOUBTFUL),
        (0.05, 0.9, {}, GOOD),
        (0.05, 0.899, {}, DOUBTFUL),
        (0.5, 0.97, {}, BAD),
        (0.05, 0.49, {}, BAD),
        (0.05, 0.97, {"held_out": False}, DOUBTFUL),
        (0.05, 0.97, {"synthetic": True}, DOUBTFUL),
        (0.05, 0.97, {"samples": 1}, DOUBTFUL),
    ],
)
def test_levels(error: float, agreement: float | None, changes: dict[str, Any], level: str):
    figure = Figure(("y",), "", ERROR, error, (error / 1.1, error))
    found = Figures(error, figure.interval, "", agreement, (figure,), **({"samples": 64, "held_out": True} | changes))
    assert verdict_of(found).level == level
    assert verdict_of(found).text.startswith(f"{level}: ")


def test_few_samples_are_doubtful():
    """Fails where 0.6 % on twelve samples, that may as well be 30 %, is called good."""
    figure = Figure(("y",), "", ERROR, 0.006, (0.0001, 0.3))
    found = Figures(0.006, figure.interval, "", None, (figure,), 12, held_out=True)
    assert verdict_of(found).level == DOUBTFUL
    assert "12 samples" in verdict_of(found).text
    assert "30%" in verdict_of(found).text


# intervals


def test_a_single_sample_tells_no_error():
    """Fails where an error is told relative to squares: 0.02 % of numbers around 300 that are 85 % wrong."""
    y0, y = {"y": normal(1, 6) + 300}, {"y": normal(1, 6, seed=1) + 300}
    for samples, kind in ((1, NOT_MEASURED), (2, ERROR)):
        values, others = ({"y": np.tile(v["y"], (samples, 1)) + normal(samples, 6, seed=2)} for v in (y0, y))
        found = figures_of(SCORES, Answers.of(values, samples), others, held_out=True)
        assert [f.kind for f in found.each] == [kind]
    alone = figures_of(SCORES, Answers.of(y0, 1), y, held_out=True)
    assert alone.error is None
    assert verdict_of(alone).level == UNKNOWN
    with pytest.raises(CheckFailed, match="single sample"):
        demand(alone, 0.01)
    same = Figures(None, None, "", None, (Figure(("o",), "", DIFFER, 0.0),), 1, held_out=True)
    with pytest.raises(CheckFailed, match="one sample"):
        demand(same, 0.01)
    demand(replace(same, samples=2), 0.01)


@pytest.mark.parametrize("kind", ["scores", "probabilities", "logarithms", "half", "normalised"])
@pytest.mark.parametrize("labelled", [False, True])
def test_classes_decide_where_there_may_be_some(kind: str, labelled: bool):
    """Fails where a model that gives every fourth sample another class is called good for its small error, or a vector
    of length 1, which is no scores, doubtful."""
    y0, noise = normal(N, 64), 0.2 * normal(N, 64, seed=1)
    p0, p = (np.exp(v) / np.exp(v).sum(axis=1, keepdims=True) for v in (y0 / 9, (y0 + noise) / 9))
    n0, n = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (y0, y0 + noise))
    before, after = {
        "scores": (y0, y0 + noise),
        "probabilities": (p0, p),
        "logarithms": (np.log(p0), np.log(p)),
        "half": (p0.astype(np.float16), p.astype(np.float16)),
        "normalised": (n0.astype(np.float16), n),
    }[kind]
    found = figures_of(SCORES, Answers.of({"y": before}, N), {"y": after}, held_out=True, labelled=labelled)
    assert found.error is not None
    assert found.error < 0.05
    assert found.agreement is not None
    assert 0.5 < found.agreement < 0.8
    surely = True if labelled else {"scores": None, "normalised": False}.get(kind, True)
    assert found.classes is surely
    assert verdict_of(found).level == (GOOD if surely is False else DOUBTFUL)
    assert (f"only {found.agreement:.1%} keep their class" in verdict_of(found).text) == (surely is not False)
    assert ("if the largest entry is one" in verdict_of(found).text) == (surely is None)


@pytest.mark.parametrize(
    ("error", "agreement", "classes", "level", "told"),
    [
        (0.05, 0.81, None, DOUBTFUL, ["81.0%"]),
        (0.05, 0.4, None, DOUBTFUL, ["40.0%"]),
        (0.05, 0.4, True, BAD, ["40.0%"]),
        (0.05, 0.4, False, GOOD, ["5.0%"]),
        (0.3, 0.81, True, DOUBTFUL, ["30.0%", "81.0%"]),
        (0.3, 0.4, True, BAD, ["40.0%"]),
        (0.6, 0.81, True, BAD, ["60.0%"]),
        (0.6, 0.4, True, BAD, ["60.0%", "40.0%"]),
        (0.05, 0.9, True, GOOD, ["5.0%"]),
    ],
)
def test_the_worse_of_error_and_agreement_decides(
    error: float, agreement: float, classes: bool | None, level: str, told: list[str]
):
    figure = Figure(("y",), "", ERROR, error, (error / 1.1, error))
    found = verdict_of(Figures(error, None, "", agreement, (figure,), 64, held_out=True, classes=classes))
    assert found.level == level
    assert [f"{x:.1%}" for x in (error, agreement) if f"{x:.1%}" in found.text] == told


@pytest.mark.parametrize(("error", "level"), [(0.3, DOUBTFUL), (0.6, BAD)])
def test_advice_names_what_was_asked_for(error: float, level: str):
    """Fails where --ratio is to be lowered by someone who gave none."""
    found = Figures(error, None, "", None, (Figure(("y",), "", ERROR, error),), 64, held_out=True)
    for option in ("--ratio", "--uniform", "--tolerance"):
        assert f"lower {option}, " in verdict_of(found, option).text
    assert verdict_of(found).text == f"{level}: an error of {error:.1%}"


def test_an_output_without_entries_is_the_same():
    """Fails where nothing at all makes the rest doubtful, and a limit cannot be met."""
    wholes = (Whole(("y",), ("y",)), Whole(("e",), ("e",)))
    y0 = {"y": normal(N, 5), "e": np.zeros((N, 0), np.float32)}
    found = told(Observed(("y", "e"), wholes), y0, y0)
    assert verdict_of(found).level == GOOD
    assert [f.why for f in found.each] == ["", "it has no entries"]
    demand(found, 0.0)
    other = told(Observed(("y", "e"), wholes), y0, y0 | {"e": np.zeros((N, 1), np.float32)})
    assert verdict_of(other).level == DOUBTFUL
    labels = Observed(("y", "n"), wholes[:1], missing=frozenset({"n"}))
    whole = y0 | {"n": np.zeros((N, 0), np.int64)}
    assert verdict_of(told(labels, whole, whole)).level == GOOD


def test_intervals_hold_the_truth():
    """Of twelve samples whose errors differ by factors, the interval holds the true error in 19 of 20 cases."""
    rng = np.random.default_rng(0)
    truth = np.exp(0.5)  # of a log-normal
    hits = 0
    for _ in range(1000):
        errors, spreads = rng.lognormal(0.0, 1.0, 12), rng.uniform(0.8, 1.2, 12)
        low, high = interval_of([(errors, spreads)], [1.0]) or (0.0, 0.0)
        hits += low <= truth <= high
    assert 0.92 <= hits / 1000 <= 0.97  # the jackknife alone: 0.87


def test_intervals_shrink_and_need_samples():
    rng = np.random.default_rng(0)
    widths = []
    for count in (12, 200):
        low, high = interval_of([(rng.lognormal(0, 1, count), np.ones(count))], [1.0]) or (1.0, 0.0)
        widths.append(high / low)
    assert widths[1] < widths[0] / 2
    assert interval_of([(np.ones(1), np.ones(1))], [1.0]) is None
    assert interval_of([(np.zeros(9), np.ones(9))], [1.0]) is None
    assert interval_of([(np.ones(9), np.ones(9)), None], [0.5, 0.5]) is None
    low, high = interval_of([(np.full(9, 0.5), np.ones(9)), (np.full(9, 0.1), np.ones(9))], [0.5, 0.5]) or (0.0, 0.0)
    assert low == pytest.approx(0.3) == high


def test_boxes_and_scores_have_no_class():
    """Fails where the largest of four boxes and three scores passes for the class of a sample."""
    y0 = {"y": normal(N, 7) * np.where(np.arange(7) < 4, 100, 1).astype(np.float32)}
    found = told(SCORES, y0, {"y": y0["y"] * 1.1})
    assert [f.name for f in found.each] == ["y at channels 0 to 3 of axis 1", "y at channels 4 to 6 of axis 1"]
    assert found.agreement is None
    assert told(SCORES, {"y": np.ones((N, 3), np.float32)}, {"y": np.ones((N, 3), np.float32)}).agreement is None


def test_labels_in_floating_point_are_counted():
    """Fails where labels behind a Cast to float are told by nothing."""
    y0 = {"y": normal(N, 5), "o": np.zeros(N, np.float32)}
    y = {"y": y0["y"] * 1.01, "o": (np.arange(N) < 41).astype(np.float32)}
    found = told(LABELS, y0, y)
    assert [f.value for f in found.each if f.kind == DIFFER] == [0.41]
    assert found.agreement == 0.59
    y0["o"] += 0.5  # no label
    assert not [f for f in told(LABELS, y0, y).each if f.kind == DIFFER]
    assert told(LABELS, y0, y).agreement is None


def test_one_hot_classes_agree_by_sample():
    """Fails where two entries of eighteen say that nearly all keep their class."""
    y0 = {"y": normal(N, 18), "o": np.eye(18, dtype=np.float32)[np.zeros(N, int)]}
    y = {"y": y0["y"] * 1.01, "o": np.eye(18, dtype=np.float32)[(np.arange(N) < 41).astype(int)]}
    assert told(replace(LABELS, choices=frozenset()), y0, y).agreement == 0.59


def test_an_original_without_classes_agrees_on_nothing():
    """Fails where an original that is NaN everywhere "agrees" on 0 %, or is called bad for it."""
    y0, y = {"y": normal(N, 5)}, {"y": normal(N, 5)}
    y0["y"][:25] = np.nan
    assert told(SCORES, y0, y).agreement == 0.75
    y0["y"][:] = np.nan
    found = told(SCORES, y0, y)
    assert found.agreement is None
    assert verdict_of(found).level == UNKNOWN


def test_shares_that_say_nothing_are_not_spelled_out():
    assert [percent(x) for x in (0.1234, 99.0, 1e35)] == ["12.34%", "9900.00%", "more than 10000%"]
    assert [percent(x) for x in (0.0, 2e-5, 1.0, 0.99999)] == ["0.00%", "0.002%", "100.00%", "99.999%"]


@pytest.mark.parametrize("shape", [(0,), (0, 3), (0, 0), (N, 0)])
def test_what_a_model_has_emptied_says_nothing_and_ends_nothing(shape: tuple[int, ...]):
    """Fails where an output without rows ends the run as a defect, or counts as agreement."""
    y0 = {"y": np.zeros(shape, np.float32)}
    found = told(SCORES, y0, y0)
    assert found.agreement is None
    assert found.worst is None or found.worst.value is None
