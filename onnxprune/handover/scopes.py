"""What exporters of PyTorch leave of its modules in a file: scopes in names of nodes, and in their metadata.

The TorchScript exporter calls nodes `/layer1/layer1.0/conv1/Conv`: the names of modules, from the outermost on, of
which those inside a Sequential begin with its own. The exporter of PyTorch 2 (`dynamo=True`) writes them, and their
classes, into `metadata_props`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

_SCOPES, _CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
# Lists of a few names; what is longer was not written by an exporter.
_MOST_CHARACTERS = 1 << 16
_NUMBERED = re.compile(r"val_\d+")
# What a node of the operator reads at a slot, as PyTorch calls it.
_NORMS = {1: "weight", 2: "bias", 3: "running_mean", 4: "running_var"}
_ROLES: Mapping[str, Mapping[int, str]] = {
    "Conv": {1: "weight", 2: "bias"},
    "ConvTranspose": {1: "weight", 2: "bias"},
    "Gemm": {1: "weight", 2: "bias"},
    "MatMul": {1: "weight"},
    "Add": {0: "bias", 1: "bias"},
    "Mul": {0: "weight", 1: "weight"},
    "Gather": {0: "weight"},
    "PRelu": {1: "weight"},
    "BatchNormalization": _NORMS,
    "LayerNormalization": _NORMS,
    "InstanceNormalization": _NORMS,
    "GroupNormalization": _NORMS,
    "RMSNormalization": _NORMS,
}


@dataclass(frozen=True)
class Scope:
    """The modules that a node may belong to, the likeliest first, and the class of that module where it is known."""

    modules: tuple[str, ...] = ()
    module_class: str = ""


def scope_of(node: onnx.NodeProto) -> Scope:
    """What an exporter says of the module that a node is of; no modules where it says nothing."""
    said = {p.key: p.value for p in node.metadata_props}
    names, classes = _listed(said.get(_SCOPES, "")), _listed(said.get(_CLASSES, ""))
    if names:  # the last one is the operation inside the module
        return Scope((names[-2] if len(names) > 1 else "",), classes[-2] if 1 < len(classes) == len(names) else "")
    if not node.name.startswith("/"):
        return Scope()
    parts = node.name.split("/")[1:-1]
    joined: list[str] = []
    for part in parts:
        if joined and part.startswith(f"{joined[-1]}."):
            joined[-1] = part
        else:
            joined.append(part)
    return Scope(tuple(dict.fromkeys((".".join(joined), ".".join(parts)))))


def role_of(node: onnx.NodeProto, slot: int) -> str:
    """What PyTorch calls the weight that a node reads at a slot; "" where it has no name for one."""
    return _ROLES.get(node.op_type, {}).get(slot, "")


def generated(name: str) -> bool:
    """Whether an exporter made a name for what it computed, rather than keep that of a parameter."""
    return "::" in name or name.startswith("/") or _NUMBERED.fullmatch(name) is not None


def module_of(parameter: str) -> str:
    """The module that a parameter belongs to, by its name; "" for the outermost."""
    return parameter.rpartition(".")[0]


def named(module: str, role: str) -> str:
    """A parameter of a module."""
    return f"{module}.{role}" if module else role


def _listed(text: str) -> list[str]:
    """The strings of a list that was written as Python; none where it is no such list."""
    if not text or len(text) > _MOST_CHARACTERS:
        return []
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    return found if isinstance(found, list) and all(isinstance(x, str) for x in found) else []
