"""Names of parameters, where exporters store one tensor for several, or only a part of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import prune
from onnxprune.handover.layout import in_layout, reshaped, same, turned
from onnxprune.handover.scopes import scope_of
from onnxprune.runtime.session import Session
from onnxprune.sentence.export_plan import export_plan
from tests.compare import assert_same

safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
_IDS = np.random.default_rng(0).integers(0, 20, (64, 4))
_WIDTH, _INNER = 8, 12


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("/layer1/layer1.0/conv1/Conv", ("layer1.0.conv1", "layer1.layer1.0.conv1")),
        ("/features/features.0/features.0.1/Conv_2", ("features.0.1", "features.features.0.features.0.1")),
        ("/encoder/layer.3/attention/MatMul", ("encoder.layer.3.attention",)),
        ("/Expand", ("",)),
        ("Conv_12", ()),
    ],
)
def test_scopes_of_torchscript(name: str, modules: tuple[str, ...]):
    assert scope_of(helper.make_node("Relu", ["x"], ["y"], name=name)).modules == modules


def test_scopes_of_dynamo():
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="node_linear")
    classes = "['m.Net', 'torch.nn.modules.activation.MultiheadAttention', 'aten.linear.default']"
    for key, value in (("name_scopes", "['', 'block.attention', 'linear']"), ("class_hierarchy", classes)):
        node.metadata_props.add(key=f"pkg.torch.onnx.{key}", value=value)
    scope = scope_of(node)
    assert scope.modules == ("block.attention",) and scope.module_class.endswith("MultiheadAttention")


@pytest.mark.parametrize("text", ["[" * 100_000, "['a'", "__import__('os')", "{}", "[1, 2]", ""])
def test_metadata_of_others_is_no_scope(text: str):
    node = helper.make_node("Relu", ["x"], ["y"], name="n")
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=text)
    assert scope_of(node).modules == ()


def test_layouts():
    w = np.arange(24).reshape(2, 3, 4)
    axes = turned(same(3), (2, 0, 1))
    assert_same(in_layout(w.transpose(2, 0, 1), axes), w, rtol=0, atol=0)
    wide = reshaped(axes, (4, 2, 3), (1, 4, 1, 2, 3))
    assert wide is not None
    assert_same(in_layout(w.transpose(2, 0, 1)[None, :, None], wide), w, rtol=0, atol=0)
    assert reshaped(same(2), (4, 6), (6, 4)) is None
    assert in_layout(w, (0, 1)) is None


def state() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "tokens.weight": normal(20, _WIDTH),
        "positions.weight": normal(16, _WIDTH),
        "up.weight": normal(_INNER, _WIDTH),
        "up.bias": np.zeros(_INNER, np.float32),
        "mid.weight": normal(_INNER, _INNER),
        "mid.bias": np.zeros(_INNER, np.float32),
        "down.weight": normal(_WIDTH, _INNER),
    }


def network(values: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Tokens and the first four positions, three layers, and logits by the table of tokens, with one tensor of zeros as
    both biases, as exporters write it."""
    stored = {
        "tokens.weight": values["tokens.weight"],
        "embedding_1": values["positions.weight"][None, :4],
        "up.bias": values["up.bias"],
        "onnx::MatMul_1": values["up.weight"].T,
        "onnx::MatMul_2": values["mid.weight"].T,
        "onnx::MatMul_3": values["down.weight"].T,
    }
    nodes = [
        helper.make_node("Gather", ["tokens.weight", "ids"], ["t"], name="/tokens/Gather"),
        helper.make_node("Add", ["t", "embedding_1"], ["e"], name="/Add"),
        helper.make_node("MatMul", ["e", "onnx::MatMul_1"], ["u0"], name="/up/MatMul"),
        helper.make_node("Add", ["u0", "up.bias"], ["u1"], name="/up/Add"),
        helper.make_node("Relu", ["u1"], ["u"], name="/Relu"),
        helper.make_node("MatMul", ["u", "onnx::MatMul_2"], ["m0"], name="/mid/MatMul"),
        helper.make_node("Add", ["m0", "up.bias"], ["m1"], name="/mid/Add"),
        helper.make_node("Relu", ["m1"], ["m"], name="/Relu_1"),
        helper.make_node("MatMul", ["m", "onnx::MatMul_3"], ["d"], name="/down/MatMul"),
        helper.make_node("Transpose", ["tokens.weight"], ["head"], name="/head/Transpose", perm=[1, 0]),
        helper.make_node("Add", ["e", "d"], ["s"], name="/Add_1"),
        helper.make_node("MatMul", ["s", "head"], ["logits"], name="/head/MatMul"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4, 20])],
        [numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def by_hand(values: dict[str, np.ndarray]) -> np.ndarray:
    """The network by numpy, of any widths; the head's weight may have left the table's."""
    x = e = values["tokens.weight"][_IDS] + values["positions.weight"][:4]
    for layer in ("up", "mid"):
        x = np.maximum(x @ values[f"{layer}.weight"].T + values[f"{layer}.bias"], 0)
    return (e + x @ values["down.weight"].T) @ values["head.weight"].T


@pytest.mark.parametrize("refit", ["none", "least-squares"])
def test_one_tensor_for_several_parameters(tmp_path: Path, refit: str):
    """Zeros stored once are the biases of two layers; a table is rows of a longer one; and one is the head's, too."""
    values = state()
    onnx.save(network(values), tmp_path / "net.onnx")
    safetensors.save_file(values, tmp_path / "net.safetensors", {"head.weight": "tokens.weight"})
    given = {"uniform": 0.3, "method": "magnitude", "refit": refit, "recover": 0, "round_to": 1}
    prune(tmp_path / "net.onnx", tmp_path / "slim.onnx", {"ids": _IDS}, plan_file=tmp_path / "net.plan", **given)
    if refit != "none":  # as if the table had been fitted, too
        fitted = onnx.load(tmp_path / "slim.onnx")
        table = next(t for t in fitted.graph.initializer if t.name == "embedding_1")
        table.CopyFrom(numpy_helper.from_array(np.float32(1.5) * numpy_helper.to_array(table), table.name))
        onnx.save(fitted, tmp_path / "slim.onnx")
    found = export_plan(tmp_path / "net.plan", tmp_path / "net.onnx", None, tmp_path / "slim.onnx",
                        state_dict=tmp_path / "net.safetensors").parameters  # fmt: skip
    assert not found.missing and not found.unread
    assert {"up.bias", "mid.bias", "positions.weight"} <= {*found.kept}
    assert found.values["positions.weight"].shape == (16, len(found.kept["tokens.weight"][1]))
    back = {**found.values, **{name: found.values[other] for name, other in found.tied.items()}}
    assert refit != "none" or found.tied == {"head.weight": "tokens.weight"}
    slim = Session(tmp_path / "slim.onnx").run({"ids": _IDS})["logits"]
    assert_same(by_hand(back), slim, rtol=1e-4, atol=1e-4)


def test_names_alone_tell_shared_biases_apart(tmp_path: Path):
    """Without values, too: by the modules that read them."""
    onnx.save(network(state()), tmp_path / "net.onnx")
    given = {"uniform": 0.3, "method": "magnitude", "refit": "none", "recover": 0, "round_to": 1}
    prune(tmp_path / "net.onnx", None, {"ids": _IDS}, plan_file=tmp_path / "net.plan", dry_run=True, **given)
    result = export_plan(tmp_path / "net.plan", tmp_path / "net.onnx", partial=True)
    found = result.parameters
    assert {"up.bias", "mid.bias"} <= {*found.kept}
    for name in ("up.weight", "mid.weight", "down.weight"):
        cut = state()[name][np.ix_(*(found.kept[name][a] for a in (0, 1)))]
        assert_same(found.values[name], cut, rtol=0, atol=0)
