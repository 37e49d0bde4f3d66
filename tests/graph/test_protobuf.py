"""What nodes say of themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnxprune.graph.protobuf import held_by

TENSOR = numpy_helper.from_array(np.arange(3.0), "t")


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_the_tensor_of_a_constant(domain: str):
    assert held_by(helper.make_node("Constant", [], ["c"], domain=domain, value=TENSOR)) == TENSOR


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Constant", {"value_float": 1.0}),
        ("Constant", {"domain": "com.example", "value": TENSOR}),
        ("ConstantOfShape", {"value": TENSOR}),
        ("Constant", {}),
    ],
)
def test_what_holds_no_tensor(op: str, attributes: dict[str, Any]):
    """Fails where an operator of another domain is taken for a weight by its name."""
    assert held_by(helper.make_node(op, [], ["c"], **attributes)) is None
