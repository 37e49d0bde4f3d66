"""Exports of trtexec: which node a layer's time belongs to, and what is refused. The files are made up.

Their form is that of trtexec 8 to 11: a list with a count and a layer in each entry, and an object with Layers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnxprune import prune
from onnxprune.channels import ChannelGraph
from onnxprune.cli import program
from onnxprune.config import PruneConfig
from onnxprune.errors import InputError
from onnxprune.latency import timing_file, trtexec
from onnxprune.latency.trtexec import EngineLayer, Imported, imported
from onnxprune.stages.couple import trace
from onnxprune.stages.load import load
from tests import digits

MODEL = str(digits.path("resnet"))
MS = 1e-3


@pytest.fixture(scope="module")
def channels() -> ChannelGraph:
    return trace(load(MODEL, None, PruneConfig(samples=2)), PruneConfig())


def found(channels: ChannelGraph, *rows: EngineLayer) -> dict[str, float]:
    """Seconds by the tensor that a layer writes."""
    target = result(channels, *rows).target
    (cut,) = target.cuts
    return {row.output: float(s or 0.0) for row, s in zip(target.layers, cut.seconds, strict=True)}


def result(channels: ChannelGraph, *rows: EngineLayer) -> Imported:
    least = [1 for _ in channels.groups]
    return imported(rows, channels, least, name="gpu", machine={}, batch=1, alignment=8, path="profile.json")


def convolutions(channels: ChannelGraph) -> list[Any]:
    return [n for n in channels.graph.every_node if n.op == "Conv"]


@pytest.mark.parametrize(
    "name",
    [
        "{a}",
        "{a} + {relu}",
        "PWN(PWN({a}), x)",
        "Reformatting CopyNode for Input Tensor 0 to {a}",
        "k [ONNX Layer: {a}]",
    ],
)
def test_a_layer_belongs_to_the_node_in_its_name(channels: ChannelGraph, name: str):
    a = convolutions(channels)[1]
    shown = name.format(a=a.name, relu="/nobody/Relu")
    assert found(channels, EngineLayer(shown, MS)) == {a.outputs[0]: MS}
    assert found(channels, EngineLayer("node_of_" + a.outputs[0], MS)) == {a.outputs[0]: MS}


def test_metadata_goes_before_names_and_outputs_come_last(channels: ChannelGraph):
    a, b, c = convolutions(channels)[1:4]
    assert found(channels, EngineLayer(a.name, MS, (b.name,), (c.outputs[0],))) == {b.outputs[0]: MS}
    assert found(channels, EngineLayer("__myl_1", MS, ("gone",), (c.outputs[0],))) == {c.outputs[0]: MS}


def test_a_layer_of_several_products_is_divided_by_their_macs(channels: ChannelGraph):
    """Fails where all of a fused block's time is that of its first node."""
    a, b = convolutions(channels)[0], convolutions(channels)[1]
    seconds = found(channels, EngineLayer("{ForeignNode[a...b]}", MS, (a.name, b.name)), EngineLayer(a.name, MS))
    # 1 and 16 channels go in, over the same positions.
    assert seconds == pytest.approx({a.outputs[0]: MS + MS / 17, b.outputs[0]: MS * 16 / 17})


def test_what_no_name_ties_to_the_model_is_fixed_and_told(channels: ChannelGraph):
    a = convolutions(channels)[1]
    got = result(channels, EngineLayer(a.name, 3 * MS), EngineLayer("__myl_2", MS))
    assert got.target.seconds == pytest.approx(4 * MS)
    assert got.unexplained == pytest.approx(0.25)
    with pytest.raises(InputError, match="build the engine from this file"):
        result(channels, EngineLayer("__myl_2", MS))


def written(folder: Path, channels: ChannelGraph) -> tuple[Path, Path]:
    """A profile in which every convolution takes a microsecond and a nanosecond for each thousand MACs."""
    names = [n.name for n in channels.graph.every_node if n.op == "Conv"]
    times = [{"count": 100}, *({"name": f"k{i}", "averageMs": 1.0, "medianMs": 1e-3} for i in range(len(names)))]
    layers = [
        {"Name": f"k{i}", "Metadata": f"[ONNX Layer: {n} | more]\x1e[ONNX Layer: x]", "Outputs": [{"Name": "t"}]}
        for i, n in enumerate(names)
    ]
    profile, info = folder / "profile.json", folder / "layers.json"
    profile.write_text(json.dumps(times), encoding="utf-8")
    info.write_text(json.dumps({"Layers": layers, "Bindings": []}).replace("\\u001e", "\x1e"), encoding="utf-8")
    return profile, info


def test_the_command_imports_and_a_budget_is_met_by_it(
    tmp_path: Path, channels: ChannelGraph, capsys: pytest.CaptureFixture[str]
):
    profile, info = written(tmp_path, channels)
    file = tmp_path / "timing.json"
    command = ["bench", "--layers", MODEL, "--save", str(file), "--from-trtexec", str(profile)]
    assert program.main(command) == 1
    assert "--trtexec-layers" in capsys.readouterr().err
    assert not file.exists()
    assert program.main([*command, "--trtexec-layers", str(info), "--target", "tensorrt-fp16", "--batch", "4"]) == 0
    assert "extrapolated by MACs and bytes, not measured" in " ".join(capsys.readouterr().out.split())
    (target,) = timing_file.read(file).targets
    assert (target.batch, target.alignment, target.machine["providers"]) == (4, 8, "tensorrt")
    # Half of the time is reached though no device is near; the median counts, and not the mean.
    assert target.seconds == pytest.approx(1e-6 * len(convolutions(channels)))
    report = prune(
        MODEL, None, digits.CALIB, dry_run=True, fast=True, budget="latency", ratio=0.05, timing=[file], round_to=2
    ).report
    assert report.timing is not None
    assert report.timing["measured"] is None


HOSTILE = {
    "a list of layers": {"name": "x"},
    "an entry is no object": [3],
    "of no layer": [{"count": 3}],
    "that is a time": [{"name": "x", "averageMs": -1}],
    "a time": [{"name": "x"}],
}


@pytest.mark.parametrize("why", HOSTILE)
def test_what_is_no_profile_is_refused(tmp_path: Path, why: str):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(HOSTILE[why]), encoding="utf-8")
    with pytest.raises(InputError, match=why):
        trtexec.read(path)


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff", b'[{"name": "x", "averageMs": NaN}]', b"1" * 5_000])
def test_what_is_no_export_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "profile.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"is no (export|profile) of trtexec"):
        trtexec.read(path)


@pytest.mark.parametrize(
    ("info", "why"),
    [
        ([], "is no layer information"),
        ({"Layers": ["x"]}, "has names of layers alone"),
        ({"Layers": [{"Name": "y"}]}, "export both from one engine"),
    ],
)
def test_what_is_no_layer_information_is_refused(tmp_path: Path, info: object, why: str):
    profile, layers = tmp_path / "profile.json", tmp_path / "layers.json"
    profile.write_text(json.dumps([{"name": "x", "averageMs": 1}]), encoding="utf-8")
    layers.write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(InputError, match=why):
        trtexec.read(profile, layers)
