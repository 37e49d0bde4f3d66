"""Which groups may go as a whole, what disappears with them, and that the rest computes what the oracle says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxprune.channels import ChannelGraph, branches, build
from onnxprune.graph import protobuf
from onnxprune.graph.view import Node
from onnxprune.surgery import settle
from tests.compare import assert_same
from tests.graphs import TABLE
from tests.prepared import Keep, Prepared, comparable, masked, prepare, random_keep, sliced
from tests.topologies.branches import ROWS

Lookup = Callable[[str], Prepared]

# Sizes of the groups that may go → of those that die with them. What is not here keeps a unit of every group.
DROPS: dict[str, dict[int, list[int]]] = {
    "residual": {6: []},
    "squeeze_excite": {4: []},
    "layer_norm": {12: []},
    "layer_norm_convolution": {12: []},
    "bottleneck": {7: [4]},
    "branch_subtracted": {7: [4]},
    "branch_through_a_norm": {7: [4]},
    "branch_behind_a_sum": {7: [4]},
    "two_branches_and_no_stream": {8: [], 7: []},
    "inverted_residual": {9: []},
    "grouped_branch": {8: []},
    "branch_behind_a_root_mean_square": {10: []},
    "transformer": {4: [], 9: []},
    "channels_last_branch": {9: []},
    "quantized_packed_rows": {2: []},
    "experts": {32: []},
    "experts_in_sequences": {15: []},
    "experts_in_codes": {12: []},
}


def without(p: Prepared, groups: list[int], keep: Keep | None = None) -> Keep:
    """`keep`, or everything, less whole groups."""
    found = np.ones(p.channels.classes.pinned.size, bool) if keep is None else keep.copy()
    for g in groups:
        found[p.channels.groups[g].units] = False
    return found


@pytest.mark.parametrize("name", TABLE)
def test_groups_that_may_go(name: str, prepared: Lookup):
    """Fails where a branch is overlooked, or one may go that something else needs."""
    channels = prepared(name).channels
    sizes = {
        channels.groups[g].size: sorted(channels.groups[d].size for d in drop.groups)
        for g, drop in branches.drops(channels).items()
    }
    assert sizes == DROPS.get(name, {})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", DROPS)
def test_a_branch_that_is_gone_equals_the_oracle(name: str, seed: int, prepared: Lookup):
    """Fails where something else than the branch goes with it, or less, while other groups are narrowed too."""
    p = prepared(name)
    for g in branches.drops(p.channels):
        keep = without(p, [g], random_keep(p.channels, seed) if seed else None)
        left = branches.left_of(p.channels, keep)
        assert left is not None
        small = sliced(p, keep)
        for model in (small, settle(small, p.channels, left)):
            protobuf.check(model)
            for batch in (2, 3):
                feeds = TABLE[name].feeds(batch, seed=seed + batch)
                expected = comparable(masked(p, keep)).run(feeds)
                for output, value in comparable(model).run(feeds).items():
                    assert_same(value, expected[output], rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("name", DROPS)
def test_all_branches_together_equal_the_oracle(name: str, prepared: Lookup):
    """Fails where what one branch leaves behind is not taken in where another one is gone."""
    p = prepared(name)
    keep = without(p, list(branches.together(p.channels, list(branches.drops(p.channels)))))
    feeds = TABLE[name].feeds(3)
    expected = comparable(masked(p, keep)).run(feeds)
    for output, value in comparable(sliced(p, keep)).run(feeds).items():
        assert_same(value, expected[output], rtol=1e-4, atol=0.0)


def test_either_of_two_branches_may_go_and_not_both(prepared: Lookup):
    channels = prepared("two_branches_and_no_stream").channels
    first, second = branches.drops(channels)
    assert branches.together(channels, [first, second]) == (first,)
    assert branches.together(channels, [second, first]) == (second,)
    assert branches.left_of(channels, without(prepared("two_branches_and_no_stream"), [first, second])) is None


def test_what_disappears(prepared: Lookup):
    """Fails where a node that only fed the branch is counted although it goes, or one that others read is not."""
    channels = prepared("bottleneck").channels
    (drop,) = branches.drops(channels).values()
    ops = {n.outputs[0] for n in channels.graph.nodes if n.index in drop.nodes}
    assert ops == {"a", "ar", "b", "br"}


def test_dead_groups(prepared: Lookup):
    channels = prepared("bottleneck").channels
    found = branches.drops(channels)
    hidden, first = (next(g for g in channels.groups if g.size == n) for n in (7, 4))
    assert branches.dead_groups(found, {hidden.index: np.zeros(7, bool)}) == {first.index}
    assert branches.dead_groups(found, {hidden.index: np.arange(7) < 1}) == frozenset()
    assert branches.dead_groups(found, {first.index: np.zeros(4, bool)}) == frozenset()


def test_rows_are_covered():
    """Fails where a topology was added here without saying what of it may go."""
    refused = {"branch_read_twice", "branch_of_the_answer", "branch_reshaped", "branch_with_a_group_norm"}
    refused.add("branch_of_a_large_gemm_bias")
    assert set(ROWS) == (set(DROPS) & set(ROWS)) | refused


@pytest.mark.parametrize("name", TABLE)
def test_what_goes_is_found_from_what_is_lost_as_in_the_whole_graph(name: str, prepared: Lookup):
    """Fails where a walk from what is lost misses a node, or a group, that a look at all of them finds."""
    _agree(prepared(name).channels)


def test_what_only_leads_to_a_layer_that_goes_goes_with_it():
    """Fails where the codes of a weight stay behind, or a node that leads nowhere counts as read."""
    rng = np.random.default_rng(0)
    model = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        net (float[N,6] x) => (float[N,5] y, float[N,8] aside) {
            u = MatMul (x, w)
            h = MatMul (u, a)
            r = Relu (h)
            v = DequantizeLinear (codes, scale)
            b = MatMul (r, v)
            aside = Neg (b)
            s = Add (u, b)
            y = MatMul (s, z)
        }""")
    weights = {"w": (6, 8), "a": (8, 7), "z": (8, 5)}
    values = {k: rng.standard_normal(v).astype(np.float32) for k, v in weights.items()}
    values |= {"codes": rng.integers(-90, 90, (7, 8)).astype(np.int8), "scale": np.array(0.02, np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in values.items())
    graph = prepare(model, {"x": rng.standard_normal((2, 6)).astype(np.float32)}).channels.graph
    channels = build(replace(graph, outputs=("y",)))
    (drop,) = branches.drops(channels).values()
    gone = {n.op for n in channels.graph.nodes if n.index in drop.nodes}
    assert gone == {"MatMul", "Relu", "DequantizeLinear", "Neg"}
    _agree(channels)


def _agree(channels: ChannelGraph) -> None:
    every = [g.index for g in channels.groups]
    for groups in (every, *([g] for g in every), *pairwise(every)):
        keep = channels.keep_classes({g: np.zeros(channels.groups[g].size, bool) for g in groups})
        assert channels.emptied_without(set(groups)) == {tensor for tensor, _ in channels.emptied(keep)}
        left = branches.left_without(channels, groups)
        if left is None:
            continue
        wanted, gone = set(channels.graph.outputs) - left.caches.keys(), set()
        for n in reversed(channels.graph.nodes):
            if wanted.isdisjoint(n.outputs):
                gone.add(n.index)
            else:
                wanted |= {*_reads(n, left), *n.captures}
        assert left.gone == gone
        read = {t for n in channels.graph.every_node if n.index not in left.gone for t in _reads(n, left)}
        weights = {
            g.index: {r.tensor for r in (*g.producers, *g.consumers, *g.parameters)}
            for g in channels.groups
            if g.index not in groups
        }
        assert branches.dead(channels, groups, left) == {g for g, own in weights.items() if read.isdisjoint(own)}


def _reads(node: Node, left: branches.Remains) -> set[str]:
    """What a node itself reads: of a layer of which the bias is left, that alone."""
    layer = next((left.alone[o] for o in node.outputs if o in left.alone), None)
    return (set(node.inputs) if layer is None else {branches.bias_of(layer)}) - {""}
