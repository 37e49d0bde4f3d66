"""Every stage of the core over the whole table of topologies."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest

from onnxprune.channels import ChannelGraph
from onnxprune.graph import protobuf
from onnxprune.normalise import accepts, normalise
from onnxprune.runtime.session import Session
from onnxprune.surgery import cut
from tests.compare import assert_same
from tests.graphs import PRUNABLE, TABLE
from tests.installed import check
from tests.prepared import Array, Prepared, comparable, least_removals, masked, prepare_row, random_keep, sliced

Lookup = Callable[[str], Prepared]
SEEDS = range(5)


@pytest.mark.parametrize("name", TABLE)
def test_groups_are_those_expected(name: str, prepared: Lookup):
    """Fails where channels are coupled that need not be, or freed that must stay."""
    channels = prepared(name).channels
    assert _sizes(channels, mixing=False) == TABLE[name].units
    assert _sizes(channels, mixing=True) == TABLE[name].mixing


def _sizes(channels: ChannelGraph, *, mixing: bool) -> tuple[int, ...]:
    return tuple(sorted((g.size for g in channels.groups if g.mixing or not mixing), reverse=True))


@pytest.mark.parametrize("name", TABLE)
def test_every_pinned_weight_has_an_expected_reason(name: str, prepared: Lookup):
    """Fails where something stays for a reason that nobody foresaw, or a promised reason is not given."""
    usual = ("the graph output", "of the graph input")
    reasons = {p.why.reason for p in prepared(name).channels.pinned}
    special = {r for r in reasons if not any(u in r for u in usual)}
    assert {r for r in special if not any(f in r for f in TABLE[name].pins)} == set()
    assert {f for f in TABLE[name].pins if not any(f in r for r in special)} == set()


@pytest.mark.parametrize("name", TABLE)
def test_normalised_model_computes_the_same(name: str, prepared: Lookup):
    """Fails where normalisation changes a value, at the sizes that it measured or at others."""
    original, normal = Session(TABLE[name].model()), Session(prepared(name).normalised.proto)
    for batch in (2, 3, 1):
        feeds = TABLE[name].feeds(batch, seed=batch)
        if batch == 1 and not accepts(Session(TABLE[name].model()), feeds):
            continue  # an index of the second sample, say
        expected = original.run(feeds)
        found = normal.run(feeds)
        assert list(found) == list(expected)
        for output, value in expected.items():
            assert_same(found[output], value, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", PRUNABLE)
def test_slice_equals_the_oracle(name: str, seed: int, prepared: Lookup):
    """Fails where an axis, an index or a size was not cut with the rest, or a wrong channel went."""
    p = prepared(name)
    keep = random_keep(p.channels, seed)
    small, oracle = sliced(p, keep), masked(p, keep)
    check(small)
    session, reference = comparable(small), comparable(oracle)
    for batch in (2, 3) if seed else (2, 3, 1):
        feeds = TABLE[name].feeds(batch, seed=seed + batch)
        if batch == 1 and not accepts(Session(p.original), feeds):
            continue
        expected = reference.run(feeds)
        for output, value in session.run(feeds).items():
            assert_same(value, expected[output], rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("name", PRUNABLE)
def test_one_unit_left_in_every_group(name: str, prepared: Lookup):
    """Fails where an axis of size 1 is taken for a broadcast axis, or its channel is lost."""
    p = prepared(name)
    keep = random_keep(p.channels, 0, shares=(0.0,))
    small = sliced(p, keep)
    check(small)
    feeds = TABLE[name].feeds(3)
    expected = comparable(masked(p, keep)).run(feeds)
    for output, value in comparable(small).run(feeds).items():
        assert_same(value, expected[output], rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("name", PRUNABLE)
def test_every_unit_alone_can_go(name: str, prepared: Lookup):
    """Fails where one particular unit, the first or the last of a block say, is miscounted."""
    p = prepared(name)
    feeds = TABLE[name].feeds(2)
    for units in (units for g in p.channels.groups for units in least_removals(g)):
        keep = np.ones(p.channels.classes.pinned.size, bool)
        keep[units] = False
        if p.channels.emptied(keep):
            continue
        expected = comparable(masked(p, keep)).run(feeds)
        for output, value in comparable(sliced(p, keep)).run(feeds).items():
            assert_same(value, expected[output], rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("name", PRUNABLE)
def test_cut_model_is_smaller_and_keeps_its_declarations(name: str, prepared: Lookup):
    """Fails where the outside of a model changes, or where units hold no weight at all."""
    p = prepared(name)
    keep = random_keep(p.channels, 1)
    small, original = sliced(p, keep), p.original
    weights = {t.name for t in original.graph.initializer}
    assert list(small.graph.input) == [v for v in original.graph.input if v.name not in weights]
    assert list(small.graph.output) == list(original.graph.output)
    assert list(small.opset_import) == list(p.normalised.proto.opset_import)
    assert protobuf.parameters(small) < protobuf.parameters(p.normalised.proto)


@pytest.mark.parametrize("name", TABLE)
def test_keeping_everything_changes_nothing(name: str, prepared: Lookup):
    """Fails where the rewriter edits what it has no reason to."""
    p = prepared(name)
    keep = np.ones(p.channels.classes.pinned.size, bool)
    small = sliced(p, keep)
    assert protobuf.parameters(small) == protobuf.parameters(p.normalised.proto)
    feeds = TABLE[name].feeds(3)
    expected = Session(p.normalised.proto).run(feeds)
    for output, value in Session(small).run(feeds).items():
        assert_same(value, expected[output], rtol=0.0, atol=0.0)


@pytest.mark.parametrize("name", TABLE)
def test_planning_twice_gives_the_same_bytes(name: str):
    """Fails where an order depends on a hash or on what ran before."""

    def run() -> tuple[bytes, bytes]:
        p = prepare_row(name)
        small = sliced(p, random_keep(p.channels, 2))
        return p.normalised.proto.SerializeToString(deterministic=True), small.SerializeToString(deterministic=True)

    assert run() == run()


@pytest.mark.parametrize("name", TABLE)
def test_inputs_of_a_stage_are_left_alone(name: str):
    """Fails where a stage writes into the model that it was given."""
    row = TABLE[name]
    model = row.model()
    before = model.SerializeToString(deterministic=True)
    n = normalise(model, row.feeds(2))
    assert model.SerializeToString(deterministic=True) == before
    p = prepare_row(name)
    normal = n.proto.SerializeToString(deterministic=True)
    cut(n.proto, p.channels, random_keep(p.channels, 3))
    assert n.proto.SerializeToString(deterministic=True) == normal


@pytest.mark.parametrize("name", PRUNABLE)
def test_one_weight_off_by_a_hundredth_is_seen(name: str, prepared: Lookup):
    """The mutation check: the comparison above would notice one kept weight that is 1 % off."""
    p = prepared(name)
    keep = random_keep(p.channels, 4)
    small = sliced(p, keep)
    feeds = TABLE[name].feeds(2)
    expected = comparable(masked(p, keep)).run(feeds)
    last = _last_weights(small)
    assert last
    for tensor in last:
        # What a weight multiplies may be zero behind a Relu, so one of the largest few must be seen, each nudged alone.
        errors = [_outcome(_nudged(small, tensor, rank), feeds, expected) for rank in range(6)]
        assert any("times the bound" in e for e in errors)


def _last_weights(small: onnx.ModelProto) -> list[str]:
    """The matrices and kernels next to an output: no activation behind them can hide the change."""
    weights = {t.name for t in small.graph.initializer if len(t.dims) > 1 and onnx.numpy_helper.to_array(t).any()}
    outputs = {o.name for o in small.graph.output}
    near = [i for n in small.graph.node if outputs & set(n.output) for i in n.input]
    found = [i for i in near if i in weights]
    while near and not found:
        # Behind what a product transposes or dequantizes first.
        near = [i for n in small.graph.node if set(n.output) & set(near) for i in n.input]
        found = [i for i in near if i in weights]
    return found


def _nudged(small: onnx.ModelProto, tensor: str, rank: int) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(small)
    stored = next(t for t in changed.graph.initializer if t.name == tensor)
    values = onnx.numpy_helper.to_array(stored).copy()
    at = np.argsort(np.abs(values.astype(np.float64)), axis=None)[::-1][rank % values.size]
    # Less, as a quantized weight saturates; and of eight bits one code is about a hundredth of the largest.
    old = float(values.flat[at])
    if values.dtype.name.startswith("float8"):
        values.flat[at] = 0.9 * old  # with three bits after the point there is nothing nearer
    else:
        values.flat[at] = 0.99 * old if values.dtype.kind == "f" else int(old - np.sign(old))
    stored.CopyFrom(onnx.numpy_helper.from_array(values, tensor))
    return changed


def _outcome(model: onnx.ModelProto, feeds: Mapping[str, Array], expected: Mapping[str, Array]) -> str:
    try:
        for output, value in comparable(model).run(feeds).items():
            assert_same(value, expected[output], rtol=1e-4, atol=0.0)
    except AssertionError as e:
        return str(e)
    return ""
