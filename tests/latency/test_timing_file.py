"""The timing file: what was written is read again, and what cannot be is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onnxprune.errors import InputError, UsageError
from onnxprune.latency import timing_file
from onnxprune.latency.timing_file import INSIDE, Axis, CutRow, LayerRow, Target, Timing

LAYERS = (LayerRow("Conv", "a", (Axis("x", 1, 8.0), Axis("a", 1, 16.0))), LayerRow("Add", "b", (Axis("b", 1, 16.0),)))
TARGET = Target(
    "board",
    INSIDE,
    {"processor": "made up", "providers": ""},
    2,
    {"x": (2, 3, 8, 8), "flag": ()},
    8,
    1e-3,
    LAYERS,
    (
        CutRow(1.0, ((8.0, 16.0), (16.0,)), (1e-4, 2e-5)),
        CutRow(0.5, ((8.0, 8.0), (8.0,)), (5e-5, None)),
    ),
)
TIMING = Timing("model.onnx", "0" * 64, (TARGET,))


def written(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    data = json.loads(TIMING.to_json())
    change(data)
    path = folder / "timing.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_what_was_written_is_read_again(tmp_path: Path):
    path = tmp_path / "timing.json"
    path.write_text(TIMING.to_json(), encoding="utf-8")
    assert timing_file.read(path) == TIMING


def cut(data: dict[str, Any], n: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = data["targets"][0]["cuts"][n]
    return found


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "makes one": lambda d: d.pop("kind"),
    "this version reads 1": lambda d: d.update(format=2),
    "does not know": lambda d: d.update(more=1),
    "lacks 'sha256'": lambda d: d.pop("sha256"),
    "holds no target": lambda d: d.update(targets=[]),
    "two targets have one name": lambda d: d.update(targets=2 * d["targets"]),
    "at most 64": lambda d: d.update(targets=65 * d["targets"]),
    "in a way that nobody knows": lambda d: d["targets"][0].update(how="guessed"),
    "takes no time": lambda d: cut(d).update(share=0),
    "a model takes no time": lambda d: d["targets"][0].update(seconds=1e-320),
    "no number from 0": lambda d: cut(d).update(share=float("nan")),
    "the time of a layer is no number": lambda d: cut(d).update(seconds=[-1e-9, 0]),
    "a length is no number": lambda d: cut(d).update(lengths=[[8, 10**400], [16]]),
    "a share of the time is no number": lambda d: cut(d).update(share=True),
    "does not hold every layer once": lambda d: cut(d, 1).update(seconds=[1.0]),
    "is not the model with all channels": lambda d: cut(d).update(lengths=[[8, 8], [16]]),
    "two layers write one tensor": lambda d: d["targets"][0]["layers"][1].update(output="a"),
    "a layer has no axis": lambda d: d["targets"][0]["layers"][1].update(axes=[]),
    "has no positions": lambda d: d["targets"][0]["layers"][1]["axes"][0].update(size=0),
    "the batch is no number": lambda d: d["targets"][0].update(batch=1.5),
    "targets are no list": lambda d: d.update(targets={}),
    "a target is no object": lambda d: d.update(targets=[3]),
    "is no text": lambda d: d["targets"][0].update(name="n" * 10_001),
}


@pytest.mark.parametrize("why", HOSTILE)
def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, why: str):
    path = written(tmp_path, HOSTILE[why])
    with pytest.raises(InputError, match="is no timing file") as caught:
        timing_file.read(path)
    assert "\n" not in str(caught.value)
    if why != "no number from 0":  # JSON's own reader meets NaN first
        assert why in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"[]", b'{"kind": 1, "kind": 2}', b"1" * 5_000])
def test_what_is_no_such_file_is_told(tmp_path: Path, content: bytes):
    path = tmp_path / "timing.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no timing file"):
        timing_file.read(path)
    with pytest.raises(InputError, match="does not exist"):
        timing_file.read(tmp_path / "none.json")


def test_a_target_more(tmp_path: Path):
    other = replace(TARGET, name="other")
    both = TIMING.with_target(other, replace=False, path="timing.json")
    assert [t.name for t in both.targets] == ["board", "other"]
    with pytest.raises(UsageError, match="--overwrite"):
        both.with_target(other, replace=False, path="timing.json")
    slower = replace(other, seconds=2.0)
    assert both.with_target(slower, replace=True, path="timing.json").targets == (TARGET, slower)
