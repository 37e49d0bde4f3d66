"""A network inside the body of an If or a Loop is pruned as the same network outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune import PruneConfig, inspect, prune
from onnxprune.graph import protobuf
from onnxprune.graph.bodies import every_body
from onnxprune.intake import model_file
from onnxprune.runtime.session import Session
from tests import digits
from tests.compare import assert_same
from tests.graphs import TABLE
from tests.prepared import Array, Prepared, masked, prepare, random_keep, sliced
from tests.variants import VARIANTS, in_branches

NETS = ("resnet", "mobilenet", "squeeze_excite", "shuffle_dynamic", "dense_concat", "layer_norm_convolution")
Case = tuple[str, str]
Lookup = Callable[[Case], Prepared]


def _net(name: str) -> tuple[onnx.ModelProto, Callable[[int, int], Mapping[str, Array]]]:
    """A model, and its inputs by number of samples and seed."""
    if name in digits.NAMES:
        data = np.load(digits.CALIB)["input"]
        return model_file.load(digits.path(name))[0], lambda count, seed: {"input": data[seed : seed + count]}
    return TABLE[name].model(), TABLE[name].feeds


@pytest.fixture(scope="module")
def variant() -> Lookup:
    known: dict[Case, Prepared] = {}

    def lookup(case: Case) -> Prepared:
        if case not in known:
            original, feeds = _net(case[0])
            known[case] = prepare(VARIANTS[case[1]](original), feeds(2, 0))
        return known[case]

    return lookup


CASES = [(net, kind) for net in NETS for kind in VARIANTS]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_variant_and_its_normal_form_compute_the_same(case: Case, variant: Lookup):
    """Fails where the test's own rearrangement, or normalisation inside bodies, changes a value."""
    original, feeds = _net(case[0])
    p = variant(case)
    for count in (2, 3):
        x = feeds(count, 5)
        expected = Session(original).run(x)
        for proto in (p.original, p.normalised.proto):
            for output, value in Session(proto).run(x).items():
                assert_same(value, expected[output], rtol=1e-5, atol=0.0)


# Two borders may split what normalisation sees as one, a shuffle say; one border in the middle of these nets does not.
@pytest.mark.parametrize("case", [c for c in CASES if c[1] != "nested"], ids="-".join)
def test_as_much_can_go_inside_a_body(case: Case, variant: Lookup):
    """Fails where a body keeps channels that the same nodes outside would lose."""
    original, feeds = _net(case[0])
    outside = Counter(g.size for g in prepare(original, feeds(2, 0)).channels.groups)
    inside = Counter(g.size for g in variant(case).channels.groups)
    if case[1] == "loop":
        assert inside == outside
    else:
        # What lies inside one branch is there once for each.
        assert outside <= inside <= Counter({size: 2 * n for size, n in outside.items()})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_slice_equals_the_oracle(case: Case, seed: int, variant: Lookup):
    """Fails where an axis, an index or a size of a body was not cut with the rest."""
    p = variant(case)
    _, feeds = _net(case[0])
    keep = random_keep(p.channels, seed)
    small = sliced(p, keep)
    protobuf.check(small)
    x = feeds(3, seed)
    expected = Session(masked(p, keep)).run(x)
    for output, value in Session(small).run(x).items():
        assert_same(value, expected[output], rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_whole_job(case: Case, tmp_path: Path):
    """Fails where a stage behind the cut loses its way in a body, or the written file holds a weight elsewhere."""
    original, feeds = _net(case[0])
    changed = VARIANTS[case[1]](original)
    out = tmp_path / "out.onnx"
    report = prune(changed, out, feeds(96, 0), ratio=0.3, round_to=1, untried_branches="cut").report
    assert report.achieved >= 0.3
    assert report.checks["slice_against_oracle"] <= 1e-4
    assert report.checks["input_sizes_run"] >= 2
    written, _ = model_file.load(out)
    assert list(written.graph.output) == list(changed.graph.output)
    assert protobuf.parameters(written) < protobuf.parameters(changed)
    outside = {t.name for t in changed.graph.initializer}
    inside = {t.name for body in every_body(changed.graph) for t in body.initializer}
    assert not {t.name for t in written.graph.initializer} & (inside - outside)
    for body in every_body(written.graph):
        assert {t.name.partition("__")[0] for t in body.initializer} & inside
    assert report.output_error is not None
    assert np.isfinite(report.output_error)


@pytest.mark.parametrize("name", digits.NAMES)
def test_a_branch_that_is_taken_is_refitted(name: str):
    """Fails where layers in the branch that the data runs are cut by their weights alone: accuracy would go."""
    original, _ = _net(name)
    result = prune(in_branches(original, 0.8), None, digits.CALIB, ratio=0.4)
    assert result.model is not None
    assert digits.top1(result.model) >= digits.top1(digits.path(name)) - 0.04
    refitted = {f["layer"] for f in result.report.refit}
    assert len(refitted) > len(original.graph.node) / 8


def test_a_branch_that_is_not_taken_is_named():
    """Fails where the report passes over a branch of which no statistics were collected."""
    row = TABLE["if_weights_inside"]
    data = row.feeds(96) | {"flag": np.array(False)}
    notes = prune(row.model(), None, data, ratio=0.4, round_to=1, untried_branches="cut").report.notes
    assert any("branches that no calibration sample takes" in n for n in notes)
    assert any("cut, but not refitted" in n for n in notes)


def test_layers_of_a_loop_are_named_as_not_refitted():
    """Fails where the report passes over what no statistics were collected of."""
    original, _ = _net("resnet")
    result = prune(VARIANTS["loop"](original), None, digits.CALIB, ratio=0.3, config=PruneConfig(samples=64))
    assert any("cut, but not refitted" in n for n in result.report.notes)


def test_inspect_lists_the_weights_of_bodies():
    """Fails where what a body stores is not counted, or the groups name no node."""
    original, _ = _net("resnet")
    plain = inspect(original)
    found = inspect(VARIANTS["loop"](original))
    assert found.parameters >= plain.parameters
    assert abs(found.share - plain.share) < 0.01
    assert all(place.node for g in found.groups for place in g.producers)
