"""The curves of a run as rows of the report: what cutting one group alone does to the outputs, against its channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.report.summary import CurveRow
from onnxprune.stages.allocate import curves_of
from onnxprune.stages.couple import Coupled
from onnxprune.stages.try_cuts import Tried

# Points of a curve at most, beside those that were tried and the width that was taken.
_POINTS = 16


def curve_rows(tried: Tried | None, coupled: Coupled, kept: Sequence[int]) -> tuple[CurveRow, ...]:
    """The curve of every group of which cuts were tried, from its least allowed width to all of it.

    Where several methods were tried, each group has the curve of the one whose trials did least. kept: units of each
    group, whose width is among the points.
    """
    if tried is None or not tried.errors:
        return ()
    curves = {k: curves_of(tried.paths[k], errors, coupled) for k, errors in tried.errors.items()}
    rows = []
    for g in sorted(tried.groups):
        method = min(tried.errors, key=lambda k, g=g: sum(tried.errors[k][g].values()))  # type: ignore[misc]
        trials = tried.errors[method][g]
        if trials:
            group = coupled.channels.groups[g]
            units = _points(range(coupled.widths.allowed[g][0], group.size + 1, group.step), trials, kept[g])
            errors = [trials.get(n, float(curves[method][g][n])) for n in units]
            width = group.channels_per_unit
            rows.append(
                CurveRow(
                    group=g,
                    method=method,
                    channels=tuple(n * width for n in units),
                    errors=tuple(float(f"{e:.4g}") if np.isfinite(e) else None for e in errors),
                    tried=tuple(n * width for n in sorted(trials)),
                )
            )
    return tuple(rows)


def _points(widths: Sequence[int], trials: Mapping[int, float], kept: int) -> list[int]:
    """Numbers of units, ascending: some of these widths, evenly, and those that were tried or taken."""
    some = np.unique(np.linspace(0, len(widths) - 1, min(_POINTS, len(widths))).round().astype(int))
    return sorted({*(widths[i] for i in some), *trials, *([kept] if kept >= widths[0] else [])})
