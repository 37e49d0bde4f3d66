"""What the tests of un-fusing share: a fused node as a model, and that model in standard operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune.graph.protobuf import copied, element_type
from onnxprune.normalise.unfused import Unfused, unfuse
from onnxprune.runtime.session import Session

Array = NDArray[Any]
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Case:
    """One fused node: its operator, what it reads (None for an input that is left out), attributes, number of outputs.

    weights: slots that are stored in the model; the others are its inputs. unasked: outputs without a name.
    """

    operator: str
    inputs: Sequence[Array | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[int, ...] = ()
    outputs: int = 1
    unasked: tuple[int, ...] = ()
    domain: str = MICROSOFT
    opset: int = 17

    def model(self) -> onnx.ModelProto:
        """The node as a model; its inputs have free sizes."""
        names = ["" if v is None else f"i{k}" for k, v in enumerate(self.inputs)]
        outputs = ["" if k in self.unasked else f"o{k}" for k in range(self.outputs)]
        node = helper.make_node(self.operator, names, outputs, name="it", domain=self.domain, **self.attributes)
        ports = [
            helper.make_tensor_value_info(f"i{k}", element_type(v.dtype), [None] * v.ndim)
            for k, v in enumerate(self.inputs)
            if v is not None and k not in self.weights
        ]
        stored = [numpy_helper.from_array(np.asarray(self.inputs[k]), f"i{k}") for k in self.weights]
        given = [helper.make_empty_tensor_value_info(o) for o in outputs if o]
        graph = helper.make_graph([node], "one", ports, given, stored)
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid(self.domain, 1)]
        return helper.make_model(graph, opset_imports=imports[: 2 if self.domain else 1], ir_version=8)

    def feeds(self) -> dict[str, Array]:
        """Its inputs by name."""
        return {f"i{k}": v for k, v in enumerate(self.inputs) if v is not None and k not in self.weights}


def standard(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> tuple[onnx.ModelProto, Unfused]:
    """The model in standard operators, as far as that goes."""
    proto = copied(model)
    return proto, unfuse(proto, feeds)


def assert_equal(case: Case, *, rtol: float, atol: float) -> onnx.ModelProto:
    """The case in standard operators, which compute what the fused one does."""
    proto, unfused = standard(case.model(), case.feeds())
    assert len(unfused.fused) == 1, unfused.notes
    assert {n.domain for n in proto.graph.node} == {""}
    expected = Session(case.model(), optimize=False).run(case.feeds())
    for port in proto.graph.output:  # the checker asks for more than onnxruntime does
        y = expected[port.name]
        port.CopyFrom(helper.make_tensor_value_info(port.name, element_type(y.dtype), [None] * y.ndim))
    onnx.checker.check_model(proto, full_check=True)
    got = Session(proto, optimize=False).run(case.feeds())
    assert got.keys() == expected.keys()
    for name, y in expected.items():
        assert got[name].shape == y.shape, name
        assert got[name].dtype == y.dtype, name
        np.testing.assert_allclose(got[name].astype(np.float64), y.astype(np.float64), rtol=rtol, atol=atol)
    return proto
