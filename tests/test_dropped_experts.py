"""`--drop-experts` from the options to the written file: a model without experts is one that never chooses them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import PruneConfig, prune
from onnxprune.calibration.experts_used import use_of
from onnxprune.cli.program import main
from onnxprune.errors import CheckFailed, InputError, UsageError
from onnxprune.graph import external, protobuf
from onnxprune.pipeline import inspect
from onnxprune.plan import load
from onnxprune.report.groups import in_runs
from onnxprune.report.markdown import markdown
from onnxprune.report.page import html
from onnxprune.runtime.session import Session
from onnxprune.stages.dropped_experts import DroppedExperts
from onnxprune.stages.load import read_samples
from onnxprune.surgery.mixtures import mixtures_of, without_experts
from onnxprune.verification.unchosen import never_chosen
from tests.compare import assert_same
from tests.mixtures import WIDTH, model, samples

OPTIONS: dict[str, Any] = {"ratio": 0.2, "round_to": 1, "fast": True}
FORMS: dict[str, dict[str, Any]] = {
    "one of four": {"chosen": 1, "router": "bias"},
    "two of four, whose shares sum to one": {},
    "two of four": {"normal": False, "router": "Gemm"},
    "four of six": {"experts": 6, "chosen": 4},
    "codes": {"codes": True, "router": "packed"},
    "one of codes": {"codes": True, "chosen": 1},
    "four of six of codes": {"codes": True, "experts": 6, "chosen": 4, "normal": False},
    "a router that is read elsewhere": {"router": "read"},
    "a router of two": {"router": "twice", "layers": 1},
    "a router that chooses": {"router": "chooses", "layers": 1},
    "a router with probabilities": {"router": "probable", "layers": 1, "codes": True},
}
_COMPARE = ("Softmax", "TopK")


def kept_of(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """One expert less of each mixture, of each another one."""
    return {
        m.name: tuple(e for e in range(m.count) if e != (1 + i) % m.count) for i, m in enumerate(mixtures_of(proto))
    }


@pytest.mark.parametrize("form", FORMS)
def test_the_slice_is_the_model_that_never_chooses_them(form: str):
    """Fails where another expert goes than is masked, a column of the router, a scale or a bias."""
    proto = model(**FORMS[form])
    kept = kept_of(proto)
    sliced = without_experts(proto, kept)
    onnx.checker.check_model(sliced)
    masks = {(m.node, 1): (m.count, kept[m.name]) for m in mixtures_of(proto)}
    masks |= {(k, 0): m for k, n in enumerate(proto.graph.node) for m in masks.values() if n.op_type in _COMPARE}
    oracle, before = Session(never_chosen(proto, masks, {})), Session(proto)
    after, moved = Session(sliced), 0.0
    for count, length in ((3, 4), (1, 1), (2, 7)):
        feeds = samples(count, length)
        expected, found = oracle.run(feeds), after.run(feeds)
        assert found.keys() == expected.keys()
        for name, y in expected.items():
            assert_same(found[name], y, rtol=1e-5, atol=1e-6)
        moved = max(moved, float(np.abs(found["y"] - before.run(feeds)["y"]).max()))
    assert moved > 0.1  # experts that were chosen went
    assert external.model_bytes(sliced) < external.model_bytes(proto)
    assert [m.count for m in mixtures_of(sliced)] == [m.count - 1 for m in mixtures_of(proto)]


@pytest.mark.parametrize("router", ["MatMul", "bias", "Gemm", "packed", "chooses", "probable"])
def test_the_column_of_the_router_goes(router: str):
    """Fails where a Gather stands where a column could go."""
    proto = model(router=router)
    sliced = without_experts(proto, kept_of(proto))
    before, after = ([n.op_type for n in p.graph.node if n.op_type != "Constant"] for p in (proto, sliced))
    assert after == before
    assert not {4} & {d for t in sliced.graph.initializer if t.name.startswith(("router", "offset")) for d in t.dims}


def test_what_experts_give_is_measured():
    """Fails where the norm of an answer, its weight or its expert is mistaken, or padding counts."""
    for normal in (True, False):
        proto = model(layers=1, normal=normal, tokens=12, router="bias")
        ids, mask = np.random.default_rng(5).integers(0, 12, (20, 6)), np.ones((20, 6), np.int64)
        mask[::2, 4:] = 0
        data = read_samples(proto, {"input_ids": ids, "attention_mask": mask}, PruneConfig())
        [mixture] = mixtures_of(proto)
        found = use_of(proto, [mixture], data, {})[mixture.name]
        w = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
        expected = np.zeros(4)
        for x in (w["table"][ids] @ w["embed"])[mask == 1]:
            logits = x @ w["router0"] + w["offset0"]
            p = np.exp(logits) / np.exp(logits).sum()
            best = np.argsort(-p)[:2]
            for e in best:
                h = w["u0_0"][e] @ x + w["b0_0"][e]
                answer = w["v0_0"][e] @ (h / (1 + np.exp(-h))) + w["c0_0"][e]
                expected[e] += p[e] / (p[best].sum() if normal else 1) * np.linalg.norm(answer)
        np.testing.assert_allclose(found.use, expected, rtol=1e-5)
        assert found.positions.sum() == 2 * mask.sum()


@pytest.mark.parametrize("codes", [False, True])
def test_those_that_give_least_go_and_report_and_plan_name_them(codes: bool, tmp_path: Path):
    """Fails where an expert that is used goes, the original's sizes are those of another model, or a replay differs."""
    path = tmp_path / "model.onnx"
    onnx.save(model(rare=(2,), codes=codes), path)
    options = {**OPTIONS, "drop_experts": ("1",)}
    first = prune(path, tmp_path / "a.onnx", samples(), plan_file=tmp_path / "plan.json", **options)
    report = first.report
    assert [(r.name, r.experts, r.kept, r.gone) for r in report.experts] == [
        (f"/mixture{k}_0", 4, (0, 1, 3), (2,)) for k in (0, 1)
    ]
    assert all(r.lost is not None and 0 <= r.lost < 0.05 for r in report.experts)
    assert any("--drop-experts: 2 experts went from 2 mixtures, which saves" in note for note in report.notes)
    for shown in (markdown(report.document()), html(report.document())):
        assert re.search(r"/mixture1_0\W.*4 → 3\W.*2\W.*0\.\d+%", shown)
    assert report.before.parameters == protobuf.parameters(onnx.load(path))
    # Of each of four positions: the embedding, routers, two experts of each mixture, and the head.
    assert report.before.macs == 4 * (8 * WIDTH + 2 * (4 * WIDTH + 2 * 2 * 32 * WIDTH) + 5 * WIDTH)
    result = onnx.load(tmp_path / "a.onnx")
    assert [m.count for m in mixtures_of(result)] == [3, 3]
    said = json.loads((tmp_path / "plan.json").read_text())["experts"]
    assert said == [{"name": f"/mixture{k}_0", "experts": 4, "kept": [0, 1, 3]} for k in (0, 1)]
    again = prune(path, tmp_path / "b.onnx", samples(), from_plan=tmp_path / "plan.json")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert [r.kept for r in again.report.experts] == [(0, 1, 3)] * 2


def test_the_error_is_that_against_all_experts():
    """Fails where the result is judged by the model without the experts, of which it is a small cut."""
    with_all, without = (
        prune(model(), None, samples(), **{**OPTIONS, "ratio": 0.01}, drop_experts=experts).report.output_error
        for experts in ((), ("*=0",))
    )
    assert with_all is not None and without is not None
    assert without > 10 * with_all


def test_tokens_and_experts_go_together():
    """Fails where the model with all tokens still has all experts when the two are compared, or the report's first
    column is another model than the original."""
    proto = model(tokens=40)
    ids = np.random.default_rng(2).integers(0, 16, (32, 5))
    data = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    result = prune(proto, None, data, **OPTIONS, drop_experts=("1",), keep_tokens=tuple(range(16)))
    assert result.report.before.parameters == protobuf.parameters(proto)
    [y] = Session(result.model).run(data).values()
    assert y.shape == (32, 5, 40)


def test_a_router_that_chooses_chooses_among_the_others():
    """Fails where a run takes such a router for one that mixtures choose by, or counts its MACs another way."""
    result = prune(model(router="chooses"), None, samples(), **OPTIONS, drop_experts=("1",))
    assert [m.count for m in mixtures_of(result.model)] == [3, 3]
    assert "Gather" not in {n.op_type for n in result.model.graph.node}
    assert result.report.before.macs == 4 * (8 * WIDTH + 2 * (4 * WIDTH + 2 * 2 * 32 * WIDTH) + 5 * WIDTH)


def test_a_wrong_slice_is_caught(monkeypatch: pytest.MonkeyPatch):
    """Fails where nothing holds the model without experts against the one that never chooses them."""
    right = DroppedExperts.cut

    def wrong(self: DroppedExperts, proto: onnx.ModelProto) -> onnx.ModelProto:
        other = DroppedExperts(whole=self.whole, rows=self.rows, routers=(), types={}, notes=())
        monkeypatch.setattr(DroppedExperts, "kept", property(lambda _: {r.name: (0, 1, 3) for r in self.rows}))
        return right(other, proto)

    monkeypatch.setattr(DroppedExperts, "cut", wrong)
    with pytest.raises(CheckFailed, match="original whose routers never choose the others"):
        prune(model(), None, samples(), **OPTIONS, drop_experts=("*=1",))


@pytest.mark.parametrize(
    ("form", "wanted", "why"),
    [
        ({}, ("3",), "each position goes to 2 of the 4 experts of /mixture0_0, so that at most 2 can go"),
        ({}, ("*=0,1,2",), "at most 2 can go, and 3 are named"),
        ({}, ("*=4",), "has the experts 0 to 3, and no 4"),
        ({}, ("/mixtur0_0=1",), "matches no mixture of experts; did you mean /mixture0_0"),
        ({"chosen": 4}, ("1",), "no expert can go: /mixture0_0: each position goes to 4 of its 4 experts"),
        ({"chosen": 4}, ("*=1",), "no expert of /mixture0_0 can go"),
        ({"layers": 0}, ("1",), "is about models with the operators MoE or QMoE"),
        ({}, ("*=1,0,1",), "names the expert 1 twice; leave one out"),
        ({}, ("0",), "give how many experts go"),
        ({}, ("1", "2"), "says twice"),
        ({}, ("some",), "is no number of experts"),
        ({}, ("=1",), "is no number of experts"),
        ({}, ("*=" + "9" * 5000,), "is no number of experts"),
    ],
)
def test_what_it_cannot_do_is_refused(form: dict[str, Any], wanted: tuple[str, ...], why: str):
    with pytest.raises(UsageError, match=why):
        prune(model(**form), None, samples(), dry_run=True, **OPTIONS, drop_experts=wanted)


def test_experts_that_are_no_weights_of_their_own_stay(tmp_path: Path):
    """Fails where weights that are computed, or those that others read too, are cut."""
    proto = model()
    first, second = (n for n in proto.graph.node if n.op_type == "MoE")
    second.input[2] = first.input[2]
    assert [m.stays for m in mixtures_of(proto)] == ["", ""]
    kept = {"/mixture0_0": (0, 1)}
    sliced = without_experts(proto, kept)
    [a, b] = (dict(zip("xruv", [*n.input][:4], strict=False)) for n in sliced.graph.node if n.op_type == "MoE")
    sizes = {t.name: t.dims[0] for t in sliced.graph.initializer}
    assert (sizes[a["u"]], sizes[b["u"]]) == (2, 4)
    second.input[2] = "u1_0"
    node = onnx.helper.make_node("Neg", [first.input[2]], ["computed"])
    proto.graph.node.insert(0, node)
    next(n for n in proto.graph.node if n.op_type == "MoE").input[2] = "computed"
    stays = "'computed' is no weight of its own"
    assert [m.stays for m in mixtures_of(proto)] == [stays, ""]
    result = prune(proto, None, samples(), dry_run=True, **OPTIONS, drop_experts=("1",))
    assert any(f"all experts of /mixture0_0 stay: {stays}" in note for note in result.report.notes)
    assert [r.name for r in result.report.experts] == ["/mixture1_0"]
    assert "1 expert went from 1 mixture, which" in " ".join(result.report.notes)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("v1_0", onnx.TensorProto.FLOAT, None))
    assert [m.stays for m in mixtures_of(proto)] == [stays, "the weight 'v1_0' is read elsewhere too"]


def tied(*slots: int, **form: Any) -> onnx.ModelProto:
    """Two mixtures, of which the second reads the first one's weights at these inputs."""
    proto = model(**form)
    first, second = (n for n in proto.graph.node if n.op_type == "MoE")
    for i in slots:
        second.input[i] = first.input[i]
    stored = [t for t in proto.graph.initializer if t.name not in {f"{'ubvc'[i - 2]}1_0" for i in slots}]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(stored)
    return proto


@pytest.mark.parametrize("slots", [(2, 3, 4, 5), (4,)])
@pytest.mark.parametrize("wanted", ["1", "*1_0=2"])
def test_mixtures_that_share_weights_lose_the_same_experts(slots: tuple[int, ...], wanted: str, tmp_path: Path):
    """Fails where what is stored once is stored twice in the result, or each loses experts of its own."""
    path = tmp_path / "model.onnx"
    onnx.save(tied(*slots, rare=(2,)), path)
    proto = onnx.load(path)
    assert [m.shares for m in mixtures_of(proto)] == [("/mixture1_0",), ("/mixture0_0",)]
    options = {**OPTIONS, "ratio": 0.01, "drop_experts": (wanted,), "plan_file": tmp_path / "plan.json"}
    report = prune(path, tmp_path / "a.onnx", samples(), **options).report
    assert [r.gone for r in report.experts] == [(2,), (2,)]
    assert any("/mixture0_0, /mixture1_0 share weights, and lose the same experts" in n for n in report.notes)
    kept = {r.name: r.kept for r in report.experts}
    cut = without_experts(proto, kept)
    first, second = (n for n in cut.graph.node if n.op_type == "MoE")
    assert [i for i in (2, 3, 4, 5) if second.input[i] == first.input[i]] == [*slots]
    assert external.model_bytes(cut) < external.model_bytes(proto)
    prune(path, tmp_path / "b.onnx", samples(), from_plan=tmp_path / "plan.json")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["experts"][0]["kept"] = [0, 1, 2]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(UsageError, match="keeps other experts of '/mixture0_0' than of '/mixture1_0', and these share"):
        prune(path, None, samples(), dry_run=True, from_plan=tmp_path / "plan.json")


def test_the_use_of_those_that_share_weights_is_summed():
    """Fails where one of them decides what both lose, as by its own use."""
    proto = tied(2, 3, 4, 5, rare=(2,))
    offset = next(t for t in proto.graph.initializer if t.name == "offset1")
    moved = onnx.numpy_helper.to_array(offset).copy()
    moved[2] += 30  # the second sends all positions to the one that the first sends none to
    offset.CopyFrom(onnx.numpy_helper.from_array(moved, offset.name))
    data = read_samples(proto, samples(), PruneConfig())
    use = use_of(proto, mixtures_of(proto), data, {})
    least = int(np.argmin(sum(u.use for u in use.values())))
    assert least != int(np.argmin(use["/mixture0_0"].use))
    result = prune(proto, None, samples(), dry_run=True, **OPTIONS, drop_experts=("1",))
    assert [r.gone for r in result.report.experts] == [(least,)] * 2


def test_biases_that_say_nothing_tie_no_mixtures():
    """Fails where zeros that are stored once have all mixtures lose the same experts."""
    proto = tied(3)
    zeros = next(t for t in proto.graph.initializer if t.name == "b0_0")
    zeros.CopyFrom(onnx.numpy_helper.from_array(np.zeros((4, 32), np.float32), zeros.name))
    assert [m.shares for m in mixtures_of(proto)] == [(), ()]


def test_one_that_stays_keeps_those_that_share_its_weights():
    proto = tied(2)
    mixture = next(n for n in proto.graph.node if n.op_type == "MoE")
    next(a for a in mixture.attribute if a.name == "k").i = 4
    stays = [m.stays for m in mixtures_of(proto)]
    assert "none can be spared" in stays[0]
    assert stays[1].startswith("it shares weights with /mixture0_0, of which all experts stay: each position goes")
    with pytest.raises(UsageError, match="no expert of /mixture1_0 can go: it shares weights with /mixture0_0"):
        prune(proto, None, samples(), dry_run=True, **OPTIONS, drop_experts=("*1_0=1",))


def test_a_plan_of_other_mixtures_is_refused(tmp_path: Path):
    path = tmp_path / "model.onnx"
    onnx.save(model(), path)
    prune(path, None, samples(), dry_run=True, plan_file=tmp_path / "plan.json", **OPTIONS, drop_experts=("1",))
    plan = json.loads((tmp_path / "plan.json").read_text())
    for change, why in (
        ({"name": "/other"}, "the plan's mixture '/other' .4 experts. is not in this model"),
        ({"kept": [1]}, "the plan keeps 1 expert of '/mixture0_0', which sends each position to 2; make a new plan"),
    ):
        changed = {**plan, "experts": [{**plan["experts"][0], **change}]}
        (tmp_path / "other.json").write_text(json.dumps(changed))
        with pytest.raises(UsageError, match=why):
            prune(path, None, samples(), dry_run=True, from_plan=tmp_path / "other.json")
    must = "the mixture 'a' must keep some of its 4 experts, in ascending order"
    for experts, why in (
        ([{"name": "a", "experts": 4, "kept": [4]}], must),
        ([{"name": "a", "experts": 4, "kept": []}], must),
        ([{"name": "a", "experts": 4}], "'kept' is missing"),
        ([1], "a mixture must be of type dict, not int"),
    ):
        (tmp_path / "other.json").write_text(json.dumps({**plan, "experts": experts}))
        with pytest.raises(InputError, match=f"is not a plan of onnxprune: {why}$"):
            load(tmp_path / "other.json")


def test_a_plan_of_a_model_with_experts_or_tokens_is_none_of_one_without(tmp_path: Path):
    """Fails where an option is named that was not given."""
    path = tmp_path / "model.onnx"
    onnx.save(model(layers=0), path)
    prune(path, None, samples(), dry_run=True, plan_file=tmp_path / "plan.json", **OPTIONS)
    plan = json.loads((tmp_path / "plan.json").read_text())
    for name, value, why in (
        ("drop_experts", ["1"], "it takes experts out of mixtures"),
        ("keep_tokens", [1, 2], "it keeps some tokens of a vocabulary"),
    ):
        (tmp_path / "plan.json").write_text(json.dumps({**plan, "config": {**plan["config"], name: value}}))
        with pytest.raises(UsageError, match=f"^the plan is of another model: {why}"):
            prune(path, None, samples(), dry_run=True, from_plan=tmp_path / "plan.json")


def test_the_command_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    onnx.save(model(), tmp_path / "model.onnx")
    np.savez(tmp_path / "calib.npz", **samples())
    command = [str(tmp_path / "model.onnx"), "--ratio", "0.2", "--dry-run", "--round-to", "1"]
    command += ["--calib", str(tmp_path / "calib.npz"), "--drop-experts", "1", "--drop-experts", "*1_0=0,3"]
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "/mixture1_0 4 → 2 0, 3" in said
    assert re.search(r"/mixture0_0 4 → 3 \d \d+\.\d+%", said)


def test_neighbours_are_told_as_runs():
    assert in_runs([0, 1, 2, 5, 7, 8, 10, 11, 12, 13]) == "0-2, 5, 7, 8, 10-13"
    assert in_runs([]) == ""


def test_an_inspection_names_the_mixtures():
    [said] = [note for note in inspect(model(layers=4), samples(8)).notes if "mixtures of experts" in note]
    assert said.endswith("/mixture0_0, /mixture1_0, /mixture2_0 and 1 more: 2 of 4 experts can go, 2 have to stay")


@pytest.mark.parametrize(("experts", "left"), [(("1",), 3), (("1", "*0_0=0,1"), 4)])
def test_settings_files_say_how_many_are_left(experts: tuple[str, ...], left: int, tmp_path: Path):
    """Fails where the number stays that of the original, another number is taken for it, or one is told for several."""
    (tmp_path / "out").mkdir()
    proto = model(router="read")
    onnx.save(proto, tmp_path / "model.onnx")
    own = {"num_local_experts": 4, "num_experts_per_tok": 2, "n_routed_experts": 5, "hidden_size": WIDTH}
    (tmp_path / "config.json").write_text(json.dumps(own))
    options = {**OPTIONS, "resize_io": ("logits0",), "drop_experts": experts}
    result = prune(tmp_path / "model.onnx", tmp_path / "out" / "small.onnx", samples(), **options)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {**written, "hidden_size": WIDTH} == {**own, "num_local_experts": left}
    told = any("mixtures keep different numbers of experts" in note for note in result.report.notes)
    assert told == (left == 4)


def test_what_fewer_bits_cost_alone_is_not_what_the_experts_cost():
    """Fails where the model without them is quantized for that, and compared with the answers of all."""
    report = prune(model(), None, samples(), drop_experts=("1",), then="fp16").report
    assert report.fewer_bits is not None
    errors = report.fewer_bits.errors
    assert errors["pruned"] is not None and errors["alone"] is not None
    assert errors["pruned"] > 1e-3
    assert errors["alone"] < 1e-4
