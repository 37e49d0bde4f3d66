"""Taps of a walk, bit for bit against what numpy gathers from whole tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.graph import protobuf
from onnxprune.runtime.taps import Tap, as_expected, with_taps
from onnxprune.runtime.walker import Walker
from tests.calibrated import prepare_text, samples_of
from tests.compare import assert_same
from tests.prepared import Prepared

Array = NDArray[Any]

# A tensor r that has its channels first, or last, and what else it leads to.
TEXTS = {
    "first": """(float[N,3,6,5] x) => (float[N,4,6,5] y) {
        a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
        r = Relu(a)
        d = Conv (r, w2[8,8,1,1], b2[8])
        s = Add(r, d)
        y = Conv (s, w3[4,8,1,1], b3[4])
    }""",
    "first, one axis": """(float[N,3,7] x) => (float[N,4,7] y) {
        a = Conv <pads=[1,1]> (x, w1[8,3,3], b1[8])
        r = Relu(a)
        d = Conv (r, w2[8,8,1], b2[8])
        s = Add(r, d)
        y = Conv (s, w3[4,8,1], b3[4])
    }""",
    "last": """(float[N,6,5,7] x) => (float[N,6,5,4] y) {
        a = MatMul (x, w1[7,8])
        r = Relu(a)
        d = MatMul (r, w2[8,8])
        s = Add(r, d)
        y = MatMul (s, w3[8,4])
    }""",
}
# Nine batches: eight of eight samples, and one of six.
COUNT, BATCHES = 70, 9


def walker(p: Prepared, memory: int = 1 << 40) -> Walker:
    return Walker(p.normalised.proto, samples_of(p, COUNT), p.normalised.types, p.normalised.shapes, memory)


def tap_of(p: Prepared, name: str, tensor: str = "r", tap: str = "tap") -> Tap:
    return Tap(tap, tensor, tuple(p.channels.graph.shapes[tensor]), name == "last")


def gathered(whole: Array, at: Array, name: str) -> Array:
    """(rows, channels) of a whole tensor."""
    if name != "last":
        whole = np.moveaxis(whole, 1, -1)
    flat = whole.reshape(len(whole), -1, whole.shape[-1])
    return np.concatenate([sample[at] for sample in flat])


def positions(p: Prepared, name: str, seed: int, count: int) -> list[Array]:
    """Of every batch others, in no order, some twice."""
    shape = p.channels.graph.shapes["r"]
    places = int(np.prod(shape[1:-1] if name == "last" else shape[2:]))
    rng = np.random.default_rng(seed)
    return [rng.integers(0, places, count) for _ in range(BATCHES)]


def whole(p: Prepared, names: Sequence[str]) -> list[dict[str, Array]]:
    """Whole tensors, batch by batch, of a walk without taps."""
    return list(walker(p).advance(names))


@pytest.mark.parametrize("stay", [False, True])
@pytest.mark.parametrize("name", TEXTS)
def test_a_tap_gives_what_is_gathered_from_the_whole_tensor(name: str, stay: bool) -> None:
    """Fails where axes, samples or the positions of different batches are mixed up."""
    p = prepare_text(TEXTS[name])
    tap, at = tap_of(p, name), positions(p, name, 1, 4)
    asked: list[int] = []

    def chosen(index: int) -> Mapping[str, Array]:
        asked.append(index)
        return {tap.at: at[index]}

    found = list(walker(p).advance((), stay=stay, taps=[tap], positions=chosen))
    assert asked == list(range(BATCHES))
    assert [tap.values(f).shape for f in found] == [(32, 8)] * 8 + [(24, 8)]
    for f, expected, places in zip(found, whole(p, ["r"]), at, strict=True):
        assert_same(tap.values(f), gathered(expected["r"], places, name), rtol=0.0, atol=0.0)
        # The frontier has to be computed whole, unless the walk stays where it is.
        assert set(f) == ({"tap"} if stay else {"tap", "r"})


@pytest.mark.parametrize("name", TEXTS)
def test_several_taps_of_one_tensor_and_of_others(name: str) -> None:
    """Fails where layers that read the same tensor get each other's positions, or whole tensors are left out."""
    p = prepare_text(TEXTS[name])
    taps = [tap_of(p, name, *x) for x in (("r", "one"), ("r", "two"), ("d", "three"))]
    at = [positions(p, name, seed, count) for seed, count in ((1, 3), (2, 5), (3, 1))]
    walk = walker(p).advance(
        ("a", "s"), stay=True, taps=taps, positions=lambda i: {t.at: of[i] for t, of in zip(taps, at, strict=True)}
    )
    for i, (found, expected) in enumerate(zip(walk, whole(p, ["a", "r", "d", "s"]), strict=True)):
        for t, of in zip(taps, at, strict=True):
            assert_same(t.values(found), gathered(expected[t.tensor], of[i], name), rtol=0.0, atol=0.0)
        for t in ("a", "s"):
            assert_same(found[t], expected[t], rtol=0.0, atol=0.0)


@pytest.mark.parametrize("memory", [0, 1 << 40])
@pytest.mark.parametrize("name", TEXTS)
def test_a_walk_with_taps_moves_as_one_without(name: str, memory: int) -> None:
    """Fails where the frontier stays behind, or moves although it should not."""
    p = prepare_text(TEXTS[name])
    at, w, plain = positions(p, name, 1, 4), walker(p, memory), walker(p, memory)
    for tensor, stay in (("d", True), ("r", False), ("s", True), ("d", False), ("s", False)):
        tap = tap_of(p, name, tensor)
        before = w.frontier
        walk = w.advance((), stay=stay, taps=[tap], positions=lambda i, tap=tap: {tap.at: at[i]})
        for i, (found, expected) in enumerate(zip(walk, plain.advance((tensor,), stay=stay), strict=True)):
            assert_same(tap.values(found), gathered(expected[tensor], at[i], name), rtol=0.0, atol=0.0)
        assert w.frontier == plain.frontier
        assert (w.frontier == before) is stay
        for found, expected in zip(w.batches, plain.batches, strict=True):
            assert found.keys() == expected.keys()
            for t in found:
                assert_same(found[t], expected[t], rtol=0.0, atol=0.0)


# What was expected of a tensor (N, 8, 6, 5), and a position that this has: the error of onnxruntime is one way to learn
# of a smaller tensor, its shape is the other.
UNEXPECTED = {
    "smaller, beyond its end": ((2, 8, 12, 5), 59),
    "smaller": ((2, 8, 12, 5), 0),
    "larger": ((2, 8, 3, 5), 14),
    "turned": ((2, 8, 5, 6), 29),
    "other channels": ((2, 4, 6, 10), 59),
    "another rank": ((2, 8, 30), 29),
}


@pytest.mark.parametrize("stay", [False, True])
@pytest.mark.parametrize("kind", UNEXPECTED)
def test_a_tensor_of_another_shape_comes_whole(kind: str, stay: bool) -> None:
    """Fails where positions that were chosen for another shape are read, or end in an error."""
    p = prepare_text(TEXTS["first"])
    shape, place = UNEXPECTED[kind]
    good, wrong = tap_of(p, "first", "a", "good"), replace(tap_of(p, "first"), shape=shape)
    at = {good.at: np.array([3]), wrong.at: np.array([place])}
    w = walker(p)
    found = list(w.advance(("d",), stay=stay, taps=[good, wrong], positions=lambda _: at))
    for f, expected in zip(found, whole(p, ["a", "r", "d"]), strict=True):
        assert not {"good", "tap"} & set(f)
        for t in ("a", "r", "d"):
            assert_same(f[t], expected[t], rtol=0.0, atol=0.0)
    assert list(w.frontier) == (["x"] if stay else ["d", "r"])


def test_one_batch_that_differs_comes_whole_alone() -> None:
    """Fails where the batches behind it come whole too, or it is taken for an error of the model."""
    p = prepare_text(TEXTS["first"])
    tap = tap_of(p, "first")
    walk = walker(p).advance(
        (),
        stay=True,
        taps=[tap],
        positions=lambda i: {tap.at: np.array([30 if i == 2 else i])},  # of 0 to 29
    )
    for i, (found, expected) in enumerate(zip(walk, whole(p, ["r"]), strict=True)):
        if i == 2:
            assert set(found) == {"r"}
            assert_same(found["r"], expected["r"], rtol=0.0, atol=0.0)
        else:
            assert set(found) == {"tap"}
            assert_same(tap.values(found), gathered(expected["r"], np.array([i]), "first"), rtol=0.0, atol=0.0)


def test_the_model_itself_is_left_as_it_is() -> None:
    """Fails where taps are added to the model that is walked."""
    p = prepare_text(TEXTS["first"])
    part = protobuf.submodel(p.normalised.proto, {}, ["r"])
    before = part.SerializeToString(deterministic=True)
    taps = [tap_of(p, "first", "r", "one"), tap_of(p, "first", "a", "two")]
    found = with_taps(part, ["r"], taps)
    assert part.SerializeToString(deterministic=True) == before
    assert [o.name for o in found.graph.output] == ["r", "one", "one:shape", "two", "two:shape"]
    assert [i.name for i in found.graph.input][-2:] == ["one:at", "two:at"]


def test_only_the_number_of_samples_may_be_another() -> None:
    """Fails where a last, smaller batch counts as unexpected, or one tap of several is not looked at."""
    taps = [Tap("one", "r", (2, 8, 6, 5), False), Tap("two", "s", (2, 3, 8), True)]
    shapes = {"one:shape": np.array([7, 8, 6, 5]), "two:shape": np.array([1, 3, 8])}
    assert as_expected(taps, shapes)
    assert as_expected([], {})
    for name, other in (("one", [7, 8, 5, 6]), ("two", [1, 3, 9]), ("two", [2, 3, 8, 1]), ("two", [2, 3])):
        assert not as_expected(taps, {**shapes, f"{name}:shape": np.array(other)})
