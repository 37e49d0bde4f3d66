"""How many units each group may keep: decided once, from the graph and the options, before anything is measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from onnxprune.allocation import budget
from onnxprune.channels import ChannelGraph, Group
from onnxprune.channels.branches import Drop
from onnxprune.channels.frozen import SINGLE, Cause, Frozen
from onnxprune.channels.whole_layers import WholeLayer
from onnxprune.errors import UsageError

# The share of its units that a group must be able to lose: that of the default ratio.
USEFUL_SHARE = 0.5
_TOO_NARROW = "too narrow for --round-to and --min-channels"
_CAPPED = "too narrow for --max-ratio, with --round-to and --min-channels"
# How far from a share that was asked for the alignment may take a group, as a share of its units.
_NEAR = 0.05
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the options say of widths.

    alignment: channels that they are multiples of; free: whether that may be less where a group is narrow, or the
    budget could not be met. least: channels that stay at least. share: of its units that each group must be able to
    lose. drops: whether whole branches may go; stays: names of nodes and tensors that may not. shares: by group index,
    what these lose, neither more nor less; most_share: what any other one loses at most. alike: sets of groups that
    keep equally many units. layers: those that may go as a whole, where their branches may; gone: the numbers of those
    that do go.
    """

    alignment: int
    free: bool = False
    least: int = 1
    share: float = USEFUL_SHARE
    drops: bool = False
    stays: frozenset[str] = frozenset()
    shares: Mapping[int, float] = field(default_factory=dict)
    most_share: float | None = None
    alike: tuple[tuple[int, ...], ...] = ()
    layers: tuple[WholeLayer, ...] = ()
    gone: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Widths:
    """What each group may keep, by group index.

    allowed: numbers of units, ascending, the last all of them, but for a group that has a share of its own: one
    number; 0 is among them where a whole branch may go. multiples:
    the channels that these are multiples of. whole: why a group stays whole, "" where it may be cut. alignment: the
    channels that widths are multiples of, narrow groups aside; relaxed: what `--round-to auto` divided that of the
    target by, as the budget could not be met with it. alike: sets of groups that keep equally many. layers: those that
    may go as a whole, if all their groups keep nothing; gone: the numbers of those among them that do.
    """

    allowed: tuple[tuple[int, ...], ...]
    multiples: tuple[int, ...]
    whole: tuple[str, ...]
    alignment: int
    relaxed: int = 1
    alike: tuple[tuple[int, ...], ...] = ()
    layers: tuple[WholeLayer, ...] = ()
    gone: frozenset[int] = frozenset()

    @property
    def narrowest(self) -> tuple[tuple[int, ...], ...]:
        """The widths of each group, with none at all where it may go with its layer."""
        own = {g for x in self.layers for g in x.groups}
        return tuple((0, *w) if g in own and w[0] else w for g, w in enumerate(self.allowed))

    @property
    def gone_groups(self) -> frozenset[int]:
        """The groups of the layers that go."""
        return frozenset(g for x in self.layers if x.number in self.gone for g in x.groups)

    def without(self, layers: Collection[int]) -> Widths:
        """The same without these layers, by number: their groups keep nothing, and are like no others."""
        out = {g for x in self.layers if x.number in layers for g in x.groups}
        allowed = tuple((0,) if g in out else w for g, w in enumerate(self.allowed))
        alike = tuple(rest for groups in self.alike if len(rest := tuple(g for g in groups if g not in out)) > 1)
        return replace(self, allowed=allowed, alike=alike, gone=self.gone.union(layers))

    @classmethod
    def of(
        cls,
        channels: ChannelGraph,
        frozen: Mapping[int, Frozen],
        drops: Mapping[int, Drop],
        wanted: Wanted,
        relaxed: int = 1,
    ) -> Widths:
        """Decide. frozen: groups that may not be cut. drops: by index, the groups that could go as a whole branch.

        Raises UsageError where groups cannot be alike, and where a layer cannot go that has to.
        """
        aligned = max(wanted.alignment // relaxed, 1)
        allowed: list[tuple[int, ...]] = []
        multiples: list[int] = []
        whole: list[str] = []
        for g in channels.groups:
            least = _least(g, channels.least_units[g.index], wanted)
            multiple = _multiple(g, least, aligned, wanted)
            widths = _from(least, g, multiple, wanted)
            if g.index in frozen:
                widths = (g.size,)
            elif g.index in wanted.shares:
                multiple, width = _of_share(g, wanted.shares[g.index], least, aligned, wanted)
                widths = (width,)
            elif g.index in drops and _may_go(channels, drops[g.index], frozen, wanted):
                widths = (0, *widths)
            allowed.append(widths)
            multiples.append(multiple)
            narrow = _TOO_NARROW if wanted.most_share is None else _CAPPED
            why = narrow if widths == (g.size,) and g.index not in wanted.shares else ""
            whole.append(frozen[g.index].text if g.index in frozen else why)
        layers = tuple(x for x in wanted.layers if not _why_layer_stays(channels, x, frozen, wanted))
        for x in wanted.layers:
            if x.number in wanted.gone and x not in layers:
                why = _why_layer_stays(channels, x, frozen, wanted)
                raise UsageError(f"--drop-layers: {x.called} cannot go: {why}")
        out = {g for x in layers if x.number in wanted.gone for g in x.groups}
        for groups in wanted.alike:
            common = _common(channels, [g for g in groups if g not in out] or groups, allowed, frozen)
            for index in groups:
                allowed[index] = common
        found = cls(tuple(allowed), tuple(multiples), tuple(whole), aligned, relaxed, wanted.alike, layers)
        return found.without(wanted.gone)


@dataclass(frozen=True, eq=False, kw_only=True)
class Choices:
    """What widths follow from, whatever the budget is. frozen, drops: as for `Widths.of`.

    cost: against the units kept, and that of the original, `full`: what a budget is met by.
    """

    channels: ChannelGraph
    frozen: Mapping[int, Frozen]
    drops: Mapping[int, Drop]
    wanted: Wanted
    cost: budget.CostModel
    full: float

    def at(self, ratio: float | None) -> Widths:
        """The coarsest with which so much of the cost can go, where the alignment is a free choice.

        Where none does, those of single channels. Without a ratio, or of 0, those of the alignment. Raises UsageError.
        """
        widths = self._of(1)
        limit = (1.0 - ratio) * self.full if ratio else float("inf")
        while self.wanted.free and widths.alignment > 1 and budget.smallest(self.cost, widths.narrowest) > limit:
            widths = self._of(2 * widths.relaxed)
        return widths

    def _of(self, relaxed: int) -> Widths:
        return Widths.of(self.channels, self.frozen, self.drops, self.wanted, relaxed)


def _least(g: Group, least: int, wanted: Wanted) -> int:
    """The units that stay at least: those that the graph needs, and those that a cap on the share leaves."""
    share = 0.0 if g.index in wanted.shares else wanted.most_share or 0.0
    return max(least, ceil((1.0 - share) * g.size - _ROUNDING)) if share else least


def _from(least: int, g: Group, multiple: int, wanted: Wanted) -> tuple[int, ...]:
    widths = budget.allowed_widths(g.size, g.channels_per_unit, multiple, wanted.least, g.step)
    return tuple(w for w in widths if w >= least)


def _of_share(g: Group, share: float, least: int, aligned: int, wanted: Wanted) -> tuple[int, int]:
    """(channels that the width is a multiple of, the units that stay) of a group that loses a share of its own.

    The alignment is halved, where it is a free choice, until a width is near what was asked for.
    """
    asked = (1.0 - share) * g.size
    multiple = aligned
    while True:
        width = budget.nearest(_from(least, g, multiple, wanted), asked)
        if not wanted.free or multiple == 1 or abs(width - asked) <= _NEAR * g.size:
            return multiple, width
        multiple //= 2


def _common(
    channels: ChannelGraph, groups: Sequence[int], allowed: Sequence[tuple[int, ...]], frozen: Mapping[int, Frozen]
) -> tuple[int, ...]:
    """The widths that groups have in common, of which nothing may go as a whole. Raises UsageError."""
    members = [channels.groups[g] for g in groups]
    first = members[0]
    other = next((g for g in members if (g.size, g.channels_per_unit) != (first.size, first.channels_per_unit)), None)
    if other is not None:
        a, b = (f"{g.name!r} {g.size * g.channels_per_unit} channels" for g in (first, other))
        raise UsageError(f"--same-widths: {a} and {b} have no width in common; give patterns that tell them apart")
    stays = next((g for g in members if g.index in frozen), None)
    if stays is not None:
        raise UsageError(
            f"--same-widths: {stays.name!r} stays whole ({frozen[stays.index].text}), and the others with it; leave it "
            "out of the pattern"
        )
    common = set(allowed[first.index]).intersection(*(allowed[g] for g in groups)) - {0}
    if not common:
        raise UsageError(
            f"--same-widths: {', '.join(repr(g.name) for g in members[:3])} have no width in common; give them one "
            "share (--ratio-of), and less of --round-to"
        )
    return tuple(sorted(common))


def _multiple(g: Group, least: int, aligned: int, wanted: Wanted) -> int:
    """Channels that the widths of a group, of which `least` units must stay, are multiples of.

    They are fewer where the group is narrow and the alignment is a free choice.
    """
    if not wanted.free:
        return aligned
    return budget.useful_alignment(
        g.size, g.channels_per_unit, aligned, wanted.least, g.step, least=least, share=wanted.share
    )


def _may_go(channels: ChannelGraph, drop: Drop, frozen: Mapping[int, Frozen], wanted: Wanted) -> bool:
    """Whether all units of a group may go, with the branch that they are; nothing in that is excluded."""
    if not wanted.drops or wanted.most_share is not None:
        return False
    return not _why_stays(channels, drop.nodes, drop.groups, frozen, wanted)


def _why_layer_stays(channels: ChannelGraph, layer: WholeLayer, frozen: Mapping[int, Frozen], wanted: Wanted) -> str:
    """Why a layer may not go as a whole; "" where it may."""
    if wanted.most_share is not None:
        return "--max-ratio leaves some of each group"
    held = next((frozen[g].text for g in layer.groups if frozen.get(g, SINGLE).cause is not Cause.SINGLE), "")
    chosen = layer.number not in wanted.gone and not wanted.shares.keys().isdisjoint(layer.groups)
    if held or chosen:  # of a layer that is named, that counts
        return held or "--ratio-of says what it loses"
    return _why_stays(channels, layer.nodes, layer.dead, frozen, wanted)


def _why_stays(
    channels: ChannelGraph, gone: Collection[int], dead: Collection[int], frozen: Mapping[int, Frozen], wanted: Wanted
) -> str:
    """Why these nodes, and the groups that go with them, have to stay; "" where they need not."""
    if not {*wanted.shares, *(g for groups in wanted.alike for g in groups)}.isdisjoint(dead):
        return "--ratio-of or --same-widths says what goes of it"
    held = next((frozen[d].text for d in dead if frozen.get(d, SINGLE).cause is not Cause.SINGLE), "")
    if held:
        return held
    names = {t for n in channels.graph.nodes if n.index in gone for t in (n.name, *n.outputs)}
    return "" if wanted.stays.isdisjoint(names) else "--exclude or --exclude-after keeps it"
