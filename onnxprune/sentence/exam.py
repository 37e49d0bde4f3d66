"""What a cut has to hold: limits, and the data that they are asked of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx

from onnxprune.data.accepted import Data
from onnxprune.data.samples import Samples
from onnxprune.errors import CheckFailed, UsageError
from onnxprune.evaluation import Evaluation, Original, evaluate_beside, gates_of, samples_for
from onnxprune.graph import external
from onnxprune.intake.model_file import ModelLike
from onnxprune.measures.figures import Figures, change_of, percent
from onnxprune.measures.gates import Gate
from onnxprune.options import error_limit, typed
from onnxprune.stages.clock import Clock
from onnxprune.stages.load import Loaded
from onnxprune.stages.verify import error_gate

TestData = Data | None


@dataclass(frozen=True)
class Limits:
    """What may be lost at most: points of top-1, the share of samples that get another class, the error of any output.

    Raises UsageError for a limit that is none.
    """

    max_drop: float | None = None
    min_agreement: float | None = None
    max_error: float | None = None

    def __post_init__(self) -> None:
        for name, most in (("max_drop", 100.0), ("min_agreement", 1.0)):
            limit = typed(name, getattr(self, name), "float | None")
            if limit is not None and not 0.0 <= limit <= most:
                raise UsageError(f"{name} is {limit}; it is from 0 to {most:g}")
            object.__setattr__(self, name, limit)
        object.__setattr__(self, "max_error", error_limit(self.max_error))

    def __bool__(self) -> bool:
        return any(v is not None for v in self.given.values())

    @property
    def given(self) -> dict[str, float | None]:
        """All of them by name."""
        return {"max_drop": self.max_drop, "min_agreement": self.min_agreement, "max_error": self.max_error}

    def gates_of(self, result: Evaluation) -> tuple[Gate, ...]:
        """What came of each limit. Raises UsageError where what one limits was not measured."""
        return gates_of(result, max_drop=self.max_drop, min_agreement=self.min_agreement, max_error=self.max_error)

    def broken_by(self, result: Evaluation) -> str:
        """What does not hold, "" where all does. Raises UsageError as `gates_of`."""
        return "; ".join(g.text for g in self.gates_of(result) if not g.held)


class Finished(Protocol):
    """A finished model. wide: with the inputs and outputs of the original. figures: on the samples that judge; None
    where it does not run."""

    @property
    def wide(self) -> onnx.ModelProto:
        """With the inputs and outputs of the original."""

    @property
    def figures(self) -> Figures | None:
        """On the samples that judge."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Exam:
    """How finished models are judged: on test data beside the original, or by the samples that were held out.

    original: what models are held against on test data. test: None for the held-out samples, labels: the key of the
    classes in it.
    """

    original: Original | None
    limits: Limits
    test: Samples | None = None
    labels: str | None = None
    options: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        model: ModelLike,
        loaded: Loaded,
        test: TestData,
        labels: str | None,
        limits: Limits,
        *,
        state: tuple[str, ...] = (),
        allow_links: bool = False,
    ) -> Exam:
        """Read the test data. Raises InputError, and UsageError where a limit needs data or labels that there are not.

        labels: None for the only key that holds an integer for each sample, where there is one.
        """
        options = {"state": state, "allow_links": allow_links}
        if test is None:
            if limits.max_drop is not None or labels is not None:
                raise UsageError("what is lost of top-1 is told by labelled test data: give it with --test")
            return cls(original=None, limits=limits, options=options)
        samples = samples_for(loaded.original, test, state)
        found = labels if labels is not None else _classes_in(samples)
        if limits.max_drop is not None and found is None:
            keys = ", ".join(samples.extras) or "none"
            raise UsageError(
                f"max_drop needs labels, and the test data has no single key of integers for them (further keys: "
                f"{keys}); name it with --labels"
            )
        original = Original.of(model, allow_links=allow_links)
        return cls(original=original, limits=limits, test=samples, labels=found, options=options)

    def result_of(self, checked: Finished, loaded: Loaded) -> Evaluation:
        """What was measured of a finished model."""
        if self.test is not None and self.original is not None:
            whole: onnx.ModelProto = external.embedded(checked.wide)
            return evaluate_beside(self.original, whole, self.test, labels=self.labels, **self.options)
        figures = checked.figures
        if figures is None:
            raise CheckFailed("the result does not run, so nothing was measured of it")
        return Evaluation(
            "",
            loaded.source.path,
            loaded.fit.origin,
            loaded.data_sha256,
            figures.samples,
            None,
            None,
            figures.agreement,
            figures.error,
            (),
            figures,
        )

    def asked_of(self, checked: Finished, loaded: Loaded, stage: Clock) -> tuple[tuple[Gate, ...], tuple[str, ...]]:
        """(what came of each limit, what the test data says) of a finished model."""
        if self.test is None and not self.limits:
            return (), ()
        if self.test is None and checked.figures is None:
            return error_gate(None, self.limits.max_error or 0.0), ()
        with stage("judge"):
            result = self.result_of(checked, loaded)
        return self.limits.gates_of(result), () if self.test is None else (self.said_of(result),)

    def said_of(self, result: Evaluation) -> str:
        """The figures in one line."""
        parts = []
        if result.accuracy is not None:
            told = "" if result.drop is None else " ({}: {} points)".format(*change_of(result.drop))
            parts.append(f"top-1 {percent(result.accuracy)}{told}")
        if result.agreement is not None:
            parts.append(f"agreement {percent(result.agreement)}")
        if result.output_error is not None:
            parts.append(f"output error {percent(result.output_error)}")
        return f"{', '.join(parts) or 'nothing measured'} on {result.samples} {self.where}"

    @property
    def where(self) -> str:
        """What is judged on."""
        return "held-out samples" if self.test is None else f"test samples ({self.test.origin})"


def _classes_in(samples: Samples) -> str | None:
    """The only key with an integer for each sample."""
    keys = [
        k for k, v in samples.extras.items() if np.issubdtype(v.dtype, np.integer) and v.size == len(v) == len(samples)
    ]
    return keys[0] if len(keys) == 1 else None
