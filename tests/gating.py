"""Models with a factor on every gated channel, fed from outside: what gradients in the gates are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxprune.channels.gates import Gate, by_group, gates_of, values_of
from onnxprune.graph.unrounded import is_quantized, without_rounding
from onnxprune.numerics.arrays import Array, is_float
from onnxprune.runtime.session import Session
from tests.prepared import Prepared

Floats = NDArray[np.float64]
# Small beside the distance to the kinks of most rectifiers, large beside the rounding of float32.
STEP = 2.0**-9


def gated(p: Prepared, gates: Sequence[Gate]) -> onnx.ModelProto:
    """The normalised model, multiplied by the inputs `gate0`, ... in front of the operators where the gates stand."""
    result = onnx.ModelProto()
    result.CopyFrom(p.normalised.proto)
    del result.graph.node[:]
    at: dict[str, list[tuple[str, Gate]]] = {}
    for i, gate in enumerate(gates):
        at.setdefault(gate.node.outputs[0], []).append((f"gate{i}", gate))
        kind = p.normalised.types[gate.data]
        result.graph.input.append(helper.make_tensor_value_info(f"gate{i}", kind, gate.classes.shape))
    for original in p.normalised.proto.graph.node:
        n = onnx.NodeProto()
        n.CopyFrom(original)
        for name, gate in at.get(n.output[0], ()):
            result.graph.node.append(helper.make_node("Mul", [n.input[gate.slot], name], [f"{name}_product"]))
            n.input[gate.slot] = f"{name}_product"
        result.graph.node.append(n)
    return result


def factors(p: Prepared, gates: Sequence[Gate], coefficients: Mapping[int, Floats]) -> dict[str, Array]:
    """What to feed: for each gate the product over its groups of their coefficients (units,), by group index."""
    found: dict[str, Floats] = {f"gate{i}": np.ones(x.classes.shape) for i, x in enumerate(gates)}
    for g, own in by_group(p.channels, gates).items():
        a = coefficients.get(g, np.ones(p.channels.groups[g].size))
        for i in own:
            found[f"gate{i}"] *= values_of(p.channels, g, gates[i], a)
    types = p.normalised.types
    return {
        f"gate{i}": found[f"gate{i}"].astype(helper.tensor_dtype_to_np_dtype(types[x.data]))
        for i, x in enumerate(gates)
    }


class Gated:
    """The outputs of a model in floating point as a function of the gates; a quantized one without its rounding."""

    def __init__(self, p: Prepared) -> None:
        self.p, self.gates = p, gates_of(p.channels)
        model = gated(p, self.gates)
        smooth = is_quantized(model)
        self._session = Session(without_rounding(model) if smooth else model, optimize=not smooth, single=True)

    def __call__(self, feeds: Mapping[str, Array], coefficients: Mapping[int, Floats]) -> dict[str, NDArray[Any]]:
        found = self._session.run({**feeds, **factors(self.p, self.gates, coefficients)})
        return {k: y.astype(np.float64) for k, y in found.items() if isinstance(y, np.ndarray) and is_float(y.dtype)}

    def jacobian(self, feeds: Mapping[str, Array], group: int) -> dict[str, Floats]:
        """d output / d coefficient at 1 by central differences: by output, (units, *its shape)."""
        size = self.p.channels.groups[group].size
        rows: list[dict[str, NDArray[Any]]] = []
        for unit in range(size):
            up, down = (self(feeds, {group: 1.0 + sign * STEP * (np.arange(size) == unit)}) for sign in (1, -1))
            rows.append({k: (up[k] - down[k]) / (2 * STEP) for k in up})
        return {k: np.stack([r[k] for r in rows]) for k in rows[0]}
