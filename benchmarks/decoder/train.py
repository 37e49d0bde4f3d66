"""The decoder trained, and what the comparisons need of it, as files of one folder."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.decoder.network import Decoder, Sizes, export, initialised, loss_of
from benchmarks.decoder.texts import Ints, sequences, sources, stream, tokenizer_of

_RATE, _LEAST, _WARM = 4e-3, 0.05, 0.05
_DECAY, _BETAS, _NORM = 0.1, (0.9, 0.95), 1.0
_TOLD = 50


@dataclass(frozen=True)
class Schedule:
    """Steps of AdamW, samples per step."""

    steps: int = 1200
    batch: int = 16


def trained(rows: Ints, sizes: Sizes, schedule: Schedule) -> Decoder:
    """A network trained on these sequences (N, T), in random order, as often as the steps need them."""
    network = initialised(sizes)
    matrices = [p for p in network.parameters() if p.dim() > 1]
    gains = [p for p in network.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": _DECAY}, {"params": gains, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, betas=_BETAS)
    rng, order, start = np.random.default_rng(0), np.zeros(0, np.int64), time.perf_counter()
    for step in range(schedule.steps):
        if len(order) < schedule.batch:
            order = rng.permutation(len(rows))
        chosen, order = order[: schedule.batch], order[schedule.batch :]
        for group in adam.param_groups:
            group["lr"] = _rate(step / schedule.steps)
        loss = loss_of(network, torch.as_tensor(rows[chosen]))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), _NORM)
        adam.step()
        if step % _TOLD == 0 or step == schedule.steps - 1:
            print(f"step {step}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    return network.eval()


def _rate(share: float) -> float:
    """Up in a line, and down in half a cosine, by the share of the steps that are done."""
    if share < _WARM:
        return _RATE * (share + 1e-3) / _WARM
    down = (1 + math.cos(math.pi * (share - _WARM) / (1 - _WARM))) / 2
    return _RATE * (_LEAST + (1 - _LEAST) * down)


def make(
    folder: Path,
    sizes: Sizes | None = None,
    schedule: Schedule | None = None,
    texts: tuple[Sequence[str], Sequence[str]] | None = None,
) -> None:
    """Train, and write model.onnx, weights.pt, tokenizer.json, and the tokens learnt and held out, into the folder."""
    sizes, schedule = sizes or Sizes(), schedule or Schedule()
    learnt, held = sources() if texts is None else texts
    tokenizer = tokenizer_of(learnt, sizes.vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    tokens = {"learnt": stream(learnt, tokenizer), "held": stream(held, tokenizer)}
    print(f"{len(tokens['learnt'])} tokens to learn from, {len(tokens['held'])} held out", flush=True)
    network = trained(sequences(tokens["learnt"], len(tokens["learnt"]), seed=0), sizes, schedule)
    np.savez(folder / "tokens.npz", **tokens)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.save({"sizes": vars(sizes), "state": network.state_dict()}, folder / "weights.pt")
    export(network, folder / "model.onnx")


def stored(folder: Path) -> Decoder:
    """The network of a folder that `make` wrote."""
    found = torch.load(folder / "weights.pt", weights_only=True)
    network = Decoder(Sizes(**found["sizes"]))
    network.load_state_dict(found["state"])
    return network.eval()
