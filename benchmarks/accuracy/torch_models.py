"""Networks of the kit as PyTorch modules, with the weights of their ONNX files, for peers that prune modules.

The CIFAR ResNets (He et al. 2016, option A: shortcuts that stride and pad) have a definition here, because what their
export became cannot be converted back; all others go through onnx2torch. Batch normalization is needed where its
statistics shall be measured again, so the export that keeps it is read where there is one. Whatever came out is used
only if its answers are those of the model that is pruned.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional

from benchmarks.accuracy.kits import Array, answers
from benchmarks.torch_imports import without_torchvision_operators

_TOLERANCE = 1e-4
_CHECKED = 32


class Block(nn.Module):
    """Two convolutions and a shortcut that strides and pads with zero channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W)."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return functional.relu(y + x)


class CifarResNet(nn.Module):
    """6n + 2 layers, with the names of the export's initializers."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks = (depth - 2) // 6

        def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            rest = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
            return nn.Sequential(Block(inputs, outputs, stride), *rest)

        self.layer1, self.layer2, self.layer3 = stage(16, 16, 1), stage(16, 32, 2), stage(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 32, 32) → logits (N, 10)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def module_of(path: Path, x: Array) -> nn.Module:
    """The network of this file, in evaluation mode; x: inputs to compare its answers on.

    Raises ValueError where the module answers otherwise, and whatever the conversion raises.
    """
    kept = path.with_name(re.sub(r"(_legacy)?(_folded|_dynamo)?$", "", path.stem) + "_legacy_bn.onnx")
    origin = kept if kept.exists() else path
    resnet = re.match(r"cifar10_resnet(\d+)_legacy_bn$", origin.stem)
    module = _cifar_resnet(origin, int(resnet[1])) if resnet else _converted(origin)
    module.eval()
    expected = answers(path, x[:_CHECKED])
    with torch.no_grad():
        found = module(torch.from_numpy(x[:_CHECKED])).flatten(1).numpy()
    apart = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not apart <= _TOLERANCE:
        raise ValueError(f"as a PyTorch module the network answers otherwise: a relative difference of {apart:.1e}")
    return module


def _cifar_resnet(path: Path, depth: int) -> nn.Module:
    module = CifarResNet(depth)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    state = module.state_dict()
    module.load_state_dict({k: torch.tensor(weights[k]) if k in weights else v for k, v in state.items()})
    return module


def _converted(path: Path) -> nn.Module:
    with without_torchvision_operators():
        import onnx2torch

    module: Any = onnx2torch.convert(_own_weights(onnx.load(path)))
    # The converter makes weights that nobody is to train; importance reads their gradients.
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return module


def _own_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every reader with a weight of its own, where exporters share equal ones through Identity: the converter knows
    layers by their initializers alone."""
    weights = {t.name: t for t in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type == "Identity" and n.input[0] in weights]:
        copy = onnx.TensorProto()
        copy.CopyFrom(weights[node.input[0]])
        copy.name = node.output[0]
        model.graph.initializer.append(copy)
        model.graph.node.remove(node)
    return model


def export(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Write the module as ONNX with a free batch, batch normalization folded."""
    torch.onnx.export(
        module,
        (example,),
        str(path),
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
