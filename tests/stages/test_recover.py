"""What recovery learns from, beside the samples as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune import PruneConfig, prune
from onnxprune.stages.load import load
from onnxprune.stages.recover import augment_of
from tests.test_keep_tokens import LISTED, data
from tests.topologies.text import Topology
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


# Rows of a table that holds the ids of the data alone, and numbers that are none where no id is below that.
_OTHERS = (
    "s = Gather(small[12,8], ids)",
    """t = Constant <value = int64[1] {12}> ()
    l = Less(ids, t)
    f = Cast <to=1> (l)
    c = ReduceSum <keepdims=1> (f, last)
    o = Div(c, c)
    s = Unsqueeze(o, last)""",
)


@pytest.mark.parametrize("other", _OTHERS, ids=["smaller table", "not a number"])
def test_a_model_that_takes_not_all_tokens_recovers_without_others(other: str):
    """Fails where what stands in for tokens ends recovery: the texts as they are teach enough."""
    text = f"""(int64[N,3] ids) => (float[N,3,5] y) {{
    last = Constant <value = int64[1] {{-1}}> ()
    e = Gather(large[400,8], ids)
    {other}
    x = Add(e, s)
    a = MatMul(x, w1[8,24])
    b = Relu(a)
    d = MatMul(b, w2[24,24])
    h = Relu(d)
    y = MatMul(h, w3[24,5])
}}"""
    given = {"ids": np.random.default_rng(0).integers(0, 12, (160, 3))}
    options = {"ratio": 0.4, "round_to": 1, "recover": 3}
    report = prune(Topology(text, ()).model(), None, given, **options).report
    assert not [n for n in report.notes if n.startswith("recovery stopped")]
