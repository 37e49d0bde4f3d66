"""What a report says of devices that were not here: their times are predicted from a timing file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxprune.report.units import latency


def device_line(target: Mapping[str, Any]) -> str:
    """The time on one device: its name, from what to what, and how far predictions are off there.

    target: a `latency.stopwatch.TargetTime` as plain data.
    """
    after = target["before_seconds"] * target["predicted"]
    change = f"{latency(target['before_seconds'])} → {latency(after)}, {target['predicted']:.1%} of the original's"
    if target["extrapolated"]:
        how = "extrapolated from the present widths by MACs and bytes: no other width was measured"
    elif target["error"] is None:
        how = "predicted; too few whole models were timed to say how well"
    else:
        how = f"predicted; whole models that were left out are off by {target['error']:.1%} (root mean square)"
    return f"{target['name']}: {change} ({how})"
