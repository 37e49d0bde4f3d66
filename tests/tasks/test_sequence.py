"""Tokens and perplexity, against scipy and counts by hand; what is masked does not count."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from onnxprune.errors import CalibrationError, UsageError
from onnxprune.numerics.arrays import Array
from onnxprune.tasks.known import BY_NAME
from tests.tasks.scores import answered, scored

RANDOM = np.random.default_rng(0)
Y0 = RANDOM.standard_normal((4, 7, 11)).astype(np.float32)
Y = (Y0 + 0.5 * RANDOM.standard_normal(Y0.shape)).astype(np.float32)
IDS = RANDOM.integers(0, 11, (4, 7))
MASK = (np.arange(7) < np.array([[7], [3], [1], [0]])).astype(np.int64)


def perplexity(y: Array, truth: Array, keep: Array) -> float:
    p = np.take_along_axis(log_softmax(y.astype(np.float64), axis=-1), truth[..., None], axis=-1)[..., 0]
    return float(np.exp(-p[keep].mean()))


def test_labels():
    labels = np.where(MASK > 0, IDS, -100)
    found = scored("sequence", Y, Y0, labels)
    keep = MASK > 0
    assert found["perplexity"].value == pytest.approx(perplexity(Y, IDS, keep), rel=1e-9)
    assert found["perplexity"].original == pytest.approx(perplexity(Y0, IDS, keep), rel=1e-9)
    ratio = perplexity(Y, IDS, keep) / perplexity(Y0, IDS, keep)
    assert found["perplexity-ratio"].value == pytest.approx(ratio, rel=1e-9)
    assert found["token-accuracy"].value == np.mean(Y.argmax(axis=2)[keep] == IDS[keep])


def test_a_mask_among_the_inputs():
    found = scored("sequence", Y, Y0, IDS, inputs={"attention_mask": MASK, "input_ids": IDS})
    keep = MASK > 0
    same = Y.argmax(axis=2) == Y0.argmax(axis=2)
    assert found["token-agreement"].value == same[keep].mean()
    assert found["sequence-agreement"].value == np.mean([same[i][keep[i]].all() for i in range(3)])
    assert found["perplexity"].value == pytest.approx(perplexity(Y, IDS, keep), rel=1e-9)


def test_the_next_token_of_the_input():
    inputs = {"attention_mask": MASK, "input_ids": IDS}
    found = scored("sequence", Y, Y0, inputs=inputs, causal=lambda: True)
    truth, keep = np.roll(IDS, -1, axis=1), np.zeros((4, 7), bool)
    keep[:, :-1] = (MASK[:, 1:] > 0) & (MASK[:, :-1] > 0)
    assert keep.sum() == 8
    assert found["perplexity"].value == pytest.approx(perplexity(Y, truth, keep), rel=1e-9)
    ahead = scored("sequence", Y, Y0, inputs=inputs)["perplexity"]
    assert (ahead.value, ahead.why) == (None, "the model reads what comes behind a position: give labels")
    assert "perplexity" not in scored("sequence", Y, Y0, inputs={"input_ids": IDS + 1}, causal=lambda: True)


@pytest.mark.parametrize("form", ["probabilities", "logarithms"])
def test_probabilities_and_their_logarithms(form: str):
    log = log_softmax(Y.astype(np.float64), axis=-1)
    y = np.exp(log) if form == "probabilities" else log
    assert scored("sequence", y, None, IDS)["perplexity"].value == pytest.approx(
        perplexity(Y, IDS, np.ones((4, 7), bool)), rel=1e-6
    )


def test_a_true_token_without_probability():
    y = np.eye(11)[IDS]
    assert scored("sequence", y, None, IDS)["perplexity"].value == pytest.approx(1.0, rel=1e-9)
    found = scored("sequence", y, None, (IDS + 1) % 11)
    assert found["perplexity"].value is None
    assert found["token-accuracy"].value == 0.0


def test_nan_agrees_with_nothing():
    y = Y0.copy()
    y[0, 0, 0] = np.nan
    found = scored("sequence", y, y, IDS)
    assert found["token-agreement"].value == 27 / 28
    assert found["perplexity"].value is None


def test_tokens_themselves_and_padding():
    tokens = Y.argmax(axis=2), Y0.argmax(axis=2)
    found = scored("sequence", *tokens)
    assert found["token-agreement"].value == np.mean(tokens[0] == tokens[1])
    y, y0 = Y.copy(), Y0.copy()
    for v in (y, y0):
        v[1, 3:] = np.inf  # samples of several lengths, filled up
    keep = np.ones((4, 7), bool)
    keep[1, 3:] = False
    assert scored("sequence", y, y0)["token-agreement"].value == (tokens[0] == tokens[1])[keep].mean()
    assert scored("sequence", Y[:1], Y[:1])["sequence-agreement"].value == 1.0


def test_nothing_counts():
    found = scored("sequence", Y, Y0, np.full_like(IDS, -100), inputs={"attention_mask": 0 * MASK})
    assert {s.value for s in found.values()} == {None}


@pytest.mark.parametrize(
    ("labels", "match"),
    [(IDS[:, 1:], "integers of shape"), (IDS.astype(np.float32), "integers of"), (IDS + 1, "labels reach 11")],
)
def test_labels_that_do_not_fit(labels: Array, match: str):
    with pytest.raises(CalibrationError, match=match):
        scored("sequence", Y, None, labels)


def test_no_tokens():
    with pytest.raises(UsageError, match="holds no tokens"):
        scored("sequence", Y[:, 0], Y0[:, 0])


def test_what_looks_like_it():
    likely = BY_NAME["sequence"].likely
    assert likely(answered(Y, inputs={"input_ids": IDS, "attention_mask": MASK}))
    assert not likely(answered(Y, inputs={"input_ids": IDS + 1}))  # a vector for each token, of no vocabulary
    assert not likely(answered(Y, inputs={"attention_mask": MASK}))
    assert not likely(answered(Y))
