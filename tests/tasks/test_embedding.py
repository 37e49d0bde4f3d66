"""Neighbours, against scikit-learn, and on ties, zeros and NaN by hand."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import CalibrationError, UsageError
from onnxprune.tasks import embedding
from onnxprune.tasks.known import BY_NAME
from tests.tasks.scores import answered, scored

RANDOM = np.random.default_rng(0)
V0 = RANDOM.standard_normal((300, 16)).astype(np.float32)
V = (V0 + 0.4 * RANDOM.standard_normal(V0.shape)).astype(np.float32)


def test_against_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors", reason="scikit-learn is not installed")
    near = [
        neighbors.NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(v).kneighbors(None)[1]
        for v in (V, V0)
    ]
    found = scored("embedding", V, V0, RANDOM.integers(0, 3, 300))
    kept = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*near, strict=True)])
    assert found["neighbours"].value == pytest.approx(kept, abs=1e-12)
    assert 0.2 < kept < 0.9
    assert found["nearest"].value == np.mean(near[0][:, 0] == near[1][:, 0])
    labels = np.random.default_rng(1).integers(0, 3, 300)
    recall = scored("embedding", V, V0, labels)["recall-1"]
    assert recall.value == np.mean(labels[near[0][:, 0]] == labels)
    assert recall.original == np.mean(labels[near[1][:, 0]] == labels)
    cosines = (V * V0).sum(axis=1) / np.linalg.norm(V, axis=1) / np.linalg.norm(V0, axis=1)
    assert found["embedding-cosine"].value == pytest.approx(cosines.mean(), abs=1e-6)


def test_turned_and_scaled_vectors_have_the_same_neighbours():
    turn, _ = np.linalg.qr(RANDOM.standard_normal((16, 16)))
    found = scored("embedding", 7.0 * V0 @ turn, V0.astype(np.float64))
    assert (found["neighbours"].value, found["nearest"].value) == (1.0, 1.0)


def test_ties_are_as_near_as_each_other():
    """Fails where which of ten equal vectors is listed first decides."""
    v = np.repeat(np.eye(4), 12, axis=0)
    order = RANDOM.permutation(48)
    assert scored("embedding", v, v)["neighbours"].value == 1.0
    assert scored("embedding", v[order], v[order])["nearest"].value == 1.0


def test_nan_and_zeros():
    v = V0.copy()
    v[:30] = np.nan
    found = scored("embedding", v, V0, np.zeros(300, np.int64))
    assert found["neighbours"].value is not None
    assert found["neighbours"].value <= 0.9  # a tenth of the samples keep none
    assert found["recall-1"].value == 0.9
    assert found["embedding-cosine"].why == "it is not finite"
    nowhere = scored("embedding", np.zeros_like(V0), V0)["neighbours"].value
    assert nowhere == 1.0  # all are as near as each other: the cosine tells
    assert scored("embedding", np.zeros_like(V0), V0)["embedding-cosine"].value == 0.0


def test_few_samples():
    assert "of 4 samples nearly all are neighbours" in scored("embedding", V[:4], V0[:4])["neighbours"].why
    assert "of the 2 nearest" in scored("embedding", V[:9], V0[:9])["neighbours"].about
    one = scored("embedding", V[:1], V0[:1], np.array([0]))
    assert one["recall-1"].value is None


def test_among_many_some_are_asked(monkeypatch: pytest.MonkeyPatch):
    whole = scored("embedding", V, V0)["neighbours"].value
    monkeypatch.setattr(embedding, "_MOST", 100)
    some = scored("embedding", V, V0)["neighbours"].value
    assert some == pytest.approx(whole, abs=0.05)


def test_padding_is_no_part_of_a_sentence():
    """Fails where what stands behind a sentence moves its vector."""
    y0 = RANDOM.standard_normal((40, 6, 8))
    mask = (np.arange(6) < RANDOM.integers(1, 7, (40, 1))).astype(np.int64)
    y = np.where(mask[..., None] > 0, y0, RANDOM.standard_normal(y0.shape))
    ids = np.ones((40, 6), np.int64)
    inputs = {"input_ids": ids, "attention_mask": mask}
    assert scored("embedding", y, y0, inputs=inputs)["nearest"].value == 1.0
    assert scored("embedding", y, y0, inputs={"input_ids": ids})["nearest"].value < 1.0
    pooled = embedding.vectors(y0, answered(y0, inputs=inputs))
    assert pooled[0] == pytest.approx(y0[0][mask[0] > 0].mean(axis=0), abs=1e-12)


def test_what_does_not_fit():
    with pytest.raises(CalibrationError, match="an integer for each sample"):
        scored("embedding", V, V0, np.zeros((300, 2)))
    with pytest.raises(UsageError, match="holds no vector"):
        scored("embedding", V.argmax(axis=1), V0.argmax(axis=1))


def test_what_looks_like_it():
    likely = BY_NAME["embedding"].likely
    assert not likely(answered(V))
    assert likely(answered(V / np.linalg.norm(V, axis=1, keepdims=True)))
    a = answered(V)
    assert likely(type(a)({"sentence_embedding": V}, 300))
