"""The page of onnxruntime's operators: made of the tables, and complete."""

from __future__ import annotations

from collections import Counter

from onnxprune.channels import foreign
from onnxprune.channels.rules import TABLE as RULES
from onnxprune.normalise.unfused import TABLE as UNFUSED
from onnxprune.normalise.unfused.table import FAMILIES
from onnxprune.runtime.session import operators
from scripts.operators import DOMAINS, PAGE, REFUSED, page, rows


def test_every_registered_operator_has_a_row():
    """Fails where the installed onnxruntime has an operator of which nobody decided what becomes of it."""
    known = {r.operator for r in rows()}
    registered = {f"{domain}.{name}" for domain in DOMAINS for name in operators(domain)}
    assert len(registered) > 100
    assert sorted(registered - known) == []


def test_no_operator_has_two():
    """Fails where an operator is refused in one table and written anew, or followed, by another."""
    assert [o for o, count in Counter(r.operator for r in rows()).items() if count > 1] == []
    assert set(foreign.LANGUAGE).isdisjoint(foreign.REFUSED)
    assert set(foreign.REASONS).isdisjoint(UNFUSED)
    assert set(foreign.REASONS).isdisjoint(RULES)
    families = Counter(name for family in FAMILIES for name in family)
    assert [name for name, count in families.items() if count > 1] == []


def test_what_stays_says_why():
    """Fails where an operator stays without a word."""
    for row in rows():
        assert row.detail
        if row.outcome == REFUSED:
            assert len(row.detail.split()) >= 3, row


def test_the_page_is_that_of_the_tables():
    """Fails where docs/operators.md is older than the tables: python -m scripts.operators --write."""
    assert PAGE.read_text(encoding="utf-8") == page()
