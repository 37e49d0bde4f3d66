"""The timing file: what the layers of one model take on one target or several, as text that another machine reads.

A target holds *cuts*: the model at some combination of widths, with its time as a share of the original's and, for
every layer, the lengths of its axes there and the seconds that it took. The first cut is the model with all channels.
A layer is known by the tensor that it writes, and its lengths by axes of tensors, so that whoever reads the file finds
them in a channel graph of their own. A profile of another tool has the first cut alone.

The file is distrusted: sizes, types, names that nobody knows, and numbers that are no time are refused, in one line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any, TypeVar

from onnxprune.errors import InputError, UsageError
from onnxprune.options import first_of, shown
from onnxprune.regular_files import content

KIND, FORMAT = "onnxprune timing", 1
# How the seconds of layers were measured: by a profiler inside the model, layer by layer in models of their own, or by
# another tool, at the present widths only.
INSIDE, ALONE, PROFILE = "inside the model", "layer by layer", "profile"
_HOWS = (INSIDE, ALONE, PROFILE)
_MOST_BYTES = 64 << 20
_MOST_TARGETS, _MOST_LAYERS, _MOST_CUTS, _MOST_AXES, _MOST_FACTS = 64, 20_000, 1_000, 8, 64
_LONGEST_NAME, _LONGEST_TIME, _LONGEST_AXIS = 10_000, 1e6, 1e9
# No clock tells less, in seconds; and as a share of the time of a whole model.
_LEAST = 1e-9
_SHOWN = 4
T = TypeVar("T")


@dataclass(frozen=True)
class Axis:
    """An axis of a tensor, and how many positions it has with all channels."""

    tensor: str
    axis: int
    size: float


@dataclass(frozen=True)
class LayerRow:
    """A layer: the operator that does its work, the tensor that this writes, and the axes that decide on its time."""

    op: str
    output: str
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class CutRow:
    """The model at some widths. share: of the original's time. lengths: of each layer's axes. seconds: of each layer,
    None of one that was not timed there."""

    share: float
    lengths: tuple[tuple[float, ...], ...]
    seconds: tuple[float | None, ...]


@dataclass(frozen=True)
class Target:
    """What was measured on one device, with one provider.

    how: as above. seconds: of a run of the original. batch: samples in it; inputs: their shapes. alignment: channels
    that widths were multiples of, or are taken to be where nothing was measured.
    """

    name: str
    how: str
    machine: Mapping[str, str]
    batch: int
    inputs: Mapping[str, tuple[int, ...]]
    alignment: int
    seconds: float
    layers: tuple[LayerRow, ...]
    cuts: tuple[CutRow, ...]


@dataclass(frozen=True)
class Timing:
    """A timing file: the model by its name and checksum, and the targets."""

    model: str
    sha256: str
    targets: tuple[Target, ...]

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps({"kind": KIND, "format": FORMAT, **asdict(self)}, allow_nan=False) + "\n"

    def named(self, names: Sequence[str], path: str) -> tuple[Target, ...]:
        """The targets of these names, all of them where none is named. Raises UsageError."""
        own = {t.name: t for t in self.targets}
        unknown = next((n for n in names if n not in own), None)
        if unknown is not None:
            raise UsageError(f"{path} knows no target {shown(unknown)}, only {first_of([*own], _SHOWN)}")
        return tuple(own[n] for n in dict.fromkeys(names)) if names else self.targets

    def with_target(self, target: Target, *, replace: bool, path: str) -> Timing:
        """The same with one more target. Raises UsageError where its name is taken and may not be replaced."""
        if not replace and any(t.name == target.name for t in self.targets):
            raise UsageError(
                f"{path} has a target {shown(target.name)} already: give another --name, or --overwrite to replace it"
            )
        return Timing(self.model, self.sha256, (*(t for t in self.targets if t.name != target.name), target))


def read(path: str | os.PathLike[str]) -> Timing:
    """A timing file. Raises InputError where it is none, or where what it holds cannot be."""
    try:
        text = content(path, InputError, _MOST_BYTES).decode("utf-8")
        data = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
        return _timing(data)
    except RecursionError:
        raise InputError(f"{path} is no timing file: it is nested too deeply") from None
    except ValueError as e:  # no UTF-8, no JSON, or what the checks below say
        raise InputError(f"{path} is no timing file: {' '.join(str(e).split())[:300]}") from e


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return members


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _timing(data: Any) -> Timing:
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise ValueError("bench --layers MODEL --save makes one")
    if data.get("format") != FORMAT:
        raise ValueError(f"it has format {shown(str(data.get('format')))}, and this version reads {FORMAT}")
    own = _members({k: v for k, v in data.items() if k not in ("kind", "format")}, Timing, "the file")
    targets = _list(own["targets"], _target, "targets", _MOST_TARGETS)
    if not targets:
        raise ValueError("it holds no target")
    if len({t.name for t in targets}) < len(targets):
        raise ValueError("two targets have one name")
    return Timing(_text(own["model"], "the model"), _text(own["sha256"], "the checksum"), targets)


def _target(data: Any) -> Target:
    own = _members(data, Target, "a target")
    name, how = _text(own["name"], "the name of a target"), own["how"]
    if how not in _HOWS:
        raise ValueError(f"target {shown(name)} was measured in a way that nobody knows: {shown(str(how))}")
    layers = _list(own["layers"], _layer, "layers", _MOST_LAYERS)
    cuts = _list(own["cuts"], lambda c: _cut(c, layers), "cuts", _MOST_CUTS)
    if len({x.output for x in layers}) < len(layers):
        raise ValueError("two layers write one tensor")
    if not cuts or cuts[0].lengths != tuple(tuple(a.size for a in x.axes) for x in layers):
        raise ValueError(f"the first cut of target {shown(name)} is not the model with all channels")
    seconds = _number(own["seconds"], "the time of the original", _LONGEST_TIME)
    if seconds < _LEAST or any(c.share < _LEAST for c in cuts):
        raise ValueError("a model takes no time")
    return Target(
        name,
        how,
        _facts(own["machine"], "the machine", lambda v: _text(v, "a fact of the machine", least=0)),
        _count(own["batch"], "the batch"),
        _facts(
            own["inputs"],
            "the inputs",
            lambda v: _list(v, lambda n: _count(n, "a size of an input", least=0), "axes of an input", _MOST_AXES),
        ),
        _count(own["alignment"], "the alignment"),
        seconds,
        layers,
        cuts,
    )


def _layer(data: Any) -> LayerRow:
    own = _members(data, LayerRow, "a layer")
    axes = _list(own["axes"], _axis, "axes of a layer", _MOST_AXES)
    if not axes:
        raise ValueError("a layer has no axis")
    return LayerRow(_text(own["op"], "an operator"), _text(own["output"], "a tensor"), axes)


def _axis(data: Any) -> Axis:
    own = _members(data, Axis, "an axis")
    size = _number(own["size"], "the size of an axis", _LONGEST_AXIS)
    if size <= 0:
        raise ValueError("an axis of the whole model has no positions")
    return Axis(_text(own["tensor"], "a tensor"), _count(own["axis"], "an axis", least=0), size)


def _cut(data: Any, layers: Sequence[LayerRow]) -> CutRow:
    own = _members(data, CutRow, "a cut")
    lengths = _list(
        own["lengths"],
        lambda x: _list(x, lambda n: _number(n, "a length", _LONGEST_AXIS), "lengths of a layer", _MOST_AXES),
        "lengths",
        _MOST_LAYERS,
    )
    seconds = _list(
        own["seconds"],
        lambda s: None if s is None else _number(s, "the time of a layer", _LONGEST_TIME),
        "seconds",
        _MOST_LAYERS,
    )
    if len(seconds) != len(layers) or [len(x) for x in lengths] != [len(x.axes) for x in layers]:
        raise ValueError("a cut does not hold every layer once")
    return CutRow(_number(own["share"], "a share of the time", _LONGEST_TIME), lengths, seconds)


def _members(data: Any, kind: type, what: str) -> dict[str, Any]:
    """The members of an object, which are the fields of `kind`, all of them and no others."""
    if not isinstance(data, dict):
        raise ValueError(f"{what} is no object")
    names = {f.name for f in fields(kind)}
    for name in data:
        if name not in names:
            raise ValueError(f"{what} has a field {shown(name)} that this version does not know")
    missing = next((n for n in names if n not in data), None)
    if missing is not None:
        raise ValueError(f"{what} lacks {missing!r}")
    return data


def _list(data: Any, item: Callable[[Any], T], what: str, most: int) -> tuple[T, ...]:
    if not isinstance(data, list):
        raise ValueError(f"{what} are no list")
    if len(data) > most:
        raise ValueError(f"it holds {len(data)} {what}; at most {most}")
    return tuple(item(x) for x in data)


def _facts(data: Any, what: str, value: Callable[[Any], T]) -> dict[str, T]:
    if not isinstance(data, dict) or len(data) > _MOST_FACTS:
        raise ValueError(f"{what} is no object of at most {_MOST_FACTS} members")
    return {_text(k, "a name"): value(v) for k, v in data.items()}


def _text(value: Any, what: str, least: int = 1) -> str:
    if not isinstance(value, str) or not least <= len(value) <= _LONGEST_NAME:
        raise ValueError(f"{what} is no text of {least} to {_LONGEST_NAME} letters")
    return value


def _count(value: Any, what: str, least: int = 1) -> int:
    if type(value) is not int or not least <= value <= _LONGEST_AXIS:
        raise ValueError(f"{what} is no number from {least} on")
    return value


def _number(value: Any, what: str, most: float) -> float:
    """A finite number of at least 0. A whole one of thousands of digits is none."""
    if type(value) not in (int, float) or not 0 <= value <= most or not isfinite(value):
        raise ValueError(f"{what} is no number from 0 to {most:g}")
    return float(value)
