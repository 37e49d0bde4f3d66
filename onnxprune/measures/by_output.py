"""Each output of a model beside the original's, as numbers that need no spread: the largest difference and the cosine.

The cosine is that of a sample's entries as one vector, y·y0 / (‖y‖ ‖y0‖), as a mean over samples; two vectors of zeros
point in the same direction. Entries that both models mask (`measures.masked`), and padding, are no part of either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.measures.answers import Answers, Piece
from onnxprune.measures.figures import DIFFER, ERROR, Figures, classes_of, share_of
from onnxprune.measures.masked import counting
from onnxprune.numerics.arrays import Array, is_float


@dataclass(frozen=True)
class OutputFigures:
    """One output beside the original's of the same name; None is what could not be measured, and `why`.

    error: the largest figure that speaks of this output (`measures.figures`), by which a limit on it goes, also where
    it was measured in front of it. largest: of |y - y0|, in the output's own unit. cosine: the mean over samples.
    agreement: the share of samples whose largest score is the same one, or of entries that are the same integer.
    """

    output: str
    error: float | None
    largest: float | None
    cosine: float | None
    agreement: float | None
    why: str = ""


def by_output(
    names: Sequence[str], outputs: Mapping[str, Array], answers: Answers, figures: Figures
) -> tuple[OutputFigures, ...]:
    """The figures of each of these outputs, in their order."""
    return tuple(_of(o, outputs, answers, _error_of(o, figures)) for o in names)


def _error_of(output: str, figures: Figures) -> float | None:
    """The worst figure of an output; None where one that counts was not measured, or none speaks of it."""
    own = [f for f in figures.each if output in f.outputs and f.counts]
    if any(f.value is None or f.kind not in (ERROR, DIFFER) for f in own):
        return None
    return max((f.value for f in own if f.value is not None), default=None)


def _of(name: str, outputs: Mapping[str, Array], answers: Answers, error: float | None) -> OutputFigures:
    y, y0, samples, padding = outputs.get(name), answers.values.get(name), answers.samples, answers.padding
    why = ""
    if y is None or y0 is None:
        why = "it is no tensor, or of another size for each sample"
    elif y.shape != y0.shape:
        why = f"its shape is {y.shape} instead of {y0.shape}"
    elif not y0.size:
        why = "it has no entries"
    elif not (is_float(y0.dtype) or np.issubdtype(y0.dtype, np.number) or y0.dtype == np.bool_):
        why = "its entries are no numbers"
    if why or y is None or y0 is None:
        return OutputFigures(name, error, None, None, None, why)
    if not is_float(y0.dtype):
        d = np.abs(y.astype(np.float64) - y0.astype(np.float64))
        largest = float(d.max(initial=0.0, where=~padding.at[name]) if name in padding.at else d.max())
        return OutputFigures(name, error, largest, None, padding.share(name, y == y0))
    d = answers.difference(Piece(name), outputs)
    finite = bool(np.isfinite(d).all())
    return OutputFigures(
        name,
        error,
        float(np.abs(d).max()) if finite else None,
        cosine_of(y, answers.judged(name), samples) if finite else None,
        share_of(*(classes_of(padding.filled(name, v, -np.inf), samples) for v in (y, y0))),
        "" if finite else "it is not finite, or is infinite at other places than the original's",
    )


def cosine_of(y: Array, y0: Array, samples: int) -> float | None:
    """The mean over samples, one at a time, as outputs may be large; of all as one where rows belong to no sample.

    None where either is not finite.
    """
    rows = samples if y0.ndim and len(y0) % samples == 0 else 1
    keep = counting(np.atleast_1d(y0)).reshape(rows, -1)
    cosines = [_cosine(a[k], b[k]) for a, b, k in zip(y.reshape(rows, -1), y0.reshape(rows, -1), keep, strict=True)]
    found = [c for c in cosines if c is not None]
    return float(np.mean(found)) if len(found) == rows else None


def _cosine(y: Array, y0: Array) -> float | None:
    a, b = y.astype(np.float64), y0.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    scales = [float(np.abs(v).max(initial=0.0)) for v in (a, b)]  # squares of what can be written may not be
    if not all(scales):
        return 1.0 if not any(scales) else 0.0
    a, b = a / scales[0], b / scales[1]
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))
