"""Models of onnxruntime-genai's builder, cut with their caches: the runtime generates what the masked original gives.

Without onnxruntime-genai and transformers a graph of the same form stands in: `tests/decoder.py`, `test_resize_io.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from benchmarks.genai import FAMILIES, HEADS, SETTINGS, built, compared, generated
from onnxprune.surgery.mixtures import mixtures_of, without_experts
from onnxprune.verification.unchosen import never_chosen

for library in ("onnxruntime_genai", "transformers", "tokenizers", "torch"):
    pytest.importorskip(library, reason=f"{library} is not installed")


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        *((name, "float32") for name in FAMILIES),
        ("Llama", "float16"),
        ("Llama", "4 bits"),
        ("Gemma 2", "4 bits"),
        # Half precision takes the original as far from itself as its normal form is from it.
        ("gpt-oss", "float16"),
    ],
)
def test_generated_tokens_are_those_of_the_masked_original(name: str, numbers: str, tmp_path: Path):
    """Fails where the runtime does not load the result, or a head, a unit or a settings file is another one."""
    family = FAMILIES[name]
    c = compared(family, numbers, tmp_path)
    kept = c.own["num_key_value_heads"]
    assert kept == family.groups // 2 or (numbers == "4 bits" and kept < family.groups)
    assert c.own["num_attention_heads"] == HEADS * kept // family.groups
    assert c.own["hidden_size"] == 96
    assert c.inner
    assert all(after < before for before, after in c.inner)
    assert c.before.share_of_macs == pytest.approx(1.0)
    assert c.share > 0.98
    assert len(set(c.generated)) > 1
    assert c.generated == c.masked


@pytest.mark.parametrize(("name", "layers"), [("Llama", 3), ("Qwen3", 3), ("gpt-oss", 4)])
def test_a_model_without_a_layer_is_loaded_and_generates_as_the_masked_original(name: str, layers: int, tmp_path: Path):
    """Fails where the runtime misses a cache: it asks for those of as many layers as the settings say, from 0 on."""
    more = {**FAMILIES[name].more, "num_hidden_layers": layers}
    if "layer_types" in more:
        more["layer_types"] = more["layer_types"] * (layers // 2)
    family = replace(FAMILIES[name], more=more)
    c = compared(family, "float32", tmp_path, SETTINGS.with_options(drop_layers=("1",)))
    assert (c.own["num_hidden_layers"], c.own["num_key_value_heads"]) == (layers - 1, family.groups // 2)
    assert len(set(c.generated)) > 1
    assert c.generated == c.masked


@pytest.mark.parametrize(("name", "numbers"), [("Llama", "float32"), ("Gemma 2", "4 bits")])
def test_a_model_without_rows_of_tokens_generates_as_the_masked_original_among_the_others(
    name: str, numbers: str, tmp_path: Path
):
    """Fails where a token is read as another one, a logit has another one's place, or one that went is chosen.

    Embedding and head of the second share codes in blocks.
    """
    listed = (*range(40), *range(100, 260))
    c = compared(FAMILIES[name], numbers, tmp_path, SETTINGS.with_options(keep_tokens=listed))
    stored = onnx.load(tmp_path / "result" / "small.onnx", load_external_data=False).graph.initializer
    sizes = {t.name: tuple(t.dims) for t in stored}
    if numbers == "float32":
        assert sizes["model.embed_tokens.weight"] == sizes["lm_head.MatMul.weight"][::-1] == (len(listed), 96)
    else:
        assert sizes["lm_head.MatMul.weight_Q4"][0] == len(listed)
    assert len(set(c.generated)) > 1
    assert c.generated == c.masked
    assert set(c.generated) <= set(listed)


@pytest.mark.parametrize("name", ["gpt-oss", "LFM2, experts"])
def test_a_model_without_experts_generates_as_the_one_that_never_chooses_them(name: str, tmp_path: Path):
    """Fails where the runtime does not load fewer experts, or the builder's routers choose others than they did."""
    source = built(FAMILIES[name], "float32", tmp_path)
    proto = onnx.load(source)
    mixtures = mixtures_of(proto)
    kept = {m.name: tuple(e for e in range(m.count) if e != i) for i, m in enumerate(mixtures)}
    masks = {place: (m.count, kept[m.name]) for m in mixtures for place in m.compared}
    given = {}
    for what, model in (("without", without_experts(proto, kept)), ("never", never_chosen(proto, masks, {}))):
        (tmp_path / what).mkdir()
        onnx.save(model, tmp_path / what / "model.onnx")
        for file in source.parent.glob("*.json"):
            (tmp_path / what / file.name).write_bytes(file.read_bytes())
        given[what] = generated(tmp_path / what)
    assert all(m.width for m in mixtures)  # columns of the routers went
    assert len(set(given["never"])) > 1
    assert given["without"] == given["never"] != generated(source.parent)
