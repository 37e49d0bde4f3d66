"""Values of options: sizes, shapes, shares, errors and alignments, as people write them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from onnxprune.options import nearest, number
from onnxprune.targets.alignment import AUTO

if TYPE_CHECKING:  # generic for a type checker alone, as they are from click 8.2 on
    _Number = click.ParamType[float]
    _Named = click.ParamType[tuple[str, float]]
    _Names = click.Choice[str]
else:
    _Number, _Named, _Names = click.ParamType, click.ParamType, click.Choice


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


class Share(_Number):
    """A share as 0.4 or 40%: one rule for ratios, errors and agreement.

    A bare number above 1 is refused, as 40 may be a slip for 0.4 as well as 40%. beyond: whether more than 100% makes
    sense, as of an error, which may be larger than what it is relative to.
    """

    name = "share"

    def __init__(self, *, beyond: bool = False) -> None:
        self.beyond = beyond

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number. Raises click.BadParameter."""
        text = str(value).strip()
        try:
            share = number(text)
        except ValueError:
            self.fail(f"{value!r} is not a share; write 0.4 or 40%", param, ctx)
        if not 0.0 <= share < math.inf:
            self.fail(f"{value!r} is not a share; write 0.4 or 40%", param, ctx)
        if text.endswith("%") or share <= 1.0:
            if share > 1.0 and not self.beyond:
                self.fail(f"{value!r} is more than 100%", param, ctx)
            return share
        meant = f", or {share:.0%} if that is meant" if self.beyond else ""
        self.fail(f"{value!r} is {share:.0%}; write {share:g}%{meant}", param, ctx)


class ErrorLimit(_Named):
    """A limit on the error of outputs: 0.05 or 5%, of one output alone boxes:5%."""

    name = "error"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """(the output, "" for all, the limit). Raises click.BadParameter."""
        output, colon, share = str(value).rpartition(":")  # a name may hold colons itself
        if colon and not output.strip():
            self.fail(f"{value!r} names no output in front of the colon; write boxes:5%", param, ctx)
        return output.strip(), ERROR.convert(share, param, ctx)


class MetricLimit(_Named):
    """A limit on a score by its name: miou=0.7, miou=70%, perplexity=20."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """(the score, the limit). Raises click.BadParameter."""
        score, equals, text = str(value).rpartition("=")
        try:
            limit = number(text)
        except ValueError:
            limit = math.nan
        if not (equals and score.strip()) or not math.isfinite(limit):
            self.fail(f"{value!r} is not a score and a number; write miou=0.7 or perplexity=20", param, ctx)
        return score.strip(), limit


def parse_once(pairs: Iterable[tuple[str, float]], option: str) -> dict[str, float]:
    """The pairs of an option that is repeated. Raises click.BadParameter where a name comes twice."""
    found: dict[str, float] = {}
    for name, value in pairs:
        if name in found:
            raise click.BadParameter(f"{option} is given twice" + (f" for {name!r}" if name else ""))
        found[name] = value
    return found


class Ratio(Share):
    """A share, or the word for the largest that some limits allow."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:  # type: ignore[override]
        """The number, or the word. Raises click.BadParameter."""
        return AUTO if str(value).strip().lower() == AUTO else super().convert(value, param, ctx)


class Choice(_Names):
    """One of several names; for another one the nearest is named."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name. Raises click.BadParameter."""
        try:
            return str(super().convert(value, param, ctx))
        except click.BadParameter as e:
            near = nearest(str(value), self.choices)
            self.fail(e.message + (f" Did you mean {near}?" if near else ""), param, ctx)


SHARE = Share()
ERROR = Share(beyond=True)
ERROR_LIMIT = ErrorLimit()
METRIC_LIMIT = MetricLimit()


def parse_alignment(text: str) -> int | str:
    """A number of channels, or "auto". Raises click.BadParameter."""
    if text.strip().lower() == AUTO:
        return AUTO
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number of channels; write 8, or {AUTO}") from None
