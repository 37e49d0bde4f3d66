"""Rows of the table, and the shorthand in which they are written.

A row is ONNX text (`onnx.parser`) in which an operand may carry its own initializer:

    w[8,3,3,3]    seeded random weights of the row's type
    var_s[8]      a name that starts with `var`: positive, as a variance must be
    i{0,-1}       an int64 vector, or floats where a point is written; `i{:3}` is a scalar, `i{2x2:0,1,2,3}` a matrix
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray

from tests.installed import needs_opset

Array = NDArray[Any]

_TYPES = {"float", "double", "float16", "int64", "int32", "bool"}
_RANDOM = re.compile(r"\b([A-Za-z_]\w*)\[([\d,]+)\]")
_GIVEN = re.compile(r"\b([A-Za-z_]\w*)\{([^}\s]*)\}")
_SIZES = {"L": (5, 7), "H": (8, 10), "W": (8, 11)}  # at even and at odd batches


@dataclass(frozen=True)
class Topology:
    """One graph and what is known of its channels.

    text: the graph, from its inputs on. units: sizes of the groups, largest first.
    pins: fragments of the reasons that keep weights, beside those of the graph's own inputs and outputs; every such
    reason must match a fragment, and every fragment a reason.
    mixing: sizes of the groups whose removal changes statistics. given: values of inputs that cannot be random.
    edit: a last change to the parsed model. attention: which units attention has, see `PruneConfig`.
    """

    text: str
    units: tuple[int, ...]
    pins: tuple[str, ...] = ()
    mixing: tuple[int, ...] = ()
    opset: int = 18
    ir_version: int = 8
    domains: tuple[str, ...] = ()
    dtype: str = "float"
    given: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    edit: Callable[[onnx.ModelProto], None] | None = None
    attention: str = "heads"

    def model(self) -> onnx.ModelProto:
        """The graph with its weights; the same bytes at every call. Skips the test where its opset is too new here."""
        needs_opset(self.opset)
        initializers: dict[str, Array] = {}

        def random(match: re.Match[str]) -> str:
            name, dims = match.groups()
            if name in _TYPES:
                return match.group(0)
            initializers[name] = _weights(name, tuple(int(d) for d in dims.split(",")), self.dtype)
            return name

        def given(match: re.Match[str]) -> str:
            name, body = match.groups()
            initializers[name] = _given(body, self.dtype)
            return name

        text = _GIVEN.sub(given, _RANDOM.sub(random, self.text))
        imports = ", ".join([f'"" : {self.opset}', *(f'"{d}" : 1' for d in self.domains)])
        model = onnx.parser.parse_model(f"<ir_version: {self.ir_version}, opset_import: [{imports}]>\nmain {text}")
        model.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in initializers.items())
        if self.edit is not None:
            self.edit(model)
        return model

    def feeds(self, batch: int, seed: int = 0) -> dict[str, Array]:
        """Seeded random inputs: axis `N` takes `batch`; the other symbolic axes are larger for an odd batch."""
        model = self.model()
        rng = np.random.default_rng(seed)
        weights = {t.name for t in model.graph.initializer}
        feeds: dict[str, Array] = {}
        for v in model.graph.input:
            if v.name in weights:
                continue
            kind = onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)
            shape = [d.dim_value or _size(d.dim_param, batch) for d in v.type.tensor_type.shape.dim]
            if v.name in self.given:
                value = np.array(self.given[v.name], kind)
                feeds[v.name] = value if shape else value.reshape(())
            elif np.issubdtype(kind, np.floating):
                feeds[v.name] = rng.standard_normal(shape).astype(kind)
            else:
                feeds[v.name] = np.asarray(rng.integers(0, 2, shape)).astype(kind)
        return feeds


def _size(symbol: str, batch: int) -> int:
    return batch if symbol == "N" else _SIZES[symbol][batch % 2]


def _weights(name: str, shape: tuple[int, ...], dtype: str) -> Array:
    rng = np.random.default_rng(zlib.crc32(f"{name}{shape}".encode()))
    element = np.float64 if dtype == "double" else np.float32
    if name.startswith("var"):
        return rng.uniform(0.5, 1.5, shape).astype(element)
    fan_in = max(int(np.prod(shape[1:])), 1)
    scale = 1.0 if len(shape) == 1 else fan_in**-0.5
    return (rng.standard_normal(shape) * scale).astype(element)


def _given(body: str, dtype: str) -> Array:
    shape, colon, values = body.rpartition(":")
    numbers = [v for v in values.split(",") if v not in ("", ".")]
    if "." in values:
        flat = np.array([float(v) for v in numbers], np.float64 if dtype == "double" else np.float32)
    else:
        flat = np.array([int(v) for v in numbers], np.int64)
    if not colon:
        return flat
    return flat.reshape([int(d) for d in shape.split("x") if d])
