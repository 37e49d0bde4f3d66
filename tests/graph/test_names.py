"""Names of tensors: all that a model has, in bodies too, and new ones beside them."""

from __future__ import annotations

import onnx
from onnx import parser

from onnxprune.graph.names import tensors_of, unused


def _model() -> onnx.ModelProto:
    """An If whose branches read what is outside; an input and a weight that nothing reads, and one in a branch."""
    return parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[2] x, bool c, float[2] unread_input) => (float[2] y)
        <float[2] stored = {1, 2}, float[2] unread_weight = {3, 4}>
        {
            a = Add(x, stored)
            y = If (c) <
                then_branch = t () => (float[2] then_out) { then_out = Neg(a) },
                else_branch = e () => (float[2] else_out) <float[2] inner = {5, 6}> { else_out = Neg(a) }
            >
        }
    """)


def test_all_tensors_of_bodies_too():
    expected = {"x", "c", "unread_input", "y", "stored", "unread_weight", "a", "then_out", "else_out", "inner"}
    assert tensors_of(_model()) - {""} == expected


def test_a_name_is_given_once():
    taken = {"a", "a_1"}
    assert [unused(name, taken) for name in ("b", "a", "a", "b")] == ["b", "a_2", "a_3", "b_1"]
    assert taken == {"a", "a_1", "a_2", "a_3", "b", "b_1"}
