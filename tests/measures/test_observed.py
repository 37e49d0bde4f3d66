"""Which tensors stand for an output, of small graphs whose right answer is known."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune.graph import protobuf
from onnxprune.measures.observed import Observed, observed_in, observed_of_model, observing, tensors_of
from onnxprune.runtime.session import Session

HEAD = """
    h = MatMul (x, w)
    p = Relu (h)
    y = MatMul (p, v)
"""


def parsed(body: str, outputs: str, inputs: str = "float[N,4] x") -> onnx.ModelProto:
    weights = ", ".join(
        f"float[{a},{b}] {n} = {{{', '.join(str(round(0.1 * (i % 7) - 0.2, 2)) for i in range(a * b))}}}"
        for n, a, b in (("w", 4, 6), ("v", 6, 5), ("u", 5, 3))
    )
    text = f'<ir_version: 8, opset_import: ["" : 17]> main ({inputs}) => ({outputs}) <{weights}> {{ {HEAD} {body} }}'
    return onnx.parser.parse_model(text)


def observed(body: str, outputs: str, inputs: str = "float[N,4] x") -> Observed:
    proto = parsed(body, outputs, inputs)
    shapes, types = protobuf.inferred_shapes(proto)
    return observed_in(protobuf.view(proto, shapes, {}, {}), types)


TOPK = "k = Constant <value = int64[1] {2}> () z, i = TopK (y, k)"
TABLE = {
    # body, outputs, what stands for them, those in front of which something was found, those without anything
    "itself": ("", "float[N,5] y", {("y",)}, set(), set()),
    "softmax": ("o = Softmax <axis=1> (y)", "float[N,5] o", {("o",)}, set(), set()),
    "argmax": ("o = ArgMax <axis=1> (y)", "int64[N,1] o", {("y",)}, {"o"}, set()),
    "argmax of softmax": ("s = Softmax <axis=1> (y) o = ArgMax <axis=1> (s)", "int64[N,1] o", {("s",)}, {"o"}, set()),
    "topk": (TOPK, "float[N,2] z, int64[N,2] i", {("y",)}, {"z", "i"}, set()),
    "gathered by topk": (
        TOPK + " b = ReduceMax <axes=[1]> (y) o = GatherElements <axis=1> (y, i)",
        "float[N,2] o",
        {("y",)},
        {"o"},
        set(),
    ),
    "image": (
        "c = Constant <value = float {60.0}> () s = Mul (y, c) r = Round (s) o = Cast <to=2> (r)",
        "uint8[N,5] o",
        {("s",)},
        {"o"},
        set(),
    ),
    "mask": (
        "c = Constant <value = float {0.0}> () g = Greater (y, c) o = Where (g, y, c)",
        "float[N,5] o",
        {("y",)},
        {"o"},
        set(),
    ),
    "nonzero": (
        "c = Constant <value = float {0.0}> () g = Greater (y, c) o = NonZero (g)",
        "int64[2,K] o",
        {("y",)},
        {"o"},
        set(),
    ),
    "random": ("o = Bernoulli (p)", "float[N,6] o", {("p",)}, {"o"}, set()),
    "quantized and back": (
        "s = Constant <value = float {0.1}> () z = Constant <value = int8 {0}> () q = QuantizeLinear (y, s, z) "
        "o = DequantizeLinear (q, s, z)",
        "float[N,5] o",
        {("o",)},
        set(),
        set(),
    ),
    "codes": (
        "s = Constant <value = float {0.1}> () z = Constant <value = int8 {0}> () o = QuantizeLinear (y, s, z)",
        "int8[N,5] o",
        {("y",)},
        {"o"},
        set(),
    ),
    "activation written with Where": (
        "c = Constant <value = float {0.0}> () g = Greater (y, c) r = Where (g, y, c) o = MatMul (r, u)",
        "float[N,3] o",
        {("o",)},
        set(),
        set(),
    ),
    "routed by topk": (
        TOPK + " c = Cast <to=1> (i) s = ReduceSum (c) r = Mul (y, s) o = MatMul (r, u)",
        "float[N,3] o",
        {("o",)},
        set(),
        set(),
    ),
    "joined": ("a = Sigmoid (y) o = Concat <axis=1> (a, p)", "float[N,11] o", {("a", "p")}, set(), set()),
    "joined and moved about": (
        "a = Sigmoid (y) j = Concat <axis=-1> (a, p) e = Constant <value = int64[1] {2}> () t = Unsqueeze (j, e) "
        "o = Transpose <perm=[0,2,1]> (t)",
        "float[N,1,11] o",
        {("a", "p")},
        set(),
        set(),
    ),
    "joined with an input": ("o = Concat <axis=1> (x, y)", "float[N,9] o", {("y",)}, set(), set()),
    "joined along the samples": ("o = Concat <axis=0> (y, y)", "float[M,5] o", {("o",)}, set(), set()),
    "joined and ranked": (
        "a = Sigmoid (y) j = Concat <axis=1> (a, p) k = Constant <value = int64[1] {2}> () z, i = TopK (j, k)",
        "float[N,2] z",
        {("a", "p")},
        {"z"},
        set(),
    ),
    "sum of a joined": (
        "a = Sigmoid (y) j = Concat <axis=1> (a, p) o = Add (j, j)",
        "float[N,11] o",
        {("o",)},
        set(),
        set(),
    ),
    "sizes": ("s = Shape (x) o = Cast <to=1> (s)", "float[2] o", set(), set(), set()),
}


@pytest.mark.parametrize("name", TABLE)
def test_what_stands_for_an_output(name: str):
    """Fails where an output is judged by what jumps, by one tensor that hides another, or by what is no part of it."""
    body, outputs, tensors, ranked, missing = TABLE[name]
    found = observed(body, outputs)
    assert {w.tensors for w in found.wholes} == tensors
    assert found.ranked == ranked
    assert found.missing == missing
    assert (found.still == set(found.outputs)) == (not tensors)
    assert found.plain == (set(found.tensors) <= set(found.outputs))


def test_probabilities_have_no_scales_of_their_own():
    assert [w.columns for w in observed("o = Softmax <axis=1> (y)", "float[N,5] o").wholes] == [False]
    assert [w.columns for w in observed("o = Sigmoid (y)", "float[N,5] o").wholes] == [True]


def test_sizes_by_values_and_choices():
    found = observed(
        "c = Constant <value = float {0.0}> () g = Greater (y, c) o = NonZero (g)", "bool[N,5] g, int64[2,K] o"
    )
    assert found.sized_by_values == {"o"}
    assert found.choices == {"g"}
    assert observed(TOPK, "int64[N,2] i").choices == set()
    assert observed("o = Cast <to=2> (y)", "uint8[N,5] o").choices == set()
    assert observed("o = Bernoulli (p)", "float[N,6] o").random == {"o"}


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("w = Cast <to=7> (g) o = ReduceSum <keepdims=0> (w)", False),
        ("w = Cast <to=7> (g) o = Add (w, w)", False),
        ("w = Cast <to=7> (g) one = Constant <value = int64 {1}> () o = Add (w, one)", True),
        ("w = Cast <to=7> (g) o = Identity (w)", True),
        ("w = Cast <to=7> (g) o = ReduceMax <keepdims=0> (w)", True),
    ],
)
def test_choices_that_are_added_up_make_a_count(text: str, classes: bool):
    """Fails where how many entries of a mask are set is called a class, or a shifted class is not."""
    found = observed(f"c = Constant <value = float {{0.0}}> () g = Greater (y, c) {text}", "int64[K] o")
    assert found.choices == ({"o"} if classes else set())
    assert found.ranked == {"o"}


def test_channels_that_may_go_cannot_be_compared():
    """Fails where a tensor that is narrower in the pruned model is looked at."""
    proto = parsed("o = ArgMax <axis=1> (y)", "int64[N,1] o")
    shapes, types = protobuf.inferred_shapes(proto)
    found = observed_in(protobuf.view(proto, shapes, {}, {}), types, lambda t: t == "y")
    assert (found.tensors, found.missing) == ((), {"o"})


def test_the_model_with_other_outputs_computes_the_same():
    proto = parsed(TOPK, "float[N,2] z")
    x = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    both = Session(observing(proto, ("z", "y"), {})).run(x)
    assert list(proto.graph.output[0].type.tensor_type.shape.dim)[1].dim_value == 2
    assert len(proto.graph.output) == 1
    np.testing.assert_allclose(both["z"], np.sort(both["y"])[:, ::-1][:, :2], rtol=0, atol=0)


def test_another_model_without_the_tensor():
    """Fails where a tensor is asked for that only one of two models has."""
    proto, other = parsed(TOPK, "float[N,2] z, int64[N,2] i"), parsed(TOPK, "float[N,2] z, int64[N,2] i")
    for n in other.graph.node:
        n.input[:] = ["renamed" if i == "y" else i for i in n.input]
        n.output[:] = ["renamed" if o == "y" else o for o in n.output]
    assert "y" not in tensors_of(other)
    assert observed_of_model(proto, proto).tensors == ("y",)
    assert observed_of_model(proto, other).missing == {"z", "i"}
