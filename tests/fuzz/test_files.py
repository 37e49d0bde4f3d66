"""The mutations of plans and data: each does something, the same at each seed, and they start from what is whole."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxprune.cli import program
from onnxprune.data import array_files
from onnxprune.errors import CalibrationError
from tests.fuzz import cases, data, files, plans
from tests.fuzz.workers import Worker


@pytest.mark.parametrize("name", sorted(files.TEXTS))
def test_what_the_cases_start_from_is_whole(name: str, tmp_path: Path):
    """Fails where every case is refused for a reason that is not the mutation's."""
    (model, output, plan, calib) = files.paths(tmp_path, name, "plan.json", "calib.npz")
    calib.write_bytes(data.archive(files.whole_data(name)))
    for method in files.METHODS:
        plan.write_text(files.whole_plan(name, method), encoding="utf-8")
        argv = (str(model), str(output), "--from-plan", str(plan), "--calib", str(calib), "--quiet", "--overwrite")
        assert program.main(list(argv)) == 0


def plan_text() -> str:
    return files.whole_plan("dense", files.METHODS[2])


@pytest.mark.parametrize("name", plans.MUTATORS)
def test_plans_are_mutated(name: str):
    """Fails where a mutator does nothing, or something else at the same seed."""
    whole = json.loads(plan_text())
    change = plans.MUTATORS[name]
    found = [repr(change(copy.deepcopy(whole), np.random.default_rng(seed))) for seed in range(12)]
    assert any(f != repr(whole) for f in found)
    assert found == [repr(change(copy.deepcopy(whole), np.random.default_rng(seed))) for seed in range(12)]


@pytest.mark.parametrize("name", plans.BYTE_MUTATORS)
def test_bytes_of_plans_are_mutated(name: str):
    whole = plan_text().encode()
    change = plans.BYTE_MUTATORS[name]
    found = [change(whole, np.random.default_rng(seed)) for seed in range(5)]
    assert any(f != whole for f in found)
    assert found == [change(whole, np.random.default_rng(seed)) for seed in range(5)]


@pytest.mark.parametrize("name", data.MUTATORS)
def test_data_are_mutated(name: str):
    whole = files.whole_data("two inputs")
    changed = []
    for seed in range(12):
        mutated = dict(whole)
        data.MUTATORS[name](mutated, np.random.default_rng(seed))
        changed.append(
            mutated.keys() != whole.keys()
            or any(a.dtype != whole[k].dtype or a.tobytes() != whole[k].tobytes() for k, a in mutated.items())
        )
    assert any(changed)


@pytest.mark.parametrize("name", data.HEADER_MUTATORS)
def test_headers_are_strange(name: str, tmp_path: Path):
    """Fails where all of these headers are read, or one of them ends in another error."""
    refused = 0
    for seed in range(12):
        path = tmp_path / f"{seed}.npy"
        path.write_bytes(data.HEADER_MUTATORS[name](np.random.default_rng(seed)))
        try:
            array_files.read(path)
        except CalibrationError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("name", data.PLACE_MUTATORS)
def test_places_are_strange(name: str, tmp_path: Path):
    path = tmp_path / "data.npz"
    path.write_bytes(b"whole")
    data.PLACE_MUTATORS[name](path, np.random.default_rng(0))
    with pytest.raises(CalibrationError):
        array_files.read(path)


@pytest.mark.parametrize("size", [1 << 20, 3 << 20, 600 << 20, 1 << 40])
def test_bombs_are_whole_archives(size: int, tmp_path: Path):
    """Fails where a bomb is refused as a broken file, so that nothing shows that its size is looked at."""
    path = tmp_path / "data.npz"
    path.write_bytes(data.bomb(size))
    assert path.stat().st_size < 3 << 20
    if size < 4 << 20:
        with pytest.raises(CalibrationError, match="Bad CRC"):  # all of it was expanded
            array_files.read(path)
    else:
        with pytest.raises(CalibrationError, match=r"expands to|it is cut short"):
            array_files.read(path)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("what", ["plans", "data"])
def test_a_few_cases(what: str, tmp_path: Path):
    """Fails where a broken plan or broken data end in more than one line, or leave anything behind."""
    codes = set()
    with Worker() as worker:
        for seed in range(12):
            folder = tmp_path / str(seed)
            folder.mkdir()
            case, verdict = cases.run(what, seed, folder, worker)
            assert not verdict.fault, (case.story, case.commands, verdict)
            codes.add(verdict.codes[-1])
    assert {0, 1} <= codes
