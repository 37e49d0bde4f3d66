"""Models of onnxruntime-genai's builder, cut with their caches: what can go, and what the runtime generates then.

    python -m benchmarks.genai [--output docs/reach.md]

Random models of the families that it builds, each cut by `prune --ratio RATIO` with nothing fitted, half of the heads
among it; onnxruntime-genai generates by the result, and by the masked original. It needs transformers, torch, and
onnxruntime-genai by `pip install --no-deps onnxruntime-genai`, as a second build of onnxruntime breaks the first.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.page import put
from onnxprune import PruneConfig, prune
from onnxprune.channels.describe import Description
from onnxprune.graph import external, spill
from onnxprune.numerics.arrays import Array
from onnxprune.stages.couple import describe_loaded, trace
from onnxprune.stages.load import load
from onnxprune.verification.oracle import masked_model

RATIO = 0.3
VOCABULARY, LENGTH, SAMPLES, TOKENS = 512, 16, 48, 24
HEADS, GROUPS, SIZE = 8, 4, 16
PROMPT = (5, 17, 101, 33, 250, 8)
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
SETTINGS = PruneConfig(
    ratio=RATIO,
    refit="none",
    fast=True,
    resize_io=("past_key_values.*", "present.*"),
    ratio_of=("*/attn/qkv_proj/MatMul=0.5",),
)


@dataclass(frozen=True)
class Family:
    """A family of models of transformers: its class, what differs from the sizes of all, the builder's precision.

    The builder's half precision for the CPU takes no second step in onnxruntime itself; that for CUDA runs there.
    """

    name: str
    more: dict[str, Any]
    precision: str = "fp32"
    provider: str = "cpu"

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return int(self.more.get("num_key_value_heads", GROUPS))


FAMILIES: dict[str, Family] = {
    "Llama": Family("Llama", {}),
    "Llama, float16": Family("Llama", {}, "fp16", "cuda"),
    "Qwen2": Family("Qwen2", {}),
    "Qwen3": Family("Qwen3", {"head_dim": SIZE}),
    "Phi": Family("Phi", {"num_key_value_heads": HEADS, "partial_rotary_factor": 1.0}),
    "Gemma": Family("Gemma", {"head_dim": SIZE}),
    "Mistral": Family("Mistral", {}),
}


@dataclass(frozen=True, eq=False)
class Compared:
    """A cut model: what could go, in the whole and without tables that no channel carries, and what is generated."""

    before: Description
    parameters: tuple[int, int]
    own: dict[str, Any]
    generated: list[int]
    masked: list[int]

    @property
    def share(self) -> float:
        """Of the parameters that stand for channels or words: angles of positions do not."""
        whole, fixed = self.parameters
        return self.before.share * whole / (whole - fixed)


def built(family: Family, folder: Path) -> Path:
    """A random model of this family as the builder writes it."""
    torch, transformers, tokenizers = map(importlib.import_module, ("torch", "transformers", "tokenizers"))
    torch.manual_seed(0)
    config = getattr(transformers, f"{family.name}Config")(**{**_SIZES, **family.more})
    network = getattr(transformers, f"{family.name}ForCausalLM")(config)
    for parameter, values in network.named_parameters():
        if values.dim() > 1:
            torch.nn.init.normal_(values, std=0.02 if "embed" in parameter else 0.2)
    source = folder / "source"
    network.save_pretrained(source)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w1").save_pretrained(source)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", folder / "model"]
    how = ["-p", family.precision, "-e", family.provider, "-c", folder / "cache"]
    subprocess.run([*command, *how], check=True, capture_output=True)
    settings = folder / "model" / "genai_config.json"
    document = json.loads(settings.read_text())
    document["model"]["decoder"]["session_options"]["provider_options"] = []
    settings.write_text(json.dumps(document))
    return folder / "model" / "model.onnx"


def data() -> dict[str, Array]:
    """Random prompts; caches that are left out are empty."""
    ids = np.random.default_rng(0).integers(2, VOCABULARY, (SAMPLES, LENGTH))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def generated(folder: Path) -> list[int]:
    """What onnxruntime-genai makes of the prompt, the likeliest token each time."""
    genai = importlib.import_module("onnxruntime_genai")
    model = genai.Model(str(folder))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=len(PROMPT) + TOKENS, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(np.array([PROMPT], np.int32))
    for _ in range(TOKENS):
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)][len(PROMPT) :]


def compared(family: Family, folder: Path, options: PruneConfig = SETTINGS) -> Compared:
    """Cut a model of the family, and let the runtime generate by the result and by the masked original."""
    source = built(family, folder)
    result, masked = folder / "result", folder / "masked"
    result.mkdir()
    masked.mkdir()
    found = prune(source, result / "small.onnx", data(), config=options)
    own = json.loads((result / "genai_config.json").read_text())["model"]["decoder"]
    with spill.spilling():
        loaded = load(source, data(), found.plan.settings())
        before, channels = describe_loaded(loaded, options), trace(loaded, options)
        tables = sum(int(np.prod(t.dims)) for t in loaded.original.graph.initializer if t.name.endswith("_cache"))
        n = loaded.normalised
        oracle = masked_model(n.proto, channels, channels.keep_classes(found.plan.masks(channels)), n.types)
        for v in oracle.graph.input:  # see `runtime.faults.without_sizes_of_pasts`
            for d in v.type.tensor_type.shape.dim[2:3] if v.name.startswith("past") else ():
                d.Clear()
        onnx.save(external.embedded(oracle), masked / "model.onnx")
    for file in source.parent.glob("*.json"):
        (masked / file.name).write_bytes(file.read_bytes())
    return Compared(before, (before.parameters, tables), own, generated(result), generated(masked))


def main() -> None:
    """Print the table, or write it into a document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="a markdown file whose table is replaced")
    args = parser.parse_args()
    head = ("model", "parameters", "without angles", "MACs", "groups", "heads of keys", "heads", "tokens as masked")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, family in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            c = compared(family, Path(folder))
        same = sum(a == b for a, b in zip(c.generated, c.masked, strict=True))
        cells = [name, *(f"{x:.4f}" for x in (c.before.share, c.share, c.before.share_of_macs)), len(c.before.groups)]
        cells += [f"{family.groups} → {c.own['num_key_value_heads']}", f"{HEADS} → {c.own['num_attention_heads']}"]
        lines.append("| " + " | ".join(map(str, [*cells, f"{same} of {TOKENS}"])) + " |")
        print(lines[-1], flush=True)
    if args.output is not None:
        put(args.output, "table", "genai", "\n".join(lines))


if __name__ == "__main__":
    main()
