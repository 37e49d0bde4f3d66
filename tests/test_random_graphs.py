"""The core over random graphs: each is traced, then cut exactly or refused with a reason.

Every row of the table of makers has its own test, so that workers share them and a failure names its operator. What is
drawn depends on the row alone: every run draws the same graphs. The variable ONNXPRUNE_EXAMPLES multiplies their number
(`.github/workflows/weekly.yml`).
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, seed, settings

from onnxprune.channels import branches
from onnxprune.channels.rules import TABLE
from onnxprune.graph import protobuf
from onnxprune.graph.unrounded import is_quantized, without_rounding
from onnxprune.normalise import accepts
from onnxprune.normalise.unfused import EXPERTS, PACKED
from onnxprune.runtime.session import Session
from tests.compare import assert_same, relative_error
from tests.prepared import Array, masked, prepare, random_keep, sliced
from tests.random_graphs import MAKERS, UNFUSED, WITHOUT_MAKER, Case, graphs, is_unknown
from tests.random_graphs.motifs import MAKERS as CONSTRUCTS

_TIMES = int(os.environ.get("ONNXPRUNE_EXAMPLES", "1"))
EXAMPLES = 6 * _TIMES
EXAMPLES_OF_A_CONSTRUCT = 30 * _TIMES  # several operators at once: there is more to find
RTOL = 1e-4
NOISE = 3e-6  # a thirtieth of the tolerance; rounding in a few layers is less


def test_every_operator_has_a_maker():
    """Fails where a rule was added that no random graph will ever use."""
    assert set(TABLE) - set(MAKERS) == set(WITHOUT_MAKER)
    assert set(MAKERS) - set(TABLE) == {*CONSTRUCTS, *UNFUSED}
    assert {*PACKED, *EXPERTS} <= UNFUSED
    assert all(WITHOUT_MAKER.values())


@pytest.mark.parametrize("focus", MAKERS)
def test_random_graphs(focus: str):
    """Fails where some graph with this operator or construct is cut wrongly, or kept without saying why."""
    if is_unknown(focus):
        pytest.skip(f"onnx {onnx.__version__} knows no {focus}")
    seen: Counter[str] = Counter()
    own = focus.rpartition(".")[2]

    @seed(zlib.crc32(focus.encode()))
    @settings(
        max_examples=EXAMPLES_OF_A_CONSTRUCT if focus in CONSTRUCTS else EXAMPLES, deadline=None, derandomize=True
    )
    @given(graphs(focus))
    def drawn(case: Case) -> None:
        seen["drawn"] += 1
        check(case)
        seen["checked"] += 1
        seen["with focus"] += focus in CONSTRUCTS or any(n.op_type == own for n in case.model.graph.node)

    drawn()
    # A graph that answers noise is no test of anything, and a maker that makes nothing is none either. What is drawn
    # differs with the operators that this onnx knows, so of some twenty graphs no more than half is asked for.
    assert seen["checked"] >= 0.9 * seen["drawn"]
    assert seen["with focus"] >= 0.5 * seen["checked"]


def check(case: Case) -> None:
    """Trace; then cut at random and as far as possible."""
    example = case.feeds(0)
    protobuf.check(case.model)
    p = prepare(case.model, example, case.attention)
    # A graph may ask for the second sample by its number.
    taken = (0, 1) if not accepts(Session(case.model, optimize=False), case.feeds(2)) else (0, 1, 2)
    assert_equal(case, p.normalised.proto, case.model, taken)
    assert all(v.why.reason for v in p.channels.pinned)
    if not p.channels.groups:
        assert p.channels.pinned or not protobuf.parameters(p.normalised.proto)
        return
    weights = {t.name for t in case.model.graph.initializer}
    plan = zlib.crc32(case.model.SerializeToString(deterministic=True))
    for shares, sizes in (((0.2, 0.5, 0.8), taken), ((0.0,), (1,))):
        keep = random_keep(p.channels, plan, shares)
        small, oracle = sliced(p, keep), masked(p, keep)
        protobuf.check(small)
        assert_equal(case, small, oracle, sizes)
        assert list(small.graph.input) == [v for v in case.model.graph.input if v.name not in weights]
        assert list(small.graph.output) == list(case.model.graph.output)
        assert (protobuf.parameters(small) < protobuf.parameters(p.normalised.proto)) == (not keep.all())
    for g in branches.drops(p.channels):
        keep = random_keep(p.channels, plan)
        keep[p.channels.groups[g].units] = False
        assert_equal(case, sliced(p, keep), masked(p, keep), (1,))


def assert_equal(case: Case, found: onnx.ModelProto, reference: onnx.ModelProto, sizes: Sequence[int]) -> None:
    """Both models compute the same at each of these sizes.

    Where they do not, and noise at the inputs moves the answer of the reference itself by more than the tolerance (it
    compares nearly equal numbers, or a sum cancels), the graph is drawn anew.
    """
    session, oracle = _session(found), _session(reference)
    for which in sizes:
        feeds = case.feeds(which, seed=which)
        expected = oracle.run(feeds)
        values = session.run(feeds)
        assert list(values) == list(expected)
        assert all(np.isfinite(v).all() for v in expected.values()), "the graph is ill-posed"
        if _differs(values, expected):
            rng = np.random.default_rng(0)
            for _ in range(4):
                noisy = {k: v * (1 + NOISE * rng.standard_normal(v.shape)).astype(v.dtype) for k, v in feeds.items()}
                assume(not _differs(oracle.run(noisy), expected))
        for name, value in expected.items():
            assert_same(values[name], value, rtol=RTOL, atol=0.0)


def _session(model: onnx.ModelProto) -> Session:
    """As in `stages.comparable`, but always without the optimizations of onnxruntime."""
    return Session(without_rounding(model) if is_quantized(model) else model, optimize=False)


def _differs(values: Mapping[str, Array], expected: Mapping[str, Array]) -> bool:
    return any(relative_error(values[k], v) > RTOL for k, v in expected.items())
