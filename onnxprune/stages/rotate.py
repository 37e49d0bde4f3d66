"""Linear streams turned to the directions that tell their readers most, before anything is selected."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from onnxprune.calibration import input_moments
from onnxprune.calibration.layers import Layer
from onnxprune.channels.linear_streams import LinearStream, linear_streams
from onnxprune.config import PruneConfig
from onnxprune.errors import CheckFailed, UsageError
from onnxprune.graph import external
from onnxprune.methods import METHODS, Looks
from onnxprune.numerics.arrays import Array, Doubles
from onnxprune.numerics.patches import pointwise
from onnxprune.numerics.rotation import pooled, telling
from onnxprune.plan import Plan
from onnxprune.stages.couple import Coupled
from onnxprune.stages.load import Loaded
from onnxprune.stages.verify import Original
from onnxprune.surgery.rotate import rotated
from onnxprune.targets.alignment import TARGETS

# Channels of a stream; the time that eigenvectors take grows with their third power.
_MOST = 2048
_NOT_THESE = (
    "the plan's channels are directions (of {}) that were turned before they were chosen, and {}: make a new plan"
)


@dataclass(frozen=True, eq=False)
class Rotated:
    """The model after this stage: as it was, or with its linear streams turned.

    groups: names of the groups whose channels are other ones now. original: what the checks have asked of the original.
    moments: by tensor, of the queries and keys of products that were turned, as `calibration.logits` wants them.
    """

    loaded: Loaded
    original: Original
    groups: tuple[str, ...] = ()
    moments: Mapping[str, Doubles] = field(default_factory=dict)


def streams_to_turn(
    loaded: Loaded,
    coupled: Coupled,
    settings: PruneConfig,
    replayed: Plan | None = None,
    others: Collection[str] = (),
) -> list[LinearStream]:
    """The streams that the options want turned, and that may be; of a replay those that its plan names.

    others: names of groups that are turned otherwise. Raises UsageError where a plan wants streams turned that cannot
    be.
    """
    wanted = {*replayed.rotated} - {*others} if replayed is not None else set[str]()
    if not (_wanted(loaded, settings) if replayed is None else wanted):
        return []
    n = loaded.normalised
    fixed = {*n.tables, *coupled.observed.tensors, *loaded.with_defaults.weights}
    # What a plan was made for counts, whatever else is excluded by now.
    stays = coupled.choices.frozen if replayed is None else ()
    streams = [s for s in linear_streams(coupled.channels, stays, fixed) if s.units.size <= _MOST]
    streams = [s for s in streams if _tensors(coupled, s)]
    if replayed is None:
        return streams
    streams = [s for s in streams if _names(coupled, s) <= wanted]
    missing = sorted(wanted - {name for s in streams for name in _names(coupled, s)})
    if settings.rotate == "off":
        raise UsageError(_NOT_THESE.format(", ".join(replayed.rotated), "--rotate off leaves them as they are"))
    if missing:
        raise UsageError(_NOT_THESE.format(", ".join(replayed.rotated), f"{missing[0]!r} cannot be turned here"))
    return streams


def idle_rotation(
    loaded: Loaded, streams: Sequence[LinearStream], settings: PruneConfig, replayed: Plan | None = None
) -> tuple[str, ...]:
    """What to say where `--rotate auto` turns nothing."""
    if settings.rotate != "auto" or streams or replayed is not None:
        return ()
    if loaded.fit.synthetic:
        why = "random inputs have no directions; give calibration data (--calib)"
    elif TARGETS[settings.target].integers:
        why = f"the target {settings.target} computes with codes, which serve channels of like size best"
    elif not _wanted(loaded, settings):
        why = "the method or the refit that is asked for makes no use of directions"
    else:
        why = "no stream that linear layers alone write and read can be cut here"
    return (f"--rotate auto turned nothing: {why}",)


def rotate(
    loaded: Loaded,
    coupled: Coupled,
    streams: Sequence[LinearStream],
    settings: PruneConfig,
    replayed: Plan | None = None,
    provider: str = "cpu",
) -> Rotated:
    """The model with these streams turned. provider: of PROVIDERS, what the samples run on.

    It is held against the original, at every size, before anything is cut: where it differs, the model stays as it
    was, with a note. A replay cannot go on without: raises CheckFailed.
    """
    n = loaded.normalised
    seed = settings.seed if replayed is None else replayed.divided_by
    read = [_tensors(coupled, s) for s in streams]
    sampled = [x for own in read for x in own]
    moments = input_moments.grams(coupled.taken.proto, sampled, loaded.fit, n.shapes, seed, provider)
    stored = external.Weights(n.proto.graph.initializer)
    turns: list[tuple[LinearStream, Doubles]] = []
    for stream, own in zip(streams, read, strict=True):
        pairs = [(moments[x.weight][0], _weighed(y, stored)) for x, readers in own.items() for y in readers]
        seen, weights = pooled(pairs)
        if np.isfinite(seen).all() and np.isfinite(weights).all():
            turns.append((stream, telling(seen, weights)))
    proto = rotated(n.proto, coupled.channels.linears, turns)
    groups = tuple(sorted(name for s, _ in turns for name in _names(coupled, s)))
    note = f"turned to the directions that tell their readers most (--rotate): the streams of {', '.join(groups)}"
    refused = "no stream was turned (--rotate)"
    return held(loaded, proto, groups, (note,), refused, replays=replayed is not None)


def held(
    loaded: Loaded,
    turned: onnx.ModelProto,
    groups: tuple[str, ...],
    told: Sequence[str],
    refused: str,
    *,
    replays: bool,
) -> Rotated:
    """A turned normal form, with `told` as notes, where it gives what the original gives at every size.

    Else the model as it was, with a note that starts with `refused`; where a plan is replayed, raises CheckFailed.
    """
    result = replace(loaded, normalised=replace(loaded.normalised, proto=turned))
    original = Original(result)
    try:
        original.normal_form  # noqa: B018  asked for here, and kept
    except CheckFailed as e:
        if replays:
            raise
        return as_it_was(loaded, f"{refused}: {e}")
    return Rotated(replace(result, notes=(*loaded.notes, *told)), original, groups)


def as_it_was(loaded: Loaded, note: str) -> Rotated:
    """The model that was not turned, with what there is to say of that."""
    return Rotated(replace(loaded, notes=(*loaded.notes, note)), Original(loaded))


def serve_directions(loaded: Loaded, settings: PruneConfig) -> bool:
    """Whether directions would be of use in place of channels.

    Random inputs have none, some methods look at none, what is not fitted does not make use of them, and codes of few
    bits are made for channels of like size.
    """
    looks = METHODS[settings.method].looks in (Looks.LAYERS, Looks.OUTPUTS) and settings.level == "least-squares"
    return looks and not loaded.fit.synthetic and not TARGETS[settings.target].integers


def _wanted(loaded: Loaded, settings: PruneConfig) -> bool:
    return settings.rotate == "auto" and serve_directions(loaded, settings)


def _tensors(coupled: Coupled, stream: LinearStream) -> dict[Layer, list[Layer]]:
    """For each tensor of a stream that layers read, one that reads all single positions of it, and these layers."""
    layers = {x.weight: x for x in coupled.layers}
    by_tensor: dict[str, list[Layer]] = {}
    for x in (layers[w] for w in stream.readers if w in layers):
        by_tensor.setdefault(x.data, []).append(x)
    first = {x[0]: x for x in by_tensor.values()}
    return {replace(x, bias="", window=x.window and pointwise(x.window)): own for x, own in first.items()}


def _weighed(layer: Layer, stored: Mapping[str, Array]) -> Doubles:
    """W Wᵀ (C, C) of a layer, over all positions of its kernel."""
    matrix = layer.matrix(stored)[0, : layer.channels * layer.kernel_size]
    by_position = matrix.reshape(layer.kernel_size, layer.channels, -1)
    weights: Doubles = np.einsum("kcm,kdm->cd", by_position, by_position, optimize=True)
    return weights


def _names(coupled: Coupled, stream: LinearStream) -> set[str]:
    return {coupled.channels.groups[g].name for g in stream.groups}
