"""Results that outlive a process."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.errors import RunError, UsageError
from onnxprune.jobs.kept import NOWHERE, Folder, kept_in
from onnxprune.selection import Path as Selected
from tests.compare import assert_same

RUN = {"model": "abc", "options": {"ratio": 0.3}}


def arrays() -> dict[str, Any]:
    return {"a": np.arange(5), "b c": np.eye(2, dtype=np.float32)}


def test_what_is_kept_is_there_for_the_same_run(tmp_path: Path) -> None:
    """Fails where items are mixed up, or a value comes back as another."""
    kept = kept_in(tmp_path / "new" / "folder", RUN)
    assert kept.get("fit", "w") is None
    assert kept.notes == ()
    kept.put("fit", "w", arrays)
    kept.put("fit", "../v", lambda: {"a": np.zeros(1)})
    again = kept_in(tmp_path / "new" / "folder", RUN)
    found = again.get("fit", "w")
    assert found is not None
    assert found.keys() == {"a", "b c"}
    for k, v in arrays().items():
        assert_same(found[k], v, rtol=0.0, atol=0.0)
        assert found[k].dtype == v.dtype
    assert again.get("path", "w") is None
    assert again.notes == (f"1 result of an earlier run was taken from {tmp_path / 'new' / 'folder'}",)


def test_the_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    """Fails where statistics of another model, or files of the user, are taken for this run's."""
    kept_in(tmp_path / "a", RUN)
    with pytest.raises(UsageError, match=r"the work of another run \(not the same: model\)"):
        kept_in(tmp_path / "a", {**RUN, "model": "other"})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="holds other files; give --work a new folder"):
        kept_in(tmp_path / "b", RUN)
    with pytest.raises(UsageError, match=r"\(not the same: ratio\)"):
        kept_in(tmp_path / "a", {**RUN, "options": {"ratio": 0.2}})
    (tmp_path / "a" / "run.json").write_text("[broken")
    with pytest.raises(UsageError, match=r"run\.json cannot be read; give --work another folder"):
        kept_in(tmp_path / "a", RUN)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    """Fails where a file is taken for a full disk, or an empty name for the folder of the shell."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="file is no folder; give --work a new one"):
        kept_in(tmp_path / "file", RUN)
    with pytest.raises(UsageError, match="'' is no folder"):
        kept_in("", RUN)


def test_a_file_with_other_content_is_computed_anew(tmp_path: Path) -> None:
    """Fails where arrays that this run never put, of another item or changed, are taken for its results."""
    kept = kept_in(tmp_path, RUN)
    assert isinstance(kept, Folder)
    kept.put("fit", "w", arrays)
    kept.put("fit", "v", arrays)
    file = kept._file("fit", "w")
    file.write_bytes(kept._file("fit", "v").read_bytes())
    assert kept.get("fit", "w") is None
    with np.load(kept._file("fit", "v")) as stored:
        changed = {**stored, "a": np.zeros(5, np.int64)}
    for content in (changed, {"foo": np.zeros(3)}, arrays()):
        np.savez(file, **content)
        assert kept.get("fit", "w") is None
    kept.put("fit", "w", arrays)
    assert kept.get("fit", "w") is not None
    assert kept.get("fit", "v") is not None


def test_files_that_are_no_results_are_computed_anew(tmp_path: Path) -> None:
    """Fails where half of a file ends a run, or where a file can have code executed."""
    kept = kept_in(tmp_path, RUN)
    assert isinstance(kept, Folder)
    kept.put("fit", "w", arrays)
    file = kept._file("fit", "w")
    file.write_bytes(file.read_bytes()[:-30])
    assert kept.get("fit", "w") is None

    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    with file.open("wb") as f:
        np.savez(f, a=np.array([Hostile()], dtype=object))
    assert kept.get("fit", "w") is None
    file.write_bytes(pickle.dumps(Hostile()))
    assert kept.get("fit", "w") is None
    assert not (tmp_path / "touched").exists()
    kept.put("fit", "w", arrays)
    assert kept.get("fit", "w") is not None


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a run that ends while it writes leaves what looks like a result."""
    kept = kept_in(tmp_path, RUN)

    def full(f: Any, **_: Any) -> None:
        f.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(RunError, match=r"nothing can be kept in .*No space left on device; give --work another folder"):
        kept.put("fit", "w", arrays)
    assert [f.name for f in tmp_path.iterdir()] == ["run.json"]


def test_nowhere_makes_nothing() -> None:
    """Fails where arrays are made that nobody keeps."""
    NOWHERE.put("fit", "w", lambda: pytest.fail("they are not needed"))
    assert NOWHERE.get("fit", "w") is None
    assert not NOWHERE.lasts


def test_paths_come_back_as_they_were() -> None:
    """Fails where supports or coefficients of one size are taken for those of another."""
    rng = np.random.default_rng(0)
    supports, coefficients = {n: np.arange(n) for n in (1, 3)}, {n: rng.standard_normal(4) for n in (0, 2, 3)}
    path = Selected(rng.permutation(4), rng.random(5), supports, coefficients, -0.25)
    again = Selected.of_arrays(path.arrays())
    plain = Selected.of_arrays(Selected(path.order, path.loss).arrays())
    assert_same(again.order, path.order, rtol=0.0, atol=0.0)
    assert_same(again.loss, path.loss, rtol=0.0, atol=0.0)
    assert again.floor == -0.25
    assert again.supports is not None
    assert again.coefficients is not None
    assert {k: v.tolist() for k, v in again.supports.items()} == {k: v.tolist() for k, v in supports.items()}
    assert {k: v.tolist() for k, v in again.coefficients.items()} == {k: v.tolist() for k, v in coefficients.items()}
    assert plain.supports is None
    assert plain.coefficients is None
