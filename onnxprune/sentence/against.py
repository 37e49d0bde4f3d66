"""Whether a result takes, on its device, what the timing file said that it would: `bench MODEL OTHER --against`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from onnxprune.benchmark import tensorrt_engine
from onnxprune.benchmark.measure import Bench
from onnxprune.benchmark.settings import PRECISIONS
from onnxprune.config import PruneConfig
from onnxprune.errors import ModelError, UsageError
from onnxprune.graph.view import Shape
from onnxprune.intake.model_file import ModelLike
from onnxprune.latency import timing_file
from onnxprune.latency.recorded import device_of
from onnxprune.latency.timing_file import PROFILE, Target
from onnxprune.measures.gates import Gate
from onnxprune.options import first_of, shown
from onnxprune.process import spill
from onnxprune.runtime.custom_ops import Libraries, registering
from onnxprune.runtime.custom_ops import checked as checked_libraries
from onnxprune.stages.allocate import LATENCY_MISSED
from onnxprune.stages.couple import trace
from onnxprune.stages.load import load

_SHOWN = 3
# What `:.1%` shows as nothing.
_EQUAL = 5e-4
# What differs between two machines that are the same device.
_FREE = frozenset({"threads", "providers"})


@dataclass(frozen=True)
class Expected:
    """What a timing file says of a result. share: of the original's time, on the target of this name. provider,
    threads, batch, precision: that the target was measured with. error, extrapolated: as
    `latency.stopwatch.TargetTime` has them.
    """

    target: str
    share: float
    provider: str
    threads: int
    batch: int
    machine: Mapping[str, str]
    error: float | None
    extrapolated: bool
    notes: tuple[str, ...] = ()
    precision: str = PRECISIONS[0]

    def gate(self, result: Bench) -> Gate:
        """That OTHER takes at most a tenth more of MODEL's time than predicted, by the upper end of the interval."""
        said = f"the timing file predicts {self.share:.3f} of MODEL's time for {shown(self.target)}"
        said += " (extrapolated from the present widths)" if self.extrapolated else ""
        c = result.comparison
        if c is None or c.interval is None:
            why = f"{result.rounds} rounds do not bound what OTHER takes: give more --runs, or leave out --against"
            return Gate("--against", LATENCY_MISSED, False, f"{said}, but {why}")
        low, high = c.interval
        most = (1.0 + LATENCY_MISSED) * self.share
        held = high <= most
        change = c.ratio / self.share - 1.0
        than = "as much" if abs(change) < _EQUAL else f"{abs(change):.1%} {'more' if change > 0.0 else 'less'}"
        text = (
            f"OTHER takes {c.ratio:.3f} of it ({low:.3f} to {high:.3f}), {than}; the upper end "
            f"{'holds' if held else 'is above'} the tenth more that is allowed, {most:.3f}"
        )
        return Gate("--against", LATENCY_MISSED, held, f"{said}, and {text}")


def expected(
    model: ModelLike,
    other: ModelLike,
    timing: str | os.PathLike[str],
    *,
    target: str | None = None,
    allow_links: bool = False,
    custom_ops: Libraries = (),
) -> Expected:
    """What the timing file of `model` says of `other`, which is `model` with fewer channels.

    target: its name, which may be left out where the file holds one. Raises UsageError, and InputError for a file or a
    model that do not belong together.
    """
    path = os.fspath(timing)
    known = timing_file.read(path)
    if target is None and len(known.targets) > 1:
        names = first_of([t.name for t in known.targets], _SHOWN)
        raise UsageError(f"{path} holds several targets: say with --timing-target which this is, of {names}")
    (own,) = known.named([target] if target else [], path)
    settings = PruneConfig(samples=2)
    with spill.spilling(), registering(checked_libraries(custom_ops)):
        original = load(model, None, settings, allow_links=allow_links)
        device = device_of(own, trace(original, settings), {}, path, same_model=known.sha256 == original.source.sha256)
        result = load(other, None, settings, allow_links=allow_links)
    lengths, gone = lengths_in(own, result.normalised.shapes, result.normalised.proto)
    if len(gone) == len(own.layers):
        raise ModelError(f"{result.source.path} has no layer of {path}: it was not made of {original.source.path}")
    notes = device.notes
    if gone:
        notes += (f"layers that OTHER does not have count as gone: {first_of(gone, _SHOWN)}",)
    return Expected(
        own.name,
        device.at(lengths),
        own.machine.get("providers", "").split(" ")[0] or tensorrt_engine.NAME,
        int(own.machine["threads"]) if own.machine.get("threads", "").isdecimal() else 0,
        own.batch,
        own.machine,
        device.error,
        own.how == PROFILE,
        notes,
        own.machine.get("precision", PRECISIONS[0]),
    )


def lengths_in(
    target: Target, shapes: Mapping[str, Shape], proto: onnx.ModelProto
) -> tuple[list[tuple[float, ...] | None], list[str]]:
    """The lengths of a target's layers in another model, None of one that it lacks; and the names of those.

    Raises ModelError for one that is wider than in the file.
    """
    known = {**{t.name: tuple(t.dims) for t in proto.graph.initializer}, **shapes}
    lengths: list[tuple[float, ...] | None] = []
    gone: list[str] = []
    for row in target.layers:
        sizes = [known.get(a.tensor, ()) for a in row.axes]
        if row.output not in known or any(a.axis >= len(s) for a, s in zip(row.axes, sizes, strict=True)):
            lengths.append(None)
            gone.append(shown(row.output))
            continue
        own = tuple(float(s[a.axis]) for a, s in zip(row.axes, sizes, strict=True))
        if any(n > a.size for n, a in zip(own, row.axes, strict=True)):
            raise ModelError(f"OTHER is wider than the model of the timing file at {shown(row.output)}")
        lengths.append(own)
    return lengths, gone


def elsewhere(recorded: Mapping[str, str], here: Mapping[str, str]) -> tuple[str, ...]:
    """What of this machine is not as it was where the file was recorded."""
    different = [k for k in recorded if k in here and k not in _FREE and recorded[k] != here[k]]
    return tuple(f"the timing file was recorded with {k} {recorded[k]}, and here is {here[k]}" for k in different)
