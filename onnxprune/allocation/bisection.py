"""The largest number that holds, where every answer is dear and the answers turn about once."""

from __future__ import annotations

from collections.abc import Callable

# Numbers with other answers than the one that failed are tried behind it, and numbers that are looked at for them.
_BEYOND, _FARTHEST = 2, 6
_FIRST = 4


def highest(
    holds: Callable[[int], bool],
    most: int,
    low: int = 0,
    *,
    same: Callable[[int, int], bool] = lambda a, b: a == b,
    climb: bool = False,
) -> int:
    """The largest number in (low, most] that holds, `low` where none does; that one counts as one that holds.

    By bisection; then a few numbers behind the first that fails are asked too, as answers are measured and turn more
    than once where they are close. same: whether two numbers have the same answer. climb: begin with ever larger steps
    from `low` instead of the middle, as the answer is near it.
    """
    answers: dict[int, bool] = {}

    def asked(k: int) -> bool:
        if k not in answers:
            answers[k] = holds(k)
        return answers[k]

    step, high = _FIRST, most + 1
    while climb and low + step < high:
        if not asked(low + step):
            high = low + step
            break
        low, step = low + step, 2 * step
    while True:
        while high - low > 1:
            middle = (low + high) // 2
            if asked(middle):
                low = middle
            else:
                high = middle
        further = _further(asked, same, high, most)
        if further is None:
            return low
        low = further
        high = min((k for k, held in answers.items() if not held and k > low), default=most + 1)


def _further(asked: Callable[[int], bool], same: Callable[[int, int], bool], failed: int, most: int) -> int | None:
    """A number behind one that failed that holds all the same."""
    others = 0
    last = failed
    for k in range(failed + 1, min(failed + _FARTHEST, most) + 1):
        if same(last, k):
            continue
        last, others = k, others + 1
        if others > _BEYOND:
            return None
        if asked(k):
            return k
    return None
