"""Prefetching keeps items, order and errors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onnxprune.threads import prefetched


def test_items_and_order_survive() -> None:
    """Fails where an item is lost, doubled or reordered; an empty source ends at once."""
    assert list(prefetched(iter(range(20)))) == list(range(20))
    assert list(prefetched(iter(()))) == []


def test_an_error_reaches_the_reader_after_the_items_before_it() -> None:
    """Fails where an error in the thread is swallowed."""

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    items = prefetched(broken())
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_one_item_at_most_is_computed_ahead() -> None:
    """Fails where a whole data set is computed before the first batch is used."""
    computed: list[int] = []

    def source() -> Iterator[int]:
        for i in range(10):
            computed.append(i)
            yield i

    items = prefetched(source())
    next(items)
    items.close()
    assert len(computed) <= 2
