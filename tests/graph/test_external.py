"""Weights in files: they stay there, are read lazily, and every broken reference is one clear refusal."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import pytest
from ml_dtypes import bfloat16, int4

from onnxprune import inspect, prune
from onnxprune.cli.program import main
from onnxprune.errors import ModelError, RunError, UsageError
from onnxprune.graph import external, tensor_files
from onnxprune.intake import model_file
from onnxprune.process import spill
from onnxprune.runtime.session import Session
from onnxprune.surgery import set_initializers
from tests import digits
from tests.compare import assert_same
from tests.external import WAYS, refer, sparse_table, stored, t_values, weights_of
from tests.graphs import TABLE
from tests.prepared import masked, prepare, random_keep, sliced

GIB = 1 << 30


def mixed() -> onnx.ModelProto:
    """Weights behind Transpose, a Constant node and a body: what is folded, hoisted and left alone."""
    body = onnx.parser.parse_graph(
        """g (float[N,16] x) => (float[N,5] y) {
            t = Transpose <perm=[1,0]> (w1)
            h = MatMul(x, t)
            b = Add(h, b1)
            r = Relu(b)
            s = Mul(w2, half)
            y = MatMul(r, s)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w1", (48, 16)), ("b1", (48,)), ("w2", (48, 5)), ("half", ())):
        values = (rng.standard_normal(shape) / 4).astype(np.float32)
        body.initializer.append(onnx.numpy_helper.from_array(values, name))
    return onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


def mixed_data(count: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((count, 16)).astype(np.float32)}


NETS = ("resnet", "mobilenet", "mixed")


def net(name: str) -> tuple[onnx.ModelProto, Mapping[str, Any]]:
    """A model and calibration data."""
    if name == "mixed":
        return mixed(), mixed_data(64)
    return onnx.load(digits.path(name)), {"input": np.load(digits.CALIB)["input"][:64]}


# the whole job


@pytest.mark.parametrize("way", ["one file", "a file each", None])
def test_file_sizes_are_those_of_the_files(way: str | None, tmp_path: Path):
    """Fails where a size leaves out the references to weights beside the model, or the room between these."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal((24, 24)).astype(np.float32) for i in range(8)}
    nodes = [f"a{i} = MatMul ({f'r{i - 1}' if i else 'x'}, w{i})  r{i} = Relu (a{i})" for i in range(8)]
    text = f"main (float[N,24] x) => (float[N,24] r7) {{ {'  '.join(nodes)} }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 13]> {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(w, k) for k, w in weights.items())
    before = tmp_path / "in.onnx"
    if way is None:
        onnx.save(model, before)
    else:
        before = stored(model, tmp_path, way)
    there = sum(p.stat().st_size for p in tmp_path.iterdir())
    out = tmp_path / "out.onnx"
    options: dict[str, Any] = {"ratio": 0.2, "method": "magnitude", "refit": "none", "round_to": 1}
    result = prune(before, out, {"x": rng.standard_normal((32, 24)).astype(np.float32)}, **options)
    made = sum(p.stat().st_size for p in tmp_path.iterdir()) - there
    assert (result.report.before.bytes, result.report.after.bytes) == (there, made)
    assert model_file.load(out)[1].size == made
    kept = prune(before, None, {"x": rng.standard_normal((32, 24)).astype(np.float32)}, **options)
    assert kept.model is not None
    assert kept.report.after.bytes == len(kept.model.SerializeToString())


@pytest.mark.parametrize(
    ("name", "way", "limit"),
    [
        ("resnet", "one file", 1024),
        ("resnet", "a file each", tensor_files.SPILL_BYTES),
        ("mobilenet", "nested", 1024),
        *(("mixed", way, 1024) for way in WAYS),
    ],
)
def test_the_same_model_as_from_embedded_weights(
    name: str, way: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Fails where the place of the weights changes the result, or the output names a place of this machine."""
    monkeypatch.setattr(tensor_files, "SPILL_BYTES", limit)
    model, data = net(name)
    options: dict[str, Any] = {"ratio": 0.4, "refit": "least-squares", "round_to": 4}
    plain = tmp_path / "plain.onnx"
    expected = prune(model, plain, data, **options).report
    out = tmp_path / "out.onnx"
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    result = prune(stored(model, tmp_path, way), out, data, **options)
    assert not list((tmp_path / "tmp").iterdir())
    assert out.stat().st_size + weights_of(out).stat().st_size < 1.5 * plain.stat().st_size
    onnx.checker.check_model(str(out), full_check=True)
    first, second = onnx.load(out), onnx.load(plain)
    assert [n.name for n in first.graph.node] == [n.name for n in second.graph.node]
    for a, b in zip(first.graph.initializer, second.graph.initializer, strict=True):
        assert a.name == b.name
        assert_same(onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b), rtol=0.0, atol=0.0)
    ours = result.report
    assert (ours.achieved, ours.output_error) == (expected.achieved, expected.output_error)
    assert ours.before.parameters == expected.before.parameters
    assert abs(ours.before.bytes - expected.before.bytes) < 0.1 * expected.before.bytes
    assert abs(ours.after.bytes - expected.after.bytes) < 0.1 * expected.before.bytes
    assert result.model is not None
    feeds = {k: v[:2] for k, v in data.items()}
    got, wanted = Session(result.model).run(feeds), Session(str(out)).run(feeds)
    for k, y in wanted.items():
        assert_same(got[k], y, rtol=1e-6, atol=0.0)


def test_result_in_memory_holds_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where a result without an output refers to files that are gone."""
    monkeypatch.setattr(tensor_files, "SPILL_BYTES", 1024)
    model, data = net("resnet")
    result = prune(stored(model, tmp_path, "one file"), None, data, ratio=0.4, refit="none").model
    assert result is not None
    assert not external.has_external(result)
    Session(result).run({"input": data["input"][:1]})


@pytest.mark.parametrize("name", ["residual", "if_weights_inside", "shuffle_static", "weights_as_constant_nodes"])
def test_slice_equals_oracle(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where a stage loses, reads as something else, or forgets weights that lie in files."""
    # Above the shapes that graphs name, as onnxruntime reads those.
    monkeypatch.setattr(tensor_files, "SPILL_BYTES", 64)
    monkeypatch.setattr(external, "INLINE_BYTES", 64)
    row = TABLE[name]
    proto, _ = model_file.load(stored(row.model(), tmp_path, "one file"))
    with spill.spilling():
        p = prepare(proto, row.feeds(2))
        assert external.has_external(p.normalised.proto) == external.has_external(proto)
        keep = random_keep(p.channels, 0)
        cut, oracle = (Session(x(p, keep)).run(p.example) for x in (sliced, masked))
    for k, y in oracle.items():
        assert_same(cut[k], y, rtol=1e-4, atol=1e-6)
    embedded = prepare(row.model(), row.feeds(2))
    for k, y in Session(sliced(embedded, keep)).run(embedded.example).items():
        assert_same(cut[k], y, rtol=1e-6, atol=0.0)


def test_evaluation_and_inspection(tmp_path: Path):
    """Fails where only pruning knows of weights in files."""
    from onnxprune import evaluate

    path = stored(onnx.load(digits.path("resnet")), tmp_path, "nested")
    assert evaluate(path, digits.TEST, against=digits.path("resnet")).agreement == 1.0
    assert inspect(path).groups == inspect(digits.path("resnet")).groups


def test_replay_from_a_plan(tmp_path: Path):
    """Fails where the checksum of a model with other weights beside it is the same."""
    model, data = net("mixed")
    path = stored(model, tmp_path, "one file")
    plan = prune(path, None, data, ratio=0.4, refit="none").plan
    prune(path, None, data, from_plan=plan)
    blob = bytearray((tmp_path / "weights.bin").read_bytes())
    blob[1] ^= 1
    (tmp_path / "weights.bin").write_bytes(blob)
    with pytest.raises(UsageError, match="made for another model"):
        prune(path, None, data, from_plan=plan)


# laziness


def test_loading_reads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where loading or tracing reads values of weights, or keeps them in the message."""
    path = stored(onnx.load(digits.path("resnet")), tmp_path, "one file")

    def read(*_: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(external, "array_of", read)
    proto, source = model_file.load(path)
    assert proto.ByteSize() < 0.2 * source.size
    assert source.size > digits.path("resnet").stat().st_size * 0.9


def test_a_model_of_three_gigabytes(tmp_path: Path):
    """Fails where a model above 2 GiB cannot be inspected, or its table of 3 GiB is read for it."""
    path = sparse_table(tmp_path, 3 << 18, 1024)
    assert (tmp_path / "table.bin").stat().st_size == 3 * GIB
    code = (
        "import sys\n"
        "from onnxprune import inspect\n"
        "from onnxprune.report.environment import peak_memory\n"
        "found = inspect(sys.argv[1])\n"
        "print(len(found.groups), peak_memory())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    groups, peak = done.stdout.split()
    assert int(groups) >= 1
    assert int(peak) < GIB


def test_pruning_three_gigabytes(tmp_path: Path):
    """Fails where any message above 2 GiB is made on the way; the table is pinned, so that nothing is written."""
    path = sparse_table(tmp_path, 3 << 18, 1024)
    ids = np.random.default_rng(0).integers(0, 1000, (16, 4))
    result = prune(path, None, {"ids": ids}, ratio=0.3, exclude=("table",), refit="least-squares", dry_run=True)
    assert result.report.before.bytes > 3 * GIB
    assert result.report.achieved >= 0.3


def test_mapped_values_are_read_only(tmp_path: Path):
    """Fails where a stage can write into the user's file."""
    proto, _ = model_file.load(stored(onnx.load(digits.path("resnet")), tmp_path, "one file"))
    tensor = next(t for t in proto.graph.initializer if external.is_external(t))
    array = external.array_of(tensor)
    assert not array.flags.writeable
    assert array.base is not None


# element types


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize(
    "dtype",
    [np.float32, np.float16, np.float64, np.int64, np.uint8, np.bool_, bfloat16, int4],
    ids=lambda d: d.__name__,
)
def test_array_of(dtype: type, offset: int, tmp_path: Path):
    """Fails where an element type, a packed one, or an odd offset is read as something else."""
    values = np.random.default_rng(0).integers(0, 2, (3, 5, 7)).astype(dtype)
    whole = onnx.numpy_helper.from_array(values, "w")
    (tmp_path / "w").write_bytes(b"x" * offset + whole.raw_data + b"y")
    tensor = onnx.TensorProto(name="w", data_type=whole.data_type, dims=whole.dims)
    refer(tensor, str(tmp_path / "w"), offset, len(whole.raw_data))
    assert external.bytes_of(tensor) == len(whole.raw_data)
    assert_same(external.array_of(tensor), values, rtol=0.0, atol=0.0)
    with spill.spilling():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tensor_files, "SPILL_BYTES", 1)
            spilled = tensor_files.tensor_of(values, "w", outside=True)
        assert external.is_external(spilled)
        assert_same(external.array_of(spilled), values, rtol=0.0, atol=0.0)


def test_empty_and_scalar(tmp_path: Path):
    (tmp_path / "w").write_bytes(np.float32(3).tobytes())
    for shape in ((), (1,), (0, 4)):
        tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=shape)
        refer(tensor, str(tmp_path / "w"))
        assert external.array_of(tensor).shape == shape


# refusals


def _broken(tmp_path: Path, **reference: Any) -> Path:
    model = mixed()
    tensor = t_values(model, "w1")
    (tmp_path / "weights.bin").write_bytes(onnx.numpy_helper.to_array(tensor).tobytes())
    refer(tensor, **reference)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "model.onnx"


BROKEN = {
    "missing": ({"location": "nothing.bin"}, "missing beside the model"),
    "a folder": ({"location": "."}, "is a folder; give a regular file"),
    "cut short": ({"location": "weights.bin", "offset": 4}, "cut short or belongs to another model"),
    "beyond the end": ({"location": "weights.bin", "offset": 1 << 40}, "cut short or belongs to another model"),
    "negative": ({"location": "weights.bin", "offset": -4}, "is negative"),
    "length": ({"location": "weights.bin", "length": 8}, "its shape and type need 3072"),
    "outside": ({"location": "../model.onnx"}, "outside the model's folder"),
    "absolute": ({"location": "/etc/passwd"}, "outside the model's folder"),
    "nowhere": ({"location": "a\0b"}, "outside the model's folder"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_references(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where a broken reference passes, or is more than one line on the command line; nothing is written."""
    reference, reason = BROKEN[kind]
    path = _broken(tmp_path, **reference)
    with pytest.raises(ModelError, match=reason):
        model_file.load(path)
    before = sorted(tmp_path.iterdir())
    assert main([str(path), str(tmp_path / "out.onnx"), "--ratio", "0.5", "--quiet"]) == 1
    assert reason in capsys.readouterr().err.strip().splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("value", ["many", "1.5", "0x10", "9" * 400, "\N{ARABIC-INDIC DIGIT THREE}", "1_0"])
def test_offset_that_is_no_number(tmp_path: Path, value: str):
    path = _broken(tmp_path, location="weights.bin")
    model = onnx.load(path, load_external_data=False)
    next(e for e in t_values(model, "w1").external_data if e.key == "offset").value = value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="is not a number"):
        model_file.load(path)


def test_model_in_memory(tmp_path: Path):
    """Fails where references of a model in memory are looked up in whatever folder the process runs in."""
    model, data = net("mixed")
    path = stored(model, tmp_path, "one file")
    lazy = onnx.load(path, load_external_data=False)
    with pytest.raises(ModelError, match="in a folder that is not known"):
        prune(lazy, None, data, ratio=0.4)
    for t in lazy.graph.initializer:
        refer(t, str(tmp_path / "weights.bin"), int(next(e.value for e in t.external_data if e.key == "offset")))
    before = lazy.SerializeToString()
    options: dict[str, Any] = {"ratio": 0.4, "refit": "least-squares", "round_to": 4}
    result, expected = prune(lazy, None, data, **options), prune(model, None, data, **options)
    assert lazy.SerializeToString() == before
    assert result.model is not None
    assert expected.model is not None
    for a, b in zip(result.model.graph.initializer, expected.model.graph.initializer, strict=True):
        assert_same(onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b), rtol=0.0, atol=0.0)


def lonely(data_type: int = onnx.TensorProto.FLOAT, dims: tuple[int, ...] = (3,)) -> onnx.TensorProto:
    """A tensor of twelve bytes that lies in the file `w`."""
    tensor = onnx.TensorProto(name="t", data_type=data_type, dims=dims)
    external.FileRange("w", 4, 12).put(tensor)
    return tensor


def body_of(tensor: onnx.TensorProto) -> onnx.GraphProto:
    return onnx.GraphProto(initializer=[tensor])


def sparse_of(tensor: onnx.TensorProto) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=tensor, indices=onnx.numpy_helper.from_array(np.arange(3)), dims=[3])


def attribute(value: object) -> onnx.ModelProto:
    node = onnx.NodeProto(attribute=[onnx.helper.make_attribute("a", value)])
    return onnx.ModelProto(graph=onnx.GraphProto(node=[node]))


HOLDERS: dict[str, Callable[[onnx.TensorProto], onnx.ModelProto]] = {
    "weight": lambda t: onnx.ModelProto(graph=body_of(t)),
    "sparse weight": lambda t: onnx.ModelProto(graph=onnx.GraphProto(sparse_initializer=[sparse_of(t)])),
    "attribute": attribute,
    "attribute of several": lambda t: attribute([t]),
    "sparse attribute": lambda t: attribute(sparse_of(t)),
    "body": lambda t: attribute(body_of(t)),
    "bodies": lambda t: attribute([body_of(t)]),
    "body of a body": lambda t: attribute(attribute(body_of(t)).graph),
    "function": lambda t: onnx.ModelProto(functions=[onnx.FunctionProto(node=attribute(t).graph.node)]),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_every_kind_of_reference_is_resolved_and_read(holder: str, tmp_path: Path):
    """Fails where a tensor that the model stores in an unusual place is overlooked: its file would not be found."""
    (tmp_path / "w").write_bytes(b"head" + np.arange(3, dtype=np.float32).tobytes())
    proto = HOLDERS[holder](lonely())
    assert external.has_external(proto) and external.external_bytes(proto) == 12
    external.resolve(proto, tmp_path / "model.onnx")
    assert external.files_of(proto) == {tmp_path / "w"}
    (before,) = (t for t in external.stored_tensors(proto) if external.is_external(t))
    assert external.FileRange.of(before) == external.FileRange(str(tmp_path / "w"), 4, 12)
    external.resolve(proto, None)
    whole = external.embedded(proto)
    assert external.is_external(before) and not external.has_external(whole)
    assert external.embedded(whole) is whole
    found = next(t for t in external.stored_tensors(whole) if t.name == "t")
    assert_same(onnx.numpy_helper.to_array(found), np.arange(3, dtype=np.float32), rtol=0.0, atol=0.0)
    external.read_small(proto)
    assert not external.has_external(proto)


UNFIXED = {
    "strings": (lonely(onnx.TensorProto.STRING), "its type or shape is not fixed"),
    "no type": (lonely(onnx.TensorProto.UNDEFINED), "its type or shape is not fixed"),
    "an unknown size": (lonely(dims=(-1,)), "its type or shape is not fixed"),
    "an unknown type": (lonely(99), "unknown element type 99"),
    "another size": (lonely(dims=(4,)), "stores 12 bytes in 'w', its shape and type need 16"),
}


@pytest.mark.parametrize("kind", UNFIXED)
def test_references_of_no_known_size(kind: str, tmp_path: Path):
    """Fails where the range of a file that a tensor takes is guessed."""
    (tmp_path / "w").write_bytes(bytes(64))
    tensor, reason = UNFIXED[kind]
    with pytest.raises(ModelError, match=reason):
        external.resolve(HOLDERS["weight"](tensor), tmp_path / "model.onnx")


def test_a_link_within_the_folder_is_followed(tmp_path: Path):
    """Fails where a download cache, which links to its files, is refused."""
    (tmp_path / "real").write_bytes(bytes(16))
    (tmp_path / "w").symlink_to(tmp_path / "real")
    proto = HOLDERS["weight"](lonely())
    external.resolve(proto, tmp_path / "model.onnx")
    assert external.files_of(proto) == {tmp_path / "real"}


def test_references_of_a_model_in_memory_are_checked(tmp_path: Path):
    """Fails where a file that is gone, or too short by now, is noticed in the middle of a run."""
    proto = HOLDERS["weight"](lonely())
    (tensor,) = proto.graph.initializer
    external.FileRange(str(tmp_path / "w"), 4, 12).put(tensor)
    with pytest.raises(ModelError, match=r"which is missing$"):
        external.resolve(proto, None)
    (tmp_path / "w").write_bytes(bytes(15))
    with pytest.raises(ModelError, match="has only 15"):
        external.resolve(proto, None)


# sharing


def files_in(folder: Path) -> set[Path]:
    return {f for f in folder.rglob("*") if f.is_file()}


def test_copies_of_a_model_share_what_lies_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where a copy takes its weights along, or a weight that is set in one copy reaches another."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tensor_files, "SPILL_BYTES", 1024)
    model = mixed()
    before = model.SerializeToString(deterministic=True)
    whole = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    assert tensor_files.outside(model) is model and external.embedded(model) is model
    with spill.spilling():
        first = tensor_files.outside(model)
        shared = files_in(tmp_path)
        assert [t.name for t in first.graph.initializer if external.is_external(t)] == ["w1"]
        assert external.files_of(first) == shared and len(shared) == 1
        second = tensor_files.outside(first)
        assert second is not first
        assert files_in(tmp_path) == shared == external.files_of(second)
        set_initializers(second, {"w1": 2 * whole["w1"], "b1": 2 * whole["b1"]})
        (own,) = external.files_of(second)
        assert files_in(tmp_path) == {own, *shared} and own not in shared
        for proto, factor in ((first, 1), (second, 2)):
            for name in ("w1", "b1"):
                found = external.array_of(t_values(proto, name))
                assert_same(found, np.float32(factor) * whole[name], rtol=0.0, atol=0.0)
        assert external.embedded(first).SerializeToString(deterministic=True) == before
        assert external.has_external(first)
    assert not files_in(tmp_path)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("dtype", [np.float32, np.float16, bfloat16])
def test_weights_are_set_in_the_type_and_the_way_of_the_model(
    dtype: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Fails where a refitted weight grows to float64, moves into the model, or is stored column by column."""
    monkeypatch.setattr(tensor_files, "SPILL_BYTES", 64)
    values = np.random.default_rng(0).standard_normal((2, 3, 8, 5))
    proto = onnx.ModelProto()
    for name, part in (("large", values), ("small", values[0, 0, 0]), ("inside", values)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(part.astype(dtype), name))
    with spill.spilling():
        for name in ("large", "small"):
            tensor = t_values(proto, name)
            (tmp_path / name).write_bytes(onnx.numpy_helper.to_array(tensor).tobytes())
            refer(tensor, str(tmp_path / name))
        set_initializers(proto, {t.name: -np.asfortranarray(external.array_of(t)) for t in proto.graph.initializer})
        assert [t.name for t in proto.graph.initializer if external.is_external(t)] == ["large"]
        assert external.FileRange.of(t_values(proto, "large")).length == values.size * np.dtype(dtype).itemsize
        for name, part in (("large", values), ("small", values[0, 0, 0]), ("inside", values)):
            assert_same(external.array_of(t_values(proto, name)), -part.astype(dtype), rtol=0.0, atol=0.0)


def test_weights_in_files_are_read_when_asked_for_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where looking at the names reads values, or where values of files pile up in memory."""
    (tmp_path / "w").write_bytes(b"head" + np.arange(3, dtype=np.float32).tobytes())
    proto = HOLDERS["weight"](lonely())
    external.resolve(proto, tmp_path / "model.onnx")
    inside = np.ones(2, np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(inside, "inside"))
    asked: list[str] = []
    read = external.array_of

    def counted(tensor: onnx.TensorProto) -> np.ndarray:
        asked.append(tensor.name)
        return read(tensor)

    monkeypatch.setattr(external, "array_of", counted)
    weights = external.Weights(proto.graph.initializer)
    assert list(weights) == ["t", "inside"] and len(weights) == 2
    assert "t" in weights and "none" not in weights
    assert weights.get("none") is None
    assert asked == []
    for _ in range(2):
        assert_same(weights["t"], np.arange(3, dtype=np.float32), rtol=0.0, atol=0.0)
        assert_same(weights["inside"], inside, rtol=0.0, atol=0.0)
    assert asked == ["t", "inside", "t"]


# writing


FAST: dict[str, Any] = {"ratio": 0.4, "refit": "none", "method": "magnitude", "round_to": 4}


@pytest.mark.parametrize("role", ["output", "plan_file", "report_file"])
def test_the_models_own_weights_are_not_overwritten(role: str, tmp_path: Path):
    model, data = net("mixed")
    path = stored(model, tmp_path, "one file, of a report's name")
    weights = tmp_path / "weights.json"
    before = weights.read_bytes()
    files = {"output": tmp_path / "out.onnx"} | {role: weights}
    with pytest.raises(UsageError, match="holds weights of the model"):
        prune(path, calibration=data, overwrite=True, **files, **FAST)
    assert weights.read_bytes() == before


def test_no_room_for_what_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where a full temporary folder is anything but one line that names it."""
    monkeypatch.setattr(tensor_files, "SPILL_BYTES", 1024)
    model, data = net("resnet")
    path = stored(model, tmp_path, "one file")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files, "write_array", full)
    with pytest.raises(RunError, match="set TMPDIR"):
        prune(path, tmp_path / "out.onnx", data, **FAST)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, bfloat16, np.int64, np.bool_])
def test_a_kept_array_comes_back(dtype: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where type, shape or order change on the way through a file, or the file outlives the array."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    array = np.random.default_rng(0).integers(0, 2, (3, 5, 7)).astype(dtype)
    with spill.spilling():
        for given in (array, np.asfortranarray(array), array[:, ::2], array[0, 0, 0], array[:0]):
            kept = spill.Spilled(given)
            assert len([f for f in tmp_path.rglob("*") if f.is_file()]) == 1
            assert kept.load().dtype == array.dtype
            assert_same(kept.load(), np.asarray(given), rtol=0.0, atol=0.0)
            del kept
            assert not [f for f in tmp_path.rglob("*") if f.is_file()]
        assert_same(spill.Spilled(array).rows(np.array([4, 0])), array[:, [4, 0]], rtol=0.0, atol=0.0)
    assert_same(spill.Spilled(array).load(), array, rtol=0.0, atol=0.0)
    assert_same(spill.Spilled(array).rows(np.array([4, 0])), array[:, [4, 0]], rtol=0.0, atol=0.0)


def test_a_kept_array_ends_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where files outlive the run, an inner folder takes those of the outer one along, or old values are given.

    That the array goes later, when its file is gone already, is no error either.
    """
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    array = np.arange(6.0).reshape(2, 3)
    with spill.spilling():
        outer = spill.Spilled(array)
        with spill.spilling():
            inner = spill.Spilled(array)
            assert len(files_in(tmp_path)) == 2
        assert len(files_in(tmp_path)) == 1
        with pytest.raises(FileNotFoundError):
            inner.load()
        assert_same(outer.load(), array, rtol=0.0, atol=0.0)
        again = spill.Spilled(array)
        assert len(files_in(tmp_path)) == 2
        assert_same(again.rows(np.array([1])), array[[1]], rtol=0.0, atol=0.0)
    assert not list(tmp_path.iterdir())
    for kept in (outer, again):
        with pytest.raises(FileNotFoundError):
            kept.load()
        with pytest.raises(FileNotFoundError):
            kept.rows(np.array([0]))
    del inner, outer, again, kept


def test_what_is_loaded_is_apart_from_the_file():
    """Fails where loaded values are mapped, which counts as memory while they live, or writing reaches the file."""
    array = np.arange(6.0).reshape(2, 3)
    with spill.spilling():
        kept = spill.Spilled(array)
        for read in (kept.load, lambda: kept.rows(np.array([0, 1]))):
            found = read()
            assert not isinstance(found, np.memmap)
            found[:] = -1.0
            assert_same(read(), array, rtol=0.0, atol=0.0)
        array[:] = 7.0
        assert_same(kept.load(), np.arange(6.0).reshape(2, 3), rtol=0.0, atol=0.0)


def test_strings_are_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where addresses of Python objects are written to a file."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with spill.spilling():
        kept = spill.Spilled(np.array(["a", "bc"], object))
        assert not files_in(tmp_path)
        assert kept.load().tolist() == ["a", "bc"]


def test_a_kept_array_travels_with_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where another machine gets the name of a file instead."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    array = np.arange(6.0)
    with spill.spilling():
        sent = pickle.dumps(spill.Spilled(array))
    assert_same(pickle.loads(sent).load(), array, rtol=0.0, atol=0.0)


def test_no_room_for_kept_arrays(monkeypatch: pytest.MonkeyPatch):
    """Fails where a full disk ends in a traceback."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spill, "write_array", full)
    with spill.spilling(), pytest.raises(RunError, match="set TMPDIR"):
        spill.Spilled(np.arange(6.0))


# arrays that soon go again


SLOT = 64
TYPES_KEPT = [np.float32, np.float64, np.float16, bfloat16, np.int64, np.uint8, np.bool_, int4]


@pytest.fixture
def small_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slots that most arrays take several of, and the folder of temporary files."""
    monkeypatch.setattr(spill, "_SLOT_BYTES", SLOT)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def brief(array: np.ndarray) -> spill.Spilled:
    return spill.Spilled(array, briefly=True)


def slots_of(kept: spill.Spilled) -> set[int]:
    """Where it lies, each place once."""
    assert len(set(kept._at)) == len(kept._at)
    return set(kept._at)


@pytest.mark.parametrize("dtype", TYPES_KEPT, ids=lambda d: d.__name__)
def test_an_array_kept_briefly_comes_back(dtype: type, small_slots: Path):
    """Fails where bytes of one slot land in another, or type, shape or order change; several are kept at a time."""
    array = np.random.default_rng(0).integers(0, 8, (3, 5, 7)).astype(dtype)
    in_slot = SLOT // array.itemsize
    line = np.resize(array, 3 * in_slot)
    given = [array, np.asfortranarray(array), array[:, ::2], array[::-1], array[0, 0, 0], np.array(array[1, 2, 3])]
    given += [array[:0], array[:, :0], line, line[:in_slot], line[:-1], line[: in_slot + 1]]
    with spill.spilling():
        kept = [brief(x) for x in given]
        for k, x in zip(kept, given, strict=True):
            assert len(slots_of(k)) == -(-x.nbytes // SLOT)
            for _ in range(2):
                assert k.load().dtype == array.dtype
                assert_same(k.load(), np.asarray(x), rtol=0.0, atol=0.0)
            if x.ndim > 1:
                at = np.arange(x.shape[-2])[::-2]
                assert_same(k.rows(at), x[..., at, :], rtol=0.0, atol=0.0)
        assert not files_in(small_slots)


def test_arrays_of_several_usual_slots_come_back():
    """Fails where the real size of a slot is none that arrays are cut at."""
    array = np.random.default_rng(0).standard_normal((3, 50_000))
    with spill.spilling():
        kept = brief(array)
        assert len(slots_of(kept)) == -(-array.nbytes // spill._SLOT_BYTES) == 5
        assert_same(kept.load(), array, rtol=0.0, atol=0.0)


def test_what_is_kept_briefly_is_apart_from_what_was_given(small_slots: Path):
    """Fails where the caller's array, or one that was loaded, is the stored one."""
    array = np.arange(30.0)
    with spill.spilling():
        kept = brief(array)
        array[:] = 7.0
        kept.load()[:] = -1.0
        assert_same(kept.load(), np.arange(30.0), rtol=0.0, atol=0.0)


def test_places_are_used_again_and_never_before(small_slots: Path):
    """Fails where a place is given to a second array while the first lives, or the file grows although others are free.

    Arrays of all sizes come and go in a random order.
    """
    rng = np.random.default_rng(0)
    live: list[tuple[spill.Spilled, np.ndarray]] = []
    most, highest = 0, -1
    with spill.spilling():
        for _ in range(500):
            if live and rng.random() < 0.5:
                kept, array = live.pop(int(rng.integers(len(live))))
                assert_same(kept.load(), array, rtol=0.0, atol=0.0)
                del kept
            else:
                array = rng.integers(0, 256, int(rng.integers(0, 6 * SLOT))).astype(np.uint8)
                live.append((brief(array), array))
            taken = [slots_of(k) for k, _ in live]
            used = set[int]().union(*taken)
            assert len(used) == sum(map(len, taken))
            most, highest = max(most, len(used)), max(highest, *used, -1)
            assert highest < most
        for kept, array in live:
            assert_same(kept.load(), array, rtol=0.0, atol=0.0)
    assert highest > 20


def test_many_threads_keep_arrays_at_once(small_slots: Path):
    """Fails where one thread moves the place in the file that another one is about to read or write."""
    started = threading.Barrier(8)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        live: list[tuple[spill.Spilled, np.ndarray]] = []
        started.wait(60.0)
        for i in range(150):
            array = rng.integers(0, 256, int(rng.integers(1, 6 * SLOT))).astype(np.uint8)
            live.append((brief(array), array))
            for kept, expected in live[:: 1 + i % 3]:
                assert_same(kept.load(), expected, rtol=0.0, atol=0.0)
            if len(live) > 4:
                del live[int(rng.integers(len(live)))]

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with spill.spilling(), ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(copy_context().run, work, seed) for seed in range(8)]:
                done.result()
    finally:
        sys.setswitchinterval(before)


def test_an_array_may_be_collected_at_any_time(small_slots: Path):
    """Fails where giving a place back waits for the file: the collector may run while this very thread writes."""
    with spill.spilling():
        kept = [brief(np.arange(30.0))]
        at = slots_of(kept[0])
        folder = kept[0]._slots
        assert folder is not None

        def collected() -> None:
            with folder._lock:
                kept.clear()

        thread = threading.Thread(target=collected, daemon=True)
        thread.start()
        thread.join(60.0)
        assert not thread.is_alive()
        assert slots_of(brief(np.arange(30.0))) == at


def test_what_was_kept_briefly_may_outlive_its_folder(small_slots: Path):
    """Fails where the end of a run takes values along that are still in use, or makes an error of their end."""
    array = np.arange(30.0)
    with spill.spilling():
        outer = brief(array)
        with spill.spilling():
            inner = brief(-array)
        assert_same(inner.load(), -array, rtol=0.0, atol=0.0)
        more = brief(2 * array)
    for kept, expected in ((outer, array), (inner, -array), (more, 2 * array)):
        assert_same(kept.load(), expected, rtol=0.0, atol=0.0)
    assert not list(small_slots.iterdir())
    file = outer._slots._file if outer._slots is not None else None
    assert file is not None and not file.closed
    del outer, inner, more, kept
    assert file.closed
    assert_same(brief(array).load(), array, rtol=0.0, atol=0.0)
    assert not list(small_slots.iterdir())


def test_strings_are_not_kept_in_slots(small_slots: Path):
    """Fails where addresses of Python objects are written to a file."""
    with spill.spilling():
        assert brief(np.array(["a", "bc"], object)).load().tolist() == ["a", "bc"]


def test_an_array_kept_briefly_travels_with_its_values(small_slots: Path):
    """Fails where another machine gets the number of a slot instead, or sending ends what is kept here."""
    array = np.arange(30.0).reshape(5, 6)
    with spill.spilling():
        kept = brief(array)
        sent = pickle.dumps(kept)
        there = pickle.loads(sent)
        del kept
        other = brief(-array)
        assert_same(there.load(), array, rtol=0.0, atol=0.0)
        assert_same(other.load(), -array, rtol=0.0, atol=0.0)
    assert_same(pickle.loads(sent).load(), array, rtol=0.0, atol=0.0)


class Slow:
    """A file that takes and gives a few bytes at a time, as a file may, and is full after some."""

    def __init__(self, file: IO[bytes], room: int = 1 << 40) -> None:
        self.file, self.room = file, room
        self.seek = file.seek

    def write(self, data: memoryview) -> int:
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        self.room -= 7
        return self.file.write(data[:7])

    def readinto(self, data: memoryview) -> int:
        return self.file.readinto(data[:5])  # type: ignore[attr-defined]


def test_a_file_that_takes_less_than_it_is_given(small_slots: Path):
    """Fails where the rest of what a signal has cut short is not written, or not read."""
    arrays = [np.arange(start, start + 40.0) for start in (0, 100)]
    with spill.spilling():
        first = brief(arrays[0])
        slots = first._slots
        assert slots is not None
        slots._file = Slow(slots._file)  # type: ignore[assignment]
        second = brief(arrays[1])
        assert second._slots is slots
        for kept, expected in zip((first, second), arrays, strict=True):
            assert_same(kept.load(), expected, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("room", [0, 1, SLOT])
def test_no_room_for_what_is_kept_briefly(room: int, small_slots: Path):
    """Fails where a full disk ends in a traceback, or in what was kept before; on the way through the slots, too."""
    array = np.arange(30.0)
    with spill.spilling():
        kept = brief(array)
        slots = kept._slots
        assert slots is not None
        real = slots._file
        slots._file = Slow(real, room)  # type: ignore[assignment]
        with pytest.raises(RunError, match=r"has no room: No space left on device; set TMPDIR to a larger folder$"):
            brief(-array)
        slots._file = real
        again = brief(-array)
        assert_same(kept.load(), array, rtol=0.0, atol=0.0)
        assert_same(again.load(), -array, rtol=0.0, atol=0.0)


def test_no_file_for_what_is_kept_briefly(monkeypatch: pytest.MonkeyPatch):
    """Fails where a folder that takes no more files ends in a traceback."""

    def full(*_: object, **options: object) -> None:
        raise OSError(24, "Too many open files")

    with spill.spilling():
        monkeypatch.setattr(tempfile, "TemporaryFile", full)
        with pytest.raises(RunError, match="Too many open files; set TMPDIR"):
            brief(np.arange(6.0))


def test_a_file_of_slots_that_was_cut_short(small_slots: Path):
    """Fails where a run waits for bytes that never come, or goes on with others."""
    with spill.spilling():
        kept = brief(np.arange(30.0))
        assert kept._slots is not None
        kept._slots._file.truncate(100)
        with pytest.raises(RunError, match="cut short; leave TMPDIR as it is"):
            kept.load()


def test_large_embedded_weights_are_kept_outside_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where a large model in one file gives anything else, or its output is split."""
    model, data = net("resnet")
    expected = prune(model, None, data, ratio=0.4, refit="least-squares").model
    monkeypatch.setattr(tensor_files, "SPILL_BYTES", 1024)
    monkeypatch.setattr(external, "LARGE_BYTES", 1024)
    prune(digits.path("resnet"), tmp_path / "out.onnx", data, ratio=0.4, refit="least-squares")
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]
    assert expected is not None
    assert onnx.load(tmp_path / "out.onnx") == expected
