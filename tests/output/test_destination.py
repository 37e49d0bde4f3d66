"""Where results may go: never on top of what a run reads, under whatever name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from onnxprune import prune
from onnxprune.errors import RunError, UsageError
from onnxprune.output.destination import check_outputs
from tests import digits


def linked(p: Path) -> Path:
    link = p.parent.parent / f"link-{len(list(p.parent.parent.iterdir()))}"
    link.symlink_to(p)
    return link


def named(p: Path) -> Path:
    other = p.parent.parent / "other"
    os.link(p, other)
    return other


SPELLINGS: dict[str, Callable[[Path], Path]] = {
    "as it is": lambda p: p,
    "by way of another folder": lambda p: p.parent / "sub" / ".." / p.name,
    "relative": lambda p: Path(os.path.relpath(p)),
    "a link": linked,
    "a link to a link": lambda p: linked(linked(p)),
    "a link to its folder": lambda p: linked(p.parent) / p.name,
    "a second name": named,
}
ROLES = ("calibration", "member", "plan", "model")


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A model, its data, a folder of data and a plan, all in one folder."""
    place = tmp_path / "in"
    (place / "sub").mkdir(parents=True)
    (place / "members").mkdir()
    (place / "members" / "sub").mkdir()
    found = {
        "model": place / "model.onnx",
        "calibration": place / "calib.npz",
        "member": place / "members" / "a.npz",
        "plan": place / "plan.json",
    }
    for p in found.values():
        p.write_bytes(b"precious")
    monkeypatch.chdir(tmp_path)
    return found


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_no_output_is_an_input(inputs: dict[str, Path], role: str, place: int, spelling: str):
    """Fails where a path that leads to an input in another way is written to; the model itself may be replaced."""
    outputs: list[Path | None] = [None, None, None]
    outputs[place] = SPELLINGS[spelling](inputs[role])
    data = inputs["calibration"] if role != "member" else inputs["member"].parent
    given = (str(inputs["model"]), data, inputs["plan"])
    if role == "model" and place == 0:
        check_outputs(outputs, given, overwrite=True)
        return
    with pytest.raises(UsageError, match="used twice"):
        check_outputs(outputs, given, overwrite=True)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_outputs_are_different_files(inputs: dict[str, Path], spelling: str):
    one = inputs["calibration"]
    with pytest.raises(UsageError, match="used twice"):
        check_outputs((None, one, SPELLINGS[spelling](one)), (inputs["model"], None, None), overwrite=True)


def test_two_spellings_of_what_is_not_there_yet(inputs: dict[str, Path]):
    """Fails where only files that exist are compared."""
    folder = inputs["model"].parent
    twice = (folder / "new", folder / "sub" / ".." / "new", None)
    with pytest.raises(UsageError, match="used twice"):
        check_outputs(twice, (inputs["model"], None, None), overwrite=False)


def test_different_files_are_let_pass(inputs: dict[str, Path]):
    """Fails where the checks above refuse everything."""
    folder = inputs["model"].parent
    outputs = (folder / "out.onnx", folder / "plan2.json", folder / "members" / "report.json")
    check_outputs(outputs, (inputs["model"], inputs["member"].parent, inputs["plan"]), overwrite=False)


@pytest.mark.parametrize("name", ["a\0b", "n" * 5000, "circle"])
def test_paths_that_lead_nowhere(inputs: dict[str, Path], name: str):
    """Fails where such a path ends in a traceback, or only when the model is written."""
    Path("circle").symlink_to("circle")
    with pytest.raises(RunError, match="cannot be written") as e:
        check_outputs((name, None, None), (inputs["model"], None, None), overwrite=True)
    assert len(str(e.value)) < 400


@pytest.mark.parametrize("name", ["new/", "new/.", "sub/.."])
def test_a_name_of_a_folder_is_no_file(inputs: dict[str, Path], name: str):
    """Fails where the slash is dropped and a file `new` appears."""
    with pytest.raises(UsageError, match="folder"):
        check_outputs((name, None, None), (inputs["model"], None, None), overwrite=True)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="a system without /proc")
def test_links_of_the_system_are_not_replaced(inputs: dict[str, Path]):
    """/dev/stdout is a link; it leads to an ordinary file where the shell sends the output to one.

    Fails where the file that a link leads to decides alone.
    """
    with inputs["calibration"].open("rb") as f:
        for name in (f"/proc/self/fd/{f.fileno()}", f"/dev/fd/{f.fileno()}"):
            if Path(name).exists():
                with pytest.raises(UsageError, match="not an ordinary file"):
                    check_outputs((name, None, None), (inputs["model"], None, None), overwrite=True)


@pytest.mark.parametrize("place", ["output", "plan_file", "report_file"])
def test_a_run_leaves_its_data_as_they_were(tmp_path: Path, place: str):
    """Fails where the check is there and a run does not ask it."""
    data = tmp_path / "calib.npz"
    shutil.copy(digits.CALIB, data)
    before = data.read_bytes()
    link = tmp_path / "link.json"
    os.link(data, link)
    stages: list[object] = []
    with pytest.raises(UsageError, match="used twice"):
        prune(digits.path("resnet"), calibration=data, overwrite=True, watch=stages.append, **{place: link})
    assert stages == []
    assert data.read_bytes() == before


def test_a_plan_is_not_replaced_by_its_own_replay(tmp_path: Path):
    path = tmp_path / "plan.json"
    prune(digits.path("resnet"), None, digits.CALIB, plan_file=path, ratio=0.4, method="magnitude", refit="none")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="used twice"):
        prune(digits.path("resnet"), None, digits.CALIB, from_plan=path, plan_file=path, overwrite=True)
    assert path.read_bytes() == before
