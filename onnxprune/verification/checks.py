"""Checks on the pruned model; a file is written only when all of them hold.

1. ONNX's checker and strict shape inference.  2. The normalised model equals the original, and the slice, as it is cut
and as it would be written, equals the masked oracle, before anything is fitted, at several sizes of the symbolic
dimensions; models in half precision are held against it in single precision.  3. onnxruntime runs the result at these
sizes, with outputs of the original's shapes, finite where the original's are.  4. Outputs are finite on the calibration
data; the discrepancy is measured on samples that the fit did not see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any, Protocol

import numpy as np
import onnx

from onnxprune.errors import CheckFailed, RunError
from onnxprune.graph import protobuf
from onnxprune.graph.bodies import captured_names
from onnxprune.graph.kept_inputs import unspecified
from onnxprune.graph.unrounded import in_full_accuracy, is_quantized, without_rounding
from onnxprune.graph.view import Shape
from onnxprune.intake.first_run import Trial
from onnxprune.measures.masked import near
from onnxprune.normalise import distinct, resized, symbols, together
from onnxprune.numerics.arrays import Array, cast, is_float
from onnxprune.runtime import single_precision
from onnxprune.runtime.session import Feeds, Session
from onnxprune.verification import in_front
from onnxprune.verification.stepwise import Stepwise, computes_on_codes

TOLERANCE = 1e-4
HALF_TOLERANCE = 1e-2
# Dimensions that are changed alone: caches of many layers declare hundreds.
_MOST_ALONE = 8
# The largest tensor of a run at another size.
_MOST_ENTRIES = 1 << 28
# Relative to the spread of the inputs; and to each of them, relative to the tolerance.
_NOISE, _ROUNDING = 0.02, 0.03
_DRAWS = 3
# The largest of many errors of rounding, of operators in another order, to that of the original.
_TIMES_THE_OWN = 2.0


@dataclass(frozen=True)
class Exactness:
    """Largest relative differences: normalised against original, slice against oracle, at so many input sizes."""

    normalised: float
    slice: float
    tolerance: float
    sizes: int = 1


class TurnsOnRounding(CheckFailed):
    """Rounding at the inputs moves outputs by more than the tolerance, whatever inputs are drawn."""


def structure(proto: onnx.ModelProto, original: onnx.ModelProto | None = None) -> None:
    """ONNX's checker and strict shape inference; each only where `original` passes it. Raises CheckFailed.

    Exporters write bfloat16 into operators of versions that do not know it, and operators of onnxruntime into the
    standard domain, which runtimes accept; onnxruntime opens and runs the result in any case.
    """
    try:
        protobuf.check(proto, strict=original is None or _passes(original, strict=True))
    except Exception as e:  # the checker's and the inference's errors share no base class
        if original is None or _passes(original, strict=False):
            raise CheckFailed(f"the pruned model is not valid ONNX: {' '.join(str(e).split())[:300]}") from e


def _passes(proto: onnx.ModelProto, *, strict: bool) -> bool:
    try:
        protobuf.check(proto, strict=strict)
    except Exception:  # noqa: BLE001  as above
        return False
    return True


def other_sizes(
    original: onnx.ModelProto,
    example: Feeds,
    shapes: Mapping[str, Shape] | None = None,
    reached: Sequence[Feeds] = (),
) -> list[dict[str, Array]]:
    """Inputs at other sizes of the symbolic dimensions, larger and odd ones among them, that the original takes.

    Each of the first dimensions alone, all at once, one sample, and those that were `reached` when the model was
    normalised. shapes: of all tensors with `example`; sizes at which the largest would take more than a gigabyte in
    single precision are left out.
    """
    if not symbols(example, original):
        return []
    accepts = Trial(original)  # what it does at sizes that nobody has tried is tried in a process of its own
    largest = max((prod(s) for s in (shapes or {}).values()), default=0)
    tried: dict[str, Feeds | None] = {}

    def entries(feeds: Feeds) -> int:
        return sum(v.size for v in feeds.values() if isinstance(v, np.ndarray))

    def runs(feeds: Feeds) -> bool:
        key = _sizes(feeds)
        if key not in tried:
            grown = entries(feeds) / max(entries(example), 1)
            fits = grown <= 1 or grown * largest <= _MOST_ENTRIES
            # With noise, unless a size is among the numbers.
            drawn = (varied(feeds, len(tried) + 1), feeds) if fits else ()
            tried[key] = next((d for d in drawn if accepts(d)), None)
        return tried[key] is not None

    runs(example)
    alone = [v for v in resized(example, original, runs, _MOST_ALONE) if runs(v)]
    alone += [dict(v) for v in reached if runs(v)]
    others = distinct([dict(example), *alone, *together(example, original, runs, more=True)])[1:]
    return [dict(tried[_sizes(v)] or v) for v in others]


def varied(feeds: Feeds, seed: int) -> dict[str, Array]:
    """The inputs with noise of a fiftieth of their spread, within their range.

    A repeated sample has ties that rounding breaks in any way, which no real one has.
    """
    rng = np.random.default_rng(seed)
    noisy: dict[str, Array] = {}
    for name, v in feeds.items():
        noisy[name] = v
        if _varies(v) and v.size > 1:
            x = v.astype(np.float64)
            noisy[name] = cast(np.clip(x + _NOISE * x.std() * rng.standard_normal(x.shape), x.min(), x.max()), v.dtype)
    return noisy


def _varies(value: object) -> bool:
    """Whether an input is made of real numbers, to which noise can be added."""
    return isinstance(value, np.ndarray) and is_float(value.dtype)


def exactness(
    original: onnx.ModelProto,
    normalised: onnx.ModelProto,
    sliced: onnx.ModelProto,
    oracle: onnx.ModelProto,
    feeds: Feeds,
    others: Sequence[Feeds] = (),
    *,
    finished: onnx.ModelProto | None = None,
    fitted: tuple[onnx.ModelProto, onnx.ModelProto] | None = None,
    before: tuple[float, int] | None = None,
) -> Exactness:
    """Compare the models on one batch, and on `others` of other sizes. Raises CheckFailed beyond the tolerance.

    finished: the slice as it would be written if nothing were fitted; it must equal the oracle too. fitted: the model
    to write and the fitted slice that it was made of, equal on the batch: weights that are packed again, or folded, are
    others there than in `finished`. before: what `normal_form` found at these sizes, where it was asked already.
    Slice and oracle of a quantized model are compared without the rounding of activations (`graph.unrounded`); those of
    one in half precision in single, as sums over many channels differ in float16 for reasons of their own; those of one
    in float64 as the graph stands, as onnxruntime reads the epsilon of what it fuses as float32. Where rounding decides
    how many rows the outputs have, slice and oracle are compared in front of what makes the rows (`in_front`).
    """
    half, quantized = single_precision.uses(original, single_precision.HALF), is_quantized(normalised)
    sizes = (feeds, *others)
    normalised_by, first = before or normal_form(original, normalised, sizes)
    plain = not quantized and not single_precision.uses(original, single_precision.DOUBLE)

    def session(proto: onnx.ModelProto) -> Session:
        return Session(without_rounding(proto) if quantized else proto, single=half, optimize=plain)

    def compared(
        made: Mapping[str, onnx.ModelProto],
        reference: onnx.ModelProto,
        called: str,
        at: Sequence[Feeds],
        tolerance: float = TOLERANCE,
    ) -> tuple[float, int]:
        try:
            sessions = {what: session(p) for what, p in made.items()}
            return _compared(sessions, session(reference), called, at, tolerance, unspecified(original))
        except TurnsOnRounding:
            parts = in_front.cut_in_front(made, reference)
            if parts is None:
                raise
            sessions = {what: session(p) for what, p in parts[0].items()}
            return _compared(sessions, session(parts[1]), called, at, tolerance)

    cut = {"sliced model": sliced} | ({} if finished is None else {"finished slice": finished})
    after, second = compared(cut, oracle, "masked original", sizes)
    if fitted is not None:
        # What is stored in half precision may be computed, and fitted, in single.
        tolerance = HALF_TOLERANCE if half else TOLERANCE
        compared({"model to write": fitted[0]}, fitted[1], "fitted slice", (feeds,), tolerance)
    return Exactness(normalised_by, after, TOLERANCE, min(first, second))


def normal_form(original: onnx.ModelProto, normalised: onnx.ModelProto, sizes: Sequence[Feeds]) -> tuple[float, int]:
    """(largest relative difference of the normalised model from the original, sizes at which it was measured).

    An original that computes with codes, and the normalised model, are compared from code to code (`stepwise`); one in
    half precision, where that takes it far from itself, in single too (`_InSingle`). Raises CheckFailed beyond the
    tolerance.
    """
    half, quantized = single_precision.uses(original, single_precision.HALF), is_quantized(normalised)
    normalised, original = in_full_accuracy(normalised), in_full_accuracy(original)
    # Kernels that compute with integers round at other places, and are fused where they can be: none of them here.
    normal: Runs
    if computes_on_codes(original):
        normal = stepwise = Stepwise(normalised, original)
        reference = stepwise.reference
    else:
        normal, reference = (Session(p, optimize=not quantized) for p in (normalised, original))
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    left_out = unspecified(original)
    in_single = _InSingle(normalised, original) if half and not quantized else None
    return _compared({"normalised model": normal}, reference, "original", sizes, tolerance, left_out, in_single)


def same_outputs(
    wide: onnx.ModelProto,
    narrow: onnx.ModelProto,
    picked: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    feeds: Feeds,
    others: Sequence[Feeds] = (),
    names: tuple[str, str] = ("model with listed tokens alone", "model with all tokens"),
    original: onnx.ModelProto | None = None,
) -> None:
    """Raises CheckFailed unless `narrow` gives what is picked of the outputs of `wide`, whose inputs it takes.

    names: of the two in messages, the narrow one first. original: what `wide` was made of, whose operators tell which
    outputs hold undefined entries; None where it is that itself.
    """
    half = single_precision.uses(wide, single_precision.HALF)
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    sessions, every = {names[0]: Session(narrow)}, _Picked(Session(wide), picked)
    _compared(sessions, every, names[1], (feeds, *others), tolerance, unspecified(original or wide))


@dataclass(frozen=True, eq=False)
class _InSingle:
    """Two models in half precision, in single: what is left of a difference between them there is none of rounding."""

    model: onnx.ModelProto
    reference: onnx.ModelProto

    @cached_property
    def _sessions(self) -> tuple[Session, Session]:
        return Session(self.model, single=True), Session(self.reference, single=True)

    def explains(
        self,
        given: Mapping[str, Array],
        expected: Mapping[str, Array],
        answers: Callable[[Session], Mapping[str, Array]],
        tolerance: float,
    ) -> bool:
        """Whether half precision alone makes `given` and `expected`, answers of the model and its reference, differ.

        Both are the same in single precision, and the model in half is off what they give there by no more than a
        tolerance, or than twice what its reference is.
        """
        model, reference = (answers(s) for s in self._sessions)
        own = largest_difference(expected, reference)
        if not (np.isfinite(own) and largest_difference(model, reference) <= TOLERANCE):
            return False
        return largest_difference(given, reference) <= max(_TIMES_THE_OWN * own, tolerance)


class Runs(Protocol):
    """What gives answers by name, as a session does."""

    def run(self, feeds: Feeds) -> dict[str, Any]:
        """The answers."""


@dataclass(frozen=True)
class _Picked:
    """A model of whose outputs only a part counts."""

    session: Session
    picked: Callable[[Mapping[str, Array]], Mapping[str, Array]]

    def run(self, feeds: Feeds) -> dict[str, Any]:
        return dict(self.picked(self.session.run(feeds)))


def _compared(
    sessions: Mapping[str, Runs],
    reference: Runs,
    name: str,
    sizes: Sequence[Feeds],
    tolerance: float,
    left_out: Set[str] = frozenset(),
    in_single: _InSingle | None = None,
) -> tuple[float, int]:
    """(largest difference from the reference, sizes at which it was measured). Raises CheckFailed beyond the tolerance.

    left_out: outputs that are not compared, as entries of them are undefined. in_single: what tells a difference that
    half precision makes from others.

    Where noise as small as rounding moves the reference itself by more (it ranks nearly equal numbers, say), other
    inputs of that size are drawn; a size other than the first at which it always does is not counted.
    """

    def answers(session: Runs, feeds: Feeds, what: str) -> dict[str, Array]:
        return _without(_run(session, feeds, what), left_out)

    worst, count = 0.0, 0
    for k, feeds in enumerate(sizes):
        for draw in range(_DRAWS):
            fed = varied(feeds, _DRAWS * k + draw) if draw else feeds
            expected = answers(reference, fed, name)
            given = {what: answers(s, fed, what) for what, s in sessions.items()}
            differences = {what: largest_difference(y, expected) for what, y in given.items()}
            what = max(differences, key=lambda d: differences[d])
            fine = differences[what] <= tolerance
            if not fine and in_single is not None:
                again = partial(answers, feeds=fed, what=what)
                fine = in_single.explains(given[what], expected, again, tolerance)
            if fine:
                worst, count = max(worst, differences[what]), count + 1
                break
            if not largest_difference(answers(reference, fed, name), expected) <= tolerance:
                raise CheckFailed(
                    f"the {name} computes something else at every run, as it draws random numbers: nothing can be "
                    "checked; give its random operators a seed, or take them out"
                )
            if _steady(partial(answers, reference), fed, expected, tolerance):
                raise CheckFailed(
                    f"the {what} differs from the {name} by {differences[what]:.1e} with inputs of {_sizes(fed)}: "
                    "please report this model"
                )
            if k == 0 and draw + 1 == _DRAWS:
                raise TurnsOnRounding(
                    f"the outputs of the {name} turn on rounding (changes of {_ROUNDING * tolerance:.0e} at the inputs "
                    f"move them by more than {tolerance:.0e}): whether the {what} is right cannot be checked"
                )
    return worst, count


def _run(session: Runs, feeds: Feeds, what: str) -> dict[str, Array]:
    try:
        return session.run(feeds)
    except RunError as e:
        raise CheckFailed(f"the {what} does not run with inputs of {_sizes(feeds)}: {e}; please report it") from e


def _without(outputs: Mapping[str, Array], names: Set[str]) -> dict[str, Array]:
    return {k: v for k, v in outputs.items() if k not in names}


def _steady(
    answers: Callable[[Feeds, str], dict[str, Array]], feeds: Feeds, expected: Mapping[str, Array], tolerance: float
) -> bool:
    """Whether rounding noise at the inputs leaves the outputs where they are."""
    rng = np.random.default_rng(0)
    for _ in range(_DRAWS):
        noisy = {
            k: cast(v * (1 + _ROUNDING * tolerance * rng.standard_normal(v.shape)), v.dtype) if _varies(v) else v
            for k, v in feeds.items()
        }
        if not largest_difference(answers(noisy, "reference"), expected) <= tolerance:
            return False
    return True


def _sizes(feeds: Feeds) -> str:
    arrays = {k: v for k, v in feeds.items() if isinstance(v, np.ndarray)}
    return ", ".join(f"{k} {'x'.join(map(str, v.shape)) or 'scalar'}" for k, v in arrays.items())


def largest_difference(outputs: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
    """Largest |a - b| over the outputs, relative to the largest |b| of that output; infinite where shapes differ.

    Values that are not finite must be the same on both sides; masked ones (-1e9) are no measure for the others.
    """
    worst = 0.0
    actual, expected = flat(outputs), flat(reference)
    if set(actual) != set(expected):
        return float("inf")
    for name, b in expected.items():
        a = actual[name]
        if isinstance(a, np.ndarray) != isinstance(b, np.ndarray):
            return float("inf")
        if not isinstance(b, np.ndarray):
            continue
        if a.shape != b.shape:
            return float("inf")
        if not (b.dtype == np.bool_ or np.issubdtype(b.dtype, np.number) or is_float(b.dtype)):
            if not np.array_equal(a, b):
                return float("inf")
            continue
        x, y = a.astype(np.float64), b.astype(np.float64)
        fine = np.isfinite(y)
        if not np.array_equal(x[~fine], y[~fine], equal_nan=True) or not np.isfinite(x[fine]).all():
            return float("inf")
        counts = near(y)
        for own in (counts, fine & ~counts):
            if own.any():
                scale = max(float(np.abs(y[own]).max()), 1e-30)
                worst = max(worst, float(np.abs(x[own] - y[own]).max()) / scale)
    return worst


def flat(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs with the entries of sequences each by itself; an optional output without a value is None."""
    entries: dict[str, Any] = {}
    for name, v in outputs.items():
        entries.update(flat({f"{name}[{i}]": x for i, x in enumerate(v)}) if isinstance(v, list) else {name: v})
    return entries


@dataclass(frozen=True)
class Shown:
    """What an output looks like: its shape, None where it is no tensor; whether all of it is finite, or any of it NaN.

    floating: whether it holds floating-point numbers, of which alone that says anything.
    """

    shape: Shape | None
    floating: bool = False
    finite: bool = True
    nan: bool = False

    @classmethod
    def of(cls, value: object) -> Shown:
        """Look at an output."""
        if not isinstance(value, np.ndarray):
            return cls(None)
        if not is_float(value.dtype):
            return cls(value.shape)
        return cls(value.shape, True, bool(np.isfinite(value).all()), bool(np.isnan(value).any()))


def shown_at(original: onnx.ModelProto, sizes: Sequence[Feeds]) -> tuple[Mapping[str, Shown] | None, ...]:
    """What the outputs look like at each of these sizes of the inputs; None where it does not take one."""
    session = Session(original)

    def shown(feeds: Feeds) -> Mapping[str, Shown] | None:
        try:
            return {k: Shown.of(v) for k, v in flat(session.run(feeds)).items()}
        except RunError:
            return None

    return tuple(shown(feeds) for feeds in sizes)


def runs_at_other_sizes(
    proto: onnx.ModelProto,
    original: onnx.ModelProto,
    feeds: Feeds,
    others: Sequence[Feeds],
    answers: Sequence[Mapping[str, Shown] | None] | None = None,
) -> int:
    """Run at every size, with outputs of the original's shapes, finite where its are; the number of sizes.

    answers: of the original at these sizes, where `shown_at` was asked already. Raises CheckFailed. Where the values of
    the data decide how large an output is, its size is not compared.
    """
    sizes = (feeds, *others)
    answers = shown_at(original, sizes) if answers is None else answers
    session, by_values, undefined, count = Session(proto), _sized_by_values(original), unspecified(original), 0
    for variant, expected in zip(sizes, answers, strict=True):
        if expected is None:
            continue
        try:
            got = {k: Shown.of(v) for k, v in flat(session.run(variant)).items()}
        except RunError as e:
            raise CheckFailed(f"the pruned model does not run at another input size: {e}") from e
        nothing = Shown(None)
        for name in {**expected, **got}:
            a, b = got.get(name, nothing), expected.get(name, nothing)
            if a.shape != b.shape and name not in by_values:
                raise CheckFailed(f"output {name!r} has shape {a.shape}, the original gives {b.shape}")
            if name in undefined:
                continue
            _check_finite(name, a, b, f"with inputs of {_sizes(variant)}")
        count += 1
    return count


def same_without(
    wide: onnx.ModelProto,
    narrow: onnx.ModelProto,
    picked: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    sizes: Sequence[Feeds],
) -> None:
    """Raises CheckFailed unless a model gives the same where inputs and outputs lack what it does not read or give.

    picked: of inputs or outputs, what is left. Sizes that `wide` does not take are left out.
    """
    before, after, undefined = Session(wide), Session(narrow), unspecified(narrow)
    for feeds in sizes:
        try:
            expected = picked(before.run(feeds))
        except RunError:
            continue
        given = _run(after, picked(feeds), "model with other inputs")
        difference = largest_difference(_without(given, undefined), _without(expected, undefined))
        if not difference <= TOLERANCE:
            raise CheckFailed(
                f"with other sizes of inputs and outputs the model gives something else ({difference:.1e}): please "
                "report this model"
            )


def _sized_by_values(proto: onnx.ModelProto) -> set[str]:
    """The outputs behind an operator that lists as many positions as the data makes it."""
    behind: set[str] = set()
    for n in proto.graph.node:
        if n.op_type in in_front.LISTS or behind & {*n.input, *captured_names(n)}:
            behind.update(n.output)
    return behind & {o.name for o in proto.graph.output}


def finite(outputs: Mapping[str, Array], reference: Mapping[str, Array], left_out: Set[str] = frozenset()) -> None:
    """Outputs are finite, or free of NaN, where the original's are throughout. Raises CheckFailed."""
    for name, y in outputs.items():
        if name in reference and name not in left_out:
            _check_finite(name, Shown.of(y), Shown.of(reference[name]), "on the calibration data")


def _check_finite(name: str, got: Shown, expected: Shown, where: str) -> None:
    if not (got.floating and expected.floating):
        return
    if expected.finite and not got.finite:
        raise CheckFailed(f"output {name!r} of the pruned model is not finite {where}")
    if not expected.nan and got.nan:
        raise CheckFailed(f"output {name!r} of the pruned model holds NaN {where}")
