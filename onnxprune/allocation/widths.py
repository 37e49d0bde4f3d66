"""How many units each group may keep: decided once, from the graph and the options, before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxprune.allocation import budget
from onnxprune.channels import ChannelGraph, Group
from onnxprune.channels.branches import Drop
from onnxprune.channels.frozen import SINGLE, Cause, Frozen

# The share of its units that a group must be able to lose: that of the default ratio.
USEFUL_SHARE = 0.5
_TOO_NARROW = "too narrow for --round-to and --min-channels"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the options say of widths.

    alignment: channels that they are multiples of; free: whether that may be less where a group is narrow, or the
    budget could not be met. least: channels that stay at least. share: of its units that each group must be able to
    lose. drops: whether whole branches may go; stays: names of nodes and tensors that may not.
    """

    alignment: int
    free: bool = False
    least: int = 1
    share: float = USEFUL_SHARE
    drops: bool = False
    stays: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Widths:
    """What each group may keep, by group index.

    allowed: numbers of units, ascending, the last all of them; 0 is among them where a whole branch may go. multiples:
    the channels that these are multiples of. whole: why a group stays whole, "" where it may be cut. alignment: the
    channels that widths are multiples of, narrow groups aside; relaxed: what `--round-to auto` divided that of the
    target by, as the budget could not be met with it.
    """

    allowed: tuple[tuple[int, ...], ...]
    multiples: tuple[int, ...]
    whole: tuple[str, ...]
    alignment: int
    relaxed: int = 1

    @classmethod
    def of(
        cls,
        channels: ChannelGraph,
        frozen: Mapping[int, Frozen],
        drops: Mapping[int, Drop],
        wanted: Wanted,
        relaxed: int = 1,
    ) -> Widths:
        """Decide. frozen: groups that may not be cut. drops: by index, the groups that could go as a whole branch."""
        aligned = max(wanted.alignment // relaxed, 1)
        allowed: list[tuple[int, ...]] = []
        multiples: list[int] = []
        whole: list[str] = []
        for g in channels.groups:
            least = channels.least_units[g.index]
            multiple = _multiple(g, least, aligned, wanted)
            widths = budget.allowed_widths(g.size, g.channels_per_unit, multiple, wanted.least, g.step)
            widths = tuple(w for w in widths if w >= least)
            if g.index in frozen:
                widths = (g.size,)
            elif _may_go(channels, drops.get(g.index), frozen, wanted):
                widths = (0, *widths)
            allowed.append(widths)
            multiples.append(multiple)
            why = "" if len(widths) > 1 else _TOO_NARROW
            whole.append(frozen[g.index].text if g.index in frozen else why)
        return cls(tuple(allowed), tuple(multiples), tuple(whole), aligned, relaxed)

    @classmethod
    def within(
        cls,
        channels: ChannelGraph,
        frozen: Mapping[int, Frozen],
        drops: Mapping[int, Drop],
        wanted: Wanted,
        cost: budget.CostModel,
        limit: float,
    ) -> Widths:
        """The coarsest with which what remains can cost as little as `limit`, where the alignment is a free choice.

        Where none does, those of single channels.
        """
        widths = cls.of(channels, frozen, drops, wanted)
        while wanted.free and widths.alignment > 1 and budget.smallest(cost, widths.allowed) > limit:
            widths = cls.of(channels, frozen, drops, wanted, 2 * widths.relaxed)
        return widths


def _multiple(g: Group, least: int, aligned: int, wanted: Wanted) -> int:
    """Channels that the widths of a group, of which `least` units must stay, are multiples of.

    They are fewer where the group is narrow and the alignment is a free choice.
    """
    if not wanted.free:
        return aligned
    return budget.useful_alignment(
        g.size, g.channels_per_unit, aligned, wanted.least, g.step, least=least, share=wanted.share
    )


def _may_go(channels: ChannelGraph, drop: Drop | None, frozen: Mapping[int, Frozen], wanted: Wanted) -> bool:
    """Whether all units of a group may go, with the branch that they are; nothing in that is excluded."""
    if drop is None or not wanted.drops:
        return False
    if any(frozen.get(d, SINGLE).cause is not Cause.SINGLE for d in drop.groups):
        return False
    names = {t for n in channels.graph.nodes if n.index in drop.nodes for t in (n.name, *n.outputs)}
    return wanted.stays.isdisjoint(names)
