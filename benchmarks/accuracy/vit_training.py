"""The vision transformer itself: patches of 2 × 2 pixels and a class token in four blocks, each behind its norms."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.accuracy.kits import Array


@dataclass(frozen=True)
class Sizes:
    """image, patch: pixels along a side. heads, blocks: how many. width, inner: of stream and feed-forward layers."""

    image: int = 8
    patch: int = 2
    width: int = 96
    heads: int = 6
    inner: int = 384
    blocks: int = 4
    classes: int = 10


@dataclass(frozen=True)
class Schedule:
    """Passes over the images, images per step, the highest rate of AdamW, its decay, smoothing of the labels."""

    epochs: int = 120
    batch: int = 64
    rate: float = 2e-3
    decay: float = 0.05
    smoothing: float = 0.1


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a norm and added to the stream."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.norm1, self.norm2 = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.qkv, self.proj = nn.Linear(sizes.width, 3 * sizes.width), nn.Linear(sizes.width, sizes.width)
        self.fc1, self.fc2 = nn.Linear(sizes.width, sizes.inner), nn.Linear(sizes.inner, sizes.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T, width) → the same."""
        n, t, width = x.shape
        size = width // self.heads
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(2, 3) * size**-0.5).softmax(-1)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(n, t, width))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class Vit(nn.Module):
    """Images (N, 1, image, image) → scores (N, classes), read from the class token."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        patches = (sizes.image // sizes.patch) ** 2
        self.patches = nn.Conv2d(1, sizes.width, sizes.patch, sizes.patch)
        self.token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.places = nn.Parameter(0.02 * torch.randn(1, patches + 1, sizes.width))
        self.blocks = nn.Sequential(*(Block(sizes) for _ in range(sizes.blocks)))
        self.norm, self.head = nn.LayerNorm(sizes.width), nn.Linear(sizes.width, sizes.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


def trained(images: Array, labels: Array, sizes: Sizes | None = None, schedule: Schedule | None = None) -> Vit:
    """A network trained on these images (N, 1, H, W) from a fixed seed, each moved by a pixel at random."""
    sizes, schedule = sizes or Sizes(), schedule or Schedule()
    torch.manual_seed(0)
    network = Vit(sizes).train()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    adam = torch.optim.AdamW(network.parameters(), lr=schedule.rate, weight_decay=schedule.decay)
    steps = schedule.epochs * math.ceil(len(x) / schedule.batch)
    rate = torch.optim.lr_scheduler.OneCycleLR(adam, schedule.rate, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng(0)
    for _ in range(schedule.epochs):
        for some in torch.from_numpy(rng.permutation(len(x))).split(schedule.batch):
            down, right = rng.integers(-1, 2, size=2)
            moved = _moved(x[some], int(down), int(right))
            loss = functional.cross_entropy(network(moved), y[some], label_smoothing=schedule.smoothing)
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            adam.step()
            rate.step()
    return network.eval()


def _moved(x: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """By so many pixels, at most one; what comes in repeats the edge."""
    height, width = x.shape[2:]
    padded = functional.pad(x, (1, 1, 1, 1), mode="replicate")
    return padded[:, :, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def export(network: Vit, path: Path) -> None:
    """Write it as ONNX with a free batch."""
    part = path.with_suffix(".part")
    size = network.patches.kernel_size[0] * math.isqrt(network.places.shape[1] - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network,
            (torch.zeros(2, 1, size, size),),
            str(part),
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    part.replace(path)
