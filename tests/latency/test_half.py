"""Models that are timed in float16: each is converted, and its nodes keep the names that tie times to layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnxprune.latency.half import InHalf
from onnxprune.latency.kernels import Kernel
from onnxprune.latency.layers import marked
from onnxprune.runtime.session import Feeds
from onnxprune.runtime.timing import Times
from tests import digits


class Recording:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.models: list[onnx.ModelProto] = []

    def identity(self) -> Mapping[str, str]:
        return {"providers": "recording"}

    def kernels(self, model: onnx.ModelProto, feeds: Feeds) -> tuple[Kernel, ...]:
        self.models.append(model)
        return ()

    def compare(self, models: Sequence[onnx.ModelProto], feeds: Feeds) -> tuple[Times, ...]:
        self.models += models
        return tuple(Times(np.ones(1)) for _ in models)


def test_every_model_is_in_half_precision_under_its_own_names():
    machine = Recording()
    half = InHalf(machine)
    model = marked(onnx.load(digits.path("resnet")))
    half.kernels(model, {})
    half.compare([model, model], {})
    assert len(machine.models) == 3
    names = {n.name for n in model.graph.node}
    for copy in machine.models:
        weights = {t.data_type for t in copy.graph.initializer if len(t.dims) == 4}
        assert weights == {onnx.TensorProto.FLOAT16}
        assert names <= {n.name for n in copy.graph.node}
        assert copy.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert half.identity() == {"providers": "recording", "precision": "fp16"}
