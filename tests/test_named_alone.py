"""What is named goes without a ratio: rows of tokens, experts and layers, and no channel beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune import PruneConfig, prune
from onnxprune.cli.program import main
from onnxprune.errors import NothingPrunable, UsageError
from onnxprune.graph import protobuf
from onnxprune.report import terminal
from onnxprune.runtime.session import Session
from onnxprune.surgery.mixtures import mixtures_of
from onnxprune.verification.unchosen import never_chosen
from tests import mixtures, vocabularies
from tests.compare import assert_same
from tests.transformer import features, transformer, zeroed

Capture = pytest.CaptureFixture[str]
LISTED = (7, *range(0, 7), *range(8, 16))
_NOTE = "no channels were asked for: none went, and the weights that stay are the original's"


def ids(count: int = 24) -> dict[str, np.ndarray[Any, Any]]:
    return {"input_ids": np.random.default_rng(1).integers(0, 16, (count, 5))}


def stored(proto: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


@pytest.mark.parametrize("method", ["obs", "gfs", "combined", "magnitude"])
def test_rows_alone(tmp_path: Path, method: str):
    """Fails where a weight is fitted, a channel goes, a trial is run, or the plan of no group does not replay."""
    path = tmp_path / "model.onnx"
    onnx.save(vocabularies.model(), path)
    first = prune(path, tmp_path / "a.onnx", ids(), keep_tokens=LISTED, method=method, plan_file=tmp_path / "plan.json")
    prune(path, tmp_path / "b.onnx", ids(), from_plan=tmp_path / "plan.json")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    before, after = stored(onnx.load(path)), stored(onnx.load(tmp_path / "a.onnx"))
    for name in ("up", "bias", "down"):
        np.testing.assert_array_equal(after[name], before[name])
    kinds = [[n.op_type for n in onnx.load(p).graph.node] for p in (path, tmp_path / "a.onnx")]
    assert kinds[1] == ["Gather", *kinds[0], "Pad", "Gather"]
    assert first.report.after.parameters < first.report.before.parameters
    expected, found = (Session(onnx.load(p)).run(ids(3))["logits"] for p in (path, tmp_path / "a.onnx"))
    assert_same(found[..., :16], expected[..., :16], rtol=1e-6, atol=1e-6)
    assert (found[..., 16:] == np.finfo(np.float32).min).all()
    assert _NOTE in first.report.notes
    assert not {"select", "allocate", "imitate", "recover"} & first.report.effort.stages.keys()
    assert all(len(g.kept) == g.units for g in first.plan.groups)


def test_rows_of_a_model_without_a_channel_that_may_go():
    """Fails where a model of which nothing can be cut is refused, though nothing is to be cut."""
    result = prune(vocabularies.model(), None, ids(), keep_tokens=LISTED, exclude=("*",))
    assert protobuf.parameters(result.model) < protobuf.parameters(vocabularies.model())
    # Nothing is fitted to random inputs, which therefore are no reason to warn.
    assert not prune(vocabularies.model(), None, None, keep_tokens=LISTED).report.warnings


def test_rows_that_all_stay_are_nothing_to_do():
    """Fails where a copy of the model is written as if something had gone."""
    with pytest.raises(
        NothingPrunable, match=r"nothing goes.*all 64 tokens stay, as all of them are listed; list fewer"
    ):
        prune(vocabularies.model(), None, ids(), keep_tokens=tuple(range(64)))


def test_fused_operators_stay():
    """Fails where the result has the form that is pruned, with more nodes and bytes than the original."""
    proto = vocabularies.model(embedding="fused", ids=("Cast",))
    result = prune(proto, None, ids(), keep_tokens=LISTED)
    assert "EmbedLayerNormalization" in {n.op_type for n in result.model.graph.node}
    assert not any("fused" in note for note in result.report.notes)
    assert result.report.after.bytes < result.report.before.bytes


def test_experts_alone():
    """Fails where the result is another than the original that never chooses them."""
    proto = mixtures.model(rare=(2,))
    result = prune(proto, None, mixtures.samples(), drop_experts=("1",))
    assert [r.gone for r in result.report.experts] == [(2,), (2,)]
    oracle = never_chosen(proto, {(m.node, 1): (m.count, (0, 1, 3)) for m in mixtures_of(proto)}, {})
    feeds = mixtures.samples(3, 7)
    assert_same(Session(result.model).run(feeds)["y"], Session(oracle).run(feeds)["y"], rtol=1e-5, atol=1e-6)
    assert _NOTE in result.report.notes
    told = " ".join(terminal.prune_report(result.report, terminal.Screen(piped=True)).split())
    assert "unchanged: none of its channels were asked for" in told
    assert "MACs removed 0.0%, nothing requested but what is named" in told


def test_layers_alone():
    """Fails where channels of other layers go along."""
    model = transformer()
    result = prune(model, None, features(32), drop_layers=("1",), refit="none", fast=True)
    groups = result.report.groups
    assert {g.channels_after for g in groups if "/layers/1/" in g.name} == {0}
    assert all(g.channels_after == g.channels_before for g in groups if "/layers/1/" not in g.name)
    feeds = features(3)
    expected, found = (Session(p).run(feeds)["head"] for p in (zeroed(model, 1), result.model))
    assert_same(found, expected, rtol=2e-5, atol=2e-5)


def test_shares_of_groups_alone():
    """Fails where a group beside those that are named loses channels."""
    report = prune(
        vocabularies.model(), None, ids(), ratio=0.0, ratio_of=("/inner=0.5",), round_to=1, fast=True, dry_run=True
    ).report
    assert sorted(g.channels_after / g.channels_before for g in report.groups) == [0.5, 1.0]


@pytest.mark.parametrize(
    ("options", "ratio"),
    [
        ({"drop_experts": ("1",)}, 0.0),
        ({"keep_tokens": (1, 2)}, 0.0),
        ({"drop_layers": ("3",), "exclude": ("a",)}, 0.0),
        ({"keep_tokens": (1, 2), "max_ratio": 0.3}, 0.5),
        ({"drop_experts": ("1",), "budget": "params"}, 0.5),
        ({"drop_experts": ("1",), "drop_layers": ("auto",)}, 0.5),
        ({"drop_experts": ("1",), "drop_branches": True}, 0.5),
        ({"drop_experts": ("1",), "uniform": 0.3}, None),
        ({}, 0.5),
    ],
)
def test_which_ratio_is_meant(options: dict[str, Any], ratio: float | None):
    assert PruneConfig(**options).ratio == ratio


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "^--ratio 0 is .* only where all that goes is named by --drop-experts, --keep-tokens"),
        ({"ratio_of": ("*=0",)}, "only where all that goes is named"),
        (
            {"keep_tokens": (1,), "drop_branches": True},
            "^--drop-branches leaves the choice .*: give --ratio",
        ),
        (
            {"keep_tokens": (1,), "drop_layers": ("auto",)},
            "^--drop-layers auto leaves .* by --drop-layers",
        ),
        (
            {"keep_tokens": (1,), "budget": "latency"},
            "^--budget latency is met by a --ratio .* --budget out",
        ),
        ({"keep_tokens": (1,), "rotate": "auto"}, "^--rotate auto is about channels that go.* give --ratio"),
        ({"keep_tokens": (1,), "attention": "rank"}, "^--attention rank is about channels that go"),
    ],
)
def test_what_would_do_nothing_is_refused(options: dict[str, Any], match: str):
    with pytest.raises(UsageError, match=match):
        PruneConfig(ratio=0.0, **options)


def test_the_command(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch):
    """Fails where a ratio is demanded, one from a file cannot be taken back, or a limit finds no largest cut."""
    onnx.save(mixtures.model(), tmp_path / "model.onnx")
    np.savez(tmp_path / "calib.npz", **mixtures.samples())
    monkeypatch.chdir(tmp_path)

    def said(*args: str, code: int = 0) -> str:
        assert main(["model.onnx", "--calib", "calib.npz", *args]) == code
        shown = capsys.readouterr()
        return " ".join((shown.out or shown.err).split())

    assert "nothing requested but what is named" in said("a.onnx", "--drop-experts", "1")
    Path("onnxprune.toml").write_text('drop-experts = ["1"]\n')
    assert "nothing requested but what is named" in said("--dry-run")
    assert "requested 20.0%" in said("--dry-run", "--ratio", "0.2", "--round-to", "1")
    assert "the largest cut that holds the limits" in said("b.onnx", "--max-error", "90%", "--fast", "--round-to", "16")
    Path("onnxprune.toml").write_text("ratio = 0.4\n")
    assert "nothing requested but what is named" in said("--dry-run", "--ratio", "0", "--drop-experts", "1")
    Path("onnxprune.toml").unlink()
    told = said("--dry-run", "--ratio", "0", code=2)
    assert "--ratio 0 is outside (0, 1)" in told
    assert "named by --drop-experts, --keep-tokens, --drop-layers or --ratio-of" in told
    told = said("--dry-run", "--drop-experts", "1", "--budget", "params", code=2)
    assert "--ratio is missing" in told
    assert "--ratio 0 where nothing goes but what is named" in told
    assert "--drop-branches says that branches may go, not how much" in said("--dry-run", "--drop-branches", code=2)


@pytest.mark.parametrize("goal", [{"ratio": 0.3}, {"uniform": 0.3}, {"layer_tolerance": 0.3}])
def test_all_groups_held_whole_by_their_shares(goal: dict[str, float]):
    """Fails where that is told as a matter of alignment."""
    with pytest.raises(NothingPrunable, match=r"--ratio-of '\*=0' keeps every group whole.*a share above 0"):
        prune(vocabularies.model(), None, ids(), ratio_of=("*=0",), dry_run=True, **goal)
