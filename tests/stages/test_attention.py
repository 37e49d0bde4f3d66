"""What goes in attention where the options leave that open."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxprune import PruneConfig, inspect, prune
from onnxprune.stages import turn_heads
from tests.graphs import TABLE
from tests.transformer import features, transformer

QUICK: dict[str, Any] = {"ratio": 0.2, "round_to": 1, "fast": True, "samples": 16}


def chosen(model: onnx.ModelProto, data: Any = None, **options: Any) -> tuple[str, tuple[str, ...]]:
    """What the plan says of the units of attention, and of what was turned."""
    made = prune(model, None, data, dry_run=True, **{**QUICK, **options}).plan
    return made.settings().attention, made.rotated


def test_with_data_positions_go_turned_and_a_replay_knows():
    """Fails where the plan says that nothing was chosen, so that its numbers would be taken for whole heads."""
    model, data = transformer(layers=1), features(16)
    result = prune(model, None, data, **QUICK)
    assert result.plan.config["attention"] == "rank"
    assert len(result.plan.rotated) == 2
    asked = prune(model, None, data, attention="rank", **QUICK)
    again = prune(model, None, data, from_plan=result.plan)
    assert result.model is not None and asked.model is not None and again.model is not None
    assert asked.plan.config == result.plan.config
    assert asked.model.SerializeToString() == again.model.SerializeToString() == result.model.SerializeToString()


def test_the_largest_cut_says_what_it_counts_in():
    """Fails where its plan has what the search was given, which a replay would take for whole heads."""
    model, data = transformer(layers=1), features(64)
    given = {k: v for k, v in QUICK.items() if k not in ("ratio", "samples")}
    found = prune(model, None, data, max_error=0.02, largest=True, **given)
    assert (found.plan.config["attention"], bool(found.plan.rotated)) == ("rank", True)
    again = prune(model, None, data, from_plan=found.plan)
    assert found.model is not None and again.model is not None
    assert again.model.SerializeToString() == found.model.SerializeToString()


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (False, {}),
        (True, {"method": "magnitude"}),
        (True, {"refit": "none", "fast": False}),
        (True, {"target": "tensorrt-int8"}),
        (True, {"then": "int8"}),
        (True, {"drop_layers": ("auto",)}),
        (True, {"drop_branches": True}),
    ],
    ids=lambda x: "-".join(f"{k}" for k in x) if isinstance(x, dict) else "",
)
def test_whole_heads_go_where_turning_would_not_serve(given: bool, options: dict[str, Any]):
    assert chosen(transformer(layers=1), features(16) if given else None, **options) == ("heads", ())


@pytest.mark.parametrize("name", ["rotary_by_parts", "attention_by_parts_positions"])
def test_only_what_can_be_turned_is_chosen(name: str):
    """Fails where positions are taken though those of queries and keys have to stay as they are."""
    wanted = "heads" if "rotary" in name else "rank"
    assert chosen(TABLE[name].model(), TABLE[name].feeds(16))[0] == wanted


def test_all_attention_has_to_allow_it():
    """Fails where the heads of one attention are given up because those of another can be turned."""
    model = transformer(layers=2)
    scores = next(n for n in model.graph.node if n.name == "/layers/1/scores/MatMul")
    queries = scores.input[0]
    at = list(model.graph.node).index(scores)
    scores.input[0] = "squared"
    model.graph.node.insert(at, helper.make_node("Mul", [queries, queries], ["squared"]))
    assert chosen(model, features(16)) == ("heads", ())


def test_a_turn_that_is_refused_leaves_whole_heads(monkeypatch: pytest.MonkeyPatch):
    """Fails where positions that were not turned go in place of heads."""
    monkeypatch.setattr(turn_heads, "balanced", lambda a, b: (np.full_like(a, 2.0), np.full_like(b, 2.0)))
    result = prune(transformer(layers=1), None, features(16), dry_run=True, **QUICK)
    assert (result.plan.settings().attention, result.plan.rotated) == ("heads", ())
    assert any(n.startswith("no head was turned") for n in result.report.notes)
    assert any(g.head for g in result.report.groups)


def test_nothing_left_to_turn_is_no_error():
    """Fails where the options that keep attention as it is meet an option that nobody gave."""
    found = inspect(transformer(layers=1)).groups
    names = tuple(g.name for g in found if "query" in g.name or "value" in g.name)
    assert len(names) == 2
    assert chosen(transformer(layers=1), features(16), exclude=names)[1] == ()


def test_inspect_shows_what_a_run_with_data_takes():
    shown = inspect(transformer(layers=1))
    made = prune(transformer(layers=1), None, features(16), dry_run=True, **QUICK).plan
    assert {g.name for g in made.groups} <= {g.name for g in shown.groups}
    assert any("--attention auto" in n for n in shown.notes)
    assert not any("--attention auto" in n for n in inspect(transformer(layers=1), attention="heads").notes)
    assert PruneConfig().attention == "auto"
