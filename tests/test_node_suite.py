"""A part of onnx's node suite through the command line: one test of every operator, the rest by the benchmark."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import node_suite
from benchmarks.node_suite import FAULT, NEITHER, NOTHING, OUTCOMES, PRUNED, REFUSED, Case, Result, run_case
from tests.fuzz.workers import Worker

# Operators whose tests once were refused, or killed the process, because of the random inputs.
HARD = (
    "test_stft",
    "test_resize_upsample_scales_nearest",
    "test_reshape_one_dim",
    "test_col2im_pads",
    "test_loop13_seq",
)
EVERY = 80


@pytest.fixture(scope="module")
def suite() -> list[Case]:
    return node_suite.cases()


def test_a_part_of_the_suite(suite: list[Case]):
    """Fails where a model that onnxruntime runs is refused, or a command dies, hangs, or says more than one line."""
    chosen = [c for i, c in enumerate(suite) if i % EVERY == 0 or c.name in HARD]
    assert {c.name for c in chosen} >= set(HARD)
    found: list[Result] = []
    with Worker() as worker, tempfile.TemporaryDirectory() as folder:
        for case in chosen:
            found += run_case(case, worker, Path(folder))
    assert not [r for r in found if r.outcome in (REFUSED, FAULT)]
    seen = {r.outcome for r in found}
    assert seen >= {PRUNED, NOTHING}, "a suite that prunes nothing tests nothing"
    assert node_suite.table(found).count("\n") > len(OUTCOMES)


def test_every_operator_is_in_the_suite(suite: list[Case]):
    """Fails where the suite that is collected is not the whole one."""
    operators = {n.op_type for c in suite for n in c.model.graph.node}
    assert len(suite) > 1000
    assert operators >= {"Conv", "Gemm", "LSTM", "Attention", "Resize", "STFT", "Loop", "SequenceMap"}


def test_the_network_holds_the_operator(suite: list[Case]):
    """Fails where the layers around an operator are not there, or its values are not the test's."""
    case = next(c for c in suite if c.name == "test_gemm_all_attributes")
    whole = node_suite.in_a_network(case)
    assert whole is not None
    proto, feeds = whole
    onnx.checker.check_model(proto)
    assert [n.op_type for n in proto.graph.node] == ["MatMul", "Add", "Gemm", "MatMul", "Add"]
    assert list(feeds) == ["into"]
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert case.feeds is not None
    assert np.array_equal(weights["b"], case.feeds["b"])


def test_refusals_are_judged_by_onnxruntime(tmp_path: Path):
    """Fails where a refusal counts as onnxruntime's although onnxruntime runs the model, or the other way round."""
    text = '<ir_version: 8, opset_import: ["" : 17]> a (float[2] x) => (float[2] y) { y = Relu(x) }'
    sound, broken = tmp_path / "sound.onnx", tmp_path / "broken.onnx"
    onnx.save(onnx.parser.parse_model(text), sound)
    broken.write_bytes(b"nothing")
    missing = ["inspect", str(tmp_path / "missing.onnx")]
    with Worker() as worker:
        by_model = {
            p: node_suite.judged("x", "inspect", missing, p, {"x": np.zeros(2, np.float32)}, worker, tmp_path).outcome
            for p in (sound, broken)
        }
    assert by_model == {sound: REFUSED, broken: NEITHER}
