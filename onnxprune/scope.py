"""What may be cut: --include, --exclude, and the reasons where nothing is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from onnxprune import cost
from onnxprune.channels import ChannelGraph
from onnxprune.channels.frozen import SINGLE, Cause, Frozen
from onnxprune.channels.remedies import Reason
from onnxprune.config import PruneConfig
from onnxprune.errors import BudgetUnreachable, UsageError
from onnxprune.numerics.arrays import Ints, Mask
from onnxprune.state import Coupled

# The share of all weights from which on an operator that cannot be counted matters, and how many of them are named.
_MATTERS, _SHOWN = 0.01, 3


def why_nothing(channels: ChannelGraph, frozen: Mapping[int, Frozen]) -> str:
    """The option, or the most frequent reasons of the channel graph, that leave nothing to cut, and what would help."""
    asked = next((why.text for why in frozen.values() if why.asked_for), None)
    if asked is not None:
        return asked
    reasons: dict[Reason, int] = {}
    for p in channels.pinned:
        reasons[p.why.why] = reasons.get(p.why.why, 0) + p.positions
    most = sorted(reasons, key=lambda r: -reasons[r])[:3]
    if not most:
        return "the model has no weights with channels"
    return f"{'; '.join(r.text for r in most)} (what would free the first: {most[0].remedy.value})"


def frozen_groups(channels: ChannelGraph, settings: PruneConfig) -> dict[int, Frozen]:
    """Groups that may not be cut, with the reason: a single unit, --exclude, or not in --include."""
    frozen = {g.index: SINGLE for g in channels.groups if g.size < 2}
    for pattern in settings.exclude:
        for index in _groups_matching(channels, pattern, inputs=True):
            frozen.setdefault(index, Frozen(Cause.EXCLUDED, f"--exclude {pattern}"))
    if settings.include:
        chosen: set[int] = set()
        for pattern in settings.include:
            chosen |= _groups_matching(channels, pattern, inputs=False)
        for g in channels.groups:
            if g.index not in chosen:
                frozen.setdefault(g.index, Frozen(Cause.NOT_INCLUDED, "not in --include"))
    return frozen


def _groups_matching(channels: ChannelGraph, pattern: str, *, inputs: bool) -> set[int]:
    """Groups on the outputs (with `inputs` also on the inputs) of nodes, and on tensors, whose names match."""
    tensors = {t for t in channels.factors if fnmatchcase(t, pattern)}
    matched = bool(tensors)
    for n in channels.graph.every_node:
        if fnmatchcase(n.name, pattern):
            matched = True
            tensors.update(o for o in n.outputs if o)
            if inputs:
                tensors.update(i for i in n.inputs if i)
    if not matched:
        raise UsageError(f"the pattern {pattern!r} matches no node and no tensor; `onnxprune inspect` lists the names")
    found: set[int] = set()
    for t in tensors:
        found |= channels.groups_in(t)
    return found


def check_counted(coupled: Coupled, settings: PruneConfig) -> None:
    """Raises BudgetUnreachable where a share of the MACs was asked for that nobody can tell.

    What is not counted must not matter: its weights are below a hundredth of all.
    """
    if settings.ratio is None or settings.budget != "macs":
        return
    missing = cost.uncounted(coupled.channels)
    if any(x.surely or x.weights >= _MATTERS * coupled.stored_parameters for x in missing):
        raise BudgetUnreachable(
            f"the share of the MACs cannot be told, as these operators multiply, and how much is not known: "
            f"{_listed(missing)}; choose --budget params, or --uniform"
        )


def not_counted(channels: ChannelGraph) -> tuple[str, ...]:
    """For the report: what is missing in the MACs."""
    found: list[str] = []
    if missing := cost.uncounted(channels):
        found.append(f"the MACs leave out what these operators multiply, or may: {_listed(missing)}")
    if loops := cost.repeated(channels):
        named = ", ".join(loops[:_SHOWN]) + (f" and {len(loops) - _SHOWN} more" if len(loops) > _SHOWN else "")
        found.append(f"in the MACs the bodies of {named} count once, however often they run")
    return tuple(found)


def _listed(missing: Sequence[cost.Uncounted]) -> str:
    shown = [f"{x.node} ({x.operator}: {x.why})" for x in missing[:_SHOWN]]
    more = len(missing) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more else "")


def notes_on_bodies(coupled: Coupled, keep: Mask) -> list[str]:
    """For the report: what lost channels inside bodies, given the classes that stay, and could not be fitted."""
    channels = coupled.channels
    fitted = {x.weight for x in coupled.layers}

    def cut(classes: Ints | None) -> bool:
        return classes is not None and not keep[classes].all()

    inner = [x for x in channels.linears if x.node.index in channels.graph.inside and x.weight not in fitted]
    count = sum(cut(x.inputs) or cut(x.outputs) for x in inner)
    notes = [f"{count} layers inside the bodies of If, Loop or Scan were cut, but not refitted"] if count else []
    idle = sum(cut(channels.groups[g].units) for g in coupled.taken.idle)
    if idle:
        notes.append(
            f"{idle} groups were cut in branches that no calibration sample takes, by the size of their weights alone; "
            "give data that runs every branch"
        )
    return notes
