"""A model and its weights beside it: one name for each content, and no file that nobody reads."""

from __future__ import annotations

import hashlib
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import prune, sweep
from onnxprune.errors import RunError, UsageError
from onnxprune.graph import external
from onnxprune.graph.external import Placement
from onnxprune.intake import model_file
from onnxprune.output import model_files
from onnxprune.output.commit import Stage
from onnxprune.runtime.session import Session
from onnxprune.stages import save
from tests import digits
from tests.compare import assert_same
from tests.external import locations, saved, stored, t_values, weights_of

posix = pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
FAST: dict[str, Any] = {"refit": "none", "method": "magnitude", "round_to": 4}
DATA = {"input": np.load(digits.CALIB)["input"][:32]}


def resnet() -> onnx.ModelProto:
    return onnx.load(digits.path("resnet"))


def other() -> onnx.ModelProto:
    """The same model with other weights."""
    model = resnet()
    for t in model.graph.initializer:
        t.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(t), t.name))
    return model


def assert_holds(path: Path, model: onnx.ModelProto) -> None:
    """Fails where the file on disk has other weights, or does not load."""
    for a, b in zip(onnx.load(path).graph.initializer, model.graph.initializer, strict=True):
        assert_same(onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b), rtol=0.0, atol=0.0)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_one_file(tmp_path: Path) -> None:
    saved(resnet(), tmp_path / "out.onnx")
    assert names(tmp_path) == {"out.onnx"}
    assert model_file.load(tmp_path / "out.onnx")[0] == resnet()


def test_the_name_says_the_content(tmp_path: Path) -> None:
    """Fails where other weights get the same name, or the same ones another: then a replay has other bytes."""
    path = tmp_path / "out.onnx"
    found = []
    for model in (resnet(), other(), resnet()):
        saved(model, path, separate=True)
        data = weights_of(path)
        assert hashlib.sha256(data.read_bytes()).hexdigest().startswith(data.name.split(".")[-2])
        assert_holds(path, model)
        assert names(tmp_path) == {"out.onnx", data.name}
        found.append((data.name, path.read_bytes()))
    assert found[0] == found[2]
    assert found[0] != found[1]


def test_what_is_returned_reads_what_was_written(tmp_path: Path) -> None:
    with Stage() as stage:
        model = model_files.put_model(stage, resnet(), tmp_path / "out.onnx", placement=Placement.BESIDE)
        model_files.commit(stage, tmp_path / "out.onnx")
    got, wanted = (Session(x).run({"input": DATA["input"][:1]}) for x in (model, resnet()))
    for k, y in wanted.items():
        assert_same(got[k], y, rtol=1e-6, atol=0.0)


def test_layout(tmp_path: Path) -> None:
    """Fails where offsets are not aligned, ranges overlap, small weights go outside, or equal ones are stored twice."""
    big = np.arange(1 << 19, dtype=np.float32)
    model = resnet()
    for name in ("big", "again"):
        model.graph.initializer.append(onnx.numpy_helper.from_array(big, name))
    proto, _ = model_file.load(stored(model, tmp_path, "one file"))
    shared = t_values(proto, "again")
    shared.CopyFrom(t_values(proto, "big"))
    shared.name = "again"
    saved(proto, tmp_path / "out.onnx")
    read = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    places = {t.name: external.FileRange.of(t) for t in read.graph.initializer if external.is_external(t)}
    large = {t.name for t in model.graph.initializer if external.bytes_of(t) >= external.INLINE_BYTES}
    assert set(places) == large != {t.name for t in model.graph.initializer}
    assert places["big"] == places["again"]
    assert places["big"].offset % 4096 == 0
    assert all(p.offset % 64 == 0 for p in places.values())
    ends = sorted({(p.offset, p.offset + (p.length or 0)) for p in places.values()})
    assert all(a[1] <= b[0] for a, b in pairwise(ends))
    assert_holds(tmp_path / "out.onnx", model)


def test_a_result_too_large_for_one_file_is_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a message above the limit of protobuf is tried."""
    monkeypatch.setattr(external, "MOST_BYTES", 50_000)
    saved(resnet(), tmp_path / "out.onnx", separate=False)
    assert weights_of(tmp_path / "out.onnx").is_file()
    monkeypatch.undo()
    assert_holds(tmp_path / "out.onnx", resnet())


def test_every_file_is_named(tmp_path: Path) -> None:
    """Fails where the report of a run leaves out the weights beside the model, or names what is not there."""
    shown: list[tuple[str, ...]] = []
    files: dict[str, Any] = {"plan_file": tmp_path / "p.json", "report_file": tmp_path / "r.md"}
    path, output = stored(resnet(), tmp_path, "one file"), tmp_path / "out.onnx"
    result = prune(path, output, DATA, ratio=0.3, ready=lambda r: shown.append(r.files), **files, **FAST)
    assert shown == [result.report.files]
    assert set(map(Path, result.report.files)) == {output, *files.values(), weights_of(output)}
    assert result.report.files[0] == str(output)


# what was there before


def test_weights_that_another_model_reads_stay(tmp_path: Path) -> None:
    """Fails where a copy of a model file loses its weights when the first one is replaced."""
    path, copy = tmp_path / "out.onnx", tmp_path / "best.onnx"
    saved(resnet(), path, separate=True)
    copy.write_bytes(path.read_bytes())
    saved(other(), path, separate=True)
    assert_holds(copy, resnet())
    assert_holds(path, other())


def test_weights_stay_where_the_search_for_their_readers_would_be_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.onnx"
    saved(resnet(), path, separate=True)
    old = weights_of(path)
    monkeypatch.setattr(model_files, "_SEARCHED_BYTES", 10)
    saved(other(), path, separate=True)
    assert old.is_file()


def test_a_name_across_two_pieces_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a file is read in pieces, and what lies across two of them is missed."""
    monkeypatch.setattr(model_files, "_CHUNK", 7)
    for before in range(20):
        (tmp_path / "f").write_bytes(b"." * before + b"a long name" + b"." * 9)
        assert model_files._mentions(tmp_path / "f", "a long name")
        assert not model_files._mentions(tmp_path / "f", "a long game")


def test_weights_of_other_names_stay(tmp_path: Path) -> None:
    """Fails where a file that no run has written is removed, or one that the old model did not read."""
    path = stored(resnet(), tmp_path, "one file", "out.onnx")
    theirs = names(tmp_path) | {"out.onnx.0123456789abcdef.data", "out.onnx.data"}
    for name in theirs - names(tmp_path):
        (tmp_path / name).write_bytes(b"mine")
    saved(other(), path, separate=True)
    assert names(tmp_path) == theirs | {weights_of(path).name}


@posix
def test_what_a_link_leads_to_stays_whole(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    saved(resnet(), tmp_path / "real" / "out.onnx", separate=True)
    (tmp_path / "out.onnx").symlink_to(tmp_path / "real" / "out.onnx")
    (tmp_path / weights_of(tmp_path / "real" / "out.onnx").name).symlink_to(weights_of(tmp_path / "real" / "out.onnx"))
    saved(other(), tmp_path / "out.onnx", separate=True)
    assert_holds(tmp_path / "real" / "out.onnx", resnet())
    assert_holds(tmp_path / "out.onnx", other())
    assert not (tmp_path / "out.onnx").is_symlink()


def test_a_folder_where_nothing_may_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where weights that cannot be removed turn a good run into a bad one."""
    saved(resnet(), tmp_path / "out.onnx", separate=True)

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", forbidden)
    saved(other(), tmp_path / "out.onnx", separate=True)
    assert_holds(tmp_path / "out.onnx", other())


# the whole job


def test_in_place(tmp_path: Path) -> None:
    """Fails where a model cannot replace itself, twice, with its own weights as the source; or leaves the old ones."""
    path = stored(resnet(), tmp_path, "one file")
    for ratio in (0.3, 0.2):
        expected = prune(path, None, DATA, ratio=ratio, **FAST).model
        assert expected is not None
        prune(path, path, DATA, overwrite=True, ratio=ratio, **FAST)
        assert_holds(path, expected)
        assert names(tmp_path) == {"model.onnx", "weights.bin", weights_of(path).name}
    assert locations(path) == {weights_of(path).name}


def test_a_rename_that_fails_leaves_the_old_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(resnet(), tmp_path, "one file")
    saved(other(), tmp_path / "out.onnx", separate=True)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    replace = os.replace

    def failing(source: Any, target: Any) -> None:
        if Path(target).name == "out.onnx":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(RunError, match="No space left on device"):
        prune(path, tmp_path / "out.onnx", DATA, overwrite=True, plan_file=tmp_path / "p.json", ratio=0.3, **FAST)
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_nothing_appears_where_the_report_cannot_be_told(tmp_path: Path) -> None:
    """Fails where files appear before the caller has had its say."""

    def unheard(report: object) -> None:
        assert not [p for p in tmp_path.iterdir() if not p.name.startswith(".")]
        raise ValueError("nobody listens")

    with pytest.raises(ValueError, match="nobody listens"):
        prune(
            digits.path("resnet"), tmp_path / "o.onnx", DATA, plan_file=tmp_path / "p", ready=unheard, ratio=0.3, **FAST
        )
    assert not names(tmp_path)


def test_a_plan_in_the_place_of_the_weights(tmp_path: Path) -> None:
    path = stored(resnet(), tmp_path, "one file")
    plan = tmp_path / "out.onnx.0123456789abcdef.data"
    with pytest.raises(UsageError, match="is where the output's weights go; name another file"):
        prune(path, tmp_path / "out.onnx", DATA, plan_file=plan, ratio=0.3, **FAST)


def test_a_name_too_long_for_that_of_the_weights(tmp_path: Path) -> None:
    """Fails where that is found out after all the work."""
    path = stored(resnet(), tmp_path, "one file")
    with pytest.raises(RunError, match="cannot be written: File name too long"):
        prune(path, tmp_path / f"{'o' * 245}.onnx", DATA, ratio=0.3, **FAST)


@posix
def test_a_name_that_is_no_unicode(tmp_path: Path) -> None:
    """Fails where a model is to refer to a file by a name that it cannot hold."""
    path = tmp_path / os.fsdecode(b"out\xff.onnx")
    for model in (resnet(), other()):
        saved(model, path, separate=True)
        assert_holds(path, model)
    assert len(names(tmp_path)) == 2


def test_one_file_of_a_model_whose_weights_lie_beside_it(tmp_path: Path) -> None:
    """Fails where weights go beside it all the same, or are others than those that would."""
    original = stored(resnet(), tmp_path, "one file")
    (tmp_path / "out").mkdir()
    two, one = tmp_path / "out" / "two.onnx", tmp_path / "out" / "one.onnx"
    prune(original, two, DATA, ratio=0.3, **FAST)
    result = prune(original, one, DATA, ratio=0.3, single_file=True, **FAST)
    assert names(tmp_path / "out") == {"one.onnx", "two.onnx", weights_of(two).name}
    assert not external.has_external(onnx.load(one, load_external_data=False))
    assert onnx.load(one) == result.model
    assert_holds(one, onnx.load(two))
    assert result.report.after.bytes == one.stat().st_size


def test_one_file_that_is_the_weights_of_the_original(tmp_path: Path) -> None:
    original = stored(resnet(), tmp_path, "one file")
    before = (tmp_path / "weights.bin").read_bytes()
    with pytest.raises(UsageError, match=r"weights\.bin holds weights of the model; name another file"):
        prune(original, tmp_path / "weights.bin", DATA, single_file=True, overwrite=True, **FAST)
    assert (tmp_path / "weights.bin").read_bytes() == before


@pytest.mark.parametrize("single", [True, False])
def test_what_one_file_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, single: bool) -> None:
    """Fails where it is written in two files in silence, where anything is, or where it is foreseen too late."""
    monkeypatch.setattr(model_files, "too_large", lambda size, about="": "" if size < 50_000 else f"{about}too large")
    monkeypatch.setattr(save, "too_large", model_files.too_large)
    said: list[str] = []
    out = tmp_path / "out.onnx"
    if not single:
        prune(resnet(), out, DATA, ratio=0.3, warn=said.append, **FAST)
        assert weights_of(out).exists()
        assert "about too large" not in said
        return
    with pytest.raises(RunError, match="too large"):
        prune(
            resnet(), out, DATA, ratio=0.3, single_file=True, report_file=tmp_path / "r.json", warn=said.append, **FAST
        )
    assert names(tmp_path) == {"r.json"}
    assert "about too large" in said
    found = sweep(resnet(), tmp_path / "s", DATA, ratios=(0.3, 0.8), single_file=True, **FAST)
    assert [p.why for p in found.points] == ["too large", ""]
    assert names(tmp_path / "s") == {"model-0.8.onnx", "sweep.json", "sweep.md"}


def test_what_is_said_of_a_size() -> None:
    assert model_files.too_large(external.MOST_BYTES - 1) == ""
    assert model_files.too_large(3 << 30, "about ").startswith("the result has about 3.0 GiB, and one file")
