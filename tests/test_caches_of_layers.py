"""Layers that go with their caches: fewer inputs and outputs, numbered anew, and a model that decodes without them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import PruneConfig, inspect, prune
from onnxprune.benchmark.measure import bench
from onnxprune.benchmark.own_sizes import fitted
from onnxprune.errors import BudgetUnreachable, CheckFailed, ModelError, UsageError
from onnxprune.evaluation import evaluate
from onnxprune.graph import bodies
from onnxprune.graph.cache_layers import cache_layers
from onnxprune.measures.figures import percent
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Session
from onnxprune.surgery import caches
from onnxprune.surgery.caches import without_caches
from onnxprune.targets.settings_files import read
from tests.compare import assert_same
from tests.decoder import decoder, empty, fed_back, prompts

PATTERNS = ("past_key_values.*", "present.*")
SETTINGS = PruneConfig(ratio=0.01, refit="none", fast=True, round_to=1, resize_io=PATTERNS)


def silenced(model: onnx.ModelProto, layer: int) -> onnx.ModelProto:
    """The model where a layer adds nothing to the stream: an oracle that this project does not make."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for t in result.graph.initializer:
        if t.name in (f"o{layer}.weight", f"down{layer}.weight"):
            t.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(t)), t.name))
    return result


def sized_by_the_past(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its mask made as long as the cache of the first layer and the tokens say, as exporters do."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = [
        helper.make_node("Shape", ["past_key_values.0.key"], ["past_sizes"]),
        helper.make_node("Gather", ["past_sizes", "two"], ["past_length"], axis=0),
        helper.make_node("Shape", ["input_ids"], ["new_sizes"]),
        helper.make_node("Gather", ["new_sizes", "place"], ["new_length"], axis=0),
        helper.make_node("Add", ["past_length", "new_length"], ["length"]),
        helper.make_node("Unsqueeze", ["length", "zero"], ["length_axis"]),
        helper.make_node("Slice", ["attention_mask", "zero", "length_axis", "one"], ["seen"]),
    ]
    kept = [*result.graph.node]
    for n in kept:
        n.input[:] = ["seen" if i == "attention_mask" else i for i in n.input]
    del result.graph.node[:]
    result.graph.node.extend([*nodes, *kept])
    numbers = {"two": np.array(2, np.int64), "zero": np.array([0], np.int64)}
    result.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in numbers.items())
    return result


@pytest.mark.parametrize(
    ("made", "layer"),
    [(decoder, 0), (decoder, 1), (lambda: sized_by_the_past(decoder()), 0)],
    ids=["first", "last", "sizes of the past"],
)
def test_the_model_decodes_without_a_layer_and_its_caches(layer: int, made: Any):
    """Fails where a cache is another layer's, or what took the sizes of one that went reads nothing."""
    found = prune(made(), None, prompts(32), config=SETTINGS.with_options(drop_layers=(str(layer),)))
    assert found.model is not None
    inputs, outputs = ([v.name for v in values] for values in (found.model.graph.input, found.model.graph.output))
    own = ["past_key_values.0.key", "past_key_values.0.value"]
    assert (inputs, outputs) == (["input_ids", "attention_mask", *own], ["logits", "present.0.key", "present.0.value"])
    assert any("went with their layers" in note for note in found.report.notes)
    small, oracle = Session(found.model), Session(silenced(made(), layer))

    def as_named(values: dict[str, Array]) -> dict[str, Array]:
        other = f".{1 - layer}."
        return {k.replace(other, ".0."): v for k, v in values.items() if k.count(".") < 2 or other in k}

    feeds = {**prompts(2), **empty(2)}
    expected, got = oracle.run(feeds), small.run(as_named(feeds))
    for step in range(3):
        assert got.keys() == as_named(expected).keys()
        for name, value in as_named(expected).items():
            assert_same(got[name], value, rtol=1e-4, atol=1e-5)
        new = {
            "input_ids": prompts(2, 1, seed=step + 1)["input_ids"],
            "attention_mask": np.ones((2, 7 + step), np.int64),
        }
        past = fed_back(expected)
        expected, got = oracle.run({**new, **past}), small.run({**new, **as_named(past)})


def test_steps_that_are_fed_back_know_of_caches_that_went():
    ids = prompts(24, 1, seed=3)["input_ids"]
    steps = [{"input_ids": ids[t : t + 1], "attention_mask": np.ones((1, t + 1), np.int64)} for t in range(24)]
    settings = SETTINGS.with_options(drop_layers=("0",), state=("present.*=past_key_values.*",))
    found = prune(decoder(), None, steps, config=settings)
    assert found.model is not None
    assert len(found.model.graph.input) == 4


@pytest.mark.parametrize("side", ["past_key_values", "present"])
def test_caches_that_get_the_names_of_others_are_refused(side: str, monkeypatch: pytest.MonkeyPatch):
    """Fails where keys and values of a layer change their names, by which a runtime feeds one for the other.

    What is compared goes by the same names, so that values do not tell.
    """

    def wrong(names: Sequence[str], gone: Collection[str]) -> dict[str, str]:
        found = numbered_anew(names, gone)
        swapped = {"key": "value", "value": "key"}
        return {
            k: ".".join((*v.split(".")[:2], swapped[v.split(".")[2]])) if side in k else v for k, v in found.items()
        }

    numbered_anew = caches._numbered_anew
    monkeypatch.setattr(caches, "_numbered_anew", wrong)
    with pytest.raises(CheckFailed, match=r"would be continued by .*; nothing was written"):
        prune(decoder(), None, prompts(16), config=SETTINGS.with_options(drop_layers=("0",)))


def test_caches_that_may_not_change_keep_their_layers():
    settings = SETTINGS.with_options(resize_io=(), drop_layers=("auto",))
    with pytest.raises(UsageError, match="caches need --resize-io too"):
        prune(decoder(), None, prompts(16), config=settings)
    assert not inspect(decoder(), prompts(4)).layers
    assert [x.number for x in inspect(decoder(), prompts(4), resize_io=PATTERNS).layers] == [0, 1]


def test_one_layer_with_a_cache_stays():
    """Fails where nothing is left of which a runtime could tell how long the past is."""
    for ratio in (0.01, 0.0):
        with pytest.raises(BudgetUnreachable, match=r"--drop-layers cannot all go.*leave one out"):
            prune(decoder(), None, prompts(16), config=SETTINGS.with_options(ratio=ratio, drop_layers=("0,1",)))


def test_settings_files_have_a_layer_less(tmp_path: Path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    onnx.save(decoder(), source / "model.onnx")
    own = {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 32}
    window = {"window_size": 8, "layers": [1]}
    genai = {"model": {"decoder": {**own, "head_size": 16, "filename": "model.onnx", "sliding_window": window}}}
    (source / "genai_config.json").write_text(json.dumps(genai))
    lists = {"layer_types": ["full_attention", "sliding_attention"], "eos_token_id": [1, 2, 3], "max_window_layers": 2}
    (source / "config.json").write_text(json.dumps({**own, "head_dim": 16, **lists}))
    prune(source / "model.onnx", out / "small.onnx", prompts(24), config=SETTINGS.with_options(drop_layers=("0",)))
    decoder_now = json.loads((out / "genai_config.json").read_text())["model"]["decoder"]
    assert decoder_now["num_hidden_layers"] == 1
    assert decoder_now["num_key_value_heads"] == 4
    assert decoder_now["sliding_window"]["layers"] == [0]
    other = json.loads((out / "config.json").read_text())
    assert (other["num_hidden_layers"], other["layer_types"]) == (1, ["sliding_attention"])
    assert (other["eos_token_id"], other["max_window_layers"]) == ([1, 2, 3], 1)
    assert read(out / "config.json").numbers.num_key_value_heads == 4


def test_eval_does_not_take_the_cache_of_one_layer_for_that_of_another():
    found = prune(decoder(), None, prompts(24), config=SETTINGS.with_options(drop_layers=("0",)))
    data = prompts(16, seed=5)
    assert found.model is not None
    judged = evaluate(found.model, data, against=decoder(), task="sequence")
    outputs = [Session(m).run({**data, **empty(16)})["logits"] for m in (silenced(decoder(), 0), decoder())]
    spread = ((outputs[1] - outputs[1].mean(axis=0)) ** 2).sum()
    assert judged.output_error == pytest.approx(((outputs[0] - outputs[1]) ** 2).sum() / spread, rel=1e-3)


def named(*names: str) -> onnx.ModelProto:
    """A model that gives each input, by name, as an output with "out_" before it."""
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in names]
    given = [helper.make_tensor_value_info(f"out_{n}", TensorProto.FLOAT, [2]) for n in names]
    nodes = [helper.make_node("Relu", [n], [f"out_{n}"]) for n in names]
    return helper.make_model(helper.make_graph(nodes, "g", ports, given), opset_imports=[helper.make_opsetid("", 21)])


def test_only_the_number_of_the_layer_is_counted_anew():
    model = named("v2_past.0.key", "v2_past.1.key", "v2_past.2.key", "other.2")
    _, gone = without_caches(model, ("v2_past.1.key", "out_v2_past.1.key"))
    assert gone.layers == (1,)
    assert gone.names == {"v2_past.2.key": "v2_past.1.key", "out_v2_past.2.key": "out_v2_past.1.key"}
    assert without_caches(model, ())[0] is model


@pytest.mark.parametrize(
    ("names", "gone", "message"),
    [
        (("past.0", "past.2"), ("past.0", "out_past.0"), "their numbers have gaps"),
        (("past.0", "past.1"), ("past.0",), "something else reads that"),
    ],
)
def test_what_no_runtime_could_read_is_refused(names: tuple[str, ...], gone: tuple[str, ...], message: str):
    with pytest.raises(CheckFailed, match=message):
        without_caches(named(*names), gone)


ALTERNATING: dict[str, Any] = {"window": 4, "layers": 4, "windowed": (0, 2)}


def without(layer: int) -> onnx.ModelProto:
    """A decoder of four layers, windows and none in turns, that lost one."""
    found = prune(decoder(**ALTERNATING), None, prompts(24), config=SETTINGS.with_options(drop_layers=(str(layer),)))
    assert found.model is not None
    assert len(found.model.graph.input) == 8
    return found.model


@cache
def without_second() -> onnx.ModelProto:
    return without(1)


def unnamed(model: onnx.ModelProto, prefix: str) -> onnx.ModelProto:
    """The model with nodes and attended tensors that nothing tells apart by name."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for n in result.graph.node:
        n.name = ""
    attended = [n.output[0] for n in result.graph.node if n.op_type == "GroupQueryAttention"]
    bodies.rename(result.graph.node, {name: f"{prefix}{k}" for k, name in enumerate(attended)})
    return result


def error_of(outputs: dict[str, Array], reference: dict[str, Array]) -> float:
    y, y0 = outputs["logits"], reference["logits"]
    return float(((y - y0) ** 2).sum() / ((y0 - y0.mean(axis=0)) ** 2).sum())


@pytest.mark.parametrize("names", [True, False], ids=["by names", "by kinds"])
def test_eval_feeds_each_layer_its_kind_of_cache(names: bool):
    """Fails where the cache of a layer without a window is fed to the one that has its number now."""
    small, original = without_second(), decoder(**ALTERNATING)
    data = prompts(16, seed=5)
    judged = evaluate(small if names else unnamed(small, "found"), data, against=original, task="sequence")
    feeds = {**data, **empty(16, **ALTERNATING)}
    expected = [Session(m).run(feeds) for m in (silenced(original, 1), original)]
    assert judged.output_error == pytest.approx(error_of(*expected), rel=1e-3)
    assert any("1 is 2 there, 2 is 3 there" in n for n in judged.notes)


def test_eval_feeds_caches_that_hold_something_to_the_layers_that_they_are_of():
    """Fails where a layer reads the past of another one, or data with a past are refused."""
    original = decoder(**ALTERNATING)
    data = prompts(16, seed=5)
    past = fed_back(Session(original).run({**data, **empty(16, **ALTERNATING)}))
    new = {**prompts(16, 1, seed=6), "attention_mask": np.ones((16, 7), np.int64), **past}
    outputs = [Session(m).run(new) for m in (silenced(original, 1), original)]
    judged = evaluate(without_second(), new, against=original)
    assert judged.output_error == pytest.approx(error_of(*outputs), rel=1e-3)
    # By hand: the small model's layers 1 and 2 are the original's 2 and 3.
    of = {
        f"past_key_values.{k}.{what}": past[f"past_key_values.{m}.{what}"]
        for k, m in enumerate((0, 2, 3))
        for what in ("key", "value")
    }
    by_hand = Session(without_second()).run({k: v for k, v in {**new, **of}.items() if ".3." not in k})
    assert judged.output_error == pytest.approx(error_of(by_hand, outputs[1]), rel=1e-5)


def test_eval_of_steps_feeds_a_model_without_a_layer_its_own_states():
    """Fails where outputs of the layers that are left are missing, or those of another layer come back."""
    original = decoder(**ALTERNATING)
    ids = prompts(12, 1, seed=3)["input_ids"]
    steps = [{"input_ids": ids[t : t + 1], "attention_mask": np.ones((1, t + 1), np.int64)} for t in range(12)]
    judged = evaluate(without_second(), steps, against=original, state=["present.*=past_key_values.*"])
    values = []
    for model in (silenced(original, 1), original):
        session, state = Session(model), empty(1, **ALTERNATING)
        given = []
        for step in steps:
            outputs = session.run({**step, **state})
            state = fed_back(outputs)
            given.append(outputs["logits"])
        values.append({"logits": np.concatenate(given)})
    assert f"each model fed its own states: {percent(error_of(*values))} (" in " ".join(judged.notes)


@pytest.mark.parametrize("layer", [1, 2])
def test_caches_that_go_by_their_numbers_are_told(layer: int):
    """Fails where nothing says so: of a model whose nodes were numbered anew it may be wrong."""
    original = decoder(layers=3)
    found = prune(original, None, prompts(24), config=SETTINGS.with_options(drop_layers=(str(layer),)))
    data = prompts(4, seed=5)
    past = fed_back(Session(original).run({**data, **empty(4, layers=3)}))
    new = {**prompts(4, 1, seed=6), "attention_mask": np.ones((4, 7), np.int64), **past}
    notes = [" ".join(evaluate(found.model, x, against=original).notes) for x in (new, data)]
    told = "caches go by their numbers: the layers that went are taken for those of past_key_values.2.key"
    assert [told in n for n in notes] == [layer == 2, False]


def test_caches_of_layers_that_nothing_tells_apart_are_not_shared():
    """Where neither names nor kinds say which layer went, a past could be another layer's."""
    original = decoder(layers=3)
    found = prune(original, None, prompts(24), config=SETTINGS.with_options(drop_layers=("1",)))
    assert found.model is not None
    data = prompts(4, seed=5)
    past = fed_back(Session(original).run({**data, **empty(4, layers=3)}))
    new = {**prompts(4, 1, seed=6), "attention_mask": np.ones((4, 7), np.int64), **past}
    assert evaluate(found.model, new, against=original).output_error is not None
    nameless = unnamed(found.model, "found")
    with pytest.raises(ModelError, match=r"'past_key_values.2.key' is one of a layer that went"):
        evaluate(nameless, new, against=original)
    assert evaluate(nameless, data, against=original).output_error is not None


def test_bench_feeds_each_layer_its_kind_of_cache():
    """Fails where either order of the models feeds a window of no rows, or a past of one."""
    original, small = decoder(**ALTERNATING), without_second()
    for pair in ((original, small), (small, original)):
        found = bench(*pair, data=prompts(2), batch=2, runs=6, warmup=0)
        assert {k.split(".")[1]: v[2] for k, v in found.inputs.items() if k.endswith(".key")} == {
            "0": 4,
            "1": 0,
            "2": 4,
            "3": 0,
        }
    feeds = {**prompts(2), **{k: np.full_like(v, k.count("2")) for k, v in empty(2, **ALTERNATING).items()}}
    fed = fitted(feeds, small, original)
    assert fed["past_key_values.1.key"] is feeds["past_key_values.2.key"]
    assert fed["past_key_values.2.value"] is feeds["past_key_values.3.value"]


def test_a_model_has_the_layers_of_the_one_it_was_cut_from():
    """By names of nodes where these fit; else by kinds, certain where one choice alone is left."""
    original = decoder(**ALTERNATING)
    for layer in range(4):
        left = [k for k in range(4) if k != layer]
        small = without(layer)
        moved = {n: m for n, m in enumerate(left) if n != m}
        found = cache_layers(small, original)
        assert (found.layers, found.certain) == (moved, True)
        sides = ("past_key_values.{}.key", "past_key_values.{}.value", "present.{}.key", "present.{}.value")
        assert found.names == {side.format(n): side.format(m) for n, m in moved.items() for side in sides}
        by_kinds = cache_layers(unnamed(small, "found"), original)
        assert (by_kinds.layers, by_kinds.certain) == (moved, True)
    assert cache_layers(original, original).names == {}
    assert cache_layers(unnamed(without(1), "attended"), unnamed(original, "attended")).layers == {1: 2, 2: 3}
    assert not cache_layers(decoder(layers=5), original).names


def test_models_that_lost_layers_of_different_kinds_are_not_fed_the_same():
    """Fails where onnxruntime says so, of a window that has no rows."""
    one, other = without(0), without_second()
    for pair in ((one, other), (other, one)):
        with pytest.raises(
            ModelError, match=r"'past_key_values.0.key' keeps the rows of a window in one of the models"
        ):
            evaluate(pair[0], prompts(4, seed=5), against=pair[1], task="sequence")
        with pytest.raises(ModelError, match="compare each with the model that it was cut from"):
            bench(*pair, data=prompts(2), batch=2, runs=6, warmup=0)
    assert cache_layers(without(0), without(2)).unlike == "past_key_values.0.key"
    assert not cache_layers(without_second(), decoder(**ALTERNATING)).unlike


@pytest.mark.parametrize("gone", [((0,), (3,)), ((0, 1), (1, 2))], ids=["other numbers", "the last by its number"])
def test_the_past_of_one_layer_is_not_that_of_another(gone: tuple[tuple[int, ...], tuple[int, ...]]):
    """Fails where two cuts of one model that lost different layers of a kind are fed one past, or caches of different
    layers are compared."""
    original = decoder(layers=4)
    lists = [",".join(map(str, g)) for g in gone]
    cuts = [prune(original, None, prompts(24), config=SETTINGS.with_options(drop_layers=(g,))).model for g in lists]
    one, other = (m for m in cuts if m is not None)
    data = prompts(8, seed=5)
    judged = evaluate(one, data, against=other, task="sequence")
    logits = [Session(m).run({**data, **empty(8, layers=4 - len(gone[0]))}) for m in (one, other)]
    assert [o.output for o in judged.by_output] == ["logits"]
    assert judged.output_error == pytest.approx(error_of(*logits), rel=1e-3)
    assert any("lost different layers" in n and "present.0.key" in n for n in judged.notes)
    past = fed_back(Session(other).run({**data, **empty(8, layers=4 - len(gone[0]))}))
    new = {**prompts(8, 1, seed=6), "attention_mask": np.ones((8, 7), np.int64), **past}
    with pytest.raises(
        ModelError, match=r"lost different layers, so that .*: leave caches out of the data, or compare"
    ):
        evaluate(one, new, against=other)
    assert evaluate(one, new, against=one).output_error == 0.0


def test_steps_of_a_model_with_fewer_heads_are_not_those_of_the_original():
    """Fails where the advice is to take out of the data what the option puts there."""
    small = prune(decoder(), None, prompts(24), config=SETTINGS.with_options(ratio=0.4)).model
    assert small is not None
    steps = [
        {"input_ids": np.ones((1, 1), np.int64), "attention_mask": np.ones((1, t + 1), np.int64)} for t in range(3)
    ]
    with pytest.raises(ModelError, match=r"smaller than the original's.*: leave out --state"):
        evaluate(small, steps, against=decoder(), state=["present.*=past_key_values.*"])


def test_eval_of_fewer_heads_leaves_caches_of_a_window_out_of_the_data():
    """Fails where the zeros that stand for a window without a position are taken for a past that heads would share."""
    original, data = decoder(**ALTERNATING), prompts(16, seed=5)
    small = prune(original, None, prompts(24), config=SETTINGS.with_options(ratio=0.3)).model
    assert small is not None
    sizes = {v.name: v.type.tensor_type.shape.dim[1].dim_value for v in small.graph.input if v.name[0] == "p"}
    assert min(sizes["past_key_values.0.key"], sizes["past_key_values.2.key"]) < 4
    feeds = {**data, **empty(16, **ALTERNATING)}
    own = {k: v[:, : sizes.get(k, v.shape[1])] for k, v in feeds.items()}
    expected = error_of(Session(small).run(own), Session(original).run(feeds))
    judged = evaluate(small, data, against=original, task="sequence")
    logits = next(o for o in judged.by_output if o.output == "logits")
    assert logits.error == pytest.approx(expected, rel=1e-3)
