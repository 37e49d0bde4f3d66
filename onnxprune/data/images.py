"""A folder of images as data: decoded, resized and scaled as the model was trained on, one sample for each file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.data import image_files, parts
from onnxprune.data.accepted import Wanted
from onnxprune.data.class_folders import Classes
from onnxprune.data.given import Given
from onnxprune.data.image_presets import COLORS, LAYOUTS, PRESETS, RESIZES, Preset
from onnxprune.data.inputs import InputSpec
from onnxprune.data.spool import Spool, joined
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.numerics.arrays import Array, cast, is_float

if TYPE_CHECKING:
    from onnxprune.data.image_files import Resize

_CHANNELS = (1, 3, 4)
_MOST_SIDE = 16384


@dataclass(frozen=True)
class Images:
    """A folder of images, nested or not, or one image.

    preset: a name of `image_presets.PRESETS`; what is given beside it stands for that part of the preset. size:
    (height, width), or the side of a square; None for what the model says, or the preset. resize: "stretch", "crop" or
    "letterbox". scale, mean, std: a value v of 8 bits becomes (v * scale - mean) / std; mean and std are one number, or
    one for each channel. color: "rgb", "bgr" or "gray". layout: "nchw" or "nhwc"; None for what the model says. dtype:
    of the numbers; None for that of the model's input. classes: a file with the name of a class in each line, in the
    order of the model's output; None for the order of the folders' names. Raises UsageError for what none of these is.
    """

    path: str | os.PathLike[str]
    preset: str | None = None
    size: int | tuple[int, int] | None = None
    resize: str | None = None
    scale: float | None = None
    mean: Sequence[float] | float | None = None
    std: Sequence[float] | float | None = None
    color: str | None = None
    layout: str | None = None
    dtype: str | None = None
    classes: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("preset", PRESETS), ("resize", RESIZES), ("color", COLORS), ("layout", LAYOUTS)):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise UsageError(f"{name} is {value!r}; it is one of {', '.join(allowed)}")
        for name in ("mean", "std"):
            numbers = _numbers(getattr(self, name))
            if numbers and (not all(map(math.isfinite, numbers)) or (name == "std" and 0.0 in numbers)):
                raise UsageError(f"{name} is {getattr(self, name)}; its numbers are finite, those of std not 0")
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale):
            raise UsageError(f"scale is {self.scale}; it is a finite number that is not 0, such as 1/255")
        if self.size is not None and not all(0 < side <= _MOST_SIDE for side in _sides(self.size)):
            raise UsageError(f"size is {self.size}; a side is from 1 to {_MOST_SIDE}")
        if self.preset is None and self.scale is None and not (self.mean is None and self.std is None):
            raise UsageError(
                "mean and std need a scale: 1/255 where they are of values from 0 to 1, 1 where they are of pixels "
                "from 0 to 255"
            )

    def given(self, specs: tuple[InputSpec, ...], wanted: Wanted) -> Given:
        """The images for a model with these inputs, and the labels of class folders. Raises CalibrationError."""
        folder = Path(self.path)
        target = _Target.of(specs, self, folder)
        files = image_files.listed(folder)
        if not files:
            kinds = ", ".join(sorted(image_files.SUFFIXES))
            raise CalibrationError(f"{folder} holds no image ({kinds})")
        most = None if wanted.most is None else max(wanted.most, target.per_run)
        chosen = replace(wanted, most=most).chosen(len(files))
        spool = Spool(str(folder))
        done = 0
        for part in target.arrays([files[i] for i in chosen]):
            spool.add(target.spec.name, part)
            done += len(part)
            wanted.told(done, len(chosen))
        array = joined(spool.pieces(target.spec.name), str(folder))
        labels = Classes.of(folder, files, self.classes)
        extras = {} if labels is None else {labels.KEY: labels.of_files[chosen]}
        notes = () if labels is None else (labels.note,)
        made = parts.checked({target.spec.name: array, **extras}, specs, folder, [])
        prepared = f"images: {target.said}"
        return Given(specs, (made,), str(folder), notes, prepared, frozenset(extras))


@dataclass(frozen=True)
class _Target:
    """What the images become for one input. inner: whether the channels stand in front of height and width."""

    spec: InputSpec
    preset: Preset
    name: str
    size: tuple[int, int]
    channels: int
    inner: bool
    flat: bool
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, specs: tuple[InputSpec, ...], images: Images, folder: Path) -> _Target:
        """Raises CalibrationError where the model does not say, or does not read, what is needed."""
        spec = _image_input(specs, folder)
        dims = spec.dims[-3:] if len(spec.dims) > 3 or _channels_in(spec.dims) else (1, *spec.dims[-2:])
        flat = dims[0] == 1 and len(spec.dims) == 3 and not _channels_in(spec.dims)
        inner = _channels_first(dims, images.layout, spec, folder)
        channels, height, width = dims if inner else (dims[2], dims[0], dims[1])
        preset = _preset(images, spec, folder)
        wanted = {"gray": 1, "rgb": 3, "bgr": 3, None: channels or 3}[preset.color]
        channels = channels or wanted
        if images.color is None and channels == 1 and len(preset.mean) == len(preset.std) == 1:
            preset = replace(preset, color="gray")
        elif channels != wanted and not (channels == 4 and preset.color == "rgb"):
            raise CalibrationError(
                f"{folder}: input {spec.name!r} reads {channels} channel{'s' * (channels != 1)}, and images prepared "
                f"as {images.preset or preset.color} have {wanted}"
            )
        if {len(preset.mean), len(preset.std)} - {1, channels}:
            raise CalibrationError(f"{folder}: mean and std have one number, or one for each of {channels} channels")
        size = _size(images, preset, height, width, spec, folder)
        dtype = np.dtype(images.dtype) if images.dtype is not None else spec.dtype
        target = cls(spec, preset, images.preset or "as given", size, channels, inner, flat, dtype)
        target.check(folder)
        return target

    @property
    def per_run(self) -> int:
        """The samples of a run, where the model fixes them."""
        return (self.spec.dims[0] or 1) if len(self.spec.dims) == 4 else 1

    @cached_property
    def table(self) -> Array:
        """What each value of 8 bits becomes, (channels, 256), in 64 bits."""
        p = self.preset
        values = np.arange(256) * np.float64(p.scale)
        mean, std = (np.broadcast_to(np.array(x, np.float64), self.channels)[:, None] for x in (p.mean, p.std))
        made: Array = (values - mean) / std
        return made

    def check(self, folder: Path) -> None:
        """Raises CalibrationError where the type cannot hold the numbers."""
        if not is_float(self.dtype) and self.dtype.kind not in "iu":
            raise CalibrationError(f"{folder}: input {self.spec.name!r} is {self.dtype}, which images cannot be")
        if self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            made = np.rint(self.table)
            if made.min() < limits.min or made.max() > limits.max:
                raise CalibrationError(
                    f"{folder}: prepared so, values reach from {made.min():g} to {made.max():g}, and {self.dtype} "
                    f"holds {limits.min} to {limits.max}; say what it wants: --preset raw, --scale, --mean, --std"
                )

    def arrays(self, files: Sequence[Path]) -> Iterator[Array]:
        """The images as the model reads them, some at once, (some, ...)."""
        whole = np.rint(self.table) if self.dtype.kind in "iu" else self.table
        table = cast(whole, self.dtype)
        order = slice(None, None, -1) if self.preset.color == "bgr" else slice(None)
        for images in image_files.decoded(files, self.channels, self._resized()):
            pixels = np.stack(images)[..., order]
            made = np.stack([table[c][pixels[..., c]] for c in range(self.channels)], axis=1 if self.inner else 3)
            yield made.squeeze(1 if self.inner else 3) if self.flat else made

    def _resized(self) -> Resize:
        p = self.preset
        if p.resize == "crop":
            return image_files.cropped(self.size, p.filter, p.share)
        return (image_files.letterboxed if p.resize == "letterbox" else image_files.stretched)(self.size, p.filter)

    @property
    def said(self) -> str:
        """What is done, in words and numbers."""
        p, (height, width) = self.preset, self.size
        share = f" of {round(height / p.share)}x{round(width / p.share)}" if p.resize == "crop" else ""
        color = (p.color or {1: "gray", 3: "rgb", 4: "rgba"}[self.channels]).upper()
        mean, std = (", ".join(f"{x:g}" for x in own) for own in (p.mean, p.std))
        whole = round(1.0 / p.scale) if p.scale else 0
        scale = "v" if p.scale == 1.0 else f"v/{whole}" if whole and p.scale == 1.0 / whole else f"v·{p.scale:.6g}"
        layout = "one channel" if self.flat else LAYOUTS[not self.inner].upper()
        return (
            f"{self.name}: {color}, {p.resize} to {height}x{width}{share} ({p.filter}), ({scale} − ({mean})) / ({std})"
            f", {layout}, {self.dtype.name}"
        )


def _preset(images: Images, spec: InputSpec, folder: Path) -> Preset:
    """The preset with what is given in place of its parts. Raises CalibrationError where nothing says the scale."""
    name = images.preset
    if name is None and images.scale is None:
        if spec.dtype != np.uint8:
            raise CalibrationError(
                f"{folder} holds images, and nothing says how the model wants them: --preset {'|'.join(PRESETS)}, or "
                "--scale with --mean and --std (in Python: onnxprune.Images)"
            )
        name = "raw"
    preset = PRESETS[name or "raw"]
    changed = {"color": images.color, "resize": images.resize, "scale": images.scale}
    numbers = {"mean": _numbers(images.mean), "std": _numbers(images.std)}
    preset = replace(preset, **{k: v for k, v in {**changed, **numbers}.items() if v is not None and v != ()})  # type: ignore[arg-type]  # names of fields
    # The share belongs to the preset's own crop.
    return replace(preset, share=1.0) if images.resize == "crop" and PRESETS[name or "raw"].resize != "crop" else preset


def _size(
    images: Images, preset: Preset, height: int | None, width: int | None, spec: InputSpec, folder: Path
) -> tuple[int, int]:
    own = (None, None) if images.size is None else _sides(images.size)
    other = preset.size if images.preset is not None and images.size is None else None
    sides: list[int] = []
    for given, declared in zip(own, (height, width), strict=True):
        if None not in (given, declared) and given != declared:
            raise CalibrationError(
                f"{folder}: input {spec.name!r} is {spec}, and the size {own[0]}x{own[1]} is not that"
            )
        side = declared or given or other
        if side is None or side > _MOST_SIDE:
            raise CalibrationError(f"{folder}: input {spec.name!r} is {spec}, which leaves the size open; give --size")
        sides.append(side)
    return sides[0], sides[1]


def _image_input(specs: tuple[InputSpec, ...], folder: Path) -> InputSpec:
    fitting = [s for s in specs if len(s.dims) in (3, 4) and (is_float(s.dtype) or s.dtype.kind in "iu")]
    if len(specs) != 1 or not fitting:
        wanted = ", ".join(f"{s.name!r} {s}" for s in specs) or "none"
        raise CalibrationError(
            f"{folder}: a folder of images is for a model with one input of images, and this one has {wanted}; write a "
            "function that gives the samples (--data-script)"
        )
    return fitting[0]


def _channels_in(dims: tuple[int | None, ...]) -> bool:
    """Whether the sizes of a model without an axis for samples hold channels."""
    return len(dims) == 3 and (dims[0] in (3, 4) or dims[-1] in _CHANNELS)


def _channels_first(dims: tuple[int | None, ...], layout: str | None, spec: InputSpec, folder: Path) -> bool:
    """Whether the channels stand in front. dims: of one sample."""
    first, last = dims[0] in _CHANNELS, dims[2] in _CHANNELS
    if layout is not None:
        channels = dims[0] if layout == "nchw" else dims[2]
        if channels not in (None, *_CHANNELS):
            raise CalibrationError(f"{folder}: input {spec.name!r} is {spec}, which is not {layout}")
        return layout == "nchw"
    if first == last:
        if not first and dims[0] is None:
            return True
        raise CalibrationError(f"{folder}: input {spec.name!r} is {spec}: say where its channels are, by --layout")
    return first


def _numbers(given: Sequence[float] | float | None) -> tuple[float, ...]:
    if given is None:
        return ()
    return (float(given),) if isinstance(given, (int, float)) else tuple(float(x) for x in given)


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width
