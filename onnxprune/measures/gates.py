"""Limits that a run is held to, each with what came of it: what a CI job shows as a list of passed and failed cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxprune.errors import CheckFailed


@dataclass(frozen=True)
class Gate:
    """One limit. name: the option that sets it. limit: as that option counts it. held: whether it is kept.

    text: what was found, or why it is not kept.
    """

    name: str
    limit: float
    held: bool
    text: str


def gate_of(name: str, limit: float, text: str, demand: Callable[[], None]) -> Gate:
    """The gate that `demand` checks by raising CheckFailed. text: what is said where it does not."""
    try:
        demand()
    except CheckFailed as e:
        return Gate(name, limit, False, str(e))
    return Gate(name, limit, True, text)


def demand_all(gates: Sequence[Gate]) -> None:
    """Raises CheckFailed with the text of every gate that is not kept."""
    failures = [g.text for g in gates if not g.held]
    if failures:
        raise CheckFailed("; ".join(failures))
