"""Parameters by name in files of safetensors: the only user of that library, which the extra `torch` installs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np

from onnxprune.errors import InputError, UsageError
from onnxprune.numerics.arrays import Array
from onnxprune.regular_files import opened


@dataclass(frozen=True, eq=False)
class StateDict:
    """The parameters and buffers of a network by name. shared: further names → the one that holds the values."""

    values: Mapping[str, Array] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)


def load(path: str | os.PathLike[str]) -> StateDict:
    """Read a state dict. Raises InputError for what is none, and UsageError without the library.

    What PyTorch shares between modules its `save_model` stores once, and says so in the file's metadata.
    """
    library = _library()
    opened(path, InputError).close()  # a folder, a pipe and what is not there are refused like everywhere
    try:
        with library.safe_open(os.fspath(path), framework="numpy") as f:
            values = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  no mapping
            said = f.metadata() or {}
    except (TypeError, AttributeError, KeyError) as e:  # types that numpy has not
        raise InputError(f"{path} holds tensors that are not read ({e}): save it in float32 (net.float())") from e
    except Exception as e:  # the library's own error, which it does not export everywhere
        raise InputError(f"{path} is not a file of safetensors: {e}") from e
    return StateDict(values, {k: v for k, v in said.items() if v in values and k not in values})


def dump(values: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a file with these tensors. Raises UsageError without the library."""
    _library()
    from safetensors.numpy import save

    # numpy has no bfloat16 of its own, and the library knows numpy's types alone.
    plain = {
        k: np.array(v, np.float32 if v.dtype.name == "bfloat16" else v.dtype, order="C") for k, v in values.items()
    }
    data: bytes = save(plain, dict(metadata))
    return data


def check_installed() -> None:
    """Raises UsageError without the library."""
    _library()


def _library() -> ModuleType:
    try:
        import safetensors
    except ImportError as e:
        raise UsageError(
            "weights are written by safetensors, which is not installed: pip install 'onnxprune[torch]'"
        ) from e
    return safetensors
