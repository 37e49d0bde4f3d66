"""Fine-tuning a CIFAR ResNet from what onnxprune makes of it, and from magnitude pruning, by equally many steps.

    python -m benchmarks.fine_tuning ../shared/kit --depth 20 --steps 60 --seeds 2

Both start points go through `export-plan` and the loader of docs/how-to/pytorch.md into the same module: ours with its
refitted weights (without recovery), and its normalisations settled as that page does; the other with what the
original's largest channels have (`--method magnitude --refit none`), in widths by trial cuts too. Steps are made on the
kit's training images and their classes; top-1 is of its test images.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.accuracy.torch_models import module_of
from onnxprune import PruneConfig, export_plan, prune
from onnxprune.errors import OnnxPruneError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "pytorch.md"
STARTS = {
    "onnxprune": {"recover": 0},
    "magnitude": {"method": "magnitude", "refit": "none", "recover": 0},
}
_BATCH, _RATE = 64, 0.01


def loaders() -> tuple[Any, Any]:
    """The functions `narrow` and `settle` of the page."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    for name, end in (("narrow", "\nslim = "), ("settle", "\nsettle(")):
        text = next(b for b in blocks if f"def {name}(" in b)
        exec(text[: text.index(end)], names)
    return names["narrow"], names["settle"]


def images(kit: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs as the networks want them, and classes."""
    d = np.load(kit / "data" / f"cifar10_{split}.npz")
    mean, std = (d[k].reshape(1, 3, 1, 1) for k in ("mean", "std"))
    return torch.tensor(((d["x"] / 255.0 - mean) / std).astype(np.float32)), torch.tensor(d["y"])


def told_of_shortcuts(net: Any, plan: dict[str, Any]) -> None:
    """Shortcuts of a CIFAR ResNet pad with zero channels: as many as stay of these, in front and behind."""
    for path, block in net.named_modules():
        if hasattr(block, "pad") and block.stride != 1:
            kept = plan["kept"].get(f"{path}.bn2.weight", {}).get("0")
            if kept is not None:
                width = plan["shapes"][f"{path}.bn2.weight"][0]
                front, behind = sum(i < block.pad for i in kept), sum(i >= width - block.pad for i in kept)
                block.forward = shortcut(block, front, behind).__get__(block)


def shortcut(block: Any, front: int, behind: int) -> Any:
    """The block's forward pass with other numbers of zero channels."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, front, behind)))

    return forward


def top1(net: Any, x: torch.Tensor, y: torch.Tensor) -> float:
    """Percent."""
    net.eval()
    with torch.no_grad():
        answers = torch.cat([net(part).argmax(1) for part in x.split(100)])
    return 100 * float((answers == y).float().mean())


def trained(net: Any, x: torch.Tensor, y: torch.Tensor, steps: int, seed: int) -> Any:
    """So many steps of SGD with momentum, a cosine of the rate, and images flipped at random."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), _RATE, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    net.train()
    for _ in range(steps):
        chosen = torch.randint(len(x), (_BATCH,), generator=generator)
        flips = torch.rand(_BATCH, generator=generator) < 0.5
        batch = torch.where(flips[:, None, None, None], x[chosen].flip(3), x[chosen])
        loss = functional.cross_entropy(net(batch), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


def main() -> None:
    """One line per start and ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.7])
    parser.add_argument("--starts", nargs="+", default=[*STARTS], choices=[*STARTS])
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = options.kit / "models" / f"cifar10_resnet{options.depth}_legacy_bn.onnx"
    x, y = images(options.kit, "calib")
    test = images(options.kit, "test")
    calibration = {"input": x[: options.samples].numpy()}
    narrow, settle = loaders()
    print(f"original: {top1(module_of(model, x.numpy()), *test):.1f}", flush=True)
    for ratio in options.ratios:
        for name in options.starts:
            given = STARTS[name]
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder)
                try:
                    config = PruneConfig(ratio=ratio, round_to=1, **given)
                    result = prune(model, out / "slim.onnx", calibration, config=config, plan_file=out / "slim.plan")
                    export_plan(out / "slim.plan", model, out / "slim.safetensors", out / "slim.onnx")
                except OnnxPruneError as e:
                    print(f"{ratio:.0%} {name}: {e}", flush=True)
                    continue
                plan = json.loads((out / "slim.json").read_text(encoding="utf-8"))
                before, after = [], []
                for seed in range(options.seeds):
                    net = narrow(module_of(model, x.numpy()), str(out / "slim"))
                    told_of_shortcuts(net, plan)
                    if name == "onnxprune":
                        settle(net, x[: options.samples])
                    before.append(top1(net, *test))
                    after.append(top1(trained(net, x, y, options.steps, seed), *test))
            macs = 1 - result.report.after.macs / result.report.before.macs
            print(f"-{macs:.0%} {name}: {before[0]:.1f} → {', '.join(f'{a:.1f}' for a in after)}", flush=True)


if __name__ == "__main__":
    main()
