"""Peak memory of pruning a model above 2 GB, whose weights lie in a file beside it.

    python -m benchmarks.external_memory [--gigabytes 2.3] [--folder DIR]

Builds a text encoder with random weights (a large embedding table and a chain of narrow-waisted MatMul blocks), prunes
it with a few samples in a fresh process, and prints that process's peak resident memory against the model's size.
"Held" counts memory that nothing but the process holds; the rest are pages of mapped files, which the system may take
back at any time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnx

WIDTH, HIDDEN, BLOCKS, SAMPLES = 1024, 2048, 24, 64
GB = 1e9


def build(folder: Path, gigabytes: float) -> Path:
    """Write the model; its weights go to the file one by one."""
    nodes, weights, end = [], [], 0
    rng = np.random.default_rng(0)
    with (folder / "model.onnx.data").open("wb") as f:

        def weight(name: str, rows: int, columns: int) -> None:
            nonlocal end
            tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[rows, columns])
            tensor.data_location = onnx.TensorProto.EXTERNAL
            size = 4 * rows * columns
            for key, value in (("location", "model.onnx.data"), ("offset", end), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
            for start in range(0, rows, 4096):
                part = rng.standard_normal((min(4096, rows - start), columns), dtype=np.float32)
                f.write((part / np.float32(np.sqrt(rows if name != "table" else 1))).tobytes())
            weights.append(tensor)
            end += size

        blocks = 2 * 4 * WIDTH * HIDDEN * BLOCKS
        weight("table", int((gigabytes * GB - blocks) / (4 * WIDTH)), WIDTH)
        nodes.append(onnx.helper.make_node("Gather", ["table", "ids"], ["x0"]))
        for i in range(BLOCKS):
            weight(f"up{i}", WIDTH, HIDDEN)
            weight(f"down{i}", HIDDEN, WIDTH)
            nodes += [
                onnx.helper.make_node("MatMul", [f"x{i}", f"up{i}"], [f"u{i}"], name=f"up{i}"),
                onnx.helper.make_node("Relu", [f"u{i}"], [f"r{i}"]),
                onnx.helper.make_node("MatMul", [f"r{i}", f"down{i}"], [f"d{i}"], name=f"down{i}"),
                onnx.helper.make_node("Add", [f"x{i}", f"d{i}"], [f"x{i + 1}"]),
            ]
    nodes.append(onnx.helper.make_node("ReduceMean", [f"x{BLOCKS}"], ["y"], axes=[1], keepdims=0))
    graph = onnx.helper.make_graph(
        nodes,
        "encoder",
        [onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["N", "L"])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", WIDTH])],
        weights,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    np.savez(folder / "calib.npz", ids=rng.integers(0, 10_000, (SAMPLES, 16)))
    return folder / "model.onnx"


def run(path: Path) -> None:
    """Prune, watch what the process holds meanwhile, and print both peaks in bytes."""
    from onnxprune import prune
    from onnxprune.report.environment import peak_memory

    held = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal held
        while not done.is_set():
            status = Path("/proc/self/status")
            if status.exists():
                anonymous = next(x for x in status.read_text().splitlines() if x.startswith("RssAnon"))
                held = max(held, 1024 * int(anonymous.split()[1]))
            time.sleep(0.05)

    threading.Thread(target=watch, daemon=True).start()
    out = path.with_name("out.onnx")
    report = prune(path, out, path.with_name("calib.npz"), ratio=0.5, method="magnitude", refit="least-squares").report
    done.set()
    print(report.before.bytes, report.after.bytes, report.achieved, peak_memory(), held)


def main() -> None:
    """Build, run in a fresh process, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.3)
    parser.add_argument("--folder", type=Path, default=None, help="where model and result are written")
    parser.add_argument("--run", type=Path, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run is not None:
        run(given.run)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = build(Path(folder), given.gigabytes)
        command = [sys.executable, "-m", "benchmarks.external_memory", "--run", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        before, after, achieved, peak, held = (float(x) for x in done.stdout.split())
        print(f"model {before / GB:.2f} GB, pruned {after / GB:.2f} GB ({achieved:.0%} of the MACs removed)")
        print(f"peak resident memory {peak / GB:.2f} GB = {peak / before:.2f} x model; held {held / GB:.2f} GB")


if __name__ == "__main__":
    main()
