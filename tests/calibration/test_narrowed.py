"""Regressions of layers that share a Gram, and a triangle in place of wide weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxprune.calibration import regressions
from onnxprune.calibration.regressions import narrowed
from onnxprune.selection import Regression
from onnxprune.selection.known import Choice, Known
from onnxprune.selection.obs import path
from onnxprune.selection.path import Regressions
from tests.compare import assert_same


def regression(outputs: int, *, rank: int = 20, seed: int = 0) -> Regression:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, 9)) @ rng.standard_normal((9, 9))
    w = rng.standard_normal((9, rank)) @ rng.standard_normal((rank, outputs))
    return Regression(x.T @ x / 200, w, np.array([0, 1, 2, 3, 4, 5, 6, 7, -1]), 0.7)


def chosen(*parts: Regression) -> tuple[list[int], list[float]]:
    found = path(Known("obs", 0, 8, None, Regressions(parts)), Choice())
    return found.order.tolist(), found.loss.tolist()


@pytest.mark.parametrize("rank", [20, 4], ids=["full", "deficient"])
def test_a_triangle_selects_what_the_weights_select(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the inner products of the rows change; of weights that depend on each other there is no Cholesky."""
    monkeypatch.setattr(regressions, "_LARGE_BYTES", 0)
    r = regression(40, rank=rank)
    small = narrowed(r)
    assert small.w.shape == (9, 9)
    assert_same(small.w @ small.w.T, r.w @ r.w.T, rtol=1e-9, atol=1e-9)
    assert_same(small.power(), r.power(), rtol=1e-9, atol=0.0)
    assert_same(small.contributions(8), r.contributions(8), rtol=1e-9, atol=1e-9)
    order, loss = chosen(r)
    assert chosen(small)[0] == order
    assert_same(chosen(small)[1], loss, rtol=1e-7, atol=1e-12)


def test_few_outputs_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where weights are made larger, or small ones pay for a product."""
    r = regression(5)
    assert narrowed(regression(40)).w.shape == (9, 40)
    monkeypatch.setattr(regressions, "_LARGE_BYTES", 0)
    assert narrowed(r) is r


def test_layers_that_share_a_gram_are_one_regression() -> None:
    """Fails where their weights count otherwise than those of two regressions."""
    a, b = regression(5), replace(regression(7, seed=0), w=regression(7, seed=1).w, weight=0.2)
    together = regressions._together([a, b])
    order, loss = chosen(a, b)
    assert chosen(together)[0] == order
    assert_same(chosen(together)[1], loss, rtol=1e-9, atol=1e-12)
