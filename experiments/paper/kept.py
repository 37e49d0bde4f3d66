"""Section 1: how many units of each layer stay, by method, of one network at one budget."""

from __future__ import annotations

from functools import partial

from experiments.paper.networks import Kit, Network
from experiments.paper.records import Records, Row
from onnxprune import prune

SECTION = "kept"
METHODS = ("local", "global", "obs")


def measure(network: Network, ratio: float, samples: int, method: str, seed: int = 0) -> Row:
    """Units and kept units of every group, of one run with the program's defaults."""
    result = prune(
        network.path, None, network.samples(samples, seed), ratio=ratio, method=method, seed=seed, round_to=1, fast=True
    )
    rows = result.report.groups
    return {
        "network": network.name,
        "ratio": ratio,
        "method": method,
        "samples": samples,
        "seed": seed,
        "names": [g.name for g in rows],
        "units": [g.channels_before for g in rows],
        "kept": [g.channels_after for g in rows],
    }


def measure_all(kit: Kit, records: Records, quick: bool) -> None:
    """The three methods."""
    name, ratio, samples = kit.scope(quick).kept
    for method in METHODS:
        records.add(SECTION, f"{name} {method}", partial(_of, kit, name, ratio, samples, method))


def _of(kit: Kit, name: str, ratio: float, samples: int, method: str) -> Row:
    return measure(kit.network(name), ratio, samples, method)
