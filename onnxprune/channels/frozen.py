"""Groups that stay whole though the graph would let them be cut."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Cause(Enum):
    """What keeps a whole group from being cut."""

    SINGLE = "a single unit"
    EXCLUDED = "an option excludes it"
    NOT_INCLUDED = "an option includes others"
    UNTRIED = "no sample takes its branch"


@dataclass(frozen=True)
class Frozen:
    """Why a group may not be cut. text: the same for a reader, with the option or the branch."""

    cause: Cause
    text: str

    @property
    def asked_for(self) -> bool:
        """Whether an option of the user keeps it."""
        return self.cause in (Cause.EXCLUDED, Cause.NOT_INCLUDED)


SINGLE = Frozen(Cause.SINGLE, Cause.SINGLE.value)
