"""What the network's outputs shall imitate, and what their gradients say of every channel of the uncut network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune import labels, verify
from onnxprune.calibrate import outputs
from onnxprune.calibrate.layers import Layer
from onnxprune.calibrate.outputs import OutputMoments, Probe, batches_of
from onnxprune.calibrate.samples import Samples
from onnxprune.config import PruneConfig
from onnxprune.errors import UsageError
from onnxprune.gates import Gate
from onnxprune.graph import Array, is_float
from onnxprune.objective import Objective, output_imitation, task_loss
from onnxprune.state import HERE, Coupled, Goals, Loaded, Place


def goals_of(loaded: Loaded, coupled: Coupled, reference: Mapping[str, Array], settings: PruneConfig) -> Goals:
    """What the network's outputs shall imitate: those of the original, or the labels."""
    answers = {id(loaded.held): _single(reference)}
    if loaded.fit is not loaded.held:
        answers[id(loaded.fit)] = _single(verify.outputs_of(loaded.original, loaded.fit))

    def objective(samples: Samples) -> Objective:
        known = answers[id(samples)]
        if settings.labels is None:
            return output_imitation(known, len(samples))
        probabilities = labels.after_softmax(coupled.taken.channels.graph, next(iter(known), ""))
        return task_loss(known, labels.of(samples, settings.labels), probabilities=probabilities)

    fit, held = objective(loaded.fit), objective(loaded.held)
    if not (fit.names and held.names):
        raise UsageError(
            "no output in floating point has rows for every sample, so nothing can be said of their discrepancy: use "
            "--method obs, gfs, magnitude or random, and a budget instead of --tolerance"
        )
    return Goals(fit, held, answers[id(loaded.fit)], answers[id(loaded.held)])


def probed(
    loaded: Loaded,
    coupled: Coupled,
    consumers: Sequence[Layer],
    gates: Sequence[Gate],
    goals: Goals,
    settings: PruneConfig,
    place: Place = HERE,
) -> OutputMoments:
    """What the gradients of the outputs say of every channel, at the uncut network."""
    taken = coupled.taken
    layers = consumers if settings.metric == "kronecker" else ()
    probe = Probe.of(taken.proto, taken.channels, gates, layers, loaded.normalised.types, place.provider)
    batches = batches_of(loaded.fit, taken.channels.graph, goals.fit_outputs)
    slope = settings.labels is not None
    return outputs.collect(
        probe,
        taken.channels,
        batches,
        goals.fit,
        probes=settings.probes,
        seed=settings.seed,
        slope=slope,
        scheduler=place.scheduler,
    )


def _single(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Half precision is widened: seeds are differences over many samples, and would vanish."""
    return {k: v.astype(np.float32) if is_float(v.dtype) and v.dtype.itemsize < 4 else v for k, v in outputs.items()}
