"""Section 5: processor time and memory of each method against units, columns, samples and rows, on synthetic data."""

from __future__ import annotations

import time
import tracemalloc
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from benchmarks.fits import exponent
from experiments.paper.networks import Kit, Network, Prepared
from experiments.paper.records import Records, Row
from onnxprune.calibration.gate_moments import collect
from onnxprune.calibration.probe import Probe, batches_of
from onnxprune.numerics.gram import Gram
from onnxprune.runtime.outputs import outputs_of
from onnxprune.selection import Regression, baselines, gfs, imitation, obs
from onnxprune.selection.quadratic import Quadratic

SECTION = "scaling"
KERNEL = 4


def cost(run: Callable[[], Any], repeats: int = 3) -> tuple[float, float]:
    """(seconds of processor time, the least of some runs; MiB that were allocated at most at once, of one more)."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return min(seconds), peak / 2**20


def problem(units: int, kernel: int, seed: int = 0) -> Regression:
    """Correlated columns, `kernel` of them per unit, as many outputs as units."""
    rng = np.random.default_rng(seed)
    columns = units * kernel
    x = rng.normal(size=(2 * columns, columns)) @ (np.eye(columns) + 0.3 * rng.normal(size=(columns, columns)) / kernel)
    p = x.T @ x / len(x)
    return Regression(p, rng.normal(size=(columns, units)), np.repeat(np.arange(units), kernel), centred=False)


def methods(r: Regression, units: int, k: Quadratic) -> dict[str, Callable[[], Any]]:
    """What a group's selection computes, from its statistics on."""
    rng = np.random.default_rng(0)
    return {
        "contributions K": lambda: r.contributions(units),
        "gfs, steps": lambda: _last(gfs.forward(k), 3 * units),
        "imitation, steps": lambda: _last(imitation.greedy(k), 3 * units),
        "gfs, whole path": lambda: gfs.select(k),
        "imitation, whole path": lambda: imitation.imitate(k),
        "obs": lambda: obs.eliminate([r], units),
        "taylor, magnitude, random": lambda: baselines.by_score(rng.random(units), k),
    }


def _last(steps: Any, count: int) -> Any:
    """Walk, and keep nothing: the coefficients of every step would be the largest thing here."""
    return deque(islice(steps, count), maxlen=1)


def selection(sizes: tuple[int, ...]) -> Row:
    """Against N, with D = 4 N columns."""
    found: dict[str, dict[str, list[float]]] = {}
    for n in sizes:
        r = problem(n, KERNEL)
        k = Quadratic.of_gram(r.contributions(n))
        for name, run in methods(r, n, k).items():
            seconds, mib = cost(run, 1 if n > 256 else 3)
            row = found.setdefault(name, {"seconds": [], "mib": []})
            row["seconds"].append(seconds)
            row["mib"].append(mib)
    return {"units": list(sizes), "methods": {k: v | _exponents(sizes, v) for k, v in found.items()}}


def _exponents(x: tuple[int, ...], row: dict[str, list[float]]) -> dict[str, Any]:
    return {"time_exponent": exponent(x, row["seconds"]), "memory_exponent": exponent(x, row["mib"])}


def columns(sizes: tuple[int, ...]) -> Row:
    """Statistics against D (2,048 rows), and block OBS against D (64 units, so that more columns are larger blocks)."""
    rng = np.random.default_rng(0)
    gram: dict[str, list[float]] = {"seconds": [], "mib": []}
    blocks: dict[str, list[float]] = {"seconds": [], "mib": []}
    for d in sizes:
        x = rng.normal(size=(1, 2048, d)).astype(np.float32)
        r = problem(64, d // 64)
        for row, run in (
            (gram, lambda x=x, d=d: Gram.zeros(1, d).update(x)),
            (blocks, lambda r=r: obs.eliminate([r], 64)),
        ):
            seconds, mib = cost(run)
            row["seconds"].append(seconds)
            row["mib"].append(mib)
    return {
        "columns": list(sizes),
        "methods": {k: v | _exponents(sizes, v) for k, v in (("Gram", gram), ("obs", blocks))},
    }


def gradients(network: Network, sizes: tuple[int, ...]) -> Row:
    """Gate gradients against samples: one projection for all groups at once; beside it a forward pass."""
    rows: dict[str, dict[str, list[float]]] = {
        k: {"seconds": [], "mib": []} for k in ("gate Gram, all groups", "a forward pass")
    }
    for n in sizes:
        prepared = Prepared.of(network, n)
        loaded, taken = prepared.loaded, prepared.coupled.taken
        goals = prepared.calibrated.goals
        assert goals is not None
        probe = Probe.of(taken.proto, taken.channels, prepared.calibrated.gates, (), loaded.normalised.types)
        assert probe.session.outputs  # opened before the clock starts
        for name, run in (
            (
                "gate Gram, all groups",
                lambda goals=goals, loaded=loaded, probe=probe, taken=taken: collect(
                    probe,
                    taken.channels,
                    batches_of(loaded.fit, taken.channels.graph, goals.fit_outputs),
                    goals.fit,
                    probes=1,
                    seed=0,
                    slope=False,
                ),
            ),
            ("a forward pass", lambda loaded=loaded: outputs_of(loaded.original, loaded.fit)),
        ):
            seconds, mib = cost(run)
            rows[name]["seconds"].append(seconds)
            rows[name]["mib"].append(mib)
    ratio = np.array(rows["gate Gram, all groups"]["seconds"]) / np.array(rows["a forward pass"]["seconds"])
    return {
        "samples": list(sizes),
        "network": network.name,
        "methods": {k: v | {"time_exponent": exponent(sizes, v["seconds"])} for k, v in rows.items()},
        "passes": [float(r) for r in ratio],
    }


def measure_all(kit: Kit, records: Records, quick: bool) -> None:
    """Three sweeps."""
    scope = kit.scope(quick)
    records.add(SECTION, "units", partial(selection, scope.units))
    records.add(SECTION, "columns", partial(columns, scope.columns))
    name, counts = scope.timed
    records.add(SECTION, "samples", lambda: gradients(kit.network(name), counts))
