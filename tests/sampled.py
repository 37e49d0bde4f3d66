"""Long families of cases, of which an ordinary run takes a part: all of them where ONNXPRUNE_EXAMPLES is set.

For what many cases show alike, so that a defect meets several that are left. What is taken depends on the order of the
cases alone. `.github/workflows/weekly.yml` sets the variable.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

Case = TypeVar("Case")
Other = TypeVar("Other")
ALL = "ONNXPRUNE_EXAMPLES" in os.environ


def every(step: int, cases: Iterable[Case]) -> list[Case]:
    """One case of so many."""
    return list(cases)[:: 1 if ALL else step]


def in_turns(cases: Iterable[Case], others: Sequence[Other]) -> list[tuple[Case, Other]]:
    """Each case with one of the others, which take turns."""
    return [(c, o) for i, c in enumerate(cases) for o in (others if ALL else [others[i % len(others)]])]


def share(place: int, of: int, others: Sequence[Other]) -> Sequence[Other]:
    """The others that are tried on the case at a place: so many cases in a row have all of them together."""
    return others if ALL else others[place % of :: of]
