"""Models of onnxruntime-genai's builder, cut with their caches: the runtime generates what the masked original gives.

Without onnxruntime-genai and transformers a graph of the same form stands in: `tests/decoder.py`, `test_resize_io.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import PruneConfig, prune
from onnxprune.graph import external, spill
from onnxprune.stages.couple import describe_loaded, trace
from onnxprune.stages.load import load
from onnxprune.verification.oracle import masked_model

genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

VOCABULARY, LENGTH, TOKENS = 512, 16, 24
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {}),
    "Llama in half precision": ("Llama", {}),
    "Qwen2": ("Qwen2", {}),
    "Qwen3": ("Qwen3", {"head_dim": 16}),
    "Phi": ("Phi", {"num_key_value_heads": 8, "partial_rotary_factor": 1.0}),
    "Phi3": ("Phi3", {"original_max_position_embeddings": 128, "sliding_window": None}),
    "Gemma": ("Gemma", {"head_dim": 16}),
    "Mistral": ("Mistral", {}),
}
SETTINGS = PruneConfig(
    ratio=0.3,
    refit="none",
    fast=True,
    resize_io=("past_key_values.*", "present.*"),
    ratio_of=("*/attn/qkv_proj/MatMul=0.5",),
)


def built(kind: str, folder: Path) -> Path:
    """A random model of this kind as the builder writes it."""
    import torch

    name, more = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **more})
    network = getattr(transformers, f"{name}ForCausalLM")(config)
    for parameter, values in network.named_parameters():
        if values.dim() > 1:
            torch.nn.init.normal_(values, std=0.02 if "embed" in parameter else 0.2)
    source = folder / "source"
    network.save_pretrained(source)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w1").save_pretrained(source)
    # That of the CPU in half precision runs no second step in onnxruntime itself.
    how = ("fp16", "cuda") if kind.endswith("half precision") else ("fp32", "cpu")
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", folder / "model"]
    subprocess.run([*command, "-p", how[0], "-e", how[1], "-c", folder / "cache"], check=True, capture_output=True)
    settings = folder / "model" / "genai_config.json"
    document = json.loads(settings.read_text())
    document["model"]["decoder"]["session_options"]["provider_options"] = []
    settings.write_text(json.dumps(document))
    return folder / "model" / "model.onnx"


def generated(folder: Path) -> list[int]:
    """What onnxruntime-genai makes of a prompt, the likeliest token each time."""
    model = genai.Model(str(folder))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=6 + TOKENS, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(np.array([[5, 17, 101, 33, 250, 8]], np.int32))
    for _ in range(TOKENS):
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]


@pytest.mark.parametrize("kind", KINDS)
def test_generated_tokens_are_those_of_the_masked_original(kind: str, tmp_path: Path):
    """Fails where the runtime does not load the result, or a head, a unit or a settings file is another one."""
    source = built(kind, tmp_path)
    ids = np.random.default_rng(0).integers(2, VOCABULARY, (48, LENGTH))
    data = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    result, masked = tmp_path / "result", tmp_path / "masked"
    result.mkdir()
    masked.mkdir()
    found = prune(source, result / "small.onnx", data, config=SETTINGS)
    own = json.loads((result / "genai_config.json").read_text())["model"]["decoder"]
    keys = int(KINDS[kind][1].get("num_key_value_heads", 4)) // 2
    assert (own["num_attention_heads"], own["num_key_value_heads"], own["head_size"]) == (4, keys, 16)
    with spill.spilling():
        loaded = load(source, data, found.plan.settings())
        assert describe_loaded(loaded, SETTINGS).share_of_macs == pytest.approx(1.0)
        channels = trace(loaded, SETTINGS)
        n = loaded.normalised
        oracle = masked_model(n.proto, channels, channels.keep_classes(found.plan.masks(channels)), n.types)
        for v in oracle.graph.input:  # see `runtime.faults.without_sizes_of_pasts`
            for d in v.type.tensor_type.shape.dim[2:3] if v.name.startswith("past") else ():
                d.Clear()
        onnx.save(external.embedded(oracle), masked / "model.onnx")
    for file in source.parent.glob("*.json"):
        (masked / file.name).write_bytes(file.read_bytes())
    tokens = generated(result)
    assert len(set(tokens[6:])) > 1
    assert tokens == generated(masked)
