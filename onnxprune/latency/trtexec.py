"""What trtexec tells of the layers of an engine: `--exportProfile` their times, `--exportLayerInfo` what is in them.

An engine's layer holds one node of the ONNX file or several. Which these are stands in its metadata, where the engine
was built with `--profilingVerbosity=detailed`; else names of nodes are looked for in its own name, such as
"/conv1/Conv + /act1/Relu", "PWN(/sigmoid, /mul)" or "Reformatting CopyNode for Input Tensor 0 to /conv1/Conv", and
names of tensors in its outputs. The time of a layer with several products, as a fused transformer block, is divided
among them by their MACs. Times are those at the present widths; `present` says what becomes of them at others.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from onnxprune.channels import ChannelGraph
from onnxprune.cost.macs import macs_by_node
from onnxprune.errors import InputError
from onnxprune.graph.view import Node
from onnxprune.latency.layers import lengths_of
from onnxprune.latency.timing_file import PROFILE, Axis, CutRow, LayerRow, Target
from onnxprune.regular_files import content

_MOST_BYTES = 64 << 20
_MOST_LAYERS = 100_000
_LONGEST_MS = 1e9
_TIMES = ("medianMs", "averageMs")
_METADATA = re.compile(r"\[ONNX Layer: ([^\]|]+)")
# What stands between the names of nodes in the name of a layer.
_BETWEEN = re.compile(r"\s\+\s|[(){}\[\],]|\.\.\.|\s\|\|\s|\sto\s|\sfrom\s")
_UNNAMED = "node_of_"


@dataclass(frozen=True)
class EngineLayer:
    """A layer of an engine: its name, seconds in one run, and what its metadata and outputs name."""

    name: str
    seconds: float
    nodes: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Imported:
    """A target for a timing file, and the share of the time that no layer of the model explains."""

    target: Target
    unexplained: float


def read(profile: str | os.PathLike[str], layers: str | os.PathLike[str] | None = None) -> tuple[EngineLayer, ...]:
    """The layers of an engine by these two exports, the second of which may be missing. Raises InputError."""
    rows = _profile(_json(profile), os.fspath(profile))
    info = {} if layers is None else _info(_json(layers), os.fspath(layers))
    if layers is not None and not info.keys() & {r.name for r in rows}:
        raise InputError(f"{layers} has no layer of {profile}: export both from one engine")
    return tuple(EngineLayer(r.name, r.seconds, *info.get(r.name, ((), ()))) for r in rows)


def imported(
    rows: Sequence[EngineLayer],
    channels: ChannelGraph,
    least: Sequence[int],
    *,
    name: str,
    machine: Mapping[str, str],
    batch: int,
    alignment: int,
    path: str,
) -> Imported:
    """A target of these layers of an engine. least: units that each group keeps at least.

    batch: samples in a run; alignment: what widths are padded to there. Raises InputError where they are those of
    another model.
    """
    seconds = _Shares.of(channels).divided(rows)
    found: list[tuple[LayerRow, tuple[float, ...], float]] = []
    full = channels.sizes
    for node in channels.graph.every_node:
        own = seconds.get(node.index)
        axes = lengths_of(channels, node, least) if own is not None else {}
        if own is not None and axes:
            sizes = tuple(float(length.at(full)) for length in axes)
            row = LayerRow(
                node.op, node.outputs[0], tuple(Axis(*at, n) for at, n in zip(axes.values(), sizes, strict=True))
            )
            found.append((row, sizes, own))
    total = sum(r.seconds for r in rows)
    if not found or total <= 0.0:
        raise InputError(
            f"{path} has no layer that could get narrower in this model: build the engine from this file, with "
            "--profilingVerbosity=detailed, and give --exportLayerInfo's file with --trtexec-layers"
        )
    cut = CutRow(1.0, tuple(sizes for _, sizes, _ in found), tuple(s for _, _, s in found))
    target = Target(
        name, PROFILE, dict(machine), batch, {}, alignment, total, tuple(row for row, _, _ in found), (cut,)
    )
    return Imported(target, max(1.0 - sum(seconds.values()) / total, 0.0))


@dataclass(frozen=True, eq=False)
class _Shares:
    """Which nodes a layer of an engine holds. macs: of the nodes that multiply."""

    by_name: Mapping[str, Node]
    by_output: Mapping[str, Node]
    macs: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, channels: ChannelGraph) -> _Shares:
        nodes = channels.graph.every_node
        full = channels.sizes
        by_output = {o: n for n in nodes for o in n.outputs if o}
        by_name = {_UNNAMED + o: n for o, n in by_output.items()} | {n.name: n for n in nodes if n.name}
        macs = {i: sum(t.at(full) for t in terms) for i, terms in macs_by_node(channels).items()}
        return cls(by_name, by_output, macs)

    def divided(self, rows: Iterable[EngineLayer]) -> dict[int, float]:
        """Seconds by the index of a node; those of layers that hold no known node are missing."""
        seconds: dict[int, float] = {}
        for row in rows:
            held = self.held(row)
            products = [n for n in held if self.macs.get(n.index, 0.0) > 0.0]
            whole = sum(self.macs[n.index] for n in products)
            shares = [(n, self.macs[n.index] / whole) for n in products] or [(n, 1.0) for n in held[:1]]
            for node, share in shares:
                seconds[node.index] = seconds.get(node.index, 0.0) + share * row.seconds
        return seconds

    def held(self, row: EngineLayer) -> list[Node]:
        """The nodes in a layer, by its metadata, else by its own name, else by its outputs."""
        in_name = (row.name.strip(), *_METADATA.findall(row.name), *(p.strip() for p in _BETWEEN.split(row.name)))
        for names, known in ((row.nodes, self.by_name), (in_name, self.by_name), (row.outputs, self.by_output)):
            nodes = {known[n].index: known[n] for n in names if n in known}
            if nodes:
                return list(nodes.values())
        return []


def _json(path: str | os.PathLike[str]) -> Any:
    try:
        # The separators of metadata are control characters, which some versions write as they are.
        return json.loads(content(path, InputError, _MOST_BYTES).decode("utf-8"), strict=False)
    except RecursionError:
        raise InputError(f"{path} is no export of trtexec: it is nested too deeply") from None
    except ValueError as e:
        raise InputError(f"{path} is no export of trtexec: {' '.join(str(e).split())[:200]}") from e


def _profile(data: Any, path: str) -> list[EngineLayer]:
    if not isinstance(data, list) or len(data) > _MOST_LAYERS:
        raise InputError(f"{path} is no profile of trtexec, a list of layers: export it with --exportProfile")
    rows: list[EngineLayer] = []
    for entry in data:
        if not isinstance(entry, dict):
            raise InputError(f"{path} is no profile of trtexec: an entry is no object")
        if "name" not in entry:  # the first counts the runs
            continue
        ms: Any = next((entry[k] for k in _TIMES if k in entry), None)
        if type(ms) not in (int, float) or not 0 <= ms <= _LONGEST_MS or not isfinite(ms):
            raise InputError(f"{path} is no profile of trtexec: a layer has no {' or '.join(_TIMES)} that is a time")
        rows.append(EngineLayer(str(entry["name"]), float(ms) * 1e-3))
    if not rows:
        raise InputError(f"{path} is a profile of no layer")
    return rows


def _info(data: Any, path: str) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Name of a layer → (the nodes that its metadata names, the tensors that it writes)."""
    layers = data.get("Layers") if isinstance(data, dict) else None
    if not isinstance(layers, list) or len(layers) > _MOST_LAYERS:
        raise InputError(f"{path} is no layer information of trtexec: export it with --exportLayerInfo")
    if not any(isinstance(x, dict) for x in layers):
        raise InputError(f"{path} has names of layers alone: build the engine with --profilingVerbosity=detailed")
    found: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for x in layers:
        if not isinstance(x, dict):
            continue
        outputs = x.get("Outputs")
        names = [o.get("Name") for o in outputs if isinstance(o, dict)] if isinstance(outputs, list) else []
        nodes = (n.strip() for n in _METADATA.findall(str(x.get("Metadata", ""))))
        found[str(x.get("Name", ""))] = tuple(nodes), tuple(str(n) for n in names)
    return found
