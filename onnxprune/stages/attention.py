"""What goes in attention, where the options leave that open: whole heads, or turned positions inside them."""

from __future__ import annotations

from onnxprune import cost
from onnxprune.channels import ChannelGraph
from onnxprune.channels.head_layout import Mixed, turnable
from onnxprune.channels.products import any_product, products_of, weighted_sums
from onnxprune.config import PruneConfig
from onnxprune.plan import Plan
from onnxprune.stages.couple import trace, view_of
from onnxprune.stages.load import Loaded
from onnxprune.stages.rotate import serve_directions
from onnxprune.targets.alignment import AUTO, TARGETS

HEADS, RANK = "heads", "rank"
# The share of the multiplications which positions may leave that heads would not.
_LESS = 0.01


def attention_of(loaded: Loaded, settings: PruneConfig, replayed: Plan | None = None) -> str:
    """What goes in attention: what the options say, or the plan, or else what serves best here.

    Turned positions leave less error than whole heads where both were measured. They need data and refitted weights,
    serve neither codes of few bits nor engines that fuse attention by the size of heads, and no one measured them where
    whole layers may go.
    """
    if settings.attention != AUTO:
        return settings.attention
    if replayed is not None:
        return replayed.settings().attention
    target = TARGETS[settings.target]
    whole = settings.drop_layers or settings.layers_may_go or not settings.cuts_channels
    if whole or target.tensorrt or settings.then == "int8" or not serve_directions(loaded, settings):
        return HEADS
    return turned_where_all_may(loaded, settings)


def described_attention(loaded: Loaded, settings: PruneConfig) -> tuple[PruneConfig, tuple[str, ...]]:
    """The options as `inspect` takes them: with data a run would turn what may be turned. And what to say of that."""
    if settings.attention != AUTO or TARGETS[settings.target].tensorrt:
        return settings, ()
    chosen = settings.with_options(attention=turned_where_all_may(loaded, settings))
    if chosen.attention == HEADS:
        return chosen, ()
    note = (
        "in attention the same positions of every head go, turned first (--attention auto), where there is calibration "
        "data; else whole heads (--attention heads)"
    )
    return chosen, (note,)


def turned_where_all_may(loaded: Loaded, settings: PruneConfig) -> str:
    """Turned positions, where all attention of the model may lose these and no less goes than with whole heads."""
    if not any_product(view_of(loaded)):
        return HEADS
    positions = trace(loaded, settings.with_options(attention=RANK))
    groups = {p.group for p in (*products_of(positions), *weighted_sums(positions))}
    try:
        found = [t for g in sorted(groups) for t in turnable(positions, g)]
    except Mixed:
        return HEADS
    if not found:
        return HEADS
    whole = trace(loaded, settings.with_options(attention=HEADS))
    return RANK if _left(positions) <= _left(whole) + _LESS * _multiplied(whole) else HEADS


def _multiplied(channels: ChannelGraph) -> float:
    return cost.macs(channels).at(channels.sizes)


def _left(channels: ChannelGraph) -> float:
    """Multiplications that stay when all that may go has gone."""
    return cost.macs(channels).at([0 if size > 1 else 1 for size in channels.sizes])
