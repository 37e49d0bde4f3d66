"""Which whole layers --drop-layers names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from onnxprune.channels import ChannelGraph
from onnxprune.channels.branches import together
from onnxprune.channels.whole_layers import WholeLayer
from onnxprune.errors import BudgetUnreachable, UsageError
from onnxprune.options import nearest
from onnxprune.targets.alignment import AUTO

DROP_LAYERS = "--drop-layers"
_NEAREST = 3


def named_layers(layers: Sequence[WholeLayer], wanted: Sequence[str]) -> frozenset[int]:
    """The numbers of the layers that go: by number, by several with commas between them, or by a pattern of their names
    (where they have none, of their numbers). Raises UsageError for one that means none, and where there is no layer
    that could go."""
    if wanted and not layers:
        raise UsageError(
            f"{DROP_LAYERS}: no attention with a feed-forward block can go as a whole here; leave it out (caches need "
            "--resize-io too, of all layers)"
        )
    gone: set[int] = set()
    for text in (part for given in wanted for part in _parts(given)):
        if text == AUTO:
            continue
        if _is_number(text):
            found = {x.number for x in layers if x.number == int(text)}
            hint = f"the model has the layers 0 to {len(layers) - 1}"
        else:
            found = {x.number for x in layers if fnmatchcase(x.name or str(x.number), text)}
            near = nearest(text.strip("*"), [x.name for x in layers if x.name], _NEAREST)
            hint = f"did you mean {near}?" if near else "`onnxprune inspect` lists them"
        if not found:
            raise UsageError(f"{DROP_LAYERS} {text} matches no layer; {hint}")
        gone |= found
    return frozenset(gone)


def check_together(channels: ChannelGraph, layers: Sequence[WholeLayer], gone: Collection[int]) -> None:
    """Raises BudgetUnreachable where these layers cannot go at the same time: something else needs one of them, as what
    tells the length of the past needs a cache."""
    groups = sorted(g for x in layers if x.number in gone for g in x.groups)
    if len(together(channels, groups)) < len(groups):
        raise BudgetUnreachable(
            f"the layers of {DROP_LAYERS} cannot all go, as what is left needs one of them (of layers with caches of a "
            "kind, one); leave one out"
        )


def _parts(text: str) -> list[str]:
    """The numbers of a list of them; any other text is one pattern, commas and all."""
    parts = [p.strip() for p in text.split(",")]
    return parts if all(_is_number(p) for p in parts) else [text]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
