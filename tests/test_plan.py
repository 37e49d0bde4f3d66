"""Plans as files: what is saved comes back, and nothing else is taken for a plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune import plan, prune
from onnxprune.cli.program import main
from onnxprune.config import PruneConfig
from onnxprune.errors import InputError, UsageError
from tests import digits
from tests.prepared import Prepared

Lookup = Callable[[str], Prepared]


@pytest.fixture
def saved(tmp_path: Path, prepared: Lookup) -> Path:
    channels = prepared("plain").channels
    mask = np.ones(channels.groups[0].size, bool)
    mask[[0, 3]] = False
    path = tmp_path / "plan.json"
    made = plan.make(channels, {0: mask}, "ab" * 32, "cd" * 32, PruneConfig(include=("w*",)).as_dict())
    path.write_text(made.to_json(), encoding="utf-8")
    return path


def edited(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return path


def test_round_trip(saved: Path, prepared: Lookup):
    channels = prepared("plain").channels
    loaded = plan.load(saved)
    assert loaded.to_json() == saved.read_text(encoding="utf-8")
    masks = loaded.masks(channels)
    assert list(masks) == [0]
    assert np.flatnonzero(~masks[0]).tolist() == [0, 3]
    assert loaded.settings() == PruneConfig(include=("w*",))


def test_whole_groups_are_listed_where_they_might_have_lost_units(prepared: Lookup):
    """Fails where the place of a group in the plan depends on whether others are cut, or a whole one counts as cut."""
    channels = prepared("plain").channels
    whole = {g.index: np.ones(g.size, bool) for g in channels.groups}
    assert plan.make(channels, whole, "x", "y", {}).groups == ()
    made = plan.make(channels, {}, "x", "y", {}, uncut=whole)
    assert [(g.name, len(g.kept)) for g in made.groups] == [(g.name, g.size) for g in channels.groups]
    assert made.masks(channels) == {}


def test_plans_that_call_groups_by_nodes_are_replayed(prepared: Lookup):
    """Fails where a plan of 0.4.0, which calls a group by the number of a node, fits no group any more."""
    channels = prepared("attention").channels
    mask = np.array([True, False, True])
    made = plan.make(channels, {0: mask}, "ab" * 32, "cd" * 32, PruneConfig().as_dict())
    older = replace(made, groups=tuple(replace(g, name="MatMul_0") for g in made.groups))
    assert older != made
    for p in (made, older):
        assert p.masks(channels)[0].tolist() == mask.tolist()


def test_a_plan_that_lists_cut_groups_alone_is_replayed_alike():
    """Fails where what older versions have saved gives another model."""
    options: dict[str, Any] = {"include": ("/3/conv1/*", "/6/conv1/*"), "ratio": 0.1, "refit": "none", "recover": 0}
    made = prune(digits.path("resnet"), None, digits.CALIB, **options)
    cut = tuple(g for g in made.plan.groups if len(g.kept) < g.units)
    again = prune(digits.path("resnet"), None, digits.CALIB, from_plan=replace(made.plan, groups=cut))
    assert made.model is not None
    assert made.model == again.model
    assert {g.name for g in made.plan.groups} == {"/3/conv1/Conv", "/6/conv1/Conv"}


def test_planning_twice_gives_the_same_text():
    """Fails where a plan depends on the order of a set or on a clock."""
    options: dict[str, Any] = {"ratio": 0.4, "method": "magnitude", "refit": "none"}
    first = digits.pruned("resnet", **options).plan
    again = prune(digits.path("resnet"), None, digits.CALIB, **options).plan
    assert again.to_json() == first.to_json()


def test_force_is_not_taken_over(saved: Path):
    """Fails where a replay would write a model that failed a check, without being asked to."""
    config = PruneConfig(force=True, seed=3).as_dict()
    assert plan.load(edited(saved, config=config)).settings() == PruneConfig(seed=3)


@pytest.mark.parametrize(
    "config",
    [
        {"speed": 3},
        {"ratio": "half"},
        {"ratio": 7},
        {"memory": None},
        {"ratio": True},
        {"seed": 1.5},
        {"seed": 10**40},
        {"seed": "0"},
        {"include": "w*"},
        {"include": [1]},
        {"fast": 1},
        {"method": ["obs"]},
        {"method": {}},
        {"round_to": 8.0},
        {"tolerance": float("nan"), "ratio": None},
        {"samples": [3]},
        {"labels": 3, "method": "taylor"},
    ],
)
def test_foreign_config(saved: Path, config: dict[str, Any]):
    with pytest.raises(InputError, match="config"):
        plan.load(edited(saved, config=config)).settings()


def test_missing_file(tmp_path: Path):
    with pytest.raises(InputError, match="does not exist"):
        plan.load(tmp_path / "none.json")


@pytest.mark.parametrize("blob", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"null", b"3", b'{"format": 1}', b'"text"'])
def test_not_a_plan(tmp_path: Path, blob: bytes):
    path = tmp_path / "plan.json"
    path.write_bytes(blob)
    with pytest.raises(InputError, match="is not a plan"):
        plan.load(path)


def test_folder(tmp_path: Path):
    with pytest.raises(InputError, match="is a folder; give a regular file"):
        plan.load(tmp_path)


def test_another_format(saved: Path):
    with pytest.raises(InputError, match="plan format 99, this version reads 3"):
        plan.load(edited(saved, format=99))


TEXTS = {
    "nested": b"[" * 200_000,
    "nested objects": b'{"a":' * 100_000,
    "a byte order mark": b"\xef\xbb\xbf{}",
    "two bytes a letter": '{"format": 2}'.encode("utf-16"),
    "a number of many digits": b'{"format": 1' + b"0" * 10_000 + b"}",
    "a name that is no text": b'{"format": "\xff"}',
    "a key twice": b'{"format": 2, "model_sha256": "", "config": {}, "groups": [], "groups": []}',
    "a key twice inside": b'{"format": 2, "model_sha256": "", "config": {"ratio": 0.5, "ratio": 0.9}, "groups": []}',
    "no bytes at all": b"",
    "a zero byte": b"{}\0",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_that_are_no_plan(kind: str, tmp_path: Path):
    """Fails where the reader of JSON ends in its own error, or picks one of two members that bear the same name."""
    path = tmp_path / "plan.json"
    path.write_bytes(TEXTS[kind])
    with pytest.raises(InputError, match="is not a plan") as e:
        plan.load(path)
    assert "\n" not in str(e.value) and len(str(e.value)) < 400


GROUP = {"name": "g", "units": 8, "kept": [0, 2]}


@pytest.mark.parametrize(
    "changes",
    [
        {"format": True},
        {"format": 2.0},
        {"format": "2"},
        {"model_sha256": 3},
        {"model_sha256": None},
        {"data_sha256": 3},
        {"data_sha256": ["ab"]},
        {"config": []},
        {"config": None},
        {"groups": {}},
        {"groups": "g"},
        {"groups": None},
        {"groups": [3]},
        {"groups": [[]]},
        {"groups": [GROUP, GROUP]},
        {"groups": [GROUP | {"name": 3}]},
        {"groups": [GROUP | {"name": None}]},
        {"groups": [GROUP | {"units": "8"}]},
        {"groups": [GROUP | {"units": 8.0}]},
        {"groups": [GROUP | {"units": True}]},
        {"groups": [GROUP | {"units": -8}]},
        {"groups": [GROUP | {"kept": [0, 1.5]}]},
        {"groups": [GROUP | {"kept": [False, True]}]},
        {"groups": [GROUP | {"kept": ["0", "1"]}]},
        {"groups": [GROUP | {"kept": [0, 10**30]}]},
        {"groups": [GROUP | {"kept": {"0": 1}}]},
        {"groups": [GROUP | {"coefficients": [True, 1.0]}]},
        {"groups": [GROUP | {"coefficients": [10**400, 1.0]}]},
        {"groups": [GROUP | {"coefficients": [1e300, 1.0]}]},
        {"groups": [GROUP | {"coefficients": [[1.0], 1.0]}]},
    ],
)
def test_every_field_has_its_type(saved: Path, changes: dict[str, Any]):
    """Fails where True passes for 1 and 1.5 for a unit, or a foreign type goes on to where numpy stumbles over it."""
    with pytest.raises(InputError, match="is not a plan"):
        plan.load(edited(saved, **changes))


def test_more_units_than_any_model_has(saved: Path, prepared: Lookup):
    """Fails where an array is made for a number that the plan claims before the model was asked."""
    path = edited(saved, groups=[GROUP | {"units": 10**30, "kept": [0, 10**29]}])
    with pytest.raises(UsageError, match="is not in this model"):
        plan.load(path).masks(prepared("plain").channels)


@pytest.mark.parametrize("kept", [[3, 1], [1, 1], [-1, 2], [0, 8], "abc", None])
def test_indices_out_of_range(saved: Path, kept: Any):
    """Fails where an index that is not in the model reaches numpy."""
    with pytest.raises(InputError, match="is not a plan"):
        plan.load(edited(saved, groups=[{"name": "g", "units": 8, "kept": kept}]))


def test_a_group_of_which_nothing_stays(saved: Path):
    """Fails where a plan that takes out a branch cannot be read again."""
    (group,) = plan.load(edited(saved, groups=[{"name": "g", "units": 8, "kept": []}])).groups
    assert group.kept == ()


@pytest.mark.parametrize(("name", "units"), [("nobody", 8), (None, 9)])
def test_another_model(saved: Path, prepared: Lookup, name: str | None, units: int):
    channels = prepared("plain").channels
    group = {"name": name or channels.groups[0].name, "units": units, "kept": [0]}
    with pytest.raises(UsageError, match="is not in this model"):
        plan.load(edited(saved, groups=[group])).masks(channels)


def with_coefficients(channels: Any) -> plan.Plan:
    mask = np.arange(channels.groups[0].size) % 2 == 0
    a = np.where(mask, np.linspace(0.1, 2.3, mask.size) / 3, 0.0)
    return plan.make(channels, {0: mask}, "ab" * 32, "cd" * 32, PruneConfig(method="local").as_dict(), {0: a})


def test_coefficients_come_back_bit_by_bit(tmp_path: Path, prepared: Lookup):
    """Fails where a replay would fold in other numbers than the run did."""
    channels = prepared("plain").channels
    made = with_coefficients(channels)
    path = tmp_path / "plan.json"
    path.write_text(made.to_json(), encoding="utf-8")
    loaded = plan.load(path)
    assert loaded.to_json() == made.to_json()
    (a,) = loaded.coefficients(channels).values()
    (b,) = made.coefficients(channels).values()
    assert a.tolist() == b.tolist()
    assert ((a == 0.0) == ~loaded.masks(channels)[0]).all()


def test_plans_of_the_first_format_are_read(saved: Path, prepared: Lookup):
    """Fails where a plan without coefficients, as earlier versions wrote them, is refused or gets some."""
    before = plan.load(saved)
    after = plan.load(edited(saved, format=1))
    assert after == before
    assert after.coefficients(prepared("plain").channels) == {}


@pytest.mark.parametrize(
    "coefficients", [[1.0], [1.0, 2.0, 3.0], [1.0, float("nan")], [1.0, float("inf")], ["a", "b"], 3, {}, "12"]
)
def test_malformed_coefficients(saved: Path, coefficients: Any):
    """Fails where something that is no factor for each kept unit reaches the weights."""
    group = {"name": "g", "units": 8, "kept": [0, 1], "coefficients": coefficients}
    with pytest.raises(InputError, match="is not a plan"):
        plan.load(edited(saved, groups=[group]))


def test_the_data_belongs_to_the_plan():
    """Fails where a replay goes by data that the plan was not made with, or the first format cannot be replayed."""
    path, quick = digits.path("resnet"), {"method": "magnitude", "refit": "none"}
    made = prune(path, None, digits.CALIB, samples=32, dry_run=True, **quick).plan
    assert made.data_sha256 is not None
    prune(path, None, digits.CALIB, from_plan=made, dry_run=True)
    for calibration, options, said in (
        (None, {}, "other data than the random inputs"),
        (digits.CALIB, {"samples": 33}, "made with other data"),
        (digits.CALIB, {"seed": 1}, "made with other data"),
    ):
        with pytest.raises(UsageError, match=said):
            prune(path, None, calibration, from_plan=made, dry_run=True, **options)
        found = prune(path, None, calibration, from_plan=made, dry_run=True, force=True, **options)
        assert any(n.startswith("--force: the plan was made with other data") for n in found.report.notes)
        assert found.plan.groups == made.groups
        assert found.plan.data_sha256 == found.report.calibration["sha256"] != made.data_sha256


def test_a_refused_replay_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where the refusal stands behind a warning that random inputs are used."""
    path, saved = str(digits.path("resnet")), str(tmp_path / "plan.json")
    prune(path, None, digits.CALIB, dry_run=True, plan_file=saved, method="magnitude", refit="none")
    assert main([path, str(tmp_path / "out.onnx"), "--from-plan", saved]) == 2
    err = capsys.readouterr().err
    assert err.startswith("onnxprune: error: the plan was made with other data than the random inputs of this run")
    assert err.count("\n") == 1
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("whole", [False, True])
def test_a_plan_that_removes_nothing_is_refused(whole: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where the original comes out as a pruned model, of a plan without groups or with all of their units."""
    path, saved, out = str(digits.path("resnet")), tmp_path / "plan.json", tmp_path / "out.onnx"
    prune(path, None, digits.CALIB, dry_run=True, plan_file=saved, method="magnitude", refit="none")
    groups = json.loads(saved.read_text(encoding="utf-8"))["groups"]
    every = [{"name": g["name"], "units": g["units"], "kept": list(range(g["units"]))} for g in groups]
    edited(saved, groups=every if whole else [])
    assert main([path, str(out), "--calib", str(digits.CALIB), "--from-plan", str(saved)]) == 3
    said = "onnxprune: error: the plan keeps every channel, so nothing would be removed; make a new plan\n"
    assert capsys.readouterr().err == said
    assert not out.exists()


def test_plans_that_do_not_name_their_data():
    """Fails where a plan of an earlier format is replayed on random inputs, or cannot be replayed at all."""
    path, quick = digits.path("resnet"), {"method": "magnitude", "refit": "none"}
    made = replace(prune(path, None, digits.CALIB, dry_run=True, **quick).plan, data_sha256=None)
    again = prune(path, None, digits.CALIB, from_plan=made, dry_run=True)
    assert any("does not say which data" in n for n in again.report.notes)
    with pytest.raises(UsageError, match="none is given"):
        prune(path, None, None, from_plan=made, dry_run=True)


def test_a_plan_of_random_inputs_is_replayed_without_data():
    path, quick = digits.path("resnet"), {"method": "magnitude", "refit": "none"}
    made = prune(path, None, None, dry_run=True, **quick).plan
    assert prune(path, None, None, from_plan=made, dry_run=True).plan == made
    with pytest.raises(UsageError, match="made with other data"):
        prune(path, None, digits.CALIB, from_plan=made, dry_run=True)
