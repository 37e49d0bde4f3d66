"""Which expert can a mixture spare? What is measured of each, against the error of the outputs without it.

    python -m benchmarks.experts_used

Random mixtures, whose experts have weights of different sizes. The sum of what an expert gives is what `--drop-experts`
goes by (`onnxprune/calibration/experts_used.py`); beside it the mean over the positions that go to the expert, as REAP
has it, and the number of these positions. For each: its rank correlation with the error without each single expert,
and what the expert that comes last does when it goes, as a share of what an average one does.
"""

from __future__ import annotations

import argparse

import numpy as np
import onnx
from onnx import numpy_helper
from scipy.stats import spearmanr

from onnxprune.calibration.experts_used import use_of
from onnxprune.config import PruneConfig
from onnxprune.numerics.arrays import Doubles
from onnxprune.runtime.session import Session
from onnxprune.stages.load import read_samples
from onnxprune.surgery.mixtures import mixtures_of, without_experts
from tests.mixtures import model, samples

SEEDS, SIZES = 4, ((8, 2), (16, 4))


def made(experts: int, chosen: int, seed: int) -> onnx.ModelProto:
    """Two layers with mixtures; the weights of each expert have a size of their own."""
    rng = np.random.default_rng(seed)
    proto = model(experts=experts, chosen=chosen, router="bias")
    for t in proto.graph.initializer:
        values = numpy_helper.to_array(t)
        if values.dtype == np.float32:
            values = rng.permuted(values.ravel()).reshape(values.shape)
            if t.name[0] in "uvc" and len(values) == experts:
                values = values * rng.uniform(0.3, 1.7, (experts,) + (1,) * (values.ndim - 1)).astype(np.float32)
            t.CopyFrom(numpy_helper.from_array(values, t.name))
    return proto


def compared(experts: int, chosen: int, seed: int) -> list[list[float]]:
    """Of each mixture: the three correlations, and the three shares."""
    proto, data = made(experts, chosen, seed), samples(64, 8)
    y = Session(proto).run(data)["y"]
    spread = float(((y - y.mean((0, 1))) ** 2).sum())
    mixtures = mixtures_of(proto)
    rows = []
    given = use_of(proto, mixtures, read_samples(proto, data, PruneConfig()), {})
    for m in mixtures:
        errors = []
        for e in range(m.count):
            others = {m.name: [i for i in range(m.count) if i != e]}
            errors.append(float(((Session(without_experts(proto, others)).run(data)["y"] - y) ** 2).sum()) / spread)
        total, positions = given[m.name].use, given[m.name].positions
        by: tuple[Doubles, ...] = total, total / np.maximum(positions, 1), positions.astype(float)
        rows.append(
            [float(spearmanr(b, errors)[0]) for b in by]
            + [errors[int(b.argmin())] / float(np.mean(errors)) for b in by]
        )
    return rows


def main() -> None:
    """Print the means over all mixtures."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = [row for seed in range(SEEDS) for sizes in SIZES for row in compared(*sizes, seed)]
    mean = np.mean(rows, axis=0)
    print(f"{len(rows)} mixtures")
    for i, what in enumerate(("sum", "mean", "positions")):
        print(f"{what:10} rank correlation {mean[i]:.2f}, error of the last over the average {mean[i + 3]:.2f}")


if __name__ == "__main__":
    main()
