"""A row of the table: how to add one operator to a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import onnx

from onnxprune.channels.rules import TABLE
from tests.random_graphs.build import Build


@dataclass(frozen=True)
class Maker:
    """make(build, op) appends the operator and what it needs; it always can.

    weight: how often it is chosen beside the others of its family; 0 for one that only its own row makes. first, last:
    the operator sets at which onnxruntime runs what it makes, where that is narrower than what ONNX defines.
    """

    make: Callable[[Build, str], None]
    weight: int = 1
    first: int = 0
    last: int = 99

    def fits(self, op: str, opset: int) -> bool:
        """Whether the operator can stand in a graph of this operator set."""
        return not is_unknown(op) and max(self.first, defined_from(op)) <= opset <= self.last


def is_unknown(op: str) -> bool:
    """Whether this is a standard operator that the installed onnx does not know."""
    return op in TABLE and "." not in op and not defined_from(op)


def defined_from(op: str) -> int:
    """The operator set that introduced a standard operator; 0 for the name of a construct."""
    return _introductions().get(op, 0)


@cache
def _introductions() -> Mapping[str, int]:
    """Each standard operator, and the operator set that introduced it; the list of all is long, and read once."""
    first: dict[str, int] = {}
    for s in onnx.defs.get_all_schemas_with_history():
        if s.domain == "":
            first[s.name] = min(s.since_version, first.get(s.name, s.since_version))
    return first
