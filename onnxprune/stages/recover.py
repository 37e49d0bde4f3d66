"""One more candidate: the best so far after learning from the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx

from onnxprune.config import PruneConfig
from onnxprune.graph import external
from onnxprune.graph.protobuf import copied
from onnxprune.measures.observed import observing
from onnxprune.normalise.tables import Table
from onnxprune.numerics.arrays import Array, Masks
from onnxprune.recovery.augment import Augment, images, in_turn, tokens
from onnxprune.recovery.recover import Material, Recovery, Schedule, Tell, recover
from onnxprune.refit.finite import keep_finite
from onnxprune.stages.answers import Judged
from onnxprune.stages.load import Loaded
from onnxprune.stages.refit import Refitted, held_out_error, nearest, spoilt
from onnxprune.surgery import replace_initializers, set_initializers
from onnxprune.surgery.vocabulary_rows import inputs_of, vocabulary_of

RECOVERED = "recovered"
_IMAGES = images(flips=True, blends=True)


def recover_weights(
    loaded: Loaded,
    judged: Judged,
    masks: Masks,
    refitted: Refitted,
    settings: PruneConfig,
    tell: Tell = lambda epoch, epochs, before, least: None,
    stop: Callable[[], bool] = lambda: False,
    provider: str = "cpu",
) -> Refitted:
    """One more candidate: the best so far after learning from the original, where that did it good.

    tell, stop: as for `recovery.recover.recover`. provider: of PROVIDERS, what both networks run on.
    """
    candidates, coupled = refitted.candidates, judged.coupled
    unfit = ""
    if loaded.fit.synthetic:
        unfit = "recovery was left out: random inputs teach nothing; use --calib"
    elif loaded.held_out is None:
        unfit = "recovery was left out: the samples are too few to hold any out; give more"
    if unfit:
        return replace(refitted, notes=(*refitted.notes, unfit))
    level = nearest({k: held_out_error(c, loaded, judged) for k, c in candidates.items()})
    model = copied(candidates[level])

    def learnt(augment: Augment) -> tuple[dict[str, Array], Recovery]:
        return recover(
            coupled.seen.proto,
            observing(coupled.taken.of(model), coupled.seen.channels.graph.outputs, loaded.normalised.types),
            coupled.seen.channels,
            coupled.layers,
            Material(loaded.fit, loaded.held, judged.reference),
            coupled.channels.keep_classes(masks),
            Schedule(
                epochs=settings.epochs,
                seed=settings.seed,
                augment=augment,
                fixed=_generated(model, loaded.normalised.tables),
                memory=settings.memory,
                provider=provider,
            ),
            tell,
            stop,
        )

    augment = augment_of(loaded)
    weights, recovery = learnt(augment)
    if recovery.failed and augment is not _IMAGES:
        # Not every model gives numbers for any tokens of its table.
        weights, recovery = learnt(_IMAGES)
    notes = [recovery.why] if recovery.why else []
    if not weights:
        notes = notes or [f"recovery did no better than {level} on held-out samples; {level} was kept"]
    else:
        before = replace_initializers(model, {})
        set_initializers(model, weights)
        undone = keep_finite(model, before, loaded.normalised.proto, coupled.layers, loaded.parts)
        notes += [spoilt(x, RECOVERED) for x in undone]
        candidates = {**candidates, RECOVERED: model}
    return replace(refitted, candidates=candidates, notes=(*refitted.notes, *notes), recovery=recovery)


def augment_of(loaded: Loaded) -> Augment:
    """What makes more samples of those that there are: of images, and of texts as token ids."""
    augment = _IMAGES
    listed = loaded.tokens
    vocabulary = vocabulary_of(loaded.original) if listed is None else listed.vocabulary
    if vocabulary is None:
        return augment
    ids = np.arange(vocabulary.count) if listed is None else listed.ids
    for name in (k for k in inputs_of(vocabulary) if k in loaded.fit.arrangement.axes):
        augment = in_turn(augment, tokens(name, loaded.fit, ids))
    return augment


def _generated(model: onnx.ModelProto, tables: Mapping[str, Table]) -> frozenset[str]:
    """The constants that the original generates, or stores as codes, and that would take more to store."""
    sizes = {t.name: external.bytes_of(t) for t in model.graph.initializer if t.name in tables}
    return frozenset(k for k, size in sizes.items() if tables[k].fixed and tables[k].bytes < size)
