"""Models with weights in packed codes, pruned as they are, and packed after their float model is pruned: a table.

    python -m benchmarks.packed_codes MODEL CALIB TEST [MODEL CALIB TEST ...] [--bits 4] [--block 32] [--ratio 0.3]
        [--output docs/reach.md]

onnxruntime's MatMulNBitsQuantizer packs the float model, each Gemm as a product and a sum. The packed model is pruned
(`--fast`), and so is the float model, by the same share of the MACs, which is packed then. Errors are squared ones over
the spread of the float model's first output on TEST; that of the packed model itself is what packing alone leaves.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from benchmarks.page import put
from onnxprune import prune
from onnxprune.graph.protobuf import copied
from onnxprune.pipeline import inspect
from onnxprune.runtime.session import Session

Feeds = Mapping[str, NDArray[Any]]
_HEAD = (
    "| model | codes | share of MACs, packed | float | removed, packed | float | error, packed | packed and pruned "
    "| pruned and packed |"
)
_BATCH = 100


def main() -> None:
    """Print the table, or write it into a document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="of each model: the float model, calibration and test data")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--output", type=Path, help="a markdown file whose table `packed-codes` is replaced")
    args = parser.parse_args()
    if len(args.files) % 3:
        parser.error("give each model with its calibration and its test data")
    logging.disable(logging.INFO)  # the quantizer tells of every node
    lines = [_HEAD, "|---" * (_HEAD.count("|") - 1) + "|"]
    for model, calib, test in zip(*(args.files[k::3] for k in range(3)), strict=True):
        for symmetric in (True, False):
            lines.append(row(model, calib, test, args.bits, args.block, args.ratio, symmetric=symmetric))
            print(lines[-1], flush=True)
    if args.output is not None:
        put(args.output, "table", "packed-codes", "\n".join(lines))


def with_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which each Gemm of a weight, unscaled, is a MatMul and an Add: the quantizer packs products alone."""
    result = copied(model)
    stored = {t.name: t for t in result.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for n in result.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in n.attribute}
        plain = all(attributes.get(k, 1.0) == 1.0 for k in ("alpha", "beta")) and not attributes.get("transA", 0)
        if n.op_type != "Gemm" or not plain or n.input[1] not in stored or len(n.input) < 3:
            nodes.append(n)
            continue
        w = numpy_helper.to_array(stored[n.input[1]])
        turned = f"{n.input[1]}__by_input"
        if attributes.get("transB", 0):
            result.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(w.T), turned))
        product, weight = f"{n.output[0]}__product", turned if attributes.get("transB", 0) else n.input[1]
        nodes.append(helper.make_node("MatMul", [n.input[0], weight], [product], name=n.name))
        nodes.append(helper.make_node("Add", [product, n.input[2]], [n.output[0]]))
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del result.graph.node[:]
    result.graph.node.extend(copies)
    return result


def packed(model: onnx.ModelProto, bits: int, block: int, *, symmetric: bool) -> onnx.ModelProto:
    """The model as onnxruntime packs it, with kernels that do not round what they multiply."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        copied(model), bits=bits, block_size=block, is_symmetric=symmetric, accuracy_level=0
    )
    quantizer.process()
    result: onnx.ModelProto = quantizer.model.model
    return result


def error(model: onnx.ModelProto, reference: NDArray[Any], feeds: Feeds) -> float:
    """Squared error over the spread of the first output of a reference."""
    apart = (answers(model, feeds) - reference).astype(np.float64)
    spread = (reference - reference.mean(axis=0)).astype(np.float64)
    return float((apart**2).sum() / (spread**2).sum())


def answers(model: onnx.ModelProto, feeds: Feeds) -> NDArray[Any]:
    """The first output."""
    session = Session(model)
    count = len(next(iter(feeds.values())))
    parts = [{k: v[i : i + _BATCH] for k, v in feeds.items()} for i in range(0, count, _BATCH)]
    return np.concatenate([session.run(p)[session.outputs[0]] for p in parts])


def row(path: Path, calib: Path, test: Path, bits: int, block: int, ratio: float, *, symmetric: bool) -> str:
    """One line of the table."""
    model = with_products(onnx.load(path))
    with np.load(test) as z:
        feeds = {k: z[k] for k in z.files if k in {v.name for v in model.graph.input}}
    reference = answers(model, feeds)
    small = packed(model, bits, block, symmetric=symmetric)
    options: Mapping[str, Any] = {"ratio": ratio, "fast": True}
    pruned, plain = (prune(m, None, calib, **options) for m in (small, model))
    if pruned.model is None or plain.model is None:
        raise SystemExit(f"{path} was not pruned")
    after = packed(plain.model, bits, block, symmetric=symmetric)
    cells = [
        path.stem,
        f"{bits} bits, {block} to a block, {'no zero points' if symmetric else 'zero points'}",
        *(f"{inspect(m).share_of_macs:.3f}" for m in (small, model)),
        *(f"{r.report.achieved:.1%}" for r in (pruned, plain)),
        *(f"{error(m, reference, feeds):.2%}" for m in (small, pruned.model, after)),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
