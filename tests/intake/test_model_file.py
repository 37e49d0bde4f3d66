"""Reading files: every refusal by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.errors import ModelError
from onnxprune.graph import external, protobuf, surgeon
from onnxprune.graph.bodies import captured_names
from onnxprune.intake import model_file
from onnxprune.runtime.session import Session
from tests.compare import assert_same
from tests.graphs import TABLE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(TABLE["plain"].model(), path)
    return path


def test_load(file: Path):
    """Fails where the model read is not the model stored."""
    proto, source = model_file.load(file)
    assert proto == TABLE["plain"].model()
    assert (source.path, source.size) == (str(file), file.stat().st_size)
    assert len(source.sha256) == 64


def test_missing_file(tmp_path: Path):
    with pytest.raises(ModelError, match="does not exist"):
        model_file.load(tmp_path / "none.onnx")


def test_folder(tmp_path: Path):
    with pytest.raises(ModelError, match="is a folder"):
        model_file.load(tmp_path)


@pytest.mark.parametrize("blob", [b"", b"not a model at all", b"\x00" * 64, b"PK\x03\x04" + bytes(range(200))])
def test_not_onnx(tmp_path: Path, blob: bytes):
    path = tmp_path / "other.onnx"
    path.write_bytes(blob)
    with pytest.raises(ModelError, match="not an ONNX model"):
        model_file.load(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_cut_short(file: Path, share: float):
    """Fails where half a download is taken for a model."""
    blob = file.read_bytes()
    file.write_bytes(blob[: int(len(blob) * share)])
    with pytest.raises(ModelError):
        model_file.load(file)


def test_invalid_graph(tmp_path: Path):
    """Fails where a graph that reads an undefined tensor gets past the door."""
    proto = TABLE["plain"].model()
    proto.graph.node[1].input[0] = "nowhere"
    path = tmp_path / "invalid.onnx"
    onnx.save(proto, path)
    with pytest.raises(ModelError, match="is not a valid ONNX model"):
        model_file.load(path)


def _external(path: Path, location: str) -> onnx.ModelProto:
    """The plain model with one weight that claims to lie at `location`."""
    proto = TABLE["plain"].model()
    tensor = next(t for t in proto.graph.initializer if t.name == "w1")
    raw = onnx.numpy_helper.to_array(tensor).tobytes()
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(raw)))):
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    return proto


def _weight() -> np.ndarray:
    return onnx.numpy_helper.to_array(next(t for t in TABLE["plain"].model().graph.initializer if t.name == "w1"))


def test_external_data_beside_the_model(tmp_path: Path):
    path = tmp_path / "model.onnx"
    _external(path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(_weight().tobytes())
    proto, _ = model_file.load(path)
    stored = next(t for t in proto.graph.initializer if t.name == "w1")
    assert_same(onnx.numpy_helper.to_array(stored), _weight(), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("kind", ["parent", "through", "absolute", "windows", "link", "none"])
def test_external_data_outside_the_folder(tmp_path: Path, kind: str):
    """Fails where a model file can make the program read any file of the machine."""
    folder = tmp_path / "inside"
    (folder / "deeper").mkdir(parents=True)
    secret = tmp_path / "secret.bin"
    secret.write_bytes(_weight().tobytes())
    if kind == "link":
        (folder / "link.bin").symlink_to(secret)
    location = {
        "parent": "../secret.bin",
        "through": "deeper/../../secret.bin",
        "absolute": str(secret),
        "windows": "C:\\secret.bin",
        "link": "link.bin",
        "none": "",
    }[kind]
    path = folder / "model.onnx"
    _external(path, location)
    with pytest.raises(ModelError, match="outside the model's folder"):
        model_file.load(path)


def test_external_data_missing(tmp_path: Path):
    path = tmp_path / "model.onnx"
    _external(path, "weights.bin")
    with pytest.raises(ModelError, match="missing beside the model"):
        model_file.load(path)


def test_external_data_inside_a_body_and_a_constant_node(tmp_path: Path):
    """Fails where only the main graph's weights are looked at."""
    proto = TABLE["weights_as_constant_nodes"].model()
    tensor = proto.graph.node[0].attribute[0].t
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    path = tmp_path / "constant.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder"):
        model_file.load(path)
    proto = TABLE["loop"].model()
    body = next(a.g for n in proto.graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH)
    inner = body.initializer.add()
    inner.CopyFrom(onnx.numpy_helper.from_array(np.zeros(2, np.float32), "inner"))
    inner.data_location = onnx.TensorProto.EXTERNAL
    inner.external_data.add(key="location", value="../secret.bin")
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder"):
        model_file.load(path)


def test_round_trip_restores_what_graphsurgeon_drops():
    """Fails where a pass through onnx-graphsurgeon loses metadata, declarations or documentation."""
    like = TABLE["described"].model()
    like.graph.output[0].doc_string = "the answer"
    back = surgeon.from_gs(surgeon.to_gs(like), like)
    for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(back, field) == getattr(like, field)
    for field in ("opset_import", "metadata_props"):
        assert list(getattr(back, field)) == list(getattr(like, field))
    assert list(back.graph.input) == list(like.graph.input)
    assert list(back.graph.output) == list(like.graph.output)
    assert back.graph.doc_string == like.graph.doc_string
    for after, before in zip(back.graph.node, like.graph.node, strict=True):
        for field in ("name", "op_type", "domain", "overload", "doc_string"):
            assert getattr(after, field) == getattr(before, field)
        for field in ("input", "output", "attribute", "metadata_props"):
            assert list(getattr(after, field)) == list(getattr(before, field))


def test_submodel_computes_the_part():
    """Fails where a part of a model computes anything else than that part."""
    proto = TABLE["plain"].model()
    feeds = TABLE["plain"].feeds(2)
    whole = Session(proto).run(feeds)["y"]
    head = Session(protobuf.submodel(proto, {}, ["r", "c"])).run(feeds)
    tail = protobuf.submodel(proto, {"c": onnx.TensorProto.FLOAT}, ["y"])
    assert [i.name for i in tail.graph.input] == ["c"]
    assert {t.name for t in tail.graph.initializer} == {"w3", "b3"}
    assert_same(Session(tail).run({"c": head["c"]})["y"], whole, rtol=1e-6, atol=0.0)
    assert (head["r"] >= 0).all()


def test_submodel_with_an_overridable_weight():
    """Fails where a fed weight is ignored, or its default is lost."""
    proto = TABLE["plain"].model()
    feeds = TABLE["plain"].feeds(2)
    session = Session(protobuf.submodel(proto, {}, ["y"], overridable=["b3"]))
    assert session.overridable == {"b3"}
    bias = onnx.numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == "b3"))
    plain = session.run(feeds)["y"]
    raised = session.run({**feeds, "b3": bias + np.float32(1)})["y"]
    assert_same(plain, Session(proto).run(feeds)["y"], rtol=1e-6, atol=0.0)
    assert_same(raised, plain + np.float32(1), rtol=1e-5, atol=0.0)


def test_captured_names_reach_into_nested_bodies():
    """Fails where a tensor that only an inner body reads counts as unread."""
    (node,) = (n for n in TABLE["loop"].model().graph.node if n.op_type == "Loop")
    assert captured_names(node) == ("w3", "o3", "w4")
    (node,) = (n for n in TABLE["body_reads_outer_weights"].model().graph.node if n.op_type == "If")
    assert captured_names(node) == ("a", "w2")
    (node,) = (n for n in TABLE["if_in_loop"].model().graph.node if n.op_type == "Loop")
    assert captured_names(node) == ("one", "a")


def test_parameters_do_not_count_indices():
    """Fails where a permutation counts as a weight."""
    model = TABLE["gather_negative"].model()
    assert protobuf.parameters(model) == 8 * 3 + 8 + 5 * 6


def _cache(tmp_path: Path, data: str) -> Path:
    """A model in a cache of blobs: its file and its weights are links; data: where the weights lie."""
    for name in ("blobs", "snapshot/onnx", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    _external(tmp_path / "blobs/aaa", "model.onnx_data")
    (tmp_path / data).write_bytes(_weight().tobytes())
    (tmp_path / "snapshot/onnx/model.onnx").symlink_to("../../blobs/aaa")
    (tmp_path / "snapshot/onnx/model.onnx_data").symlink_to(f"../../{data}")
    return tmp_path / "snapshot/onnx/model.onnx"


def test_a_cache_of_links_is_read(tmp_path: Path):
    """Fails where weights beside the model's own file are refused, as they are reached by a link."""
    path = _cache(tmp_path, "blobs/bbb")
    proto, source = model_file.load(path)
    assert source.notes == ()
    assert source.files == {str((tmp_path / "blobs/bbb").resolve())}
    assert_same(external.Weights(proto.graph.initializer)["w1"], _weight(), rtol=0, atol=0)


def test_other_links_are_followed_where_that_is_asked_for(tmp_path: Path):
    """Fails where a link out of the tree is followed unasked, or a reference out of it is followed at all."""
    path = _cache(tmp_path, "elsewhere/bbb")
    with pytest.raises(ModelError, match=r"outside the model's folder, at 'model.onnx_data': .*--allow-links"):
        model_file.load(path)
    proto, _ = model_file.load(path, allow_links=True)
    assert_same(external.Weights(proto.graph.initializer)["w1"], _weight(), rtol=0, atol=0)
    _external(tmp_path / "blobs/aaa", "../../elsewhere/bbb")
    with pytest.raises(ModelError, match=r"refused$"):
        model_file.load(path, allow_links=True)


def test_links_to_a_folder_above_the_model_are_refused(tmp_path: Path):
    """Fails where any file below the one of the model is taken for a part of it."""
    path = _cache(tmp_path, "elsewhere/bbb")
    path.unlink()
    (tmp_path / "blobs/aaa").rename(tmp_path / "aaa")
    path.symlink_to("../../aaa")
    with pytest.raises(ModelError, match="outside the model's folder"):
        model_file.load(path)
