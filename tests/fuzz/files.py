"""Cases of plans and of data: a small model that is whole, beside a file that is not."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import numpy_helper

from tests.fuzz import data, plans
from tests.fuzz.choice import Rng, pick

Arrays = dict[str, NDArray[Any]]
# What a case is: a story, the commands, the model, and the output that is compared with it.
Files = tuple[str, tuple[tuple[str, ...], ...], Path, Path]

_SAMPLES = 40
TEXTS = {
    "dense": """<ir_version: 8, opset_import: ["" : 17]> g (float[N,6] x) => (float[N,3] y)
        { a = MatMul (x, w1) b = Relu (a) c = MatMul (b, w2) d = Relu (c) y = MatMul (d, w3) }""",
    "image": """<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,6,6] image) => (float[N,4,6,6] y)
        { a = Conv <pads=[1,1,1,1]> (image, k1) b = Relu (a) c = Conv <pads=[1,1,1,1]> (b, k2) d = Relu (c)
          y = Conv (d, k3) }""",
    "two inputs": """<ir_version: 8, opset_import: ["" : 17]> g (int64[N,5] ids, float[N,5,8] x) => (float[N,5,3] y)
        { e = Gather (table, ids) s = Add (e, x) a = MatMul (s, v1) b = Relu (a) y = MatMul (b, v2) }""",
    "half": """<ir_version: 8, opset_import: ["" : 17]> g (float16[N,6] x) => (float16[N,3] y)
        { a = MatMul (x, h1) b = Relu (a) y = MatMul (b, h2) }""",
}
_WEIGHTS = {
    **{"w1": (6, 16), "w2": (16, 12), "w3": (12, 3), "k1": (12, 3, 3, 3), "k2": (10, 12, 3, 3), "k3": (4, 10, 1, 1)},
    **{"table": (11, 8), "v1": (8, 16), "v2": (16, 3), "h1": (6, 16), "h2": (16, 3)},
}
_FEEDS = {
    "dense": {"x": (6,)},
    "image": {"image": (3, 6, 6)},
    "two inputs": {"ids": (5,), "x": (5, 8)},
    "half": {"x": (6,)},
}
METHODS = (
    ("--ratio", "0.4", "--method", "magnitude"),
    ("--ratio", "0.4"),
    ("--uniform", "0.5", "--method", "local", "--refit", "greedy"),
)


@cache
def whole_model(name: str) -> onnx.ModelProto:
    """One of the small models, with seeded weights."""
    rng = np.random.default_rng(len(name))
    model = onnx.parser.parse_model(TEXTS[name])
    for weight in dict.fromkeys(i for n in model.graph.node for i in n.input if i in _WEIGHTS):
        shape = _WEIGHTS[weight]
        values = rng.standard_normal(shape) * np.prod(shape[1:]) ** -0.5
        values = values.astype(np.float16 if weight.startswith("h") else np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, weight))
    return model


@cache
def whole_data(name: str) -> Arrays:
    """Data that fit it, with labels."""
    rng = np.random.default_rng(3)
    found: Arrays = {k: rng.standard_normal((_SAMPLES, *shape)).astype(np.float32) for k, shape in _FEEDS[name].items()}
    if "ids" in found:
        found["ids"] = rng.integers(0, 11, (_SAMPLES, 5))
    if name == "half":
        found["x"] = found["x"].astype(np.float16)
    if name in ("dense", "half"):
        found["labels"] = rng.integers(0, 3, _SAMPLES)
    return found


@cache
def whole_plan(name: str, method: tuple[str, ...]) -> str:
    """The text of a plan of a model."""
    from onnxprune.cli.program import main

    with TemporaryDirectory(prefix="fuzz-") as folder:
        model, path, calib = Path(folder) / "model.onnx", Path(folder) / "plan.json", Path(folder) / "data.npz"
        onnx.save(whole_model(name), model)
        calib.write_bytes(data.archive(whole_data(name)))
        argv = (str(model), "--dry-run", "--calib", str(calib), "--plan", str(path), *method, "--fast", "--quiet")
        if main([*argv, "--round-to", "1"]) != 0:
            raise RuntimeError(f"no plan for {name} with {method}")
        return path.read_text(encoding="utf-8")


def whole_plans() -> None:
    """Make all of them once. The command line gives its process a temporary folder, so no two threads may run it."""
    for name in TEXTS:
        for method in METHODS:
            whole_plan(name, method)


def mutated_plan(seed: int, folder: Path) -> Files:
    """A plan to which something happened, replayed with the data that it was made with."""
    rng = np.random.default_rng([2, seed])
    name, method = pick(rng, sorted(TEXTS)), pick(rng, METHODS)
    model, output, plan, calib = paths(folder, name, "plan.json", "calib.npz")
    calib.write_bytes(data.archive(whole_data(name)))
    plan.write_bytes(plans.mutated(whole_plan(name, method), rng))
    argv = [str(model), str(output), "--from-plan", str(plan), "--calib", str(calib), "--quiet"]
    argv += [
        *(["--force"] if rng.random() < 0.3 else []),
        *(["--plan", f"{output}.plan"] if rng.random() < 0.3 else []),
    ]
    return f"{name}, {' '.join(method)}", (tuple(argv),), model, output


def mutated_data(seed: int, folder: Path) -> Files:
    """Data to which something happened, for each of the commands."""
    rng = np.random.default_rng([3, seed])
    name = pick(rng, sorted(TEXTS))
    model, output = paths(folder, name)
    path = str(data.put(whole_data(name), folder, rng))
    fast = ("--round-to", "1", "--fast", "--quiet")
    labels = (("--labels", pick(rng, ("labels", "x", "nothing"))),) if rng.random() < 0.3 else ((),)
    commands: dict[str, tuple[str, ...]] = {
        "prune": (str(model), str(output), "--ratio", "0.4", "--calib", path, *_samples(rng), *fast),
        "labels": (str(model), str(output), "--ratio", "0.3", "--method", "taylor", "--calib", path, *labels[0], *fast),
        "inspect": ("inspect", str(model), "--calib", path),
        "eval": ("eval", str(model), "--data", path, "--against", str(model), *labels[0], "--json"),
        "bench": ("bench", str(model), "--data", path, "--runs", "1", "--warmup", "0", "--json", *_batch(rng)),
    }
    kind = pick(rng, ("prune", "prune", "prune", *commands))
    return f"{name}, {kind}", (commands[kind],), model, output


def paths(folder: Path, name: str, *more: str) -> tuple[Path, ...]:
    """Those of a model, which is written, of its output, and of more files in a folder."""
    model = folder / "model.onnx"
    onnx.save(whole_model(name), model)
    return (model, folder / "out.onnx", *(folder / m for m in more))


def _samples(rng: Rng) -> tuple[str, ...]:
    return ("--samples", pick(rng, ("1", "2", "16", "10000"))) if rng.random() < 0.3 else ()


def _batch(rng: Rng) -> tuple[str, ...]:
    return ("--batch", pick(rng, ("1", "7", "65536"))) if rng.random() < 0.3 else ()
