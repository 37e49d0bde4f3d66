"""What goes to the trainer, as two files: the weights by parameter, and a JSON of what else a loader needs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from onnxprune.handover import state_dict
from onnxprune.handover.parameters import Parameters

FORMAT = 1


@dataclass(frozen=True, repr=False)
class Handover:
    """What `export_plan` found.

    parameters: the weights, and what stays of which. framework: whose names these are. model_sha256: of the original.
    refitted: whether the weights are those of the slim model, or cut ones of the original. attention: what goes in
    attention, as in PruneConfig. notes: what makes it doubtful.
    """

    parameters: Parameters
    framework: str
    model_sha256: str
    refitted: bool
    attention: str
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """In a line: weights fill screens."""
        return f"Handover({len(self.parameters.values)} parameters, {len(self.parameters.missing)} missing)"

    def to_json(self) -> str:
        """All but the weights; equal hand-overs give equal text."""
        p = self.parameters
        data: dict[str, Any] = {
            "format": FORMAT,
            "framework": self.framework,
            "model_sha256": self.model_sha256,
            "refitted": self.refitted,
            "attention": self.attention,
            "kept": {name: {str(a): list(k) for a, k in axes.items()} for name, axes in p.kept.items()},
            "shapes": {name: list(shape) for name, shape in p.shapes.items()},
            "groups": p.groups,
            "heads": {
                name: {"axis": h.axis, "before": h.before, "after": h.after, "size": h.size}
                for name, h in p.heads.items()
            },
            "tied": p.tied,
            "added": sorted(p.added),
            "unfolded": p.unfolded,
            "gone": sorted(p.gone),
            "missing": p.missing,
            "unread": p.unread,
        }
        return json.dumps(data, indent=1, sort_keys=True) + "\n"

    def weights(self) -> bytes:
        """The file of safetensors. Raises UsageError where that library is not installed."""
        return state_dict.dump(self.parameters.values, {"format": "pt"})
