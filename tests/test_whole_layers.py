"""Whole layers of a transformer, from the graph to the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune import PruneConfig, inspect, plan, prune
from onnxprune.channels import branches
from onnxprune.channels.whole_layers import common_scope, whole_layers
from onnxprune.cli import program
from onnxprune.errors import BudgetUnreachable, UsageError
from onnxprune.graph.view import Graph, Node
from onnxprune.report import terminal
from onnxprune.report.document import to_json
from onnxprune.report.markdown import markdown
from onnxprune.runtime.session import Session
from onnxprune.stages.allocate_layers import with_layers
from onnxprune.stages.couple import Coupled, couple
from onnxprune.stages.load import load
from tests import mixtures
from tests.compare import assert_same
from tests.graphs import TABLE
from tests.transformer import BOTH, CROSS, INNER, PARALLEL, POST, PRE, TURNED, features, transformer, zeroed

FORMS = (PRE, POST, BOTH, PARALLEL, TURNED, CROSS)
QUICK: dict[str, Any] = {"fast": True, "round_to": 1}
PLAIN: dict[str, Any] = {**QUICK, "refit": "none"}


def coupled(form: str = PRE, **options: Any) -> Coupled:
    settings = PruneConfig(round_to=1, **options)
    return couple(load(transformer(form), features(16), settings), settings)


@pytest.mark.parametrize("form", FORMS)
def test_layers_are_found_by_structure_and_called_by_their_scope(form: str):
    """Fails where a feed-forward block is put together with the attention of the next layer."""
    found = coupled(form)
    branches = ("attention",) * (2 if form == CROSS else 1) + ("feed-forward",)
    assert [(x.number, x.name, x.kinds) for x in found.layers_whole] == [
        (k, f"/layers/{k}", branches) for k in range(3)
    ]
    names = {x.number: [found.channels.groups[g].name for g in x.groups] for x in found.layers_whole}
    assert all(f"/layers/{k}/" in name for k, own in names.items() for name in own)


@pytest.mark.parametrize("form", FORMS)
def test_twice_as_many_layers_are_twice_the_work(form: str, monkeypatch: pytest.MonkeyPatch):
    """Fails where each layer is looked for in the whole graph: nodes that are looked at, counted."""
    looked: list[str] = []

    def counted(self: Graph, tensor: str) -> list[Node]:
        looked.append(tensor)
        return reading(self, tensor)

    reading = Graph.reading
    monkeypatch.setattr(Graph, "reading", counted)
    settings, work = PruneConfig(round_to=1), []
    for layers in (6, 12):
        channels = couple(load(transformer(form, layers=layers), features(8), settings), settings).channels
        looked.clear()
        assert len(whole_layers(channels, branches.drops(channels))) == layers
        work.append(len(looked))
    assert work[1] < 2.2 * work[0]


def test_inspect_lists_layers():
    found = inspect(transformer(), features(4))
    assert [x.branches for x in found.layers] == [("attention", "feed-forward")] * 3
    assert "/layers/2   attention + feed-forward" in terminal.inspection(found, terminal.Screen())


@pytest.mark.parametrize("name", ["bottleneck", "two_branches_and_no_stream"])
def test_branches_without_attention_are_no_layers(name: str):
    row = TABLE[name]
    assert not inspect(row.model(), row.feeds(4)).layers


@pytest.mark.parametrize("form", FORMS)
def test_the_model_without_a_layer_is_the_one_with_its_weights_at_zero(form: str):
    """An oracle of its own: the original with zeros for what joins the stream, at several sizes."""
    model = transformer(form)
    result = prune(model, None, features(32), ratio=0.01, drop_layers=("1",), **PLAIN)
    assert result.model is not None
    left = {n.op_type for n in result.model.graph.node if n.name.startswith("/layers/1/")}
    assert left <= {"Add", "LayerNormalization"}
    for feeds in (features(3, 6, 5), features(1, 11, 6), features(2, 1, 7)):
        expected = Session(zeroed(model, 1)).run(feeds)["head"]
        np.testing.assert_allclose(Session(result.model).run(feeds)["head"], expected, rtol=2e-5, atol=2e-5)
    assert result.report.checks["input_sizes_compared"] > 1


@pytest.mark.parametrize("codes", [False, True])
def test_a_layer_whose_feed_forward_block_is_a_mixture_of_experts(codes: bool):
    """Fails where biases of experts, which a router weighs beside them, hide where the mixture joins the stream."""
    model = mixtures.model(layers=2, attention=True, codes=codes)
    found = inspect(model, mixtures.samples(4)).layers
    assert [x.branches for x in found] == [("attention", "feed-forward")] * 2
    result = prune(model, None, mixtures.samples(24), drop_layers=("1",), **PLAIN)
    oracle = onnx.ModelProto.FromString(model.SerializeToString())
    for t in oracle.graph.initializer:
        if t.name in ("o1", "v1_0_scales" if codes else "v1_0"):
            t.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(t)), t.name))
    assert not {"o1", "v1_0", "u1_0", "q1"} & {t.name for t in result.model.graph.initializer}
    assert sum(n.op_type in ("MoE", "QMoE") for n in result.model.graph.node) == 1
    for count, length in ((3, 4), (1, 1), (2, 7)):
        feeds = mixtures.samples(count, length)
        assert_same(Session(result.model).run(feeds)["y"], Session(oracle).run(feeds)["y"], rtol=1e-4, atol=1e-4)


def test_what_goes_is_what_was_counted():
    """Fails where the norm that both branches of a layer share is not counted with it."""
    model = transformer(PARALLEL)
    gone = [prune(model, None, features(32), ratio=0.01, drop_layers=("0", "2"), dry_run=d, **PLAIN) for d in (0, 1)]
    real, counted = (r.report.after for r in gone)
    assert (real.macs, real.parameters) == (counted.macs, counted.parameters)
    # Of a layer the biases of what joins the stream stay.
    of_layer = sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.name.startswith("layers.0."))
    row = gone[0].report.whole_layers[0]
    assert (row.gone, row.parameters) == (True, of_layer - 2 * 16)
    before = gone[0].report.before.macs
    assert before - real.macs == row.macs + gone[0].report.whole_layers[2].macs


def test_a_budget_takes_the_layer_that_does_nothing():
    """Fails where the trial without both branches is not run, or nobody asks what it saves."""
    model = transformer(quiet=1)
    settings = QUICK | {"ratio": 0.3}
    gone = prune(model, None, features(64), drop_layers=("auto",), **settings).report
    kept = prune(model, None, features(64), attention="heads", **settings).report
    assert [x.number for x in gone.whole_layers if x.gone] == [1]
    assert not any(x.gone for x in kept.whole_layers)
    assert gone.achieved >= 0.3
    assert gone.output_error is not None
    assert kept.output_error is not None
    assert gone.output_error < kept.output_error
    assert gone.whole_layers[1].error == min(x.error for x in gone.whole_layers if x.error is not None)


def test_methods_that_cut_one_group_after_the_other_take_layers_too():
    options: dict[str, Any] = {"method": "gfs", "refit": "greedy", "ratio": 0.3, "drop_layers": ("1",)}
    report = prune(transformer(layers=2), None, features(16), **QUICK, **options).report
    assert [x.gone for x in report.whole_layers] == [False, True]


def test_the_error_of_a_layer_is_that_of_both_branches_at_once():
    """Fails where it is a sum of what each does alone."""
    model, feeds = transformer(), features(64)
    report = prune(model, None, feeds, ratio=0.3, drop_layers=("auto",), dry_run=True, **PLAIN).report
    held = load(model, feeds, PruneConfig(ratio=0.3)).held.arrays
    was, now = (Session(m).run(held)["head"] for m in (model, zeroed(model, 2)))
    error = np.square(now - was).sum() / np.square(was - was.mean(axis=0)).sum()
    assert report.whole_layers[2].error == pytest.approx(error, rel=1e-3)


def test_layers_go_by_what_they_do_as_a_whole_and_not_by_what_their_branches_do():
    """Fails where the allocation takes the sum of both curves for a layer."""
    found = coupled(ratio=0.3, drop_layers=("auto",))
    cost = found.costs["macs"]
    full = [g.size for g in found.channels.groups]
    limit = 0.7 * cost.at(full)
    # Each branch alone does great harm, however little of it goes.
    curves = [np.linspace(9.0, 0.0, n + 1) for n in full]
    kept = with_layers(curves, cost, limit, found, {0: 5.0, 1: 1e-3, 2: 5.0})
    groups = {x.number: x.groups for x in found.layers_whole}
    assert [k for k, own in groups.items() if not any(kept[g] for g in own)] == [1]
    # Each branch alone does none, until both are gone.
    flat = [np.linspace(1e-3, 0.0, n + 1) for n in full]
    kept = with_layers(flat, cost, limit, found, dict.fromkeys(groups, 50.0))
    assert all(any(kept[g] for g in own) for own in groups.values())
    assert cost.at(kept) <= limit
    # What nothing reaches is refused, or where it is only aimed at all layers go, and the rest is as narrow as may be.
    with pytest.raises(BudgetUnreachable, match="lower --ratio"):
        with_layers(flat, cost, 0.0, found, dict.fromkeys(groups, 50.0))
    kept = with_layers(flat, cost, 0.0, found, dict.fromkeys(groups, 50.0), exact=False)
    assert not any(kept[g] for own in groups.values() for g in own)


def test_the_plan_and_all_reports_name_the_layer(tmp_path: Path):
    file = tmp_path / "plan.json"
    first = prune(transformer(), None, features(32), ratio=0.2, drop_layers=("*/1",), plan_file=file, **QUICK)
    again = prune(transformer(), None, features(32), from_plan=file)
    assert first.model is not None
    assert again.model is not None
    assert first.model.SerializeToString() == again.model.SerializeToString()
    assert plan.load(file).layers == ("layer 1 = /layers/1",)
    named = "layer 1 = /layers/1 (attention + feed-forward)"
    assert named in terminal.prune_report(first.report, terminal.Screen())
    assert named in markdown(first.report.document())
    assert '"whole_layers"' in to_json(first.report.document())


def test_the_option_arrives(tmp_path: Path):
    onnx.save(transformer(), tmp_path / "model.onnx")
    np.savez(tmp_path / "calib.npz", **features(16))
    args = [
        str(tmp_path / "model.onnx"),
        "--calib",
        str(tmp_path / "calib.npz"),
        "--ratio",
        "0.2",
        "--fast",
        "--dry-run",
    ]
    wanted = ["--drop-layers", "auto", "--drop-layers", "/layers/1", "--plan", str(tmp_path / "plan.json"), "--quiet"]
    assert program.main([*args, *wanted]) == 0
    made = plan.load(tmp_path / "plan.json")
    assert made.settings().drop_layers == ("auto", "/layers/1")
    assert "layer 1 = /layers/1" in made.layers


def test_a_layer_with_one_head_goes_too():
    model = transformer()
    for t in model.graph.initializer:
        if t.name == "heads":
            t.CopyFrom(numpy_helper.from_array(np.array([0, 0, 1, 16], np.int64), t.name))
    report = prune(model, None, features(32), ratio=0.01, drop_layers=("1",), **PLAIN).report
    assert {g.channels_after for g in report.groups if "/layers/1/" in g.name} == {0}
    assert all(g.channels_after for g in report.groups if "/layers/1/" not in g.name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_layers": ("7",)}, "the model has the layers 0 to 2"),
        ({"drop_layers": ("/layer/1",)}, "did you mean /layers/1"),
        ({"drop_layers": ("1",), "exclude": ("/layers/1/*",)}, "layer 1 = /layers/1 cannot go: --exclude"),
        ({"drop_layers": ("1",), "max_ratio": 0.5}, "--max-ratio leaves some"),
        ({"drop_layers": ("1",), "tolerance": 0.1}, "drops no whole layer"),
        ({"drop_layers": ("auto",), "uniform": 0.5}, "name the layers"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        coupled(**options)


def test_a_model_without_layers_says_what_they_would_be():
    row = TABLE["bottleneck"]
    settings = PruneConfig(round_to=1, drop_layers=("auto",))
    with pytest.raises(UsageError, match=r"^--drop-layers: no attention .{,110}$"):
        couple(load(row.model(), row.feeds(16), settings), settings)


def test_an_excluded_layer_is_no_choice_of_a_budget():
    found = coupled(ratio=0.3, drop_layers=("auto",), exclude=("/layers/1/*",))
    assert [x.number for x in found.widths.layers] == [0, 2]


def test_layers_that_go_are_like_no_others():
    """Groups of one width: those of a layer that goes keep nothing, and the others one width among them."""
    report = prune(
        transformer(), None, features(32), ratio=0.5, drop_layers=("1",), same_widths=("*up_product*",), **PLAIN
    ).report
    inner = [g.channels_after for g in report.groups if g.channels_before == INNER]
    assert inner[1] == 0
    assert inner[0] == inner[2] > 0


@pytest.mark.parametrize(
    ("names", "scope"),
    [
        (["/model/layers.3/attn/q/MatMul", "/model/layers.3/mlp/up/MatMul"], "/model/layers.3"),
        (["model.layers.1.q.weight", "model.layers.12.q.weight"], "model.layers"),
        (["a", "b"], ""),
        (["/3/q", "/3/k"], ""),
        ([], ""),
    ],
)
def test_scopes_end_at_whole_words(names: list[str], scope: str):
    assert common_scope(names) == scope
