"""What differs on Windows, as far as it can be tested anywhere."""

from __future__ import annotations

import ast
import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.cli.group import cli
from onnxprune.cli.program import main
from onnxprune.errors import RunError
from onnxprune.graph import external
from onnxprune.graph.external import FileRange
from onnxprune.process import spill
from scripts.house import ROOT


def model_on(*files: Path, shape: tuple[int, ...] = (4, 4)) -> onnx.ModelProto:
    """A chain of products, each with its weights in a file of its own."""
    names = [f"w{i}" for i in range(len(files))]
    nodes = [helper.make_node("MatMul", [f"x{i}", w], [f"x{i + 1}"]) for i, w in enumerate(names)]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x0", f"x{len(files)}")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    for name, file in zip(names, files, strict=True):
        t = graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=shape)
        FileRange(str(file), 0, 4 * int(np.prod(shape))).put(t)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def on_drives(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Have these folders be drives."""

    def split(path: str) -> tuple[str, str]:
        drive = next((str(f) for f in folders if path.startswith(str(f))), "")
        return drive, path[len(drive) :]

    monkeypatch.setattr(external.os.path, "splitdrive", split)


def test_weights_on_two_drives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model on one drive and temporary files on another: the fewer bytes are taken into the model."""
    values, files = [], []
    for drive, name in (("c", "one"), ("d", "two"), ("d", "three")):
        (tmp_path / drive).mkdir(exist_ok=True)
        files.append(tmp_path / drive / name)
        values.append(np.random.default_rng(len(files)).standard_normal((4, 4)).astype(np.float32))
        values[-1].tofile(files[-1])
    on_drives(monkeypatch, tmp_path / "c", tmp_path / "d")
    model, root = external.below(model_on(*files))
    assert root == f"{tmp_path / 'd'}{os.sep}"
    first, second, third = model.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(first), values[0])
    for t, value, name in ((second, values[1], "two"), (third, values[2], "three")):
        assert FileRange.of(t).location == name
        np.testing.assert_array_equal(numpy_helper.to_array(t, base_dir=root), value)


def test_too_much_on_two_drives_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_drives(monkeypatch, tmp_path / "c", tmp_path / "d")
    large = model_on(tmp_path / "c" / "one", tmp_path / "d" / "two", shape=(1 << 15, 1 << 15))
    with pytest.raises(RunError, match=r"several drives .*set TMPDIR to a folder of one"):
        external.below(large)


def test_the_checker_needs_no_room_for_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of their size takes it on NTFS, though nothing is written to it."""
    sizes: list[int] = []
    checked = onnx.checker.check_model

    def check_model(path: str, **options: Any) -> None:
        sizes.extend(f.stat().st_size for f in Path(path).parent.iterdir() if f != Path(path))
        checked(path, **options)

    monkeypatch.setattr(onnx.checker, "check_model", check_model)
    external.check(model_on(tmp_path / "one", shape=(1 << 10, 1 << 10)))
    assert sizes == [0]


def test_patterns_are_not_taken_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows click replaces `*` by the files of the folder, unless it is told not to."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(cli, "main", lambda *_, **options: seen.update(options))
    main([])
    assert seen["windows_expand_args"] is False


def test_a_file_that_cannot_go_yet_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows removes no file that somebody has mapped. An exception here would be printed, and fail this test."""
    tried: list[Path] = []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        tried.append(path)
        raise PermissionError(13, "in use")

    with spill.spilling_in(tmp_path):
        array = spill.Spilled(np.arange(8.0))
        monkeypatch.setattr(Path, "unlink", unlink)
        del array
        gc.collect()
    assert tried == [tmp_path / "0"]


def test_temporary_folders_go_without_an_error() -> None:
    """Windows does not remove a file that onnxruntime still has open: that must not hide what went wrong."""
    made = 0
    for path in (ROOT / "onnxprune").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "TemporaryDirectory(" in text:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "TemporaryDirectory":
                    made += 1
                    assert "ignore_cleanup_errors" in {k.arg for k in node.keywords}, (path, node.lineno)
    assert made >= 4
