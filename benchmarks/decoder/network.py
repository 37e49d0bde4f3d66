"""The decoder: RMS norms, rotary positions, grouped heads and a gated feed-forward layer, as in Llama.

Every layer has its own number of heads and inner units, and may have biases behind both blocks, so that a cut network
is one of these too.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.decoder.texts import LENGTH, VOCABULARY, Ints

_EPSILON, _BASE = 1e-5, 10000.0


@dataclass(frozen=True)
class Sizes:
    """What a network is built with.

    groups, inner: of each layer, its heads of keys and values, and its inner units. queries: heads that read one head
    of keys. size: of a head. biased: whether both blocks of each layer end in a bias.
    """

    groups: tuple[int, ...] = (4,) * 4
    inner: tuple[int, ...] = (512,) * 4
    width: int = 192
    queries: int = 2
    size: int = 24
    vocabulary: int = VOCABULARY
    biased: bool = False


class Norm(nn.Module):
    """x over the root of its mean square."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, width) → the same."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + _EPSILON) * self.weight


class Attention(nn.Module):
    """Causal attention, each head of keys and values read by `queries` heads."""

    def __init__(self, sizes: Sizes, groups: int) -> None:
        super().__init__()
        self.queries, self.size = sizes.queries, sizes.size
        wide, narrow = groups * sizes.queries * sizes.size, groups * sizes.size
        self.q_proj = nn.Linear(sizes.width, wide, bias=False)
        self.k_proj = nn.Linear(sizes.width, narrow, bias=False)
        self.v_proj = nn.Linear(sizes.width, narrow, bias=False)
        self.o_proj = nn.Linear(wide, sizes.width, bias=sizes.biased)

    def attended(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, T, width) → what the output projection reads, (B, T, heads · size)."""
        batch, length = x.shape[:2]
        q, k, v = (
            f(x).view(batch, length, -1, self.size).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (h * cos + self.turned(h) * sin for h in (q, k))
        k, v = self.repeated(k), self.repeated(v)
        weights = (q @ k.transpose(2, 3) * self.size**-0.5 + mask).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(batch, length, -1)

    def repeated(self, x: torch.Tensor) -> torch.Tensor:
        """Each head `queries` times, written as exporters of language models write it."""
        batch, heads, length, size = x.shape
        x = x[:, :, None].expand(batch, heads, self.queries, length, size)
        return x.reshape(batch, heads * self.queries, length, size)

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        """The other half of each pair of positions, for rotations."""
        half = self.size // 2
        return torch.cat((-x[..., half:], x[..., :half]), dim=-1)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, T, width) → the same."""
        return self.o_proj(self.attended(x, cos, sin, mask))


class Gated(nn.Module):
    """The feed-forward layer: down(silu(gate x) · up x)."""

    def __init__(self, sizes: Sizes, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.width, inner, bias=False)
        self.up_proj = nn.Linear(sizes.width, inner, bias=False)
        self.down_proj = nn.Linear(inner, sizes.width, bias=sizes.biased)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, width) → the same."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and the feed-forward layer, each behind a norm and added to the stream."""

    def __init__(self, sizes: Sizes, groups: int, inner: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(sizes.width), Norm(sizes.width)
        self.self_attn, self.mlp = Attention(sizes, groups), Gated(sizes, inner)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, T, width) → the same."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Token ids (B, T) → logits of each next token (B, T, vocabulary)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleList(map(Layer, [sizes] * len(sizes.groups), sizes.groups, sizes.inner))
        self.norm = Norm(sizes.width)
        self.lm_head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        frequencies = _BASE ** (-torch.arange(0, sizes.size, 2) / sizes.size)
        angles = torch.outer(torch.arange(4 * LENGTH), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """See the class."""
        length = input_ids.shape[1]
        places = torch.arange(length)
        mask = torch.where(places[:, None] >= places, 0.0, -1e9)
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, self.cos[:length], self.sin[:length], mask)
        return self.lm_head(self.norm(x))


def initialised(sizes: Sizes, seed: int = 0) -> Decoder:
    """A network to train."""
    torch.manual_seed(seed)
    network = Decoder(sizes)
    for name, values in network.named_parameters():
        if values.dim() > 1:
            ends = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(values, std=0.02 / ((2 * len(sizes.groups)) ** 0.5 if ends else 1.0))
    return network


def loss_of(network: Decoder, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of each next token, ids (B, T)."""
    logits = network(ids[:, :-1])
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))


def with_units(
    network: Decoder,
    heads: Sequence[Ints],
    units: Sequence[Ints],
    biases: Sequence[Sequence[torch.Tensor]] | None = None,
) -> Decoder:
    """The network with these heads of keys (and the queries that read them) and inner units of each layer alone.

    biases: of each layer, what is added behind its attention and behind its feed-forward layer.
    """
    sizes = replace(
        network.sizes, groups=tuple(map(len, heads)), inner=tuple(map(len, units)), biased=biases is not None
    )
    cut = Decoder(sizes)
    state = dict(network.state_dict())
    for k, (h, u) in enumerate(zip(heads, units, strict=True)):
        keys = positions(h, sizes.size)
        queries = positions(h, sizes.size * sizes.queries)
        rows = {
            "q_proj": queries,
            "k_proj": keys,
            "v_proj": keys,
            "gate_proj": torch.as_tensor(u),
            "up_proj": torch.as_tensor(u),
        }
        columns = {"o_proj": queries, "down_proj": torch.as_tensor(u)}
        for name in [n for n in state if n.startswith(f"layers.{k}.")]:
            layer = name.split(".")[-2]
            if layer in rows:
                state[name] = state[name][rows[layer]]
            elif layer in columns:
                state[name] = state[name][:, columns[layer]]
        if biases is not None:
            state[f"layers.{k}.self_attn.o_proj.bias"], state[f"layers.{k}.mlp.down_proj.bias"] = biases[k]
    cut.load_state_dict(state)
    return cut


def positions(blocks: Ints, size: int) -> torch.Tensor:
    """All positions of these blocks of `size`."""
    return torch.as_tensor((blocks[:, None] * size + np.arange(size)).ravel())


def export(network: Decoder, path: Path) -> None:
    """Write it as ONNX, batch and length free."""
    part = path.with_suffix(".part")
    axes = {"input_ids": {0: "batch", 1: "length"}, "logits": {0: "batch", 1: "length"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network.eval(),
            (torch.arange(2 * 7).reshape(2, 7),),
            str(part),
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    part.replace(path)
