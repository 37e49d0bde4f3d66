"""Every error that onnxprune raises on purpose, with the exit code that the command line gives it.

OnnxPruneError
├── InputError            1  a model or data file cannot be read, is malformed or does not fit
│   ├── ModelError           the model
│   └── CalibrationError     the calibration or evaluation data
├── RunError              1  onnxruntime cannot run the model, or the output cannot be written
├── UsageError            2  options that contradict each other or are out of range
├── NothingPrunable       3  no channel of the model can be removed
├── BudgetUnreachable     3  the budget cannot be met within the constraints
└── CheckFailed           4  a verification or a quality gate did not hold; nothing was written

A message is one line: what is wrong, where, and what to do.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0


class OnnxPruneError(Exception):
    """Base of all deliberate errors; `exit_code` is what the command line returns."""

    exit_code: ClassVar[int] = 1


class InputError(OnnxPruneError):
    """Something that the user handed in cannot be read or does not fit."""


class ModelError(InputError):
    """The model is missing, corrupt, not ONNX, or invalid."""


class CalibrationError(InputError):
    """The data is missing, empty, not finite, or does not fit the model's inputs."""


class RunError(OnnxPruneError):
    """onnxruntime refused to run the model, or the output could not be written."""


class UsageError(OnnxPruneError):
    """The options are out of range or contradict each other."""

    exit_code = 2


class NothingPrunable(OnnxPruneError):
    """No channel of the model can be removed; the message names the most frequent reasons."""

    exit_code = 3


class BudgetUnreachable(OnnxPruneError):
    """The requested budget cannot be met; the message says what can."""

    exit_code = 3


class CheckFailed(OnnxPruneError):
    """The pruned model failed a verification or a quality gate."""

    exit_code = 4
