"""What the random graphs of the property test cover.

    python -m benchmarks.random_graphs

Draws the very graphs that tests/test_random_graphs.py draws and traces them, then prints how many have groups, balanced
sets and mixing groups, which share of their weights can go, and how often each operator stands in them.
"""

from __future__ import annotations

import argparse
import zlib
from collections import Counter

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings

from onnxprune.channels import ChannelGraph
from onnxprune.channels.groups import INDEX_TYPES
from onnxprune.channels.rules import TABLE
from tests.prepared import prepare
from tests.random_graphs import MAKERS, Case, graphs, is_unknown
from tests.random_graphs.motifs import MAKERS as CONSTRUCTS
from tests.test_random_graphs import EXAMPLES, EXAMPLES_OF_A_CONSTRUCT


def free_share(channels: ChannelGraph) -> float:
    """Share of the elements of all weights that some unit carries."""
    total = free = 0
    for name, values in channels.graph.constants.items():
        if values.dtype in INDEX_TYPES or values.ndim == 0:
            continue
        mask = np.zeros(values.shape, bool)
        for f in channels.factors.get(name, ()):
            mask |= np.broadcast_to(channels.group_of[f] >= 0, values.shape)
        total += values.size
        free += int(mask.sum())
    return free / max(total, 1)


def main() -> None:
    """Draw, trace, count, print; there are no options but --help."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    seen: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    opsets: Counter[int] = Counter()
    shares: list[float] = []
    for focus in (m for m in MAKERS if not is_unknown(m)):

        @seed(zlib.crc32(focus.encode()))
        @settings(
            max_examples=EXAMPLES_OF_A_CONSTRUCT if focus in CONSTRUCTS else EXAMPLES,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(graphs(focus))
        def drawn(case: Case) -> None:
            channels = prepare(case.model, case.feeds(0)).channels
            seen["graphs"] += 1
            seen["nodes"] += len(case.model.graph.node)
            seen["with groups"] += bool(channels.groups)
            seen["with balanced sets"] += any(g.rows is not None for g in channels.groups)
            seen["with mixing groups"] += any(g.mixing for g in channels.groups)
            seen["with sizes computed at run time"] += any(n.op_type == "Shape" for n in case.model.graph.node)
            operators.update({n.op_type for n in case.model.graph.node})
            opsets[case.model.opset_import[0].version] += 1
            shares.append(free_share(channels))

        drawn()
    count = seen["graphs"]
    print(f"{count} graphs of {seen['nodes'] / count:.1f} nodes; {np.mean(shares):.0%} of their weights can go")
    for key in ("with groups", "with balanced sets", "with mixing groups", "with sizes computed at run time"):
        print(f"{key}: {seen[key]} ({seen[key] / count:.0%})")
    print("operator sets: " + ", ".join(f"{k}: {opsets[k]}" for k in sorted(opsets)))
    print("graphs with each operator:")
    print(", ".join(f"{op} {operators[op]}" for op in sorted(TABLE, key=lambda op: -operators[op])))


if __name__ == "__main__":
    main()
