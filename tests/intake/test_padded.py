"""Padding in front of attention that reads lengths: what goes wrong is told where padding is what does it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxprune import prune
from onnxprune.errors import CalibrationError
from onnxprune.evaluation import evaluate
from onnxprune.intake.padded import cause, counted
from onnxprune.runtime.session import Session
from tests.compare import assert_same
from tests.decoder import decoder, empty, prompts

Array = NDArray[Any]
OPTIONS: dict[str, Any] = {"ratio": 0.2, "refit": "none", "method": "magnitude", "round_to": 1, "dry_run": True}


def masked(count: int, where: slice | int, every: int = 2) -> dict[str, Array]:
    """Prompts of which every other one has zeros somewhere in its mask."""
    data = prompts(count, 6)
    data["attention_mask"][::every, where] = 0
    return data


def test_padding_in_front_is_read_as_text():
    """What the warning says: tokens behind padding give other numbers, those in front of it the same."""
    session, ids = Session(decoder()), prompts(1, 4)["input_ids"]
    nothing, zeros = empty(1), np.zeros((1, 2), np.int64)
    ones = np.ones((1, 4), np.int64)
    alone = session.run({"input_ids": ids, "attention_mask": ones, **nothing})["logits"]
    behind = {"input_ids": np.hstack([ids, zeros]), "attention_mask": np.hstack([ones, zeros])}
    before = {"input_ids": np.hstack([zeros, ids]), "attention_mask": np.hstack([zeros, ones])}
    assert_same(session.run({**behind, **nothing})["logits"][:, :4], alone, rtol=1e-4, atol=1e-5)
    assert np.abs(session.run({**before, **nothing})["logits"][:, 2:] - alone).max() > 0.1


@pytest.mark.parametrize(("where", "warned"), [(slice(0, 2), 1), (slice(4, 6), 0)])
def test_padding_in_front_is_a_warning(where: slice, warned: int):
    """Fails where a sample of which the last tokens are not read is taken without a word, or any padding is doubted."""
    told = "'attention_mask' begins with zeros in 8 of 16 samples: GroupQueryAttention takes its sum as the length, and"
    data = masked(16, where)
    report = prune(decoder(), None, data, **OPTIONS).report
    assert [told in w for w in report.warnings if "begins with" in w] == [True] * warned
    notes = evaluate(decoder(), data, against=decoder()).notes
    assert [told in note for note in notes if "begins with" in note] == [True] * warned


def test_a_sample_of_padding_alone():
    data = prompts(16, 6)
    data["attention_mask"][9] = 0
    with pytest.raises(CalibrationError, match=r"sample 10 of .* does not run: its 'attention_mask' is 0 throughout"):
        prune(decoder(), None, data, **OPTIONS)


@pytest.mark.parametrize("where", [slice(0, 2), slice(4, 6)])
def test_caches_of_a_window_take_no_padding(where: slice):
    with pytest.raises(CalibrationError, match=r"takes no padding for the caches of a window: give samples as long as"):
        prune(decoder(window=8), None, masked(16, where), **OPTIONS)


def test_steps_of_a_sequence_that_is_padded_on_the_left():
    """Fails where zeros as first states are blamed."""
    ids = prompts(4, 6)["input_ids"]

    def steps(first: int) -> Iterator[dict[str, Array]]:
        mask = np.ones((4, 6), np.int64)
        mask[::2, :2] = 0
        for t in range(first, 6):
            yield {"input_ids": ids[:, t : t + 1], "attention_mask": mask[:, : t + 1]}

    given = {**OPTIONS, "state": ("present.*=past_key_values.*",)}
    with pytest.raises(
        CalibrationError, match=r"the first step of a sequence does not run: .*start at their first token"
    ):
        prune(decoder(), None, lambda: steps(0), **given)


def test_what_padding_does_not_do_is_not_blamed_on_it():
    """Fails where any other reason for a run to fail is called padding."""
    proto = decoder()
    assert counted(proto) == "attention_mask"
    feeds = {**masked(2, 0), **empty(2)}
    assert cause(proto, feeds, lambda _: False) == ""
    assert cause(proto, {**prompts(2), **empty(2)}, lambda _: True) == ""
    assert "put padding behind" in cause(proto, feeds, lambda f: bool(f["attention_mask"][:, 0].all()))
    assert counted(onnx.load("models/digits_resnet.onnx")) == ""
    for n in proto.graph.node:
        if n.op_type == "GroupQueryAttention":  # which says itself where nothing is to be read
            n.input.extend(["", "attention_mask"])
    assert counted(proto) == ""
