"""Networks of torchvision and transformers, pruned, handed back to their own classes, trained, and pruned again.

    python -m benchmarks.handed_back --exporters torchscript dynamo

Classes as these packages have them, small and with random weights (`resnet`, `mobilenet`: with BatchNorm that has seen
inputs). Per network and exporter: export, `--uniform 0.25`, `export-plan`, the loaders of docs/how-to/pytorch.md; the
largest difference from the slim model's outputs, relative to the largest output; then five steps of SGD, a second
export, and `--uniform 0.25` of that.
"""

from __future__ import annotations

import argparse
import logging
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_model
from torch import nn

from benchmarks.torch_imports import without_torchvision_operators
from onnxprune import export_plan, prune
from onnxprune.runtime.session import Session

PAGE = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "pytorch.md"
_PRUNE = {"uniform": 0.25, "method": "magnitude", "refit": "least-squares", "recover": 0, "round_to": 1}
_TOKENS, _LENGTH = 100, 8


class Ids(nn.Module):
    """A network of transformers by its ids alone, giving its first output. The mask keeps tracing away from sizes."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids: torch.Tensor) -> Any:
        """(N, length) → the first output."""
        return self.net(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=False)[0]


def loaders() -> dict[str, Any]:
    """The functions that the page defines."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        if "def narrow" in block:
            exec(block[: block.index("\nslim = ")], names)
    return names


def resnet() -> nn.Module:
    """ResNet-18, as it is, with ten classes."""
    from torchvision import models

    return models.resnet18(num_classes=10)


def mobilenet() -> nn.Module:
    """MobileNetV2, half as wide."""
    from torchvision import models

    return models.MobileNetV2(num_classes=10, width_mult=0.5)


def vit() -> nn.Module:
    """The class of ViT-B/16, with two layers of four heads."""
    from torchvision import models

    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 64}
    net = models.VisionTransformer(num_classes=10, **sizes)
    nn.init.normal_(net.heads.head.weight)
    return net


def bert() -> nn.Module:
    """BertModel, with two layers of four heads."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertModel(BertConfig(vocab_size=_TOKENS, max_position_embeddings=32, attn_implementation="eager", **sizes))


def llama() -> nn.Module:
    """LlamaForCausalLM, with two layers of four heads, of which two share keys and values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    more = {"num_key_value_heads": 2, "use_cache": False, "attn_implementation": "eager"}
    return LlamaForCausalLM(LlamaConfig(vocab_size=_TOKENS, max_position_embeddings=32, **sizes, **more))


NETWORKS: dict[str, Callable[[], nn.Module]] = {f.__name__: f for f in (resnet, mobilenet, vit, bert, llama)}


def made(name: str) -> nn.Module:
    """A network, the same at every call, whose parameters are all apart."""
    torch.manual_seed(0)
    net = NETWORKS[name]().train()
    with torch.no_grad():
        if name in ("resnet", "mobilenet"):
            for _ in range(5):
                net(torch.randn(16, 3, 32, 32))
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return net.eval()


def exported(net: nn.Module, x: torch.Tensor, path: Path, exporter: str) -> None:
    """Write the network as ONNX with a free batch."""
    given: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    if exporter == "torchscript":
        given |= {"dynamo": False, "opset_version": 17, "dynamic_axes": {"x": {0: "batch"}, "y": {0: "batch"}}}
    else:
        given |= {"dynamo": True, "optimize": exporter == "dynamo", "external_data": False, "verbose": False}
        given |= {"dynamic_shapes": ({0: "batch"},)}
    torch.onnx.export(net, (x,), str(path), **given)


def row(name: str, exporter: str, folder: Path) -> str:
    """One network by one exporter."""
    whole = Ids if name in ("bert", "llama") else (lambda net: net)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 3, 32, 32)).astype(np.float32)
    if name in ("bert", "llama"):
        x = rng.integers(0, _TOKENS, (32, _LENGTH))
    net = made(name)
    original, slim, plan, weights = (folder / f for f in ("n.onnx", "slim.onnx", "n.plan", "slim.safetensors"))
    save_model(net, str(folder / "n.safetensors"))
    exported(whole(net), torch.tensor(x[:2]), original, exporter)
    prune(original, slim, {"x": x}, plan_file=plan, overwrite=True, **_PRUNE)
    state = folder / "n.safetensors"
    found = export_plan(plan, original, weights, slim, state_dict=state, overwrite=True).parameters
    page, stem = loaders(), str(folder / "slim")
    narrow = page["narrow_heads"](page["narrow"](made(name), stem), stem).eval()
    if name == "vit":
        narrow.hidden_dim = narrow.conv_proj.out_channels
    expected = next(iter(Session(slim).run({"x": x}).values()))
    with torch.no_grad():
        got = whole(narrow)(torch.tensor(x)).numpy()
    apart = float(np.abs(got - expected).max() / np.abs(expected).max())
    trained = whole(narrow.train())
    optimizer = torch.optim.SGD(trained.parameters(), 1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        trained(torch.tensor(x)).square().mean().backward()
        optimizer.step()
    exported(trained.eval(), torch.tensor(x[:2]), folder / "again.onnx", exporter)
    again = prune(folder / "again.onnx", None, {"x": x}, **_PRUNE).report
    sizes = [sum(p.numel() for p in n.parameters()) for n in (net, narrow)]
    unread = f", not in the model: {', '.join(found.unread)}" if found.unread else ""
    less = f"-{1 - again.after.macs / again.before.macs:.0%}"
    widths = f"{len(found.kept)} of {len(found.values)} | {sizes[0]:,} → {sizes[1]:,}"
    return f"| {name} | {exporter} | {widths} | {apart:.0e} | {less} |{unread}"


def main() -> None:
    """A line of the table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS], choices=[*NETWORKS])
    parser.add_argument("--exporters", nargs="+", default=["torchscript", "dynamo"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with without_torchvision_operators():
        import torchvision  # noqa: F401  before transformers, which imports it too
    for name in options.networks:
        for exporter in options.exporters:
            with tempfile.TemporaryDirectory() as folder:
                print(row(name, exporter, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
