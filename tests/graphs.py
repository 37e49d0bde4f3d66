"""One table of small topologies: every stage's tests run over it, so a new row tests everything."""

from __future__ import annotations

from collections.abc import Mapping

from tests.topologies import (
    attention,
    boundaries,
    branches,
    contributed_attention,
    contributed_states,
    control,
    convolution,
    experts,
    indexing,
    layout,
    normalization,
    quantization,
    recurrent,
    sizes,
)
from tests.topologies.text import Topology

__all__ = ["PRUNABLE", "TABLE", "Topology"]

TABLE: Mapping[str, Topology] = {
    **convolution.ROWS,
    **attention.ROWS,
    **contributed_attention.ROWS,
    **contributed_states.ROWS,
    **layout.ROWS,
    **sizes.ROWS,
    **indexing.ROWS,
    **normalization.ROWS,
    **recurrent.ROWS,
    **control.ROWS,
    **boundaries.ROWS,
    **branches.ROWS,
    **quantization.ROWS,
    **experts.ROWS,
}
PRUNABLE = tuple(name for name, row in TABLE.items() if row.units)
