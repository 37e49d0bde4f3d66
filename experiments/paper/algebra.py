"""Sections 4, 7 and 8: what folds where, what equals what, and the interval of γ; shown on real models."""

from __future__ import annotations

import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from benchmarks.accuracy.kits import answers
from experiments.paper.networks import Alone, Kit, Network, Prepared, Recorder
from experiments.paper.records import Records, Row
from onnxprune import prune
from onnxprune.channels.gates import units_of
from onnxprune.selection.imitation import QuadraticWalk, greedy
from onnxprune.selection.quadratic import Quadratic
from onnxprune.surgery import cut, replace_initializers
from onnxprune.verification.oracle import masked_model

Floats = NDArray[np.float64]
PARAMETERS, EQUIVALENCE, INTERVAL = "parameters", "equivalence", "interval"


def largest(a: NDArray[Any], b: NDArray[Any]) -> float:
    """max |a - b| / max |b|."""
    return float(np.abs(a.astype(np.float64) - b).max() / max(np.abs(b).max(), 1e-30))


# 4: a and b


def parameters(network: Network, group: str, samples: int, seed: int = 0) -> Row:
    """One group cut by local imitation with its coefficients folded: the written graph, against the gated network.

    Coefficients as the paper has them (convex); `free` says what the program's own class gives.
    """
    prepared = Prepared.of(network, samples, seed, method="local")
    g = prepared.named(group)
    found = {c: folded(prepared, g, samples, seed, c) for c in ("convex", "free")}
    a, before, after, difference = found["convex"]
    free = found["free"][0]
    shapes = [{t.name: list(t.dims) for t in p.graph.initializer} for p in (before, after)]
    changed = {k: [shapes[0][k], v] for k, v in shapes[1].items() if k in shapes[0] and shapes[0][k] != v}
    return {
        "group": prepared.coupled.taken.channels.groups[g].name,
        "kept": int((a != 0).sum()),
        "units": a.size,
        "coefficients": [float(x) for x in np.sort(a[a != 0])],
        "operators": [dict(Counter(n.op_type for n in p.graph.node)) for p in (before, after)],
        "initializers": [len(s) for s in shapes],
        "new_initializers": sorted(set(shapes[1]) - set(shapes[0])),
        "were_constants": sum(o in set(shapes[1]) for n in before.graph.node for o in n.output),
        "lost_initializers": sorted(set(shapes[0]) - set(shapes[1])),
        "changed": changed,
        "difference": difference,
        "free": {"coefficients": [float(x) for x in np.sort(free[free != 0])], "difference": found["free"][3]},
        "tolerance": 1e-4,
        "bias": folded_bias(prepared, g, seed),
    }


def folded(
    prepared: Prepared, g: int, samples: int, seed: int, coefficients: str
) -> tuple[Floats, onnx.ModelProto, onnx.ModelProto, float]:
    """The coefficients of a group cut to half, the model before and after, and how far the written one is from the
    gated network on the test split."""
    network, channels = prepared.network, prepared.coupled.taken.channels
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        result = prune(
            network.path,
            out,
            network.samples(samples, seed),
            method="local",
            refit="greedy",
            coefficients=coefficients,
            uniform=0.5,
            round_to=1,
            seed=seed,
            include=(channels.groups[g].name,),
        )
        before, after = onnx.load(network.path), onnx.load(out)
        written = answers(out, network.test)
    a = result.plan.coefficients(channels)[g]
    recorder = Recorder([o.name for o in prepared.coupled.taken.proto.graph.output], len(network.test))
    gated = Alone(prepared, g, prepared.test).gated(recorder)  # type: ignore[arg-type]
    gated.at(a)
    expected = recorder.answers()
    return a, before, after, largest(written, expected.reshape(written.shape))


def folded_bias(prepared: Prepared, group: int, seed: int) -> Row:
    """b, one number per unit added to what its readers see: exactly Σ_i w_i b_i in their bias, unless they pad.

    The largest difference of the outputs on the test split between an Add in front of the reader and the folded bias.
    """
    reader = min(prepared.consumers[group], key=lambda x: x.node.index)
    taken = prepared.coupled.taken
    unit = units_of(taken.channels, group)
    b = np.random.default_rng(seed).normal(size=taken.channels.groups[group].size)
    classes = reader.inputs
    per_channel = np.where(unit[classes] >= 0, b[np.maximum(unit[classes], 0)], 0.0).astype(np.float32)
    rank = len(taken.channels.graph.shape(reader.data) or ())
    shape = (1, -1) if rank == 2 else (1, -1, *([1] * (rank - 2)))
    shifted = onnx.ModelProto()
    shifted.CopyFrom(taken.proto)
    del shifted.graph.node[:]
    shifted.graph.initializer.append(numpy_helper.from_array(per_channel.reshape(shape), "paper:b"))
    for n in taken.proto.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(n)
        if n.output[0] == reader.node.outputs[0]:
            shifted.graph.node.append(helper.make_node("Add", [reader.data, "paper:b"], ["paper:shifted"]))
            copy.input[reader.node.inputs.index(reader.data)] = "paper:shifted"
        shifted.graph.node.append(copy)
    constants = taken.channels.graph.constants
    matrix = reader.matrix(constants)
    at = unit[reader.columns(0)]
    column = np.where(at >= 0, b[np.maximum(at, 0)], 0.0)
    matrix[0, -1] += column @ matrix[0]
    folded = replace_initializers(taken.proto, reader.weights(matrix, constants))
    x = prepared.network.test[:100]
    before, there = answers(shifted, x), answers(folded, x)
    padded = reader.window is not None and any(p for side in reader.window.padding((8, 8)) for p in side)
    return {"reader": reader.node.op, "padded": padded, "difference": largest(there, before)}


# 7: inputs or outputs


def equivalence(network: Network, seed: int = 0) -> Row:
    """Half the units of every group gone: masked at the readers' inputs, cut out of the graph, or silenced where made.

    silenced: the producers' weights and biases of these units are zero, nothing else: what "pruning outputs" means
    where it is done by zeros.
    """
    prepared = Prepared.of(network, 64, seed, method="local")
    loaded, channels = prepared.loaded, prepared.coupled.channels
    rng = np.random.default_rng(seed)
    masks = {}
    for g in channels.groups:
        mask = np.zeros(g.size, bool)
        mask[rng.permutation(g.size)[: max(1, g.size // 2)]] = True
        masks[g.index] = mask
    keep = channels.keep_classes(masks)
    proto = loaded.normalised.proto
    x = network.test[:200]
    before = answers(network.path, x)
    inputs = answers(masked_model(proto, channels, keep, loaded.normalised.types), x)
    sliced = answers(cut(proto, channels, keep), x)
    silent: dict[str, Any] = {}
    for g in channels.groups:
        gone = g.units[~masks[g.index]]
        for ref in g.producers:
            silent.setdefault(ref.tensor, np.array(channels.graph.constants[ref.tensor], copy=True))
            axis = channels.axis_factor(ref.tensor, ref.axis)
            if axis is not None:
                silent[ref.tensor] = np.where(np.isin(axis, gone), 0, silent[ref.tensor]).astype(np.float32)
    biases = {n.input[2]: n.input[1] for n in proto.graph.node if n.op_type == "Conv" and len(n.input) > 2}
    for bias, weight in biases.items():
        if weight in silent:
            alive = np.abs(silent[weight].reshape(len(silent[weight]), -1)).max(axis=1) > 0
            silent[bias] = (channels.graph.constants[bias] * alive).astype(np.float32)
    quiet = answers(replace_initializers(proto, silent), x)
    return {
        "groups": len(channels.groups),
        "removed": int(sum((~k).sum() for k in masks.values())),
        "units": int(sum(k.size for k in masks.values())),
        "images": len(x),
        "cut_against_inputs": largest(sliced, inputs),
        "silenced_against_inputs": largest(quiet, inputs),
        "agreement": 100 * float((before.argmax(1) == sliced.argmax(1)).mean()),
        "seed": seed,
    }


# 8: the interval of γ


def interval(network: Network, group: str, samples: int, share: float = 0.3, seed: int = 0) -> Row:
    """U_i for a coefficient of 0.3, by trial of every γ, and what a lower end of the other sign does to a layer."""
    low, wrong = -share / (1 - share), share / (1 - share)
    others = np.array([0.5, 0.2])
    gammas = np.linspace(-1.5, 1.5, 30001)
    moved = np.concatenate([share + gammas[:, None] * (1 - share), (1 - gammas[:, None]) * others], axis=1)
    feasible = gammas[(moved >= -1e-12).all(axis=1)]
    prepared = Prepared.of(network, samples, seed, method="local")
    q = prepared.local(prepared.named(group))
    steps = 3 * q.units
    walked = {"as implemented": _losses(q, steps, 1.0), "other sign": _losses(q, steps, -1.0)}
    path = [s for s, _ in zip(greedy(q), range(steps), strict=False)]
    return {
        "share": share,
        "sum": float(share + others.sum()),
        "low": low,
        "other_sign": wrong,
        "feasible": [float(feasible.min()), float(feasible.max())],
        "at_low": share + low * (1 - share),
        "group": group,
        "units": q.units,
        "steps": len(path),
        "negative_steps": sum(s.gamma < 0 for s in path),
        "removals": sum(bool(s.coefficients[s.unit] == 0) for s in path),
        "losses": walked,
    }


class _Other(QuadraticWalk):
    """The same walk with the lower end of U_i at +α_i / (1 - α_i)."""

    def _candidates(self, *, negative: bool) -> tuple[Floats, Floats]:
        del negative
        inner, distance = self._lines()
        if not self._started:
            gamma = np.ones(self.a.size)
        else:
            share = self.a / self._total
            low = np.minimum(np.where(share < 1, share / np.where(share < 1, 1 - share, 1.0), 1.0), 1.0)
            gamma = np.clip(inner / np.maximum(distance, 1e-300), low, 1.0)
        return gamma, self.loss - 2 * gamma * inner + gamma**2 * distance


def _losses(q: Quadratic, steps: int, sign: float) -> Row:
    walk = QuadraticWalk(q) if sign > 0 else _Other(q)
    everything = np.ones(q.units, bool)
    found = []
    for _ in range(steps):
        step = walk.advance(everything)
        if step is None:
            break
        found.append(step.loss / q.c)
    shown = [i for i in range(len(found)) if i < 4 or (i + 1) % (q.units // 2) == 0 or i == len(found) - 1]
    return {"steps": len(found), "at": [i + 1 for i in shown], "d": [found[i] for i in shown]}


def measure_parameters(kit: Kit, records: Records, quick: bool) -> None:
    """Section 4."""
    for p in kit.scope(quick).folded:
        records.add(PARAMETERS, p.network, partial(lambda p: parameters(kit.network(p.network), p.group, p.samples), p))


def measure_equivalence(kit: Kit, records: Records, quick: bool) -> None:
    """Section 7."""
    for name in kit.scope(quick).equal:
        records.add(EQUIVALENCE, name, partial(lambda n: equivalence(kit.network(n)), name))


def measure_interval(kit: Kit, records: Records, quick: bool) -> None:
    """Section 8."""
    p = kit.scope(quick).interval
    records.add(INTERVAL, p.network, lambda: interval(kit.network(p.network), p.group, p.samples))
