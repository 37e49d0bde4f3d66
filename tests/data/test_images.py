"""Folders of images: every preset against an oracle in plain numpy, and files that are not what they claim."""

from __future__ import annotations

import json
import os
import struct
import sys
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune import Images, evaluate
from onnxprune.__main__ import main
from onnxprune.data.accepted import Wanted
from onnxprune.data.image_presets import PRESETS
from onnxprune.data.inputs import InputSpec
from onnxprune.data.sources import given
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.process import spill
from tests import digits

Image = pytest.importorskip("PIL.Image")

F32 = np.dtype(np.float32)
# (size where the model says none, color, resize, filter, what the crop is cut from, scale, mean, std): written anew.
EXPECTED: dict[str, tuple[Any, ...]] = {
    "imagenet": (224, "RGB", "crop", "linear", 256, 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "imagenet-bicubic": (224, "RGB", "crop", "cubic", 256, 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "imagenet-caffe": (224, "BGR", "crop", "linear", 256, 1, (103.939, 116.779, 123.68), (1, 1, 1)),
    "inception": (299, "RGB", "crop", "cubic", 342, 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "tf": (224, "RGB", "stretch", "linear", None, 1 / 127.5, (1, 1, 1), (1, 1, 1)),
    "clip": (
        224,
        "RGB",
        "crop",
        "cubic",
        224,
        1 / 255,
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
    "yolo": (640, "RGB", "letterbox", "linear", None, 1 / 255, (0, 0, 0), (1, 1, 1)),
    "unit": (32, "RGB", "stretch", "linear", None, 1 / 255, (0, 0, 0), (1, 1, 1)),
    "raw": (32, "RGB", "stretch", "linear", None, 1, (0, 0, 0), (1, 1, 1)),
}


def weights(old: int, new: int, kind: str) -> Any:
    """(new, old): the antialiased filter, as it is defined: a kernel as wide as the step, cut at the edge."""
    step = old / new
    wide = max(step, 1.0)
    x = (np.arange(old)[None, :] + 0.5 - (np.arange(new)[:, None] + 0.5) * step) / wide
    a = np.abs(x)
    if kind == "linear":
        k = np.clip(1 - a, 0, None)
    else:
        near, far = 1.5 * a**3 - 2.5 * a**2 + 1, -0.5 * a**3 + 2.5 * a**2 - 4 * a + 2
        k = np.where(a < 1, near, np.where(a < 2, far, 0.0))
    return k / k.sum(axis=1, keepdims=True)


def resized(pixels: Any, height: int, width: int, kind: str) -> Any:
    """Columns, then rows, each rounded to 8 bits."""
    for axis, size in ((1, width), (0, height)):
        moved = np.moveaxis(pixels.astype(np.float64), axis, 0)
        made = np.tensordot(weights(moved.shape[0], size, kind), moved, 1)
        pixels = np.moveaxis(np.clip(np.floor(made + 0.5), 0, 255), 0, axis)
    return pixels


def oracle(pixels: Any, name: str, side: int | None = None) -> Any:
    """(3, side, side) in 64 bits before the division by std, so that one level is `scale`."""
    size, color, resize, kind, whole, scale, mean, std = EXPECTED[name]
    if side is not None:
        whole, size = whole and round(side * whole / size), side
    h, w = pixels.shape[:2]
    if resize == "stretch":
        out = resized(pixels, size, size, kind)
    elif resize == "crop":
        new = (whole, int(whole * w / h)) if h <= w else (int(whole * h / w), whole)
        top, left = (round((n - size) / 2.0) for n in new)
        out = resized(pixels, *new, kind)[top : top + size, left : left + size]
    else:
        r = min(size / h, size / w)
        new = (round(h * r), round(w * r))
        out = np.full((size, size, 3), 114.0)
        top, left = (round((size - n) / 2 - 0.1) for n in new)
        out[top : top + new[0], left : left + new[1]] = resized(pixels, *new, kind)
    out = out[..., ::-1] if color == "BGR" else out
    return np.moveaxis((out * scale - np.array(mean)) / np.array(std), -1, 0), scale / np.min(std)


def picture(height: int, width: int, seed: int = 0) -> Any:
    """Smooth with some noise, so that rows, columns and channels differ."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = np.stack([80 + 70 * np.sin(x / 9 + c) + 40 * np.cos(y / (5 + c)) for c in range(3)], -1)
    return np.clip(base + rng.normal(0, 9, base.shape), 0, 255).astype(np.uint8)


def saved(folder: Path, *names: str, pixels: Any = None) -> Path:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(20, 30, i) if pixels is None else pixels).save(path)
    return folder


def spec(*dims: int | None, dtype: Any = F32) -> tuple[InputSpec, ...]:
    return (InputSpec("x", np.dtype(dtype), dims),)


def fed(source: Any, specs: tuple[InputSpec, ...]) -> Any:
    samples = given(source, specs)
    return np.concatenate([f["x"] for f in samples.batches(1)]) if specs[0].batched else samples.slice(0, 1)["x"]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", [(50, 73), (91, 40)], ids=["wide", "tall"])
def test_presets(name: str, shape: tuple[int, int], tmp_path: Path):
    """Fails where a preset resizes, cuts, fills, orders or scales otherwise than its row says."""
    pixels = picture(*shape)
    saved(tmp_path, "a.png", pixels=pixels)
    for side, dims in ((24, (None, 3, 24, 24)), (32, (None, 3, 32, 32))):
        want, level = oracle(pixels, name, side)
        got = fed(Images(tmp_path, preset=name), spec(*dims))
        assert got.dtype == F32
        assert np.abs(got[0] - want).max() <= 1.01 * level
        assert np.abs(got[0] - want).mean() <= 0.35 * level


def test_every_preset_has_an_oracle():
    """Fails where a row is added without one, or its own size is another."""
    assert EXPECTED.keys() == PRESETS.keys()
    assert all(p.size in (None, EXPECTED[k][0]) for k, p in PRESETS.items())


def test_the_page_has_the_table():
    """Fails where docs/data.md says other numbers than a preset has."""
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = {c[0].strip("`"): c[1:] for line in text.splitlines() if (c := [x.strip() for x in line.split("|")[1:-1]])}
    for name, p in PRESETS.items():
        size, color, resize, scale, mean, std, known = rows[name]
        assert size == ("" if p.size is None else str(p.size))
        assert color == (p.color or "rgb, or gray")
        of = f" of {round(p.size / p.share)}" if p.resize == "crop" and p.size else ""
        assert resize == f"{p.resize}{of}, {p.filter}"
        assert float(Fraction(scale)) == p.scale
        assert tuple(map(float, mean.split(","))) == p.mean
        assert tuple(map(float, std.split(","))) == p.std
        assert known == p.known_from


def test_the_size_of_the_preset_where_the_model_says_none(tmp_path: Path):
    """Fails where a free height and width are not those of the preset, or of --size."""
    saved(tmp_path, "a.png")
    free = spec(None, 3, None, None)
    assert fed(Images(tmp_path, preset="imagenet"), free).shape == (1, 3, 224, 224)
    assert fed(Images(tmp_path, preset="imagenet", size=(64, 96)), free).shape == (1, 3, 64, 96)
    with pytest.raises(CalibrationError, match="leaves the size open; give --size"):
        given(Images(tmp_path, preset="raw"), free)


@pytest.mark.parametrize(
    ("dims", "shape"),
    [
        ((None, 3, 8, 12), (1, 3, 8, 12)),
        ((None, 8, 12, 3), (1, 8, 12, 3)),
        ((1, 3, 8, 12), (1, 3, 8, 12)),
        ((3, 8, 12), (3, 8, 12)),
        ((8, 12, 3), (8, 12, 3)),
        ((None, 1, 8, 12), (1, 1, 8, 12)),
        ((None, 8, 12), (1, 8, 12)),
        ((None, 4, 8, 12), (1, 4, 8, 12)),
    ],
)
def test_layouts(dims: tuple[int | None, ...], shape: tuple[int, ...], tmp_path: Path):
    """Fails where channels, height or width land on another axis than the model has them on."""
    saved(tmp_path, "a.png", pixels=picture(8, 12))
    got = fed(Images(tmp_path, preset="raw"), spec(*dims))
    assert got.shape == shape
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert({1: "L", 3: "RGB", 4: "RGBA"}[4 if 4 in dims else 3]))
    if 1 in shape[1:2] or dims == (None, 8, 12):
        pixels = np.asarray(Image.open(tmp_path / "a.png").convert("L"))[..., None]
    channels = shape.index(pixels.shape[2], len(shape) - 3) if dims != (None, 8, 12) else 0
    want = np.moveaxis(pixels, -1, 0) if shape[-1] != pixels.shape[2] else pixels
    assert channels is not None
    assert np.array_equal(got.reshape(want.shape), want)


def test_numbers_given_one_by_one(tmp_path: Path):
    """Fails where single options do not stand for the preset's parts, or std and mean follow another order."""
    pixels = picture(8, 8)
    saved(tmp_path, "a.png", pixels=pixels)
    own = Images(tmp_path, scale=1 / 255, mean=(0.1, 0.2, 0.3), std=0.5, color="bgr")
    want = (np.moveaxis(pixels[..., ::-1], -1, 0) / 255 - np.array([0.1, 0.2, 0.3])[:, None, None]) / 0.5
    np.testing.assert_allclose(fed(own, spec(None, 3, 8, 8))[0], want, rtol=0, atol=1e-6)
    both = fed(Images(tmp_path, preset="imagenet", resize="stretch", mean=0), spec(None, 3, 8, 8))[0]
    std = np.array([0.229, 0.224, 0.225])[:, None, None]
    np.testing.assert_allclose(both, np.moveaxis(pixels, -1, 0) / 255 / std, rtol=0, atol=1e-6)


def test_integers(tmp_path: Path):
    """Fails where a model of bytes gets other numbers than the pixels, or int8 ones that do not fit."""
    pixels = picture(8, 8)
    saved(tmp_path, "a.png", pixels=pixels)
    assert np.array_equal(fed(tmp_path, spec(None, 8, 8, 3, dtype=np.uint8))[0], pixels)
    shifted = fed(Images(tmp_path, scale=1, mean=128), spec(None, 8, 8, 3, dtype=np.int8))[0]
    assert np.array_equal(shifted.astype(int), pixels.astype(int) - 128)
    with pytest.raises(CalibrationError, match="values reach from 0 to 255, and int8 holds -128 to 127"):
        given(Images(tmp_path, preset="raw"), spec(None, 8, 8, 3, dtype=np.int8))


def test_what_becomes_eight_bits(tmp_path: Path):
    """Fails where 16 bits are cut off, or palettes, gray, transparency or EXIF rotation are not as they are seen."""
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 65536, (8, 8)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a_deep.png")
    gray = rng.integers(0, 256, (8, 8)).astype(np.uint8)
    Image.fromarray(gray).save(tmp_path / "b_gray.png")
    pixels = picture(8, 8)
    Image.fromarray(np.dstack([pixels, gray])).save(tmp_path / "c_alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen, it is turned clockwise
    Image.fromarray(pixels).save(tmp_path / "d_turned.png", exif=exif)
    Image.fromarray(gray).convert("P").save(tmp_path / "e_palette.png")
    got = fed(Images(tmp_path, preset="raw"), spec(None, 8, 8, 3)).astype(np.int64)
    assert np.abs(got[0] - np.floor(deep[..., None] / 257 + 0.5)).max() == 0
    assert np.array_equal(got[1], np.dstack([gray] * 3))
    assert np.array_equal(got[2], pixels)
    assert np.array_equal(got[3], np.rot90(pixels, -1))
    assert np.array_equal(got[4], np.dstack([gray] * 3))


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def cut_short(folder: Path) -> None:
    saved(folder, "a.jpg", pixels=picture(64, 64))
    data = (folder / "a.jpg").read_bytes()
    (folder / "a.jpg").write_bytes(data[: len(data) // 2])


HOSTILE: dict[str, tuple[Any, str]] = {
    "cut short": (cut_short, "a.jpg cannot be read as an image .*; leave it out"),
    "text": (
        lambda f: (f / "a.jpg").write_text("no image"),
        r"a.jpg cannot be read as an image \(it is none of JPEG, PNG",
    ),
    "empty": (lambda f: (f / "a.png").write_bytes(b""), "a.png cannot be read as an image"),
    "a bomb": (lambda f: (f / "a.png").write_bytes(png_of(12000, 11000)), "a.png claims 12000x11000 pixels; at most"),
    "a large bomb": (lambda f: (f / "a.png").write_bytes(png_of(65000, 65000)), "a.png cannot be read|a.png claims"),
    "without its pixels": (lambda f: (f / "a.png").write_bytes(png_of(30, 30)), "a.png cannot be read as an image"),
    "another program's": (lambda f: (f / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "cannot be read as an"),
    "a folder": (lambda f: (f / "a.jpg").mkdir(), "holds no image"),
    "a pipe": (lambda f: os.mkfifo(f / "a.jpg"), "a.jpg is a pipe"),
    "nothing": (lambda f: None, "holds no image"),
    "hidden ones alone": (lambda f: saved(f, ".a.png"), "holds no image"),
    "numbers without a range": (
        lambda f: Image.fromarray(np.ones((8, 8), np.float32)).save(f / "a.tif"),
        "holds floating-point numbers",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files(kind: str, tmp_path: Path):
    """Fails where a file that is no image passes, is not named, or takes the process with it."""
    make, match = HOSTILE[kind]
    if "pipe" in kind and not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    make(tmp_path)
    with pytest.raises(CalibrationError, match=match) as e:
        given(Images(tmp_path, preset="raw"), spec(None, 3, 8, 8))
    assert "\n" not in str(e.value)


REFUSED: dict[str, tuple[dict[str, Any], tuple[InputSpec, ...], str]] = {
    "no preparation": ({}, spec(None, 3, 8, 8), "nothing says how the model wants them: --preset imagenet|"),
    "gray for three": ({"preset": "imagenet"}, spec(None, 1, 8, 8), "reads 1 channel, and images prepared as imagenet"),
    "another size": ({"preset": "raw", "size": 9}, spec(None, 3, 8, 8), "the size 9x9 is not that"),
    "two numbers": ({"scale": 1, "mean": (1, 2)}, spec(None, 3, 8, 8), "one number, or one for each of 3 channels"),
    "no channels": ({"preset": "raw"}, spec(None, 7, 8, 8), "say where its channels are"),
    "both ends": ({"preset": "raw"}, spec(None, 3, 8, 3), "say where its channels are, by --layout"),
    "a vector": ({"preset": "raw"}, spec(None, 8), "for a model with one input of images"),
    "two inputs": ({"preset": "raw"}, spec(None, 3, 8, 8) * 2, "for a model with one input of images"),
    "text": ({"preset": "raw"}, spec(None, 3, 8, 8, dtype=object), "for a model with one input of images"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals(kind: str, tmp_path: Path):
    """Fails where images are fed to an input that does not read them so."""
    options, specs, match = REFUSED[kind]
    saved(tmp_path, "a.png")
    with pytest.raises(CalibrationError, match=match.replace("|", r"\|")):
        given(Images(tmp_path, **options), specs)


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "imagnet"},
        {"mean": (0.5,)},
        {"scale": 0.0},
        {"scale": 1, "std": (1, 0, 1)},
        {"size": 0},
        {"resize": "fit"},
        {"scale": float("nan")},
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any]):
    """Fails where they are found only once images are read."""
    with pytest.raises(UsageError):
        Images("images", **options)


def test_class_folders(tmp_path: Path):
    """Fails where a label is not that of the folder, or nested files and numbers count otherwise than they should."""
    words = saved(tmp_path / "words", "dog/1.png", "cat/b/2.png", "cat/1.png")
    samples = given(Images(words, preset="raw"), spec(None, 3, 8, 8))
    assert samples.extras["label"].tolist() == [0, 0, 1]
    assert samples.notes == ("labels of 2 class folders: cat = 0, dog = 1",)
    numbers = saved(tmp_path / "numbers", "10/1.png", "9/1.png", "2/1.png")
    assert given(Images(numbers, preset="raw"), spec(None, 3, 8, 8)).extras["label"].tolist() == [10, 2, 9]
    (tmp_path / "names.txt").write_text("fish\ndog\nn01 cat\ncat\n", encoding="utf-8")
    named = Images(words, preset="raw", classes=tmp_path / "names.txt")
    assert given(named, spec(None, 3, 8, 8)).extras["label"].tolist() == [3, 3, 1]
    (tmp_path / "names.txt").write_text("fish\ndog\n", encoding="utf-8")
    with pytest.raises(CalibrationError, match="has no line 'cat'"):
        given(named, spec(None, 3, 8, 8))
    for beside in ("0.png", "words/0.png"):
        saved(tmp_path, beside)
        assert given(Images((tmp_path / beside).parent, preset="raw"), spec(None, 3, 8, 8)).extras == {}


def test_only_the_chosen_ones_are_read(tmp_path: Path):
    """Fails where --samples reads all, or others than the same choice among loaded samples."""
    saved(tmp_path, *(f"{i}.png" for i in range(9)))
    every = fed(Images(tmp_path, preset="raw"), spec(None, 3, 8, 8))
    order = np.sort(np.random.default_rng(3).permutation(9)[:4])
    for i in set(range(9)) - set(order.tolist()):
        (tmp_path / f"{i}.png").write_text("no image")
    chosen = given(Images(tmp_path, preset="raw"), spec(None, 3, 8, 8), Wanted(4, 3))
    assert np.array_equal(chosen.slice(0, 4)["x"], every[order])


def test_links_are_followed_once(tmp_path: Path):
    """Fails where a link back leads round and round, or a linked folder is not read."""
    saved(tmp_path / "real" / "a", "1.png")
    (tmp_path / "images").mkdir()
    try:
        (tmp_path / "images" / "a").symlink_to(tmp_path / "real" / "a")
    except OSError as e:
        pytest.skip(f"no links here: {e}")
    (tmp_path / "real" / "a" / "up").symlink_to(tmp_path / "images")
    assert len(given(Images(tmp_path / "images", preset="raw"), spec(None, 3, 8, 8))) == 1


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where a machine without the extra gets a traceback."""
    saved(tmp_path, "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"pip install 'onnxprune\[images\]'"):
        given(Images(tmp_path, preset="raw"), spec(None, 3, 8, 8))


@pytest.fixture(scope="module")
def digit_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first test images of the bundled models as files, in a folder for each digit; 16 levels as bytes."""
    folder = tmp_path_factory.mktemp("digits")
    with np.load(digits.TEST) as f:
        x, labels = f["input"][:60], f["label"][:60]
    low, high = float(x.min()), float(x.max())
    for i, (image, label) in enumerate(zip(x, labels, strict=True)):
        (folder / str(label)).mkdir(exist_ok=True)
        Image.fromarray(np.rint((image[0] - low) / (high - low) * 240).astype(np.uint8)).save(
            folder / str(label) / f"{i:03}.png"
        )
    return folder


def numbers(folder: Path) -> list[str]:
    """The options that undo what the fixture did."""
    with np.load(digits.TEST) as f:
        low, high = float(f["input"][:60].min()), float(f["input"][:60].max())
    return [str(folder), "--scale", repr((high - low) / 240), "--mean", repr(-low)]


def test_the_commands(digit_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where a folder of images gives other figures than its pixels as arrays, or the report does not name it."""
    scaled = numbers(digit_images)
    assert main(["eval", str(digits.path("resnet")), "--labels", "label", "--json", "--data", *scaled]) == 0
    result = json.loads(capsys.readouterr().out)
    with np.load(digits.TEST) as f:
        want = evaluate(digits.path("resnet"), {k: f[k][:60] for k in ("input", "label")}, labels="label").accuracy
    assert result["accuracy"] == want
    assert "GRAY, stretch to 8x8" in result["prepared"]
    out, report, plan = (tmp_path / n for n in ("out.onnx", "report.json", "plan.json"))
    run = [
        str(digits.path("resnet")),
        str(out),
        "--ratio",
        "0.3",
        "--fast",
        "--method",
        "magnitude",
        "--refit",
        "scale",
    ]
    files = ["--report", str(report), "--plan", str(plan), "--calib", *scaled]
    assert main([*run, *files]) == 0
    shown = capsys.readouterr().out
    assert "GRAY, stretch to 8x8" in " ".join(shown.split())
    assert "GRAY" in json.loads(report.read_text())["calibration"]["prepared"]
    assert "GRAY" in json.loads(plan.read_text())["data"]
    again = [str(digits.path("resnet")), str(tmp_path / "again.onnx"), "--from-plan", str(plan), "--calib", *scaled]
    assert main([*again, "--quiet"]) == 0
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()
    other = [*again[:1], str(tmp_path / "other.onnx"), *again[2:-1], "0"]
    assert main([*other, "--quiet"]) == 2  # other numbers are other data
    assert main(["inspect", str(digits.path("resnet")), "--calib", *scaled, "--json"]) == 0
    assert main(["bench", str(digits.path("resnet")), "--data", *scaled, "--runs", "20"]) == 0


def test_what_the_commands_refuse(digit_images: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where an option that would do nothing is taken, or images without a scale are."""
    model = str(digits.path("resnet"))
    for args, code, text in (
        (["eval", model, "--labels", "label", "--data", str(digit_images)], 1, "nothing says how the model wants them"),
        (
            ["eval", model, "--labels", "label", "--data", str(digits.TEST), "--preset", "raw"],
            2,
            "--preset is about images",
        ),
        (["inspect", model, "--mean", "0.5"], 2, "--mean is about data"),
        (
            ["eval", model, "--labels", "label", "--data", str(digit_images), "--mean", "0.5"],
            2,
            "--mean and --std need a scale",
        ),
        (["eval", model, "--labels", "label", "--data", str(digit_images), "--scale", "1/0"], 2, "is not a number"),
        (["eval", model, "--labels", "label", "--data", str(digit_images), "--size", "8x"], 2, "is not a size"),
        (["bench", model, "--data", str(digit_images), "--preset", "imagent"], 2, "imagenet"),
    ):
        assert main(args) == code, args
        said = capsys.readouterr().err
        assert text in said, said


def test_many_images_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where all images of a folder are held in memory."""
    from onnxprune.data import spool
    from onnxprune.data.array_files import Rows

    saved(tmp_path, *(f"{i}.png" for i in range(5)))
    monkeypatch.setattr(spool, "LARGE_BYTES", 0)
    with spill.spilling():
        samples = given(Images(tmp_path, preset="raw"), spec(None, 3, 8, 8))
        assert isinstance(samples.arrays["x"], Rows)
        assert len(samples) == 5


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "no/such/folder", "no.jpg"])
def test_paths_that_are_none(path: str):
    """Fails where looking for images in a path that cannot be ends in an error of the system."""
    for source in (path, Images(path, preset="raw")):
        with pytest.raises(CalibrationError):
            given(source, spec(None, 3, 8, 8))
