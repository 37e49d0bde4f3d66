"""The plan: which units stay. Frozen data between selection and rewriting; saved and replayed as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from onnxprune.channels import ChannelGraph, Group
from onnxprune.config import PruneConfig
from onnxprune.errors import InputError, UsageError
from onnxprune.numerics.arrays import Doubles, Mask
from onnxprune.options import first_of
from onnxprune.regular_files import PLAN_BYTES, content

T = TypeVar("T")

FORMAT = 3
# Plans of the formats 1 and 2 do not say which data they were made with.
_READ = (1, 2, FORMAT)
# Scales on a layer's inputs, where 1 leaves a channel as it is: what no float32 holds is none.
_MOST_SEED = 2**63 - 1
_MOST_COEFFICIENT = float(np.finfo(np.float32).max)
_SHOWN = 3


@dataclass(frozen=True)
class GroupPlan:
    """One group: its name, number of units, and the indices of those that stay, ascending.

    coefficients: of the units that stay, where a greedy method gave any: 1 leaves a channel as it is.
    """

    name: str
    units: int
    kept: tuple[int, ...]
    coefficients: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ExpertsPlan:
    """A mixture that loses experts before anything else goes: the name of its node, how many it has, those that stay.

    kept: ascending.
    """

    name: str
    count: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What to keep in the model with this checksum: of every group that may lose units, also where all of them stay.

    Groups that may not (a single unit, --exclude, a branch that goes as a whole) are left out.

    data_sha256: of the samples that it was made with, labels aside; None where that is not known. split_seed: what
    divided these into those for fitting and those held out; None: the seed of the config. data: where data that were
    prepared came from, and how, for people to read. layers: the layers of a
    transformer that go as a whole, with all groups that they consist of: for people, too. experts: of mixtures that
    lose some. rotated: the groups whose units are directions in which their stream was turned first, by this data
    (`stages.rotate`).
    """

    model_sha256: str
    config: Mapping[str, Any]
    groups: tuple[GroupPlan, ...]
    data_sha256: str | None = None
    split_seed: int | None = None
    data: str = ""
    layers: tuple[str, ...] = ()
    experts: tuple[ExpertsPlan, ...] = ()
    rotated: tuple[str, ...] = ()

    @property
    def divided_by(self) -> int:
        """The seed of the split: a replay holds out what the plan has not seen, whatever its own seed is."""
        return self.settings().seed if self.split_seed is None else self.split_seed

    def settings(self) -> PruneConfig:
        """The options that the plan was made with; `force` is never taken over.

        Raises InputError where they are none of this version's.
        """
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in self.config.items()}
        try:
            return PruneConfig(**(values | {"force": False}))
        except (TypeError, UsageError) as e:
            raise InputError(f"the plan's config is not one of onnxprune: {e}") from e

    def masks(self, channels: ChannelGraph) -> dict[int, Mask]:
        """Mask over the units of each planned group that loses any, by group index.

        Raises UsageError where a group does not fit.
        """
        by_name = _by_name(channels)
        masks: dict[int, Mask] = {}
        for p in self.groups:
            g = by_name.get(p.name)
            if g is None or g.size != p.units:
                raise UsageError(f"the plan's group {p.name!r} ({p.units} units) is not in this model; make a new plan")
            mask = np.zeros(g.size, bool)
            mask[list(p.kept)] = True
            if g.rows is not None and np.unique(np.bincount(g.rows[mask], minlength=g.step)).size > 1:
                raise UsageError(
                    f"the plan keeps unequal parts of {p.name!r}, whose sets are balanced; make a new plan"
                )
            if not mask.all():
                masks[g.index] = mask
        return masks

    def coefficients(self, channels: ChannelGraph) -> dict[int, Doubles]:
        """Coefficients over the units of each planned group that has any, by group index; 0 where a unit goes."""
        by_name = _by_name(channels)
        coefficients: dict[int, Doubles] = {}
        for p in self.groups:
            if p.coefficients is not None:
                coefficients[by_name[p.name].index] = a = np.zeros(p.units)
                a[list(p.kept)] = p.coefficients
        return coefficients

    def to_json(self) -> str:
        """The plan as JSON text; equal plans give equal text."""
        data = {
            "format": FORMAT,
            "model_sha256": self.model_sha256,
            "data_sha256": self.data_sha256,
            "config": dict(self.config),
            "groups": [
                {"name": g.name, "units": g.units, "kept": list(g.kept)}
                | ({} if g.coefficients is None else {"coefficients": list(g.coefficients)})
                for g in self.groups
            ],
        }
        if self.split_seed is not None:
            data["split_seed"] = self.split_seed
        if self.data:
            data["data"] = self.data
        if self.layers:
            data["layers"] = list(self.layers)
        if self.experts:
            data["experts"] = [{"name": e.name, "experts": e.count, "kept": list(e.kept)} for e in self.experts]
        if self.rotated:
            data["rotated"] = list(self.rotated)
        return json.dumps(data, indent=1, sort_keys=True) + "\n"


def _by_name(channels: ChannelGraph) -> dict[str, Group]:
    """The groups by their names, and by those that plans of 0.4.0 and before have for them."""
    return {g.older: g for g in channels.groups} | {g.name: g for g in channels.groups}


def make(
    channels: ChannelGraph,
    masks: Mapping[int, Mask],
    model_sha256: str,
    data_sha256: str,
    config: Mapping[str, Any],
    coefficients: Mapping[int, Doubles] | None = None,
    uncut: Collection[int] = (),
    data: str = "",
    layers: Sequence[str] = (),
    experts: Sequence[ExpertsPlan] = (),
    rotated: Sequence[str] = (),
) -> Plan:
    """The plan of keeping `masks`, with `coefficients` over the units (both by group index).

    uncut: the groups that might have lost units, and stay whole. data, layers, experts, rotated: as in `Plan`.
    """
    every = {i: np.ones(channels.groups[i].size, bool) for i in uncut} | {i: m for i, m in masks.items() if not m.all()}
    groups = tuple(
        GroupPlan(
            channels.groups[i].name,
            channels.groups[i].size,
            tuple(np.flatnonzero(mask).tolist()),
            tuple(coefficients[i][mask].tolist()) if coefficients and i in masks and i in coefficients else None,
        )
        for i, mask in sorted(every.items())
    )
    return Plan(
        model_sha256,
        config,
        groups,
        data_sha256,
        data=data,
        layers=tuple(layers),
        experts=tuple(experts),
        rotated=tuple(rotated),
    )


def check_origin(chosen: Plan, model_sha256: str, data_sha256: str, *, synthetic: bool, force: bool) -> tuple[str, ...]:
    """Raises UsageError unless the plan was made for this model and with this data; notes on what is let pass.

    What lockstep, least squares and recovery make of a plan depends on the data as much as the plan does. data_sha256:
    of this run's samples, which are random inputs where `synthetic`. force: lets other data pass, never another model.
    """
    if chosen.model_sha256 != model_sha256:
        raise UsageError("the plan was made for another model (its checksum differs); make a new plan")
    if chosen.data_sha256 == data_sha256:
        return ()
    if chosen.data_sha256 is None and not synthetic:
        return ("the plan is of a format that does not say which data it was made with; that was not compared",)
    if synthetic and chosen.data_sha256 is None:
        doubt = "the plan does not say which data it was made with, and none is given"
    elif synthetic:
        doubt = "the plan was made with other data than the random inputs of this run"
    else:
        doubt = "the plan was made with other data (its checksum differs; --samples and --seed choose from it)"
    if chosen.rotated:
        raise UsageError(
            f"{doubt}, and its channels are directions (of {first_of(chosen.rotated, _SHOWN)}) that only that data "
            "tells: give the same data with --calib, or make a new plan, with --attention heads --rotate off one of "
            "the model's own channels"
        )
    if not force:
        raise UsageError(f"{doubt}: give the same data with --calib, make a new plan, or add --force to replay it here")
    return (f"--force: {doubt}; whether that has seen what is held out here is not known",)


def load(path: str | Path) -> Plan:
    """Read a plan. Raises InputError where it is missing or malformed."""
    try:
        data = json.loads(content(path, InputError, PLAN_BYTES).decode("utf-8"), object_pairs_hook=_once)
    except RecursionError:
        raise InputError(f"{path} is not a plan: it is nested too deeply") from None
    except ValueError as e:  # no UTF-8, no JSON, or a number of thousands of digits
        raise InputError(f"{path} is not a plan: {e}") from e
    try:
        version = _of(int, _of(dict, data, "a plan")["format"], "the format")
        if version not in _READ:
            raise InputError(f"{path} has plan format {version}, this version reads {FORMAT}; make a new plan")
        groups = tuple(_group(g) for g in _of(list, data["groups"], "the groups"))
        if len({g.name for g in groups}) < len(groups):
            raise ValueError("a group is named twice")
        checksum, config = _of(str, data["model_sha256"], "the checksum"), _of(dict, data["config"], "the config")
        data_checksum = data.get("data_sha256")
        seed = data.get("split_seed")
        if seed is not None and not 0 <= _of(int, seed, "the seed of the split") <= _MOST_SEED:
            raise ValueError(f"the seed of the split must be from 0 to {_MOST_SEED}")
        data_sha256 = None if data_checksum is None else _of(str, data_checksum, "the checksum of the data")
        told = _of(str, data.get("data", ""), "the data")
        layers = tuple(_of(str, x, "a layer") for x in _of(list, data.get("layers", []), "the layers"))
        mixtures = tuple(_experts(e) for e in _of(list, data.get("experts", []), "the experts"))
        if len({e.name for e in mixtures}) < len(mixtures):
            raise ValueError("a mixture is named twice")
        rotated = tuple(_of(str, x, "a stream") for x in _of(list, data.get("rotated", []), "the streams"))
        return Plan(checksum, config, groups, data_sha256, seed, told, layers, mixtures, rotated)
    except KeyError as e:
        raise InputError(f"{path} is not a plan of onnxprune: {e} is missing") from e
    except (TypeError, ValueError) as e:
        raise InputError(f"{path} is not a plan of onnxprune: {e}") from e


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The members of an object. Raises ValueError for a key that stands there twice: readers differ in which counts."""
    members = dict(pairs)
    if len(members) < len(pairs):
        twice = next(k for k, n in Counter(k for k, _ in pairs).items() if n > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return members


def _of(kind: type[T], value: Any, what: str) -> T:
    """`value`, where it is of that type exactly: True is no number, and 1.5 no unit."""
    if type(value) is not kind:
        raise ValueError(f"{what} must be of type {kind.__name__}, not {type(value).__name__}")
    return value


def _experts(data: Any) -> ExpertsPlan:
    fields = _of(dict, data, "a mixture")
    name = _of(str, fields["name"], "the name of a mixture")
    count = _of(int, fields["experts"], f"the experts of {name!r}")
    kept = tuple(_of(int, k, f"an expert of {name!r}") for k in _of(list, fields["kept"], f"what {name!r} keeps"))
    if not kept or sorted(set(kept)) != list(kept) or kept[0] < 0 or kept[-1] >= count:
        raise ValueError(f"the mixture {name!r} must keep some of its {count} experts, in ascending order")
    return ExpertsPlan(name, count, kept)


def _group(data: Any) -> GroupPlan:
    fields = _of(dict, data, "a group")
    name = _of(str, fields["name"], "the name of a group")
    units = _of(int, fields["units"], f"the units of group {name!r}")
    kept = tuple(_of(int, k, f"a unit of group {name!r}") for k in _of(list, fields["kept"], f"what {name!r} keeps"))
    if sorted(set(kept)) != list(kept) or (kept and (kept[0] < 0 or kept[-1] >= units)):
        raise ValueError(f"group {name!r} must keep some of its {units} units, in ascending order, or none")
    if fields.get("coefficients") is None:
        return GroupPlan(name, units, kept)
    given = _of(list, fields["coefficients"], f"the coefficients of group {name!r}")
    if any(type(a) not in (int, float) for a in given) or len(given) != len(kept):
        raise ValueError(f"group {name!r} must have a coefficient for each unit that stays")
    coefficients = tuple(float(a) if abs(a) < _MOST_COEFFICIENT else inf for a in given)
    if not np.isfinite(coefficients).all():
        raise ValueError(f"the coefficients of group {name!r} must be finite")
    return GroupPlan(name, units, kept, coefficients)
