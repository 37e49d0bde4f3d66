"""Fixtures that the whole suite shares."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings

from tests.prepared import Prepared, prepare_row

# An example may take long on a busy machine, and nothing is written into a project that may belong to someone else.
settings.register_profile("anywhere", deadline=None, database=None)
settings.load_profile("anywhere")


@pytest.fixture(scope="session")
def prepared() -> Callable[[str], Prepared]:
    """Rows of the table of topologies, traced once for the whole run; nothing may edit them."""
    known: dict[str, Prepared] = {}

    def lookup(name: str) -> Prepared:
        if name not in known:
            known[name] = prepare_row(name)
        return known[name]

    return lookup
