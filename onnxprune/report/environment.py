"""What a run was computed by, and the memory that it took."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import scipy

from onnxprune.runtime.processor import processor
from onnxprune.runtime.session import version
from onnxprune.threads import blas
from onnxprune.version import __version__

_STATUS = Path("/proc/self/status")


def peak_memory() -> int | None:
    """Peak resident bytes of this process, None where the platform does not tell."""
    # Linux counts in ru_maxrss what a parent held when it started this program.
    with suppress(OSError, StopIteration):
        lines = _STATUS.read_text(encoding="utf-8", errors="replace").splitlines()  # the name of a process is any bytes
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def versions() -> dict[str, str]:
    """The versions of onnxprune and of what its numbers depend on.

    Bytes differ between processors, and between kernels of BLAS.
    """
    return {
        "onnxprune": __version__,
        "onnx": onnx.__version__,
        "onnxruntime": version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "blas": blas(),
        "processor": str(processor()),
        "python": ".".join(map(str, sys.version_info[:3])),
    }
