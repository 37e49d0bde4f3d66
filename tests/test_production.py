"""The benchmark over models that others ship: data from their inputs, and two runtimes that have to agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from benchmarks import made_data, production

INPUTS = {
    "float[N,3,H,W] x": ("picture", (4, 3, 320, 320)),
    "float[N,1,T,257] x": ("spectra", (4, 1, 100, 257)),
    "float[1,S] x": ("wave", (4, 16000)),
    "float[N,43844,1] x": ("wave of one channel", (4, 43844, 1)),
    "float[N,T,512] x": ("features by time", (4, 100, 512)),
    "float[N,64] x": ("embedding or features", (4, 64)),
    "int32[N,2048] x": ("ids", (4, 2048)),
    "float[10,3,32,32] x": ("picture", (10, 3, 32, 32)),
    "float fmin": ("number", ()),
}


@pytest.mark.parametrize("text", INPUTS)
def test_data_have_the_kind_and_the_sizes_of_their_input(text: str, tmp_path: Path) -> None:
    """Fails where a kind shadows another, or made samples do not fit what the model declares."""
    path = _saved(tmp_path, f"({text}) => (float[a,b,c,d] y) {{ y = Identity({text.split()[1]}) }}")
    kind, shape = INPUTS[text]
    name = text.split()[1]
    assert made_data.described(path) == {name: kind}
    target, first = made_data.make(path, tmp_path, 4)
    with np.load(target) as stored:
        assert stored[name].shape == shape
        assert stored[name].dtype == first[name].dtype
        assert np.isfinite(stored[name]).all()
        assert shape == () or stored[name].std() > 0


def test_a_state_starts_at_zero_and_has_the_batch_where_its_symbol_stands(tmp_path: Path) -> None:
    path = _saved(
        tmp_path, "(float[N,T,8] x, float[3,N,16] h0, float[1,1,4] c0) => (float[N,T,8] y) { y = Identity(x) }"
    )
    target, first = made_data.make(path, tmp_path, 4)
    with np.load(target) as stored:
        assert {k: stored[k].shape for k in stored} == {"x": (4, 100, 8), "h0": (3, 4, 16), "c0": (1, 1, 4)}
        assert not stored["h0"].any()
    assert {k: v.shape for k, v in first.items()} == {"x": (1, 100, 8), "h0": (3, 1, 16), "c0": (1, 1, 4)}


def test_a_graph_is_a_file(tmp_path: Path) -> None:
    """Fails where edges point at nodes that are not there."""
    path = _saved(tmp_path, "(float[V,8] x, int64[2,E] e, int64[V] b) => (float[V,8] y) { y = Identity(x) }")
    target, _ = made_data.make(path, tmp_path, 3)
    files = sorted(target.iterdir())
    assert len(files) == 3
    with np.load(files[0]) as stored:
        assert stored["e"].max() < len(stored["x"]) == len(stored["b"])


def test_runtimes_that_differ_are_told(tmp_path: Path) -> None:
    """Fails where a result that OpenVINO computes otherwise, or not at all, passes."""
    pytest.importorskip("openvino")
    text = "(float[N,4] x) => (float[N,4] y) { y = Relu(x) }"
    sound = _saved(tmp_path, text)
    feeds = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)}
    assert production._compared(sound, sound, feeds) == "0e+00"
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    assert production._compared(broken, sound, feeds).startswith("OpenVINO does not take the original")
    unknown = tmp_path / "unknown.onnx"
    unknown.write_bytes(b"nothing")
    assert production._compared(sound, unknown, feeds).startswith("differ")
    assert production.difference([1.0, 2.0], [1.0, 1.0]) == 0.5
    assert production.difference([[1.0]], [1.0]) == float("inf")


def _saved(folder: Path, text: str) -> Path:
    path = folder / "model.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\nmain {text}'), path)
    return path
