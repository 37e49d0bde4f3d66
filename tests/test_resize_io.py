"""Caches that lose heads: inputs and outputs change with them, and the model decodes as the masked original does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune import PruneConfig, prune
from onnxprune.channels import ChannelGraph, build
from onnxprune.data.states import State
from onnxprune.errors import CalibrationError, ModelError, UsageError
from onnxprune.evaluation import evaluate
from onnxprune.graph import protobuf
from onnxprune.intake.fed_back import read
from onnxprune.normalise import Normalised, normalise
from onnxprune.normalise.resizing import Runner, resized, together
from onnxprune.normalise.states import with_gathers
from onnxprune.numerics.arrays import Array, Mask
from onnxprune.pipeline import inspect
from onnxprune.runtime.session import Session
from onnxprune.surgery import cut, finish
from onnxprune.surgery.resized import picked, resize
from onnxprune.verification.oracle import masked_model
from tests import digits
from tests.compare import assert_same, relative_error
from tests.decoder import CACHES, GROUPS, HEADS, SIZE, VOCABULARY, decoder, empty, fed_back, prompts

PATTERNS = ("past_key_values.*", "present.*")
PORTS = tuple(f"{side}.{name}" for side in ("past_key_values", "present") for name in CACHES)


WINDOW = 4


def prepared(
    ports: tuple[str, ...] = PORTS, window: int = 0, size: int | str = "size"
) -> tuple[Normalised, ChannelGraph]:
    feeds = {**prompts(2), **empty(2, window=window)}
    n = with_gathers(normalise(decoder(window=window, size=size), feeds), (), ports)
    view = protobuf.view(n.proto, n.shapes, n.known_values, n.binding, n.free, states=n.states)
    return n, build(view)


def without(channels: ChannelGraph, heads: dict[int, list[int]]) -> Mask:
    """All classes stay but these key/value heads, by layer, a few inner units and some of the stream."""
    keep = np.ones(channels.classes.pinned.size, bool)
    for g in channels.groups:
        layer = next((k for k in heads if g.name == f"/qkv{k}"), None)
        gone = heads[layer] if layer is not None else [1, 4, 5]
        keep[g.units[gone]] = False
    return keep


@pytest.mark.parametrize("size", ["size", SIZE])
@pytest.mark.parametrize("window", [0, WINDOW])
def test_the_model_decodes_as_the_masked_original(window: int, size: int | str):
    """Fails where a cache is read or written at another head's place, or query heads go with another group.

    Where the file tells the size of a head, positions inside a head might go as well, and none does.
    """
    n, channels = prepared(window=window, size=size)
    assert [g.size for g in channels.groups if g.name.startswith("/qkv")] == [GROUPS, GROUPS]
    keep = without(channels, {0: [1, 2], 1: [0, 3]})
    whole = finish(cut(n.proto, channels, keep), n, channels, keep)
    narrow, changed = resize(whole, n.states)
    assert {r.name: (r.axis, r.positions, r.kept.tolist()) for r in changed} == {
        f"{side}.{layer}.{what}": (1, GROUPS, [[0, 3], [1, 2]][layer])
        for side in ("past_key_values", "present")
        for layer in range(2)
        for what in ("key", "value")
    }
    assert resize(whole, ()) == (whole, ())
    declared = {v.name: v.type.tensor_type.shape.dim[1].dim_value for v in (*narrow.graph.input, *narrow.graph.output)}
    assert {declared[p] for p in PORTS} == {2}
    assert not any(x.op_type in ("Pad", "Slice") or "state" in x.name for x in narrow.graph.node)
    small, oracle = Session(narrow), Session(masked_model(n.proto, channels, keep, n.types))
    expected = oracle.run({**prompts(2), **empty(2, window=window)})
    found = small.run({**prompts(2), **empty(2, 2, window)})
    for step in range(3):
        for name, value in picked(expected, changed).items():
            assert_same(found[name], value, rtol=1e-4, atol=1e-5)
        ids = prompts(2, 1, seed=step + 1)["input_ids"]
        feeds = {"input_ids": ids, "attention_mask": np.ones((2, 7 + step), np.int64)}
        expected = oracle.run({**feeds, **fed_back(expected)})
        found = small.run({**feeds, **fed_back(found)})


@pytest.mark.parametrize(
    ("ports", "reason"),
    [
        (PORTS[:4], "the graph output 'present.0.key' keeps its shape"),
        (PORTS[4:], "meets axis 1 of the graph input 'past_key_values.0.key'"),
        (("logits",), "no input that may change has the units of the output 'logits'"),
    ],
    ids=["inputs alone", "outputs alone", "an answer"],
)
def test_what_stays(ports: tuple[str, ...], reason: str):
    """Fails where one side of a cache shrinks without the other, or an output that nothing reads back loses entries."""
    _, channels = prepared(ports)
    assert any(p.why.reason.startswith(reason) for p in channels.pinned)
    balanced = [g for g in channels.groups if g.name.startswith("/qkv")]
    assert [(g.size, g.step) for g in balanced] == [(HEADS, GROUPS)] * 2


QUICK = PruneConfig(uniform=0.5, refit="none", method="magnitude", round_to=1)


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (PATTERNS, []),
        ((*PATTERNS, "logits"), ["logits changes nothing: 'logits' has a number for each token"]),
    ],
    ids=["caches", "logits too"],
)
def test_a_pattern_that_changes_nothing_is_named(patterns: tuple[str, ...], said: list[str]):
    """Fails where a pattern does nothing in silence, logits lose places, or one that does something is doubted."""
    settings = QUICK.with_options(resize_io=patterns)
    whole = len(patterns) > len(PATTERNS)
    result = prune(decoder(), None, prompts(24), config=settings, same_widths=("/qkv*",), dry_run=not whole)
    own = [w for w in result.report.warnings if "--resize-io" in w]
    assert len(own) == len(said)
    assert all(text in w for text, w in zip(said, own, strict=True))
    if whole:
        assert result.model is not None
        [logits] = (v for v in result.model.graph.output if v.name == "logits")
        assert [d.dim_value for d in logits.type.tensor_type.shape.dim[2:]] == [VOCABULARY]
    assert [n for n in inspect(decoder(), prompts(2), resize_io=patterns).notes if "--resize-io" in n] == own


@pytest.mark.parametrize(
    ("patterns", "held", "along"),
    [
        (
            ("past*", "logits"),
            "'past_key_values.*.key', 'past_key_values.*.value'",
            "'present.*.key', 'present.*.value'",
        ),
        (
            ("past*", "present.0*"),
            "'past_key_values.1.key', 'past_key_values.1.value'",
            "'present.1.key', 'present.1.value'",
        ),
        (("*.0.key",), "'past_key_values.0.key', 'present.0.key'", "'past_key_values.0.value', 'present.0.value'"),
    ],
    ids=["one side", "one side of one layer", "keys alone"],
)
def test_caches_of_which_some_names_are_missing(patterns: tuple[str, ...], held: str, along: str):
    """Fails where that is told late, or a name that is needed is not."""
    told = f"--resize-io: {held} can change only together with {along}, where"
    with pytest.raises(UsageError, match=re.escape(told)):
        prune(decoder(), None, prompts(24), config=QUICK.with_options(resize_io=patterns), dry_run=True)
    with pytest.raises(UsageError, match=re.escape(told)):
        inspect(decoder(), prompts(2), resize_io=patterns)


def test_a_settings_file_needs_the_caches_of_every_layer(tmp_path: Path):
    """Fails where it is told late, by another option, that the layers would have different numbers of heads."""
    onnx.save(decoder(), tmp_path / "model.onnx")
    numbers = {"num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "hidden_size": 32, "head_size": 16}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"decoder": numbers}}))
    (tmp_path / "result").mkdir()
    options = QUICK.with_options(resize_io=("*.0.*",))
    with pytest.raises(UsageError, match=r"one number of heads.*'past_key_values.1.key'.*'present.1.value' too"):
        prune(tmp_path / "model.onnx", tmp_path / "result" / "small.onnx", prompts(24), config=options)


@pytest.mark.parametrize("pattern", ["input", "logits"])
def test_ports_of_an_image_network_keep_their_sizes(pattern: str):
    found = prune(
        digits.path("resnet"), None, digits.CALIB, config=QUICK.with_options(resize_io=(pattern,), samples=16)
    )
    assert [w for w in found.report.warnings if "--resize-io" in w] == [
        f"--resize-io {pattern} changes nothing: no units that may go are entries of what it matches (of a cache, name "
        "the input and the output)"
    ]


def test_prune_resizes_what_is_named(tmp_path: Path):
    """Fails where the files do not hold what the report says, or a replay gives something else."""
    source, result, again = (tmp_path / name for name in ("m.onnx", "small.onnx", "again.onnx"))
    onnx.save(decoder(), source)
    settings = PruneConfig(
        uniform=0.5,
        refit="none",
        resize_io=PATTERNS,
        same_widths=("/qkv*",),
        exclude=("/embedded",),
        method="magnitude",
    )
    found = prune(source, result, prompts(24), config=settings)
    note = next(x for x in found.report.notes if "--resize-io" in x)
    assert all(p in note for p in PORTS)
    assert note.endswith("has 2 of 4 positions")
    small = onnx.load(result)
    heads = {(a.name, a.i) for x in small.graph.node if x.op_type == "GroupQueryAttention" for a in x.attribute}
    assert heads >= {("num_heads", HEADS // 2), ("kv_num_heads", 2)}
    outputs = Session(small).run({**prompts(3), **empty(3, 2)})
    assert outputs["present.0.key"].shape == (3, 2, 6, 16)
    prune(source, again, prompts(24), from_plan=found.plan)
    assert again.read_bytes() == result.read_bytes()


@pytest.mark.parametrize(("then", "far"), [("int8", 0.05), ("fp16", 1e-2)])
def test_caches_that_lost_heads_in_fewer_bits(then: str, far: float):
    """Fails where the result reads or gives caches of other sizes than in float, or other numbers, also behind a cache,
    or where the zeros of heads that went count as an error of fewer bits."""
    settings = QUICK.with_options(resize_io=PATTERNS, same_widths=("/qkv*",))
    plain = prune(decoder(), None, prompts(48), config=settings)
    found = prune(decoder(), None, prompts(48), config=settings.with_options(then=then))
    assert found.model is not None and plain.model is not None and found.report.fewer_bits is not None
    steps = found.report.fewer_bits.errors
    assert steps["result"] == pytest.approx(steps["pruned"], rel=far)
    before, after = Session(plain.model), Session(found.model)
    feeds = {**prompts(3), **empty(3, GROUPS // 2)}
    expected = before.run(feeds)
    assert expected["present.0.key"].shape == (3, GROUPS // 2, 6, SIZE)
    second = {**prompts(3, 1), "attention_mask": np.ones((3, 7), np.int64), **fed_back(expected)}
    for given in (feeds, second):
        expected, outputs = before.run(given), after.run(given)
        assert outputs.keys() == expected.keys()
        assert all(relative_error(outputs[k], v) < far for k, v in expected.items())


def test_settings_files_know_of_heads_where_caches_stay(tmp_path: Path):
    """Fails where a model with one key-value head, whose caches cannot change, has the settings of the original."""
    (tmp_path / "out").mkdir()
    onnx.save(decoder(groups=1), tmp_path / "model.onnx")
    (tmp_path / "config.json").write_text(
        json.dumps({"num_attention_heads": HEADS, "num_key_value_heads": 1, "hidden_size": 32, "head_dim": SIZE})
    )
    settings = PruneConfig(uniform=0.5, refit="none", resize_io=PATTERNS, method="magnitude", round_to=1)
    found = prune(tmp_path / "model.onnx", tmp_path / "out" / "model.onnx", prompts(16), config=settings)
    assert sum("--resize-io" in w and "changes nothing" in w for w in found.report.warnings) == len(PATTERNS)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["num_attention_heads"] == HEADS // 2
    assert written["num_key_value_heads"] == 1


def test_eval_compares_what_both_models_give(tmp_path: Path):
    """Fails where caches of other sizes are no pair of models, or a cache with entries is cut blindly."""
    result = tmp_path / "small.onnx"
    settings = PruneConfig(uniform=0.5, refit="none", resize_io=PATTERNS, method="magnitude", same_widths=("/qkv*",))
    found = prune(decoder(), result, prompts(24), config=settings)
    data = prompts(16, seed=5)
    judged = evaluate(result, data, against=decoder(), task="sequence")
    assert judged.figures is not None
    outputs = [Session(m).run({**data, **empty(16, n)})["logits"] for m, n in ((onnx.load(result), 2), (decoder(), 4))]
    assert found.model is not None
    spread = ((outputs[1] - outputs[1].mean(axis=0)) ** 2).sum()
    assert judged.output_error == pytest.approx(((outputs[0] - outputs[1]) ** 2).sum() / spread, rel=1e-3)
    assert any("present.0.key" in note and "not compared" in note for note in judged.notes)
    past = {name: np.ones((16, GROUPS, 2, 16), np.float32) for name in empty(16)}
    with pytest.raises(ModelError, match="leave it out of the data"):
        evaluate(result, {**data, "attention_mask": np.ones((16, 8), np.int64), **past}, against=decoder())


def test_caches_are_fed_back_by_patterns():
    """Fails where a step of one position of one sample is no run, or caches of other steps stand in for its own."""
    ids = prompts(24, 1, seed=3)["input_ids"]
    steps = [{"input_ids": ids[t : t + 1], "attention_mask": np.ones((1, t + 1), np.int64)} for t in range(24)]
    settings = PruneConfig(
        uniform=0.5,
        refit="none",
        method="magnitude",
        resize_io=PATTERNS,
        state=("present.*=past_key_values.*",),
        same_widths=("/qkv*",),
    )
    found = prune(decoder(), None, steps, config=settings)
    assert found.model is not None
    assert any("states were fed back over 24 steps of 1 sequence" in note for note in found.report.notes)
    assert any("has 2 of 4 positions" in note for note in found.report.notes)
    Session(found.model).run({**prompts(2), **empty(2, 2)})


@pytest.mark.parametrize("given", [False, True], ids=["empty caches", "first caches in the data"])
def test_sequences_of_a_batch_go_on_side_by_side(given: bool):
    """Fails where a batch of steps is read as one sequence, or a sequence gets the caches of another."""
    count, length = 3, 4
    ids = prompts(count, length, seed=5)["input_ids"]
    steps = [
        {"input_ids": ids[:, t : t + 1], "attention_mask": np.ones((count, t + 1), np.int64)} for t in range(length)
    ]
    if given:
        steps[0] |= empty(count)
    found = read(decoder(), steps, [State(f"present.{c}", f"past_key_values.{c}") for c in CACHES])
    assert len(found) == count * length
    session, past = Session(decoder()), empty(count)
    for t, step in enumerate(steps):
        expected = session.run({**step, **past})
        for k in range(count):
            feeds = found.slice(k * length + t, k * length + t + 1)
            assert feeds["input_ids"].tolist() == [[ids[k, t]]]
            for name, value in past.items():
                assert_same(feeds[name], value[k : k + 1], rtol=1e-5, atol=1e-6)
        past = fed_back(expected)


def test_inspect_counts_heads_of_caches():
    heads = {g.name: g.units for g in inspect(decoder(), prompts(4), resize_io=PATTERNS).groups if "qkv" in g.name}
    assert heads == {"/qkv0": GROUPS, "/qkv1": GROUPS}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("past_key_value.*", "matches no input and no output"), ("input_ids", "what it matches holds no real numbers")],
)
def test_patterns_that_change_nothing_are_refused(pattern: str, message: str):
    with pytest.raises(UsageError, match=message):
        inspect(decoder(), prompts(4), resize_io=(pattern,))


def test_caches_that_data_leave_out_are_empty():
    """Fails where a mask is made up too, or the caches of a first run hold anything."""
    with pytest.raises(CalibrationError, match="no data for input 'attention_mask'"):
        inspect(decoder(), {"input_ids": prompts(4)["input_ids"]})
    given = {**prompts(4), **empty(4)}
    del given["past_key_values.1.value"]
    assert inspect(decoder(), given).groups == inspect(decoder(), prompts(4)).groups


def test_a_cache_of_a_model_that_runs_with_nothing_is_missed_with_the_reason():
    """Fails where what onnxruntime has against the model (a kernel that this provider lacks, say) is not told."""
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 17]>
    g (int64[n, t] ids, float[n, p, 4] past) => (float[n, p, 4] y, int64[3, 5] z)
    <int64[2] shape = {3, 5}> { y = Relu(past)  z = Reshape(ids, shape) }""")
    with pytest.raises(CalibrationError, match=r"no data for input 'past': the model wants .*: onnxruntime cannot run"):
        inspect(model, {"ids": np.ones((4, 7), np.int64)})


def test_caches_of_a_window_have_its_rows():
    """Fails where such a cache is emptied, or rows that hold nothing are compared or have to be finite."""
    model = decoder(window=WINDOW)
    inspected = inspect(model, prompts(4), resize_io=PATTERNS)
    assert {g.name: g.units for g in inspected.groups if "qkv" in g.name} == {"/qkv0": GROUPS, "/qkv1": GROUPS}
    assert {g.name for g in inspect(model).groups} >= {"/qkv0", "/qkv1"}
    found = prune(model, None, prompts(24, length=2), config=PruneConfig(uniform=0.5, refit="none", method="magnitude"))
    assert found.report.output_error is not None
    example = {**prompts(2), **empty(2, window=WINDOW)}
    rows = {v["past_key_values.0.key"].shape[2] for v in together(example, model, Runner(model), more=True)}
    assert min(rows) >= WINDOW
    assert len(rows) > 1


def test_other_sizes_add_up():
    """Fails where new and earlier positions only change apart, which the model never takes."""
    model, example = decoder(), {**prompts(2), **empty(2)}
    runs = Runner(model)

    def sizes(feeds: dict[str, Array]) -> tuple[int, ...]:
        past = feeds["past_key_values.0.key"]
        return (*feeds["input_ids"].shape, past.shape[2], feeds["attention_mask"].shape[1], past.shape[3])

    found = {sizes(v) for v in resized(example, model, runs) if runs(v)}
    assert found == {(3, 6, 0, 6, 16), (2, 12, 0, 12, 16)}
    for batch, new, past, whole, size in map(sizes, together(example, model, runs, more=True)):
        assert (whole, size) == (new + past, 16)
        assert batch == 1 or new == 1 or past == 0
    assert any(past for _, _, past, _, _ in map(sizes, together(example, model, runs)))
