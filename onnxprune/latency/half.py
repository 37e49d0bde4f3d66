"""Times of a copy in float16, on whatever machine: what an engine in fp16 takes is not what one in float32 does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnxprune.latency.kernels import Kernel
from onnxprune.latency.machine import Machine
from onnxprune.runtime.session import Feeds, half_precision
from onnxprune.runtime.timing import Times

HALF = "fp16"


@dataclass(frozen=True)
class InHalf:
    """A machine that is given every model in float16; inputs and outputs keep their types, and nodes their names.

    Raises RunError where the converter refuses a model.
    """

    machine: Machine

    def identity(self) -> Mapping[str, str]:
        """That of the machine, and the precision."""
        return {**self.machine.identity(), "precision": HALF}

    def kernels(self, model: onnx.ModelProto, feeds: Feeds) -> tuple[Kernel, ...]:
        """The layers of the copy."""
        return self.machine.kernels(half_precision(model), feeds)

    def compare(self, models: Sequence[onnx.ModelProto], feeds: Feeds) -> tuple[Times, ...]:
        """Whole runs of the copies, in turns."""
        return self.machine.compare([half_precision(m) for m in models], feeds)
