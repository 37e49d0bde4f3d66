"""`--keep-tokens` from the options to the written file: the result is the masked original on listed tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import PruneConfig, prune
from onnxprune.channels import build
from onnxprune.cli.program import main
from onnxprune.data.token_lists import tokens_of
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.evaluation import evaluate
from onnxprune.graph import protobuf
from onnxprune.normalise import normalise
from onnxprune.pipeline import inspect
from onnxprune.runtime.session import Session
from onnxprune.verification.oracle import masked_model
from tests import decoder, stand_ins
from tests.compare import assert_same
from tests.vocabularies import TOKENS, model

LISTED = (7, *range(0, 7), *range(8, 16))
OPTIONS: dict[str, Any] = {"ratio": 0.3, "round_to": 1, "fast": True, "keep_tokens": LISTED}


def data(count: int = 24, tokens: int = 16) -> dict[str, np.ndarray[Any, Any]]:
    return {"input_ids": np.random.default_rng(1).integers(0, tokens, (count, 5))}


def test_the_slice_is_the_masked_original_on_listed_tokens(tmp_path: Path):
    """Fails where units of the narrow model are others than those of the original, or a logit loses its place."""
    proto = model(head="tied")
    result = prune(proto, None, data(), refit="none", **{**OPTIONS, "fast": False})
    feeds = data(3)
    n = normalise(proto, feeds)
    channels = build(protobuf.view(n.proto, n.shapes, n.known_values, n.binding, n.free))
    masks = result.plan.masks(channels)
    assert masks
    oracle = masked_model(n.proto, channels, channels.keep_classes(masks), n.types)
    expected, found = (Session(p).run(feeds)["logits"] for p in (oracle, result.model))
    assert found.shape == expected.shape
    assert_same(found[..., :16], expected[..., :16], rtol=1e-5, atol=1e-5)
    assert (found[..., 16:] == np.finfo(np.float32).min).all()


def test_the_report_counts_what_went_and_the_plan_replays(tmp_path: Path):
    """Fails where the rows are missing in the report's first column, or a replay has other rows."""
    path = tmp_path / "model.onnx"
    onnx.save(model(), path)
    first = prune(path, tmp_path / "a.onnx", data(), plan_file=tmp_path / "plan.json", **OPTIONS)
    again = prune(path, tmp_path / "b.onnx", data(), from_plan=tmp_path / "plan.json")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert first.plan.config["keep_tokens"] == LISTED == again.plan.settings().keep_tokens
    report = first.report
    assert report.before.parameters == protobuf.parameters(onnx.load(path))
    # Of each position the products of all tokens: 16 x 24 twice, and 16 x 64.
    assert report.before.macs == 5 * (2 * 16 * 24 + 16 * 64)
    assert any("--keep-tokens: 16 of 64 tokens stay" in note for note in report.notes)
    assert report.after.bytes == (tmp_path / "a.onnx").stat().st_size


def test_special_tokens_that_are_not_listed_are_a_warning(tmp_path: Path):
    """Fails where a model that would never end its texts is written without a word."""
    onnx.save(model(), tmp_path / "model.onnx")
    named = {"eos_token_id": [3, 20], "bos_token_id": 2, "pad_token_id": TOKENS - 1, "model": {"decoder": {}}}
    (tmp_path / "config.json").write_text(json.dumps({**named, "vocab_size": TOKENS, "sep_token_id": None}))
    found = prune(tmp_path / "model.onnx", None, data(), dry_run=True, **OPTIONS)
    [told] = [w for w in found.report.warnings if "--keep-tokens" in w]
    assert f"config.json beside the model names: eos_token_id 20, pad_token_id {TOKENS - 1}; the result" in told
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 3}))
    found = prune(tmp_path / "model.onnx", None, data(), dry_run=True, **OPTIONS)
    assert not [w for w in found.report.warnings if "--keep-tokens" in w]


def test_caches_of_a_window_that_lose_heads_beside_rows():
    """Fails where entries of a cache that nothing has come to hold are compared."""
    listed = (*range(1, 9), 0)
    given = {**decoder.prompts(24, 6), **decoder.empty(24, window=8)}
    given["input_ids"] = np.array(listed)[given["input_ids"] % len(listed)]
    options = {**OPTIONS, "keep_tokens": listed, "resize_io": ("past*", "present*")}
    found = prune(decoder.decoder(window=8), None, given, ratio_of=("/qkv*=0.5",), **options)
    assert any("inputs and outputs changed" in note for note in found.report.notes)
    assert any("--keep-tokens: 9 of 24 tokens stay" in note for note in found.report.notes)


def test_data_of_other_tokens_are_refused():
    with pytest.raises(CalibrationError, match=r"holds 4 tokens that --keep-tokens does not list \(16, 17, 18, 19; "):
        prune(model(), None, data(64, 20), dry_run=True, **OPTIONS)


def test_random_inputs_are_of_listed_tokens():
    assert prune(model(), None, None, samples=8, dry_run=True, **OPTIONS).report.dry_run


def test_what_it_cannot_do_is_refused():
    images = onnx.load("models/digits_resnet.onnx")
    with pytest.raises(UsageError, match=r"and here none does: leave it out"):
        prune(images, None, None, samples=4, dry_run=True, ratio=0.3, keep_tokens=(1,))
    with pytest.raises(UsageError, match=r"--resize-io matches 'logits'"):
        prune(model(), None, data(), dry_run=True, resize_io=("logits",), **OPTIONS)
    for ids in ((-1,), (True,), (0.5,), (1 << 40,)):
        with pytest.raises(UsageError, match=r"keep_tokens is"):
            PruneConfig(keep_tokens=ids)  # type: ignore[arg-type]
    assert PruneConfig(keep_tokens=np.array([3, 1])).keep_tokens == (3, 1)  # type: ignore[arg-type]


def test_where_nothing_is_saved_the_model_keeps_its_rows():
    result = prune(model(), None, data(), dry_run=True, **{**OPTIONS, "keep_tokens": tuple(range(TOKENS - 1))})
    assert any("all 64 tokens stay, as tables of new rows would take more" in note for note in result.report.notes)
    result = prune(model(), None, data(), dry_run=True, **{**OPTIONS, "keep_tokens": tuple(range(TOKENS))})
    assert any("all 64 tokens stay, as all of them are listed" in note for note in result.report.notes)
    # What was done is no advice.
    assert not any("list the tokens" in axis.remedy for axis in result.report.pinned)


def test_the_decoder_of_the_pages_has_rows_that_its_texts_do_not_need(tmp_path: Path):
    """Fails where the page on language models shows a command that does nothing."""
    given = tmp_path / "lm.onnx", tmp_path / "lm.npz"
    stand_ins.write("decoder", *map(str, given))
    tokens = tokens_of(given[1])
    result = prune(given[0], None, given[1], dry_run=True, **{**OPTIONS, "keep_tokens": tokens})
    assert any(f"{len(tokens)} of 64 tokens stay in the embedding" in note for note in result.report.notes)


def test_an_inspection_names_the_vocabulary():
    said = inspect(model(), data()).notes
    assert any("'table' and the logits 'logits' store 64 tokens in 8192 bytes" in note for note in said)
    assert not any("vocabulary" in note for note in inspect(onnx.load("models/digits_resnet.onnx")).notes)


def test_the_command_takes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where the option's file or its tokenizer is taken for something about the data."""
    onnx.save(model(), tmp_path / "model.onnx")
    np.savez(tmp_path / "calib.npz", **data())
    np.save(tmp_path / "ids.npy", np.array(LISTED))
    command = [str(tmp_path / "model.onnx"), "--ratio", "0.3", "--dry-run", "--round-to", "1"]
    command += ["--calib", str(tmp_path / "calib.npz"), "--keep-tokens"]
    assert main([*command, str(tmp_path / "ids.npy")]) == 0
    assert "16 of 64 tokens stay" in capsys.readouterr().out.replace("\n", " ")
    (tmp_path / "texts.txt").write_text("a b\n", encoding="utf-8")
    assert main([*command, str(tmp_path / "texts.txt")]) == 2
    assert "--tokenizer" in capsys.readouterr().err


def test_an_input_with_a_default_and_a_false_declaration_go_along():
    """Fails where the model with all tokens is another one than what is run: without such an input, or misdeclared."""
    proto = model()
    gain = onnx.helper.make_tensor_value_info("gain", onnx.TensorProto.FLOAT, [1])
    proto.graph.input.append(gain)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2.0], np.float32), "gain"))
    node = proto.graph.node[-1]
    node.output[0] = "plain"
    proto.graph.node.append(onnx.helper.make_node("Mul", ["plain", "gain"], ["logits"], name="/gained"))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    result = prune(proto, None, data(), **OPTIONS)
    assert result.report.checks["input_sizes_compared"] > 1
    feeds = data(3)
    whole, doubled = (
        Session(result.model).run({**feeds, **more})["logits"] for more in ({}, {"gain": np.ones(1, "f4")})
    )
    assert_same(whole[..., :16], 2 * doubled[..., :16], rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("element", [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16])
def test_it_is_judged_by_the_tokens_that_both_have(tmp_path: Path, element: int):
    """Fails where logits of tokens that went weigh in an error, a choice or a probability."""
    proto = model(element=element)
    result = prune(proto, None, data(64), test=data(40), max_error=0.05, **OPTIONS)
    found = evaluate(result.model, data(40), against=proto)
    assert found.output_error is not None
    assert found.output_error < 0.05
    scores = {s.name: s for s in found.scores}
    assert scores["token-agreement"].value > 0.9
    own, original = scores["perplexity"].value, scores["perplexity"].original
    assert own is not None
    assert original is not None
    # Of 16 tokens, by random weights: about 16, where the original has 64.
    assert own == pytest.approx(original, rel=0.05)
    assert 14 < own < 18
    assert any("left out of the original's too: 48 of 64 in 'logits'" in note for note in found.notes)
    assert not any("left out of" in note for note in evaluate(proto, data(8), against=proto).notes)
