"""Attention with one weight for all projections, on numbers and on codes, in standard operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from onnxprune.normalise.unfused import attention
from onnxprune.runtime.session import Session
from tests.normalise.unfused.fusing import Case, assert_equal, standard

_RNG = np.random.default_rng(0)
_B, _S, _I, _H = 2, 5, 12, 3


def _real(*shape: int) -> Any:
    return _RNG.standard_normal(shape).astype(np.float32)


_X, _W, _BIAS = _real(_B, _S, _I), _real(_I, 36), _real(36)
# Of every key: above 0 it counts.
_COUNTS, _RAW = np.array([3, 5], np.int32), _RNG.integers(-1, 3, (_B, _S)).astype(np.int32)
_EACH = _RNG.integers(-1, 3, (_B, _S, _S)).astype(np.int32)
_HEADS = {"num_heads": _H}
NUMBERS: Mapping[str, Case] = {
    "plain": Case("Attention", (_X, _W, _BIAS), _HEADS, (1, 2)),
    "another scale": Case("Attention", (_X, _W, _BIAS), {**_HEADS, "scale": 0.3}, (1, 2)),
    "sizes": Case("Attention", (_X, _W, _BIAS), {**_HEADS, "qkv_hidden_sizes": [9, 9, 18]}, (1, 2)),
    "counts": Case("Attention", (_X, _W, _BIAS, _COUNTS), _HEADS, (1, 2)),
    "a mask of the keys": Case("Attention", (_X, _W, _BIAS, _RAW), {**_HEADS, "mask_filter_value": -5.0}, (1, 2)),
    "a mask of each query": Case("Attention", (_X, _W, _BIAS, _EACH), _HEADS, (1, 2)),
    "a bias of the scores": Case("Attention", (_X, _W, _BIAS, None, None, _real(_B, _H, _S, _S)), _HEADS, (1, 2)),
}
_CODES = (_RNG.integers(0, 256, (_B, _S, _I)).astype(np.uint8), _RNG.integers(-128, 128, (_I, 36)).astype(np.int8))
_ONE, _EACH_COLUMN = np.array(0.004, np.float32), _RNG.uniform(0.002, 0.006, 36).astype(np.float32)
_ZERO, _XS = np.array(120, np.uint8), np.array(0.02, np.float32)
ON_CODES: Mapping[str, Case] = {
    "codes": Case(
        "QAttention",
        (*_CODES, _BIAS, _XS, _ONE, None, _ZERO, np.array(3, np.int8)),
        _HEADS,
        (1, 2, 3, 4, 6, 7),
    ),
    "codes by column, masked": Case(
        "QAttention",
        (*_CODES, _BIAS, _XS, _EACH_COLUMN, _COUNTS, _ZERO, np.zeros(36, np.int8)),
        _HEADS,
        (1, 2, 3, 4, 6, 7),
    ),
}


@pytest.mark.parametrize("name", [*NUMBERS, *ON_CODES])
def test_standard_operators_attend_alike(name: str):
    """Fails where heads, parts of the weight or masks are taken for others."""
    assert_equal({**NUMBERS, **ON_CODES}[name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (Case("Attention", (_X, _W, _BIAS), {**_HEADS, "unidirectional": 1}, (1, 2)), "the keys to come"),
        (Case("Attention", (_X, _W, _BIAS), _HEADS, (1, 2), outputs=2), "earlier steps"),
        (Case("Attention", (_X, _W, _BIAS, np.array([3, 5, 0, 1], np.int32)), _HEADS, (1, 2)), "a mask of the shape"),
        (Case("Attention", (_X, _W, _BIAS), _HEADS, (1, 2), opset=12), "opset 12"),
    ],
)
def test_what_is_not_understood_stays(case: Case, why: str):
    """Fails where another attention takes the place of one with a state, or nobody is told."""
    proto, unfused = standard(case.model(), case.feeds())
    assert not unfused.fused
    assert any(why in note for note in unfused.notes)
    assert [n.op_type for n in proto.graph.node] == [case.operator]
    Session(case.model())


def test_every_row_has_a_case_of_attention():
    """Fails where a row of the table is held against nothing."""
    tried = {f"{c.domain}.{c.operator}" for c in (*NUMBERS.values(), *ON_CODES.values())}
    assert set(attention.TABLE) == tried
