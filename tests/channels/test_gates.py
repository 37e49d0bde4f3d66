"""Gates against the masked oracle: a gate of 0 removes a channel for whatever reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest

from onnxprune.channels.gates import by_group, gates_of, sums_of, values_of
from onnxprune.numerics.arrays import Array
from onnxprune.verification.oracle import mask_of
from tests.compare import assert_same
from tests.gating import factors, gated
from tests.graphs import PRUNABLE
from tests.prepared import Keep, Prepared, comparable, masked, random_keep

Lookup = Callable[[str], Prepared]
RTOL = 1e-4


_BY_WEIGHTS = "contracted between weights alone"


def why_without(p: Prepared) -> dict[int, str]:
    """Group index → what reads it that no gate can stand at."""
    graph = p.channels.graph
    found: dict[int, str] = {}
    for r in p.channels.reads:
        own = "its own state"
        why = {"contraction": "", "range": "", "inner": own, "state": own, "mixing": "statistics"}[r.kind]
        if r.node.index in graph.inside:
            why = "inside a body"
        name = r.node.inputs[r.slot]
        if not why or (name in graph.constants and r.kind not in ("inner", "state")):
            continue
        for f in p.channels.factors.get(name, ()):
            if r.kind == "contraction" or any(f.shape[a] > 1 for a in r.axes):
                found.update((int(g), why) for g in np.unique(p.channels.group_of[f]) if g >= 0)
    seen = _contracted(p, constants=False)
    return dict.fromkeys(_contracted(p, constants=True) - seen, _BY_WEIGHTS) | found


def _contracted(p: Prepared, *, constants: bool) -> set[int]:
    """The groups that contractions sum over in weights, or in anything else."""
    graph = p.channels.graph
    found: set[int] = set()
    for r in p.channels.reads:
        name = r.node.inputs[r.slot]
        if r.kind == "contraction" and (name in graph.constants) is constants:
            for f in p.channels.factors.get(name, ()):
                if any(f.shape[a] > 1 for a in r.axes):
                    found.update(int(g) for g in np.unique(p.channels.group_of[f]) if g >= 0)
    return found


def with_mask(p: Prepared, keep: Keep) -> dict[str, Array]:
    """The outputs with every gate at the mask of what stays."""
    gates = gates_of(p.channels)
    masks = {g.index: keep[g.units].astype(float) for g in p.channels.groups}
    return arrays(gated(p, gates), {**p.example, **factors(p, gates, masks)})


def arrays(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs that are no sequences."""
    return {k: v for k, v in comparable(model).run(feeds).items() if isinstance(v, np.ndarray)}


@pytest.mark.parametrize("name", PRUNABLE)
def test_a_mask_in_the_gates_is_the_oracle(name: str, prepared: Lookup) -> None:
    """Fails where a reader of a channel has no gate, or the gate another class, or too much is gated."""
    p = prepared(name)
    without = why_without(p)
    keep = random_keep(p.channels, 0)
    for g in without:
        keep[p.channels.groups[g].units] = True
    if keep.all():
        pytest.skip(f"no gate can remove anything here: {', '.join(sorted(set(without.values())))}")
    expected = arrays(masked(p, keep), p.example)
    found = with_mask(p, keep)
    assert found.keys() == expected.keys()
    for k, y in expected.items():
        assert_same(found[k], y, rtol=RTOL, atol=1e-6)


@pytest.mark.parametrize("name", PRUNABLE)
def test_every_group_has_gates_or_is_known_to_have_none(name: str, prepared: Lookup) -> None:
    """Fails where a group that the oracle masks would count as one that does nothing to the outputs."""
    p = prepared(name)
    known, without = by_group(p.channels, gates_of(p.channels)), why_without(p)
    constants = p.channels.graph.constants
    for g in p.channels.groups:
        keep = p.channels.keep_classes({g.index: np.zeros(g.size, bool)})
        by_weights = without.get(g.index) == _BY_WEIGHTS
        reads = [
            r for r in p.channels.reads if r.kind == "inner" or by_weights or r.node.inputs[r.slot] not in constants
        ]
        # What only goes where nobody reads it, another part of a Split say, is masked nowhere.
        read = any(mask_of(p.channels, r.node.inputs[r.slot], keep) is not None for r in reads)
        assert (g.index in known or g.index in without) == read, g.name


@pytest.mark.parametrize("name", PRUNABLE)
def test_sums_are_the_transpose_of_values(name: str, prepared: Lookup) -> None:
    """Fails where the gradient of a gate is not that of its coefficients: <values(a), v> = <a, sums(v)> up to ones."""
    p = prepared(name)
    rng = np.random.default_rng(0)
    gates = gates_of(p.channels)
    for g, own in by_group(p.channels, gates).items():
        size = p.channels.groups[g].size
        for i in own:
            a, v = rng.standard_normal(size), rng.standard_normal((3, *gates[i].classes.shape))
            moved = values_of(p.channels, g, gates[i], a) - values_of(p.channels, g, gates[i], np.zeros(size))
            left = (moved * v).reshape(3, -1).sum(axis=1)
            assert_same(sums_of(p.channels, g, gates[i], v) @ a, left, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PRUNABLE)
def test_gates_broadcast(name: str, prepared: Lookup) -> None:
    """Fails where a gate would change the shape of what it multiplies, or sums over an axis that it tracks."""
    p = prepared(name)
    for x in gates_of(p.channels):
        shape = p.channels.graph.shapes[x.data]
        assert np.broadcast_shapes(shape, x.classes.shape) == shape
        assert all(x.classes.shape[a] == 1 for a in x.summed)
        tracked = [a for a in range(len(shape)) if x.classes.shape[a] > 1]
        assert sorted({*x.summed, *tracked, *([] if x.batch is None else [x.batch])}) == list(range(len(shape)))


def test_another_units_gate_is_seen(prepared: Lookup) -> None:
    """The mutation check: gates of the neighbouring units are no oracle."""
    p = prepared("plain")
    keep = random_keep(p.channels, 0)
    units = p.channels.groups[0].units
    other = keep.copy()
    other[units] = np.roll(keep[units], 1)
    found, expected = with_mask(p, other)["y"], arrays(masked(p, keep), p.example)["y"]
    with pytest.raises(AssertionError, match="times the bound"):
        assert_same(found, expected, rtol=RTOL, atol=1e-6)


def test_few_groups_are_without(prepared: Lookup) -> None:
    """Fails where a change to the gates silently empties the comparison above."""
    groups = {name: len(prepared(name).channels.groups) for name in PRUNABLE}
    left = {name: set(why_without(prepared(name)).values()) for name in PRUNABLE}
    assert left["layer_norm_convolution"] == {"statistics"}
    assert left["lstm"] == {"its own state"}
    assert left["loop_of_input"] == {"inside a body"}
    assert not left["plain"] | left["residual"] | left["dense_concat"] | left["attention_by_parts_positions"]
    assert sum(len(why_without(prepared(n))) for n in PRUNABLE) < sum(groups.values()) / 3
