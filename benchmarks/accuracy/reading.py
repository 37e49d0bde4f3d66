"""A recognizer of text lines (PP-OCRv4: convolutions, then attention), on lines that are drawn here.

The lines are words of the sources of Python's standard library in the font that Pillow brings, with seeded sizes,
greys, places and noise; those of files that are held out are the test. The recognizer's answers are scores of
characters at each place along a line; the best ones are read as CTC wants it, repeats once and blanks not at all.
"""

from __future__ import annotations

import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnx

from benchmarks.accuracy.kits import Array, Inputs, answers_of, chosen, input_name
from benchmarks.decoder.texts import sources
from onnxprune.objective import relative_error

NAME = "ppocr_rec"
FILE = f"{NAME}.onnx"
_HEIGHT, _WIDTH, _MARGIN = 48, 320, 8
_LEARNT, _TEST = 1024, 500
_BLANK = 0
_WORDS = (2, 4)


def calib(made: Path, kit: Path, samples: int, seed: int) -> Inputs:
    """Pictures (N, 3, 48, 320) of lines, from -1 to 1."""
    del kit
    return {input_name(made / FILE): chosen(pictures(_lines()[0][:_LEARNT]), samples, seed)}


def judged(made: Path, kit: Path, pruned: Path) -> dict[str, float]:
    """Lines read right by both, lines read the same (both in percent), and the error of the scores."""
    del kit
    lines = _lines()[1][:_TEST]
    test = pictures(lines)
    before, after = (answers_of(path, test) for path in (made / FILE, pruned))
    characters = _characters(made / FILE)
    texts = [[read(line, characters) for line in scores.argmax(axis=2)] for scores in (before, after)]
    original, found = texts
    wanted = [line.replace(" ", "") for line in lines]

    def share(a: list[str], b: list[str]) -> float:
        return 100 * float(np.mean([x == y for x, y in zip(a, b, strict=True)]))

    return {
        "read_before": share([t.replace(" ", "") for t in original], wanted),
        "read_after": share([t.replace(" ", "") for t in found], wanted),
        "agreement": share(original, found),
        "output_error": relative_error({"": after}, {"": before}),
    }


def make(made: Path, kit: Path) -> None:
    """Fetch it out of the package that ships it, by the script beside the kit."""
    subprocess.run([sys.executable, str(kit.parent / "wild.py"), str(made), NAME], check=True)
    if not (made / FILE).exists():
        sys.exit(f"{NAME}: the package that ships it could not be had")


def read(best: Array, characters: list[str]) -> str:
    """What the best characters (T,) of a line say; behind the known ones stands the space."""
    kept = best[np.flatnonzero(np.diff(best, prepend=_BLANK) != 0)]
    known = [_BLANK, *range(1, len(characters) + 1)]
    return "".join(characters[k - 1] if k < len(known) else " " for k in kept if k != _BLANK)


def _characters(path: Path) -> list[str]:
    """As the file lists them in its metadata, a line each."""
    proto = onnx.load(path)
    listed = {p.key: p.value for p in proto.metadata_props}.get("character", "")
    return listed.split("\n")


@cache
def _lines() -> tuple[list[str], list[str]]:
    """(lines to learn from, lines held out), a seeded choice of words that follow each other."""
    return tuple(_drawn_from(texts) for texts in sources())  # type: ignore[return-value]


def _drawn_from(texts: list[str]) -> list[str]:
    rng = random.Random(0)
    found: list[str] = []
    while len(found) < max(_LEARNT, _TEST):
        words = [w for w in rng.choice(texts).split() if w.isascii() and w.isalnum()]
        count = rng.randint(*_WORDS)
        if len(words) > count:
            start = rng.randrange(len(words) - count)
            found.append(" ".join(words[start : start + count])[:28].strip())
    return found


def pictures(lines: list[str]) -> Array:
    """The lines drawn, (N, 3, 48, 320), float32 from -1 to 1; the same for the same lines."""
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng(len(lines))
    found = np.empty((len(lines), 3, _HEIGHT, _WIDTH), np.float32)
    for k, line in enumerate(lines):
        paper, ink = rng.integers(190, 256), rng.integers(0, 90)
        size = int(rng.integers(22, 34))
        while True:
            font = ImageFont.load_default(size)
            left, top, right, bottom = font.getbbox(line)
            if right - left <= _WIDTH - 2 * _MARGIN or size <= _MARGIN:
                break
            size -= 1
        image = Image.new("L", (_WIDTH, _HEIGHT), int(paper))
        x = rng.integers(2, max(3, _WIDTH - (right - left) - 2))
        y = rng.integers(1, max(2, _HEIGHT - (bottom - top) - 1))
        ImageDraw.Draw(image).text((int(x - left), int(y - top)), line, fill=int(ink), font=font)
        noisy = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(0, 12), (_HEIGHT, _WIDTH))
        found[k] = np.clip(noisy, 0, 255) / 127.5 - 1
    return found
