"""What the figures mean for whoever has to decide: one line, and a limit that a run can be held to."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.errors import CheckFailed
from onnxprune.measures.figures import DIFFER, Figure, Figures, digits_apart, percent

GOOD, DOUBTFUL, BAD, UNKNOWN = "good", "doubtful", "bad", "unknown"
# Of the worst part; and of the samples, or entries, that keep their class. Networks with an error of 20 % keep 91 % of
# their classes (`docs/decisions.md`).
DOUBTFUL_ERROR, BAD_ERROR = 0.2, 0.5
DOUBTFUL_AGREEMENT, BAD_AGREEMENT = 0.9, 0.5
_LEVELS = (GOOD, DOUBTFUL, BAD)
# Shares are ratios of small integers: a limit that is met exactly must not fail by a rounding error.
_SLACK = 1e-9
_ADVICE = {
    DOUBTFUL: "test it on labelled data (`onnxprune eval`), lower {}, or give more samples",
    BAD: "lower {}, or give more and better samples",
    UNKNOWN: "test it on data of your own (`onnxprune eval`)",
}


@dataclass(frozen=True)
class Verdict:
    """What a user may think of a pruned model.

    level: good, doubtful, bad or unknown. text: that with the reason and what to do.
    """

    level: str
    text: str


def verdict_of(figures: Figures, option: str = "") -> Verdict:
    """The verdict by the worst figure and the agreement of classes; never good where what was measured says too little.

    option: what says how much is removed, "" where the models are given, and there is nothing to advise.
    """
    level, why = _judged(figures)
    advice = f"; {_ADVICE[level].format(option)}" if option and level in _ADVICE else ""
    return Verdict(level, f"{level}: {why}{advice}")


def _judged(figures: Figures) -> tuple[str, str]:
    worst = figures.worst
    if worst is None or worst.value is None:
        return UNKNOWN, f"nothing was measured ({figures.why})"
    what = _told(worst, several=len(figures.measured) > 1)
    judged = [(_level(worst.value >= DOUBTFUL_ERROR, worst.value >= BAD_ERROR), what), _by_agreement(figures)]
    level = max((own_level for own_level, _ in judged), key=_LEVELS.index)
    if level != GOOD:
        return level, ", and ".join(why for own_level, why in judged if own_level == level)
    if figures.unmeasured:
        lost = figures.unmeasured[0]
        return DOUBTFUL, f"{what}, but {lost.name} was not measured ({lost.why})"
    if figures.synthetic:
        return DOUBTFUL, f"{what}, but on random inputs, which say nothing of real ones"
    if not figures.held_out:
        return DOUBTFUL, f"{what}, but on the very samples that it was fitted to"
    if figures.samples < 2:
        return DOUBTFUL, f"{what}, but from {_samples(figures.samples)} alone"
    if worst.interval is not None and worst.interval[1] >= DOUBTFUL_ERROR:
        few = _samples(figures.samples)
        return DOUBTFUL, f"{what}, but from {few} alone it may as well be {min(worst.interval[1], 9.99):.0%}"
    return GOOD, what


def _level(doubtful: bool, bad: bool) -> str:
    return BAD if bad else DOUBTFUL if doubtful else GOOD


def _by_agreement(figures: Figures) -> tuple[str, str]:
    """(level, why): what may be no class at all is never called bad for it."""
    share = figures.agreement
    if share is None or figures.classes is False:
        return GOOD, ""
    surely = figures.classes is True
    level = _level(share < DOUBTFUL_AGREEMENT, surely and share < BAD_AGREEMENT)
    return level, f"only {percent(share, 1)} keep their class" + ("" if surely else ", if the largest entry is one")


def _told(figure: Figure, *, several: bool, limit: float | None = None) -> str:
    of = f" ({figure.name})" if several or figure.at else ""
    value = figure.value or 0.0
    told = percent(value, 1 if limit is None else digits_apart(value, limit, 1))
    if figure.kind == DIFFER:
        return f"{told} of the entries differ{of}"
    return f"an error of {told}{of}"


def _samples(n: int) -> str:
    return "1 sample" if n == 1 else f"{n} samples"


def demand(figures: Figures, most: float) -> None:
    """Raises CheckFailed where any figure exceeds `most`, or was not measured on data that the fits have not seen."""
    over = [f for f in figures.measured if f.value is not None and not f.value <= most + _SLACK]
    if over:
        told = "; ".join(_told(f, several=True, limit=most) for f in sorted(over, key=lambda f: -(f.value or 0.0))[:3])
        raise CheckFailed(f"{told}: more than the allowed {percent(most)}")
    wanted = f"an error of at most {percent(most)} was demanded"
    if figures.unmeasured or not figures.measured:
        lost = figures.unmeasured[0] if figures.unmeasured else None
        why = f"{lost.name}: {lost.why}" if lost is not None else figures.why
        raise CheckFailed(f"{wanted}, but it was not measured ({why})")
    if figures.synthetic:
        raise CheckFailed(f"{wanted}, but random inputs do not tell it: give data")
    if not figures.held_out:
        raise CheckFailed(f"{wanted}, but none was held out: give more samples")
    if figures.samples < 2:
        raise CheckFailed(f"{wanted}, but one sample does not tell it: give more")
