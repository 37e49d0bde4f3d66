"""A plan and the slim model as parameters of the network that the model was exported from, so that training goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.inliner

from onnxprune import plan
from onnxprune.config import PruneConfig
from onnxprune.data.sources import files_of
from onnxprune.errors import CheckFailed, UsageError
from onnxprune.handover import state_dict as state_dicts
from onnxprune.handover.document import Handover
from onnxprune.handover.kept import heads_of
from onnxprune.handover.parameters import Parameters, misfits, parameters
from onnxprune.handover.readings import readings
from onnxprune.intake import model_file
from onnxprune.intake.model_file import ModelLike
from onnxprune.numerics.arrays import Mask
from onnxprune.options import first_of
from onnxprune.output.commit import Stage
from onnxprune.output.destination import check_outputs
from onnxprune.process import spill
from onnxprune.runtime.custom_ops import Libraries, registering
from onnxprune.runtime.custom_ops import checked as checked_libraries
from onnxprune.stages.attention import HEADS
from onnxprune.stages.couple import trace
from onnxprune.stages.load import Calibration, Loaded, load
from onnxprune.surgery import cut
from onnxprune.surgery import finish as in_form

# Whose names parameters get.
FRAMEWORKS = ("torch",)
SUFFIX = ".safetensors"
# How many names a message says.
_SHOWN = 4


def export_plan(
    planned: plan.Plan | str | os.PathLike[str],
    model: ModelLike,
    output: str | os.PathLike[str] | None = None,
    slim: ModelLike | None = None,
    *,
    to: str = FRAMEWORKS[0],
    state_dict: str | os.PathLike[str] | None = None,
    calibration: Calibration = None,
    partial: bool = False,
    overwrite: bool = False,
    allow_links: bool = False,
    custom_ops: Libraries = (),
    warn: Callable[[str], None] = lambda _: None,
) -> Handover:
    """The weights of a slim model, and what stays of which, by the parameters' names in the network itself.

    planned: the plan, or its file. model: the original that it was made for, as for `prune`. output: the file of
    safetensors to write, with a JSON of the same name beside it; None writes nothing. slim: what the plan was made
    into; without it the weights are the original's, cut and not fitted. to: whose names, of `FRAMEWORKS`. state_dict:
    the network's own parameters as safetensors: names are then found by values too, and normalisations unfolded.
    calibration: data that only fixes the sizes of symbolic dimensions. partial: parameters that could not be named may
    be missing. allow_links, custom_ops: as for `prune`. warn: called with what makes the result doubtful.
    Raises UsageError where plan, model and slim do not belong together, CheckFailed where parameters are missing, and
    the errors of reading the files; then nothing is written.
    """
    if to not in FRAMEWORKS:
        raise UsageError(f"to must be one of {', '.join(FRAMEWORKS)}, not {to!r}")
    chosen = planned if isinstance(planned, plan.Plan) else plan.load(Path(planned))
    settings = _settings(chosen, slim)
    files = _files(output, overwrite=overwrite)
    taken = (model, *files_of(calibration), None if isinstance(planned, plan.Plan) else planned, slim, state_dict)
    check_outputs((None, *files), taken, overwrite)
    if files or state_dict is not None:
        state_dicts.check_installed()
    given = None if state_dict is None else state_dicts.load(state_dict)
    with Stage(overwrite=overwrite) as stage, spill.spilling(), registering(checked_libraries(custom_ops)):
        loaded = load(model, calibration, settings, allow_links=allow_links)
        if loaded.source.sha256 != chosen.model_sha256:
            raise UsageError("the plan was made for another model (its checksum differs); give the one it was made for")
        found = _found(loaded, chosen, settings, slim, given, allow_links=allow_links)
        notes = _notes(chosen, found, refitted=slim is not None, named=given is not None)
        result = Handover(found, to, chosen.model_sha256, slim is not None, settings.attention, notes)
        _check(found, partial=partial, named=given is not None)
        for note in notes:
            warn(note)
        if files:
            weights, described = files
            stage.put(described, result.to_json().encode("utf-8"))
            stage.put(weights, result.weights())
            stage.commit()
        return result


def _settings(chosen: plan.Plan, slim: ModelLike | None) -> PruneConfig:
    """What the plan's options say of the channel graph. Raises UsageError for what is not handed over."""
    made = chosen.settings()
    if chosen.experts or made.keep_tokens:
        what = "experts" if chosen.experts else "rows of the vocabulary"
        raise UsageError(f"the plan removes {what} before channels, which export-plan does not hand over")
    if chosen.rotated and slim is None:
        raise UsageError(
            "the plan's channels are directions that were turned first: give the result with --slim, or make a plan "
            "with --attention heads --rotate off"
        )
    return PruneConfig(
        samples=2, attention=made.attention, target=made.target, state=made.state, resize_io=made.resize_io
    )


def _files(output: str | os.PathLike[str] | None, *, overwrite: bool) -> tuple[Path, ...]:
    """The weights' file, and that of the JSON, which nobody has named. Raises UsageError for a name that is none, or is
    that of a link to a file that is not there: writing would replace it."""
    if output is None:
        return ()
    path = Path(output)
    if path.suffix != SUFFIX:
        raise UsageError(f"{path} must end in {SUFFIX}; the JSON gets the same name with .json")
    found = path, path.with_suffix(".json")
    for p in found:
        if p.is_symlink() and not p.exists() and not overwrite:
            raise UsageError(f"{p} is a link that leads nowhere; use --overwrite to replace it, or name another file")
    return found


def _found(
    loaded: Loaded,
    chosen: plan.Plan,
    settings: PruneConfig,
    slim: ModelLike | None,
    state: state_dicts.StateDict | None,
    *,
    allow_links: bool,
) -> Parameters:
    channels, n = trace(loaded, settings), loaded.normalised
    keep: Mask = channels.keep_classes(chosen.masks(channels))
    if slim is None:
        result = in_form(cut(n.proto, channels, keep), n, channels, keep)
    else:
        result, _ = model_file.read(slim, allow_links=allow_links)
    if _has_codes(result) and not _has_codes(loaded.original):
        raise UsageError("the slim model holds integers: give the one in floating point (without --then, or quantize)")
    original, result = (onnx.inliner.inline_local_functions(m) if m.functions else m for m in (loaded.original, result))
    every = list(readings(original, n.proto, result, channels, keep))
    wrong = misfits(every)
    if wrong:
        raise UsageError(f"the slim model is not what this plan makes of the model: {first_of(wrong, _SHOWN)}")
    return parameters(every, state, heads_of(channels, keep))


def _has_codes(model: onnx.ModelProto) -> bool:
    return any(n.op_type == "DequantizeLinear" for n in model.graph.node)


def _check(found: Parameters, *, partial: bool, named: bool) -> None:
    """Raises CheckFailed where a parameter is missing, unless that is let pass."""
    if found.missing and not partial:
        remedy = "" if named else "give the network's own parameters with --state-dict, or "
        raise CheckFailed(
            f"{len(found.missing)} weights have no parameter of the network: {_listed(found)}; {remedy}"
            "take what was found with --partial"
        )


def _listed(found: Parameters) -> str:
    return first_of([f"{place}: {why}" for place, why in found.missing.items()], _SHOWN)


def _notes(chosen: plan.Plan, found: Parameters, *, refitted: bool, named: bool) -> tuple[str, ...]:
    notes = []
    if not refitted:
        notes.append("without --slim the weights are the original's, cut and not refitted")
    if chosen.rotated:
        notes.append(
            f"kept positions of {first_of(chosen.rotated, _SHOWN)} are directions that these were turned to, not "
            "channels of the original"
        )
    if chosen.settings().attention != HEADS:
        notes.append(
            "positions inside heads went, of values not as many as of queries and keys: a module with one size for all "
            "cannot hold that; a plan made with --attention heads leaves the sizes of heads as they are"
        )
    if found.missing:
        notes.append(f"not handed over: {_listed(found)}")
    if found.gone:
        notes.append(f"nothing stays of {first_of(sorted(found.gone), _SHOWN)}: take these modules out of the network")
    if named and found.unread:
        notes.append(f"not in the model, so they stay as they are: {first_of(found.unread, _SHOWN)}")
    return tuple(notes)
