"""What comes back to the network computes what the slim model computes, by the names that its own parameters have."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune import prune
from onnxprune.cli.program import main
from onnxprune.errors import CheckFailed, InputError, UsageError
from onnxprune.runtime.session import Session
from onnxprune.sentence.export_plan import export_plan
from tests.compare import assert_same
from tests.handover import network
from tests.transformer import features, transformer

safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
EXPORTERS = {"plain": network.plain, "dynamo": network.dynamo, "torchscript": network.torchscript}
_PRUNE = {"uniform": 0.3, "method": "magnitude", "refit": "least-squares", "recover": 0, "round_to": 1}
_X = np.random.default_rng(1).normal(size=(48, 3, 8, 8)).astype(np.float32)


def run(model: Path | onnx.ModelProto) -> np.ndarray:
    return Session(model).run({"input": _X})["logits"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the state dict, and with a model, its plan and the result for each exporter."""
    folder = tmp_path_factory.mktemp("handover")
    state = network.trained()
    safetensors.save_file(state, folder / "net.safetensors")
    for name, export in EXPORTERS.items():
        onnx.save(export(state), folder / f"{name}.onnx")
        prune(folder / f"{name}.onnx", folder / f"{name}-slim.onnx", _X, plan_file=folder / f"{name}.plan", **_PRUNE)
    return folder


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_the_narrowed_network_is_the_slim_model(made: Path, exporter: str):
    out = made / f"{exporter}.safetensors"
    plan, model, slim = (made / f"{exporter}{end}" for end in (".plan", ".onnx", "-slim.onnx"))
    state = None if exporter == "plain" else made / "net.safetensors"
    found = export_plan(plan, model, out, slim, state_dict=state).parameters
    said = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    values = safetensors.load_file(out)
    assert not found.missing and said["missing"] == {} and said["refitted"]
    assert said["unfolded"] == ({} if exporter == "plain" else {"bn1": "conv1", "bn2": "conv2"})
    original = network.trained()
    assert {*values} - {*original} == {*said["added"]}
    for name, axes in said["kept"].items():
        sizes = [len(axes[str(a)][0]) if a == 1 and name == "conv2.weight" else len(axes.get(str(a), range(n)))
                 for a, n in enumerate(original[name].shape)]  # fmt: skip
        assert list(values[name].shape) == sizes and said["shapes"][name] == list(original[name].shape)
    assert {"conv1.weight", "bn1.running_var", "proj.weight", "fc.weight"} <= {*said["kept"]}
    if exporter == "plain" and said["added"]:
        assert said["added"] == ["conv1.bias"]
    narrowed = network.plain(values, said["groups"]["conv2"])
    assert_same(run(narrowed), run(slim), rtol=1e-4, atol=1e-5)
    assert np.abs(run(narrowed) - run(model)).max() > 1e-3


def test_the_trained_statistics_stay(made: Path):
    """Fails where a normalisation that was taken out has unit scale: training would start from another function."""
    found = export_plan(made / "dynamo.plan", made / "dynamo.onnx", None, made / "dynamo-slim.onnx",
                        state_dict=made / "net.safetensors").parameters  # fmt: skip
    original = network.trained()
    for name in ("bn1.weight", "bn1.running_mean", "bn2.running_var"):
        assert_same(found.values[name], original[name][found.kept[name][0]], rtol=1e-6, atol=0)


def test_without_the_slim_model_the_weights_are_cut_ones(made: Path):
    said: list[str] = []
    result = export_plan(made / "plain.plan", made / "plain.onnx", warn=said.append)
    found = result.parameters
    assert not result.refitted and "cut and not refitted" in said[0]
    original = network.trained()
    for name, values in found.values.items():
        cut = original[name]
        for axis, kept in found.kept.get(name, {}).items():
            if isinstance(kept[0], list):
                cut = np.stack([row[k] for row, k in zip(cut, kept, strict=True)])
            else:
                cut = np.take(cut, kept, axis=axis)
        assert_same(values, cut, rtol=0, atol=0)
    assert isinstance(found.kept["conv2.weight"][1][0], list)  # each group reads channels of its own


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_what_cannot_be_named_is_said(made: Path, exporter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A normalisation was folded in, and nothing says which: exit code 4 and no file, or what there is."""
    out = tmp_path / "out.safetensors"
    words = ["export-plan", *(str(made / f"{exporter}{end}") for end in (".plan", ".onnx")), str(out)]
    words += ["--slim", str(made / f"{exporter}-slim.onnx")]
    assert main(words) == CheckFailed.exit_code
    said = capsys.readouterr().err
    assert "a BatchNormalization is folded into it" in said and "--state-dict" in said
    assert not [*tmp_path.iterdir()]
    assert main([*words, "--partial"]) == 0
    assert {*safetensors.load_file(out)} == {"proj.weight", "proj.bias", "fc.weight", "fc.bias"}
    assert len(json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["missing"]) == 4
    assert main([*words, "--partial"]) == UsageError.exit_code  # they exist


def test_the_command_names_its_files_like_the_plan(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plan = tmp_path / "cut.plan"
    plan.write_bytes((made / "plain.plan").read_bytes())
    assert main(["export-plan", str(plan), str(made / "plain.onnx"), "--to", "torch"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.json", "cut.plan", "cut.safetensors"]
    assert "cut.json says which positions stay" in capsys.readouterr().out


def test_what_cannot_be_written_is_refused_before_the_work(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Fails where a link that nobody named is replaced, or doubts are told of a result that nothing can write."""
    out = tmp_path / "x.safetensors"
    out.with_suffix(".json").symlink_to(tmp_path / "nowhere")
    given = [str(made / "plain.plan"), str(made / "plain.onnx"), str(out)]
    assert main(["export-plan", *given]) == 2
    assert "x.json is a link that leads nowhere; use --overwrite" in capsys.readouterr().err
    assert out.with_suffix(".json").is_symlink() and not out.exists()
    out.with_suffix(".json").unlink()
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert main(["export-plan", *given]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "pip install 'onnxprune[torch]'" in told


def test_what_does_not_belong_together_is_refused(made: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="another model"):
        export_plan(made / "plain.plan", made / "dynamo.onnx")
    with pytest.raises(UsageError, match="not what this plan makes"):
        export_plan(made / "plain.plan", made / "plain.onnx", slim=made / "plain.onnx")
    codes = onnx.load(made / "plain-slim.onnx")
    codes.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", ["codes", "scale"], ["unread"]))
    codes.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.int8), "codes"))
    codes.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.1), "scale"))
    with pytest.raises(UsageError, match="holds integers"):
        export_plan(made / "plain.plan", made / "plain.onnx", slim=codes)
    with pytest.raises(UsageError, match="must end in"):
        export_plan(made / "plain.plan", made / "plain.onnx", tmp_path / "out.pt")
    with pytest.raises(InputError, match="not a file of safetensors"):
        export_plan(made / "plain.plan", made / "plain.onnx", state_dict=made / "plain.onnx")


def test_a_state_dict_of_another_network_names_nothing(made: Path, tmp_path: Path):
    safetensors.save_file(network.trained(seed=5), tmp_path / "other.safetensors")
    with pytest.raises(CheckFailed, match="the state dict has no parameter with its values"):
        export_plan(made / "plain.plan", made / "plain.onnx", state_dict=tmp_path / "other.safetensors")


def test_names_by_values_where_the_exporter_kept_none(made: Path, tmp_path: Path):
    """The network was inside another one, and its file has no names at all: its values tell."""
    state = network.trained()
    bare = network.dynamo(state)
    names = {t.name: f"w{i}" for i, t in enumerate(bare.graph.initializer)}
    for t in bare.graph.initializer:
        t.name = names[t.name]
    for n in bare.graph.node:
        n.input[:] = [names.get(i, i) for i in n.input]
        del n.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    safetensors.save_file({f"inner.{k}": v for k, v in state.items()}, tmp_path / "net.safetensors")
    slim = tmp_path / "slim.onnx"
    prune(tmp_path / "bare.onnx", slim, _X, plan_file=tmp_path / "bare.plan", **_PRUNE)
    found = export_plan(tmp_path / "bare.plan", tmp_path / "bare.onnx", None, slim,
                        state_dict=tmp_path / "net.safetensors").parameters  # fmt: skip
    values = {k.removeprefix("inner."): v for k, v in found.values.items()}
    assert_same(run(network.plain(values, found.groups["inner.conv2"])), run(slim), rtol=1e-4, atol=1e-5)


def test_positions_inside_heads_are_told_of(tmp_path: Path) -> None:
    """Fails where nobody hears that a module with one size of head cannot hold the result."""
    model, slim, told = transformer(layers=1), tmp_path / "slim.onnx", list[str]()
    made = prune(model, slim, features(16), ratio=0.2, round_to=1, fast=True).plan
    with pytest.raises(UsageError, match="--attention heads"):
        export_plan(made, model, None)
    export_plan(made, model, None, slim, partial=True, warn=told.append)
    assert any("--attention heads" in note for note in told)
    whole, told[:] = prune(model, slim, features(16), ratio=0.2, fast=True, attention="heads", overwrite=True).plan, []
    export_plan(whole, model, None, slim, partial=True, warn=told.append)
    assert not any("--attention heads" in note for note in told)
