"""The processor: its name, and what it can do that figures and bytes depend on."""

from __future__ import annotations

import hashlib
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc/cpuinfo")
# Virtual machines give many processors one name: these tell them apart.
_ABLE = ("cpu family", "model", "stepping", "flags", "Features", "cache size")
# What the kernels of onnxruntime and of BLAS are chosen by, under the names that Linux gives them.
_INSTRUCTIONS = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "amx": ("amx_int8",),
    "neon": ("asimd",),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
    "sve": ("sve",),
}


@dataclass(frozen=True)
class Processor:
    """A processor, as far as what a model gives depends on it.

    name: with a checksum of all that it can do. instructions: those sets that matter; empty where unknown.
    """

    name: str
    instructions: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The processor in one line of a report."""
        return f"{self.name} ({', '.join(self.instructions)})" if self.instructions else self.name


def processor() -> Processor:
    """The processor that this process runs on."""
    with suppress(OSError):
        lines = _PROC.read_text(encoding="utf-8", errors="replace").split("\n\n", maxsplit=1)[0].splitlines()
        fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        name = fields.get("model name") or fields.get("CPU part") or platform.processor() or platform.machine()
        able = " ".join(fields.get(k, "") for k in _ABLE)
        flags = {*fields.get("flags", "").split(), *fields.get("Features", "").split()}
        instructions = tuple(k for k, names in _INSTRUCTIONS.items() if not flags.isdisjoint(names))
        return Processor(f"{name} {hashlib.sha256(able.encode()).hexdigest()[:8]}", instructions)
    return Processor(platform.processor() or platform.machine() or "unknown")
