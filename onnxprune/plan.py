"""The plan: which units stay. Frozen data between selection and rewriting; saved and replayed as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels import ChannelGraph
from onnxprune.config import PruneConfig
from onnxprune.errors import InputError, UsageError

FORMAT = 3
# Plans of the formats 1 and 2 do not say which data they were made with.
_READ = (1, 2, FORMAT)


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
class Plan:
    """What to keep in the model with this checksum; groups that lose nothing are left out.

    data_sha256: of the samples that it was made with, labels aside; None where that is not known.
    """

    model_sha256: str
    config: Mapping[str, Any]
    groups: tuple[GroupPlan, ...]
    data_sha256: str | None = None

    def settings(self) -> PruneConfig:
        """The options that the plan was made with; `force` is never taken over.

        Raises InputError where they are none of this version's.
        """
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in self.config.items()}
        try:
            return PruneConfig(**(values | {"force": False}))
        except (TypeError, UsageError) as e:
            raise InputError(f"the plan's config is not one of onnxprune: {e}") from e

    def masks(self, channels: ChannelGraph) -> dict[int, NDArray[np.bool_]]:
        """Mask over the units of each planned group, by group index. Raises UsageError where a group does not fit."""
        by_name = {g.name: g for g in channels.groups}
        found: dict[int, NDArray[np.bool_]] = {}
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
            found[g.index] = mask
        return found

    def coefficients(self, channels: ChannelGraph) -> dict[int, NDArray[np.float64]]:
        """Coefficients over the units of each planned group that has any, by group index; 0 where a unit goes."""
        by_name = {g.name: g for g in channels.groups}
        found: dict[int, NDArray[np.float64]] = {}
        for p in self.groups:
            if p.coefficients is not None:
                found[by_name[p.name].index] = a = np.zeros(p.units)
                a[list(p.kept)] = p.coefficients
        return found

    def to_json(self) -> str:
        """As text; equal plans give equal text."""
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
        return json.dumps(data, indent=1, sort_keys=True) + "\n"


def make(
    channels: ChannelGraph,
    masks: Mapping[int, NDArray[np.bool_]],
    model_sha256: str,
    data_sha256: str,
    config: Mapping[str, Any],
    coefficients: Mapping[int, NDArray[np.float64]] | None = None,
) -> Plan:
    """The plan of keeping `masks`, with `coefficients` over the units (both by group index)."""
    groups = tuple(
        GroupPlan(
            channels.groups[i].name,
            channels.groups[i].size,
            tuple(np.flatnonzero(mask).tolist()),
            tuple(coefficients[i][mask].tolist()) if coefficients and i in coefficients else None,
        )
        for i, mask in sorted(masks.items())
        if not mask.all()
    )
    return Plan(model_sha256, config, groups, data_sha256)


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
        found = "the plan does not say which data it was made with, and none is given"
    elif synthetic:
        found = "the plan was made with other data than the random inputs of this run"
    else:
        found = "the plan was made with other data (its checksum differs; --samples and --seed choose from it)"
    if not force:
        raise UsageError(f"{found}: give the same data with --calib, make a new plan, or add --force to replay it here")
    return (f"--force: {found}",)


def load(path: str | Path) -> Plan:
    """Read a plan. Raises InputError where it is missing or malformed."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise InputError(f"{path} is not a plan: {e}") from e
    try:
        if data["format"] not in _READ:
            raise InputError(f"{path} has plan format {data['format']}, this version reads {FORMAT}; make a new plan")
        groups = tuple(_group(g) for g in data["groups"])
        known = data.get("data_sha256")
        return Plan(str(data["model_sha256"]), dict(data["config"]), groups, None if known is None else str(known))
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{path} is not a plan of onnxprune: {type(e).__name__} {e}") from e


def _group(data: Mapping[str, Any]) -> GroupPlan:
    units, kept = int(data["units"]), tuple(int(k) for k in data["kept"])
    if sorted(set(kept)) != list(kept) or (kept and (kept[0] < 0 or kept[-1] >= units)):
        raise ValueError(f"group {data['name']!r} must keep some of its {units} units, in ascending order, or none")
    given = data.get("coefficients")
    if not isinstance(given, list | None):
        raise ValueError(f"group {data['name']!r} must have a list of coefficients, or none")
    coefficients = None if given is None else tuple(float(a) for a in given)
    if coefficients is not None and (len(coefficients) != len(kept) or not np.isfinite(coefficients).all()):
        raise ValueError(f"group {data['name']!r} must have a finite coefficient for each unit that stays")
    return GroupPlan(str(data["name"]), units, kept, coefficients)
