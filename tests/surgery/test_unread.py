"""Weights that nothing reads any more go; what a body reads, or a graph returns, stays."""

from __future__ import annotations

import onnx
import pytest
from onnx import parser

from onnxprune.surgery.unread import drop_unread


def _model() -> onnx.ModelProto:
    return parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[2] x, bool c) => (float[2] y, float[2] returned)
        <float[2] read = {1, 2}, float[2] captured = {1, 2}, float[2] returned = {1, 2}, float[2] never = {1, 2},
         float[2] once = {1, 2}>
        {
            a = Add(x, read)
            y = If (c) <
                then_branch = t () => (float[2] then_out) { then_out = Add(a, captured) },
                else_branch = e () => (float[2] else_out) { else_out = Neg(a) }
            >
        }
    """)


@pytest.mark.parametrize(
    ("before", "gone"), [(None, {"never", "once"}), ({"read", "captured", "once"}, {"once"}), (set(), set())]
)
def test_what_nothing_reads_goes(before: set[str] | None, gone: set[str]):
    """Fails where weights that bodies capture are lost, or those go that nothing has ever read."""
    model = _model()
    drop_unread(model, before)
    assert [t.name for t in model.graph.initializer] == [
        t.name for t in _model().graph.initializer if t.name not in gone
    ]
