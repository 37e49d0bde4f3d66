"""Models whose weights lie in files beside them, in every way that exporters store them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from onnxprune.graph import external
from onnxprune.graph.external import Placement
from onnxprune.output.commit import Stage
from onnxprune.output.model_files import commit, put_model

# How the weights are laid out: arguments of onnx.save_model.
WAYS: Mapping[str, Mapping[str, object]] = {
    "one file": {"all_tensors_to_one_file": True, "location": "weights.bin"},
    "one file, of a report's name": {"all_tensors_to_one_file": True, "location": "weights.json"},
    "nested": {"all_tensors_to_one_file": True, "location": "deep/er/weights.bin"},
    "a file each": {"all_tensors_to_one_file": False},
}


def stored(model: onnx.ModelProto, folder: Path, way: str, name: str = "model.onnx") -> Path:
    """Write `model` with every weight in a file; the path of the model."""
    options = dict(WAYS[way])
    location = options.get("location")
    if isinstance(location, str):
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if way == "a file each":
        # Else the files get the tensors' names, which may hold separators.
        for i, t in enumerate(copy.graph.initializer):
            t.doc_string = str(i)
            onnx.external_data_helper.set_external_data(t, f"weight {i}.bin")
            t.raw_data = onnx.numpy_helper.to_array(t_values(model, t.name)).tobytes()
        onnx.save_model(copy, folder / name)
    else:
        onnx.save_model(copy, folder / name, save_as_external_data=True, size_threshold=0, **options)
    return folder / name


def t_values(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """A weight by name."""
    return next(t for t in model.graph.initializer if t.name == name)


def refer(tensor: onnx.TensorProto, location: str, offset: int = 0, length: int | None = None) -> None:
    """Make a tensor refer to a file; length: by default what its shape needs."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    size = math.prod(tensor.dims) * dtype.itemsize if length is None else length
    for field in ("raw_data", "float_data", "int64_data", "int32_data", "double_data"):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", size)):
        tensor.external_data.add(key=key, value=str(value))


def locations(path: Path) -> set[str]:
    """What the model file at `path` names as places of its weights."""
    model = onnx.load(path, load_external_data=False)
    return {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}


def weights_of(path: Path) -> Path:
    """The one file that holds the weights of the model file at `path`, by the name that onnxprune gave it."""
    (name,) = locations(path)
    assert external.is_beside(name, path), name
    return path.with_name(name)


def saved(model: onnx.ModelProto, path: Path, *, separate: bool | None = None) -> None:
    """Write a model as a run does; separate: by default where its weights lie in files."""
    with Stage() as stage:
        beside = external.has_external(model) if separate is None else separate
        put_model(stage, model, path, placement=Placement.BESIDE if beside else Placement.FITTING)
        commit(stage, path)


def sparse_table(folder: Path, rows: int, columns: int) -> Path:
    """A model that reads a table of rows x columns zeros (float32) and two layers; the table's file takes no disk."""
    rng = np.random.default_rng(0)
    w = {"w1": (columns, 64), "w2": (64, 5)}
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal(s).astype(np.float32) / np.float32(np.sqrt(s[0])), k)
        for k, s in w.items()
    ]
    table = onnx.TensorProto(name="table", data_type=onnx.TensorProto.FLOAT, dims=[rows, columns])
    refer(table, "table.bin")
    body = onnx.parser.parse_graph(
        """g (int64[N,L] ids) => (float[N,L,5] y) {
            e = Gather(table, ids)
            h = MatMul(e, w1)
            r = Relu(h)
            y = MatMul(r, w2)
        }"""
    )
    body.initializer.extend([table, *weights])
    model = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    (folder / "sparse.onnx").write_bytes(model.SerializeToString())
    with (folder / "table.bin").open("wb") as f:
        f.truncate(rows * columns * 4)
    return folder / "sparse.onnx"
