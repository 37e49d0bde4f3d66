"""Section 2: the same layers, cut alone by local or by global imitation, in every measure there is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from experiments.paper.convergence import places
from experiments.paper.networks import Alone, Kit, Network, Prepared, scores
from experiments.paper.records import Records, Row
from onnxprune.refit import layerwise
from onnxprune.selection import Path, imitation

Array = NDArray[np.float64]
SECTION = "alone"
SHARES = (0.25, 0.5, 0.75)
REFITS = ("none", "greedy", "least-squares")


def weights_of(prepared: Prepared, group: int, path: Path, n: int, level: str) -> Mapping[str, Array]:
    """The consumers' weights with n units kept, at full size, refitted as the pipeline does it."""
    channels = prepared.coupled.taken.channels
    keep = channels.keep_classes({group: path.kept(n)})
    readers, constants = prepared.consumers[group], channels.graph.constants
    if level != "greedy":
        return layerwise.in_place(readers, prepared.calibrated.moments, constants, keep, level)
    factors = np.ones(keep.size)
    factors[channels.groups[group].units] = path.coefficients_of(n)
    return layerwise.scaled(readers, constants, keep, factors)


def measure(network: Network, name: str, samples: int, seed: int = 0) -> Row:
    """One group, three widths, two methods, three refits: every discrepancy, and the answers on the test split."""
    prepared = Prepared.of(network, samples, seed)
    group = prepared.named(name)
    local, output = prepared.local(group), prepared.gauss_newton(group)
    gated = Alone(prepared, group, prepared.loaded.fit).gated()
    test = Alone(prepared, group, prepared.test)
    before = test.answers({})
    paths = {"local": imitation.imitate(local), "global": imitation.imitate(output)}
    cuts = []
    for share in SHARES:
        n = max(1, round((1 - share) * local.units))
        for method, path in paths.items():
            a = path.coefficients_of(n)
            if a is None:
                continue
            row: Row = {
                "method": method,
                "removed": share,
                "kept": n,
                "local": local.at(a) / local.c,
                "gauss_newton": output.at(a),
                "output": gated.at(a),
            }
            for level in REFITS:
                after = test.answers(weights_of(prepared, group, path, n, level))
                row[level] = scores(before, after, network.labels)
            row["shared"] = int((paths["local"].kept(n) & paths["global"].kept(n)).sum())
            cuts.append(row)
    return {"units": local.units, "samples": len(prepared.loaded.fit), "seed": seed, "cuts": cuts}


def measure_all(kit: Kit, records: Records, quick: bool) -> None:
    """The layers of section 1."""
    for p in places(quick):
        records.add(SECTION, p.key, partial(_of, kit, p.network, p.group, p.samples))


def _of(kit: Kit, network: str, group: str, samples: int) -> Row:
    return measure(kit.network(network), group, samples)
