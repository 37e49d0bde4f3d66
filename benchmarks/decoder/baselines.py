"""What goes by the norm of weights, and by FLAP, on the network's own definition.

Units are heads of keys and values, with the queries that read them, and inner units; the stream stays. A unit's row in
the two tables is a layer.

- *magnitude*: the L2 norm of all weights of the unit.
- *flap* (An et al. 2023, arXiv 2312.11983): the variance of each entry that the last projection of a block reads, times
  the squared norm of the weights that read it; of a head the mean over its entries. What goes is replaced by its mean:
  a bias behind the block.

*uniform* takes the same share of every layer; *adaptive* standardizes the scores over each layer's units and ranks all
(AL-AM in FLAP).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.decoder.network import Decoder, Layer, positions, with_units
from benchmarks.decoder.texts import Ints

Doubles = NDArray[np.float64]
_BATCH = 64


@dataclass(frozen=True, eq=False)
class Seen:
    """Mean and variance of each entry that a projection reads, over all positions of all samples."""

    mean: torch.Tensor
    variance: torch.Tensor


def seen(network: Decoder, ids: Ints) -> list[tuple[Seen, Seen]]:
    """Of each layer, what the output projection of the attention and the last of the feed-forward layer read."""
    ends = [end for layer in network.layers for end in _ends(layer)]
    sums = {end: [torch.zeros(end.in_features, dtype=torch.float64) for _ in range(2)] for end in ends}

    def note(end: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].double().flatten(0, -2)
        sums[end][0] += x.sum(0)
        sums[end][1] += x.square().sum(0)

    hooks = [end.register_forward_pre_hook(note) for end in ends]
    with torch.no_grad():
        for k in range(0, len(ids), _BATCH):
            network(torch.as_tensor(ids[k : k + _BATCH]))
    for hook in hooks:
        hook.remove()
    found = []
    for end in ends:
        mean, square = (s / ids.size for s in sums[end])
        found.append(Seen(mean, (square - mean.square()) * ids.size / (ids.size - 1)))
    return list(zip(found[::2], found[1::2], strict=True))


def scores(network: Decoder, method: str, statistics: Sequence[tuple[Seen, Seen]]) -> list[tuple[Doubles, Doubles]]:
    """Of each layer the scores of its heads and of its inner units; what has the least goes first."""
    if method == "flap":
        return [
            (fluctuation(layer.self_attn.o_proj, heads, _block(layer)), fluctuation(layer.mlp.down_proj, units, 1))
            for layer, (heads, units) in zip(network.layers, statistics, strict=True)
        ]
    return [norms(layer) for layer in network.layers]


def fluctuation(end: nn.Linear, reads: Seen, block: int) -> Doubles:
    """FLAP's measure of what a projection reads, the mean over each `block` of entries."""
    entries = reads.variance * end.weight.detach().double().square().sum(0)
    means: Doubles = entries.view(-1, block).mean(1).numpy()
    return means


def norms(layer: Layer) -> tuple[Doubles, Doubles]:
    """The L2 norm of all weights of each head and of each inner unit."""
    attention, gated = layer.self_attn, layer.mlp
    size = attention.size

    def squares(rows: torch.Tensor, block: int) -> torch.Tensor:
        return rows.detach().double().square().sum(1).view(-1, block).sum(1)

    heads = squares(attention.q_proj.weight, _block(layer)) + squares(attention.o_proj.weight.T, _block(layer))
    heads += squares(attention.k_proj.weight, size) + squares(attention.v_proj.weight, size)
    units = sum(squares(w, 1) for w in (gated.gate_proj.weight, gated.up_proj.weight, gated.down_proj.weight.T))
    return heads.sqrt().numpy(), units.sqrt().numpy()


def macs_of_units(network: Decoder, length: int) -> tuple[int, int]:
    """Multiply-accumulates of a head with its queries, and of an inner unit, for a sample of this length."""
    s = network.sizes
    head = 2 * s.width * s.size * (s.queries + 1) + 2 * length * s.size * s.queries
    return head * length, 3 * s.width * length


def chosen(
    ranked: Sequence[tuple[Doubles, Doubles]], costs: tuple[int, int], wanted: float, *, adaptive: bool
) -> tuple[list[Ints], list[Ints]]:
    """(heads, inner units) of each layer that stay, where at most `wanted` MACs go; one of each always stays.

    A unit that would take more than what is left to take is passed over, as a head may.
    """
    rows = [row for pair in ranked for row in pair]
    places = [(k, i) for k, row in enumerate(rows) for i in range(len(row))]
    values = np.concatenate(
        [_standardized(r) if adaptive else (np.argsort(np.argsort(r)) + 0.5) / len(r) for r in rows]
    )
    keep = [np.ones(len(row), bool) for row in rows]
    gone = 0
    for place in np.argsort(values, kind="stable"):
        k, i = places[place]
        if keep[k].sum() > 1 and gone + costs[k % 2] <= wanted:
            keep[k][i] = False
            gone += costs[k % 2]
    stay = [np.flatnonzero(mask) for mask in keep]
    return stay[::2], stay[1::2]


def pruned(network: Decoder, ids: Ints, method: str, wanted: float, *, adaptive: bool = True) -> Decoder:
    """The network without `wanted` MACs of a sample such as these (N, T), by this method."""
    statistics = seen(network, ids) if method == "flap" else []
    ranked = scores(network, method, statistics)
    heads, units = chosen(ranked, macs_of_units(network, ids.shape[1]), wanted, adaptive=adaptive)
    if method != "flap":
        return with_units(network, heads, units)
    biases = []
    for layer, reads, kept in zip(network.layers, statistics, zip(heads, units, strict=True), strict=True):
        blocks = (_block(layer), 1)
        biases.append(tuple(map(_bias, _ends(layer), reads, kept, blocks)))
    return with_units(network, heads, units, biases)


def _bias(end: nn.Linear, reads: Seen, kept: Ints, block: int) -> torch.Tensor:
    """What the projection makes of the mean of all that goes."""
    mean = reads.mean.clone()
    mean[positions(kept, block)] = 0.0
    bias: torch.Tensor = (end.weight.detach().double() @ mean).float()
    return bias


def _standardized(row: Doubles) -> Doubles:
    spread = row.std(ddof=1) if len(row) > 1 else 0.0
    found: Doubles = (row - row.mean()) / (spread if spread > 0 else 1.0)
    return found


def _ends(layer: Layer) -> tuple[nn.Linear, nn.Linear]:
    return layer.self_attn.o_proj, layer.mlp.down_proj


def _block(layer: Layer) -> int:
    """Entries of what a head of keys and values gives the output projection, by all its queries."""
    return int(layer.self_attn.size * layer.self_attn.queries)
