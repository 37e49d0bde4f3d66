"""The sizes that MACs are counted at: said where a model leaves them open, and one count of a run and an inspection."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import prune
from onnxprune.config import PruneConfig
from onnxprune.pipeline import inspect
from onnxprune.stages.counted_at import open_sizes
from onnxprune.stages.load import load
from tests import digits
from tests.stand_ins import KINDS
from tests.topologies.text import Topology


def said(notes: tuple[str, ...]) -> list[str]:
    return [n for n in notes if n.startswith("MACs are those of one sample at")]


def test_a_run_and_an_inspection_count_alike_and_say_where():
    """Fails where the same model has other MACs in `inspect` than in a run on the same data, or no length is named."""
    topology, samples = KINDS["decoder"]
    data = samples(np.random.default_rng(0))
    found = inspect(topology.model(), data)
    report = prune(topology.model(), None, data, ratio=0.2, dry_run=True, fast=True, method="magnitude").report
    assert report.before.macs == found.macs
    own = ["MACs are those of one sample at T = 16, as in the data"]
    assert said(found.notes) == said(report.notes) == own
    free = inspect(topology.model())
    assert free.macs > found.macs
    [note] = said(free.notes)
    assert "T = 64, as random inputs have it" in note


UNNAMED = Topology("(float[N,3,?,W] x) => (float[N,5,?,W] y) { a = Conv(x, w[8,3,1,1])\n y = Conv(a, v[5,8,1,1]) }", ())


@pytest.mark.parametrize(
    ("row", "sizes"),
    [
        (KINDS["denoiser"][0], {}),
        (KINDS["detector"][0], {}),
        (KINDS["classifier"][0], {"T": 7}),
        (UNNAMED, {"x[2]": 4, "W": 7}),
    ],
    ids=["samples elsewhere", "fixed", "two inputs", "unnamed"],
)
def test_open_sizes(row: Topology, sizes: dict[str, int]):
    """Fails where a number of samples is taken for a size of one, or a size without a name is left out."""
    model = row.model()
    real = {"N": 4, "T": 7, "W": 7, "": 4}
    data = {
        v.name: np.ones(
            [d.dim_value or real[d.dim_param] for d in v.type.tensor_type.shape.dim],
            np.int64 if v.type.tensor_type.elem_type == 7 else np.float32,
        )
        for v in model.graph.input
    }
    assert open_sizes(load(model, data, PruneConfig())) == sizes


def test_nothing_is_said_where_the_model_says_all():
    assert not said(inspect(digits.path("resnet")).notes)
