"""Random inputs: seeded, marked, and such as the model accepts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxprune.data import stand_ins
from onnxprune.data.inputs import InputSpec, tensor_specs
from onnxprune.data.samples import Samples
from onnxprune.data.sources import checked, with_others
from onnxprune.data.stand_ins import random as random_samples
from onnxprune.errors import CalibrationError
from onnxprune.normalise import accepts
from onnxprune.pipeline import inspect, prune
from onnxprune.runtime.session import Session

FLOAT = np.dtype(np.float32)
IMAGE = (InputSpec("image", FLOAT, (None, 3, 4, 4)),)


def parsed(text: str, opset: int = 18) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\nmain {text}')


def test_random_data_fits_the_inputs_and_is_marked() -> None:
    """Fails where random data is not reproducible, not marked as such, or of another type."""
    specs = (*IMAGE, InputSpec("mask", np.dtype(np.bool_), (None, 4)), InputSpec("ids", np.dtype(np.int32), (1, 2)))
    first, again = (random_samples(onnx.ModelProto(), specs, 6, 1, lambda _: True) for _ in range(2))
    assert first.sha256() == again.sha256()
    assert first.synthetic
    assert {k: (v.shape, v.dtype.name) for k, v in first.arrays.items()} == {
        "image": ((6, 3, 4, 4), "float32"),
        "mask": ((6, 4), "bool"),
        "ids": ((6, 2), "int32"),
    }


def test_random_data_tries_sizes_until_one_runs() -> None:
    """Fails where the first size is used although the model refuses it, or no size at all is silently accepted."""
    specs = (InputSpec("image", FLOAT, (None, 3, None, None)),)
    s = random_samples(onnx.ModelProto(), specs, 2, 0, lambda f: f["image"].shape[2] == 32)
    assert s.arrays["image"].shape == (2, 3, 32, 32)
    with pytest.raises(CalibrationError, match="--calib"):
        random_samples(onnx.ModelProto(), specs, 2, 0, lambda _: False)


SIZED = {
    "target": "(float[2,6] x, int64[2] s) => (float[3,4] y) { y = Reshape(x, s) }",
    "target without a size": "(float[2,6] x, int64[3] s) => (float[a,b,c] y) { y = Reshape(x, s) }",
    "scales": "(float[1,1,2,2] x, float[4] s) => (float[1,1,4,6] y) { y = Resize(x, , s) }",
    "sizes": "(float[1,1,2,2] x, int64[4] s) => (float[1,1,4,6] y) { y = Resize(x, , , s) }",
    "parts": "(float[6] x, int64[2] s) => (float[a] y, float[b] z) { y, z = Split(x, s) }",
    "bounds": "(float[6] x, int64[1] s, int64[1] e) => (float[4] y) { y = Slice(x, s, e) }",
    "single axes": "(float[1,6] x, int64[1] s) => (float[6] y) { y = Squeeze(x, s) }",
    "new axes": "(float[6] x, int64[2] s) => (float[1,1,6] y) { y = Unsqueeze(x, s) }",
    "sizes of blocks": "(float[1,5,5] x, int64[2] s, int64[2] b) => (float[1,1,5,5] y) { y = Col2Im(x, s, b) }",
    "steps": "(float[1,128,1] x, int64 step, float[16] w) => (float[1,a,9,2] y) { y = STFT(x, step, w) }",
    "divisor": "(int64[4] x, int64[4] d) => (int64[4] y) { y = Div(x, d) }",
    "indices": "(float[N,5] x, int64[N,3] i) => (float[N,3] y) { y = GatherElements<axis = 1>(x, i) }",
    "coordinates": "(float[3,2] x, int64[8,2] i, float[8] u) => (float[3,2] y) { y = ScatterND(x, i, u) }",
    "rows of a table, behind others": """(int32[N,T] i) => (float[N,T,2] y)
        <float[3,2] t = {1,2,3,4,5,6}, int64 two = {2}> {
            w = Cast<to = 7>(i)
            j = Sub(w, two)
            y = Gather(t, j)
        }""",
    "band": "(float[4,4] x, int64 k) => (float[4,4] y) { y = Trilu(x, k) }",
    "axis": "(float[2,3,4] x, int64[1] a) => (float[2,3,1] y) { y = ReduceSum(x, a) }",
    "axis of a sum": "(float[2,3] x, int64 a) => (float[2,3] y) { y = CumSum(x, a) }",
    "length and axis": "(float[1,8,1] x, int64 n, int64 a) => (float[1,b,2] y) { y = DFT<onesided = 1>(x, n, a) }",
    "turns": """(int64 n, float[2] x) => (float[2] y) {
        t = Constant<value = bool {1}>()
        y = Loop(n, t, x) <body = b (int64 i, bool c, float[2] v) => (bool d, float[2] w) {
            d = Identity(c)
            w = Add(v, v)
        }>
    }""",
    "position": "(seq(float[2]) s, int64 i) => (float[2] y) { y = SequenceAt(s, i) }",
    "bounds of an image, as numbers": """(float[1,1,20,30] x, float[2] e) => (float[1,1,a,b] y)
        <int64[2] s = {0,0}, int64[2] axes = {2,3}> {
            w = Cast<to = 7>(e)
            y = Slice(x, s, w, axes)
        }""",
    "a size within a list": """(float[N,6] x, int64[1] n) => (float[a,b] y) <int64[1] m = {-1}> {
        t = Concat<axis = 0>(m, n)
        y = Reshape(x, t)
    }""",
    "in a branch": """(float[N,4] x, int64[2] i, bool c) => (float[N,2] y) {
        y = If(c) <then_branch = g () => (float[N,2] v) { v = Gather<axis = 1>(x, i) },
                   else_branch = h () => (float[N,2] w) { w = Gather<axis = 1>(x, i) }>
    }""",
}


@pytest.mark.parametrize("text", SIZED.values(), ids=SIZED)
def test_inputs_that_size_things_get_values_that_run(text: str) -> None:
    """Fails where zeros and ones stand in for sizes, with which the operator fails, or kills the process."""
    proto = parsed(text, 20)
    session = Session(proto)
    found = random_samples(proto, tensor_specs(proto), 2, 0, partial(accepts, session))
    assert session.run(found.example())


SIZES: dict[str, tuple[str, dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]] = {
    "channels of an image": ("(float[N,C,H,W] x) => (float[N,5,h,w] y) { y = Conv(x, k) }", {"k": (5, 3, 3, 3)}, {}),
    "columns behind a transposition": (
        "(float[N,A,B] x) => (float[N,B,4] y) { t = Transpose<perm = [0, 2, 1]>(x)\n y = MatMul(t, k) }",
        {"k": (7, 4)},
        {},
    ),
    "a past and what it adds up to": (
        """(float[N,S,4] x, float[N,P,4] past, float[N,M] mask) => (float[N,T,4] y) {
            c = Concat<axis = 1>(past, x)
            m = Unsqueeze(mask, k)
            y = Add(c, m)
        }""",
        {},
        {"k": (2,)},
    ),
    "a sum by its name": (
        """(float[N,S,4] x, float[N,P,4] past, float[N,"S + P",4] m) => (float[N,T,4] y) {
            c = Concat<axis = 1>(past, x)
            y = Add(c, m)
        }""",
        {},
        {},
    ),
    "a height that fits": (
        "(float[N,1,H,W] x) => (float[N,a,W] y) { y = Reshape(x, k) }",
        {},
        {"k": (0, 48, 64)},
    ),
}


def sized(name: str) -> onnx.ModelProto:
    text, weights, lists = SIZES[name]
    proto = parsed(text)
    for k, shape in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), k))
    for k, values in lists.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values), k))
    return proto


@pytest.mark.parametrize("name", SIZES)
def test_free_axes_get_sizes_that_run(name: str) -> None:
    """Fails where all free axes have one size, or a size that a weight contradicts."""
    proto = sized(name)
    session = Session(proto)
    found = random_samples(proto, tensor_specs(proto), 3, 0, partial(accepts, session))
    assert session.run(found.example())
    assert len(found) == 3


def test_sizes_that_weights_demand_need_no_trial() -> None:
    """Fails where sizes are tried although the weights say them."""
    proto = sized("channels of an image")
    tried: list[tuple[int, ...]] = []

    def runs(feeds: Any) -> bool:
        tried.append(feeds["x"].shape)
        return True

    random_samples(proto, tensor_specs(proto), 2, 0, runs)
    assert tried == [(2, 3, 64, 64)]


def test_a_batch_that_runs_at_one_only() -> None:
    """Fails where a state of a fixed size for one sample keeps a model with a free batch from being run at all."""
    proto = parsed(
        "(float[N,T,4] x, float[1,1,4] h) => (float[N,T,4] y) <int64[3] k = {1,-1,4}> {"
        "f = Reshape(x, k)\n y = Add(f, h) }"
    )
    found = random_samples(proto, tensor_specs(proto), 5, 0, lambda f: len(f["x"]) == 1)
    assert len(found) == 5
    assert found.per_run == 1
    assert all(len(b["x"]) == 1 for b in found.batches(4))


def test_an_optional_input_may_be_absent() -> None:
    """Fails where a model that wants no value there is refused."""
    proto = parsed("(optional(float[2]) o, float[N,2] x) => (float[N,2] y) { y = Identity(x) }")
    found = random_samples(proto, tensor_specs(proto), 2, 0, lambda f: f["o"] is None)
    assert found.fixed == {"o": None}


def test_lists_and_numbers_are_no_samples() -> None:
    """Fails where the first axis of a list of sizes counts samples, so that the model runs one at a time."""
    proto = parsed("(float[N,6] x, int64[1] k) => (float[N,1] v, int64[N,1] i) { v, i = TopK(x, k) }")
    found = random_samples(proto, tensor_specs(proto), 8, 0, partial(accepts, Session(proto)))
    assert found.arrays["k"].shape == (1,)
    assert (len(found), found.fixed_batch) == (8, False)


def test_indices_reach_the_whole_axis_and_no_further() -> None:
    """Fails where ids are zeros and ones alone, or beyond the rows of their table."""
    proto = parsed("(int64[N,T] i) => (float[N,T,1] y) <float[5,1] t = {1,2,3,4,5}> { y = Gather(t, i) }")
    found = random_samples(proto, tensor_specs(proto), 8, 0, partial(accepts, Session(proto)))
    assert set(np.unique(found.arrays["i"])) == set(range(5))


def test_the_message_names_what_was_guessed() -> None:
    """Fails where a refusal does not say which inputs need data, and why onnxruntime refused the last try."""
    proto = parsed("(float[N,4] x, int64[7] sizes, float[3] w) => (float[N,4] y) { y = Identity(x) }")
    with pytest.raises(CalibrationError, match=r"\(guessed: the input 'sizes'\): give real data"):
        random_samples(proto, tensor_specs(proto), 2, 0, lambda _: False)


@pytest.mark.parametrize("text", ["int64[64] y) { y = Div(x, d) }", "int64[64] y) { y = Mod(x, d) }"])
def test_no_zero_is_tried_as_a_divisor_of_integers(text: str) -> None:
    """Fails where a trial could kill the process, as a division by zero does in some releases of onnxruntime."""
    proto = parsed("(int64[64] x, int64[64] d) => (" + text)
    tried: list[int] = []

    def runs(feeds: Any) -> bool:
        tried.append(int(np.abs(feeds["d"]).min()))
        return True

    random_samples(proto, tensor_specs(proto), 2, 0, runs)
    assert tried == [1]


def test_a_divisor_that_is_no_integer_is_noise() -> None:
    proto = parsed("(float[64] x, float[64] d) => (float[64] y) { y = Div(x, d) }")
    found = random_samples(proto, tensor_specs(proto), 2, 0, lambda _: True)
    assert found.arrays["d"].std() > 0.5


def test_a_model_that_no_random_value_fits_is_refused_by_name() -> None:
    """Fails where data that the model refuses is handed out although an input is an integer."""
    proto = parsed("(float[4] x, int64[2] i) => (float[2] y) { y = Gather(x, i) }")
    tried: list[int] = []

    def runs(feeds: Any) -> bool:
        tried.append(int(feeds["i"].sum()))
        return False

    with pytest.raises(CalibrationError, match="--calib"):
        random_samples(proto, tensor_specs(proto), 2, 0, runs)
    assert set(tried) >= {0, 2}


def test_impossible_sizes_are_not_drawn() -> None:
    """Fails where memory is asked for before the sizes are looked at."""
    specs = (InputSpec("image", FLOAT, (None, 1 << 40)),)
    with pytest.raises(CalibrationError, match="--calib"):
        random_samples(onnx.ModelProto(), specs, 2, 0, lambda _: True)


SEQUENCE = """(seq(float[4]) s, float[N,4] x) => (float[N,2] y) {
  i = Constant<value = int64 {0}>()
  e = SequenceAt(s, i)
  a = Add(x, e)
  w = Constant<value = float[4,3] {1,2,3,4,5,6,7,8,9,10,11,12}>()
  v = Constant<value = float[3,2] {1,2,3,4,5,6}>()
  h = MatMul(a, w)
  y = MatMul(h, v)
}"""


def test_sequences_are_fed(tmp_path: Path) -> None:
    """Fails where a model with a sequence among its inputs cannot be pruned, with random data or with real data."""
    proto = parsed(SEQUENCE)
    assert len(inspect(proto).groups) == 1
    data = {"x": np.ones((3, 4), np.float32), "s[0]": np.full(4, 2, np.float32), "s[1]": np.zeros(4, np.float32)}
    for given in (None, data):
        result = prune(proto, tmp_path / f"{given is None}.onnx", given, uniform=0.34, round_to=1, fast=True)
        assert result.model is not None
        assert result.report.checks["slice_against_oracle"] < 1e-6


def test_entries_of_a_sequence_come_from_the_data() -> None:
    """Fails where a sequence that the data does not hold is made up, or an empty one cannot be given."""
    proto = parsed(SEQUENCE)
    whole = checked({"x": np.ones((3, 4), np.float32), "s[0]": np.ones(4, np.float32)}, tensor_specs(proto))
    found = with_others(whole, proto)
    assert [v.tolist() for v in found.fixed["s"]] == [[1.0] * 4]
    assert not found.extras
    assert set(found.slice(1, 2)) == {"s", "x"}
    assert found.sha256() != Samples(found.specs, found.arrays).sha256()
    with pytest.raises(CalibrationError, match=r"store its entries as 's\[0\]'"):
        with_others(Samples(whole.specs, whole.arrays), proto)
    empty = with_others(Samples(whole.specs, whole.arrays, {"s": np.zeros(0)}), proto)
    assert empty.fixed["s"] == []


def test_an_axis_that_a_sequence_has_too_counts_no_samples() -> None:
    """Fails where samples are cut from an input that the entries of a sequence have to fit."""
    proto = parsed("(seq(float[N]) s, float[N] x, float[M] z) => (float[N] y) { y = Identity(x) }")
    assert [s.batched for s in tensor_specs(proto)] == [False, True]


def test_strings_are_read(tmp_path: Path) -> None:
    """Fails where strings, which files hold at a fixed width, are refused as another type."""
    proto = parsed("(string[2] x) => (string[2] y) { y = Identity(x) }")
    found = checked({"x": np.array(["a", "bc"])}, tensor_specs(proto))
    assert Session(proto).run(found.example())["y"].tolist() == ["a", "bc"]
    random = stand_ins.random(proto, tensor_specs(proto), 1, 0, lambda f: bool(Session(proto).run(f)))
    assert all(isinstance(v, str) for v in random.arrays["x"])


def test_sizes_of_zero_are_kept() -> None:
    """Fails where an input that is declared empty cannot be given; no samples at all still are none."""
    specs = (InputSpec("x", FLOAT, (2, 0)),)
    assert checked({"x": np.zeros((2, 0), np.float32)}, specs).arrays["x"].shape == (2, 0)
    with pytest.raises(CalibrationError, match="is empty"):
        checked({"x": np.zeros((0, 3), np.float32)}, (InputSpec("x", FLOAT, (None, 3)),))


GRAPH = """(float[V,3] x, int64[2,E] pairs, float[E] w) => (float[V,4] y) <int64 zero = {0}, int64 one = {1}> {
    a = Gather(pairs, zero)
    b = Gather(pairs, one)
    h = MatMul(x, k)
    m = Gather(h, a)
    l = Constant<value = int64[1] {1}>()
    u = Unsqueeze(w, l)
    v = Mul(m, u)
    t = Unsqueeze(b, l)
    y = ScatterND<reduction = "add">(h, t, v)
}"""


def test_nodes_and_edges_are_no_samples() -> None:
    """Fails where rows of a graph are taken for samples, edges for as many as nodes, or edges reach no node."""
    proto = parsed(GRAPH)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((3, 4), np.float32), "k"))
    found = random_samples(proto, tensor_specs(proto), 6, 0, partial(accepts, Session(proto)))
    assert len(found) == 6
    feeds = found.slice(2, 3)
    nodes, edges = len(feeds["x"]), len(feeds["w"])
    assert nodes != edges
    assert feeds["pairs"].shape == (2, edges)
    assert 1 < feeds["pairs"].max() < nodes
    assert not np.array_equal(feeds["x"], found.slice(3, 4)["x"])


def test_each_batch_may_have_a_name_of_its_own() -> None:
    """Fails where names that an exporter made up for one and the same batch count different things."""
    proto = parsed("(float[first,3] x, float[second,3] w) => (float[third,3] y) { y = Add(x, w) }")
    found = random_samples(proto, tensor_specs(proto), 6, 0, partial(accepts, Session(proto)))
    assert (len(found), found.fixed_batch) == (6, False)


def test_a_mask_of_ones_leaves_ids_as_they_are_read() -> None:
    """Fails where a model that takes no padding is shown one and the same token throughout."""
    proto = parsed("""(int64[N,L] ids, int64[N,L] mask) => (float[N,L,4] y, int64[N,L] z) {
        y = Gather(table, ids)
        z = Identity(mask)
    }""")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((50, 4), np.float32), "table"))
    found = random_samples(proto, tensor_specs(proto), 6, 0, lambda feeds: bool(feeds["mask"].all()))
    assert (np.asarray(found.arrays["mask"][:]) == 1).all()
    assert len(np.unique(np.asarray(found.arrays["ids"][:]))) > 5
