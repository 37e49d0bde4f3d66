"""One plain pass over the data, and the statistics of every layer that combines removable channels."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from onnxprune.calibration import input_moments, probe, regressions
from onnxprune.calibration.by_blocks import Blocks, too_many
from onnxprune.calibration.gate_moments import OutputMoments
from onnxprune.calibration.input_moments import InputMoments
from onnxprune.calibration.layers import Layer
from onnxprune.calibration.logits import logit_regressions
from onnxprune.channels.gates import Gate, gates_of
from onnxprune.config import PruneConfig
from onnxprune.jobs.workplace import HERE, Workplace
from onnxprune.measures.answers import Answers
from onnxprune.numerics.arrays import Doubles
from onnxprune.runtime.saturation import DEPLOYED
from onnxprune.runtime.session import Session
from onnxprune.runtime.walker import runtime_batch
from onnxprune.selection import Regression
from onnxprune.stages.answers import answers_of
from onnxprune.stages.couple import Coupled
from onnxprune.stages.goals import Goals, goals_of, probed
from onnxprune.stages.load import Loaded


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibrated:
    """Input moments by weight, and one plain pass: seconds for all samples, and answers on the held-out ones.

    logits: by group of positions inside heads, what it is worth to products of activations (`calibration.logits`).
    goals: None where nothing looks at the outputs on the samples for fitting. gates, outputs: all gates, and what the
    gradients of the outputs say of them. provider: of PROVIDERS, what the samples ran on, as the walks, trial cuts and
    recovery behind it do.
    """

    consumers: tuple[Layer, ...]
    moments: Mapping[str, InputMoments]
    plain_seconds: float
    reference: Answers
    goals: Goals | None = None
    gates: tuple[Gate, ...] = ()
    outputs: OutputMoments = field(default_factory=OutputMoments)
    provider: str = "cpu"
    logits: Mapping[int, Sequence[Regression]] = field(default_factory=dict)


# Of a plain pass so much is timed.
_PLAIN_SECONDS = 1.0
# A pass of a few milliseconds is timed so many times: one alone may be off by a factor of ten.
_PLAIN_PASSES = 5


def calibrate(
    loaded: Loaded,
    coupled: Coupled,
    settings: PruneConfig,
    place: Workplace = HERE,
    *,
    selects: bool = True,
    known: Mapping[str, Doubles] = MappingProxyType({}),
) -> Calibrated:
    """Collect statistics of every layer that combines removable channels.

    selects: also what only selection needs, the gradients of the outputs. known: moments of queries and keys.
    """
    reference = answers_of(loaded, coupled, loaded.held)
    plain = plain_pass(loaded)
    per_group = regressions.consumers_of(coupled.taken.channels, coupled.layers) if settings.reads_statistics else []
    consumers = tuple({x.weight: x for g in per_group for x in g}.values())
    n = loaded.normalised
    proto, seed = coupled.taken.proto, settings.seed
    if place.provider == "cpu" and (place.kept.lasts or too_many(consumers)):
        blocks = Blocks(
            proto=proto,
            samples=loaded.fit,
            shapes=n.shapes,
            types=n.types,
            seed=seed,
            memory=settings.memory,
            kept=place.kept,
            said=place.progress,
            scheduler=place.scheduler,
        )
        moments: Mapping[str, InputMoments] = blocks.collect(consumers)
    else:
        moments = input_moments.collect(proto, consumers, loaded.fit, n.shapes, seed, place.scheduler, place.provider)
    logits: Mapping[int, Sequence[Regression]] = {}
    if selects and settings.reads_statistics:
        logits = logit_regressions(proto, coupled.taken.channels, loaded.fit, n.shapes, seed, place.provider, known)
    found = Calibrated(
        consumers=consumers,
        moments=moments,
        plain_seconds=plain,
        reference=reference,
        provider=place.provider,
        logits=logits,
    )
    if not (selects and (settings.sequential or settings.reads_gradients)):
        return found
    goals = goals_of(loaded, coupled, reference, settings)
    layouts = coupled.observed.layouts
    gates = probe.with_samples(gates_of(coupled.seen.channels), coupled.seen.proto, loaded.fit, layouts)
    output_moments = OutputMoments()
    if settings.reads_gradients:
        output_moments = probed(loaded, coupled, consumers, gates, goals, settings, place)
    return replace(found, goals=goals, gates=gates, outputs=output_moments)


def plain_pass(loaded: Loaded) -> float:
    """Seconds that onnxruntime, with its own settings, takes for all samples: what the whole run is compared with.

    Where that is more than a second, what the first batches take stands for all; where it is far less, the quickest of
    several passes counts.
    """
    session = Session(loaded.original, spin=True, kernels=DEPLOYED)
    session.run(loaded.fit.example())
    n = loaded.normalised
    size = runtime_batch(n.shapes, n.proto, bound=loaded.fit.arrangement.samples_in(n.shapes))
    least, total = float("inf"), 0.0
    for _ in range(_PLAIN_PASSES):
        done, spent = 0, 0.0
        for feeds in loaded.fit.batches(size):
            start = time.perf_counter()
            session.run(feeds)
            spent += time.perf_counter() - start
            done += loaded.fit.count(feeds)
            if spent > _PLAIN_SECONDS:
                break
        least, total = min(least, spent / done), total + spent
        if total > _PLAIN_SECONDS / 2:
            break
    return least * loaded.count
