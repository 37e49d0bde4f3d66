"""Memory and a stream on an NVIDIA GPU, by the driver's own library: it is there wherever a GPU can be used.

The context is the device's primary one, which TensorRT uses too.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from typing import Any

import numpy as np

from onnxprune.errors import RunError
from onnxprune.numerics.arrays import Array

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NON_BLOCKING = 1


class Gpu:
    """The first visible GPU (CUDA_VISIBLE_DEVICES says which that is). Raises RunError where there is none."""

    def __init__(self) -> None:
        try:
            self._driver: Any = ctypes.CDLL(_LIBRARY)
        except OSError as e:
            raise RunError(f"there is no NVIDIA GPU here, or no driver for it: {e}") from e
        self._device, self._context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._memory: list[int] = []
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        self.stream: int = int(stream.value or 0)

    @property
    def name(self) -> str:
        """The name that the driver gives the GPU."""
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, len(text), self._device)
        return text.value.decode("utf-8", "replace")

    def allocate(self, size: int) -> int:
        """The address of `size` bytes, freed by `close`."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        self._memory.append(int(address.value))
        return int(address.value)

    def upload(self, values: Array) -> int:
        """The address of a copy of `values` on the GPU, freed by `close`."""
        values = np.ascontiguousarray(values)
        address = self.allocate(values.nbytes)
        if values.nbytes:
            self._call(
                "cuMemcpyHtoD_v2",
                ctypes.c_uint64(address),
                ctypes.c_void_p(values.ctypes.data),
                ctypes.c_size_t(values.nbytes),
            )
        return address

    def synchronize(self) -> None:
        """Wait for all that was put on the stream."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(self.stream))

    def close(self) -> None:
        """Give everything back, also after an error that left the device unusable."""
        for address in self._memory:
            with suppress(RunError):
                self._call("cuMemFree_v2", ctypes.c_uint64(address))
        self._memory.clear()
        with suppress(RunError):
            self._call("cuStreamDestroy_v2", ctypes.c_void_p(self.stream))
        with suppress(RunError):
            self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _call(self, name: str, *args: Any) -> None:
        status = int(getattr(self._driver, name)(*args))
        if status:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(text))
            why = (text.value or b"unknown error").decode("utf-8", "replace")
            raise RunError(f"the GPU cannot be used: {name}: {why} ({status})")
