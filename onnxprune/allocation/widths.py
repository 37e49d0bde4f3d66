"""How many units each group may keep: decided once, from the graph and the options, before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from onnxprune.allocation import budget
from onnxprune.channels import ChannelGraph, Group
from onnxprune.channels.branches import Drop
from onnxprune.channels.frozen import SINGLE, Cause, Frozen
from onnxprune.config import PruneConfig
from onnxprune.targets.alignment import AUTO, TARGETS

# The share of its units that a group must be able to lose: that of the default ratio.
USEFUL_SHARE = 0.5
_TOO_NARROW = "too narrow for --round-to and --min-channels"


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
        settings: PruneConfig,
        relaxed: int = 1,
    ) -> Widths:
        """Decide. frozen: groups that may not be cut. drops: by index, the groups that could go as a whole branch."""
        aligned = alignment(settings, relaxed)
        allowed: list[tuple[int, ...]] = []
        multiples: list[int] = []
        whole: list[str] = []
        for g in channels.groups:
            least = channels.least_units[g.index]
            multiple = _multiple(g, least, aligned, settings)
            widths = budget.allowed_widths(g.size, g.channels_per_unit, multiple, settings.min_channels, g.step)
            widths = tuple(w for w in widths if w >= least)
            if g.index in frozen:
                widths = (g.size,)
            elif _may_go(channels, drops.get(g.index), frozen, settings):
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
        settings: PruneConfig,
        price: budget.CostModel,
        limit: float,
    ) -> Widths:
        """The coarsest with which what remains can cost as little as `limit`, where the alignment is a free choice.

        Where none does, those of single channels.
        """
        found = cls.of(channels, frozen, drops, settings)
        while settings.round_to == AUTO and found.alignment > 1 and budget.smallest(price, found.allowed) > limit:
            found = cls.of(channels, frozen, drops, settings, 2 * found.relaxed)
        return found


def alignment(settings: PruneConfig, relaxed: int = 1) -> int:
    """Channels that widths are multiples of, narrow groups aside."""
    if isinstance(settings.round_to, int):
        return settings.round_to
    return max(TARGETS[settings.target].alignment // relaxed, 1)


def _multiple(g: Group, least: int, aligned: int, settings: PruneConfig) -> int:
    """Channels that the widths of a group, of which `least` units must stay, are multiples of.

    With `auto` they are fewer where the group is narrow.
    """
    if settings.round_to != AUTO:
        return aligned
    share = max(USEFUL_SHARE, settings.uniform or 0.0)
    return budget.useful_alignment(
        g.size, g.channels_per_unit, aligned, settings.min_channels, g.step, least=least, share=share
    )


def _may_go(channels: ChannelGraph, drop: Drop | None, frozen: Mapping[int, Frozen], settings: PruneConfig) -> bool:
    """Whether all units of a group may go, with the branch that they are; nothing in that is excluded."""
    if drop is None or not settings.drops:
        return False
    if any(frozen.get(d, SINGLE).cause is not Cause.SINGLE for d in drop.groups):
        return False
    names = {t for n in channels.graph.nodes if n.index in drop.nodes for t in (n.name, *n.outputs)}
    return not any(fnmatchcase(name, pattern) for name in names for pattern in settings.exclude)
