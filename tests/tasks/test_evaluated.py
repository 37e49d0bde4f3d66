"""Tasks in whole evaluations: chosen by what outputs look like, named, limited, and a metric of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune import evaluate
from onnxprune.errors import CheckFailed, UsageError
from onnxprune.evaluation import gate
from onnxprune.numerics.arrays import Array
from onnxprune.tasks.known import BY_SCORE, TASKS
from onnxprune.tasks.names import NAMES
from tests.test_cli import Capture, run

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def model(text: str, **weights: Array) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f"{HEAD} main {text}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in weights.items())
    return proto


RANDOM = np.random.default_rng(0)
TABLE = RANDOM.standard_normal((13, 13)).astype(np.float32)
# Scores of the next token, from the present one alone; and from the mean over all, which reads ahead.
NEXT = "(int64[N,T] input_ids, int64[N,T] attention_mask) => (float[N,T,13] logits) { logits = Gather (w, input_ids) }"
AHEAD = (
    "(int64[N,T] input_ids, int64[N,T] attention_mask) => (float[N,T,13] logits) "
    "{ a = Gather (w, input_ids) b = ReduceMean <axes=[1]> (a) logits = Add (a, b) }"
)
IDS = RANDOM.integers(0, 13, (20, 6))
TOKENS = {"input_ids": IDS, "attention_mask": (np.arange(6) < RANDOM.integers(2, 7, (20, 1))).astype(np.int64)}
IMAGES = RANDOM.standard_normal((6, 3, 8, 8)).astype(np.float32)
MAP = "(float[N,3,8,8] x) => (float[N,5,8,8] y) { y = Conv (x, w) }"
KERNEL = RANDOM.standard_normal((5, 3, 1, 1)).astype(np.float32)


def test_names_are_those_of_the_rows():
    assert sorted(NAMES) == sorted(t.name for t in TASKS)


def test_a_language_model_by_its_own_input():
    e = evaluate(model(NEXT, w=TABLE), TOKENS, against=model(NEXT, w=1.1 * TABLE))
    assert (e.task, e.agreement) == ("sequence", 1.0)
    assert "13 scores for each token" in e.task_why
    scores = {s.name: s for s in e.scores}
    counted = (TOKENS["attention_mask"][:, 1:] > 0) & (TOKENS["attention_mask"][:, :-1] > 0)
    log = TABLE - np.log(np.exp(TABLE.astype(np.float64)).sum(axis=1, keepdims=True))
    expected = np.exp(-log[IDS[:, :-1], IDS[:, 1:]][counted].mean())
    assert scores["perplexity"].value == pytest.approx(expected, rel=1e-5)
    gate(e, max_metric={"perplexity": expected * 1.01}, min_agreement=1.0)
    with pytest.raises(CheckFailed, match=r"perplexity .* is above the demanded"):
        gate(e, max_metric={"perplexity": expected * 0.99})
    alone = evaluate(model(NEXT, w=TABLE), TOKENS, task="sequence")  # which needs neither labels nor an original
    assert [s.value for s in alone.scores if s.name == "perplexity"] == [pytest.approx(expected, rel=1e-5)]
    assert evaluate(model(NEXT, w=TABLE), TOKENS, metric="perplexity").scores == alone.scores


def test_a_score_stands_for_its_task():
    """Fails where a score that no task has is taken, or one that needs an original is compared with nothing."""
    assert sorted(BY_SCORE) == sorted(name for t in TASKS for name in t.names)
    with pytest.raises(UsageError, match="did you mean perplexity"):
        evaluate(model(NEXT, w=TABLE), TOKENS, metric="perplexty")
    with pytest.raises(UsageError, match="nothing to compare with"):
        evaluate(model(MAP, w=KERNEL), {"x": IMAGES}, metric="miou")


def test_a_model_that_reads_ahead_has_no_perplexity_by_its_input():
    """Fails where a masked language model is said to know the next token, which it has read."""
    e = evaluate(model(AHEAD, w=TABLE), TOKENS, against=model(AHEAD, w=TABLE))
    assert next(s.why for s in e.scores if s.name == "perplexity").startswith("the model reads what comes behind")


def test_a_class_map_and_its_drop():
    truth = RANDOM.integers(0, 5, (6, 8, 8))
    e = evaluate(
        model(MAP, w=KERNEL + 0.3 * KERNEL[::-1]),
        {"x": IMAGES, "map": truth},
        against=model(MAP, w=KERNEL),
        labels="map",
    )
    assert e.task == "segmentation"
    miou = next(s for s in e.scores if s.name == "miou")
    assert miou.value is not None
    assert miou.original is not None
    assert e.drop == pytest.approx(100 * (miou.original - miou.value), abs=1e-9)
    assert (e.accuracy, e.agreement) == (None, next(s.value for s in e.scores if s.name == "map-agreement"))
    gate(e, max_drop=100.0, min_metric={"miou": 0.0, "y:cosine": -1.0})
    with pytest.raises(CheckFailed, match=r"map-agreement .* is below the demanded"):
        gate(e, min_agreement=1.0)


def test_vectors_are_embeddings_where_they_are_named_or_look_so():
    text = "(float[N,16] x) => (float[N,16] y) { y = MatMul (x, w) }"
    x = RANDOM.standard_normal((60, 16)).astype(np.float32)
    turn = np.linalg.qr(RANDOM.standard_normal((16, 16)))[0].astype(np.float32)
    one, other = model(text, w=turn), model(text, w=np.eye(16, dtype=np.float32))
    assert evaluate(one, {"x": x}, against=other).task == "classification"
    named = evaluate(one, {"x": x}, against=other, task="embedding")
    assert (named.agreement, named.task_why) == (1.0, "as was asked for")
    assert named.figures is not None
    assert named.figures.agreement is None
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert evaluate(one, {"x": unit}, against=other).task == "embedding"
    labels = np.arange(60) % 16
    assert evaluate(one, {"x": unit, "label": labels}, against=other, labels="label").task == "classification"


def test_a_task_that_does_not_fit():
    with pytest.raises(UsageError, match="holds no tokens"):
        evaluate(model(MAP, w=KERNEL), {"x": IMAGES}, against=model(MAP, w=KERNEL), task="sequence")
    with pytest.raises(UsageError, match="choose one of"):
        evaluate(model(MAP, w=KERNEL), {"x": IMAGES}, against=model(MAP, w=KERNEL), task="poetry")
    with pytest.raises(UsageError, match="leave out one of them"):
        evaluate(model(MAP, w=KERNEL), {"x": IMAGES}, task="sequence", metric=lambda *_: 1.0)


def test_a_metric_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture):
    monkeypatch.chdir(tmp_path)
    onnx.save(model(MAP, w=KERNEL), "m.onnx")
    np.savez("d.npz", x=IMAGES, extra=np.arange(6.0))
    Path("own.py").write_text(
        "def total(outputs, originals, labels):\n    return {'labels': labels.sum(), 'mean': outputs['y'].mean()}\n",
        encoding="utf-8",
    )
    args = ("eval", "m.onnx", "--data", "d.npz", "--labels", "extra", "--metric", "own.py:total")
    code, out, err = run(capsys, *args, "--min-metric", "labels=15", "--max-metric", "mean=1000")
    assert (code, err) == (0, "")
    assert "15 by total of own.py" in out
    code, out, err = run(capsys, *args, "--min-metric", "labels=15.5")
    assert code == 4
    assert "labels 15 is below the demanded 15.5" in err
    code, out, err = run(capsys, *args, "--min-metric", "label=1")
    assert code == 2
    assert "did you mean labels?" in err
    for wrong in ("labels", "labels=x", "=1", "labels=nan"):
        code, out, err = run(capsys, *args, "--min-metric", wrong)
        assert code == 2
        assert "is not a score and a number" in err
