"""Limits that a run is held to, each with what came of it: what a CI job shows as a list of passed and failed cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnxprune.errors import CheckFailed, UsageError
from onnxprune.measures.figures import Figure, Figures, Shown, digits_apart, percent
from onnxprune.measures.verdict import demand
from onnxprune.options import error_limit, nearest

# Shares are ratios of small integers: a limit that is met exactly must not fail by a rounding error.
SLACK = 1e-9
# The key of a limit that holds for every output without one of its own.
EVERY = ""


@dataclass(frozen=True)
class Gate:
    """One limit. name: the option that sets it. limit: as that option counts it. held: whether it is kept.

    text: what was found, or why it is not kept.
    """

    name: str
    limit: float
    held: bool
    text: str


def as_typed(name: str, limit: float) -> str:
    """The limit as the command line takes it: --max-drop 1, --max-error OUT:0.05, --min-metric NAME=0.7."""
    option, _, subject = name.partition(" ")
    if not subject:
        return f"{name} {limit:g}"
    return f"{option} {subject}{'=' if option.endswith('-metric') else ':'}{limit:g}"


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


def at_least(name: str, limit: float, value: float, what: str, shown: Shown = percent) -> Gate:
    """A figure that must not be below its limit. what: its own name. shown: what writes either."""
    held = value >= limit - SLACK * max(1.0, abs(limit))
    return _gate(name, limit, value, what, shown, "at least" if held else "below", held=held)


def at_most(name: str, limit: float, value: float, what: str, shown: Shown = percent) -> Gate:
    """A figure that must not exceed its limit."""
    held = value <= limit + SLACK * max(1.0, abs(limit))
    return _gate(name, limit, value, what, shown, "at most" if held else "above", held=held)


def _gate(name: str, limit: float, value: float, what: str, shown: Shown, than: str, *, held: bool) -> Gate:
    digits = 2 if held else digits_apart(value, limit, shown=shown)
    return Gate(name, limit, held, f"{what} {shown(value, digits)} is {than} the demanded {shown(limit, digits)}")


def checked_limits(max_error: float | Mapping[str, float] | None) -> dict[str, float]:
    """Limits on the error by output, given one for all or one by name. Raises UsageError for what limits nothing."""
    if max_error is None:
        return {}
    given = max_error if isinstance(max_error, Mapping) else {EVERY: max_error}
    return {str(k): x for k, v in given.items() if (x := error_limit(v)) is not None}


def error_gates(figures: Figures, limits: Mapping[str, float], outputs: Iterable[str]) -> tuple[Gate, ...]:
    """A gate for each limit on the error of outputs. limits: by output, that under `EVERY` for all others.

    Raises UsageError for an output that the model does not have.
    """
    known = tuple(outputs)
    for name in limits:
        if name != EVERY and name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near!r}?" if near else f"there are {', '.join(map(repr, known))}"
            raise UsageError(f"max_error names the output {name!r}, which the model does not have; {hint}")
    return tuple(_error_gate(figures, name, limit, limits) for name, limit in limits.items())


def _error_gate(figures: Figures, output: str, limit: float, limits: Mapping[str, float]) -> Gate:
    option = f"--max-error {output}".rstrip()
    own = figures.only(lambda f: _speaks(f, output, limits))
    if figures.each and not own.each:
        same = "every output has a limit of its own" if output == EVERY else f"{output} is the same in both models"
        return Gate(option, limit, True, same)
    worst = own.worst
    error = percent((worst.value if worst is not None else None) or 0.0)
    told = f"error {error} is at most the demanded {percent(limit)}"
    return gate_of(option, limit, told, lambda: demand(own, limit))


def _speaks(figure: Figure, output: str, limits: Mapping[str, float]) -> bool:
    """Whether a limit holds for a figure: that on all for outputs that have none of their own."""
    return output in figure.outputs if output != EVERY else any(o not in limits for o in figure.outputs)
