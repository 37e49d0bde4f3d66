"""Arrays in memory: by input name, or one for a model with a single input."""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.data import parts
from onnxprune.data.given import Given
from onnxprune.data.inputs import InputSpec
from onnxprune.errors import CalibrationError


def by_name(arrays: Mapping[str, object], specs: tuple[InputSpec, ...]) -> Given:
    """Arrays by input name. Raises CalibrationError."""
    notes: list[str] = []
    data = {parts.key(k): parts.as_array(k, v) for k, v in arrays.items()}
    return Given(specs, (parts.checked(data, specs, "the data", notes),), "arrays in memory", tuple(notes))


def alone(array: object, specs: tuple[InputSpec, ...]) -> Given:
    """All samples of a model with one input. Raises CalibrationError."""
    if len(specs) != 1:
        names = ", ".join(repr(s.name) for s in specs)
        raise CalibrationError(
            f"the data is one array, and the model has several inputs ({names}): give a dict by name"
        )
    return by_name({specs[0].name: array}, specs)
