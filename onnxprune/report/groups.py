"""The groups of a report in words: widths, heads as heads, what a cut saves, and what it does to the outputs by itself.

A group is a mapping with the fields of `report.summary.GroupRow`, a curve one with those of `CurveRow`; of groups in
files of version 1.0 the later fields are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxprune.measures.figures import percent
from onnxprune.report.units import count

Group = Mapping[str, Any]
Curve = Mapping[str, Any]
NOT_CUT = "a cut here would cost more accuracy than elsewhere"
NOT_MEASURED = "not measured"


def is_cut(group: Group) -> bool:
    """Whether a group lost channels."""
    return bool(group["channels_after"] != group["channels_before"])


def why_whole(group: Group) -> str:
    """Why a group that is not cut stays whole."""
    return str(group["note"] or NOT_CUT)


def width(group: Group) -> str:
    """How wide a group is, before and after: "16 → 8", of heads of attention "8 → 5 heads (of 64)"."""
    before, after = _counted(group)
    number = str(before) if before == after else f"{before} → {after}"
    if not group.get("head"):
        return number
    kind = "key/value head" if group.get("shared") else "head"
    return f"{number} {kind}{'' if before == after == 1 else 's'} (of {group['head']})"


def _counted(group: Group) -> tuple[int, int]:
    """Units before and after where they are heads, else channels."""
    if group.get("head"):
        before, after = group["units"]
        return int(before), int(after)
    return int(group["channels_before"]), int(group["channels_after"])


def counted_in(group: Group) -> tuple[str, int]:
    """What a group's width counts, and how many channels of the curves each of them is."""
    if group.get("head"):
        return "heads", max(int(group["channels_before"]) // max(int(group["units"][0]), 1), 1)
    return "channels", 1


def layer_called(layer: Mapping[str, Any]) -> str:
    """A whole layer, as `WholeLayerRow` has it: "layer 3 = /model/layers.3 (attention + feed-forward)"."""
    name = f" = {layer['name']}" if layer["name"] else ""
    return f"layer {layer['number']}{name} ({' + '.join(layer['branches'])})"


def in_runs(numbers: Sequence[int]) -> str:
    """Ascending numbers, three neighbours and more as one run: "0-2, 5, 7"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in runs)


def error_of_layer(layer: Mapping[str, Any]) -> str:
    """The error of the outputs without a whole layer; empty where that was not tried."""
    return "" if layer["error"] is None else percent(layer["error"])


def of_whole(number: int, whole: int) -> str:
    """A number, and its share of the `whole` model's where that has any: "295 k (26.3%)"."""
    return f"{count(number)} ({number / whole:.1%})" if whole else count(number)


def saving(group: Group, kind: str, whole: int) -> str:
    """What a cut of this group alone saves: "147 k (13.2%)" of the `whole` model. kind: "macs" or "parameters"."""
    if not group.get(kind):
        return ""
    before, after = group[kind]
    return of_whole(before - after, whole)


def time_saved(timing: Mapping[str, Any] | None, group: int) -> str:
    """The predicted share of a run's time that the cut of a group saves by itself; empty where no layer was timed."""
    saved = (timing or {}).get("saved") or ()
    return f"{saved[group]:.1%}" if group < len(saved) else ""


def share(group: Group, whole: int) -> str:
    """The multiplications that a group has a part in: "295 k (26.3%)" of the `whole` model."""
    if not group.get("macs"):
        return ""
    return of_whole(group["macs"][0], whole)


def curves_by_group(curves: Sequence[Curve]) -> dict[int, Curve]:
    """The curve of each group by its number."""
    return {int(c["group"]): c for c in curves}


def error_alone(curve: Curve | None, group: Group) -> str:
    """The error of the outputs with this group alone cut as far as it is: "2.9%", estimated "~2.9%"."""
    if curve is None:
        return ""
    after = group["channels_after"]
    error = dict(zip(curve["channels"], curve["errors"], strict=True)).get(after)
    return "" if error is None else ("" if after in curve["tried"] else "~") + percent(error)


def sensitivity(curve: Curve | None, group: Group) -> str:
    """What a group does to the outputs when it alone is cut: to the width it has now, or else as far as was tried."""
    found = None if curve is None else _looked_at(curve, group)
    if curve is None or found is None:
        return NOT_MEASURED
    after, error = found
    what, each = counted_in(group)
    of = "" if what == "channels" else f" {what}"
    told = "is" if after in curve["tried"] else "is, estimated,"
    before = int(group["channels_before"]) // each
    return f"cut alone from {before} to {after // each}{of}, the outputs' error {told} {percent(error)}"


def if_cut(curve: Curve | None, group: Group) -> str:
    """The same of a group that stays whole, in short: "33.5% at 8"; empty where no cut of it was tried."""
    found = None if curve is None else _looked_at(curve, group)
    return "" if found is None else f"{percent(found[1])} at {found[0] // counted_in(group)[1]}"


def _looked_at(curve: Curve, group: Group) -> tuple[int, float] | None:
    """(channels, error) at the width that a group has now, else at the least one that was tried; None without any."""
    points = dict(zip(curve["channels"], curve["errors"], strict=True))
    after = group["channels_after"]
    if is_cut(group) and points.get(after) is not None:
        return after, points[after]
    return min(((c, points[c]) for c in curve["tried"] if points.get(c) is not None), default=None)
