"""Fixtures that the whole suite shares."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.stages import Prepared, prepare_row


@pytest.fixture(scope="session")
def prepared() -> Callable[[str], Prepared]:
    """Rows of the table of topologies, traced once for the whole run; nothing may edit them."""
    known: dict[str, Prepared] = {}

    def lookup(name: str) -> Prepared:
        if name not in known:
            known[name] = prepare_row(name)
        return known[name]

    return lookup
