"""Torch-Pruning on the same weights and images: global pruning by magnitude, Taylor or Hessian importance.

As its own benchmarks do it, channels go in many small steps until the MACs are down to what is wanted, with gradients
measured again along the way. Taylor and Hessian need a loss: the labels are the original's own answers, since no true
ones are used anywhere. Refit "batchnorm" measures the statistics of batch normalization again on the same images.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional

from benchmarks.accuracy.case import NEAR, Case, Found, shares_left
from benchmarks.accuracy.torch_models import export, module_of

# A step removes 1/STEPS of all channels; gradients are measured again every so many steps.
STEPS = 400
GRADIENTS_EVERY = {"taylor": 20, "hessian": 40}
# Squared gradients are those of single images, each with a backward pass of its own.
HESSIAN_IMAGES = 256
_BATCH = 64
# What a method's name ends with that leaves residual streams whole.
INSIDE = "-inside"
_WRITES = (tp.prune_conv_out_channels, tp.prune_linear_out_channels)

IMPORTANCE: dict[str, Callable[[], Any]] = {
    "magnitude": tp.importance.GroupMagnitudeImportance,
    "taylor": tp.importance.GroupTaylorImportance,
    "hessian": tp.importance.GroupHessianImportance,
}


def prune(case: Case) -> Found:
    """Prune, re-estimate if wanted, export, count. Raises ValueError where the MACs do not come near what is wanted."""
    torch.set_num_threads(case.threads)
    torch.manual_seed(case.run.seed)
    images = case.images
    module = module_of(case.path, images)
    x = torch.from_numpy(images)
    statistics = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if case.run.refit == "batchnorm" and not statistics:
        raise ValueError("the network has no batch normalization whose statistics could be measured again")
    start = time.perf_counter()
    module = _cut(module, x, case)
    if case.run.refit == "batchnorm":
        statistics_again(module, x)
    seconds = time.perf_counter() - start
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(module, x[:1], case.out)
    found = shares_left(case.path, case.out)
    if abs(found["macs_left"] - (1 - case.run.ratio)) > NEAR:
        raise ValueError(f"it comes to {found['macs_left']:.3f} of the MACs, not to {1 - case.run.ratio:g}")
    return found | {"seconds": seconds, "steps": STEPS}


def _cut(module: nn.Module, x: torch.Tensor, case: Case) -> nn.Module:
    """Remove channels until the wanted share of MACs is gone; of the last two steps the nearer."""
    example, (method, inside, _) = x[:1], case.run.method.partition(INSIDE)
    with torch.no_grad():
        labels = torch.cat([module(b).flatten(1).argmax(1) for b in x.split(_BATCH)])
        classes = module(example).flatten(1).shape[1]
    importance = IMPORTANCE[method]()
    pruner = tp.pruner.BasePruner(
        module,
        example,
        importance=importance,
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=[*_classifier(module, classes), *(_merged(module, example) if inside else [])],
    )
    left = macs(module, example)
    wanted = (1 - case.run.ratio) * left
    for step in range(STEPS):
        every = GRADIENTS_EVERY.get(method)
        if every is not None and step % every == 0:
            _gradients(module, importance, method, x, labels)
        before, more = copy.deepcopy(module), left
        pruner.step()
        left = macs(module, example)
        if left <= wanted:
            return module if wanted - left <= more - wanted else before
    return module


def _classifier(module: nn.Module, classes: int) -> list[nn.Module]:
    """The last layer with an output per class."""
    layers = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    outputs = [m for m in layers if (m.out_features if isinstance(m, nn.Linear) else m.out_channels) == classes]
    return outputs[-1:]


def _merged(module: nn.Module, example: torch.Tensor) -> list[nn.Module]:
    """Layers whose outputs are coupled with those of others: what writes to a residual stream."""
    graph = tp.DependencyGraph().build_dependency(module, example_inputs=example)
    found: list[nn.Module] = []
    for group in graph.get_all_groups():
        writers = {d.target.module for d, _ in group if d.handler in _WRITES}
        if len(writers) > 1:
            found += writers
    return found


def _gradients(module: nn.Module, importance: Any, method: str, x: torch.Tensor, labels: torch.Tensor) -> None:
    """Leave in the parameters, or in the importance, what it reads."""
    module.zero_grad()
    if method == "taylor":
        for b, y in zip(x.split(_BATCH), labels.split(_BATCH), strict=True):
            (functional.cross_entropy(module(b).flatten(1), y, reduction="sum") / len(x)).backward()
        return
    total: dict[nn.Parameter, torch.Tensor] = {}
    for i in range(min(len(x), HESSIAN_IMAGES)):
        module.zero_grad()
        functional.cross_entropy(module(x[i : i + 1]).flatten(1), labels[i : i + 1]).backward()
        for p in module.parameters():
            if p.grad is not None:
                total[p] = total.get(p, torch.zeros_like(p)) + p.grad**2
    # Its own accumulate_grad (1.6.1) keeps the last image alone; this is the mean that it describes.
    importance._accu_grad, importance._counter = total, dict.fromkeys(total, min(len(x), HESSIAN_IMAGES))


def macs(module: nn.Module, example: torch.Tensor) -> float:
    """Multiply-accumulates of convolutions and linear layers, for one sample."""
    counted: list[float] = []

    def count(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        del inputs
        counted.append(output.numel() * layer.weight[0].numel() / len(output))

    layers = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [m.register_forward_hook(count) for m in layers]
    with torch.no_grad():
        module(example)
    for hook in hooks:
        hook.remove()
    return sum(counted)


def statistics_again(module: nn.Module, x: torch.Tensor) -> None:
    """Means and variances of every batch normalization over these samples, each batch with equal weight."""
    layers = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    with torch.no_grad():
        for batch in x.split(_BATCH):
            module(batch)
    module.eval()
