"""What gradients say of channels, against central differences of the gated network and sums written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from onnxprune.calibration.gate_moments import OutputMoments, collect
from onnxprune.calibration.layers import layers_of
from onnxprune.calibration.probe import Batch, Probe, part_of, with_samples
from onnxprune.channels.gates import gates_of
from onnxprune.data.inputs import input_specs
from onnxprune.data.samples import Samples
from onnxprune.graph import protobuf
from onnxprune.numerics.arrays import Array, is_float
from onnxprune.objective import Index, Objective, output_imitation, task_loss
from onnxprune.runtime.session import Session
from tests.calibrated import prepare_text
from tests.compare import assert_same
from tests.gating import STEP, Floats, Gated
from tests.graphs import PRUNABLE, TABLE
from tests.number_types import converted
from tests.prepared import Prepared, prepare

Lookup = Callable[[str], Prepared]
# Differences in float32 across a few kinks; sums over samples and outputs are smooth.
RTOL = 5e-3
COUNT = 4
ROWS = (
    "plain",
    "residual",
    "batch_norm",
    "depthwise",
    "depthwise_multiplier",
    "dense_concat",
    "grouped_few_large",
    "grouped_shuffled",
    "option_a_shortcut",
    "kernel_square",
    "two_layouts",
    "squeeze_excite",
    "transposed_few_large",
    "flatten_gemm",
    "split_join",
    "attention_by_parts_positions",
    "layer_norm_convolution",
    "double_precision",
    "batch_of_one",
    "quantized",
    "quantized_branches",
    "quantized_microsoft",
    "gru_between_products",
    "lstm_bidirectional",
    "lstm_behind_convolution",
)
# A recurrent net inside a model of sequences: its own tensors have the steps in front.
SEQUENCES = """(float[N,4,3] x) => (float[N,4,5] y) {
    t = Transpose <perm=[1,0,2]> (x)
    a = MatMul (t, w0[3,6])
    s = GRU <hidden_size=5> (a, w1[1,15,6], r1[1,15,5], b1[1,30])
    q = Squeeze (s, ax{1})
    c = MatMul (q, w2[5,6])
    r = Relu (c)
    d = MatMul (r, w3[6,5])
    y = Transpose <perm=[1,0,2]> (d)
}"""


class Written:
    """The squares of an objective, its random seeds replaced by all unit vectors of the outputs on all samples.

    Over so many probes the mean of r rᵀ is half the Hessian exactly.
    """

    def __init__(self, objective: Objective, outputs: Mapping[str, Array], batches: int) -> None:
        self.inner, self.batches, self.calls = objective, batches, 0
        self.weight: Mapping[str, float] = objective.weight  # type: ignore[attr-defined]
        self.shapes = {k: outputs[k].shape for k in self.weight}
        self.probes = sum(int(np.prod(s)) for s in self.shapes.values())

    @property
    def names(self) -> tuple[str, ...]:
        return self.inner.names

    @property
    def samples(self) -> int:
        return self.inner.samples

    def value(self, outputs: Mapping[str, Array], index: Index) -> float:
        return self.inner.value(outputs, index)

    def gradient(self, outputs: Mapping[str, Array], index: Index, *, scale: float = 1.0) -> dict[str, Array]:
        return self.inner.gradient(outputs, index, scale=scale)

    def probe(
        self, outputs: Mapping[str, Array], index: Index, rng: np.random.Generator, *, scale: float = 1.0
    ) -> dict[str, Array]:
        """The part of these samples in the next unit vector."""
        place, self.calls = self.calls // self.batches, self.calls + 1
        found: dict[str, Array] = {}
        for k, shape in self.shapes.items():
            flat = np.zeros(int(np.prod(shape)))
            if 0 <= place < flat.size:
                flat[place] = scale * np.sqrt(self.weight[k] * self.probes)
            place -= flat.size
            rows = flat.reshape(self.samples, -1)[index]
            found[k] = rows.reshape(outputs[k].shape).astype(outputs[k].dtype)
        return found


def data_for(p: Prepared, count: int = COUNT) -> Samples:
    """A few random samples; other inputs as in the example."""
    specs = input_specs(p.original)
    rng = np.random.default_rng(1)
    arrays = {
        s.name: rng.standard_normal((count, *p.example[s.name].shape[1:])).astype(s.dtype)
        if s.batched and is_float(s.dtype)
        else p.example[s.name]
        for s in specs
    }
    return Samples(specs, arrays)


def batches_in(samples: Samples, outputs: Mapping[str, Array], size: int) -> list[Batch]:
    found: list[Batch] = []
    start = 0
    for feeds in samples.batches(size):
        index = slice(start, start + samples.count(feeds))
        found.append(Batch(feeds, part_of(outputs, index, len(samples)), index, samples.count(feeds)))
        start = index.stop
    return found


def outputs_on(p: Prepared, samples: Samples) -> dict[str, Array]:
    session = Session(p.normalised.proto)
    parts = [session.run(feeds) for feeds in samples.batches(len(samples))]
    return {k: np.concatenate([x[k] for x in parts]) for k in parts[0]}


def moments(
    p: Prepared,
    samples: Samples,
    objective: Objective,
    outputs: Mapping[str, Array],
    *,
    size: int = COUNT,
    probes: int = 1,
    slope: bool = False,
    exact: bool = True,
    metrics: bool = False,
) -> OutputMoments:
    """What `collect` gives; exact: with the seeds of `Written`."""
    batches = batches_in(samples, outputs, size)
    gates = with_samples(gates_of(p.channels), p.normalised.proto, samples)
    layers = layers_of(p.channels) if metrics else ()
    probe = Probe.of(p.normalised.proto, p.channels, gates, layers, p.normalised.types)
    if exact:
        written = Written(objective, outputs, len(batches))
        objective, probes = written, written.probes
    return collect(probe, p.channels, batches, objective, probes=probes, seed=0, slope=slope)


def expected_gram(p: Prepared, samples: Samples, weight: Mapping[str, float], group: int) -> Floats:
    """Σ over outputs and samples of weight · Jᵀ J."""
    network = Gated(p)
    parts = [network.jacobian(feeds, group) for feeds in samples.batches(len(samples))]
    size = p.channels.groups[group].size
    found = np.zeros((size, size))
    for k, w in weight.items():
        for part in parts:
            j = part[k].reshape(size, -1)
            found += w * j @ j.T
    return found


def check_gram(p: Prepared, *, size: int = COUNT, count: int = COUNT) -> None:
    samples = data_for(p, count)
    outputs = outputs_on(p, samples)
    objective = output_imitation(outputs, len(samples))
    assert objective.weight
    found = moments(p, samples, objective, outputs, size=size)
    assert not found.missing
    assert found.gates
    for g, known in found.gates.items():
        assert_same(known.gram, expected_gram(p, samples, objective.weight, g), rtol=RTOL, atol=1e-9)


@pytest.mark.parametrize("name", ROWS)
def test_the_gram_is_that_of_differences(name: str, prepared: Lookup) -> None:
    """Fails where a gate, an output, a sample or a position is left out, counted twice, or given to another unit."""
    check_gram(prepared(name))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", ["plain", "dense_concat", "two_layouts", "quantized"])
def test_the_size_of_batches_does_not_matter(name: str, size: int, prepared: Lookup) -> None:
    """Fails where sums of one batch overwrite another's, or the last, smaller one counts more."""
    check_gram(prepared(name), size=size)


@pytest.mark.parametrize("count", [3, 4, 8])
def test_steps_are_no_samples(count: int) -> None:
    """Fails where as many steps as samples, or a multiple, pass for samples: what they have in common is lost."""
    check_gram(prepare_text(SEQUENCES), count=count, size=count)


def test_half_precision() -> None:
    """Fails where seeds or gradients go through half precision."""
    row = TABLE["residual"]
    half = converted(row.model(), "float16")
    check_gram(prepare(half, {k: v.astype(np.float16) for k, v in row.feeds(2).items()}))


def test_random_probes_average_to_the_gram(prepared: Lookup) -> None:
    """Fails where the mean over probes is none. Var of rᵀMr for random signs is at most 2 tr(M)², sample by sample."""
    p = prepared("residual")
    samples = data_for(p)
    outputs = outputs_on(p, samples)
    objective = output_imitation(outputs, len(samples))
    probes = 64
    found = moments(p, samples, objective, outputs, probes=probes, exact=False)
    for g, known in found.gates.items():
        each = [expected_gram(p, samples.take([i]), objective.weight, g) for i in range(len(samples))]
        spread = np.sqrt(2.0 / probes * sum(float(np.trace(k)) ** 2 for k in each))
        assert np.linalg.norm(known.gram - sum(each)) < 4.0 * spread
        assert_same(known.square, np.diag(known.gram), rtol=1.0, atol=4.0 * spread)


def labelled(p: Prepared, samples: Samples) -> tuple[Objective, dict[str, Array], NDArray[Any]]:
    outputs = outputs_on(p, samples)
    y = next(iter(outputs.values()))
    labels = np.random.default_rng(2).integers(0, y.shape[1], len(y))
    return task_loss(outputs, labels), outputs, labels


@pytest.mark.parametrize("size", [1, COUNT])
@pytest.mark.parametrize("name", ["plain", "batch_norm", "dense_concat", "flatten_gemm"])
def test_the_slope_is_that_of_the_task_loss(name: str, size: int, prepared: Lookup) -> None:
    """Fails where labels and samples are out of step, or moments of the projections stand for those of the loss."""
    p = prepared(name)
    samples = data_for(p)
    objective, outputs, _ = labelled(p, samples)
    found = moments(p, samples, objective, outputs, size=size, probes=2, slope=True, exact=False)
    network = Gated(p)

    def value(i: int, g: int, a: Floats) -> float:
        y = network(samples.slice(i, i + 1), {g: a})
        return objective.value(y, slice(i, i + 1))

    for g, known in found.gates.items():
        eye = STEP * np.eye(p.channels.groups[g].size)
        each = np.array([[(value(i, g, 1 + e) - value(i, g, 1 - e)) / (2 * STEP) for e in eye] for i in range(COUNT)])
        assert_same(known.slope, each.sum(axis=0), rtol=RTOL, atol=1e-6)
        assert_same(known.absolute, np.abs(each).sum(axis=0), rtol=RTOL, atol=1e-6)
        assert_same(known.square, (each**2).sum(axis=0), rtol=RTOL, atol=1e-9)
        assert (np.linalg.eigvalsh(known.gram) > -1e-9).all()


def test_no_slope_where_the_outputs_are_the_goal(prepared: Lookup) -> None:
    """Fails where the original's own outputs have a gradient."""
    p = prepared("plain")
    samples = data_for(p)
    outputs = outputs_on(p, samples)
    found = moments(p, samples, output_imitation(outputs, COUNT), outputs, slope=True)
    for known in found.gates.values():
        assert np.abs(known.slope).max() <= 1e-6 * np.trace(known.gram)


LAYERS = {
    "convolution": """(float[N,2,3,3] x) => (float[N,3] y) {
        a = Conv <pads=[1,1,1,1]> (x, w1[4,2,3,3], b1[4])
        t = Tanh (a)
        c = Conv <group=2> (t, w2[6,2,2,2], b2[6])
        s = Sigmoid (c)
        f = Flatten (s)
        y = Gemm (f, w3[24,3], b3[3])
    }""",
    "tokens": """(float[N,3,4] x) => (float[N,3,2] y, float[N,5] z) {
        a = MatMul (x, w1[4,5])
        t = Tanh (a)
        y = MatMul (t, w2[5,2])
        m = ReduceMean <keepdims=0> (t, ax{1})
        z = Gemm <transB=1> (m, w3[5,5])
    }""",
}


def shifted(p: Prepared, tensor: str) -> Session:
    """The model with an input `shift` that is added to a tensor."""
    model = onnx.ModelProto()
    model.CopyFrom(p.normalised.proto)
    node = next(n for n in model.graph.node if tensor in n.output)
    node.output[list(node.output).index(tensor)] = "before"
    place = list(model.graph.node).index(node)
    model.graph.node.insert(place + 1, helper.make_node("Add", ["before", "shift"], [tensor]))
    model.graph.input.append(helper.make_tensor_value_info("shift", onnx.TensorProto.FLOAT, None))
    del model.graph.value_info[:]
    return Session(model, optimize=False)


@pytest.mark.parametrize("size", [1, COUNT])
@pytest.mark.parametrize("name", LAYERS)
def test_metrics_are_sums_over_positions(name: str, size: int) -> None:
    """Fails where the metric of a layer has another order of channels, misses positions, or mixes groups."""
    p = prepare_text(LAYERS[name])
    samples = data_for(p)
    outputs = outputs_on(p, samples)
    objective = output_imitation(outputs, len(samples))
    found = moments(p, samples, objective, outputs, size=size, metrics=True).metrics
    layers = [x for x in layers_of(p.channels) if x.weight in found]
    assert {x.weight for x in layers} == {"w1", "w2", "w3"}
    for layer in layers:
        session = shifted(p, layer.output)
        shape = p.channels.graph.shapes[layer.output][1:]
        axis = len(shape) - 1 if layer.window is None else 0
        expected = np.zeros((layer.groups, layer.outputs.size // layer.groups, layer.outputs.size // layer.groups))
        for i in range(COUNT):
            feeds = samples.slice(i, i + 1)
            rows = []
            for unit in np.eye(int(np.prod(shape)), dtype=np.float32):
                up, down = (session.run({**feeds, "shift": s * unit.reshape(1, *shape)}) for s in (STEP, -STEP))
                at = [(np.sqrt(w), up[k].astype(float), down[k]) for k, w in objective.weight.items()]
                rows.append(np.concatenate([(root * (a - b) / (2 * STEP)).ravel() for root, a, b in at]))
            g = np.moveaxis(np.stack(rows, axis=1).reshape(-1, *shape), axis + 1, 1)
            g = g.reshape(len(g), layer.groups, -1, int(np.prod(shape)) // layer.outputs.size)
            expected += np.einsum("kgop,kgqp->goq", g, g)
        assert_same(found[layer.weight], expected, rtol=RTOL, atol=1e-9)


@pytest.mark.parametrize("name", PRUNABLE)
def test_every_gate_has_a_gradient_or_a_reason(name: str, prepared: Lookup) -> None:
    """Fails where an operator without a rule passes for one that has no effect on the outputs."""
    p = prepared(name)
    gates = gates_of(p.channels)
    probe = Probe.of(p.normalised.proto, p.channels, gates, (), p.normalised.types)
    assert not set(probe.gradients) & set(probe.missing)
    without = [x for i, x in enumerate(gates) if i not in probe.gradients and i not in probe.missing]
    # Where distances only decide which neighbours are taken, they have no gradient indeed.
    assert [x.node.op for x in without] == (["MatMul"] if name == "neighbours" else [])


def test_a_gradient_of_another_unit_is_seen(prepared: Lookup) -> None:
    """The mutation check: a Gram with two units exchanged is refused."""
    p = prepared("plain")
    samples = data_for(p)
    outputs = outputs_on(p, samples)
    objective = output_imitation(outputs, COUNT)
    found = moments(p, samples, objective, outputs).gates[0].gram
    order: Sequence[int] = [1, 0, *range(2, len(found))]
    with pytest.raises(AssertionError, match="times the bound"):
        assert_same(found[np.ix_(order, order)], expected_gram(p, samples, objective.weight, 0), rtol=RTOL, atol=1e-9)


def test_parts_of_the_network_have_the_same_moments(prepared: Lookup) -> None:
    """Fails where a part behind a frontier is differentiated with other shapes, or finds its gates elsewhere."""
    p = prepared("plain")
    samples = data_for(p)
    outputs = outputs_on(p, samples)
    objective = output_imitation(outputs, COUNT)
    whole = moments(p, samples, objective, outputs)
    gates = gates_of(p.channels)
    last = max(gates, key=lambda x: x.node.index)
    frontier = last.data
    part = protobuf.submodel(p.normalised.proto, {frontier: p.normalised.types[frontier]}, list(outputs))
    (between,) = Session(protobuf.submodel(p.normalised.proto, {}, [frontier])).run(samples.arrays).values()
    batch = Batch({frontier: between}, outputs, slice(0, COUNT), COUNT)
    probe = Probe.of(part, p.channels, [last], (), p.normalised.types)
    written = Written(objective, outputs, 1)
    found = collect(probe, p.channels, [batch], written, probes=written.probes, seed=0, slope=False)
    (g,) = found.gates
    assert_same(found.gates[g].gram, whole.gates[g].gram, rtol=1e-5, atol=0.0)
