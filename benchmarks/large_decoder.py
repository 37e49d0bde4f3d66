"""A decoder of billions of parameters, pruned: peak memory, and time in plain passes, of the whole and of each stage.

    python -m benchmarks.large_decoder [--layers 22 --width 2048 ...] [--folder DIR] [--work] [--kill SECONDS]

Writes a Llama-shaped model of random weights in the operators of onnxruntime-genai's builder (1.1 billion parameters,
4.4 GB in a file beside it, unless told otherwise), prunes it by the command line in a fresh process, and prints what
that process held at most: all resident pages, mapped files included, of the process and its children. `--kill` ends the
run after so many seconds and starts the same command again, which resumes from `--work`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

GB = 1e9
SAMPLES, LENGTH, RATIO = 32, 128, 0.3
_ROWS = 2048


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder as a Llama's configuration has them; the defaults are those of 1.1 billion parameters."""

    layers: int = 22
    width: int = 2048
    inner: int = 5632
    heads: int = 32
    groups: int = 4
    vocabulary: int = 32_000

    @property
    def parameters(self) -> int:
        """Weights in all: table, layers, head."""
        size = self.width // self.heads
        attention = self.width * self.width * 2 + self.width * self.groups * size * 2
        return 2 * self.vocabulary * self.width + self.layers * (attention + 3 * self.width * self.inner)


class _File:
    """The weights, written one after the other."""

    def __init__(self, path: Path) -> None:
        self.path, self.end = path, 0
        self.rng = np.random.default_rng(0)
        self.weights: list[TensorProto] = []

    def normal(self, name: str, rows: int, columns: int, scale: float | None = None) -> str:
        """A matrix of random numbers that keeps the size of what it is applied to."""
        deviation = np.float32(rows**-0.5 if scale is None else scale)
        with self.path.open("ab") as f:
            for start in range(0, rows, _ROWS):
                shape = (min(_ROWS, rows - start), columns)
                f.write((self.rng.standard_normal(shape, dtype=np.float32) * deviation).tobytes())
        return self._entry(name, (rows, columns))

    def stored(self, name: str, values: np.ndarray) -> str:
        """The values of an array."""
        with self.path.open("ab") as f:
            f.write(values.astype(np.float32).tobytes())
        return self._entry(name, values.shape)

    def _entry(self, name: str, shape: tuple[int, ...]) -> str:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        size = 4 * int(np.prod(shape))
        for key, value in (("location", self.path.name), ("offset", self.end), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        self.weights.append(tensor)
        self.end += size
        return name


def build(folder: Path, shape: Shape) -> Path:
    """Write model.onnx, its weights and calib.npz into a folder; the path of the model."""
    file = _File(folder / "model.onnx.data")
    file.path.write_bytes(b"")
    size = shape.width // shape.heads
    angles = np.outer(np.arange(4 * LENGTH), 10_000.0 ** (-np.arange(0, size, 2) / size))
    cos, sin = file.stored("cos_cache", np.cos(angles)), file.stored("sin_cache", np.sin(angles))
    nodes = [
        helper.make_node("ReduceSum", ["attention_mask", "last_axis"], ["lengths"], keepdims=0),
        helper.make_node("Sub", ["lengths", "one"], ["lengths_less_one"]),
        helper.make_node("Cast", ["lengths_less_one"], ["seqlens_k"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Gather", ["mask_shape", "one"], ["total"], axis=0),
        helper.make_node("Cast", ["total"], ["total_sequence_length"], to=TensorProto.INT32),
        helper.make_node("Gather", [file.normal("embed", shape.vocabulary, shape.width, 1.0), "input_ids"], ["x0"]),
    ]
    caches, grown = [], []

    def normalised(x: str, name: str) -> str:
        gains, fixed = file.stored(f"{name}.weight", np.ones(shape.width)), {"axis": -1, "epsilon": 1e-5}
        nodes.append(
            helper.make_node(
                "SimplifiedLayerNormalization", [x, gains], [f"{name}/output"], name, **fixed, stash_type=1
            )
        )
        return f"{name}/output"

    def product(x: str, name: str, rows: int, columns: int) -> str:
        nodes.append(
            helper.make_node("MatMul", [x, file.normal(f"{name}.weight", rows, columns)], [f"{name}/output"], name)
        )
        return f"{name}/output"

    def node(op_type: str, inputs: list[str], name: str) -> str:
        nodes.append(helper.make_node(op_type, inputs, [f"{name}/output"], name))
        return f"{name}/output"

    x = "x0"
    for i in range(shape.layers):
        at = f"/model/layers.{i}"
        y = normalised(x, f"{at}/input_layernorm")
        q, k, v = (
            product(y, f"{at}/attn/{part}_proj/MatMul", shape.width, size * count)
            for part, count in (("q", shape.heads), ("k", shape.groups), ("v", shape.groups))
        )
        for part in ("key", "value"):
            cache = ["N", shape.groups, "past", size], ["N", shape.groups, "total", size]
            caches.append(helper.make_tensor_value_info(f"past_key_values.{i}.{part}", TensorProto.FLOAT, cache[0]))
            grown.append(helper.make_tensor_value_info(f"present.{i}.{part}", TensorProto.FLOAT, cache[1]))
        past, present = ([f"{p}.{i}.key", f"{p}.{i}.value"] for p in ("past_key_values", "present"))
        nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [q, k, v, *past, "seqlens_k", "total_sequence_length", cos, sin],
                [f"{at}/attn/output", *present],
                f"{at}/attn/GroupQueryAttention",
                domain="com.microsoft",
                num_heads=shape.heads,
                kv_num_heads=shape.groups,
                do_rotary=1,
                scale=size**-0.5,
            )
        )
        o = product(f"{at}/attn/output", f"{at}/attn/o_proj/MatMul", shape.width, shape.width)
        x = node("Add", [x, o], f"{at}/attn/Add")
        y = normalised(x, f"{at}/post_attention_layernorm")
        gate, up = (product(y, f"{at}/mlp/{p}_proj/MatMul", shape.width, shape.inner) for p in ("gate", "up"))
        squashed = node("Mul", [gate, node("Sigmoid", [gate], f"{at}/mlp/act/Sigmoid")], f"{at}/mlp/act/Mul")
        inner = node("Mul", [squashed, up], f"{at}/mlp/Mul")
        down = product(inner, f"{at}/mlp/down_proj/MatMul", shape.inner, shape.width)
        x = node("Add", [x, down], f"{at}/mlp/Add")
    logits = product(normalised(x, "/model/norm"), "/lm_head/MatMul", shape.width, shape.vocabulary)
    nodes.append(helper.make_node("Identity", [logits], ["logits"], "/lm_head/logits"))
    constants = [
        onnx.numpy_helper.from_array(np.array([1], np.int64), "last_axis"),
        onnx.numpy_helper.from_array(np.array(1, np.int64), "one"),
    ]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["N", "T"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["N", "total"]),
            *caches,
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", "T", shape.vocabulary]), *grown],
        [*constants, *file.weights],
    )
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    (folder / "model.onnx").write_bytes(
        helper.make_model(graph, opset_imports=domains, ir_version=10).SerializeToString()
    )
    ids = np.random.default_rng(1).integers(0, shape.vocabulary, (SAMPLES, LENGTH))
    np.savez(folder / "calib.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    return folder / "model.onnx"


@dataclass
class Watched:
    """A run of the command line: exit code, seconds, peak resident bytes of the process and of it with its children."""

    code: int
    seconds: float
    resident: int
    with_children: int


def watched(command: list[str], limit: float | None = None) -> Watched:
    """Run a command, and look every 0.2 s at what it holds; limit: seconds after which it is killed, with children."""
    process = subprocess.Popen(command, start_new_session=True)
    began, own, both = time.monotonic(), 0, 0
    while process.poll() is None:
        own = max(own, _status(process.pid, "VmHWM"))
        both = max(both, sum(_status(p, "VmRSS") for p in _family(process.pid)))
        if limit is not None and time.monotonic() - began > limit:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            break
        time.sleep(0.2)
    return Watched(process.returncode, time.monotonic() - began, own, both)


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for p in found:
        tasks = Path(f"/proc/{p}/task").glob("*/children")
        try:
            found += [int(c) for t in tasks for c in t.read_text(encoding="ascii").split()]
        except OSError:  # it has ended
            continue
    return found


def _status(pid: int, entry: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # it has ended
        return 0
    return next((1024 * int(x.split()[1]) for x in lines if x.startswith(entry)), 0)


def plain_pass(path: Path) -> float:
    """Seconds that onnxruntime itself, with its own settings, takes for all samples: an eighth of them is timed."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    data = np.load(path.with_name("calib.npz"))
    count = SAMPLES // 8
    feeds = {k: data[k][:count] for k in data.files}
    for port in session.get_inputs():
        if port.name not in feeds:
            feeds[port.name] = np.zeros((count, port.shape[1], 0, port.shape[3]), np.float32)
    session.run(["logits"], {k: v[:1] for k, v in feeds.items()})
    began = time.perf_counter()
    session.run(["logits"], feeds)
    return (time.perf_counter() - began) * SAMPLES / count


def main() -> None:
    """Build where the model is not there yet, prune, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in vars(Shape()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--folder", type=Path, default=None, help="where model and result are written, and stay")
    parser.add_argument("--kill", type=float, default=None, help="seconds after which the run is killed once")
    parser.add_argument("more", nargs="*", help="further options of onnxprune, behind --")
    given = parser.parse_args()
    shape = Shape(**{name: getattr(given, name) for name in vars(Shape())})
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "model.onnx"
        if not path.exists():
            build(folder, shape)
        (folder / "out").mkdir(exist_ok=True)
        command = [sys.executable, "-m", "onnxprune", str(path), str(folder / "out" / "slim.onnx")]
        command += ["--calib", str(folder / "calib.npz"), "--fast", "--ratio", str(RATIO), "--overwrite"]
        command += ["--resize-io", "past_key_values.*", "--resize-io", "present.*"]
        command += ["--report", str(folder / "out" / "report.json"), *given.more]
        print(f"{shape.parameters / 1e9:.2f} billion parameters, {4 * shape.parameters / GB:.2f} GB")
        with ProcessPoolExecutor(1) as apart:  # what it maps is gone before the run is watched
            plain = apart.submit(plain_pass, path).result()
        print(f"a plain pass of onnxruntime takes {plain:.0f} s")
        for limit in (given.kill, None) if given.kill else (None,):
            run = watched(command, limit)
            print(
                f"exit {run.code}, {run.seconds:.0f} s = {run.seconds / plain:.0f} plain passes, peak resident "
                f"{run.resident / GB:.2f} GB, with children {run.with_children / GB:.2f} GB",
                flush=True,
            )


if __name__ == "__main__":
    main()
