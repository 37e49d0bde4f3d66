"""The options of one run, frozen and checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from onnxprune.errors import UsageError

METHODS = ("obs", "local", "magnitude", "random")
# What reads labels.
LABELLED = ("global", "combined", "taylor")
REFITS = ("lockstep", "least-squares", "scale", "none")
BUDGETS = ("macs", "params")
ATTENTIONS = ("heads", "head-dim")
RATIO = 0.5


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """What to remove and how.

    ratio: share of the budget to remove, in (0, 1); 0.5 unless `uniform` is given. budget: what `ratio` counts: "macs"
    or "params". uniform: instead of a ratio, the share of its channels that every group loses, in (0, 1).
    method: selection: "obs" (block OBS), "local" (greedy imitation), "magnitude", "random".
    refit: "lockstep", "least-squares", "scale" or "none". round_to: widths are multiples of this, or unchanged.
    attention: what goes in attention: whole "heads", or the same positions of every head ("head-dim"); the scale that
    the model applies to its scores stays as it is.
    min_channels: no width goes below. include, exclude: shell patterns on node or tensor names; an excluded layer keeps
    its outputs *and* its inputs. seed: of every random choice. samples: use at most this many calibration samples.
    labels: the key of the calibration data that holds the labels, for the methods in LABELLED; None without any.
    memory: bytes that cached activations of one model may take. force: write even where a check failed.
    Raises UsageError for a value out of range.
    """

    ratio: float | None = None
    budget: str = "macs"
    uniform: float | None = None
    method: str = "obs"
    refit: str = "lockstep"
    round_to: int = 8
    attention: str = "heads"
    min_channels: int = 1
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    seed: int = 0
    samples: int | None = None
    labels: str | None = None
    memory: int = 512 << 20
    force: bool = False

    def __post_init__(self) -> None:
        if self.ratio is not None and self.uniform is not None:
            raise UsageError("ratio and uniform exclude each other: a share of the budget, or the same of every group")
        if self.ratio is None and self.uniform is None:
            object.__setattr__(self, "ratio", RATIO)
        for name, share, meaning in (
            ("ratio", self.ratio, f"the share of the {self.budget} to remove"),
            ("uniform", self.uniform, "the share of its channels that every group loses"),
        ):
            if share is not None and not 0.0 < share < 1.0:
                raise UsageError(f"{name} {share} is outside (0, 1): it is {meaning}")
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
        if self.labels is not None and self.method not in LABELLED:
            raise UsageError(
                f"method {self.method!r} reads no labels, only {', '.join(LABELLED)} do; leave labels out, or change it"
            )
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}; it must not be negative")

    @property
    def share(self) -> float:
        """`ratio` or `uniform`, whichever was chosen."""
        chosen = self.ratio if self.uniform is None else self.uniform
        assert chosen is not None
        return chosen

    @property
    def reads_statistics(self) -> bool:
        """Whether selection, allocation or refit look at the statistics of layer inputs."""
        return self.uniform is None or self.method not in ("magnitude", "random") or self.refit != "none"

    def with_options(self, **options: Any) -> PruneConfig:
        """A copy with single fields replaced, where `ratio` and `uniform` also replace each other."""
        if ("ratio" in options) != ("uniform" in options):
            options = {"ratio": None, "uniform": None} | options
        return replace(self, **options)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for plans and reports."""
        return asdict(self)
