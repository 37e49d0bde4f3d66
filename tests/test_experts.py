"""Mixtures of experts, from one end to the other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import PruneResult, prune
from onnxprune.graph import protobuf
from onnxprune.runtime.session import Session
from tests.graphs import TABLE

ROWS = ("experts", "experts_in_sequences")


@cache
def pruned(row: str, **options: Any) -> PruneResult:
    return prune(TABLE[row].model(), None, TABLE[row].feeds(128), ratio=0.3, round_to=1, fast=True, **options)


def sizes(model: onnx.ModelProto) -> dict[str, list[int]]:
    return {t.name: list(t.dims) for t in model.graph.initializer}


@pytest.mark.parametrize("row", ROWS)
def test_a_mixture_stays_one(row: str):
    """Fails where the layers of its experts are left in the result, or are of several widths."""
    original, result = TABLE[row].model(), pruned(row)
    small = result.model
    assert small is not None
    assert result.report.checks["slice_against_oracle"] <= 1e-5
    assert result.report.achieved >= 0.3
    assert Counter(n.op_type for n in small.graph.node) == Counter(n.op_type for n in original.graph.node)
    before, after = sizes(original), sizes(small)
    assert before.keys() == after.keys()
    experts, wide, hidden = before["u"]
    inner = after["v"][2]
    assert inner < before["v"][2]
    assert after["u"] == [experts, inner * wide // before["v"][2], after["v"][1]]
    assert after["v"][1] <= hidden
    assert protobuf.parameters(small) == result.report.after.parameters
    [node] = (n for n in small.graph.node if n.op_type == "MoE")
    [was] = (n for n in original.graph.node if n.op_type == "MoE")
    assert list(node.attribute) == list(was.attribute)
    feeds = TABLE[row].feeds(5)
    assert Session(small).run(feeds)["y"].shape == Session(original).run(feeds)["y"].shape


def test_codes_stay_codes():
    """Fails where a mixture of codes comes out in another form, or with rows of no whole bytes or blocks."""
    original, feeds = TABLE["experts_in_codes"].model(), TABLE["experts_in_codes"].feeds(128)
    [node] = (n for n in original.graph.node if n.op_type == "QMoE")
    node.attribute.append(onnx.helper.make_attribute("accuracy_level", 4))  # its kernel rounds then
    result = prune(original, None, feeds, ratio=0.3, fast=True)
    small = result.model
    assert small is not None
    assert result.report.checks["normalised_against_original"] <= 1e-5
    assert result.report.checks["slice_against_oracle"] <= 1e-5
    assert Counter(n.op_type for n in small.graph.node) == Counter(n.op_type for n in original.graph.node)
    before, after = sizes(original), sizes(small)
    assert before.keys() == after.keys()
    inner = after["v"][2] * 2
    assert inner in (16, 32, 48)
    assert after["u"] == [3, inner, before["u"][2]]
    assert after["v_scales"] == [3, 32, inner // 16]
    assert after["v_zeros"] == [3, 32, -(-inner // 32)]
    assert protobuf.parameters(small) == result.report.after.parameters
    assert protobuf.parameters(original) == result.report.before.parameters
    # Each of four bits, and scales and zero points of blocks of sixteen.
    weights = 3 * (64 * 32 + 32 * 64)
    rest = 6 * 32 + 32 * 3 + 32 * 5 + 3 * (64 + 32)
    assert result.report.before.parameters == weights + 2 * weights // 16 + rest


def test_a_mixture_that_nothing_adds_to_its_input_gives_as_many_numbers_as_it_reads():
    """Fails where channels behind a mixture go without those in front of it: its kernel knows one width for both."""
    row = TABLE["experts_in_codes"]
    text = row.text.replace("s = Add (a, m)", "s = Relu (m)")
    assert text != row.text
    for shares in ((), ("a=0",)):
        result = prune(replace(row, text=text).model(), None, row.feeds(128), uniform=0.5, fast=True, ratio_of=shares)
        assert result.model is not None
        assert [n.op_type for n in result.model.graph.node].count("QMoE") == 1
        after = sizes(result.model)
        assert after["u"][2] * 2 == after["v"][1] == after["w3"][0] == (32 if shares else 16)


def test_each_expert_keeps_units_of_its_own():
    """Fails where the same inner unit goes from every expert, or where nothing is fitted."""
    small, sliced = pruned("experts").model, pruned("experts", refit="none").model
    assert small is not None
    assert sliced is not None
    before, after = (
        onnx.numpy_helper.to_array(next(t for t in m.graph.initializer if t.name == "b"))
        for m in (TABLE["experts"].model(), sliced)
    )
    kept = [tuple(np.flatnonzero(np.isin(b, a)).tolist()) for b, a in zip(before, after, strict=True)]
    assert len({len(k) for k in kept}) == 1
    assert len(set(kept)) > 1
    fitted, plain = (pruned("experts", **o).report.output_error for o in ({}, {"refit": "none"}))
    assert fitted is not None
    assert plain is not None
    assert fitted < plain
