"""Gradients of attention as onnxruntime's own operators against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.graph import protobuf
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Session
from tests.compare import assert_same
from tests.decoder import decoder, empty, prompts
from tests.gradients.differences import compare, reverse_of
from tests.gradients.single import normal, single

Case = dict[str, Any]
OWN: Case = {"domain": "com.microsoft", "domains": ["com.microsoft"], "opset": 17, "strict": False}
APART = [(2, 3, 32), (2, 3, 16), (2, 3, 16)]  # four heads of queries, two of keys and values, 8 positions each
HEADS = {"num_heads": 4, "kv_num_heads": 2}
PROMPT = np.array([2, 2], np.int32), np.array(3, np.int32)
STEP = np.array([4, 2], np.int32), np.array(5, np.int32)
CHUNK = np.array([4], np.int32), np.array(5, np.int32)
ANGLES = normal(9, 8)
TURN = {"cos": np.cos(ANGLES), "sin": np.sin(ANGLES)}
PAST = [(2, 2, 4, 8), (2, 2, 4, 8)]
WINDOW = {"local_window_size": 2, "sliding_window_cache": 1}
# Rows that no position has come to hold are unspecified in what an operator gives out: with as many as the window there
# are none.
FULL = [(2, 2, 2, 8), (2, 2, 2, 8)]


def grouped(data: list[Any], lengths: tuple[Array, Array], slots: list[str], **more: Any) -> tuple[Any, Any]:
    """A model of one GroupQueryAttention: its data, then the lengths; `slots` names all that stands in its inputs."""
    weights = {"lens": lengths[0], "total": lengths[1], **more.pop("weights", {})}
    outputs = more.pop("outputs", ("y", "keys", "values"))
    return single("GroupQueryAttention", data, weights, order=slots, outputs=outputs, **OWN, **HEADS, **more)


QKV = ["x0", "x1", "x2"]
CASES: dict[str, Case] = {
    "prompt": {"data": APART, "lengths": PROMPT, "slots": [*QKV, "", "", "lens", "total"]},
    "output alone": {"data": APART, "lengths": PROMPT, "slots": [*QKV, "", "", "lens", "total"], "outputs": ("y",)},
    "softcap and scale": {
        "data": APART,
        "lengths": PROMPT,
        "slots": [*QKV, "", "", "lens", "total"],
        "softcap": 0.8,
        "scale": 0.6,
    },
    "step": {
        "data": [(2, 1, 32), (2, 1, 16), (2, 1, 16), *PAST],
        "lengths": STEP,
        "slots": [*QKV, "x3", "x4", "lens", "total"],
    },
    "window and sinks": {
        "data": APART,
        "lengths": PROMPT,
        "slots": [*QKV, "", "", "lens", "total", "", "", "", "", "sink"],
        "weights": {"sink": normal(4)},
        "local_window_size": 2,
    },
    "turned": {
        "data": [(2, 3, 64), (2, 3, 32), (2, 3, 32)],
        "lengths": PROMPT,
        "slots": [*QKV, "", "", "lens", "total", "cos", "sin"],
        "weights": TURN,
        "do_rotary": 1,
    },
    "packed chunk, turned": {
        "data": [(1, 2, 128), (1, 2, 3, 16), (1, 2, 3, 16)],
        "lengths": CHUNK,
        "slots": ["x0", "", "", "x1", "x2", "lens", "total", "cos", "sin"],
        "weights": TURN,
        "do_rotary": 1,
        "rotary_interleaved": 1,
    },
    "packed step, turned by given places": {
        "data": [(2, 1, 128), (2, 2, 4, 16), (2, 2, 4, 16)],
        "lengths": STEP,
        "slots": ["x0", "", "", "x1", "x2", "lens", "total", "cos", "sin", "places"],
        "weights": {**TURN, "places": np.array([[6], [1]], np.int64)},
        "do_rotary": 1,
    },
    "packed prompt, turned from a given place": {
        "data": [(2, 3, 128)],
        "lengths": PROMPT,
        "slots": ["x0", "", "", "", "", "lens", "total", "cos", "sin", "places"],
        "weights": {**TURN, "places": np.array([[3, 4, 5], [3, 4, 5]], np.int64)},
        "do_rotary": 1,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_grouped(name: str):
    """Fails where queries meet the keys of another group, or new keys are looked for at another place."""
    compare(*grouped(**dict(CASES[name])))


WINDOWED: dict[str, Case] = {
    "prompt": {
        "data": [(2, 5, 32), (2, 5, 16), (2, 5, 16), *FULL],
        "lengths": (np.array([4, 4], np.int32), np.array(5, np.int32)),
        "slots": [*QKV, "x3", "x4", "lens", "total"],
        **WINDOW,
    },
    "step": {
        "data": [(2, 1, 32), (2, 1, 16), (2, 1, 16), *FULL],
        "lengths": STEP,
        "slots": [*QKV, "x3", "x4", "lens", "total"],
        **WINDOW,
    },
    "chunk, turned": {
        "data": [(1, 2, 128), (1, 2, 2, 16), (1, 2, 2, 16)],
        "lengths": (np.array([6], np.int32), np.array(7, np.int32)),
        "slots": ["x0", "", "", "x1", "x2", "lens", "total", "cos", "sin"],
        "weights": TURN,
        "do_rotary": 1,
        **WINDOW,
    },
    "more rows, step, sinks": {
        "data": [(2, 1, 32), (2, 1, 16), (2, 1, 16), (2, 2, 5, 8), (2, 2, 5, 8)],
        "lengths": (np.array([8, 3], np.int32), np.array(9, np.int32)),
        "slots": [*QKV, "x3", "x4", "lens", "total", "", "", "", "", "sink"],
        "weights": {"sink": normal(4)},
        **{**WINDOW, "local_window_size": 3},
    },
    "more rows, chunk": {
        "data": [(1, 4, 32), (1, 4, 16), (1, 4, 16), (1, 2, 5, 8), (1, 2, 5, 8)],
        "lengths": (np.array([10], np.int32), np.array(11, np.int32)),
        "slots": [*QKV, "x3", "x4", "lens", "total"],
        **{**WINDOW, "local_window_size": 3},
    },
}


@pytest.mark.parametrize("name", WINDOWED)
def test_grouped_with_caches_of_a_window(name: str):
    """Fails where a row of the past is taken for another position, or one that fell out of the window counts."""
    model, feeds = grouped(**dict(WINDOWED[name]))
    if name.startswith("more rows"):
        del model.graph.output[1:]
    compare(model, feeds)


def test_a_decoder_with_caches_of_a_window_has_the_gradients_of_one_with_all_positions():
    """An oracle of its own: the window in the attention alone, which computes the same from a past without rows."""
    model = decoder(window=3)
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    for n in whole.graph.node:
        kept = [a for a in n.attribute if a.name != "sliding_window_cache"]
        del n.attribute[:]
        n.attribute.extend(kept)
    for proto in (model, whole):
        del proto.graph.output[1:]
    weights = [t.name for t in model.graph.initializer if t.name.endswith("weight")]
    found = []
    for proto, rows in ((model, 3), (whole, 0)):
        feeds = {**prompts(2, 7), **empty(2, window=rows)}
        back = reverse_of(proto, feeds, weights)
        assert not back.missing
        seeds = {s: normal(2, 7, 24) for s in back.seeds.values()}
        names = [back.of_tensor[w] for w in weights]
        found.append([*Session(protobuf.submodel(back.proto, {}, names)).run({**feeds, **seeds}).values()])
    for a, b in zip(*found, strict=True):
        assert_same(a, b, rtol=1e-4, atol=1e-5)
        assert b.any()


def test_grouped_whose_present_keys_alone_are_read():
    model, feeds = grouped(**dict(CASES["turned"]))
    del model.graph.output[2], model.graph.output[0]
    compare(model, feeds, tensors=["x1"])
    model, feeds = grouped(**dict(CASES["packed step, turned by given places"]))
    del model.graph.output[0], model.graph.output[0]
    compare(model, feeds, tensors=["x0", "x2"])


def test_grouped_refusals():
    slots = [*QKV, "", "", "lens", "total", "", "", "", "x3"]
    model, feeds = grouped([*APART, (2, 4, 3, 3)], PROMPT, slots)
    assert "added to its scores" in reverse_of(model, feeds, ["x3"]).missing["x3"]
    model, feeds = grouped(APART, PROMPT, [*QKV, "", "", "lens", "total"], outputs=("y", "", "", "s"), qk_output=2)
    assert "scores" in reverse_of(model, feeds, ["x0"]).missing["x0"]


def multi_head(data: list[Any], slots: list[str], **more: Any) -> tuple[Any, Any]:
    weights = more.pop("weights", {})
    outputs = more.pop("outputs", ("y",))
    return single("MultiHeadAttention", data, weights, order=slots, outputs=outputs, num_heads=4, **OWN, **more)


WIDE = [(2, 3, 20), (2, 5, 20), (2, 5, 24)]
SAME = [(2, 3, 20), (2, 3, 20), (2, 3, 20)]
MULTI: dict[str, Case] = {
    "plain": {"data": WIDE, "slots": QKV},
    "scaled": {"data": WIDE, "slots": QKV, "scale": 0.7},
    "present": {"data": WIDE, "slots": QKV, "outputs": ("y", "keys", "values")},
    "biases": {"data": [*WIDE, (64,)], "slots": [*QKV, "x3"]},
    "masks": {
        "data": WIDE,
        "slots": [*QKV, "", "mask", "rel"],
        "weights": {"mask": np.array([[1, 1, 0, 1, 1], [0, 1, 1, 1, 1]], np.int32), "rel": normal(1, 4, 3, 5)},
    },
    "past": {
        "data": [*SAME, (60,), (2, 4, 2, 5), (2, 4, 2, 5)],
        "slots": [*QKV, "x3", "", "", "x4", "x5"],
        "outputs": ("y", "keys", "values"),
        "unidirectional": 1,
    },
    "crossed": {"data": [(2, 3, 20), (2, 4, 5, 5), (2, 4, 5, 5)], "slots": QKV},
}


@pytest.mark.parametrize("name", MULTI)
def test_multi_head(name: str):
    """Fails where a bias is not seen by keys or values, or the past is taken for new."""
    compare(*multi_head(**dict(MULTI[name])))


def test_multi_head_refusals():
    model, feeds = multi_head([*WIDE, (1, 4, 3, 5)], [*QKV, "", "", "x3"])
    assert "added to its scores" in reverse_of(model, feeds, ["x3"]).missing["x3"]
