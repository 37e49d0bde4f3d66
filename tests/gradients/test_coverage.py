"""Whole graphs: no operator is forgotten, every gradient that is asked for comes or is refused with a reason.

Gradients with respect to the data of linear layers are taken at two batch sizes and compared with central differences.
Real networks have kinks, which differences at a large step see, and single precision, which those at a small step do
not get over. So each is taken at several steps. Of those at which the noise of L, measured, is less than TOLERANCE, one
must agree within TOLERANCE and twice that noise: along the gradient itself, where the signal is largest, and in the
small graphs, and in real ones whose kinks are smoothed, along a random direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.channels.rules import TABLE as CHANNEL_RULES
from onnxprune.gradients import Backward, backward
from onnxprune.gradients.reverse import Use
from onnxprune.gradients.rules import NO_DERIVATIVE, TABLE, WITHOUT
from onnxprune.graph import protobuf
from onnxprune.graph.unrounded import is_quantized
from onnxprune.graph.view import Graph
from onnxprune.intake import model_file
from onnxprune.normalise import Normalised, normalise
from onnxprune.runtime.session import Session
from tests.graphs import TABLE as TOPOLOGIES
from tests.kit import has_batch, kit_feeds, kit_models, one_export_each
from tests.prepared import Array, Prepared
from tests.sampled import every

Feeds = Mapping[str, Array]

TOLERANCE = 2e-2
STEPS = (1e-1, 3e-2, 1e-2, 1e-3, 1e-4)
CHECKED = 3  # uses of each graph, of the first layers, the last and between
# Where L cannot be repeated or has jumps everywhere, so that no difference says anything.
WITHOUT_DIFFERENCES = {"noise"}


def test_no_operator_is_forgotten():
    """Fails where an operator is traced that has neither a gradient nor a reason to have none."""
    assert set(CHANNEL_RULES) == {*TABLE, *NO_DERIVATIVE, *WITHOUT}


def test_each_operator_stands_in_one_place():
    """Fails where a rule is written and the reason to have none stays."""
    assert not set(TABLE) & NO_DERIVATIVE
    assert not set(TABLE) & set(WITHOUT)
    assert not NO_DERIVATIVE & set(WITHOUT)


@dataclass(frozen=True, eq=False)
class Taken:
    """A graph and its reverse pass to the data of all linear layers. sessions: by what they compute, opened once."""

    normalised: Normalised
    graph: Graph
    uses: tuple[Use, ...]
    back: Backward
    sessions: dict[tuple[str, ...], Session] = field(default_factory=dict)

    def tensor(self, use: Use) -> str:
        """What a use reads."""
        return self.node(use).input[use[1]]

    def node(self, use: Use) -> onnx.NodeProto:
        """The node of a use."""
        place = next(k for k, n in enumerate(self.graph.nodes) if n.index == use[0])
        return self.normalised.proto.graph.node[place]

    def run(self, names: Iterable[str], feeds: Feeds) -> dict[str, Array]:
        """Tensors of the graph, those that are fed included."""
        computed = tuple(dict.fromkeys(n for n in names if n not in feeds))
        if computed and computed not in self.sessions:
            part = protobuf.submodel(self.normalised.proto, {}, list(computed))
            self.sessions[computed] = Session(part, single=True, optimize=False)
        found = self.sessions[computed].run(feeds) if computed else {}
        return {n: feeds[n] if n in feeds else found[n] for n in names}

    @cached_property
    def reverse(self) -> Session:
        """The reverse pass."""
        names = list(dict.fromkeys(self.back.of_use.values()))
        return Session(protobuf.submodel(self.back.proto, {}, names), single=True)


def taken(normalised: Normalised) -> Taken:
    """The reverse pass of a normalised model to the data of its linear layers."""
    n = normalised
    graph = protobuf.view(n.proto, n.shapes, n.known_values, n.binding)
    uses = tuple(_linear_uses(graph))
    return Taken(n, graph, uses, backward(n.proto, graph, n.types, uses=uses))


def _linear_uses(graph: Graph) -> list[Use]:
    """Data of Conv, ConvTranspose, Gemm and MatMul with constant weights."""
    found: list[Use] = []
    for n in graph.nodes:
        pairs = {"Conv": ((0, 1),), "ConvTranspose": ((0, 1),), "Gemm": ((0, 1), (1, 0)), "MatMul": ((0, 1), (1, 0))}
        for data, weight in pairs.get(n.op, ()):
            if n.input(weight) in graph.constants and n.input(data) not in graph.constants:
                found.append((n.index, data))
    return found


def _seeded(back: Backward, outputs: Feeds) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {s: rng.standard_normal(outputs[o].shape).astype(outputs[o].dtype) for o, s in back.seeds.items()}


def gradients_at(t: Taken, feeds: Feeds) -> tuple[dict[Use, Array], dict[str, Array], dict[str, Array]]:
    """(the gradients of all uses, seeds, what the uses read): finite, in the shape of what is read."""
    seeds = _seeded(t.back, t.run(list(t.back.seeds), feeds))
    found = t.reverse.run({**feeds, **seeds}) if t.back.of_use else {}
    data = t.run([t.tensor(u) for u in t.uses], feeds)
    for use, name in t.back.of_use.items():
        assert found[name].shape == data[t.tensor(use)].shape, t.node(use).name
        assert np.isfinite(found[name]).all(), t.node(use).name
    return {u: found[name].astype(np.float64) for u, name in t.back.of_use.items()}, seeds, data


def _check_differences(t: Taken, feeds: Feeds, directions: tuple[str, ...]) -> int:
    """Compare a sample of uses with differences; how many comparisons said something."""
    gradients, seeds, data = gradients_at(t, feeds)
    found = list(gradients)
    sample = sorted({0, len(found) // 2, len(found) - 1})[:CHECKED] if found else []
    said = 0
    for use in (found[k] for k in sample):
        g = gradients[use]
        x = data[t.tensor(use)]
        value = _value(t, use, feeds, seeds, x)
        spread = _spread(value, x)
        for kind in directions:
            clear, agrees, seen = _compared(value, g, x, _direction(kind, g, x), spread)
            said += clear
            assert agrees or not clear, (t.node(use).name, kind, seen)
    return said


def _check_constant(t: Taken, feeds: Feeds) -> None:
    """Outputs must stand still where a use has neither a gradient nor a reason to have none."""
    _, seeds, data = gradients_at(t, feeds)
    for use in set(t.uses) - set(t.back.of_use) - set(t.back.missing):
        x = data[t.tensor(use)]
        value = _value(t, use, feeds, seeds, x)
        assert value(x + 1e-4 * np.random.default_rng(1).standard_normal(x.shape)) == value(x), t.node(use).name


def _value(t: Taken, use: Use, feeds: Feeds, seeds: Feeds, x: Array) -> Callable[[Array], float]:
    """L as a function of what one node alone reads."""
    place = next(k for k, n in enumerate(t.graph.nodes) if n.index == use[0])
    proto = onnx.ModelProto()
    proto.CopyFrom(t.normalised.proto)
    proto.graph.node[place].input[use[1]] = "probe"
    part = protobuf.submodel(proto, {"probe": t.normalised.types[t.tensor(use)]}, list(t.back.seeds))
    # onnxruntime's fusions of quantized weights round the data as well.
    session = Session(part, single=True, optimize=not is_quantized(proto))

    def value(z: Array) -> float:
        outputs = session.run({**feeds, "probe": z.astype(x.dtype)})
        return sum(float((outputs[o].astype(np.float64) * seeds[s]).sum()) for o, s in t.back.seeds.items())

    return value


def _direction(kind: str, g: Array, x: Array) -> Array:
    """Of the size of x: random, or a few elements' worth of the gradient."""
    size = float(np.sqrt(np.mean(x.astype(np.float64) ** 2))) or 1.0
    if kind == "random":
        return np.random.default_rng(1).standard_normal(g.shape) * size
    return g / max(float(np.linalg.norm(g)), 1e-30) * size * 3.0


def _spread(value: Callable[[Array], float], x: Array) -> float:
    """How far L moves with the last digits of x: the noise of two values that are subtracted."""
    rng = np.random.default_rng(2)
    # By a few of the last digits: one is too little where a normalization rounds it away, and L seems to have no noise.
    near = [value(x * (1 + 8 * np.finfo(np.float32).eps * rng.uniform(-1, 1, x.shape))) for _ in range(5)]
    return max(near) - min(near)


def _compared(
    value: Callable[[Array], float], g: Array, x: Array, v: Array, spread: float
) -> tuple[bool, bool, list[tuple[float, float]]]:
    """(whether any step says something, whether one agrees, what was seen); no further step is taken behind that one.

    What is seen at a step is the error of <g, v> and the noise of the difference, both relative to what <g, v> is of
    the order of.
    """
    seen: list[tuple[float, float]] = []
    for step in STEPS:
        up, down = (value(x + sign * step * v) for sign in (1, -1))
        expected, got = (up - down) / (2 * step), float((g * v).sum())
        norms = float(np.linalg.norm(g)) * float(np.linalg.norm(v))
        scale = max(norms / np.sqrt(g.size), abs(expected), abs(got), 1e-9)
        error, noise = abs(got - expected) / scale, spread / (2 * step) / scale
        seen.append((error, noise))
        if noise <= TOLERANCE and error - 2 * noise <= TOLERANCE:
            return True, True, seen
    return any(noise <= TOLERANCE for _, noise in seen), False, seen


@pytest.mark.parametrize("name", sorted(TOPOLOGIES))
def test_small_graphs(name: str, prepared: Callable[[str], Prepared]):
    """Fails where a rule holds for one batch size only, or rules do not fit together."""
    t = taken(prepared(name).normalised)
    _check_uses(t)
    for batch in (2, 3):
        gradients_at(t, TOPOLOGIES[name].feeds(batch))
    if name not in WITHOUT_DIFFERENCES:
        _check_constant(t, TOPOLOGIES[name].feeds(2))
        said = _check_differences(t, TOPOLOGIES[name].feeds(2), ("gradient", "random"))
        assert said or not t.back.of_use


@pytest.mark.parametrize("path", one_export_each(kit_models("models", "arch", "wild")))
def test_real_graphs(path: Path):
    """Fails where a real network has no gradient at a linear layer, or another one than differences say."""
    proto, _ = model_file.load(path)
    few = kit_feeds(path, proto, 2 if has_batch(proto) else 1)
    t = taken(normalise(proto, few))
    _check_uses(t)
    assert not t.back.missing
    assert set(t.back.of_use) == set(t.uses)
    if has_batch(proto):
        gradients_at(t, kit_feeds(path, proto, 3))
    said = _check_differences(t, few, ("gradient",))
    assert said or not t.uses


@pytest.mark.parametrize("path", every(2, one_export_each(kit_models("models", "arch", "wild"))))
def test_smooth_graphs(path: Path):
    """Fails where a real network, without its kinks, has another gradient than differences say in any direction."""
    proto, _ = model_file.load(path)
    if any(n.op_type == "TopK" for n in proto.graph.node):
        pytest.skip("its neighbours change with the data, which no activation makes smooth")
    feeds = kit_feeds(path, proto, 2 if has_batch(proto) else 1)
    t = taken(normalise(_smooth(proto), feeds))
    said = _check_differences(t, feeds, ("random",))
    assert said or not t.uses


SMOOTH = {
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu"), "Softplus"),
    **dict.fromkeys(("Clip", "HardSigmoid"), "Sigmoid"),
    "HardSwish": "Tanh",
}


def _smooth(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Another network of the same graph: activations with kinks are replaced by some without, maxima by means."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for node in result.graph.node:
        if node.op_type in SMOOTH:
            node.op_type = SMOOTH[node.op_type]
            del node.input[1:]
            del node.attribute[:]
        elif node.op_type == "MaxPool":
            node.op_type = "AveragePool"
            kept = [a for a in node.attribute if a.name in ("kernel_shape", "strides", "pads", "auto_pad", "ceil_mode")]
            del node.attribute[:]
            node.attribute.extend(kept)
    return result


def _check_uses(t: Taken) -> None:
    assert set(t.back.missing) <= set(t.uses)
    assert not set(t.back.missing) & set(t.back.of_use)
    assert all(t.back.missing.values())
