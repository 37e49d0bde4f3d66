"""Section 6: BatchNormalization kept, folded, and with mean and variance estimated anew after the cut."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from benchmarks.accuracy.kits import answers
from experiments.paper.networks import Kit, Network, scores
from experiments.paper.records import Records, Row
from onnxprune import prune
from onnxprune.graph import protobuf
from onnxprune.runtime.session import Session

SECTION = "batchnorm"
PAIRS = (
    ("cifar10_resnet56_legacy_bn", "cifar10_resnet56_legacy_folded", 0.5, 512),
    ("mnist_vggbn_legacy_bn", "mnist_vggbn_legacy", 0.7, 512),
    ("mnist_bottleneck_resnet_legacy_bn", "mnist_bottleneck_resnet_legacy", 0.5, 512),
)
RUNS = (("obs", "none"), ("local", "greedy"), ("obs", "least-squares"), ("obs", "lockstep"))


def reestimated(proto: onnx.ModelProto, x: NDArray[np.float32], batch: int = 64) -> onnx.ModelProto:
    """A copy whose BatchNormalization nodes hold the mean and variance of what they see on x, in order of the graph.

    Each node is measured behind those before it as they are re-estimated already. The variance is that of the whole
    set (not the unbiased one of a batch). proto: one input, BatchNormalization in the main graph.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    stored = {t.name: t for t in result.graph.initializer}
    known = {v.name: v.type.tensor_type.elem_type for v in result.graph.input if v.name not in stored}
    name = next(iter(known))
    for i, node in enumerate(result.graph.node):
        if node.op_type != "BatchNormalization":
            continue
        for k in (3, 4):  # statistics that several nodes share are told apart
            if sum(node.input[k] in n.input for n in result.graph.node) > 1:
                copy = onnx.TensorProto()
                copy.CopyFrom(stored[node.input[k]])
                copy.name = node.input[k] = f"{node.input[k]}:{i}"
                result.graph.initializer.append(copy)
                stored[copy.name] = result.graph.initializer[-1]
        session = Session(protobuf.submodel(result, known, [node.input[0]]))
        count, total, square = 0, 0.0, 0.0
        for start in range(0, len(x), batch):
            seen = session.run({name: x[start : start + batch]})[node.input[0]].astype(np.float64)
            axes = tuple(a for a in range(seen.ndim) if a != 1)
            count += seen.size // seen.shape[1]
            total, square = total + seen.sum(axis=axes), square + (seen**2).sum(axis=axes)
        mean = total / count
        for tensor, values in ((node.input[3], mean), (node.input[4], np.maximum(square / count - mean**2, 0.0))):
            stored[tensor].CopyFrom(numpy_helper.from_array(np.asarray(values, np.float32), tensor))
    return result


def measure(kept: Network, folded: Network, ratio: float, samples: int, method: str, refit: str, seed: int = 0) -> Row:
    """Both exports cut alike; the one that kept its nodes also with statistics anew."""
    found: Row = {"ratio": ratio, "method": method, "refit": refit, "samples": samples, "seed": seed}
    for kind, network in (("kept", kept), ("folded", folded)):
        calib = network.samples(samples, seed)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.onnx"
            report = prune(
                network.path, out, calib, ratio=ratio, method=method, refit=refit, seed=seed, round_to=1, fast=True
            ).report
            before = answers(network.path, network.test)
            found[kind] = {
                **scores(before, answers(out, network.test), network.labels),
                "refit": report.checks["refit"],
            }
            if kind == "kept":
                anew = answers(reestimated(onnx.load(out), calib[network.input]), network.test)
                found["reestimated"] = scores(before, anew, network.labels)
    return found


def measure_all(kit: Kit, records: Records, quick: bool) -> None:
    """Every pair of exports, at every refit."""
    for kept, folded, ratio, samples in PAIRS[2:] if quick else (*PAIRS[1:], PAIRS[0]):
        for method, refit in RUNS:
            key = f"{kept} {ratio:g} {method} {refit}"
            records.add(SECTION, key, partial(_of, kit, kept, folded, ratio, samples, method, refit))


def _of(kit: Kit, kept: str, folded: str, ratio: float, samples: int, method: str, refit: str) -> Row:
    return measure(kit.network(kept), kit.network(folded), ratio, samples, method, refit)
