"""What is said of calibration data whatever the model is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.data.samples import InputSpec, Samples
from onnxprune.intake import figures as figures_module
from onnxprune.intake.figures import digests, doubts, figures_of, text_of

RNG = np.random.default_rng(0)
NOISE = RNG.standard_normal((40, 3, 8, 8)).astype(np.float32)


def samples(**arrays: Any) -> Samples:
    specs = tuple(InputSpec(k, v.dtype, (None, *v.shape[1:]) if v.ndim else ()) for k, v in arrays.items())
    return Samples(specs, arrays)


def said(**arrays: Any) -> str:
    data = samples(**arrays)
    return " ".join(doubts(data, figures_of(data), digests(data)))


def test_figures_are_those_of_numpy(monkeypatch: pytest.MonkeyPatch):
    """Fails where the pieces are merged wrongly, also beside a mean that is large against the spread."""
    monkeypatch.setattr("onnxprune.data.array_files._CHUNK_BYTES", 4096)
    x = (1e4 + NOISE * np.linspace(0.1, 3, 40)[:, None, None, None]).astype(np.float32)
    (f,) = figures_of(samples(x=x))
    wide = x.astype(np.float64)
    assert (f.shape, f.dtype, f.least, f.most) == ((40, 3, 8, 8), "float32", wide.min(), wide.max())
    assert f.mean == pytest.approx(wide.mean(), rel=1e-12)
    assert f.std == pytest.approx(wide.std(), rel=1e-9)
    assert text_of(f) == (
        f"x: float32 40x3x8x8, min {wide.min():.4g}, max {wide.max():.4g}, mean {wide.mean():.4g}, std {wide.std():.4g}"
    )


def test_figures_of_every_type():
    found = figures_of(
        samples(
            i=np.arange(6, dtype=np.int64)[:, None],
            b=np.ones((6, 2), np.bool_),
            h=NOISE[:6].astype(np.float16),
            t=np.array(["a", "b", "c", "d", "e", "f"], object)[:, None],
            s=np.array(3.0, np.float32),
        )
    )
    by_name = {f.name: f for f in found}
    assert (by_name["i"].least, by_name["i"].most, by_name["i"].mean) == (0.0, 5.0, 2.5)
    assert (by_name["b"].least, by_name["b"].std) == (1.0, 0.0)
    assert by_name["h"].std == pytest.approx(NOISE[:6].astype(np.float16).astype(float).std(), rel=1e-9)
    assert by_name["t"].least is None
    assert text_of(by_name["t"]) == "t: object 6x1"
    assert text_of(by_name["s"]) == "s: float32 scalar, min 3, max 3, mean 3, std 0"


def test_nothing_is_said_of_ordinary_data():
    assert said(x=NOISE) == ""
    assert said(x=NOISE, mask=np.ones((40, 5), np.int64), rate=np.array(8000)) == ""
    assert said(x=np.concatenate([NOISE, NOISE[:2]])) == ""
    assert said(x=NOISE[:1]) == ""
    assert said(word=np.array([["a"], ["b"], ["c"]], object)) == ""


@pytest.mark.parametrize("pieces", [False, True])
def test_samples_that_are_all_the_same(pieces: bool, monkeypatch: pytest.MonkeyPatch):
    """Fails where a loader that gives one image for all passes unnoticed; two inputs must both repeat."""
    if pieces:
        monkeypatch.setattr("onnxprune.data.array_files._CHUNK_BYTES", 1000)
    same = np.repeat(NOISE[:1], 40, 0)
    assert "all 40 calibration samples are the same" in said(x=same)
    assert "all 40 calibration samples are the same" in said(x=same, mask=np.ones((40, 5), np.int64))
    assert said(x=same, other=NOISE) == ""


def test_samples_that_are_nearly_the_same():
    """Fails where noise hides that a loader gives one image; ordinary data has entries that stand still, not all."""
    one = np.broadcast_to(NOISE[:1], NOISE.shape)
    near = (one * (1 + 1e-5 * NOISE)).astype(np.float32)
    assert "all 40 calibration samples are nearly the same" in said(x=near)
    assert "nearly the same" in said(x=near, mask=np.ones((40, 4), np.int64))
    assert said(x=near, token=np.arange(40)[:, None]) == ""
    assert said(x=near, z=NOISE[:, :1]) == ""
    padded = NOISE.copy()
    padded[..., :6] = -0.4242
    assert said(x=padded) == ""
    assert said(x=(np.array([1e9, 0.5]) + NOISE[:, 0, 0, :2]).astype(np.float32)) == ""


def test_text_without_a_further_axis():
    """Fails where one text of each sample is taken for an array."""
    assert said(t=np.array(["a", "b", "c", "d"], object)) == ""
    assert "copies" in said(t=np.array(["a", "b", "c", "d"] * 3, object))
    assert "the same" in said(t=np.array(["a"] * 4, object))


def test_zeros():
    assert "zero throughout" in said(x=np.zeros_like(NOISE))
    assert "zero throughout" in said(x=np.zeros((1, 4), np.float32))
    assert "zero throughout" in said(x=np.zeros_like(NOISE), ids=np.zeros((40, 3), np.int64))


def test_copies():
    """Fails where copies pass, or where a few among many are made a matter of."""
    assert "20 of 40 calibration samples are copies" in said(x=np.repeat(NOISE[:20], 2, 0))
    assert "36 of 40 calibration samples are copies" in said(x=np.tile(NOISE[:4], (10, 1, 1, 1)))
    words = np.array([["a"], ["b"], ["a"], ["a"]], object)
    assert "2 of 4 calibration samples are copies" in said(w=words)


def test_flat_samples():
    """Fails where images of one colour pass, or where inputs with few entries, or constant ones, are taken for such."""
    levels = np.broadcast_to(np.arange(40, dtype=np.float32)[:, None, None, None], NOISE.shape).copy()
    assert "'x' every calibration sample is a single value" in said(x=levels)
    assert said(x=NOISE, level=np.arange(40, dtype=np.float32)[:, None]) == ""
    assert said(x=NOISE, mask=np.ones((40, 32), np.float32)) == ""
    levels[3, 0, 0, 0] = -1
    assert said(x=levels) == ""
    assert figures_module.figures_of(samples(x=levels))[0].flat is False
