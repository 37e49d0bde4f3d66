"""What measures: onnxruntime on this machine, behind a protocol that a test can stand in for."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import onnx

from onnxprune.latency.kernels import Kernel, kernel_times
from onnxprune.runtime.processor import processor
from onnxprune.runtime.saturation import DEPLOYED
from onnxprune.runtime.session import CPU, Feeds, Session, version
from onnxprune.runtime.timing import Times, paired
from onnxprune.threads import cores


class Machine(Protocol):
    """Where models are timed."""

    def identity(self) -> Mapping[str, str]:
        """What two machines must have in common for the times of one to hold for the other."""

    def kernels(self, model: onnx.ModelProto, feeds: Feeds) -> tuple[Kernel, ...]:
        """What one run executes, in order, with the time of each."""

    def compare(self, models: Sequence[onnx.ModelProto], feeds: Feeds) -> tuple[Times, ...]:
        """Times of whole runs, in turns."""


@dataclass(frozen=True)
class OnnxRuntime:
    """onnxruntime with these threads (0: its own choice) and providers.

    clock: in seconds; `time.process_time` counts what one thread works, on a machine that others use too. seconds: of
    one comparison.
    """

    threads: int = 0
    providers: tuple[str, ...] = (CPU,)
    clock: Callable[[], float] = time.perf_counter
    seconds: float = 0.6

    def identity(self) -> Mapping[str, str]:
        """Processor (and GPU), cores, threads, providers and onnxruntime's version."""
        facts = {
            "processor": processor().name,
            "cores": str(cores()),
            "threads": str(self.threads),
            "providers": " ".join(self.providers),
            "onnxruntime": version(),
        }
        return facts if self.providers == (CPU,) else {**facts, "gpu": gpu()}

    def kernels(self, model: onnx.ModelProto, feeds: Feeds) -> tuple[Kernel, ...]:
        """The kernels of one run and their times, as onnxruntime's profiler tells them."""
        return kernel_times(model, feeds, threads=self.threads, providers=self.providers)

    def compare(self, models: Sequence[onnx.ModelProto], feeds: Feeds) -> tuple[Times, ...]:
        """A session of each model, run in turns, on inputs and outputs that stay where they are.

        So the time is the model's own, as `bench` measures it: a small model computes for less time than it takes to
        hand over its inputs and to fetch its outputs, and no cut makes that quicker.
        """
        start = partial(Session, spin=True, in_turns=True, threads=self.threads, providers=self.providers)
        sessions = [start(p, kernels=DEPLOYED) for p in models]
        return paired([s.bound(feeds) for s in sessions], budget=self.seconds, clock=self.clock)


def gpu() -> str:
    """The names of NVIDIA's GPUs, "" where there is none to ask for."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return " ".join(done.stdout.split())
    return ""
