"""A row of the table: how to add one operator to a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import onnx

from onnxprune.channels.rules import TABLE
from tests.random_graphs.build import Build


@dataclass(frozen=True)
class Maker:
    """make(build, op) appends the operator and what it needs; it always can.

    weight: how often it is chosen beside the others of its family. opsets: first and last operator set at which
    onnxruntime runs what it makes, where that is narrower than what ONNX defines.
    """

    make: Callable[[Build, str], None]
    weight: int = 1
    first: int = 0
    last: int = 99

    def fits(self, op: str, opset: int) -> bool:
        """Whether the operator can stand in a graph of this operator set."""
        return not is_unknown(op) and max(self.first, defined_from(op)) <= opset <= self.last


def is_unknown(op: str) -> bool:
    """Whether this is an operator that the installed onnx does not know."""
    return op in TABLE and not defined_from(op)


@cache
def defined_from(op: str) -> int:
    """The operator set that introduced a standard operator; 0 for the name of a construct."""
    versions = [s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == op and s.domain == ""]
    return min(versions, default=0)
