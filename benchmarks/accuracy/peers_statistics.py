"""Two published ways of choosing what goes by the statistics of activations, on any graph of matrix products.

Units are those that one matrix product alone reads: inner units of feed-forward layers and, for FLAP, heads; streams
stay. What goes is replaced by its mean, which becomes a bias behind the product, and nothing is fitted.

- *flap* (An et al. 2023, arXiv 2312.11983): the variance of each entry that the product reads, times the squared norm
  of the weights that read it, the mean over the entries of a unit, standardized over each group, ranked over all.
- *vbp* (arXiv 2507.12988): inner units alone, by their variance, ranked over all.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from benchmarks.accuracy.case import NEAR, Case, Found, shares_left
from benchmarks.accuracy.kits import Inputs
from onnxprune import PruneConfig, cost, plan, prune
from onnxprune.calibration.layers import Layer, layers_of
from onnxprune.calibration.regressions import consumers_of
from onnxprune.channels import ChannelGraph, Group
from onnxprune.runtime.session import Session
from onnxprune.stages import couple, load

Doubles = NDArray[np.float64]
METHODS = ("flap", "vbp")
_BATCH = 32


@dataclass(frozen=True, eq=False)
class Candidate:
    """Units that one product reads. columns: of each unit, the columns of the product's matrix, (units, k)."""

    group: Group
    reader: Layer
    columns: NDArray[np.int64]
    weights: Doubles


def remove(case: Case) -> Found:
    """Prune. Raises ValueError where the MACs do not come near what is wanted, or nothing fits."""
    run = case.run
    batches = case.batches(_BATCH)
    start = time.perf_counter()
    loaded = load.load(case.path, dict(case.example or {}), PruneConfig())
    channels, proto = couple.trace(loaded, PruneConfig()), loaded.normalised.proto
    found = [c for c in candidates(channels) if run.tool == "flap" or not c.group.head]
    if not found:
        raise ValueError("no units of this graph are read by one matrix product alone")
    statistics = list(moments(proto, found, batches))
    ranked = [scores(c, s, run.tool) for c, s in zip(found, statistics, strict=True)]
    kept = chosen(channels, found, ranked, 1 - run.ratio)
    with tempfile.TemporaryDirectory() as folder:
        shifted = Path(folder) / "shifted.onnx"
        onnx.save(with_biases(proto, found, statistics, kept), shifted)
        cut_to(shifted, case, {c.group.name: k for c, k in zip(found, kept, strict=True)})
    left = shares_left(case.path, case.out, case.example)
    if abs(left["macs_left"] - (1 - run.ratio)) > NEAR:
        raise ValueError(f"it leaves {left['macs_left']:.3f} of the MACs, and {1 - run.ratio:g} is wanted")
    return left | {"seconds": time.perf_counter() - start}


def candidates(channels: ChannelGraph) -> Iterator[Candidate]:
    """The groups whose units one matrix product alone reads, all of them at as many columns."""
    for group, readers in zip(channels.groups, consumers_of(channels, layers_of(channels)), strict=True):
        if len(readers) == 1 and readers[0].window is None and group.rows is None:
            classes = readers[0].columns(0)
            columns = [np.flatnonzero(classes == unit) for unit in group.units]
            if columns[0].size and len({c.size for c in columns}) == 1:
                weights = readers[0].matrix(channels.graph.constants)[0]
                yield Candidate(group, readers[0], np.stack(columns), weights)


def moments(
    proto: onnx.ModelProto, found: Sequence[Candidate], batches: Sequence[Inputs]
) -> Iterator[tuple[Doubles, Doubles]]:
    """Mean and variance of what each product reads, (columns,), over all positions of all samples."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(proto)
    names = list(dict.fromkeys(c.reader.data for c in found))
    present = {o.name for o in tapped.graph.output}
    tapped.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names if n not in present)
    session = Session(tapped)
    sums: dict[str, list[Doubles]] = {n: [np.zeros(1), np.zeros(1)] for n in names}
    count = dict.fromkeys(names, 0)
    for batch in batches:
        for name, value in session.run(dict(batch), names).items():
            rows = value.reshape(-1, value.shape[-1]).astype(np.float64)
            count[name] += len(rows)
            sums[name] = [sums[name][0] + rows.sum(0), sums[name][1] + np.square(rows).sum(0)]
    for c in found:
        total, square = sums[c.reader.data]
        mean = total / count[c.reader.data]
        yield mean, square / count[c.reader.data] - np.square(mean)


def scores(c: Candidate, statistics: tuple[Doubles, Doubles], method: str) -> Doubles:
    """Of each unit; what has the least goes first."""
    variance = statistics[1][c.columns]
    if method == "vbp":
        found: Doubles = variance.mean(1)
        return found
    found = (variance * np.square(c.weights[c.columns]).sum(2)).mean(1)
    spread = found.std(ddof=1) if found.size > 1 else 0.0
    standardized: Doubles = (found - found.mean()) / (spread if spread > 0 else 1.0)
    return standardized


def chosen(
    channels: ChannelGraph, found: Sequence[Candidate], ranked: Sequence[Doubles], left: float
) -> list[NDArray[np.int64]]:
    """The units of each group that stay, so that at least `left` of the MACs do; of each group the best one stays.

    A unit that would take more than what is left to take is passed over, as a head may.
    """
    macs = cost.macs(channels)
    sizes = [g.size for g in channels.groups]
    wanted = left * macs.at(sizes)
    places = [(k, i) for k, row in enumerate(ranked) for i in np.argsort(row, kind="stable")[:-1].tolist()]
    order = sorted(places, key=lambda at: float(ranked[at[0]][at[1]]))

    def without(some: Iterable[tuple[int, int]]) -> list[int]:
        fewer = list(sizes)
        for k, _ in some:
            fewer[found[k].group.index] -= 1
        return fewer

    low, high = 0, len(order)
    while low < high:  # how many may go before the first one that may not
        middle = (low + high + 1) // 2
        low, high = (middle, high) if macs.at(without(order[:middle])) >= wanted else (low, middle - 1)
    gone, passed = set(order[:low]), set[int]()
    for k, i in order[low:]:
        if k not in passed and macs.at(without([*gone, (k, i)])) >= wanted:
            gone.add((k, i))
        else:
            passed.add(k)
    return [np.array([i for i in range(c.group.size) if (k, i) not in gone]) for k, c in enumerate(found)]


def with_biases(
    proto: onnx.ModelProto,
    found: Sequence[Candidate],
    statistics: Sequence[tuple[Doubles, Doubles]],
    kept: Sequence[NDArray[np.int64]],
) -> onnx.ModelProto:
    """The model with what each product makes of the mean of all that goes added behind it."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    nodes = list(model.graph.node)
    for c, (mean, _), stay in zip(found, statistics, kept, strict=True):
        columns = np.delete(c.columns, stay, axis=0).ravel()
        if not columns.size:
            continue
        at = next(k for k, n in enumerate(nodes) if c.reader.node.outputs[0] in n.output)
        product = nodes[at].output[0]
        bias, behind = f"{product}/bias_of_means", f"{product}/without_bias"
        nodes[at].output[0] = behind
        value = (mean[columns] @ c.weights[columns]).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, bias))
        nodes.insert(at + 1, helper.make_node("Add", [behind, bias], [product], name=bias))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def cut_to(path: Path, case: Case, kept: dict[str, NDArray[np.int64]]) -> None:
    """Write the model of this path with these units of the groups alone, by the library, nothing fitted."""
    config = PruneConfig(method="magnitude", refit="none", fast=True, round_to=1, samples=case.run.samples)
    dry = prune(path, None, dict(case.calib or {}), config=config, ratio=case.run.ratio, dry_run=True).plan
    groups = tuple(
        plan.GroupPlan(g.name, g.units, tuple(kept[g.name].tolist() if g.name in kept else range(g.units)))
        for g in dry.groups
    )
    replayed = plan.Plan(dry.model_sha256, dry.config, groups, dry.data_sha256, split_seed=dry.split_seed)
    prune(path, case.out, dict(case.calib or {}), from_plan=replayed)
