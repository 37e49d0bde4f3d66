"""What the network's outputs shall imitate, and what their gradients say of every channel of the uncut network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.calibration import gate_moments
from onnxprune.calibration.gate_moments import OutputMoments
from onnxprune.calibration.layers import Layer
from onnxprune.calibration.probe import Probe, batches_of
from onnxprune.channels.gates import Gate
from onnxprune.config import PruneConfig
from onnxprune.data import class_labels
from onnxprune.data.samples import Samples
from onnxprune.errors import UsageError
from onnxprune.jobs.workplace import HERE, Workplace
from onnxprune.measures.answers import Answers
from onnxprune.numerics.arrays import Array, is_float
from onnxprune.objective import Objective, imitation_of, task_loss
from onnxprune.stages.answers import answers_of
from onnxprune.stages.couple import Coupled
from onnxprune.stages.load import Loaded


@dataclass(frozen=True, eq=False, kw_only=True)
class Goals:
    """What the outputs shall imitate, with the original's outputs.

    fit: on the samples for fitting. deciding: on those that a tolerance is held against. held: on those held out from
    both, for the report. Where there are none of a kind, see `Loaded`.
    """

    fit: Objective
    deciding: Objective
    held: Objective
    fit_outputs: Mapping[str, Array]
    deciding_outputs: Mapping[str, Array]


def goals_of(loaded: Loaded, coupled: Coupled, reference: Answers, settings: PruneConfig) -> Goals:
    """What the network's outputs shall imitate: those of the original, or the labels."""
    if loaded.fit.ragged and settings.reads_gradients:
        raise UsageError(
            "the samples differ in size, so that gradients of their outputs have no common shape: use --method obs, "
            "gfs, local, magnitude or random, or give samples of one size"
        )
    on_held = _single(reference)

    def answers_on(samples: Samples) -> Answers:
        if samples is loaded.held:
            return on_held
        parts = (*reference.parts, *reference.left_out)
        return _single(answers_of(loaded, coupled, samples, tuple(dict.fromkeys(parts))))

    on_fit, on_deciding = answers_on(loaded.fit), answers_on(loaded.deciding)

    def objective(samples: Samples, answers: Answers) -> Objective:
        if settings.labels is None:
            return imitation_of(answers)
        probabilities = class_labels.after_softmax(coupled.taken.channels.graph, next(iter(answers.values), ""))
        return task_loss(answers.values, class_labels.of(samples, settings.labels), probabilities=probabilities)

    fit, held = objective(loaded.fit, on_fit), objective(loaded.held, on_held)
    deciding = held if loaded.deciding is loaded.held else objective(loaded.deciding, on_deciding)
    seen = coupled.seen.channels.graph.outputs
    lost = next((o for o in seen if any(o not in a.values for a in (on_held, on_deciding, on_fit))), None)
    if lost is not None and settings.reads_gradients:
        raise UsageError(
            f"output {lost!r} is no tensor, or has sizes that depend on the samples, so nothing can be said of its "
            "gradients: use --method obs, gfs, magnitude or random"
        )
    if not (fit.names and held.names and deciding.names):
        raise UsageError(
            "no output in floating point has rows for every sample, so nothing can be said of their discrepancy: use "
            "--method obs, gfs, magnitude or random, and a budget instead of --tolerance"
        )
    fit_outputs, outputs = ({o: v for o, v in a.values.items() if o in seen} for a in (on_fit, on_deciding))
    return Goals(fit=fit, deciding=deciding, held=held, fit_outputs=fit_outputs, deciding_outputs=outputs)


def probed(
    loaded: Loaded,
    coupled: Coupled,
    consumers: Sequence[Layer],
    gates: Sequence[Gate],
    goals: Goals,
    settings: PruneConfig,
    place: Workplace = HERE,
) -> OutputMoments:
    """What the gradients of the outputs say of every channel, at the uncut network."""
    taken = coupled.seen
    layers = consumers if settings.metric == "kronecker" else ()
    layouts = coupled.observed.layouts
    probe = Probe.of(taken.proto, taken.channels, gates, layers, loaded.normalised.types, place.provider, layouts)
    batches = batches_of(loaded.fit, taken.channels.graph, goals.fit_outputs)
    slope = settings.labels is not None
    return gate_moments.collect(
        probe,
        taken.channels,
        batches,
        goals.fit,
        probes=settings.probes,
        seed=settings.seed,
        slope=slope,
        scheduler=place.scheduler,
    )


def _single(answers: Answers) -> Answers:
    """Half precision is widened: seeds are differences over many samples, and would vanish."""
    wide = {
        k: v.astype(np.float32) if is_float(v.dtype) and v.dtype.itemsize < 4 else v for k, v in answers.values.items()
    }
    return replace(answers, values=wide)
