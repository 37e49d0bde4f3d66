"""Values of options: sizes, shapes, shares, errors and alignments, as people write them."""

from __future__ import annotations

import click

from onnxprune.targets.alignment import AUTO


def parse_size(text: str) -> int:
    """A number of bytes such as 512M or 2G (powers of 1024). Raises click.BadParameter."""
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    power = "KMGT".find(number[-1:]) + 1 if number else 0
    try:
        size = int(float(number[:-1] if power else number) * 1024**power)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is not a size; write 512M or 2G") from None
    if size < 1:
        raise click.BadParameter(f"{text!r} is too small; write 512M or 2G")
    return size


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """An input's name and shape: x:1,3,224,224, x:[1,3,224,224] or x:1x3x224x224. Raises click.BadParameter."""
    name, colon, dims = text.rpartition(":")  # a name may hold colons itself
    inner = dims.strip().removeprefix("[").removesuffix("]").strip()
    try:
        shape = tuple(int(d) for d in inner.replace("x", ",").split(",")) if inner else ()
    except ValueError:
        shape = (0,)
    if not (colon and name and dims.strip()) or any(d < 1 for d in shape):
        raise click.BadParameter(f"{text!r} is not a name and a shape; write x:1,3,224,224 or x:1x3x224x224")
    return name, shape


def parse_share(text: str) -> float:
    """A share as 0.99, 99 or 99%; a bare number above 1 is percent. Raises click.BadParameter."""
    try:
        number = float(text.strip().removesuffix("%"))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a share; write 0.99 or 99%") from None
    share = number / 100.0 if text.strip().endswith("%") or number > 1.0 else number
    if not 0.0 <= share <= 1.0:
        raise click.BadParameter(f"{text!r} is not between 0 and 100%")
    return share


def parse_error(text: str) -> float:
    """An error relative to a spread, as 0.05 or 5%. Raises click.BadParameter."""
    try:
        number = float(text.strip().removesuffix("%"))
    except ValueError:
        number = -1.0
    if not 0.0 <= number < float("inf"):
        raise click.BadParameter(f"{text!r} is not an error; write 0.05 or 5%")
    if text.strip().endswith("%"):
        return number / 100.0
    if number > 1.0:  # a limit that limits nothing, where a few percent were meant
        raise click.BadParameter(f"{text!r} is {number:.0%}; write {number:g}%, or {number:.0%} if that is meant")
    return number


def parse_alignment(text: str) -> int | str:
    """A number of channels, or "auto". Raises click.BadParameter."""
    if text.strip().lower() == AUTO:
        return AUTO
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number of channels; write 8, or {AUTO}") from None
