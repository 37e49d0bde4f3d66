"""The search for the largest number that holds, against trying all of them."""

from __future__ import annotations

import pytest

from onnxprune.allocation.bisection import highest


class Answers:
    """Numbers that hold, and how often somebody asked."""

    def __init__(self, held: set[int]) -> None:
        self.held, self.asked = held, [0]

    def __call__(self, k: int) -> bool:
        assert k not in self.asked, "an answer is dear, and was asked for twice"
        self.asked.append(k)
        return k in self.held


@pytest.mark.parametrize("most", [1, 2, 7, 63])
@pytest.mark.parametrize("climb", [False, True])
def test_the_end_is_found_where_answers_turn_once(most: int, climb: bool):
    """Fails where an end is missed by one, at either border, or found by asking more than twice its logarithm."""
    for low in range(most + 1):
        for end in range(low, most + 1):
            answers = Answers({*range(1, end + 1)})
            assert highest(answers, most, low, climb=climb) == end
            assert len(answers.asked) <= 2 * most.bit_length() + 5


@pytest.mark.parametrize(("island", "found"), [(21, 20), (22, 22), (23, 23), (24, 20), (40, 20)])
def test_what_holds_again_just_behind_the_end(island: int, found: int):
    """Fails where noise of one answer ends the search, or where it goes on for ever: two more answers are asked."""
    held = {*range(1, 21), island} if island != 21 else {*range(1, 21)}
    assert highest(Answers(held), 60) == found


def test_numbers_with_one_answer_are_asked_once():
    """Fails where the few that are tried behind the end are all of the cut that failed."""
    answers = Answers({*range(1, 10), 13})
    assert highest(answers, 60, same=lambda a, b: (a - 10) // 3 == (b - 10) // 3) == 13
