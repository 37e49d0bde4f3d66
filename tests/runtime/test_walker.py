"""The walk in instalments, against one run of everything."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.data.array_files import Rows
from onnxprune.data.sources import load
from onnxprune.process import spill
from onnxprune.runtime.walker import Walker, runtime_batch
from onnxprune.surgery import replace_initializers, set_initializers
from tests.calibrated import prepare_text, samples_of, values
from tests.compare import assert_same
from tests.prepared import Prepared

Lookup = Callable[[str], Prepared]
# The same operators in smaller sessions: onnxruntime may fuse other pairs.
RTOL = 1e-5
MEMORIES = (0, 200_000, 1 << 40)
CACHED = "onnxprune.runtime.walker._CACHED_BYTES"
ROWS = (
    "plain",
    "residual",
    "dense_concat",
    "squeeze_excite",
    "two_layouts",
    "shared_kernel",
    "batch_norm",
    "transposed",
    "option_a_shortcut",
    "constant_of_shape",
)


def test_what_is_fed_counts_in_a_batch():
    """Fails where a batch of large inputs takes memory that was counted for the tensors behind them alone."""
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> large (float[N,3,1024,1024] x, float[64,64] w) => (float[N,1,1,1] y)
        <float[64,64] w = {0}> { y = ReduceMax (x) }"""
    )
    shapes = {"x": (2, 3, 1024, 1024), "w": (64, 64), "y": (2, 1, 1, 1)}
    assert runtime_batch(shapes, proto, bound=2) == (128 << 20) // (3 * 1024 * 1024 * 4 + 4)


def walker(p: Prepared, count: int, memory: int) -> Walker:
    return Walker(p.normalised.proto, samples_of(p, count), p.normalised.types, p.normalised.shapes, memory)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("name", ROWS)
def test_tensors_equal_those_of_one_run(name: str, memory: int, prepared: Lookup) -> None:
    """Fails where the frontier misses a tensor that a later part reads, or a batch is mixed up with another."""
    p = prepared(name)
    samples = samples_of(p, 150)
    graph = p.channels.graph
    w = Walker(p.normalised.proto, samples, p.normalised.types, p.normalised.shapes, memory)
    wanted = [o for n in graph.nodes for o in n.outputs if graph.shapes.get(o, (0,))[:1] == (2,)]
    expected = values(p.normalised.proto, wanted, samples.arrays)
    for tensor in wanted:
        parts = [v[tensor] for v in w.advance((tensor,))]
        assert [len(v) for v in parts] == [18] * 8 + [6]
        assert_same(np.concatenate(parts), expected[tensor], rtol=RTOL, atol=0.0)


@pytest.mark.parametrize("name", ROWS)
def test_tensors_equal_those_of_one_run_where_little_is_kept(
    name: str, prepared: Lookup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where a tensor is read from a frontier that was given up, or one of it is forgotten."""
    monkeypatch.setattr(CACHED, 0)
    p = prepared(name)
    graph = p.channels.graph
    w = walker(p, 70, 0)
    wanted = [o for n in graph.nodes for o in n.outputs if graph.shapes.get(o, (0,))[:1] == (2,)]
    expected = values(p.normalised.proto, wanted, samples_of(p, 70).arrays)
    with spill.spilling():
        for tensor in wanted:
            found = np.concatenate([v[tensor] for v in w.advance((tensor,))])
            assert_same(found, expected[tensor], rtol=RTOL, atol=0.0)


@pytest.mark.parametrize("memory", MEMORIES)
def test_several_tensors_at_once_and_the_same_one_again(memory: int, prepared: Lookup) -> None:
    """Fails where a tensor that something still reads is not available a second time."""
    p = prepared("residual")
    w = walker(p, 70, memory)
    expected = values(p.normalised.proto, ["r", "e"], samples_of(p, 70).arrays)
    for names in (("r",), ("r", "e"), ("e", "r")):
        parts = list(w.advance(names))
        for n in names:
            assert_same(np.concatenate([v[n] for v in parts]), expected[n], rtol=RTOL, atol=0.0)


def test_the_frontier_holds_only_what_is_still_read(prepared: Lookup) -> None:
    """Fails where memory grows with the depth of the network."""
    p = prepared("residual")
    w = walker(p, 70, 1 << 40)
    assert list(w.frontier) == ["x"]
    for tensor, kept in (("r", ["r"]), ("d", ["d", "r"]), ("s", ["s"])):
        assert len(list(w.advance((tensor,)))) == 9
        assert list(w.frontier) == kept
        assert [sorted(b) for b in w.batches] == [kept] * 9


def bytes_in(w: Walker) -> int:
    """What a walker holds of activations in memory."""
    stored = [v for b in w._batches for v in getattr(b, "stored", {}).values()]
    return sum(v.nbytes for v in stored if isinstance(v, np.ndarray))


@pytest.mark.parametrize("name", ["residual", "dense_concat", "two_layouts"])
def test_a_walk_through_files_equals_one_in_memory_bit_for_bit(name: str, prepared: Lookup) -> None:
    """Fails where a batch comes back from its file in another order, shape or type, or where the limit is ignored."""
    p = prepared(name)
    graph = p.channels.graph
    wanted = [o for n in graph.nodes for o in n.outputs if graph.shapes.get(o, (0,))[:1] == (2,)]
    with spill.spilling():
        spilled, held = walker(p, 70, 0), walker(p, 70, 1 << 40)
        for tensor in wanted:
            parts = zip(spilled.advance((tensor,)), held.advance((tensor,)), strict=True)
            for found, expected in parts:
                assert found[tensor].dtype == expected[tensor].dtype
                assert_same(found[tensor], expected[tensor], rtol=0.0, atol=0.0)
            assert spilled.frontier == held.frontier
            for found, expected in zip(spilled.batches, held.batches, strict=True):
                assert sorted(found) == sorted(expected)
                for t in found:
                    assert_same(found[t], expected[t], rtol=0.0, atol=0.0)
            assert bytes_in(spilled) == 0


TYPES = """(float[N,6] x, int64[N,3] ids) => (float[N,5] y) {
    a = Gemm (x, w1[6,8], b1[8])
    r = Relu(a)
    m = Greater(a, zero{:0.0})
    h = Cast <to=10> (r)
    k = Add(ids, one{:1})
    g = Gather(table[9,8], k)
    q = ReduceSum <keepdims=0> (g, axes{1})
    f = Cast <to=1> (h)
    s = Where(m, f, q)
    y = Gemm (s, w3[8,5], b3[5])
}"""


def test_files_hold_every_type_of_tensor() -> None:
    """Fails where truth values, integers or half precision come back from a file as something else."""
    p = prepare_text(TYPES)
    with spill.spilling():
        spilled, held = walker(p, 70, 0), walker(p, 70, 1 << 40)
        kinds: set[str] = set()
        for tensor in ("m", "h", "k", "s"):
            for found, expected in zip(spilled.advance((tensor,)), held.advance((tensor,)), strict=True):
                assert_same(found[tensor], expected[tensor], rtol=0.0, atol=0.0)
            for found, expected in zip(spilled.batches, held.batches, strict=True):
                assert sorted(found) == sorted(expected) and len(found) == len(expected)
                for t in found:
                    assert_same(found[t], expected[t], rtol=0.0, atol=0.0)
                    kinds.add(found[t].dtype.name)
            assert bytes_in(spilled) == 0
    assert kinds >= {"float32", "float16", "int64", "bool"}


def test_the_limit_says_what_lies_in_files(prepared: Lookup) -> None:
    """Fails where a batch that fits goes to a file, or one that does not stays in memory as it was there before."""
    p = prepared("residual")
    one, two = (4 * 70 * units * 64 for units in (8, 6))  # bytes of r and s, and of d
    graph = p.channels.graph
    assert [graph.shapes[t][1:] for t in ("r", "d", "s")] == [(8, 8, 8), (6, 8, 8), (8, 8, 8)]
    # Eight batches of eight samples, and one of six; of both tensors five take as much as all of one.
    first, both = one // 70, (one + two) // 70
    less = (64 * first, 32 * both, 64 * first)
    for limit, kept in ((one - 1, less), (one, (one, 40 * both, one)), (one + two, (one, one + two, one))):
        with spill.spilling():
            w, held = walker(p, 70, limit), walker(p, 70, 1 << 40)
            for tensor, expected in zip(("r", "d", "s"), kept, strict=True):
                for a, b in zip(w.advance((tensor,)), held.advance((tensor,)), strict=True):
                    assert_same(a[tensor], b[tensor], rtol=0.0, atol=0.0)
                assert bytes_in(w) == expected


def test_samples_in_another_axis_take_as_much_memory() -> None:
    """Fails where the first axis is taken for the samples of a tensor that has the sequence there."""
    p = prepare_text(
        """(float[N,16,6] x) => (float[N,16,5] y) {
            t = Transpose <perm=[1,0,2]> (x)
            r = Relu(t)
            m = MatMul (r, w1[6,8])
            e = Relu(m)
            u = MatMul (e, w2[8,5])
            y = Transpose <perm=[1,0,2]> (u)
        }"""
    )
    assert p.channels.graph.shapes["e"] == (16, 2, 8)
    expected = values(p.normalised.proto, ["r", "e"], samples_of(p, 70).arrays)
    one = 4 * 16 * 8
    with spill.spilling():
        w = walker(p, 70, 25 * one)
        for tensor in ("r", "e"):
            parts = [v[tensor] for v in w.advance((tensor,))]
            assert_same(np.concatenate(parts, axis=1), expected[tensor], rtol=RTOL, atol=0.0)
        assert bytes_in(w) == 24 * one  # three batches of eight samples


def test_looking_ahead_writes_nothing(prepared: Lookup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the walk moves on, so that what was passed cannot be asked for again, or the disk fills up."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    p = prepared("residual")
    expected = values(p.normalised.proto, ["d", "s"], samples_of(p, 70).arrays)
    with spill.spilling():
        w = walker(p, 70, 0)
        w.move_to(("r",))
        before = {f for f in tmp_path.rglob("*") if f.is_file()}
        for name in ("s", "d"):
            parts = [v[name] for v in w.advance((name,), stay=True)]
            assert_same(np.concatenate(parts), expected[name], rtol=RTOL, atol=0.0)
            assert list(w.frontier) == ["r"]
            assert {f for f in tmp_path.rglob("*") if f.is_file()} == before


def test_samples_in_a_file_are_walked_as_those_in_memory(
    prepared: Lookup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where a batch of a file is that of other samples."""
    monkeypatch.setattr("onnxprune.data.array_files.LARGE_BYTES", 1)
    p = prepared("residual")
    given = samples_of(p, 70)
    np.save(tmp_path / "data.npy", given.arrays["x"])
    stored = load(tmp_path / "data.npy", given.specs)
    assert isinstance(stored.arrays["x"], Rows)
    n = p.normalised
    order = np.arange(70)[::-1]
    with spill.spilling():
        a = Walker(n.proto, stored.take(order), n.types, n.shapes, 0)
        b = Walker(n.proto, given.take(order), n.types, n.shapes, 1 << 40)
        assert a.counts == b.counts
        for tensor in ("x", "r", "d", "s"):
            for found, expected in zip(a.advance((tensor,)), b.advance((tensor,)), strict=True):
                assert_same(found[tensor], expected[tensor], rtol=0.0, atol=0.0)


def test_files_of_what_is_no_longer_kept_are_used_again(
    prepared: Lookup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where the disk fills up with every instalment of a deep network."""
    p = prepared("residual")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    taken: list[int] = []
    write = spill._Slots.write
    monkeypatch.setattr(spill._Slots, "write", lambda s, v: taken.append(0) or [taken.extend(x := write(s, v)), x][1])
    with spill.spilling():
        w = walker(p, 70, 0)
        for tensor in ("r", "d", "s"):
            assert len(list(w.advance((tensor,)))) == 9
        assert not [f for f in tmp_path.rglob("*") if f.is_file()]
    # Nine batches of two tensors at the most; what is written of the third takes the place of the first.
    assert len(taken) > 2 * 9 and max(taken) <= 2 * 9


def test_nothing_runs_twice_without_memory(prepared: Lookup) -> None:
    """Fails where too large a frontier is given up, and the walk starts again at the inputs."""
    p = prepared("residual")
    with spill.spilling():
        w = walker(p, 70, 0)
        for tensor, kept in (("r", ["r"]), ("d", ["d", "r"]), ("s", ["s"])):
            assert len(list(w.advance((tensor,)))) == 9
            assert list(w.frontier) == kept


CHEAP_OR_NOT = """(float[N,6,8,8] x) => (float[N,5,8,8] y) {
    a = Relu(x)
    b = Conv <pads=[1,1,1,1]> (a, w1[64,6,3,3], b1[64])
    c = Conv <pads=[1,1,1,1]> (b, w2[6,64,3,3], b2[6])
    d = Mul(c, c)
    e = Conv(c, w3[12,6,1,1], b3[12])
    f = ReduceMean <keepdims=1> (c, last{3})
    g = Add(d, f)
    h = Concat <axis=1> (g, e)
    y = Conv(h, w4[5,18,1,1], b4[5])
}"""


def test_what_is_quickly_computed_again_is_not_kept_in_large_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a frontier is written that costs less to compute, or a dear one is given up."""
    p = prepare_text(CHEAP_OR_NOT)
    steps = (
        ("a", ["x"]),  # one operator of six channels
        ("b", ["x"]),  # 54 products an entry, which are done before 64 channels are written and read
        ("c", ["c"]),  # 576 of them for six channels
        ("d", ["c"]),
        ("g", ["c", "g"]),  # nothing is known of ReduceMean
        ("h", ["c", "g"]),
        ("y", []),  # nothing is left to keep
    )
    names = [t for t, _ in steps]
    expected = values(p.normalised.proto, names, samples_of(p, 70).arrays)
    for cached, memory in ((0, 0), (1 << 40, 0), (0, 1 << 40)):
        monkeypatch.setattr(CACHED, cached)
        with spill.spilling():
            w = walker(p, 70, memory)
            found: list[list[str]] = []
            for tensor in names:
                parts = [v[tensor] for v in w.advance((tensor,))]
                assert_same(np.concatenate(parts), expected[tensor], rtol=RTOL, atol=0.0)
                found.append(list(w.frontier))
        if cached or memory:  # small, or in no file
            assert found == [["a"], ["b"], ["c"], ["c", "d"], ["c", "g"], ["h"], []]
        else:
            assert found == [kept for _, kept in steps]


@pytest.mark.parametrize("memory", MEMORIES)
def test_weights_behind_the_walk_may_change(memory: int, prepared: Lookup) -> None:
    """Fails where a later part runs with the weights that the model had at the start."""
    p = prepared("residual")
    proto = onnx.ModelProto()
    proto.CopyFrom(p.normalised.proto)
    samples = samples_of(p, 70)
    w = Walker(proto, samples, p.normalised.types, p.normalised.shapes, memory)
    w.move_to(("d",))
    changed = {"w3": 2.0 * p.channels.graph.constants["w3"]}
    set_initializers(proto, changed)
    expected = values(replace_initializers(p.normalised.proto, changed), ["s"], samples.arrays)
    found = np.concatenate([v["s"] for v in w.advance(("s",))])
    assert_same(found, expected["s"], rtol=RTOL, atol=0.0)


@pytest.mark.parametrize("memory", MEMORIES)
def test_values_that_are_no_tensors_are_walked_past(memory: int) -> None:
    """Fails where a frontier that cannot be kept, a sequence say, is cut there: what follows it could not be run."""
    p = prepare_text(
        """(float[N,6] x) => (float[N,5] y) {
            a = Gemm (x, w1[6,8], b1[8])
            r = Relu(a)
            t = Tanh(a)
            q = SequenceConstruct(r, t)
            d = SequenceAt(q, zero{:0})
            u = Gemm (d, w2[8,8], b2[8])
            e = SequenceAt(q, one{:1})
            s = Add(u, e)
            y = Gemm (s, w3[8,5], b3[5])
        }"""
    )
    w = walker(p, 70, memory)
    names = ("r", "d", "u", "s", "y")
    expected = values(p.normalised.proto, names, samples_of(p, 70).arrays)
    for n in names:
        assert_same(np.concatenate([v[n] for v in w.advance((n,))]), expected[n], rtol=RTOL, atol=0.0)


def test_one_weight_off_by_a_hundredth_is_seen(prepared: Lookup) -> None:
    """The mutation check: a walk over a model with one channel's weights 1 % off fails the comparison above."""
    p = prepared("residual")
    w3 = p.channels.graph.constants["w3"].copy()
    w3[0] *= 1.01
    samples = samples_of(p, 70)
    wrong = replace_initializers(p.normalised.proto, {"w3": w3})
    w = Walker(wrong, samples, p.normalised.types, p.normalised.shapes, 1 << 40)
    expected = values(p.normalised.proto, ["e"], samples.arrays)["e"]
    with pytest.raises(AssertionError, match="times the bound"):
        assert_same(np.concatenate([v["e"] for v in w.advance(("e",))]), expected, rtol=RTOL, atol=0.0)
