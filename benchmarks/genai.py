"""Models of onnxruntime-genai's builder, cut with their caches: what can go, and what the runtime generates then.

    python -m benchmarks.genai [--output docs/reach.md]

Random models of the families that it builds, each cut by `prune --ratio RATIO` with nothing fitted: heads, inner width
and stream, each by a share of its own; onnxruntime-genai generates by the result, and by the masked original. It needs
transformers, torch, and onnxruntime-genai by `pip install --no-deps onnxruntime-genai`, as a second build of
onnxruntime breaks the first.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.page import put
from onnxprune import PruneConfig, prune
from onnxprune.channels.describe import Description
from onnxprune.graph import bodies, external
from onnxprune.numerics.arrays import Array
from onnxprune.process import spill
from onnxprune.stages.couple import describe_loaded, trace
from onnxprune.stages.load import load
from onnxprune.verification.oracle import masked_model

RATIO = 0.3
VOCABULARY, LENGTH, SAMPLES, TOKENS = 512, 16, 48, 24
HEADS, GROUPS, SIZE, LAYERS = 8, 4, 16, 2
WINDOW, EXPERTS = 8, 4
LOWEST = -1e30
# What the layers behind the attention are called: mlp or moe. Their last ones make the stream, for which others speak.
INNER = "*/m[lo][pe]/*"
PROMPT = (5, 17, 101, 33, 250, 8)
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    # The builder takes a layer with as many outputs as there are tokens for the last: twice this is no vocabulary.
    "intermediate_size": 320,
    "num_hidden_layers": LAYERS,
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
    resize_io=("past*", "present*"),
    ratio_of=(f"{INNER}=0.2", "*/attn/qkv_proj/MatMul*=0.5", "*/attn/o_proj/MatMul*=0.25"),
)
# The builder's half precision for the CPU takes no second step in onnxruntime itself; that for CUDA runs there, with
# norms of queries and keys in front of the attention: inside it they have kernels on CUDA alone. With an accuracy level
# of 1 the kernels of packed weights multiply in float32, as the masked original does.
PRECISIONS: dict[str, tuple[str, ...]] = {
    "float32": ("-p", "fp32", "-e", "cpu"),
    "float16": ("-p", "fp16", "-e", "cuda", "--extra_options", "fuse_qk_norm_gqa=false"),
    "4 bits": ("-p", "int4", "-e", "cpu", "--extra_options", "accuracy_level=1"),
}


@dataclass(frozen=True)
class Family:
    """A family of models of transformers: the names of its classes, what differs from the sizes of all, its builder."""

    name: str
    more: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    builder: tuple[str, ...] = ("-m", "onnxruntime_genai.models.builder")
    precisions: tuple[str, ...] = tuple(PRECISIONS)

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return int(self.more.get("num_key_value_heads", GROUPS))


_WINDOWED = {"head_dim": SIZE, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_LONG = {
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 128,
    "rope_scaling": {
        "type": "longrope",
        "rope_type": "longrope",
        "short_factor": [1.0] * (SIZE // 2),
        "long_factor": [2.0] * (SIZE // 2),
        "rope_theta": 10000.0,
    },
}
_EXPERTS = {"num_experts": EXPERTS, "num_local_experts": EXPERTS, "num_experts_per_tok": 2}
FAMILIES: dict[str, Family] = {
    "Llama": Family("Llama"),
    "Qwen2": Family("Qwen2"),
    "Qwen3": Family("Qwen3", {"head_dim": SIZE}),
    "Phi": Family("Phi", {"num_key_value_heads": HEADS, "partial_rotary_factor": 1.0}),
    "Phi-3": Family("Phi3", {"original_max_position_embeddings": 128, "sliding_window": None}),
    "Phi-3, long": Family("Phi3", _LONG),
    "Gemma": Family("Gemma", {"head_dim": SIZE}),
    "Gemma 2": Family("Gemma2", {**_WINDOWED, "query_pre_attn_scalar": 24}),
    "Gemma 3": Family(
        "Gemma3",
        {**_WINDOWED, "query_pre_attn_scalar": 24},
        "Gemma3Text",
        (str(Path(__file__).with_name("gemma3_builder.py")),),
    ),
    "Mistral": Family("Mistral"),
    "Granite": Family(
        "Granite",
        {
            "embedding_multiplier": 2.0,
            "attention_multiplier": 0.3,
            "logits_scaling": 3.0,
            "residual_multiplier": 0.5,
        },
    ),
    "Granite hybrid": Family(
        "GraniteMoeHybrid",
        {
            "shared_intermediate_size": 320,
            "num_local_experts": 0,
            "layer_types": ["attention"] * LAYERS,
            "position_embedding_type": "rope",
        },
    ),
    "Nemotron": Family("Nemotron", {"head_dim": 2 * SIZE}),
    "OLMo": Family("Olmo"),
    "SmolLM3": Family("SmolLM3"),
    "ERNIE 4.5": Family("Ernie4_5", {"head_dim": SIZE}),
    "HunYuan": Family("HunYuanDenseV1", {"head_dim": SIZE}),
    # Four bits are read out of published files alone.
    "gpt-oss": Family("GptOss", {**_WINDOWED, **_EXPERTS}, precisions=("float32", "float16")),
    "LFM2": Family("Lfm2", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "LFM2, experts": Family(
        "Lfm2Moe",
        {**_EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1, "moe_intermediate_size": 64},
    ),
}


@dataclass(frozen=True, eq=False)
class Compared:
    """A cut model: what could go, in the whole and without tables that no channel carries, and what is generated.

    inner: units behind the attention before and after (whole blocks of packed weights), each pair once.
    """

    before: Description
    inner: tuple[tuple[int, int], ...]
    parameters: tuple[int, int]
    own: dict[str, Any]
    generated: list[int]
    masked: list[int]

    @property
    def share(self) -> float:
        """Of the parameters that stand for channels or words: angles of positions do not."""
        whole, fixed = self.parameters
        return self.before.share * whole / (whole - fixed)


def built(family: Family, precision: str, folder: Path) -> Path:
    """A random model of this family as the builder writes it."""
    torch, transformers, tokenizers = map(importlib.import_module, ("torch", "transformers", "tokenizers"))
    torch.manual_seed(0)
    config = getattr(transformers, f"{family.config or family.name}Config")(**{**_SIZES, **family.more})
    network = getattr(transformers, f"{family.name}ForCausalLM")(config)
    for parameter, values in network.named_parameters():
        if values.dim() > 1:
            torch.nn.init.normal_(values, std=0.02 if "embed" in parameter else 0.2)
    source = folder / "source"
    network.save_pretrained(source)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w1").save_pretrained(source)
    command = [sys.executable, *family.builder, "-i", source, "-o", folder / "model"]
    how = ["-c", folder / "cache", *PRECISIONS[precision]]
    subprocess.run([*command, *how], check=True, capture_output=True)
    settings = folder / "model" / "genai_config.json"
    document = json.loads(settings.read_text())
    document["model"]["decoder"]["session_options"]["provider_options"] = []
    settings.write_text(json.dumps(document))
    return folder / "model" / "model.onnx"


def data(model: Path, tokens: Sequence[int] = range(2, VOCABULARY)) -> dict[str, Array]:
    """Random prompts of these tokens, with what the model reads of them; caches that are left out are empty."""
    ids = np.random.default_rng(0).choice(np.array(tokens), (SAMPLES, LENGTH))
    every = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    every["position_ids"] = np.broadcast_to(np.arange(LENGTH), ids.shape)
    read = {v.name for v in onnx.load(model, load_external_data=False).graph.input}
    return {k: v for k, v in every.items() if k in read}


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


def choosing_among(model: onnx.ModelProto, tokens: Sequence[int]) -> None:
    """Have a model give no other token a chance; any, where none are listed."""
    if not tokens:
        return
    graph = model.graph
    listed = np.isin(np.arange(VOCABULARY), tokens)
    graph.initializer.extend(
        [numpy_helper.from_array(listed, "listed"), numpy_helper.from_array(np.array(LOWEST, np.float32), "lowest")]
    )
    for node in graph.node:
        node.output[:] = ["every_logit" if o == "logits" else o for o in node.output]
    graph.node.append(helper.make_node("Where", ["listed", "every_logit", "lowest"], ["logits"]))


def compared(family: Family, precision: str, folder: Path, options: PruneConfig = SETTINGS) -> Compared:
    """Cut a model of the family, and let the runtime generate by the result and by the masked original.

    Where the options list tokens, the masked original has the rows of all, and chooses among those.
    """
    source = built(family, precision, folder)
    result, masked = folder / "result", folder / "masked"
    result.mkdir()
    masked.mkdir()
    prompts = data(source, options.keep_tokens or range(2, VOCABULARY))
    found = prune(source, result / "small.onnx", prompts, config=options)
    own = json.loads((result / "genai_config.json").read_text())["model"]["decoder"]
    with spill.spilling():
        loaded = load(source, prompts, found.plan.settings().with_options(keep_tokens=()))
        before, channels = describe_loaded(loaded, options), trace(loaded, options)
        stored = [t for g in (loaded.original.graph, *bodies.every_body(loaded.original.graph)) for t in g.initializer]
        stored += [a.t for n in bodies.every_node(loaded.original.graph) for a in n.attribute if a.name == "value"]
        tables = sum(int(np.prod(t.dims)) for t in stored if t.name.startswith(("cos_cache", "sin_cache")))
        n = loaded.normalised
        oracle = masked_model(n.proto, channels, channels.keep_classes(found.plan.masks(channels)), n.types)
        for v in oracle.graph.input:  # see `runtime.faults.without_sizes_of_pasts`
            for d in v.type.tensor_type.shape.dim[2:3] if v.name.startswith("past") else ():
                d.ClearField("dim_param")  # a state of a fixed size keeps it
        choosing_among(oracle, options.keep_tokens)
        onnx.save(external.embedded(oracle), masked / "model.onnx")
    for file in source.parent.glob("*.json"):
        (masked / file.name).write_bytes(file.read_bytes())
    inner = {g.units: None for g in found.report.groups if fnmatchcase(g.name, INNER) and not g.mixing}
    return Compared(before, tuple(inner), (before.parameters, tables), own, generated(result), generated(masked))


def row(name: str, precision: str, c: Compared) -> str:
    """A line of the table."""
    same = sum(a == b for a, b in zip(c.generated, c.masked, strict=True))
    groups = FAMILIES[name].groups
    cells = [name, precision, *(f"{x:.4f}" for x in (c.before.share, c.share, c.before.share_of_macs))]
    cells += [str(len(c.before.groups)), f"{groups} → {c.own['num_key_value_heads']}"]
    cells += [f"{HEADS} → {c.own['num_attention_heads']}", ", ".join(f"{a} → {b}" for a, b in c.inner)]
    cells += [f"128 → {c.own['hidden_size']}", f"{same} of {len(c.masked)}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table, or write it into a document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="a markdown file whose table is replaced")
    parser.add_argument("--only", nargs="*", choices=FAMILIES, metavar="NAME", help="these families alone")
    parser.add_argument("--numbers", nargs="*", choices=PRECISIONS, default=PRECISIONS, help="of these kinds alone")
    head = ("model", "numbers", "parameters", "without angles", "MACs", "groups", "heads of keys", "heads")
    head += ("inner units", "stream", "tokens as masked")
    args = parser.parse_args()
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    rows = ((n, p) for p in args.numbers for n in args.only or FAMILIES if p in FAMILIES[n].precisions)
    for name, precision in rows:
        with tempfile.TemporaryDirectory() as folder:
            c = compared(FAMILIES[name], precision, Path(folder))
        lines.append(row(name, precision, c))
        print(lines[-1], flush=True)
    if args.output is not None:
        put(args.output, "table", "genai", "\n".join(lines))


if __name__ == "__main__":
    main()
