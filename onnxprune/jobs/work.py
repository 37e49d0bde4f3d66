"""What a scheduler does: one piece of work on many items, with the results in the order of the items.

Only work that onnxprune itself defines is run anywhere, and nothing that a user hands in is ever unpickled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from operator import itemgetter
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from onnxprune.threads import limited, mapped, share

Item = TypeVar("Item")
Result = TypeVar("Result")
# Called with the items that are done, and how many there are.
Progress = Callable[[int, int], None]


class Work(ABC, Generic[Item, Result]):
    """What is done with every item: a dataclass of plain data that each worker gets once.

    What is derived from it (a session, say) lies in cached properties; each worker makes its own.
    """

    @abstractmethod
    def __call__(self, item: Item) -> Result:
        """The result of one item; it depends on nothing but the item and the fields."""

    # Whether several items may be worked on at once.
    side_by_side: ClassVar[bool] = False

    def size(self, item: Item) -> int:
        """Bytes that an item needs, where several may be worked on at once."""
        del item
        return 0

    def portable(self) -> Work[Item, Result]:
        """The same work for another machine, which cannot read the files of this one. Raises RunError."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]  # they are dataclasses


class Scheduler(Protocol):
    """Who does the work: this process, processes beside it, or workers of a cluster."""

    @property
    def name(self) -> str:
        """The name of the scheduler in a report."""

    @property
    def workers(self) -> int:
        """How many workers there are; 0 where this process does the work itself."""

    def map(self, work: Work[Item, Result], items: Iterable[Item], count: int) -> Iterator[Result]:
        """The results of `count` items, in their order. Raises what the work raises, and RunError."""


class Here:
    """This process does the work, in several threads where that is possible."""

    name = "this process"
    workers = 0

    def __init__(self, progress: Progress = lambda done, count: None) -> None:
        self._progress = progress

    def map(self, work: Work[Item, Result], items: Iterable[Item], count: int) -> Iterator[Result]:
        """The results, where items may be worked on side by side a little ahead of when they are asked for."""

        def one(sized: tuple[Item, int]) -> Result:
            item, size = sized
            with limited(share(size)):
                return work(item)

        sized = ((item, work.size(item)) for item in items)
        results = mapped(one, sized, itemgetter(1)) if work.side_by_side else map(work, items)
        for done, result in enumerate(results, start=1):
            self._progress(done, count)
            yield result


def check_own(work: object) -> None:
    """Raises TypeError for work that onnxprune does not define."""
    if not (isinstance(work, Work) and type(work).__module__.partition(".")[0] == "onnxprune"):
        raise TypeError(f"{type(work).__qualname__} is no work of onnxprune")
