"""What is said of how far one model's outputs are from another's: a figure for every part and every output.

A figure is a number that was measured, or the reason why none was. Its interval holds the error on further samples of
the same kind with 95 % confidence: Student's t for the logarithm of the error, since errors of single samples differ by
factors, with the larger of two standard errors: that of the jackknife (Efron & Tibshirani 1993, chapter 11), which few
samples underestimate where the rare ones are missing, and Cox's for log-normal errors (Zhou & Gao 1997). It knows
nothing of samples of another kind, or of what the judging samples have chosen themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.special import stdtrit

from onnxprune.measures.answers import ALONE, EMPTY, STILL, UNSPREAD, Answers, Part, Piece, Wide
from onnxprune.measures.class_scores import class_scores
from onnxprune.measures.observed import Observed
from onnxprune.numerics.arrays import Array, Ints, in_rows, is_float

ERROR = "squared error over spread"
DIFFER = "share of entries that differ"
NOT_MEASURED = "not measured"
Interval = tuple[float, float]
_CONFIDENCE = 0.95
# What does not vary counts as unchanged up to this share of its squares.
_UNCHANGED = 1e-6
_MOST_SHOWN = 100.0
_MOST_DIGITS = 12
# What writes a figure with so many digits.
Shown = Callable[[float, int], str]
_STATE = "a state, without the units that went: what comes of it in the next steps counts"
# Probabilities in half precision, or of quantized models, add up to 1 as nearly as this.
_SUM = 1e-2
# Normalised vectors are of one length as nearly as this.
_LENGTH = 1e-3


@dataclass(frozen=True)
class Figure:
    """What was measured of some outputs.

    outputs: which it speaks of. at: where it was measured, where that is not the output itself.

    kind: `ERROR`, `DIFFER` or `NOT_MEASURED`. value: None where it was not measured, and `why`. counts: whether the
    verdict, and a limit on the error, go by it: not by how many numbers of a ranking or of an image were rounded
    otherwise, as what is in front of these counts.
    """

    outputs: tuple[str, ...]
    at: str
    kind: str
    value: float | None
    interval: Interval | None = None
    why: str = ""
    counts: bool = True

    @property
    def name(self) -> str:
        """The outputs that the figure speaks of, and where it was measured, for a table."""
        return ", ".join(self.outputs) + (f" at {self.at}" if self.at else "")


@dataclass(frozen=True)
class Figures:
    """All figures of a run on some samples.

    error: the mean over the measured parts, by their shares, None where there are none, and `why`. agreement: the share
    of samples, or of entries, to which both give the same class. held_out: whether nothing was fitted to these samples.
    synthetic: whether they are random numbers. classes: whether the agreement is surely one of classes, None
    where it may be.
    """

    error: float | None
    interval: Interval | None
    why: str
    agreement: float | None
    each: tuple[Figure, ...]
    samples: int
    held_out: bool
    synthetic: bool = False
    classes: bool | None = True

    @property
    def measured(self) -> tuple[Figure, ...]:
        """The figures with a number by which the model is judged."""
        return tuple(f for f in self.each if f.value is not None and f.counts)

    @property
    def unmeasured(self) -> tuple[Figure, ...]:
        """The figures that should have such a number, and have none."""
        return tuple(f for f in self.each if f.value is None and f.counts)

    @property
    def worst(self) -> Figure | None:
        """The measured figure with the largest number."""
        return max(self.measured, key=lambda f: f.value or 0.0, default=None)

    def only(self, wanted: Callable[[Figure], bool]) -> Figures:
        """The same with these figures alone."""
        return replace(self, each=tuple(f for f in self.each if wanted(f)))

    def summary(self) -> dict[str, Any]:
        """What a report says of the mean error, beside its number."""
        names = ("interval", "why", "samples", "held_out")
        return {k: getattr(self, k) for k in names}

    def as_dicts(self) -> tuple[dict[str, Any], ...]:
        """The rows of the report on outputs, as plain data."""
        more = {"samples": self.samples, "held_out": self.held_out}
        return tuple(asdict(f) | more for f in self.each)


def figures_of(
    observed: Observed,
    answers: Answers,
    outputs: Mapping[str, Array],
    *,
    held_out: bool,
    synthetic: bool = False,
    labelled: bool = False,
) -> Figures:
    """The figures of a model, given its outputs and the original's answers.

    outputs: of the model on the samples of the answers, with the tensors that stand for them. labelled: whether classes
    were given, so that the first output holds their scores.
    """
    pairs = [(p, s) for p, s in zip(answers.parts, answers.shares, strict=True) if p not in answers.left_out]
    parts, shares = [p for p, _ in pairs], [s for _, s in pairs]
    each = [_of_part(p, answers, outputs, held_out=held_out) for p in parts]
    each += [_left_out(p, why, answers, outputs) for p, why in answers.left_out.items()]
    each += [f for f in (_of_output(o, observed, answers, outputs) for o in observed.outputs) if f is not None]
    errors = [f for f in each if f.kind == ERROR and f.value is not None]
    sound = len(errors) == len(parts) > 0
    error = answers.error(outputs) if sound else None
    nothing = "no output depends on the weights"
    if observed.missing:
        nothing = "no floating-point tensor that keeps its channels stands before an output"
    why = "" if sound else next((f"{f.name}: {f.why}" for f in each if f.why), nothing)
    interval = interval_of([answers.per_sample(p, outputs) for p in parts], shares) if sound and held_out else None
    agreement, classes = agreement_of(observed, answers, outputs)
    classes = True if labelled else classes
    return Figures(error, interval, why, agreement, tuple(each), answers.samples, held_out, synthetic, classes)


def _of_part(part: Part, answers: Answers, outputs: Mapping[str, Array], *, held_out: bool) -> Figure:
    place = _place(part)
    lost = next((x.tensor for x in part.pieces if x.tensor not in outputs), None)
    if lost is not None:
        return Figure(part.outputs, place, NOT_MEASURED, None, why=f"the model has no tensor {lost!r}")
    error = answers.error_of(part, outputs)
    if not np.isfinite(error):
        return Figure(part.outputs, place, NOT_MEASURED, None, why=_why_infinite(part, answers, outputs))
    if answers.samples < 2:
        return Figure(part.outputs, place, NOT_MEASURED, None, why=ALONE)
    interval = interval_of([answers.per_sample(part, outputs)], [1.0]) if held_out else None
    return Figure(part.outputs, place, ERROR, error, interval)


def _place(part: Part) -> str:
    """Where a part is measured, "" where that is an output itself."""
    if part.outputs == (part.name,):
        return ""
    first = part.pieces[0]
    if len(part.pieces) == 1 and part.outputs == (first.tensor,):
        return first.channels
    return part.name


def _why_infinite(part: Part, answers: Answers, outputs: Mapping[str, Array]) -> str:
    for x in part.pieces:
        y, y0 = outputs[x.tensor], answers.values[x.tensor]
        if y.shape != y0.shape:
            return f"its shape is {y.shape} instead of {y0.shape}"
        d = answers.difference(x, outputs)
        if np.isfinite(y.astype(np.float64)).all() and np.isposinf(d).any():
            return f"its numbers are others where the original's are masked ({_mask_of(x.of(y0), d):g})"
    return "it is not finite, or is infinite at other places than the original's"


def _mask_of(y0: Array, d: Wide) -> float:
    """One of the original's masks that the other model does not have."""
    return float(y0[np.isposinf(d)].flat[0])


def _left_out(part: Part, why: str, answers: Answers, outputs: Mapping[str, Array]) -> Figure:
    place = _place(part)
    alike = _unchanged if why == STILL else _identical
    same = all(x.tensor in outputs and alike(x, answers, outputs) for x in part.pieces)
    if why == STILL and not same:
        why += ", and it is not the original's"
    return Figure(part.outputs, place, NOT_MEASURED, None, why=why, counts=not same)


def _identical(piece: Piece, answers: Answers, outputs: Mapping[str, Array]) -> bool:
    y = answers.padding.without(piece.tensor, outputs[piece.tensor])
    return np.array_equal(piece.of(y), piece.of(answers.judged(piece.tensor)))


def _unchanged(piece: Piece, answers: Answers, outputs: Mapping[str, Array]) -> bool:
    d, y0 = answers.difference(piece, outputs), piece.of(answers.judged(piece.tensor))
    b = np.where(np.isfinite(y0.astype(np.float64)), y0.astype(np.float64), 0.0)
    return bool(np.isfinite(d).all() and (d**2).sum() <= _UNCHANGED * (b**2).sum())


def _of_output(o: str, observed: Observed, answers: Answers, outputs: Mapping[str, Array]) -> Figure | None:
    """The figure of an output as it is; None where its parts say all, or where nothing pruned stands before it."""
    behind = o in observed.ranked
    if o in observed.states:
        return Figure((o,), "", NOT_MEASURED, None, why=_STATE, counts=False)
    if o in observed.still or not (behind or o in observed.missing):
        return None
    y0, y = answers.values.get(o), outputs.get(o)
    counts = not behind or o in observed.choices
    why = ""
    if o in observed.random:
        why, counts = "it is random", not behind
    elif o in observed.sized_by_values:
        why, counts = "its size depends on what is computed", not behind
    elif y0 is None or y is None:
        why = "it is no tensor, or of another size for each sample"
    elif y.shape != y0.shape:
        why = f"its shape is {y.shape} instead of {y0.shape}"
    elif not y0.size:
        why, counts = EMPTY, False
    elif is_float(y0.dtype) and not behind:
        why = "it jumps, and nothing in front of it can be compared"
    elif is_float(y0.dtype) and not _whole_numbers(y0):
        return None
    else:
        return Figure((o,), "", DIFFER, answers.padding.share(o, y != y0), counts=counts)
    return Figure((o,), "", NOT_MEASURED, None, why=why, counts=counts)


# classes


def agreement_of(
    observed: Observed, answers: Answers, outputs: Mapping[str, Array]
) -> tuple[float | None, bool | None]:
    """(the share of samples with the same class, or of entries of a class map; None where the first output has none;
    whether these are surely classes, None where that cannot be told).

    Classes that the model picks, and probabilities, are surely of classes, and what is scaled to one length is an
    embedding, whose largest entry says nothing. Other numbers in (samples, classes) may be either.
    """
    first = next(iter(observed.outputs), "")
    y0, y = answers.values.get(first), outputs.get(first)
    if y0 is None or y is None or y.shape != y0.shape:
        return None, False
    if first in observed.choices and y0.size and (not is_float(y0.dtype) or _whole_numbers(y0)):
        return answers.padding.share(first, y == y0), True
    if first in observed.ranked and _one_hot(y0, answers.samples):
        return share_of(classes_of(y, answers.samples), classes_of(y0, answers.samples)), True
    own = list(dict.fromkeys(p for p in (*answers.parts, *answers.left_out) if first in p.outputs))
    whole = len(own) == 1 and own[0].pieces == (Piece(first),)  # not boxes and scores, say
    if not whole or answers.left_out.get(own[0]) in UNSPREAD:
        return None, False
    surely = True if probabilities(y0) else False if of_one_length(y0) else None
    y, y0 = (answers.padding.filled(first, v, -np.inf) for v in (y, y0))
    return share_of(classes_of(y, answers.samples), classes_of(y0, answers.samples)), surely


def of_one_length(y: Array) -> bool:
    """Whether the entries of every sample are a vector of the same length, as embeddings are that were normalised."""
    if not is_float(y.dtype) or not y.ndim or len(y) < 2:
        return False
    lengths = np.linalg.norm(in_rows(y).astype(np.float64), axis=1)
    return bool(np.ptp(lengths) <= _LENGTH * lengths.max())


def probabilities(y: Array) -> bool:
    """Whether the entries of every sample are probabilities that add up to 1, or the logarithms of such."""
    if not is_float(y.dtype) or not y.ndim:
        return False
    p = in_rows(y).astype(np.float64)
    if (p <= 0.0).all():
        p = np.exp(p)
    return bool((p >= 0.0).all() and (np.abs(p.sum(axis=1) - 1.0) <= _SUM).all())


def _whole_numbers(y: Array) -> bool:
    """Whether these are labels, counts or codes, in whatever type they are written."""
    return bool((y == np.rint(y.astype(np.float64))).all())


def _one_hot(y: Array, samples: int) -> bool:
    """Whether every sample has a single entry other than 0, that of its class."""
    numbers = is_float(y.dtype) or np.issubdtype(y.dtype, np.number)
    return numbers and class_scores(y, samples) and bool((np.count_nonzero(y.reshape(samples, -1), axis=1) == 1).all())


def classes_of(scores: Array, samples: int) -> Ints | None:
    """Predicted class per sample, -1 where a score is NaN; None where these are no class scores."""
    if not class_scores(scores, samples):
        return None
    flat = scores.reshape(samples, -1)
    return np.where(np.isnan(flat).any(axis=1), -1, flat.argmax(axis=1))


def share_of(a: Ints | None, b: Ints | None) -> float | None:
    """Share of samples in which both say the same class; None where `b` says none at all."""
    if a is None or b is None or not (b >= 0).any():
        return None
    return float(np.mean((a == b) & (b >= 0)))


# shares


def change_of(drop: float) -> tuple[str, str]:
    """("drop" or "gain", how large it is) of points that were lost: those below 0 were gained."""
    return ("gain", f"{-drop:.2f}") if drop < 0.0 else ("drop", f"{drop:.2f}")


def percent(share: float, digits: int = 2) -> str:
    """A share for a reader; of one too large to say anything, only that it is.

    What is not nothing does not read 0.00%, and what is not all does not read 100.00%: these get the digits they need.
    """
    if not share < _MOST_SHOWN:
        return f"more than {_MOST_SHOWN:.0%}"
    text = f"{share:.{digits}%}"
    if share != 0.0 and float(text[:-1]) == 0.0:
        return f"{100.0 * share:.2g}%"
    while share < 1.0 and float(text[:-1]) == 100.0 and digits < _MOST_DIGITS:
        digits += 1
        text = f"{share:.{digits}%}"
    return text


def digits_apart(share: float, limit: float, digits: int = 2, shown: Shown = percent) -> int:
    """So many digits that a figure and the limit that it does not keep read differently."""
    while shown(share, digits) == shown(limit, digits) and digits < _MOST_DIGITS:
        digits += 1
    return digits


# intervals


def interval_of(parts: Sequence[tuple[Wide, Wide] | None], shares: Sequence[float]) -> Interval | None:
    """Bounds of the sum over parts of share · Σ errors / Σ spreads, from (errors, spreads) of each sample, (samples,).

    None where a part has none, or where there are fewer than two samples or no error at all.
    """
    pairs = [p for p in parts if p is not None]
    if not pairs or len(pairs) < len(parts) or len(pairs[0][0]) < 2:
        return None
    count = len(pairs[0][0])
    whole = float(sum(w * e.sum() / s.sum() for w, (e, s) in zip(shares, pairs, strict=True)))
    with np.errstate(divide="ignore", invalid="ignore"):
        each = [w * (e.sum() - e) / (s.sum() - s) for w, (e, s) in zip(shares, pairs, strict=True)]
        without = np.sum(each, axis=0)
    if not (whole > 0.0 and np.isfinite(without).all()):
        return None
    logs = np.log(np.maximum(without, 1e-6 * whole))
    error = float(np.sqrt((count - 1) / count * ((logs - logs.mean()) ** 2).sum()))
    single = sum(w * count * e / s.sum() for w, (e, s) in zip(shares, pairs, strict=True))
    variance = float(np.log(np.maximum(single, 1e-6 * whole)).var(ddof=1))
    error = max(error, float(np.sqrt(variance / count + variance**2 / (2 * (count - 1)))))
    factor = float(np.exp(min(stdtrit(count - 1, 0.5 + _CONFIDENCE / 2) * error, 50.0)))
    return whole / factor, whole * factor
