"""The networks that are measured, their data, and one network prepared by the pipeline's own stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.accuracy import kits
from benchmarks.accuracy.kits import load_kit
from experiments.paper.scope import BUNDLED, BUNDLED_QUICK, FULL, MOBILENET, QUICK, RESNET20, RESNET56, Scope
from onnxprune.calibration import regressions
from onnxprune.calibration.gated_network import GatedNetwork
from onnxprune.calibration.layers import Layer
from onnxprune.calibration.probe import Batch
from onnxprune.calibration.readers import outputs_behind
from onnxprune.channels.gates import Gate, by_group
from onnxprune.config import PruneConfig
from onnxprune.data.inputs import input_specs
from onnxprune.data.samples import Samples
from onnxprune.data.sources import checked
from onnxprune.graph import protobuf
from onnxprune.objective import Objective, output_imitation
from onnxprune.runtime.outputs import outputs_of
from onnxprune.runtime.session import Session, concatenated
from onnxprune.runtime.walker import Walker
from onnxprune.selection.known import Known
from onnxprune.selection.quadratic import Quadratic
from onnxprune.stages import calibrate, couple, load
from onnxprune.stages.calibrate import Calibrated
from onnxprune.stages.couple import Coupled
from onnxprune.stages.load import Loaded
from onnxprune.surgery import set_initializers

__all__ = ["MOBILENET", "RESNET20", "RESNET56", "Alone", "Bundled", "Kit", "Network", "Prepared", "Recorder", "scores"]

Array = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Network:
    """A model file and its data. calib: inputs (N, ...); test: inputs and labels."""

    path: Path
    calib: Array
    test: Array
    labels: Array

    @property
    def name(self) -> str:
        """Of the file."""
        return self.path.stem

    @cached_property
    def input(self) -> str:
        """The name of its input."""
        proto = onnx.load(self.path)
        weights = {t.name for t in proto.graph.initializer}
        return next(v.name for v in proto.graph.input if v.name not in weights)

    def samples(self, count: int, seed: int) -> dict[str, Array]:
        """A seeded choice of calibration samples, by input name."""
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self.calib))[:count])
        return {self.input: self.calib[chosen]}

    def few(self, test: int) -> Network:
        """With the first `test` test samples alone."""
        return replace(self, test=self.test[:test], labels=self.labels[:test])


class Kit:
    """A folder of trained models with data, `kit.py` with `for_model(path, split)` and `models/*.onnx`, and the bundled
    ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, Network] = {}

    def network(self, name: str) -> Network:
        """One of the models, with its data."""
        if name not in self._known:
            reader = Bundled() if name.startswith("digits_") else self
            self._known = {name: reader._read(name)}  # one at a time: ImageNet's take half a gigabyte
        return self._known[name]

    def scope(self, quick: bool) -> Scope:
        """What of it is measured."""
        return QUICK if quick else FULL

    def _read(self, name: str) -> Network:
        path = self.folder / "models" / f"{name}.onnx"
        calib, _ = self._module.for_model(path, "calib")
        test, labels = self._module.for_model(path, "test")
        return Network(path, calib, test, labels)

    @cached_property
    def _module(self) -> Any:
        return load_kit(self.folder)


class Bundled(Kit):
    """The digit classifiers that come with the source alone: no other folder is needed."""

    def __init__(self) -> None:
        super().__init__(Path(__file__).resolve().parents[2] / "models")

    def scope(self, quick: bool) -> Scope:
        """Groups of these."""
        return BUNDLED_QUICK if quick else BUNDLED

    def _read(self, name: str) -> Network:
        calib, test = (np.load(self.folder / f"digits_{split}.npz") for split in ("calib", "test"))
        return Network(self.folder / f"{name}.onnx", calib["input"], test["input"], test["label"])


def scores(before: Array, after: Array, labels: Array) -> dict[str, float]:
    """Top-1 of both, agreement, in percent, and the relative error of the outputs; before, after: (N, classes)."""
    found = kits.scores(before, after, labels)
    return {("top1" if k == "top1_after" else k): v for k, v in found.items()}


@dataclass(frozen=True, eq=False)
class Prepared:
    """The stages of the pipeline up to calibration, gradients included."""

    network: Network
    settings: PruneConfig
    loaded: Loaded
    coupled: Coupled
    calibrated: Calibrated

    @classmethod
    def of(cls, network: Network, samples: int, seed: int = 0, **options: Any) -> Prepared:
        """Load, couple, calibrate, as `prune` does it for the method `combined`, with two random projections."""
        settings = PruneConfig(
            **{"method": "combined", "probes": 2, "round_to": 1, "seed": seed, "ratio": 0.5, **options}
        )
        loaded = load.load(str(network.path), network.samples(samples, seed), settings)
        coupled = couple.couple(loaded, settings)
        return cls(network, settings, loaded, coupled, calibrate.calibrate(loaded, coupled, settings))

    @cached_property
    def consumers(self) -> list[list[Layer]]:
        """The layers that read each group."""
        return regressions.consumers_of(self.coupled.taken.channels, self.coupled.layers)

    @property
    def test(self) -> Samples:
        """The test split as the pipeline's stages want it."""
        return checked({self.network.input: self.network.test}, input_specs(self.loaded.original))

    def named(self, part: str) -> int:
        """The first group whose name, or that of its first node, contains `part`, and that layers read."""
        groups = self.coupled.taken.channels.groups
        return next(g.index for g in groups if part in f"{g.older} {g.name}" and self.consumers[g.index])

    def local(self, group: int) -> Quadratic:
        """The discrepancy of the consumers' outputs, relative to their variance."""
        g = self.coupled.taken.channels.groups[group]
        moments = self.calibrated.moments
        readers = [x for x in self.consumers[group] if x.weight in moments]
        found = regressions.regressions_of(g, readers, self.coupled.taken.channels, moments, {})
        return Known("local", group, g.size, g.rows, tuple(found)).layers

    def gauss_newton(self, group: int) -> Quadratic:
        """The discrepancy of the network's outputs, to second order at the full layer."""
        known = self.calibrated.outputs.gates[group]
        return Quadratic.around(known.gram, np.zeros(len(known.gram)), 0.0)


class Recorder:
    """An objective that keeps the outputs it sees: `GatedNetwork` then shows what the gated network answers."""

    def __init__(self, names: Sequence[str], samples: int) -> None:
        self.names, self.samples = tuple(names), samples
        self.seen: list[dict[str, Array]] = []

    def value(self, outputs: Mapping[str, Array], index: Any) -> float:
        """Nothing is measured."""
        del index
        self.seen.append(dict(outputs))
        return 0.0

    gradient = probe = None  # type: ignore[assignment]  # never asked for

    def answers(self) -> Array:
        """The first output over all batches so far, and a fresh start."""
        found = np.concatenate([s[self.names[0]] for s in self.seen])
        self.seen = []
        return found


class Alone:
    """One group of a network on its own: everything before it has run, and only what is behind it runs again."""

    def __init__(self, prepared: Prepared, group: int, samples: Samples, reference: Mapping[str, Array] | None = None):
        self.prepared, self.group, self.samples = prepared, group, samples
        taken = prepared.coupled.taken
        self.channels = taken.channels
        consumers = prepared.consumers[group]
        first = min(consumers, key=lambda x: x.node.index).data
        walker = Walker(
            taken.proto, samples, prepared.loaded.normalised.types, self.channels.graph.shapes, 1 << 30, hold_out=False
        )
        walker.move_to((first,))
        outputs = outputs_behind(self.channels, {x.node.index for x in consumers})
        self.part = protobuf.submodel(taken.proto, walker.frontier, outputs)
        self.batches, start = [], 0
        for feeds, count in zip(walker.batches, walker.counts, strict=True):
            self.batches.append(Batch(feeds, {}, slice(start, start + count), count))
            start += count
        if reference is None:
            reference = outputs_of(prepared.loaded.original, samples)
        self.objective = output_imitation(reference, len(samples))

    def gates(self) -> list[Gate]:
        """Those of the group."""
        every = self.prepared.calibrated.gates
        return [every[i] for i in by_group(self.channels, every).get(self.group, ())]

    def gated(self, objective: Objective | None = None) -> GatedNetwork:
        """The true discrepancy of the outputs as a function of the group's coefficients."""
        types = self.prepared.loaded.normalised.types
        objective = self.objective if objective is None else objective
        return GatedNetwork(self.part, self.channels, self.group, self.gates(), types, self.batches, objective)

    def answers(self, weights: Mapping[str, Array]) -> Array:
        """The first output with these weights in place of the network's own."""
        part = onnx.ModelProto()
        part.CopyFrom(self.part)
        set_initializers(part, weights)
        session = Session(part, single=True)
        found = concatenated([session.run(b.feeds) for b in self.batches])[session.outputs[0]]
        return found.reshape(len(self.samples), -1)
