"""Limits on what a metric measured, by the name of its score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from onnxprune.errors import UsageError
from onnxprune.measures.by_output import OutputFigures
from onnxprune.measures.figures import percent
from onnxprune.measures.gates import Gate, at_least, at_most
from onnxprune.options import nearest, typed
from onnxprune.tasks.answered import HIGHER, LOWER, NUMBER, SHARE, Score


def score_gates(
    scores: Sequence[Score],
    outputs: Sequence[OutputFigures],
    least: Mapping[str, float],
    most: Mapping[str, float],
) -> tuple[Gate, ...]:
    """A gate for each limit, by the name of a score. A score that was not measured does not hold.

    Figures of outputs have names too: cosine and largest-difference, of the worst output, and OUT:cosine of one.
    Raises UsageError for a name that there is not, and for a limit that limits nothing.
    """
    known = {s.name: s for s in (*_of_outputs(outputs), *scores)}
    found: list[Gate] = []
    for limits, option in ((least, "min_metric"), (most, "max_metric")):
        found += [_gate(known, name, _checked(option, name, limit), option) for name, limit in limits.items()]
    return tuple(found)


def _checked(option: str, name: str, limit: float) -> float:
    value: float = typed(f"{option} of {name!r}", limit, "float")
    if not math.isfinite(value):
        raise UsageError(f"{option} of {name!r} is {limit}; give a number")
    return value


def _gate(known: Mapping[str, Score], name: str, limit: float, option: str) -> Gate:
    score = known.get(name)
    if score is None:
        near = nearest(name, known)
        there = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
        raise UsageError(f"{option} names {name!r}, which was not measured; {there}")
    if score.unit == SHARE and not 0.0 <= limit <= 1.0:
        raise UsageError(f"{option} of {name!r} is {limit:g}; it is a share: write 0.7 or 70%")
    label = f"--{option.replace('_', '-')} {name}"
    if score.value is None:
        return Gate(label, limit, False, f"{name} was not measured: {score.why}")
    shown = percent if score.unit == SHARE else _number
    return (at_least if option == "min_metric" else at_most)(label, limit, score.value, name, shown)


def _number(value: float, digits: int) -> str:
    return f"{value:.{4 + digits}g}"


def _of_outputs(outputs: Sequence[OutputFigures]) -> Iterator[Score]:
    """Figures of outputs as scores: of the worst one by their own names, and of each by OUT:name."""
    for name, better in (("cosine", HIGHER), ("largest-difference", LOWER)):
        own = {o.output: (o.cosine if better == HIGHER else o.largest, o.why) for o in outputs}
        values = [v for v, _ in own.values() if v is not None]
        if own and (values or all(why for _, why in own.values())):
            lost = next((f"{o}: {why}" for o, (v, why) in own.items() if v is None and why), "")
            worst = None if lost else (min if better == HIGHER else max)(values)
            yield Score(name, "of the worst output", worst, better=better, unit=NUMBER, why=lost)
        for o, (v, why) in own.items():
            if v is not None or why:
                yield Score(f"{o}:{name}", f"of {o}", v, better=better, unit=NUMBER, why=why)
