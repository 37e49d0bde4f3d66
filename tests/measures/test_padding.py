"""What stands at positions that an attention mask calls padding changes no figure; oracle: errors of the rest alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import evaluate, prune
from onnxprune.config import PruneConfig
from onnxprune.data.inputs import input_specs
from onnxprune.data.ragged import Ragged
from onnxprune.data.samples import Samples
from onnxprune.measures.answers import Answers
from onnxprune.measures.padding import NONE, Padding, padding_of
from onnxprune.numerics.arrays import Array
from onnxprune.objective import imitation_of
from onnxprune.runtime.session import Session
from tests.stand_ins import DECODER
from tests.topologies.text import Topology

N, T = 8, 6
RANDOM = np.random.default_rng(0)
KEPT = (np.arange(T) < RANDOM.integers(2, T, (N, 1))).astype(np.int64)
IDS = RANDOM.integers(0, 9, (N, T))
TOKENS = "int64[N,T] input_ids, int64[N,T] attention_mask"


def padding(inputs: str, outputs: str, values: dict[str, Array], **arrays: Any) -> Padding:
    """That of a model of which only the declarations are read."""
    arrays = {"input_ids": IDS, "attention_mask": KEPT, **arrays}
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> m ({inputs}) => ({outputs}) {{}}')
    return padding_of(proto, Samples(input_specs(proto), arrays), values)


def empty(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("declared", "shape", "axes"),
    [
        ("[N,T,9]", (N, T, 9), (1,)),
        ("[N,T]", (N, T), (1,)),  # scores of where an answer starts
        ("[N,2,T,4]", (N, 2, T, 4), (2,)),
        ("[N,T,T,4]", (N, T, T, 4), (1, 2)),
        ("[N,6]", (N, T), ()),  # as many classes as there are positions
        ("[N,6,9]", (N, T, 9), ()),
        ("[N,U,9]", (N, T, 9), (1,)),
        ("[N,U]", (N, T), ()),  # where only the size speaks for it
        ("[N,1,9]", (N, 1, 9), ()),
        ("[M,T,9]", (2 * N, T, 9), ()),
    ],
)
def test_axes_of_positions(declared: str, shape: tuple[int, ...], axes: tuple[int, ...]):
    found = padding(TOKENS, f"float{declared} y", {"y": empty(*shape)})
    gone = np.zeros(shape, bool)
    for axis in axes:
        gone |= np.expand_dims(KEPT == 0, tuple(a for a in range(1, len(shape)) if a != axis))
    assert np.array_equal(np.broadcast_to(found.at.get("y", False), shape), gone)
    assert (found.count, found.positions) == ((int((KEPT == 0).sum()), N * T) if axes else (0, 0))


@pytest.mark.parametrize("fixed", [False, True])
def test_positions_of_a_decoder_behind_those_of_the_encoder(fixed: bool):
    """Fails where as many positions count as the same ones."""
    u, t = ("6", "6") if fixed else ("U", "T")
    inputs = f"int64[N,{t}] input_ids, int64[N,{t}] attention_mask, int64[N,{u}] decoder_input_ids"
    assert padding(inputs, f"float[N,{u},9] y", {"y": empty(N, T, 9)}, decoder_input_ids=IDS) is NONE


def test_sizes_that_are_fixed():
    inputs = "int64[N,6] input_ids, bool[N,6] attention_mask"
    found = padding(inputs, "float[N,6,9] y", {"y": empty(N, T, 9), "p": empty(N, T)}, attention_mask=KEPT == 1)
    assert set(found.at) == {"y"}


def test_earlier_positions_stand_in_front():
    whole = np.concatenate([np.arange(3) < RANDOM.integers(0, 3, (N, 1)), KEPT], axis=1).astype(np.int64)
    inputs = "int64[N,T] input_ids, int64[N,All] attention_mask"
    values = {"y": empty(N, T, 9), "present": empty(N, 2, T + 3, 4)}
    found = padding(inputs, "float[N,T,9] y, float[N,2,All,4] present", values, attention_mask=whole)
    assert np.array_equal(found.at["y"][:, :, 0], KEPT == 0)
    assert np.array_equal(found.at["present"][:, 0, :, 0], whole == 0)


def test_samples_of_several_sizes():
    masks = Ragged(tuple(np.array(m) for m in ([1, 0], [0, 1, 1], [1, 1])))
    ids = Ragged(tuple(np.ones(n, np.int64) for n in (2, 3, 2)))
    found = padding(TOKENS, "float[N,T,9] y", {"y": empty(3, 3, 9)}, input_ids=ids, attention_mask=masks)
    assert found.at["y"][..., 0].astype(int).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert (found.count, found.positions) == (2, 7)


@pytest.mark.parametrize("mask", [np.ones_like(KEPT), np.zeros_like(KEPT), KEPT * 2, KEPT - 1])
def test_what_names_no_padding(mask: Array):
    assert padding(TOKENS, "float[N,T,9] y", {"y": empty(N, T, 9)}, attention_mask=mask) is NONE


def error_of_the_rest(y: Array, y0: Array, kept: Array) -> float:
    """||y - y0||² / ||y0 - mean y0||² over what is kept, position by position."""
    error = spread = 0.0
    for t in range(kept.shape[1]):
        a, b = (v[kept[:, t] == 1, t].astype(np.float64) for v in (y, y0))
        error += ((a - b) ** 2).sum()
        spread += ((b - b.mean(axis=0)) ** 2).sum() if len(b) else 0.0
    return float(error / spread)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -1e9, 1e30])
def test_errors_are_those_of_the_rest(junk: float):
    """Fails where the error, that of a sample, or the discrepancy reads what stands at padding of either model."""
    y0, y = (RANDOM.standard_normal((N, T, 9)).astype(np.float32) for _ in range(2))
    gone = KEPT[:, :, None] == 0
    own = Padding("attention_mask", {"y": gone}, int(gone.sum()), N * T)
    answers = Answers.of({"y": np.where(gone, np.float32(junk), y0)}, N, padding=own)
    given = {"y": np.where(gone, np.float32(-7.0), y)}
    expected = error_of_the_rest(y, y0, KEPT)
    assert answers.error(given) == pytest.approx(expected, rel=1e-9)
    each = answers.per_sample(answers.parts[0], given)
    assert each is not None and each[0].sum() / each[1].sum() == pytest.approx(expected, rel=1e-9)
    loss = imitation_of(answers)
    halves = [slice(0, 3), slice(3, N)]
    assert sum(loss.value({"y": given["y"][i]}, i) for i in halves) == pytest.approx(expected, rel=1e-9)
    some = {"y": given["y"][3:]}
    for seeds in (loss.gradient(some, halves[1])["y"], loss.probe(some, halves[1], np.random.default_rng(0))["y"]):
        assert np.array_equal(seeds != 0.0, np.broadcast_to(~gone[3:], seeds.shape))
    few = Answers.of({"y": y0[:5]}, 5, padding=own.first(5)).error({"y": y[:5]})
    assert answers.first(5).error({"y": given["y"][:5]}) == pytest.approx(few, rel=1e-12)


TABLE = RANDOM.standard_normal((9, 9)).astype(np.float32)


def reader(table: Array, junk: float | None, output: str = "logits") -> onnx.ModelProto:
    """Scores of each token, or the best one; with junk where the mask is 0."""
    end = "m = Where (there, y, junk)" if junk is not None else "m = Identity (y)"
    kind = {"logits": "float[N,T,9]", "best": "int64[N,T]", "start": "float[N,T]"}[output]
    last = {
        "logits": "logits = Identity (m)",
        "best": "best = ArgMax <axis=2, keepdims=0> (m)",
        "start": "start = ReduceSum <keepdims=0> (m, axis)",
    }[output]
    weights = f"<float junk = {{{0.0 if junk is None else junk}}}, int64 k = {{2}}, int64[1] axis = {{2}}>"
    body = f"s = Cast <to=9> (attention_mask) there = Unsqueeze (s, axis) y = Gather (w, input_ids) {end} {last}"
    text = f'<ir_version: 8, opset_import: ["": 17]> m ({TOKENS}) => ({kind} {output}) {weights} {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(table, "w"))
    return proto


@pytest.mark.parametrize("output", ["logits", "best", "start"])
def test_eval_says_the_same_whatever_stands_there(output: str):
    """Fails where an error, a difference, a cosine or an agreement reads padding."""
    data = {"input_ids": IDS, "attention_mask": KEPT}
    other = TABLE + 0.3 * RANDOM.standard_normal(TABLE.shape).astype(np.float32)
    junks = [(None, None), (None, 1e6), (-5e3, None), (3.0, 3.0)]
    pairs = [(reader(other, a, output), reader(TABLE, b, output)) for a, b in junks]
    found = [evaluate(m, data, against=o).as_dict() for m, o in pairs]
    said = f"{int((KEPT == 0).sum())} of {N * T} positions are padding by 'attention_mask'"
    assert said in " ".join(found[0]["notes"])
    for other_one in found[1:]:
        assert {k: v for k, v in other_one.items() if k != "scores"} == {
            k: v for k, v in found[0].items() if k != "scores"
        }
    y, y0 = TABLE[IDS], other[IDS]
    if output == "logits":
        assert found[0]["output_error"] == pytest.approx(error_of_the_rest(y0, y, KEPT), rel=1e-5)
    if output == "best":
        agree = (y.argmax(axis=2) == y0.argmax(axis=2))[KEPT == 1].mean()
        assert found[0]["by_output"][0]["agreement"] == pytest.approx(agree, abs=1e-12)


def decoder(junk: bool) -> onnx.ModelProto:
    """The stand-in, which reads no position behind the one it answers for; at padding it gives zeros, or junk."""
    text = (
        DECODER.replace("int64[N,T] input_ids", TOKENS)
        .replace(
            "logits = MatMul(n, head[24,64])",
            """
    scores = MatMul(n, head[24,64])
    seen = Cast <to=9> (attention_mask)
    there = Unsqueeze(seen, last{2})
    float_ids = Cast <to=1> (input_ids)
    column = Unsqueeze(float_ids, last)
    noise = Mul(column, size)
    logits = Where(there, scores, noise)""",
        )
        .replace("logits) {", f"logits) <float size = {{{1e5 if junk else 0.0}}}> {{")
    )
    return Topology(text, (), opset=23, ir_version=10).model()


def test_prune_does_the_same_whatever_stands_there():
    """Fails where selection, recovery or the report reads what stands at padding; the error is that of numpy."""
    rng = np.random.default_rng(1)
    mask = (np.arange(8) < rng.integers(3, 9, (48, 1))).astype(np.int64)
    data = {"input_ids": rng.integers(0, 64, (48, 8)), "attention_mask": mask}
    plain, other = (prune(decoder(junk), None, data, config=PruneConfig(ratio=0.3)) for junk in (False, True))
    assert plain.report.output_error == other.report.output_error
    assert any("are padding by 'attention_mask'" in note for note in other.report.notes)
    y, y0 = (Session(m).run(data)["logits"] for m in (other.model, decoder(False)))
    found = evaluate(other.model, data, against=decoder(False)).output_error
    assert found == pytest.approx(error_of_the_rest(y, y0, mask), rel=1e-6)
