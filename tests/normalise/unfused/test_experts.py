"""Mixtures of experts, expert by expert: what onnxruntime's kernel computes, and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxprune.runtime.session import Session
from onnxprune.surgery.experts import put_back
from tests.normalise.unfused.fusing import Case, assert_equal, standard

_RNG = np.random.default_rng(0)


def _real(*shape: int) -> Any:
    return _RNG.standard_normal(shape).astype(np.float32)


def mixture(
    rows: tuple[int, ...] = (7,),
    *,
    experts: int = 4,
    hidden: int = 6,
    inner: int = 5,
    biased: bool = True,
    **attributes: Any,
) -> Case:
    """A MoE with random weights."""
    wide = 2 * inner if attributes.get("activation_type") == "swiglu" else inner
    given = (
        _real(*rows, hidden),
        _real(int(np.prod(rows)), experts),
        _real(experts, wide, hidden) / 2,
        _real(experts, wide) if biased else None,
        _real(experts, hidden, inner) / 2,
        _real(experts, hidden) if biased else None,
    )
    return Case("MoE", given if biased else given[:5], attributes, (2, 3, 4, 5) if biased else (2, 4))


def packed_mixture(
    rows: tuple[int, ...] = (7,),
    *,
    experts: int = 3,
    hidden: int = 32,
    inner: int = 16,
    bits: int = 4,
    block: int = 0,
    zeros: bool = True,
    biased: bool = True,
    **attributes: Any,
) -> Case:
    """A QMoE with random codes."""
    wide = 2 * inner if attributes.get("activation_type") == "swiglu" else inner

    def codes(outputs: int, inputs: int) -> tuple[Any, Any, Any]:
        blocks = (inputs // block,) if block else ()
        points = (experts, outputs, -(-blocks[0] * bits // 8)) if block else (experts, -(-outputs * bits // 8))
        return (
            _RNG.integers(0, 256, (experts, outputs, inputs * bits // 8)).astype(np.uint8),
            _RNG.uniform(0.005, 0.02, (experts, outputs, *blocks)).astype(np.float32) * 8 / 2 ** (bits - 1),
            _RNG.integers(0, 256, points).astype(np.uint8) if zeros else None,
        )

    (up, up_scales, up_zeros), (down, down_scales, down_zeros) = codes(wide, hidden), codes(hidden, inner)
    biases = (_real(experts, wide), _real(experts, hidden)) if biased else (None, None)
    given = (
        *(_real(*rows, hidden), _real(int(np.prod(rows)), experts)),
        *(up, up_scales, biases[0], down, down_scales, biases[1], None, None, None, up_zeros, down_zeros),
    )
    slots = tuple(k for k in range(2, 13) if given[k] is not None)
    sizes = {"expert_weight_bits": bits, **({"block_size": block} if block else {})}
    return Case("QMoE", given[: max(slots) + 1], {**sizes, **attributes}, slots, opset=21)


_SWIGLU = {"activation_type": "swiglu", "swiglu_fusion": 1}
MIXTURES = {
    "one of four": mixture(),
    "two of four": mixture(k=2),
    "two of four, whose shares sum to one": mixture(k=2, normalize_routing_weights=1),
    "all": mixture(k=4),
    "without biases": mixture(k=2, biased=False),
    "sequences": mixture((2, 3), k=2),
    "one expert": mixture(experts=1),
    "gelu": mixture(k=2, activation_type="gelu"),
    "silu": mixture(k=2, activation_type="silu"),
    "nothing": mixture(k=2, activation_type="identity"),
    "swiglu": mixture(k=2, **_SWIGLU),
    "swiglu with its numbers": mixture(
        (2, 3), k=2, **_SWIGLU, activation_alpha=1.702, activation_beta=1.0, swiglu_limit=0.7
    ),
    "swiglu without biases": mixture(k=2, biased=False, **_SWIGLU),
    **{
        f"{bits} bits, blocks of {block}, {zeros}": packed_mixture(bits=bits, block=block, zeros=zeros, k=2, **_SWIGLU)
        for bits, block in ((4, 0), (4, 16), (8, 0), (2, 16))
        for zeros in (True, False)
    },
    "codes of sequences": packed_mixture((2, 3), normalize_routing_weights=1, k=2),
    "codes without biases": packed_mixture(biased=False, activation_type="silu"),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_answers_are_those_of_the_kernel(name: str):
    """Fails where an expert, a share or half of an activation is mistaken for another."""
    assert_equal(MIXTURES[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MIXTURES)
def test_what_nothing_has_touched_is_as_it_was(name: str):
    """Fails where a node does not come back, or with other weights than it had."""
    case = MIXTURES[name]
    proto, unfused = standard(case.model(), case.feeds())
    assert put_back(proto, unfused.fused) == 1
    [node] = proto.graph.node
    [was] = case.model().graph.node
    assert (node.op_type, node.domain, node.name) == (was.op_type, was.domain, was.name)
    assert [i.split("_")[0] for i in node.input] == list(was.input)
    expected, got = (Session(p, optimize=False).run(case.feeds())["o0"] for p in (case.model(), proto))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (mixture(activation_type="tanh"), "not known"),
        (mixture(use_sparse_mixer=1, k=2), "sparse mixer"),
        (mixture(activation_type="swiglu", swiglu_fusion=2), "in turns"),
        (replace(mixture(), weights=(3, 4, 5)), "no weight of its own"),
        (replace(mixture(), opset=12), "opset 12"),
        (replace(packed_mixture(), opset=20), "opset 20"),
        (packed_mixture(bits=8, block=16), "rounds what it multiplies"),
        (packed_mixture(quant_type="fp8"), "small floats"),
        (packed_mixture(fc2_expert_weight_bits=8), "not of the sizes"),
        (replace(packed_mixture(), weights=(2, 3, 4, 5, 6, 7, 11)), "no weight of its own"),
    ],
)
def test_what_is_not_read_stays(case: Case, why: str):
    """Fails where a node is written anew that computes something else."""
    proto, unfused = standard(case.model(), case.feeds())
    assert [n.op_type for n in proto.graph.node] == [case.operator]
    assert any(why in note for note in unfused.notes), unfused.notes
