"""What is said of calibration data whatever the model is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.data.inputs import InputSpec
from onnxprune.data.samples import Samples
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
    assert "calibration samples are" not in said(x=same, other=NOISE)


@pytest.mark.parametrize("piece", [7, 1 << 16])
def test_samples_that_are_nearly_the_same(piece: int, monkeypatch: pytest.MonkeyPatch):
    """Fails where noise hides that a loader gives one image; ordinary data has entries that stand still, not all."""
    monkeypatch.setattr(figures_module, "_PIECE", piece)
    one = np.broadcast_to(NOISE[:1], NOISE.shape)
    near = (one * (1 + 1e-5 * NOISE)).astype(np.float32)
    assert "all 40 calibration samples are nearly the same" in said(x=near)
    assert "nearly the same" in said(x=near, mask=np.ones((40, 4), np.int64))
    for others in ({"token": np.arange(40)[:, None]}, {"z": NOISE[:, :1]}):
        found = said(x=near, **others)
        assert "samples are nearly" not in found
        assert "input 'x' is the same, but for noise or brightness, in all 40" in found
    padded = NOISE.copy()
    padded[..., :6] = -0.4242
    assert said(x=padded) == ""
    assert said(x=(np.array([1e9, 0.5]) + NOISE[:, 0, 0, :2]).astype(np.float32)) == ""


DENSE = {
    "image": NOISE,
    "grey": np.repeat(NOISE[:, :1], 3, axis=1),
    "bytes": (NOISE * 40 + 128).clip(0, 255).astype(np.uint8),
    "features": NOISE.reshape(40, -1)[:, :16],
    "half": NOISE.reshape(40, 12, 16).astype(np.float16),
}


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("pieces", [False, True])
def test_one_input_that_is_the_same_in_all_samples(kind: str, pieces: bool, monkeypatch: pytest.MonkeyPatch):
    """Fails where a loader that is broken for one of several inputs passes, as the samples differ in the others."""
    if pieces:
        monkeypatch.setattr("onnxprune.data.array_files._CHUNK_BYTES", 500)
    x = DENSE[kind]
    same = np.repeat(x[:1], 40, 0)
    line = "input 'a' is the same in all 40 calibration samples"
    assert line in said(a=same, b=NOISE)
    assert line in said(a=same, token=np.arange(40)[:, None])
    same[-1] = x[-1]
    assert said(a=same, b=NOISE) == ""
    assert said(a=x, b=NOISE) == ""


STILL = {
    "mask": np.ones((40, 32), np.float32),
    "causal": np.repeat(np.triu(np.full((8, 8), -1e9, np.float32), 1)[None], 40, 0),
    "rate": np.full((40, 1), 16000.0, np.float32),
    "state": np.zeros((40, 2, 64), np.float32),
    "size": np.tile(np.array([800.0, 1333.0, 1.5], np.float32), (40, 1)),
    "camera": np.tile(np.array([[910, 0, 640], [0, 905, 360], [0, 0, 1]], np.float32), (40, 1, 1)),
    "positions": np.tile(np.arange(50, dtype=np.float32), (40, 1)),
    "grid": np.tile(
        np.stack(np.meshgrid(np.linspace(-1, 1, 20), np.linspace(0, 1, 30))).astype(np.float32), (40, 1, 1, 1)
    ),
    "ids": np.tile(np.array([101, 7, 9, 2000, 8, 55, 3, 12, 90, 102]), (40, 1)),
    "whole": np.arange(100, dtype=np.float32).reshape(1, 10, 10) ** 2,
}


@pytest.mark.parametrize("kind", STILL)
def test_what_is_the_same_in_all_samples_for_good_reason(kind: str):
    """Fails where a mask, a rate, an empty state, sizes, positions, ids, or an input without samples is warned of."""
    arrays = {"x": NOISE, "a": STILL[kind]}
    data = samples(**arrays)
    if kind == "whole":
        data = Samples((data.specs[0], InputSpec("a", np.dtype(np.float32), (1, 10, 10), True)), arrays)
    assert doubts(data, figures_of(data), digests(data)) == []


def test_copies_of_one_image():
    """Fails where noise or brightness hides that every image is the same one, or where alike images are taken so."""
    at = np.linspace(0, 3, 16)
    image = np.stack([np.sin(k * at[:, None] + at) for k in (1, 2, 3)])[None].astype(np.float32)
    noise = RNG.standard_normal((40, 3, 16, 16)).astype(np.float32)
    light = np.linspace(0.5, 2, 40, dtype=np.float32)[:, None, None, None]
    line = "input 'x' is the same, but for noise or brightness, in all 40 calibration samples"
    for copies in (image + 0.01 * noise, image * light, image + light, image * light + 0.01 * noise + light):
        assert line in said(x=copies)
        assert line in said(x=copies, b=noise)
    assert said(x=image + 0.2 * noise) == ""
    one_channel = np.repeat(image, 40, 0)
    one_channel[:, 2] = noise[:, 2]
    assert said(x=one_channel) == ""
    later = np.repeat(image, 40, 0) + 0.001 * noise
    later[39] = noise[39]
    assert said(x=later) == ""


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
