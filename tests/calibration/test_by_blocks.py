"""Moments block by block, against those of one pass."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.calibration import by_blocks
from onnxprune.calibration.by_blocks import Blocks, blocks_of
from onnxprune.calibration.input_moments import InputMoments, collect, gram_bytes, sharing
from onnxprune.calibration.layers import layers_of
from onnxprune.data.samples import Samples
from onnxprune.jobs.kept import NOWHERE, Kept, kept_in
from onnxprune.jobs.work import Here, Scheduler
from onnxprune.numerics import gram
from onnxprune.process import spill
from onnxprune.runtime.walker import Walker
from tests.calibrated import prepare_text, samples_of
from tests.compare import assert_same
from tests.prepared import Prepared

Array = NDArray[Any]

# Two blocks of three layers that read one tensor, in the order of attention and a gated block.
STREAM = """(float[N,60,6] x) => (float[N,60,6] y) {
    q = MatMul(x, wq[6,8])
    k = MatMul(x, wk[6,8])
    v = MatMul(x, wv[6,8])
    qk = Mul(q, k)
    a = Mul(qk, v)
    o = MatMul(a, wo[8,6])
    s = Add(x, o)
    g = MatMul(s, wg[6,12])
    u = MatMul(s, wu[6,12])
    r = Relu(g)
    gu = Mul(r, u)
    d = MatMul(gu, wd[12,6])
    y = Add(s, d)
}"""


@pytest.fixture(autouse=True)
def _files() -> Iterator[None]:
    with spill.spilling():
        yield


class Two(Here):
    """Two workers, of which this process is both, and what they were given: the layers of each work, and its shards."""

    workers = 2

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[list[str], int]] = []

    def map(self, work: Any, items: Any, count: int) -> Iterator[Any]:
        self.given.append(([x.weight for x in work.layers], count))
        return super().map(pickle.loads(pickle.dumps(work)), items, count)


def blocks(
    p: Prepared,
    samples: Samples,
    kept: Kept = NOWHERE,
    shapes: Mapping[str, Any] | None = None,
    scheduler: Scheduler | None = None,
) -> Blocks:
    return Blocks(
        proto=p.normalised.proto,
        samples=samples,
        shapes=p.normalised.shapes if shapes is None else shapes,
        types=p.normalised.types,
        seed=3,
        memory=0,
        kept=kept,
        said=lambda done, count: None,
        scheduler=scheduler or Here(),
    )


def assert_equal(found: Mapping[str, InputMoments], expected: Mapping[str, InputMoments]) -> None:
    assert found.keys() == expected.keys()
    for name, m in expected.items():
        assert_same(found[name].p, m.p, rtol=1e-5, atol=1e-7)
        assert found[name].ridge == m.ridge


def test_moments_are_those_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a block sees other batches or positions, or one of its layers is forgotten.

    Of the 60 positions the narrow layers take 16, so that other random numbers give other moments.
    """
    p = prepare_text(STREAM)
    samples = samples_of(p, 90)
    layers = layers_of(p.channels)
    expected = collect(p.normalised.proto, layers, samples, p.normalised.shapes, 3)
    monkeypatch.setattr(by_blocks, "BLOCK_BYTES", 1)
    found = blocks(p, samples).collect(layers)
    assert_equal(found, expected)
    two = Two()
    assert_equal(blocks(p, samples, scheduler=two).collect(layers), expected)
    assert [names for names, _ in two.given] == [["wq"], ["wo"], ["wg"], ["wd"]]
    assert all(count > 1 for _, count in two.given)
    other = collect(p.normalised.proto, layers, samples, p.normalised.shapes, 4)
    assert np.abs(other["wq"].p - expected["wq"].p).max() > 1e-3


def test_layers_that_read_one_tensor_share_what_is_known_of_it() -> None:
    """Fails where the Gram of one tensor is summed for each of its readers, or readers of two tensors are mixed up."""
    p = prepare_text(STREAM)
    layers = layers_of(p.channels)
    shared = {k: [x.weight for x in v] for k, v in sharing(layers).items()}
    assert shared == {"wq": ["wq", "wk", "wv"], "wo": ["wo"], "wg": ["wg", "wu"], "wd": ["wd"]}
    moments = blocks(p, samples_of(p, 20)).collect(layers)
    assert moments["wq"].moments is moments["wv"].moments
    assert moments["wq"].moments is not moments["wg"].moments


def test_one_block_at_a_time_is_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where blocks are larger than they may be, or not in the order of the model."""
    p = prepare_text(STREAM)
    shared = sharing(layers_of(p.channels))
    leaders = [x for x in layers_of(p.channels) if x.weight in shared]
    most = max(map(gram_bytes, leaders))
    monkeypatch.setattr(by_blocks, "BLOCK_BYTES", most)
    parts = blocks_of([*reversed(leaders)])
    assert [x.weight for part in parts for x in part] == ["wq", "wo", "wg", "wd"]
    assert len(parts) > 1
    assert all(sum(map(gram_bytes, part)) <= most for part in parts)


@pytest.mark.parametrize("columns", [300, 700])
def test_the_bytes_of_a_gram_are_what_it_takes(columns: int) -> None:
    """Fails where packed sums are counted as full ones, or the other way round."""
    p = prepare_text(f"(float[N,{columns}] x) => (float[N,3] y) {{ r = Relu(x) y = MatMul(r, w[{columns},3]) }}")
    (layer,) = layers_of(p.channels)
    taken = 2 * gram.Gram.zeros(1, columns).total.nbytes
    assert taken <= gram_bytes(layer) <= 1.01 * taken


def test_tensors_of_unknown_size_draw_their_own_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a layer whose place among the random numbers is not known is left out, or gets another's positions.

    Of 16 positions none is left out, whoever draws.
    """
    p = prepare_text(STREAM.replace("60", "16"))
    samples = samples_of(p, 90)
    layers = layers_of(p.channels)
    monkeypatch.setattr(by_blocks, "BLOCK_BYTES", 1)
    expected = collect(p.normalised.proto, layers, samples, p.normalised.shapes, 3)
    for scheduler in (Here(), Two()):
        found = blocks(p, samples, shapes={"x": (2, 16, 6)}, scheduler=scheduler).collect(layers)
        assert_equal(found, expected)


def test_blocks_of_an_earlier_run_are_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where what lies in the folder is another layer's, loses its ridge, or is not looked at."""
    p = prepare_text(STREAM)
    samples = samples_of(p, 90)
    layers = layers_of(p.channels)
    monkeypatch.setattr(by_blocks, "BLOCK_BYTES", 1)
    ran: list[int] = []
    advance = Walker.advance

    def killed(self: Walker, *arguments: Any, **more: Any) -> Any:
        ran.append(1)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return advance(self, *arguments, **more)

    monkeypatch.setattr(Walker, "advance", killed)
    with pytest.raises(KeyboardInterrupt):
        blocks(p, samples, kept_in(tmp_path, {"run": 1})).collect(layers)
    again = blocks(p, samples, kept_in(tmp_path, {"run": 1})).collect(layers)
    assert len(ran) == 3 + 2  # two blocks were left
    assert_equal(again, collect(p.normalised.proto, layers, samples, p.normalised.shapes, 3))
    blocks(p, samples, kept_in(tmp_path, {"run": 1})).collect(layers)
    assert len(ran) == 5
