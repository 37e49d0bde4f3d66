"""Patterns of --include, --exclude and --exclude-after: what they match, and what stays whole then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxprune import prune
from onnxprune.cli.program import main
from onnxprune.errors import BudgetUnreachable, NothingPrunable, UsageError
from tests.topologies.text import Topology
from tests.topologies.twins import TWINS

ROW = Topology(
    """(float[N,6] x) => (float[N,4] y, float[N,4] z) {
        a = MatMul(x, w1[6,8])
        b = Relu(a)
        c = MatMul(b, w2[8,16])
        d = Identity(c)
        e = Relu(d)
        f = MatMul(e, w3[16,32])
        g = Relu(f)
        y = MatMul(g, w4[32,4])
        h = MatMul(b, w5[8,12])
        i = Relu(h)
        z = MatMul(i, w6[12,4])
    }""",
    (32, 16, 12, 8),
)


def _named() -> onnx.ModelProto:
    """Layers are called as exporters call them, of the head by numbers alone."""
    proto = ROW.model()
    for k, n in enumerate(proto.graph.node):
        n.name = f"/trunk/{n.op_type}_{k}" if k < 3 else f"/head/{k}"
    return proto


def _whole(**options: Any) -> tuple[set[int], Any]:
    """(sizes of the groups that the options keep whole, what the patterns matched)."""
    result = prune(_named(), None, ROW.feeds(64), uniform=0.5, round_to=1, refit="none", **options)
    option = next(iter(options)).replace("_", "-")
    kept = {g.channels_before for g in result.report.groups if g.note.startswith(f"--{option}")}
    assert kept == {g.channels_before for g in result.report.groups if g.channels_after == g.channels_before}
    return kept, result.report.patterns


@pytest.mark.parametrize(
    ("tensor", "kept", "layers"),
    [("c", {16, 32}, {"/head/5", "/head/7"}), ("d", {16, 32}, {"/head/5", "/head/7"}), ("i", {12}, {"/head/10"})],
)
def test_all_behind_a_tensor_stays(tensor: str, kept: set[int], layers: set[str]):
    """Fails where a layer behind it is missed, also behind a tensor that the normal form has under another name."""
    whole, (row,) = _whole(exclude_after=(tensor,))
    assert whole == kept
    assert set(row.layers) == layers
    assert (row.option, row.pattern, row.tensors) == ("--exclude-after", tensor, (tensor,))


def test_what_a_pattern_matched_is_listed():
    """Fails where a pattern that misses some layers looks like one that matches them all."""
    whole, (row,) = _whole(exclude=("/head/7",))
    assert whole == {32}
    assert (row.nodes, row.layers, row.tensors) == (("/head/7",), ("/head/7",), ())
    assert len(row.groups) == 1
    whole, rows = _whole(exclude=("w3", "/trunk/MatMul_0"))
    assert whole == {8, 16, 32}
    assert [r.tensors for r in rows] == [("w3",), ()]
    assert [r.layers for r in rows] == [("/head/5",), ("/trunk/MatMul_0",)]


def test_a_folded_node_is_found_by_its_name_in_the_original():
    """Fails where the name that the user sees matches nothing, as the normal form has the node under another."""
    proto = _named()
    gelu = helper.make_node("Gelu", ["b"], ["b2"], "/trunk/gelu", domain="com.microsoft")
    proto.graph.node.insert(2, gelu)
    for n in proto.graph.node[3:]:
        n.input[:] = ["b2" if i == "b" else i for i in n.input]
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    result = prune(proto, None, ROW.feeds(64), uniform=0.5, round_to=1, refit="none", exclude=("/trunk/gelu",))
    assert {g.channels_before for g in result.report.groups if g.channels_after == g.channels_before} == {8}


def test_patterns_that_match_nothing_are_refused():
    for options in ({"exclude_after": ("nothing",)}, {"exclude": ("nothing",)}, {"include": ("nothing",)}):
        with pytest.raises(UsageError, match="matches no"):
            prune(_named(), None, ROW.feeds(16), uniform=0.5, **options)
    with pytest.raises(NothingPrunable, match="--exclude-after x"):
        prune(_named(), None, ROW.feeds(16), uniform=0.5, exclude_after=("x",))


def test_the_command_shows_what_was_matched(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where the terminal or the saved report does not list it, or a plan cannot be replayed."""
    onnx.save(_named(), tmp_path / "in.onnx")
    np.savez(tmp_path / "data.npz", **ROW.feeds(64))
    given = [str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "--calib", str(tmp_path / "data.npz")]
    plan, report = str(tmp_path / "plan.json"), tmp_path / "report.json"
    options = ["--uniform", "0.5", "--round-to", "1", "--fast", "--exclude-after", "d", "--exclude", "/trunk/MatMul*"]
    assert main([*given, *options, "--plan", plan, "--report", str(report)]) == 0
    shown = capsys.readouterr().out
    assert "what the patterns match" in shown
    assert "--exclude-after d" in shown
    rows = json.loads(report.read_text(encoding="utf-8"))["patterns"]
    assert [(r["option"], len(r["groups"])) for r in rows] == [("--exclude", 2), ("--exclude-after", 2)]
    first = (tmp_path / "out.onnx").read_bytes()
    assert main([*given, "--from-plan", plan, "--overwrite"]) == 0
    assert (tmp_path / "out.onnx").read_bytes() == first
    assert main([*given, "--from-plan", plan, "--exclude-after", "d"]) == 2


def _widths(**options: Any) -> dict[int, int]:
    """What the groups keep, by what they had, with the cheapest of everything else."""
    result = prune(_named(), None, ROW.feeds(64), **{"round_to": 1, "refit": "none", "method": "magnitude"} | options)
    return {g.channels_before: g.channels_after for g in result.report.groups}


def test_a_share_of_its_own():
    """Fails where a group with a share of its own loses more or less, or the others are left as they are; of two
    patterns that match the last counts."""
    uniform = _widths(uniform=0.5, ratio_of=("a=0.25", "/head/5=25%", "g=0", "c=0.5"))
    assert uniform == {8: 6, 16: 8, 32: 32, 12: 6}
    budget = _widths(ratio=0.7, ratio_of=("/head/5=0.75",))
    assert budget[32] == 8 and sum(budget.values()) < 8 + 16 + 8 + 12


def test_the_alignment_bends_for_a_share():
    """Fails where `auto` keeps a group whole, or takes half, when a quarter was asked for; a number insists."""
    assert _widths(uniform=0.5, round_to="auto", ratio_of=("c=0.25",))[16] == 12
    assert _widths(uniform=0.5, round_to=8, ratio_of=("c=0.25",))[16] == 16


def test_no_group_loses_more_than_the_cap():
    free, capped = _widths(ratio=0.6), _widths(ratio=0.6, max_ratio=0.65)
    assert any(after < 0.35 * before for before, after in free.items())
    assert all(after >= 0.35 * before for before, after in capped.items())
    with pytest.raises(BudgetUnreachable, match=r"lower --ratio, or let groups lose more by --max-ratio$"):
        _widths(ratio=0.6, max_ratio=0.2)


@pytest.mark.parametrize("goal", [{"ratio": 0.3}, {"ratio": 0.5}, {"ratio": 0.7}, {"layer_tolerance": 0.3}])
def test_groups_of_one_pattern_have_one_width(goal: dict[str, Any]):
    """Fails where they differ, which they do without the option."""

    def kept(**options: Any) -> list[int]:
        result = prune(TWINS.model(), None, TWINS.feeds(64), **{"round_to": 1, "refit": "none", **goal, **options})
        return [g.channels_after for g in result.report.groups if g.channels_before == 16]

    free, tied = kept(), kept(same_widths=("[ac]",))
    assert free[0] != free[1]
    assert tied[0] == tied[1] < 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"same_widths": ("a",)}, "matches one group, so it does nothing"),
        ({"same_widths": ("[ac]",), "exclude": ("d",)}, "stays whole"),
        ({"same_widths": ("[ae]",)}, "no width in common"),
        ({"same_widths": ("[ac]",), "ratio_of": ("a=0.5", "c=0.25")}, "no width in common"),
        ({"ratio_of": ("y=0.5",)}, "no group that can be cut"),
    ],
)
def test_what_cannot_be_alike_or_cut_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        prune(TWINS.model(), None, TWINS.feeds(16), round_to=1, refit="none", **options)
