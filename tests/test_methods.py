"""Rows of methods and refits name what exists, and options follow from them."""

from __future__ import annotations

import inspect

import pytest

from onnxprune.config import READ_BY, PruneConfig
from onnxprune.methods import METHODS, REFITS, Looks, tried
from onnxprune.selection.known import function_of


@pytest.mark.parametrize("name", METHODS)
def test_a_row_names_a_function_or_others(name: str):
    """Fails where a method is a row without a function in `onnxprune.selection`, or tries what does not exist."""
    row = METHODS[name]
    assert bool(row.function) is not bool(row.tries)
    for method in tried(name):
        function = function_of(method)
        assert list(inspect.signature(function).parameters) == ["group", "choice"]
        assert function.__doc__


@pytest.mark.parametrize("name", METHODS)
def test_stand_ins_end_with_one_that_needs_nothing(name: str):
    """Fails where a group of which nothing is known would be handed round for ever."""
    seen = [name]
    while METHODS[seen[-1]].looks in (Looks.OUTPUTS, Looks.LAYERS):
        seen.append(METHODS[seen[-1]].stand_in)
        assert len(seen) <= len(METHODS), seen


@pytest.mark.parametrize("name", REFITS)
def test_levels_are_those_of_a_refit(name: str):
    """Fails where a refit starts from a level that is none, or needs coefficients that nothing gives."""
    row = REFITS[name]
    assert row.level in REFITS
    assert not (row.walks and row.scales)
    method = next(k for k, m in METHODS.items() if m.scales or not row.scales)
    assert PruneConfig(method=method, refit=name).level == row.level


def test_options_that_single_methods_read_name_methods():
    """Fails where an option belongs to methods that there are not, or to none."""
    for readers in READ_BY.values():
        assert readers
        assert set(readers) <= set(METHODS)
