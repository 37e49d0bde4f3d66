"""One rewriting: what is cut, the graph being edited, and how sizes are written into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from onnxprune.channels import ChannelGraph
from onnxprune.channels.labels import rows_of
from onnxprune.graph import surgeon
from onnxprune.graph.names import unused
from onnxprune.numerics.arrays import Array, Mask


@dataclass(eq=False)
class Cut:
    """One rewriting: the channel graph, the kept classes, the graph being edited, and all names of tensors by now."""

    channels: ChannelGraph
    keep: Mask
    editing: Any
    taken: set[str]

    def mask(self, tensor: str, axis: int) -> Mask | None:
        """Which positions of an axis stay, (n,); None where the axis carries no labels or loses none.

        Where each row of the tensor has channels of its own, those of the first row: the others keep equally many,
        before and behind every place where the graph cuts the axis.
        """
        factor = self.channels.axis_factor(tensor, axis)
        if factor is None or bool(self.keep[factor].all()):
            return None
        kept: Mask = self.keep[rows_of(factor)[0]]
        return kept

    def sizes(self, tensor: str) -> dict[int, int]:
        """axis → new size, for every axis that shrinks."""
        rank = len(self.channels.graph.shape(tensor) or ())
        masks = {a: self.mask(tensor, a) for a in range(rank)}
        return {a: int(k.sum()) for a, k in masks.items() if k is not None}

    def constant(self, name: str, values: Array) -> Any:
        """A new initializer of the graph being edited."""
        # Not np.ascontiguousarray: that turns a scalar into a vector.
        return surgeon.Constant(unused(name, self.taken), np.array(values, order="C"))

    def set_sizes(self, node: Any, slot: int, owner: str, new: Mapping[int, int], offset: int = 0) -> None:
        """Write new sizes of axes into the size tensor at `slot`, be it constant or computed at run time."""
        graph = self.channels.graph
        old = graph.ints(owner)
        entries = {a - offset: s for a, s in new.items() if a >= offset and (old is None or old[a - offset] >= 0)}
        self.set_entries(node, slot, owner, entries, len(old or graph.known_values.get(owner, ())))

    def set_entries(self, node: Any, slot: int, owner: str, entries: Mapping[int, int], count: int) -> None:
        """Replace some entries of the int64 vector at `slot`, of `count` entries, by their places."""
        old = self.channels.graph.constants.get(owner)
        if old is None:
            node.inputs[slot] = self.joined(f"{node.outputs[0].name}__sizes_kept", node.inputs[slot], entries, count)
            return
        values = old.copy()
        for place, value in entries.items():
            values[place] = value
        node.inputs[slot] = self.constant(f"{owner}_kept", values)

    def joined(self, name: str, vector: Any, entries: Mapping[int, int], count: int) -> Any:
        """A run-time int64 vector of `count` entries with some of them replaced."""
        out = self.variable(name)
        pieces = []
        # Joined from constants and entries that are picked: inference and runtimes see through that, not through Where.
        for fixed, run in groupby(range(count), key=entries.__contains__):
            places = list(run)
            values = np.array([entries[p] for p in places] if fixed else places, np.int64)
            piece = self.constant(f"{out.name}_{places[0]}", values)
            if not fixed:
                piece = self.added("Gather", f"{out.name}_{places[0]}_picked", [vector, piece], axis=0)
            pieces.append(piece)
        self.editing.nodes.append(
            surgeon.GraphNode("Concat", name=out.name, attrs={"axis": 0}, inputs=pieces, outputs=[out])
        )
        return out

    def added(self, op: str, name: str, inputs: Sequence[Any], **attrs: Any) -> Any:
        """The int64 output of a new node."""
        out = self.variable(name)
        self.editing.nodes.append(surgeon.GraphNode(op, name=out.name, attrs=attrs, inputs=list(inputs), outputs=[out]))
        return out

    def variable(self, name: str) -> Any:
        """A new tensor of sizes."""
        return surgeon.Variable(unused(name, self.taken), dtype=np.int64)
