"""Which whole layers --drop-layers names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from onnxprune.channels.whole_layers import WholeLayer
from onnxprune.errors import UsageError
from onnxprune.options import nearest
from onnxprune.targets.alignment import AUTO

DROP_LAYERS = "--drop-layers"
_NEAREST = 3


def named_layers(layers: Sequence[WholeLayer], wanted: Sequence[str]) -> frozenset[int]:
    """The numbers of the layers that go: by number, or by a pattern of their names (where they have none, of their
    numbers). Raises UsageError for one that means none, and where there is no layer that could go."""
    if wanted and not layers:
        raise UsageError(
            f"{DROP_LAYERS}: no attention with a feed-forward block can go as a whole here; leave it out (caches need "
            "--resize-io too)"
        )
    gone: set[int] = set()
    for text in wanted:
        if text == AUTO:
            continue
        if text.isascii() and text.isdigit():
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
