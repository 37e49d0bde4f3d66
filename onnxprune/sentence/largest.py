"""The largest cut that holds the limits: cuts made, refitted and judged in turn, by one calibration and its curves.

Where recovery is asked for, the cuts without it are searched first, as they cost a fraction: what holds without it
mostly holds with it. From there on larger ones are tried with recovery, so that the model that is written was judged as
it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxprune.allocation import budget
from onnxprune.allocation.bisection import highest
from onnxprune.config import PruneConfig
from onnxprune.errors import BudgetUnreachable, CheckFailed, NothingPrunable
from onnxprune.options import exact_percent
from onnxprune.sentence.exam import Exam
from onnxprune.sentence.halves import Chosen, Prepared, choose, make
from onnxprune.stages.clock import Clock
from onnxprune.stages.verify import Checked

# Ratios are multiples of this.
STEP = 0.01
_STEPS = 99


@dataclass(frozen=True, eq=False)
class Found:
    """A cut, at the ratio of the settings. checked: the finished model, where it was made already."""

    prepared: Prepared
    settings: PruneConfig
    chosen: Chosen
    checked: Checked | None = None
    notes: tuple[str, ...] = ()


def largest_cut(prepared: Prepared, settings: PruneConfig, stage: Clock, exam: Exam) -> Found:
    """The largest cut, in steps of a hundredth of the budget, that holds the limits of the exam.

    Raises BudgetUnreachable where none does.
    """
    search = _Search(prepared.for_several(), stage, exam)
    quick = settings.with_options(recover=0) if settings.epochs else settings
    most = _reachable(prepared)
    low = highest(lambda k: search.holds(k, quick), most, same=lambda a, b: search.same(a, b, quick))
    if settings.epochs:
        first = max(low, 1)
        found = search.holds(first, settings)
        low = highest(lambda k: search.holds(k, settings), most, first if found else 0, climb=True) if found else low
    if not low:
        why = search.why.get(1) or "no cut could be made"
        raise BudgetUnreachable(f"no cut holds the limits, not even one of 1% of the {settings.counted}: {why}")
    return search.found(low, settings, quick)


def _reachable(prepared: Prepared) -> int:
    """Steps that the widths allow; of a latency it is not known beforehand."""
    choices = prepared.coupled.choices
    if prepared.stopwatch is not None:
        return _STEPS
    least = budget.smallest(choices.cost, choices.at(1.0).narrowest)
    return max(min(int((1.0 - least / choices.full) / STEP + 1e-9), _STEPS), 1)


@dataclass(eq=False)
class _Search:
    """Cuts by their steps, each made and judged once. why: what the limits say of those that do not hold."""

    prepared: Prepared
    stage: Clock
    exam: Exam
    why: dict[int, str] = field(default_factory=dict)
    tried: dict[tuple[bytes, int], str] = field(default_factory=dict)
    _chosen: dict[int, tuple[Prepared, Chosen]] = field(default_factory=dict)
    _made: dict[tuple[bytes, int], Checked] = field(default_factory=dict)

    def holds(self, step: int, settings: PruneConfig) -> bool:
        """Whether the cut of so many steps could be made, and holds all limits."""
        try:
            prepared, chosen = self._cut(step, settings)
            key = chosen.key, settings.epochs
            if key not in self.tried:
                self.tried[key] = self._judged(step, prepared, chosen, settings)
            why = self.tried[key]
        except (BudgetUnreachable, NothingPrunable) as e:
            why = str(e)
        if why:
            self.why[step] = why
        return not why

    def same(self, a: int, b: int, settings: PruneConfig) -> bool:
        """Whether two steps lead to one cut."""
        try:
            return self._cut(a, settings)[1].key == self._cut(b, settings)[1].key
        except (BudgetUnreachable, NothingPrunable):
            return False

    def found(self, step: int, settings: PruneConfig, quick: PruneConfig) -> Found:
        """The cut of so many steps, recovered where that holds too."""
        prepared, chosen = self._cut(step, settings)
        taken = next(s for s in (settings, quick) if self.tried.get((chosen.key, s.epochs)) == "")
        taken = taken.with_options(ratio=_ratio(step))
        above = next((k for k in sorted(self.why) if k > step), None)
        beyond = f"; {exact_percent(_ratio(above))} is too much: {self.why[above]}" if above else ""
        note = f"the largest cut that holds the limits: --ratio {_ratio(step):g}, of {len(self.tried)} tried{beyond}"
        return Found(prepared, taken, chosen, self._made[chosen.key, taken.epochs], (note,))

    def _cut(self, step: int, settings: PruneConfig) -> tuple[Prepared, Chosen]:
        if step not in self._chosen:
            at = settings.with_options(ratio=_ratio(step))
            self.prepared = self.prepared.at(at)
            self._chosen[step] = self.prepared, choose(self.prepared, at, self.stage)
        return self._chosen[step]

    def _judged(self, step: int, prepared: Prepared, chosen: Chosen, settings: PruneConfig) -> str:
        self.stage.begin(f"ratio {_ratio(step):g}")
        try:
            checked = make(prepared, chosen, settings.with_options(ratio=_ratio(step)), self.stage)
            with self.stage("judge"):
                why = self.exam.limits.broken_by(self.exam.result_of(checked, prepared.loaded))
        except CheckFailed as e:
            return str(e)
        if not why:
            # Of those that hold, the largest is wanted: the others need not be kept.
            self._made = {k: v for k, v in self._made.items() if k[1] != settings.epochs}
            self._made[chosen.key, settings.epochs] = checked
        return why


def _ratio(step: int) -> float:
    return round(step * STEP, 9)
