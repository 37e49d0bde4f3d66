"""The checks find what they are there for: every one with a model that is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.data.inputs import input_specs
from onnxprune.data.sources import checked
from onnxprune.errors import CheckFailed
from onnxprune.runtime import outputs
from onnxprune.surgery import replace_initializers
from onnxprune.verification import checks
from tests import digits
from tests.graphs import TABLE
from tests.prepared import Prepared, masked, prepare, random_keep, sliced
from tests.topologies.sizes import THERE_AND_BACK
from tests.topologies.text import Topology

Lookup = Callable[[str], Prepared]


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


@pytest.mark.parametrize("row", ["plain", "residual"])
def test_exactness_of_a_true_slice(prepared: Lookup, row: str):
    p = prepared(row)
    keep = random_keep(p.channels, 0)
    found = checks.exactness(p.original, p.normalised.proto, sliced(p, keep), masked(p, keep), p.example)
    assert found.normalised <= 1e-6
    assert found.slice <= 1e-6
    assert found.tolerance == checks.TOLERANCE


def test_one_percent_of_any_weight_is_found(prepared: Lookup):
    """The mutation check: 1 % of one entry of any one matrix, the largest, is beyond the tolerance."""
    p = prepared("plain")
    keep = random_keep(p.channels, 0)
    cut, oracle = sliced(p, keep), masked(p, keep)
    kernels = [t.name for t in cut.graph.initializer if len(t.dims) > 1]
    assert len(kernels) == 3
    for name in kernels:
        w = digits.values(cut, name).copy()
        w.flat[np.abs(w).argmax()] *= 1.01
        with pytest.raises(CheckFailed, match="the sliced model differs from the masked original"):
            checks.exactness(p.original, p.normalised.proto, replace_initializers(cut, {name: w}), oracle, p.example)


def _in_half(*numbers: float) -> onnx.ModelProto:
    """Rows of a table in half precision, picked by ids, to which numbers are added one after the other, and rounded."""
    table = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float16)
    stored = [onnx.numpy_helper.from_array(table, "table")]
    nodes = [onnx.helper.make_node("Gather", ["table", "ids"], ["rounded0"])]
    for k, number in enumerate(numbers):
        stored.append(onnx.numpy_helper.from_array(np.array(number, np.float32), f"number{k}"))
        nodes += [
            onnx.helper.make_node("Cast", [f"rounded{k}"], [f"x{k}"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Add", [f"x{k}", f"number{k}"], [f"sum{k}"]),
            onnx.helper.make_node("Cast", [f"sum{k}"], [f"rounded{k + 1}"], to=onnx.TensorProto.FLOAT16),
        ]
    nodes.append(onnx.helper.make_node("Identity", [f"rounded{len(numbers)}"], ["y"]))
    ids = onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n"])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, ["n", 8])
    graph = onnx.helper.make_graph(nodes, "half", [ids], [y], stored)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10)


def test_what_half_precision_takes_from_the_original_is_no_fault_of_the_normal_form():
    """Fails where rounding is taken for a wrong model: ids have no noise that could show it. Rows + 256 - 256
    lose 2 ** -3 at most in half precision, 4 % of the largest, and nothing in single."""
    sizes = [{"ids": np.arange(n)} for n in (16, 5)]
    difference, count = checks.normal_form(_in_half(256.0, -256.0), _in_half(), sizes)
    assert count == 2
    assert checks.HALF_TOLERANCE < difference < 0.1


@pytest.mark.parametrize(
    ("original", "normal"),
    [
        # Another number by a thousandth of the largest: less than rounding takes.
        ((256.0, -256.0), (0.003,)),
        # The normal form loses what the original does not; or more than it.
        ((), (256.0, -256.0)),
        ((256.0, -256.0), (2048.0, -2048.0)),
    ],
)
def test_half_precision_hides_no_other_difference(original: tuple[float, ...], normal: tuple[float, ...]):
    with pytest.raises(CheckFailed, match="the normalised model differs from the original"):
        checks.normal_form(_in_half(*original), _in_half(*normal), [{"ids": np.arange(16)}])


def test_a_changed_normalised_model_is_found(prepared: Lookup):
    p = prepared("plain")
    name = next(t.name for t in p.normalised.proto.graph.initializer if len(t.dims) > 1)
    other = replace_initializers(p.normalised.proto, {name: 1.01 * digits.values(p.normalised.proto, name)})
    keep = random_keep(p.channels, 0)
    with pytest.raises(CheckFailed, match="the normalised model differs from the original"):
        checks.exactness(p.original, other, sliced(p, keep), masked(p, keep), p.example)


def test_structure_refuses_an_invalid_model(prepared: Lookup):
    broken = _copy(prepared("plain").original)
    checks.structure(broken)
    broken.graph.node[-1].input[0] = "nobody"
    with pytest.raises(CheckFailed, match="not valid ONNX"):
        checks.structure(broken)


def test_structure_refuses_wrong_shapes(prepared: Lookup):
    """Fails where strict shape inference is not run."""
    broken = _copy(prepared("plain").original)
    broken.graph.output[0].type.tensor_type.shape.dim[1].dim_value += 1
    with pytest.raises(CheckFailed, match="not valid ONNX"):
        checks.structure(broken)


def test_sizes(prepared: Lookup):
    p = prepared("plain")
    assert checks.runs_at_other_sizes(p.original, p.original, p.example, checks.other_sizes(p.original, p.example)) >= 2


def test_a_fixed_batch_is_found():
    """Fails where a rewrite that baked the example's batch in would pass."""
    original = onnx.load(digits.path("resnet"))
    fixed = _copy(original)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    feeds = {"input": np.load(digits.CALIB)["input"][:2]}
    with pytest.raises(CheckFailed, match="does not run at another input size"):
        checks.runs_at_other_sizes(fixed, original, feeds, checks.other_sizes(original, feeds))


def test_another_output_shape_is_found():
    def model(keepdims: int) -> onnx.ModelProto:
        text = f"""<ir_version: 8, opset_import: ["" : 13]>
        main (float[N,3] x) => (float[M] y) {{ a = ReduceMax <axes=[1], keepdims={keepdims}> (x)  y = Relu (a) }}"""
        proto = onnx.parser.parse_model(text)
        proto.graph.output[0].type.tensor_type.ClearField("shape")
        return proto

    with pytest.raises(CheckFailed, match="output 'y' has shape"):
        checks.runs_at_other_sizes(model(1), model(0), {"x": np.ones((2, 3), np.float32)}, ())


def test_finite():
    good, bad = {"y": np.ones(3, np.float32)}, {"y": np.array([1.0, np.nan, 1.0], np.float32)}
    checks.finite(good, good)
    checks.finite(bad, bad)  # the original does the same
    with pytest.raises(CheckFailed, match="not finite"):
        checks.finite(bad, good)


def test_a_model_that_does_not_run_is_found(prepared: Lookup):
    p = prepared("plain")
    broken = _copy(p.original)
    broken.graph.node[0].op_type = "NoSuchOperator"
    samples = checked(p.example, input_specs(p.original))
    with pytest.raises(CheckFailed, match="does not run"):
        outputs.runs_on(broken, samples)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.1], [1.0, 2.0], 0.05),
        ([1.0], [1.0, 2.0], np.inf),
        ([np.nan, 2.0], [1.0, 2.0], np.inf),
        ([np.nan, 2.0], [np.nan, 2.0], 0.0),
        ([np.inf, 2.0], [-np.inf, 2.0], np.inf),
    ],
)
def test_largest_difference(a: list[float], b: list[float], expected: float):
    found = checks.largest_difference({"y": np.array(a)}, {"y": np.array(b)})
    assert found == pytest.approx(expected, rel=1e-12, abs=0.0)


def test_outputs_of_all_samples_in_order(monkeypatch: pytest.MonkeyPatch):
    original = onnx.load(digits.path("resnet"))
    arrays = {"input": np.load(digits.CALIB)["input"][:40]}
    samples = checked(arrays, input_specs(original))
    monkeypatch.setattr("onnxprune.runtime.outputs._BATCHES", (40, 40))
    whole = outputs.outputs_of(original, samples)["logits"]
    monkeypatch.setattr("onnxprune.runtime.outputs._BATCHES", (7, 7))
    parts = outputs.outputs_of(original, samples)["logits"]
    assert whole.shape == (40, 10)
    assert np.abs(whole - parts).max() <= 1e-4 * np.abs(whole).max()


def test_truth_values_and_texts_are_compared():
    """Fails where an output that is no number passes whatever it holds."""
    for a, b in ((np.array([True, False]), np.array([True, True])), (np.array(["a", "b"]), np.array(["a", "c"]))):
        assert checks.largest_difference({"y": a}, {"y": a}) == 0.0
        assert checks.largest_difference({"y": a}, {"y": b}) >= 1.0


def test_sequences_and_optional_values_are_compared():
    """Fails where an output that is no tensor passes whatever it holds."""
    x = np.arange(3.0)
    assert checks.largest_difference({"s": [x, x], "o": None}, {"s": [x, x], "o": None}) == 0.0
    assert checks.largest_difference({"s": [x, x + 1]}, {"s": [x, x]}) == pytest.approx(0.5)
    assert checks.largest_difference({"s": [x]}, {"s": [x, x]}) == float("inf")
    assert checks.largest_difference({"o": None}, {"o": x}) == float("inf")
    assert checks.largest_difference({"o": x}, {"o": None}) == float("inf")


# sizes of the inputs


def _frozen(proto: onnx.ModelProto, tensor: str, value: list[int]) -> onnx.ModelProto:
    """The model with an integer vector, stored or computed, as it was at the sizes of the calibration data."""
    broken = _copy(proto)
    stored = onnx.numpy_helper.from_array(np.array(value), f"{tensor}_frozen")
    for n in broken.graph.node:
        n.input[:] = [stored.name if i == tensor else i for i in n.input]
    broken.graph.initializer.append(stored)
    return broken


@pytest.mark.parametrize(
    ("row", "input_of", "slot", "value"),
    [
        (TABLE["slice_behind_resize"], "Slice", 2, [8, 8]),  # a Slice "to the end"
        (TABLE["matmul_batch"], "Reshape", 1, [0, 5, 3, 4]),  # an entry of Reshape that was -1
        (THERE_AND_BACK, "Resize", 3, [2, 8, 4, 4]),  # the size between two Resizes
    ],
    ids=["slice", "reshape", "resize"],
)
def test_a_size_of_the_calibration_data_is_found(row: Topology, input_of: str, slot: int, value: list[int]):
    """The mutation check: a measured size in the cut graph changes nothing at the sizes that were measured."""
    p = prepare(row.model(), row.feeds(2), row.attention)
    keep = np.ones(p.channels.classes.pinned.size, bool)
    good, oracle = sliced(p, keep), masked(p, keep)
    others = checks.other_sizes(p.original, p.example)
    tensor = next(n.input[slot] for n in good.graph.node if n.op_type == input_of)
    broken = _frozen(good, tensor, value)
    both = (p.original, p.normalised.proto)
    assert checks.exactness(*both, good, oracle, p.example, others).sizes == 1 + len(others)
    checks.exactness(*both, broken, oracle, p.example)
    with pytest.raises(CheckFailed, match=r"the sliced model (differs|does not run)"):
        checks.exactness(*both, broken, oracle, p.example, others)
    with pytest.raises(CheckFailed, match=r"the normalised model (differs|does not run)"):
        checks.exactness(p.original, broken, good, oracle, p.example, others)
    with pytest.raises(CheckFailed, match=r"the finished slice (differs|does not run)"):
        checks.exactness(*both, good, oracle, p.example, others, finished=broken)


def test_sizes_that_are_compared():
    """Fails where a dimension never changes alone, all change alike, none is odd, or the batch is never 1."""
    row = TABLE["slice_behind_resize"]
    found = [v["x"].shape for v in checks.other_sizes(row.model(), row.feeds(2))]
    alone = [(3, 3, 8, 8), (2, 3, 16, 8), (2, 3, 8, 16)]
    assert found == [*alone, (1, 3, 9, 11), (2, 3, 1, 1), (3, 3, 17, 19), (1, 3, 8, 8)]
    large = {"a": (2, 8, 8 << 11, 8 << 10)}
    found = [v["x"].shape for v in checks.other_sizes(row.model(), row.feeds(2), large)]
    assert found == [(2, 3, 4, 8), (2, 3, 8, 4), (1, 3, 9, 11), (2, 3, 1, 1), (1, 3, 8, 8)]
    assert checks.other_sizes(TABLE["plain"].model(), TABLE["plain"].feeds(2))[0]["x"].shape[1:] == (3, 8, 8)


def test_many_dimensions():
    """Fails where a model with a cache of every layer is run once for each dimension of each."""
    inputs = ", ".join(f"float[N,L{k},2] x{k}" for k in range(30))
    rows = "\n".join(f"m{k} = ReduceMax <keepdims=0> (x{k}, one{{1}})" for k in range(30))
    total = ", ".join(f"m{k}" for k in range(30))
    proto = Topology(f"({inputs}) => (float[N,2] y) {{ {rows}\n y = Sum({total}) }}", ()).model()
    example = {f"x{k}": np.ones((2, 5, 2), np.float32) for k in range(30)}
    found = checks.other_sizes(proto, example)
    assert len(found) == 12
    assert len({v[f"x{k}"].shape for v in found[8:11] for k in range(30)}) == 61


def test_a_model_that_takes_even_sizes_only():
    """Fails where a size that the original refuses ends the search for one that it takes."""
    row = Topology("(float[N,4,H,W] x) => (float[N,16,H2,W2] y) { y = SpaceToDepth <blocksize=2> (x) }", ())
    found = [v["x"].shape for v in checks.other_sizes(row.model(), row.feeds(2))]
    assert found == [(3, 4, 8, 8), (2, 4, 16, 8), (2, 4, 8, 16), (1, 4, 16, 16), (1, 4, 8, 8)]


def test_rounding_that_decides_is_told_from_an_error():
    """Fails where a value on the edge of a comparison fails a right model, or a wrong threshold passes for one."""

    def sign(threshold: float) -> onnx.ModelProto:
        row = Topology(f"(float[N,3] x) => (float[N,3] y) {{ d = Sub(x, c{{.,{threshold!r}}})  y = Sign(d) }}", ())
        return row.model()

    good, near, wrong = sign(0.5), sign(0.5000001), sign(0.6)
    example = {"x": np.array([[0.1, 0.9, 0.2]], np.float32)}
    edge = {"x": np.array([[0.1, 0.50000006, 0.9], [0.0, 1.0, 0.3]], np.float32)}
    between = {"x": np.array([[0.1, 0.55, 0.9]] * 3, np.float32)}
    assert checks.exactness(good, good, near, good, example, [edge]).sizes == 2
    with pytest.raises(CheckFailed, match=r"the sliced model differs from the masked original .* x 3x3"):
        checks.exactness(good, good, wrong, good, example, [between])


def test_outputs_that_turn_on_rounding_are_not_called_an_error():
    """Fails where the slice of a model whose outputs are made of rounding is said to be wrong, or passes for right."""

    def wave(factor: float) -> onnx.ModelProto:
        return Topology(f"(float[N,3] x) => (float[N,3] y) {{ m = Mul(x, f{{:{factor!r}}})  y = Sin(m) }}", ()).model()

    wild, near = wave(1e7), wave(1.000001e7)
    with pytest.raises(CheckFailed, match=r"turn on rounding .* whether the sliced model is right cannot be checked"):
        checks.exactness(wild, wild, near, wild, {"x": np.array([[0.1, 0.7, 0.9]], np.float32)})


def test_random_numbers_are_told_from_an_error():
    """Fails where a model that draws numbers without a seed is said to be cut wrongly."""
    row = Topology("(float[N,3] x) => (float[N,3] y) { r = RandomNormalLike(x)  y = Add(x, r) }", ())
    # The place of a node in the graph is what its numbers start from.
    text = "(float[N,3] x) => (float[N,3] y) { n = Neg(x)  p = Neg(n)  r = RandomNormalLike(p)  y = Add(p, r) }"
    moved = Topology(text, ())
    with pytest.raises(CheckFailed, match="computes something else at every run"):
        checks.exactness(row.model(), moved.model(), row.model(), row.model(), row.feeds(2))


def test_values_that_are_infinite_at_another_size():
    """Fails where only shapes are looked at beyond the size of the calibration data."""
    text = """(float[N,L,3] x) => (float[N,L,3] y) {{
        s = Shape(x)  l = Gather(s, one{{1}})  f = Cast <to=1> (l)
        d = Sub(c{{.,{most}}}, f)  r = Sqrt(d)  y = Mul(x, r)
    }}"""
    fine, broken = (Topology(text.format(most=most), ()).model() for most in (1e6, 6.0))
    feeds = {"x": np.ones((2, 5, 3), np.float32)}
    others = checks.other_sizes(fine, feeds)
    assert checks.runs_at_other_sizes(fine, fine, feeds, others) == 1 + len(others)
    with pytest.raises(CheckFailed, match="'y' of the pruned model is not finite with inputs of x 2x10x3"):
        checks.runs_at_other_sizes(broken, fine, feeds, others)


def test_sizes_that_values_decide_are_not_compared():
    """Fails where a fitted detector that finds one thing more is refused for it, or any other size goes unseen."""

    def found(threshold: float) -> onnx.ModelProto:
        text = f"""(float[N] x) => (int64[1,M] y, float[N] z) {{
            b = Greater(x, t{{.,{threshold}}})  y = NonZero(b)  z = Relu(x)
        }}"""
        return Topology(text, ()).model()

    feeds = {"x": np.array([0.1, 0.5, 0.9], np.float32)}
    assert checks.runs_at_other_sizes(found(0.3), found(0.7), feeds, ()) == 1
