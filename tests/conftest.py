"""Fixtures that the whole suite shares."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from onnxprune.runtime import session
from onnxprune.threads import limit, one_blas_thread
from tests.prepared import Prepared, prepare_row

# An example may take long on a busy machine, and nothing is written into a project that may belong to someone else.
settings.register_profile("anywhere", deadline=None, database=None)
settings.load_profile("anywhere")

# What stderr shows has tests of its own; elsewhere a line on it is a warning or an error.
os.environ["ONNXPRUNE_PROGRESS"] = "none"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Linear algebra, and each session that does not say how many, computes in one thread; runs stay as they are.

    The workers of pytest-xdist take all cores, and what is computed here is small: further threads wait for each other,
    spinning. What a run does itself at the same time (`threads.mapped`) is done so here too.
    """
    with one_blas_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "limit", lambda: limit() or 1)
        yield


@pytest.fixture(scope="session")
def prepared() -> Callable[[str], Prepared]:
    """Rows of the table of topologies, traced once for the whole run; nothing may edit them."""
    known: dict[str, Prepared] = {}

    def lookup(name: str) -> Prepared:
        if name not in known:
            known[name] = prepare_row(name)
        return known[name]

    return lookup
