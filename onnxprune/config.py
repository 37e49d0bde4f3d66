"""The options of one run, frozen and checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from onnxprune.errors import UsageError

METHODS = ("obs", "local", "magnitude", "random")
REFITS = ("lockstep", "least-squares", "scale", "none")
BUDGETS = ("macs", "params")
ATTENTIONS = ("heads", "head-dim")


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """What to remove and how.

    ratio: share of the budget to remove, in (0, 1). budget: what `ratio` counts: "macs" or "params".
    method: selection: "obs" (block OBS), "local" (greedy imitation), "magnitude", "random".
    refit: "lockstep", "least-squares", "scale" or "none". round_to: widths are multiples of this, or unchanged.
    attention: what goes in attention: whole "heads", or the same positions of every head ("head-dim"); the scale that
    the model applies to its scores stays as it is.
    min_channels: no width goes below. include, exclude: shell patterns on node or tensor names; an excluded layer keeps
    its outputs *and* its inputs. seed: of every random choice. samples: use at most this many calibration samples.
    memory: bytes that cached activations of one model may take. force: write even where a check failed.
    Raises UsageError for a value out of range.
    """

    ratio: float = 0.5
    budget: str = "macs"
    method: str = "obs"
    refit: str = "lockstep"
    round_to: int = 8
    attention: str = "heads"
    min_channels: int = 1
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    seed: int = 0
    samples: int | None = None
    memory: int = 512 << 20
    force: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.ratio < 1.0:
            raise UsageError(f"ratio {self.ratio} is outside (0, 1): it is the share of the {self.budget} to remove")
        for name, value, allowed in (
            ("budget", self.budget, BUDGETS),
            ("method", self.method, METHODS),
            ("refit", self.refit, REFITS),
            ("attention", self.attention, ATTENTIONS),
        ):
            if value not in allowed:
                raise UsageError(f"{name} {value!r} is unknown; choose one of {', '.join(allowed)}")
        for name, number in (("round_to", self.round_to), ("min_channels", self.min_channels), ("memory", self.memory)):
            if number < 1:
                raise UsageError(f"{name} is {number}; it must be at least 1")
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"samples is {self.samples}; it must be at least 1")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}; it must not be negative")

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for plans and reports."""
        return asdict(self)
