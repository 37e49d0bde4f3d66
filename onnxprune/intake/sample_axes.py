"""Which of the ways to read data is right, where names and shapes do not tell: runs of the model show it.

Of two samples one is exchanged for the other. Along an axis that counts samples only its own rows of the outputs
change; along time, nodes or rows of an image others change too. A model that mixes the samples of a batch (statistics
over it) shows nothing anywhere, and is read in the likeliest way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx

from onnxprune.data import layouts
from onnxprune.data.given import Given, Reading
from onnxprune.data.readings import readings
from onnxprune.data.samples import Samples
from onnxprune.errors import CalibrationError, RunError
from onnxprune.intake.first_run import Trial
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Session


def read(proto: onnx.ModelProto, data: Given) -> Samples:
    """The samples, as the model shows them to lie. Raises CalibrationError, and RunError where it hangs."""
    found = readings(data)
    if len(found) == 1 and not found[0].doubtful and found[0].per_run is not None:
        return data.read(found[0])
    accepts = Trial(proto)
    ran: list[Samples] = []
    for reading in _with_single(found):
        samples = data.read(reading)
        if not accepts(samples.example()):
            continue
        if not reading.doubtful or _follows(proto, samples, accepts):
            return samples
        if not _is_claim(reading):
            ran.append(samples)
    if ran:
        return ran[0]
    likeliest = next((r for r in found if not _is_claim(r)), None)
    if likeliest is None:
        raise CalibrationError(_not_of_that_size(data))
    return data.read(likeliest)


def _with_single(found: Sequence[Reading]) -> list[Reading]:
    """The readings, those of any number of samples also with one in a run: other inputs may allow no more."""
    single = [replace(r, per_run=1, doubtful=False) for r in found if r.per_run is None and r.lying]
    by_file = [r for r in found if all(x.axis is None for x in r.lying.values())]
    return [*(r for r in found if r not in by_file), *by_file[:1], *single] if by_file else [*found, *single]


def _is_claim(reading: Reading) -> bool:
    """Whether that a run takes several samples is said by nothing but a size."""
    return reading.doubtful and (reading.per_run or 1) > 1


def _not_of_that_size(data: Given) -> str:
    part = data.parts[0]
    for s in data.specs:
        shape = part.inputs[s.name].shape
        if len(shape) != len(s.dims) or any(d not in (None, n) for d, n in zip(s.dims, shape, strict=True)):
            return f"{part.where}: input {s.name!r} has shape {'x'.join(map(str, shape))}, the model wants {s}"
    return f"{data.origin}: the samples cannot be told apart"


def _follows(proto: onnx.ModelProto, samples: Samples, accepts: Trial) -> bool:
    """Whether each sample has entries of its own in all outputs that have any."""
    other = layouts.other_than_first(samples)
    run_size = samples.per_run or 2
    if len(samples) < 2 or run_size == 1:
        return False
    try:
        session = Session(proto)

        def run(indices: Sequence[int]) -> Mapping[str, Array]:
            feeds = samples.take(list(indices)).slice(0, len(indices))
            return session.run(feeds) if accepts(feeds) else {}

        if samples.per_run is not None:
            return layouts.own_rows(run, run_size, other)
        outputs = run((0, other)), run((other, other)), run((0, 0)), run((0, other, other))
    except RunError:
        return False
    return all(outputs) and layouts.separate(*outputs)
