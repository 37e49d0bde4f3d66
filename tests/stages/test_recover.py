"""What recovery learns from, beside the samples as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune import PruneConfig
from onnxprune.stages.load import load
from onnxprune.stages.recover import augment_of
from tests.test_keep_tokens import LISTED, data
from tests.vocabularies import TOKENS, model


@pytest.mark.parametrize(
    ("options", "ids"), [({}, range(TOKENS)), ({"keep_tokens": LISTED}, sorted(LISTED))], ids=["all", "listed"]
)
def test_texts_are_taught_with_tokens_that_they_do_not_hold(options: dict[str, Any], ids: range):
    """Fails where recovery sees the tokens of the samples alone, or some that the model has no row for any more."""
    given = {"input_ids": data(3000)["input_ids"][:, :3] % 8}
    loaded = load(model(head="tied"), given, PruneConfig(ratio=0.3, **options))
    fed = augment_of(loaded)(loaded.fit.slice(0, len(loaded.fit)), np.random.default_rng(0))
    assert set(np.unique(fed["input_ids"])) == set(ids)


def test_a_model_without_a_vocabulary_has_none_exchanged():
    """Fails where integers that pick no rows of a table are taken for tokens."""
    loaded = load("models/digits_mobilenet.onnx", "models/digits_calib.npz", PruneConfig(ratio=0.3))
    before = loaded.fit.slice(0, 8)
    fed = augment_of(loaded)(before, np.random.default_rng(0))
    assert {k: (v.shape, v.dtype) for k, v in fed.items()} == {k: (v.shape, v.dtype) for k, v in before.items()}
