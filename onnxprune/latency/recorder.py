"""What the layers of a model take on this machine, written down for another one (`timing_file`).

The model is cut at combinations of widths, as for a budget of latency that is met here (`stopwatch`): evenly narrow
ones, as allocations are near them, a grid that takes every group through all its widths, and some without whole
branches: what a layer saves that goes is not seen where all only get narrower. At each the layers are timed, and the
whole against the original, in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from onnxprune.errors import NothingPrunable
from onnxprune.latency.layers import TimedLayer, layers_of, marked
from onnxprune.latency.machine import Machine
from onnxprune.latency.search import KeptUnits
from onnxprune.latency.stopwatch import Stopwatch, grid
from onnxprune.latency.timing_file import Axis, CutRow, LayerRow, Target

# Combinations that are scattered, others without some branches, and shares of its units that every group keeps.
SCATTERED = 16
WITHOUT_BRANCHES = 6
EVEN = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)


def record(
    watch: Stopwatch,
    machine: Machine,
    name: str,
    how: str,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> Target:
    """Measure the layers of a model at several widths. machine: what times layers; `watch` has what times whole runs.

    how: as a target of the timing file says it. progress: is told of the cuts that are done, and how many there are.
    Raises RunError, and NothingPrunable where no layer that can get narrower runs.
    """
    nodes = {n.index: n for n in watch.channels.graph.every_node}
    least = [w[0] for w in watch.positive]
    kernels = machine.kernels(marked(watch.proto), watch.feeds)
    layers = layers_of(watch.channels, kernels, least, watch.alignment)
    if not layers.layers:
        raise NothingPrunable(
            "no layer that can get narrower could be timed, so that nothing is known of narrower models"
        )
    # A tensor of two bodies that has one name in both stands for the first.
    order = {nodes[x.node].outputs[0]: i for i, x in reversed([*enumerate(layers.layers)])}
    kept_layers = sorted(order.values())
    combinations = cuts_of(watch)
    rows: list[CutRow] = []
    seconds_of_original = 0.0
    for done, kept in enumerate(combinations):
        model = watch.cut(kept)
        progress(done, len(combinations))
        if model is None:
            continue
        ran = kernels if done == 0 else machine.kernels(model, watch.feeds)
        share, before, _ = watch.compared(model)
        seconds_of_original = seconds_of_original or before
        gone = {i for g, drop in watch.drops.items() if kept[g] == 0 for i in drop.nodes}
        timed = {layers.layer_of.get(i) for k in ran if (i := layers.named(k)) is not None}
        own = layers.seconds(ran)
        rows.append(
            CutRow(
                share,
                tuple(_lengths(layers.layers[i], kept, gone) for i in kept_layers),
                tuple(own[i] if i in timed else None for i in kept_layers),
            )
        )
    progress(len(combinations), len(combinations))
    full = watch.channels.sizes
    return Target(
        name,
        how,
        dict(machine.identity()),
        watch.batch,
        {k: v.shape for k, v in watch.feeds.items()},
        watch.alignment,
        seconds_of_original,
        tuple(
            LayerRow(
                nodes[x.node].op,
                nodes[x.node].outputs[0],
                tuple(Axis(*at, float(n.at(full))) for at, n in zip(x.axes, x.lengths, strict=True)),
            )
            for x in (layers.layers[i] for i in kept_layers)
        ),
        tuple(rows),
    )


def cuts_of(watch: Stopwatch) -> list[KeptUnits]:
    """Combinations of widths, each once: all units, evenly fewer, the least, and scattered ones."""
    widths = watch.positive
    full, least, *scattered = grid(widths, SCATTERED)
    even = [tuple(min(w, key=lambda n, s=s, w=w: abs(n - s * w[-1])) for w in widths) for s in EVEN]  # type: ignore[misc]
    return list(dict.fromkeys([full, *even, least, *scattered, *_without_branches(watch, [full, *scattered])]))


def _without_branches(watch: Stopwatch, combinations: Sequence[KeptUnits]) -> list[KeptUnits]:
    """Some of these without branches that may go: from few of them to all."""
    may_go = [g for g, w in enumerate(watch.widths) if w[0] == 0]
    rng = np.random.default_rng(0)
    found: list[KeptUnits] = []
    for i in range(min(WITHOUT_BRANCHES, len(may_go))):
        count = max(len(may_go) * (i + 1) // WITHOUT_BRANCHES, 1)
        out = set(rng.permutation(may_go)[:count].tolist())
        kept = combinations[0] if i % 2 == 0 else combinations[i % len(combinations)]
        found.append(tuple(0 if g in out else n for g, n in enumerate(kept)))
    return found


def _lengths(layer: TimedLayer, kept: KeptUnits, gone: Collection[int]) -> tuple[float, ...]:
    """The lengths of a layer's axes, all 0 where it is among the nodes that are `gone`."""
    return tuple(0.0 if layer.node in gone else float(n.at(kept)) for n in layer.lengths)
