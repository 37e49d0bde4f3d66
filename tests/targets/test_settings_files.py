"""Settings files beside a language model: read, and written anew for what was cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune import PruneConfig, prune, sweep
from onnxprune.errors import CheckFailed, InputError, UsageError
from onnxprune.targets.settings_files import Numbers, numbers_of, read
from tests.decoder import GROUPS, HEADS, INNER, LAYERS, SIZE, VOCABULARY, WIDTH, decoder, prompts

GENAI: dict[str, Any] = {
    "model": {
        "type": "llama",
        "vocab_size": VOCABULARY,
        "decoder": {
            "filename": "model.onnx",
            "head_size": SIZE,
            "hidden_size": WIDTH,
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": GROUPS,
        },
    },
    "search": {"max_length": 64},
}
TRANSFORMERS: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "vocab_size": VOCABULARY,
    "head_dim": SIZE,
    "torch_dtype": "float32",
}


def folder(path: Path) -> Path:
    """A model with both files beside it."""
    path.mkdir()
    onnx.save(decoder(), path / "model.onnx")
    (path / "genai_config.json").write_text(json.dumps(GENAI))
    (path / "config.json").write_text(json.dumps(TRANSFORMERS))
    return path / "model.onnx"


SETTINGS = PruneConfig(
    uniform=0.5,
    refit="none",
    resize_io=("past_key_values.*", "present.*"),
    method="magnitude",
    round_to=1,
)


def test_files_say_what_the_result_is(tmp_path: Path):
    """Fails where a number is that of the original, or anything else is lost."""
    source, out = folder(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    kept = {p: p.read_bytes() for p in source.parent.iterdir()}
    result = prune(source, out / "small.onnx", prompts(24), config=SETTINGS)
    genai, other = (json.loads((out / name).read_text()) for name in ("genai_config.json", "config.json"))
    decoder_of = GENAI["model"]["decoder"] | {
        "filename": "small.onnx",
        "hidden_size": WIDTH // 2,
        "num_attention_heads": HEADS // 2,
        "num_key_value_heads": GROUPS // 2,
    }
    assert genai == {**GENAI, "model": {**GENAI["model"], "decoder": decoder_of}}
    changed = {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2}
    assert other == {**TRANSFORMERS, **changed}
    assert {p: p.read_bytes() for p in source.parent.iterdir()} == kept
    assert "genai_config.json is written for the result" in result.report.notes


def test_each_model_of_a_sweep_has_files_of_its_own(tmp_path: Path):
    """Fails where files of one name are those of another ratio, or the folder of a model that was not made stays."""
    source, out = folder(tmp_path / "in"), tmp_path / "out"
    options = SETTINGS.with_options(uniform=None, fast=True)
    found = sweep(source, out, prompts(24), ratios=(0.2, 0.5, 0.99), config=options)
    assert sorted(p.name for p in out.iterdir()) == ["model-0.2", "model-0.5", "sweep.json", "sweep.md"]
    numbers: list[dict[str, int]] = []
    for point in found.points[:2]:
        path = out / f"model-{point.ratio:g}" / "model.onnx"
        assert point.output == str(path)
        [genai, other] = (json.loads(path.with_name(n).read_text()) for n in ("genai_config.json", "config.json"))
        own = genai["model"]["decoder"]
        model = onnx.load(path)
        caches = {v.type.tensor_type.shape.dim[1].dim_value for v in model.graph.input if v.name.startswith("past")}
        assert caches == {own["num_key_value_heads"]} == {other["num_key_value_heads"]}
        assert own["filename"] == "model.onnx"
        numbers.append(own)
    assert numbers[0] != numbers[1]
    assert "genai_config.json is written for the result" in found.notes
    with pytest.raises(UsageError, match=r"exists; use --overwrite"):
        sweep(source, out, prompts(24), ratios=(0.2,), config=options)


def test_heads_of_all_caches_stay_equally_many(tmp_path: Path):
    """Fails where a file knows one number of heads, and the layers get one each."""
    source, out = folder(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    ratio = SETTINGS.with_options(uniform=None, ratio=0.3, max_ratio=0.6)
    prune(source, out / "small.onnx", prompts(24), config=ratio, overwrite=True)
    nodes = [n for n in onnx.load(out / "small.onnx").graph.node if n.op_type == "GroupQueryAttention"]
    numbers = {tuple(a.i for a in n.attribute if a.name in ("num_heads", "kv_num_heads")) for n in nodes}
    assert len(numbers) == 1
    with pytest.raises(UsageError, match=r"genai_config.json exists; use --overwrite"):
        prune(source, out / "other.onnx", prompts(24), config=ratio)


def test_the_models_own_files_are_never_replaced(tmp_path: Path):
    source = folder(tmp_path / "in")
    with pytest.raises(UsageError, match="name a file in another folder"):
        prune(source, source.with_name("small.onnx"), prompts(24), config=SETTINGS, overwrite=True)
    prune(source, source.with_name("small.onnx"), prompts(24), config=SETTINGS.with_options(resize_io=()))
    assert json.loads((source.parent / "genai_config.json").read_text()) == GENAI


@pytest.mark.parametrize("text", ["{", "[]", '{"a": ' * 100_000, "\xff"], ids=["cut off", "a list", "deep", "bytes"])
def test_files_that_are_none_are_refused(tmp_path: Path, text: str):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="no settings file"):
        read(path)


@pytest.mark.parametrize(
    "document",
    [{}, {"model": {"decoder": 3}}, {"model": 1}, {"num_attention_heads": True, "hidden_size": "x"}],
    ids=str,
)
def test_odd_files_say_nothing(tmp_path: Path, document: dict[str, Any]):
    """Fails where what is no number is taken for one, or a file changes that has none."""
    for name in ("genai_config.json", "config.json"):
        (tmp_path / name).write_text(json.dumps(document))
        found = read(tmp_path / name)
        assert found.numbers == Numbers()
        assert json.loads(found.rewritten(found.numbers, "m.onnx")) == document


def with_widths(inner: tuple[int, int], heads: tuple[int, int] = (8, 8)) -> onnx.ModelProto:
    """Two layers of these inner widths and heads, with weights of one number."""
    weights = [
        helper.make_tensor(f"{name}{k}", TensorProto.FLOAT, shape, [0.0] * (shape[0] * shape[1]))
        for k in range(2)
        for name, shape in (("down", (inner[k], WIDTH)), ("gate", (WIDTH, inner[k])))
    ]
    nodes = [
        helper.make_node(
            "GroupQueryAttention", ["x"], [f"y{k}"], domain="com.microsoft", num_heads=heads[k], kv_num_heads=4
        )
        for k in range(2)
    ]
    return helper.make_model(helper.make_graph(nodes, "g", [], [], weights))


def test_what_one_number_cannot_say():
    """Fails where layers of different widths are called equally wide, or different heads pass."""
    old = Numbers(num_attention_heads=8, num_key_value_heads=4, hidden_size=WIDTH, intermediate_size=INNER)
    original = with_widths((INNER, INNER))
    new, said = numbers_of(old, original, with_widths((20, 30)), {})
    assert (new.intermediate_size, "20, 30" in said[0]) == (INNER, True)
    new, said = numbers_of(old, original, with_widths((20, 20)), {"past": (4, 2), "present": (4, 2)})
    assert (new.intermediate_size, new.num_key_value_heads, said) == (20, 2, ())
    with pytest.raises(CheckFailed, match="have 2, 4 key/value heads in their caches"):
        numbers_of(old, original, original, {"past": (4, 2), "present": (4, 4)})
    with pytest.raises(CheckFailed, match="have 4, 8 query heads"):
        numbers_of(old, original, with_widths((INNER, INNER), (4, 8)), {})
