"""What would free an axis that stays: every pin says it, and what it says is true of a few known cases."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from onnxprune.channels.remedies import Remedy
from onnxprune.channels.rules.refusals import REFUSALS
from scripts.house import ROOT
from tests.graphs import TABLE
from tests.prepared import Prepared

Lookup = Callable[[str], Prepared]
SOURCES = [p for room in ("channels", "stages") for p in sorted((ROOT / "onnxprune" / room).rglob("*.py"))]


@pytest.mark.parametrize("name", TABLE)
def test_every_pinned_axis_has_a_remedy(name: str, prepared: Lookup):
    """Fails where a user is told that an axis stays, and not what could be done."""
    for p in prepared(name).channels.pinned:
        assert len(p.why.remedy.split()) >= 5
        assert p.why.remedy not in p.why.reason
        # A weight that carries channels is no setting.
        assert p.why.why.remedy is not Remedy.NO_CHANNELS


@pytest.mark.parametrize("remedy", Remedy)
def test_a_remedy_is_a_clause_of_its_own(remedy: Remedy):
    """Fails for a sentence that would read badly behind "what would free it:", or that nothing refers to."""
    assert len(remedy.value.split()) >= 5
    assert remedy.value[0].islower()
    assert not remedy.value.endswith(".")
    assert any(f"Remedy.{remedy.name}" in path.read_text(encoding="utf-8") for path in SOURCES)


def test_a_refusal_says_it_once():
    """Fails where a reason holds advice of its own, as it did before remedies."""
    for reason in REFUSALS.values():
        assert ":" not in reason.text
        assert reason.text != reason.remedy.value


@pytest.mark.parametrize(
    ("row", "reason", "remedy"),
    [
        ("unknown_operator", "com.microsoft.SampleOp has no channel rule", Remedy.FUSED),
        ("unknown_operator", "the graph output 'y'", Remedy.OUTPUT),
        ("unknown_operator", "meets axis 1 of the graph input 'x'", Remedy.INPUT),
        # What stopped the channels of the other operand is what has to change.
        ("unknown_operator", "meets axis 1 of 'g' (SampleOp", Remedy.FUSED),
        ("softmax_channels", "meets axis 1 of 's' (Softmax", Remedy.COMPARED),
        ("noise", "meets axis 1 of 'm' (Mul", Remedy.INFERENCE),
        ("lstm_encoder_decoder", "meets axis 2 of 'z' (Neg", Remedy.INPUT),
        # Its channels are tracked, its positions are not: no one thing would change that.
        ("layer_norm_statistics_of_positions", "meets axis 2 of 'a' (Conv", Remedy.PARTNER),
        ("codes_summed", "MatMulInteger computes with integers", Remedy.QUANTIZE_LATER),
        ("attention_one_key_head", "the only key/value head serves every query head", Remedy.HEAD_DIM),
        ("scan_opset_8", "Scan before opset 9", Remedy.OPSET),
        ("reshape_run_time", "the target of Reshape is computed at run time", Remedy.RUN_TIME),
    ],
)
def test_known_cases(row: str, reason: str, remedy: Remedy, prepared: Lookup):
    found = {p.why.why for p in prepared(row).channels.pinned}
    assert {r.remedy for r in found if reason in r.text} == {remedy}
