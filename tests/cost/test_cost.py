"""Costs, against counting on the model that was actually cut."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune import cost
from onnxprune.channels import branches
from onnxprune.cost import Cost, Length, Term
from onnxprune.graph import bodies, protobuf
from onnxprune.normalise import body_values
from onnxprune.runtime.session import Session
from onnxprune.surgery import drop_zero_biases
from tests.calibrated import prepare_text
from tests.compare import assert_same
from tests.graphs import PRUNABLE, TABLE
from tests.prepared import Keep, Prepared, random_keep, sliced

Lookup = Callable[[str], Prepared]
# Counts are whole numbers in float64.
RTOL = 1e-12

GRAPHS = {
    # A grouped convolution whose inputs and outputs are one stream: the channels per group shrink.
    "grouped_residual": """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
        a = Conv (x, w1[12,3,1,1], b1[12])
        c = Conv <group=2, pads=[1,1,1,1]> (a, w2[12,6,3,3], b2[12])
        s = Add(a, c)
        r = Relu(s)
        y = Conv (r, w3[5,12,1,1])
    }""",
    # The same with many small groups: whole groups go.
    "many_groups_residual": """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
        a = Conv (x, w1[12,3,1,1], b1[12])
        c = Conv <group=6, pads=[1,1,1,1]> (a, w2[12,2,3,3], b2[12])
        s = Add(a, c)
        r = Relu(s)
        y = Conv (r, w3[5,12,1,1])
    }""",
    "transposed_grouped_residual": """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
        a = Conv (x, w1[12,3,1,1], b1[12])
        c = ConvTranspose <group=2> (a, w2[12,6,1,1], b2[12])
        s = Add(a, c)
        r = Relu(s)
        y = Conv (r, w3[5,12,1,1])
    }""",
    # A product along positions: every channel is one row of it.
    "mixer": """(float[N,3,4,4] x) => (float[N,5,6] y) {
        a = Conv (x, w1[8,3,1,1], b1[8])
        t = Reshape(a, to{0,8,16})
        u = MatMul(t, w2[16,6])
        r = Relu(u)
        tt = Transpose <perm=[0,2,1]> (r)
        v = MatMul(tt, w3[8,5])
        y = Transpose <perm=[0,2,1]> (v)
    }""",
    # Two activations, the contracted axis first in both.
    "gram": """(float[6,7] x) => (float[5,5] y) {
        a = MatMul(x, w1[7,8])
        b = MatMul(x, w2[7,9])
        g = Gemm <transA=1> (a, b)
        h = MatMul(w4[5,8], g)
        y = MatMul(h, w5[9,5])
    }""",
    "shared_stream": """(float[N,3,8,8] x) => (float[N,5,8,8] y, float[N,4] z) {
        a = Conv (x, w1[8,3,1,1], b1[8])
        c = Conv <pads=[1,1,1,1]> (a, w2[8,8,3,3])
        s = Add(a, c)
        d = Conv <group=8, pads=[1,1,1,1]> (s, w3[8,1,3,3])
        t = Concat <axis=1> (s, d)
        y = Conv (t, w4[5,16,1,1])
        f = Flatten(s)
        z = Gemm (f, w5[512,4], b5[4])
    }""",
}


def case(name: str, prepared: Lookup) -> Prepared:
    return prepared(name) if name in TABLE else prepare_text(GRAPHS[name])


def counts(p: Prepared, keep: Keep) -> list[int]:
    return [int(keep[g.units].sum()) for g in p.channels.groups]


def counted_einsum(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> float:
    """The combinations of all indices of two operands, the axes of an ellipsis among them.

    Of more the product of the first two is the first of the rest, with the indices that these or the output have.
    """
    terms = onnx.helper.get_node_attr_value(node, "equation").decode().replace(" ", "")
    terms, output = terms.split("->")[0].split(","), terms.partition("->")[2]
    sizes: dict[str, int] = {}
    for name, term in zip(node.input, terms, strict=True):
        shape, letters = shapes[name], term.replace("...", "")
        dots = len(shape) - len(letters)
        at = term.index("...") if "..." in term else 0
        indices = [*term[:at], *(f"{i}" for i in range(dots, 0, -1)), *term[at:].replace("...", "")]
        for index, size in zip(indices, shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))
    if len(terms) <= 2:
        return float(np.prod(list(sizes.values()), dtype=float)) if len(terms) == 2 else 0.0
    assert "..." not in "".join(terms)
    count, first = 0.0, terms[0]
    for k, second in enumerate(terms[1:], 1):
        every = set(first + second)
        count += float(np.prod([sizes[i] for i in every], dtype=float))
        first = "".join(i for i in every if i in output or any(i in later for later in terms[k + 1 :]))
    return count


def counted_macs(proto: onnx.ModelProto, p: Prepared) -> float:
    """Multiply-accumulates by the shapes that a run of the model has."""
    names = [n for node in proto.graph.node for n in (*node.input[:7], node.output[0]) if n]
    shapes = {t.name: tuple(t.dims) for t in proto.graph.initializer} | {k: v.shape for k, v in p.example.items()}
    computed = [n for n in dict.fromkeys(names) if n not in shapes]
    run = Session(protobuf.submodel(proto, {}, computed), optimize=False).run(p.example)
    shapes |= {k: np.shape(v) for k, v in run.items() if isinstance(v, np.ndarray)}
    body_values.add_shapes_of_bodies(proto, p.example, shapes, {})
    count = 0.0
    for node in bodies.every_node(proto.graph):
        if node.op_type in ("Conv", "DeformConv", "CausalConvWithState"):
            count += np.prod(shapes[node.output[0]], dtype=float) * np.prod(shapes[node.input[1]][1:], dtype=float)
        elif node.op_type == "ConvTranspose":
            count += np.prod(shapes[node.input[0]], dtype=float) * np.prod(shapes[node.input[1]][1:], dtype=float)
        elif node.op_type == "Einsum":
            count += counted_einsum(node, shapes)
        elif node.op_type in ("MatMul", "Gemm", "MatMulInteger"):
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            depth = shapes[node.input[0]][0 if transposed else -1]
            count += np.prod(shapes[node.output[0]], dtype=float) * depth
        elif node.op_type in ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"):
            # Every entry of both matrices is used once for each step of each sequence.
            steps = np.prod(shapes[node.input[0]][:2], dtype=float)
            count += steps * sum(np.prod(shapes[i], dtype=float) for i in node.input[1:3])
        elif node.op_type in ("GroupQueryAttention", "MultiHeadAttention", "DecoderMaskedMultiHeadAttention"):
            # The same; queries are as wide as what comes out where they are packed with keys and values.
            past = {"GroupQueryAttention": 3, "MultiHeadAttention": 6}.get(node.op_type, 5)
            out, stored = shapes[node.output[0]], [*node.input[past : past + 1], ""][0]
            query = out if node.op_type == "GroupQueryAttention" else shapes[node.input[0]]
            keys = (shapes[node.input[1]][-2] if node.input[1] else out[1]) + (shapes[stored][2] if stored else 0)
            count += keys * (np.prod(query, dtype=float) + np.prod(out, dtype=float))
        elif node.op_type == "LinearAttention":
            # Every entry of a query reads a row of the state, every one of a key writes one, and corrects it first.
            heads = next(a.i for a in node.attribute if a.name == "kv_num_heads")
            rule = next((a.s for a in node.attribute if a.name == "update_rule"), b"gated_delta")
            entries = sum(
                np.prod(shapes[node.input[i]], dtype=float) for i in (0, 1, *((1,) if b"delta" in rule else ()))
            )
            count += entries * shapes[node.input[2]][-1] / heads
        elif node.op_type == "Attention":
            # Every entry of the queries meets every key, every entry of the result every value.
            keys = shapes[node.input[1]][-2]
            count += keys * sum(np.prod(shapes[n], dtype=float) for n in (node.input[0], node.output[0]))
    return count


@pytest.mark.parametrize("name", [*PRUNABLE, *GRAPHS])
def test_macs_are_those_of_the_cut_model(name: str, prepared: Lookup) -> None:
    """Fails where an axis that shrinks is taken for a fixed one, or a group is counted at the wrong width."""
    p = case(name, prepared)
    macs = cost.macs(p.channels)
    full = [g.size for g in p.channels.groups]
    assert full
    assert_same(np.float64(macs.at(full)), np.float64(counted_macs(p.normalised.proto, p)), rtol=RTOL, atol=0.0)
    for seed in range(3):
        keep = random_keep(p.channels, seed)
        expected = counted_macs(sliced(p, keep), p)
        assert_same(np.float64(macs.at(counts(p, keep))), np.float64(expected), rtol=RTOL, atol=0.0)


@pytest.mark.parametrize("name", [*PRUNABLE, *GRAPHS])
def test_parameters_are_those_of_the_cut_model(name: str, prepared: Lookup) -> None:
    """Fails where a weight is forgotten or an index tensor counted; added zero biases count until they are dropped."""
    p = case(name, prepared)
    parameters = cost.parameters(p.channels)
    full = parameters.at([g.size for g in p.channels.groups])
    assert full == stored_elements(p.normalised.proto)
    for seed in range(3):
        keep = random_keep(p.channels, seed)
        small = sliced(p, keep)
        found = parameters.at(counts(p, keep))
        assert found == stored_elements(small)
        assert full - found == protobuf.parameters(p.normalised.proto) - protobuf.parameters(small)
        added = sum(int(np.prod(t.dims)) for t in small.graph.initializer if t.name in p.normalised.added_biases)
        drop_zero_biases(small, p.normalised.added_biases)
        assert found == stored_elements(small) + added


@pytest.mark.parametrize("name", ["bottleneck", "inverted_residual", "squeeze_excite", "transformer"])
def test_a_branch_that_is_gone_costs_nothing(name: str, prepared: Lookup) -> None:
    """Fails where what only fed it is still counted, or what others read is not."""
    p = prepared(name)
    drops = branches.drops(p.channels)
    macs, parameters = cost.macs(p.channels, drops), cost.parameters(p.channels, drops)
    for g in drops:
        keep = random_keep(p.channels, 1)
        keep[p.channels.groups[g].units] = False
        small = sliced(p, keep)
        names = {o for n in small.graph.node for o in n.output}
        zeros = sum(int(np.prod(t.dims)) for t in small.graph.initializer if t.name.endswith("__zeros"))
        kept = counts(p, keep)
        assert names
        assert_same(np.float64(macs.at(kept)), np.float64(counted_macs(small, p)), rtol=RTOL, atol=0.0)
        assert parameters.at(kept) == stored_elements(small) - zeros
        whole = kept.copy()
        whole[g] = p.channels.groups[g].size
        assert macs.saving(whole, g, int(whole[g])) == macs.at(whole) - macs.at(kept)


def stored_elements(proto: onnx.ModelProto) -> int:
    """Elements of the initializers that are no indices, sizes or masks; int32 is a size unless it is dequantized."""
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    codes = {i for n in bodies.every_node(proto.graph) if n.op_type == "DequantizeLinear" for i in n.input}
    kinds = (np.int64, np.bool_)
    return sum(a.size for k, a in stored.items() if a.dtype not in kinds and (a.dtype != np.int32 or k in codes))


@pytest.mark.parametrize("name", [*PRUNABLE, *GRAPHS])
def test_savings_are_differences(name: str, prepared: Lookup) -> None:
    """Fails where a term that depends on a group is not among those that its saving looks at."""
    p = case(name, prepared)
    for total in (cost.macs(p.channels), cost.parameters(p.channels)):
        kept = np.array([max(g.size - 1, 1) for g in p.channels.groups])
        before = kept.copy()
        for g in range(kept.size):
            for fewer in range(kept[g]):
                less = kept.copy()
                less[g] -= fewer
                expected = np.float64(total.at(kept) - total.at(less))
                assert_same(np.float64(total.saving(kept, g, fewer)), expected, rtol=0.0, atol=RTOL * total.at(kept))
        assert kept.tolist() == before.tolist()


def test_terms_of_nothing() -> None:
    """Fails where a model without a linear layer has a cost, or a sum starts elsewhere than at zero."""
    p = prepare_text("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    assert cost.macs(p.channels).at([]) == 0.0
    assert Cost.of([], 0).at([]) == 0.0


def test_a_term_is_a_product_of_lengths() -> None:
    """Fails where positions per unit or fixed channels are lost."""
    term = Term(2.0, (Length(3, ((0, 2), (1, 1))), Length(5)))
    assert term.at([4, 7]) == 2.0 * (3 + 8 + 7) * 5
    assert Cost.of([term, Term(1.0, (Length(0, ((1, 3),)),))], 2).at([4, 7]) == 180.0 + 21.0


def test_one_unit_too_many_is_seen() -> None:
    """The mutation check: a count that is one unit off differs from the cut model's."""
    p = prepare_text(GRAPHS["shared_stream"])
    keep = random_keep(p.channels, 0)
    wrong = counts(p, keep)
    wrong[0] += 1
    assert cost.macs(p.channels).at(wrong) != counted_macs(sliced(p, keep), p)
    assert cost.parameters(p.channels).at(wrong) != stored_elements(sliced(p, keep))
