"""Whole branches, from the options to the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import PruneConfig, plan, prune
from onnxprune.channels import branches
from onnxprune.errors import UsageError
from onnxprune.report import terminal
from onnxprune.stages.couple import Coupled, couple
from onnxprune.stages.load import load
from tests import digits
from tests.digits import pruned
from tests.graphs import TABLE

FIRST = "/3/conv1/Conv"
# A tolerance that everything meets: the narrowest width of every group is taken.
ANYTHING: dict[str, Any] = {"tolerance": 1e6, "samples": 64, "fast": True, "round_to": 1}


def without_first(**options: Any) -> tuple[plan.Plan, PruneConfig]:
    """A plan that takes out the first branch of the bundled network."""
    settings = PruneConfig(**({"samples": 128, "recover": 2} | options))
    made = prune(str(digits.path("resnet")), None, str(digits.CALIB), config=settings, dry_run=True).plan
    return replace(made, groups=(plan.GroupPlan(FIRST, 16, ()),)), settings


def coupled(name: str, settings: PruneConfig) -> Coupled:
    row = TABLE[name]
    return couple(load(row.model(), row.feeds(16), settings), settings)


def test_a_branch_goes_and_the_answer_stays(tmp_path: Path):
    """Fails where a layer of the branch is still there, or the report does not say that it went."""
    made, _ = without_first()
    result = prune(str(digits.path("resnet")), tmp_path / "slim.onnx", str(digits.CALIB), from_plan=made)
    assert result.model is not None
    assert not [n.name for n in result.model.graph.node if n.name.startswith("/3/conv")]
    (row,) = (g for g in result.report.groups if g.name == FIRST)
    assert row.channels_after == 0
    assert "16 → 0 (branch removed)" in terminal.prune_report(result.report, terminal.Screen())
    # Both layers of the branch, and nothing else: 2 · 3 · 3 · 16 · 16 · 8 · 8.
    assert result.report.before.macs - result.report.after.macs == 2 * 9 * 16 * 16 * 64
    assert digits.top1(result.model) > 0.9


def test_the_plan_replays_byte_for_byte(tmp_path: Path):
    made, _ = without_first(fast=True, recover=None)
    (tmp_path / "plan.json").write_text(made.to_json(), encoding="utf-8")
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for file, source in zip(files, (made, tmp_path / "plan.json"), strict=True):
        prune(str(digits.path("resnet")), file, str(digits.CALIB), from_plan=source)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_plan_that_empties_more_than_a_branch_is_refused():
    made, _ = without_first()
    bad = replace(made, groups=(plan.GroupPlan("/0/Conv", 16, ()),))
    with pytest.raises(UsageError, match="without a channel"):
        prune(str(digits.path("resnet")), None, str(digits.CALIB), from_plan=bad)


@pytest.mark.parametrize(
    "options",
    [
        {"refit": "lockstep"},
        {"refit": "none"},
        {"refit": "scale", "method": "magnitude"},
        {"method": "local", "refit": "greedy"},
        {"method": "combined", "refit": "least-squares"},
        {"method": "global", "metric": "kronecker"},
        {"method": "taylor"},
        {"method": "gfs", "refit": "greedy"},
    ],
    ids=str,
)
def test_every_method_and_refit_can_do_without_a_branch(options: dict[str, Any]):
    """Fails where something counts on a unit in every group."""
    result = pruned("resnet", **(ANYTHING | options), drop_branches=True)
    assert result.model is not None
    sizes = {g.name: g.channels_after for g in result.report.groups}
    assert sizes[FIRST] == sizes["/6/conv1/Conv"] == 0
    assert all(np.isfinite(onnx.numpy_helper.to_array(t)).all() for t in result.model.graph.initializer)


def test_a_budget_takes_a_branch_that_does_nothing():
    """Fails where the trial without the branch is not measured, or the allocation does not see what it saves."""
    model = onnx.load(digits.path("resnet"))
    (second,) = (n for n in model.graph.node if n.name == "/4/conv2/Conv")
    (kernel,) = (t for t in model.graph.initializer if t.name == second.input[1])
    kernel.CopyFrom(onnx.numpy_helper.from_array(1e-4 * onnx.numpy_helper.to_array(kernel), kernel.name))
    options: dict[str, Any] = {"ratio": 0.3, "samples": 128, "fast": True, "round_to": 1}
    gone = prune(model, None, str(digits.CALIB), drop_branches=True, **options).report
    kept = prune(model, None, str(digits.CALIB), **options).report
    assert {g.name for g in gone.groups if not g.channels_after} == {"/4/conv1/Conv"}
    assert all(g.channels_after for g in kept.groups)
    assert gone.achieved >= 0.3
    assert gone.output_error is not None
    assert kept.output_error is not None
    assert gone.output_error <= kept.output_error


def test_what_dies_with_a_branch_is_in_the_report_and_not_in_the_plan():
    row = TABLE["bottleneck"]
    result = prune(row.model(), None, row.feeds(64), drop_branches=True, **ANYTHING)
    sizes = {g.channels_before: g.channels_after for g in result.report.groups}
    assert (sizes[7], sizes[4]) == (0, 0)
    assert {(g.units, g.kept) for g in result.plan.groups if not g.kept} == {(7, ())}
    assert 4 not in {g.units for g in result.plan.groups}


def test_of_two_branches_one_stays():
    """Fails where a budget takes both, and the rewriting then cannot."""
    row = TABLE["two_branches_and_no_stream"]
    options: dict[str, Any] = {"round_to": 1, "fast": True, "drop_branches": True}
    for goal in ({"ratio": 0.8}, {"tolerance": 1e6}):
        result = prune(row.model(), None, row.feeds(64), **options, **goal)
        sizes = {g.channels_before: g.channels_after for g in result.report.groups}
        assert min(sizes[8], sizes[7]) == 0
        assert max(sizes[8], sizes[7]) > 0


def test_branches_stay_without_the_option():
    result = pruned("resnet", **ANYTHING)
    assert min(g.channels_after for g in result.report.groups) == 1


@pytest.mark.parametrize(
    ("options", "widths"),
    [
        ({"drop_branches": True}, (0, 4, 7)),
        ({"drop_branches": False}, (4, 7)),
        ({}, (4, 7)),
        ({"drop_branches": True, "min_channels": 5}, (0, 7)),
        # What would go is the layer that w1 and w2 make, and what may not be touched stays.
        ({"drop_branches": True, "exclude": ("w1",)}, (4, 7)),
        ({"drop_branches": True, "exclude": ("ar",)}, (4, 7)),
    ],
)
def test_widths_of_a_branch(options: dict[str, Any], widths: tuple[int, ...]):
    """Fails where nothing is a width unasked, or --exclude does not hold for what would die."""
    settings = PruneConfig(round_to=4, **options)
    found = coupled("bottleneck", settings)
    (drop,) = branches.drops(found.channels).values()
    assert found.widths.allowed[drop.group] == widths
