"""The ways to select channels, and to adapt the weights that stay: one row for each.

A method is a row of METHODS and the function that it names in `onnxprune.selection`; a refit is a row of REFITS and
what `onnxprune.refit` does at its level. Options, their checks and `--help` are read off the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType


class Looks(Enum):
    """What a method judges the units of a group by."""

    LAYERS = "the outputs of the layers that read it, from statistics of their inputs"
    OUTPUTS = "the outputs of the network, or with labels its loss, by gradients"
    WEIGHTS = "its weights"
    NOTHING = "nothing"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to select channels.

    function: "file.function" in `onnxprune.selection`, which makes a path of what is `Known` of a group. looks: what it
    judges by. scales: whether it gives every kept channel a coefficient. sequential: whether groups are selected one by
    one, on the inputs that the cuts before them left. fixed: whether its steps have a fixed size, else each has the
    best one. stand_in: the method for groups of which nothing is known that it could judge by. tries: the methods of
    which, group by group, the better is taken; it then has no function of its own. inverses: whether it reads inverses
    of the moments.
    """

    looks: Looks
    function: str = ""
    scales: bool = False
    sequential: bool = False
    fixed: bool = False
    stand_in: str = "magnitude"
    tries: tuple[str, ...] = ()
    inverses: bool = False

    @property
    def gradients(self) -> bool:
        """Whether the method needs gradients of the outputs, and so can read labels."""
        return self.looks is Looks.OUTPUTS

    @property
    def statistics(self) -> bool:
        """Whether the method needs statistics of the inputs of layers."""
        return self.looks is Looks.LAYERS or self.sequential


@dataclass(frozen=True, kw_only=True)
class Refit:
    """A way to adapt the weights that stay.

    level: how layers are fitted each for itself. walks: whether a walk through the pruned network follows that.
    scales: whether it folds the coefficients of the method, which then must give some.
    """

    level: str
    walks: bool = False
    scales: bool = False


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "obs": Method(looks=Looks.LAYERS, function="obs.path", inverses=True),
        "local": Method(looks=Looks.LAYERS, function="imitation.path_of_layers", scales=True, sequential=True),
        "global": Method(
            looks=Looks.OUTPUTS,
            function="imitation.path_of_outputs",
            scales=True,
            sequential=True,
            stand_in="local",
        ),
        "combined": Method(looks=Looks.OUTPUTS, scales=True, sequential=True, tries=("local", "global")),
        "gfs": Method(looks=Looks.LAYERS, function="gfs.path_of_layers", scales=True, sequential=True, fixed=True),
        "gfs-outputs": Method(
            looks=Looks.OUTPUTS,
            function="gfs.path_of_outputs",
            scales=True,
            sequential=True,
            fixed=True,
            stand_in="gfs",
        ),
        "taylor": Method(looks=Looks.OUTPUTS, function="baselines.path_of_taylor"),
        "magnitude": Method(looks=Looks.WEIGHTS, function="baselines.path_of_magnitude"),
        "random": Method(looks=Looks.NOTHING, function="baselines.path_at_random"),
    }
)

REFITS: Mapping[str, Refit] = MappingProxyType(
    {
        "lockstep": Refit(level="least-squares", walks=True),
        "least-squares": Refit(level="least-squares"),
        "scale": Refit(level="scale"),
        "greedy": Refit(level="greedy", scales=True),
        "none": Refit(level="none"),
    }
)


def tried(method: str) -> tuple[str, ...]:
    """The methods that are run for one: itself, or those of which it takes the better."""
    return METHODS[method].tries or (method,)


def with_scales() -> tuple[str, ...]:
    """The methods that give every kept channel a coefficient."""
    return tuple(name for name, row in METHODS.items() if row.scales)


def with_best_steps() -> tuple[str, ...]:
    """The methods whose steps are the best ones, for which coefficients may be free."""
    return tuple(name for name, row in METHODS.items() if row.sequential and not row.fixed)


def reading_labels() -> tuple[str, ...]:
    """The methods that look at gradients of the outputs, which with labels are those of the loss."""
    return tuple(name for name, row in METHODS.items() if row.gradients)


# What a ratio counts, and what a reader calls it.
BUDGETS: Mapping[str, str] = MappingProxyType({"macs": "MACs", "params": "parameters", "latency": "latency"})
