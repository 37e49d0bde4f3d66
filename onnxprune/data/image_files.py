"""Image files, decoded by Pillow: the only user of it. What a file claims is looked at before memory is taken.

Only formats of pictures made of pixels are opened, and nothing is handed to another program.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.data.image_presets import PADDING
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.numerics.arrays import Array
from onnxprune.regular_files import brief, opened, reason

if TYPE_CHECKING:
    from PIL.Image import Image

    # What brings an image to its size.
    Resize = Callable[[Image], Image]

SUFFIXES = frozenset(".jpg .jpeg .jpe .png .bmp .gif .webp .tif .tiff .ppm .pgm .pnm".split())
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # JPEG reads MPO too
# Of a file, and of an image: larger ones are no photographs but bombs, or maps.
_MOST_BYTES, _MOST_PIXELS = 256 << 20, 120_000_000
_MOST_FILES, _MOST_DEPTH = 5_000_000, 32
# Folders that are looked into for a first image.
_LOOKED_INTO = 10_000
# Decoded at once: Pillow lets other threads run meanwhile.
_AT_ONCE = 32
_SHORT = 16  # bits, of which 8 are kept
_SMALL = 4096  # bytes of a PNG that need no JPEG


def listed(folder: Path) -> list[Path]:
    """The images in a folder and those below it, or the one that the path is, in order.

    Hidden files are passed over, and links to folders followed once. Raises CalibrationError.
    """
    try:
        if folder.is_file():
            return [folder] if folder.suffix.lower() in SUFFIXES else []
        return _walked(folder)
    except (OSError, ValueError) as e:  # a ValueError for a NUL in the name
        raise CalibrationError(f"{brief(folder)} cannot be read: {reason(e)}") from e


def _walked(folder: Path) -> list[Path]:
    found: list[Path] = []
    seen: set[str] = set()

    def fail(e: OSError) -> None:
        raise CalibrationError(f"{brief(e.filename or folder)} cannot be read: {reason(e)}") from e

    for root, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(root)
        if real in seen or len(Path(root).relative_to(folder).parts) > _MOST_DEPTH:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [Path(root, f) for f in files if not f.startswith(".") and Path(f).suffix.lower() in SUFFIXES]
        if len(found) > _MOST_FILES:
            raise CalibrationError(f"{brief(folder)} holds more than {_MOST_FILES:,} images; give a folder with fewer")
    return sorted(found, key=lambda f: f.relative_to(folder).parts)


def any_in(folder: Path) -> bool:
    """Whether a path is an image, or a folder that holds one somewhere; what cannot be read is neither."""
    try:
        if folder.is_file():
            return folder.suffix.lower() in SUFFIXES
        for _, folders, files in islice(os.walk(folder, followlinks=True), _LOOKED_INTO):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            if any(Path(f).suffix.lower() in SUFFIXES and not f.startswith(".") for f in files):
                return True
    except (OSError, ValueError):  # a name that no file can have
        return False
    return False


def decoded(paths: Sequence[Path], channels: int, resized: Resize) -> Iterator[list[Array]]:
    """The images, some at once: each (height, width, channels) of 8 bits.

    channels: 1 for gray, 3 for red, green, blue, 4 with transparency. Raises CalibrationError where a file is no image,
    is damaged, or larger than any photograph, and UsageError without Pillow.
    """
    _library()

    def one(path: Path) -> Array:
        return _pixels(path, channels, resized)

    workers = min(os.cpu_count() or 1, 8)
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # Pillow's, of sizes that are checked here and of odd metadata
        for start in range(0, len(paths), _AT_ONCE):
            yield list(pool.map(one, paths[start : start + _AT_ONCE]))


def stretched(size: tuple[int, int], method: str) -> Resize:
    """Bring an image to (height, width), whatever that does to its proportions."""
    height, width = size
    return lambda im: im.resize((width, height), _filter(method))


def cropped(size: tuple[int, int], method: str, share: float) -> Resize:
    """Resize an image until it covers (height, width) divided by `share`, and cut out the centre of that size."""
    height, width = size
    tall, wide = round(height / share), round(width / share)

    def cut(im: Image) -> Image:
        w, h = im.size
        if tall * w >= wide * h:
            new = (max(wide, tall * w // h), tall)
        else:
            new = (wide, max(tall, wide * h // w))
        im = im.resize(new, _filter(method))
        left, top = round((new[0] - width) / 2), round((new[1] - height) / 2)
        return im.crop((left, top, left + width, top + height))

    return cut


def letterboxed(size: tuple[int, int], method: str) -> Resize:
    """Resize an image until it fits into (height, width), in the middle, the rest filled."""
    height, width = size

    def fit(im: Image) -> Image:
        w, h = im.size
        ratio = min(height / h, width / w)
        new = (max(round(w * ratio), 1), max(round(h * ratio), 1))
        whole: Image = _library().new(im.mode, (width, height), tuple([PADDING] * len(im.getbands())))
        left, top = round((width - new[0]) / 2 - 0.1), round((height - new[1]) / 2 - 0.1)
        whole.paste(im.resize(new, _filter(method)), (left, top))
        return whole

    return fit


def sheet(images: Sequence[Array], columns: int) -> bytes:
    """A PNG of images (height, width) or (height, width, 3) of 8 bits and of one size, side by side with a gap.

    Raises UsageError without Pillow.
    """
    library = _library()
    return _saved(_beside([library.fromarray(i).convert("RGB") for i in images], columns), "PNG")


def thumbnails(images: Sequence[Array], columns: int, side: int) -> tuple[str, bytes]:
    """(type, bytes) of a picture as of `sheet`, with images of at most about `side` pixels, in few kilobytes.

    A JPEG where that is smaller than a PNG, which shows small ones as they are. Raises UsageError without Pillow.
    """
    library = _library()
    factor = max(1, -(-max(images[0].shape[:2]) // side))
    small = [library.fromarray(i).convert("RGB").reduce(factor) for i in images]
    whole = _beside(small, columns)
    plain, lossy = _saved(whole, "PNG"), _saved(whole, "JPEG")
    return ("image/png", plain) if len(plain) <= _SMALL else ("image/jpeg", lossy)


def _beside(images: Sequence[Image], columns: int) -> Image:
    """Images of one size on white, in rows of so many, with a gap between them."""
    width, height = images[0].size
    gap, columns, rows = 4, min(columns, len(images)), -(-len(images) // columns)
    whole: Image = _library().new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), (255, 255, 255))
    for i, image in enumerate(images):
        whole.paste(image, (gap + i % columns * (width + gap), gap + i // columns * (height + gap)))
    return whole


def _saved(image: Image, form: str) -> bytes:
    made = io.BytesIO()
    image.save(made, format=form)
    return made.getvalue()


def _library() -> ModuleType:
    try:
        import PIL.Image
    except ImportError as e:
        raise UsageError("images are read by Pillow, which is not installed: pip install 'onnxprune[images]'") from e
    return PIL.Image


def _filter(method: str) -> int:
    return int(_library().Resampling[method.upper()])


def _pixels(path: Path, channels: int, resized: Resize) -> Array:
    try:
        with opened(path, CalibrationError, most=_MOST_BYTES) as f, _library().open(f, formats=_FORMATS) as im:
            width, height = im.size
            if width * height > _MOST_PIXELS:
                raise CalibrationError(f"{path} claims {width}x{height} pixels; at most {_MOST_PIXELS:,} are read")
            if not width * height:
                raise CalibrationError(f"{path} has no pixels; leave it out")
            im.load()
            mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
            pixels = np.asarray(resized(_turned(_of_bytes(im, path)).convert(mode)))
    except CalibrationError:
        raise
    except MemoryError as e:
        raise CalibrationError(f"{path} takes more memory than there is") from e
    except Exception as e:  # Pillow's plugins raise whatever a damaged file leads them to
        what = " ".join(str(e).split())[:120].replace(str(path), "it")
        if isinstance(e, _library().UnidentifiedImageError):
            what = f"it is none of {', '.join(_FORMATS)}"
        raise CalibrationError(f"{path} cannot be read as an image ({what or type(e).__name__}); leave it out") from e
    return pixels.reshape(*pixels.shape[:2], channels)


def _of_bytes(im: Image, path: Path) -> Image:
    """An image with 8 bits for each value: 16 are scaled, as a conversion would cut them off."""
    if im.mode == "F":
        raise CalibrationError(f"{path} holds floating-point numbers, whose range nothing tells; save it with 8 bits")
    if im.mode.startswith("I"):
        values = np.asarray(im).astype(np.int64)
        if values.min() < 0 or values.max() >= 1 << _SHORT:
            raise CalibrationError(f"{path} has values from {values.min()} to {values.max()}; save it with 8 bits")
        whole: Image = _library().fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
        whole.info["exif"] = im.info.get("exif", b"")
        return whole
    return im


def _turned(im: Image) -> Image:
    """The image as its EXIF data say that it is seen; as it is where they are damaged."""
    from PIL import ImageOps

    with suppress(Exception):
        return ImageOps.exif_transpose(im)
    return im
