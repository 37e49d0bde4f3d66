"""Gradients of onnxruntime's operators that carry a state against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.gradients.differences import compare, reverse_of
from tests.gradients.single import normal, single

Case = dict[str, Any]
OWN: Case = {"domain": "com.microsoft", "domains": ["com.microsoft"], "opset": 17, "strict": False}
BOTH = ("y", "after")

CONV: dict[str, Case] = {
    "plain": {"data": [(2, 4, 5), (4, 1, 3), (4,)], "order": ["x0", "x1", "x2"]},
    "activated": {"data": [(2, 4, 5), (4, 1, 3), (4,)], "order": ["x0", "x1", "x2"], "activation": "silu"},
    "dilated, with a state": {
        "data": [(2, 4, 3), (4, 1, 3), (2, 4, 4)],
        "order": ["x0", "x1", "", "x2"],
        "dilation": 2,
        "activation": "swish",
    },
    "one place": {"data": [(2, 4, 5), (4, 1, 1)], "order": ["x0", "x1"]},
}

_STATE: Case = {"order": ["x0", "w", "", "x1"], "outputs": BOTH}


@pytest.mark.parametrize("name", CONV)
def test_causal_convolution(name: str):
    """Fails where a kernel is read backwards, or the state's end is taken for its beginning."""
    compare(*single("CausalConvWithState", **CONV[name], **OWN, outputs=BOTH))


@pytest.mark.parametrize("read", BOTH)
def test_causal_convolution_of_which_one_output_is_read(read: str):
    model, feeds = single("CausalConvWithState", [(2, 4, 5), (2, 4, 2)], {"w": normal(4, 1, 3)}, **OWN, **_STATE)
    del model.graph.output[0 if read == "after" else 1]
    compare(model, feeds)


def test_causal_convolution_at_another_length():
    """Fails where the length that shapes were measured at is written into the graph."""
    model, feeds = single("CausalConvWithState", [(2, 4, 5), (4, 1, 3)], **OWN, outputs=BOTH)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "L"
    del model.graph.value_info[:]
    for v in model.graph.output:
        v.ClearField("type")
    compare(model, {**feeds, "x0": normal(2, 4, 9)}, measured=feeds)


def linear(rule: str, decay: int = 0, rate: int = 0, *, past: bool = True, **more: Any) -> tuple[Any, Any]:
    """Four query heads of 3 on two states of 3 x 5; decay, rate: last axes of these inputs, 0 where there are none."""
    queries, states = int(more.pop("queries", 4)), 2
    data: dict[str, Any] = {
        "q": normal(2, 4, queries * 3, seed=1),
        "k": normal(2, 4, states * 3, seed=2) / 2,
        "v": normal(2, 4, states * 5, seed=3),
        "s": normal(2, states, 3, 5, seed=4) if past else None,
        "g": -np.abs(normal(2, 4, decay, seed=5)) if decay else None,
        "r": 1 / (1 + np.exp(-normal(2, 4, rate, seed=6))) if rate else None,
    }
    order = [k if v is not None else "" for k, v in data.items()]
    names = [k for k in order if k]
    model, feeds = single(
        "LinearAttention",
        [data[k] for k in names],
        order=[f"x{names.index(k)}" if k else "" for k in order],
        q_num_heads=queries,
        kv_num_heads=states,
        update_rule=rule,
        outputs=BOTH,
        **OWN,
        **more,
    )
    return model, feeds


@pytest.mark.parametrize("past", [True, False])
@pytest.mark.parametrize(
    ("rule", "decay", "rate"),
    [
        ("linear", 0, 0),
        ("gated", 2, 0),
        ("gated", 6, 0),
        ("delta", 0, 2),
        ("gated_delta", 2, 1),
        ("gated_delta", 6, 2),
    ],
)
def test_linear_attention(rule: str, decay: int, rate: int, past: bool):
    """Fails where a rule's recurrence is another than the kernel's, or a query meets the state of another head."""
    compare(*linear(rule, decay, rate, past=past))


def test_linear_attention_whose_last_state_alone_is_read():
    model, feeds = linear("gated_delta", 6, 2, scale=0.3)
    del model.graph.output[0]
    compare(model, feeds, tensors=[f"x{k}" for k in range(1, 6)])


def test_linear_attention_as_many_heads_of_everything():
    compare(*linear("gated_delta", 2, 2, queries=2, scale=0.3))


def test_refusals():
    model, feeds = single("CausalConvWithState", [(2, 5, 4), (4, 1, 3)], channels_last=1, outputs=BOTH, **OWN)
    assert "no rule" in reverse_of(model, feeds, ["x0"]).missing["x0"]
    model, feeds = linear("linear", past=False, queries=1)
    assert "no rule" in reverse_of(model, feeds, ["x0"]).missing["x0"]
