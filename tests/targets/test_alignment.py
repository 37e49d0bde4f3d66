"""Widths that suit where the model will run: what `auto` asks for, gives up, and reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune import PruneConfig, plan, prune
from onnxprune.allocation.budget import allowed_widths, useful_alignment
from onnxprune.errors import BudgetUnreachable
from onnxprune.report.summary import Report
from onnxprune.report.terminal import Screen, prune_report
from onnxprune.stages.save import PruneResult
from onnxprune.targets.alignment import DEFAULT, TARGETS
from tests import digits
from tests.digits import pruned
from tests.kit import kit_models, one_export_each
from tests.sampled import in_turns
from tests.topologies.text import Topology

FAST: dict[str, Any] = {"method": "magnitude", "refit": "none"}


def unfitted(name: str, **options: Any) -> PruneResult:
    return pruned(name, **(FAST | options))


def test_the_table():
    """Fails where an alignment could not be halved, or the check of the parser is forgotten for one of TensorRT's."""
    assert DEFAULT in TARGETS
    assert all(t.alignment & (t.alignment - 1) == 0 for t in TARGETS.values())
    assert {n for n, t in TARGETS.items() if t.tensorrt} == {n for n in TARGETS if n.startswith("tensorrt")}
    assert {n: t.alignment for n, t in TARGETS.items()} == {
        **{"ort-cpu": 8, "ort-cuda": 8},
        **{"tensorrt-fp16": 8, "tensorrt-int8": 32},
    }


# the alignment of one group


@pytest.mark.parametrize(
    ("units", "per_unit", "alignment", "expected"),
    [
        (64, 1, 8, 8),
        (64, 1, 32, 32),
        (63, 1, 32, 16),
        (16, 1, 8, 8),
        (16, 1, 32, 8),
        (10, 1, 8, 4),
        (3, 1, 8, 1),
        (2, 1, 32, 1),
        (12, 64, 32, 32),
        (3, 12, 8, 4),
        (1, 64, 8, 8),
    ],
)
def test_narrow_groups_get_less(units: int, per_unit: int, alignment: int, expected: int):
    """Fails where a narrow group cannot lose half of its units, or a wide one gives up alignment."""
    assert useful_alignment(units, per_unit, alignment, 1, share=0.5) == expected


def test_balanced_sets_and_parts_and_least_channels_count():
    """Fails where the alignment is chosen without what else limits the widths."""
    assert useful_alignment(32, 1, 32, 1, 4, share=0.5) == 16
    assert useful_alignment(32, 1, 16, 1, least=17, share=0.5) == 8  # 24 of 32: nothing that half of them would do
    assert useful_alignment(32, 1, 32, 20, share=0.5) == 8
    assert useful_alignment(32, 1, 32, 40, share=0.5) == 32
    assert useful_alignment(16, 1, 8, 1, share=0.9) == 1


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    units=st.integers(2, 130),
    per_unit=st.integers(1, 12),
    power=st.integers(0, 6),
    least=st.integers(1, 20),
    share=st.sampled_from([0.5, 0.75, 0.9]),
)
def test_the_alignment_is_the_largest_that_serves(units: int, per_unit: int, power: int, least: int, share: float):
    """Fails where a larger power of two would have let the group lose as much as is wanted, or this one does not."""
    found = useful_alignment(units, per_unit, 2**power, least, share=share)
    goal = max(int((1 - share) * units + 1e-9), 1)

    def reaches(step: int, most: int) -> bool:
        return any(n * per_unit % step == 0 and n * per_unit >= least for n in range(1, most + 1))

    steps = [2**i for i in range(power, -1, -1)]
    serving = [s for s in steps if reaches(s, goal)] or [s for s in steps if reaches(s, units - 1)] or steps
    assert found == serving[0]
    if serving is not steps:
        assert len(allowed_widths(units, per_unit, found, least)) > 1


# whole runs


def widths_of_layers(model: onnx.ModelProto) -> list[int]:
    """Inputs and outputs of every convolution and Gemm but the image itself, read off the weights."""
    shapes = {t.name: t.dims for t in model.graph.initializer}
    images = {i.name for i in model.graph.input}
    found: list[int] = []
    for n in model.graph.node:
        if n.op_type in ("Conv", "Gemm"):
            found += [shapes[n.input[1]][0], *([] if n.input[0] in images else [shapes[n.input[1]][1]])]
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_the_report_counts_what_is_aligned(target: str):
    """Fails where the figures are not those of the model, by a count that looks at its weights alone."""
    result = unfitted("resnet", ratio=0.5, target=target)
    a = result.report.alignment
    assert result.model is not None
    assert (a.requested, a.target, a.multiple) == ("auto", target, TARGETS[target].alignment)
    before, after = widths_of_layers(onnx.load(digits.path("resnet"))), widths_of_layers(result.model)
    assert a.widths == len(before) == len(after)
    assert a.aligned_before == sum(w % a.multiple == 0 for w in before)
    assert a.aligned == sum(w % a.multiple == 0 for w in after)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", digits.NAMES)
def test_small_networks_lose_half_for_every_target(name: str, target: str):
    """Fails where a coarse alignment leaves nothing to cut."""
    report = unfitted(name, ratio=0.5, target=target).report
    assert report.achieved >= 0.5
    assert all(g.channels_after % g.alignment == 0 or g.channels_after == g.channels_before for g in report.groups)
    assert all(
        g.channels_before // 2 < 2 * g.alignment or g.alignment == TARGETS[target].alignment for g in report.groups
    )
    assert all(g.alignment <= g.channels_before // 2 for g in report.groups)


def ten_channels() -> Topology:
    return Topology(
        "(float[N,3,8,8] x) => (float[N,5,8,8] y) { a = Conv (x, w1[10,3,1,1], b1[10])"
        " r = Relu (a) b = Conv (r, w2[10,10,1,1], b2[10]) s = Relu (b) y = Conv (s, w3[5,10,1,1]) }",
        (10, 10),
    )


@pytest.mark.parametrize("target", TARGETS)
def test_ten_channels(target: str):
    """Fails where a net without any multiple of the alignment becomes nothing, or is refused."""
    row = ten_channels()
    report = prune(row.model(), None, row.feeds(16), ratio=0.5, target=target, **FAST).report
    assert report.achieved >= 0.5
    assert {g.alignment for g in report.groups} == {4}
    assert {g.channels_after for g in report.groups} <= {4, 8, 10}


def notes_on_relaxing(report: Report) -> list[str]:
    return [n for n in report.notes if "--round-to auto took multiples of" in n]


def test_a_budget_out_of_reach_relaxes_the_alignment():
    """Fails where `auto` gives up while a smaller multiple would do, or says nothing of taking one."""
    with pytest.raises(BudgetUnreachable, match="give a smaller --round-to"):
        unfitted("resnet", ratio=0.88, round_to=8)
    result = unfitted("resnet", ratio=0.88)
    report = result.report
    assert report.achieved >= 0.88
    assert report.alignment.multiple == 4
    assert notes_on_relaxing(report) == [
        "with widths in multiples of 8, as ort-cpu has them best, 88% of the MACs cannot go; "
        "--round-to auto took multiples of 4"
    ]
    assert not notes_on_relaxing(unfitted("resnet", ratio=0.5).report)


def test_a_budget_that_nothing_reaches():
    """Fails where `auto` advises a smaller --round-to, which it has tried."""
    with pytest.raises(BudgetUnreachable, match=r"can; lower --ratio$"):
        unfitted("resnet", ratio=0.9999)


def test_a_number_is_strict():
    """Fails where an explicit --round-to is treated as a wish."""
    report = unfitted("resnet", ratio=0.3, round_to=16, target="tensorrt-int8").report
    assert {g.alignment for g in report.groups} == {16}
    assert {g.note for g in report.groups if g.channels_before == 16} == {
        "too narrow for --round-to and --min-channels"
    }
    assert (report.alignment.requested, report.alignment.multiple) == (16, 16)


def test_uniform_is_met_by_narrow_groups():
    """Fails where a group keeps more than its share although a smaller multiple would do."""
    report = unfitted("resnet", uniform=0.75, target="tensorrt-int8").report
    assert all(g.channels_after == g.channels_before // 4 for g in report.groups)


def test_the_terminal_names_other_multiples():
    """Fails where a group that got its own alignment looks like the others."""
    text = prune_report(unfitted("resnet", ratio=0.5, target="tensorrt-int8").report, Screen(160))
    assert "are multiples of 32" in text
    assert "(--round-to auto, tensorrt-int8)" in text
    assert "multiples of 16" in text
    text = prune_report(unfitted("resnet", ratio=0.5).report, Screen(160))
    assert text.count("multiples of") == 1


# plans


def test_plans_of_earlier_versions_load(tmp_path: Path):
    """Fails where a plan whose config has a number, and no target, is refused."""
    made = unfitted("resnet", ratio=0.5, round_to=8).plan
    old = json.loads(made.to_json())
    del old["config"]["target"]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(old), encoding="utf-8")
    loaded = plan.load(path).settings()
    assert (loaded.round_to, loaded.target) == (8, DEFAULT)
    result = prune(digits.path("resnet"), None, digits.CALIB, from_plan=path)
    assert result.model == unfitted("resnet", ratio=0.5, round_to=8).model


def test_a_plan_of_auto_replays():
    """Fails where the replay of a run that relaxed its alignment gives other widths or another report of them."""
    first = unfitted("resnet", ratio=0.88)
    again = prune(digits.path("resnet"), None, digits.CALIB, from_plan=first.plan)
    assert first.model == again.model
    assert first.report.alignment == again.report.alignment
    assert first.report.groups == again.report.groups


def test_a_plan_for_another_target():
    """Fails where a replay cannot be held against another target."""
    first = unfitted("resnet", ratio=0.5)
    again = prune(digits.path("resnet"), None, digits.CALIB, from_plan=first.plan, target="tensorrt-int8")
    assert first.model == again.model
    assert again.report.alignment.target == "tensorrt-int8"


def test_auto_is_the_default():
    assert PruneConfig().round_to == "auto"


@pytest.mark.parametrize(
    ("path", "target"),
    [
        pytest.param(*p.values, t, id=f"{p.id}-{t}", marks=p.marks)
        for p, t in in_turns(
            one_export_each([p for p in kit_models("models") if p.id.startswith(("models/mnist", "no-kit"))]),
            ("tensorrt-fp16", "tensorrt-int8"),
        )
    ],
)
def test_networks_of_the_kit(path: Path, target: str):
    """Fails where a small network cannot lose half of its MACs for a target."""
    report = prune(path, None, ratio=0.5, target=target, samples=16, **FAST).report
    assert report.achieved >= 0.5
