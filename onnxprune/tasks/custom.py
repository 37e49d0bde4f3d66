"""A metric of the user's own: a function in a file, of (outputs, outputs of the original, labels), which runs as it is.

The function gets two dictionaries of arrays by output name, first axis = samples, and the labels as the data has them;
the second is None without an original, the third without labels. It gives a number, or numbers by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from numbers import Real
from pathlib import Path
from typing import Any

from onnxprune.errors import RunError, UsageError
from onnxprune.options import nearest, shown, typed
from onnxprune.tasks.answered import NUMBER, Answered, Score, number
from onnxprune.user_code import RAISED, functions_in, line_of

_MOST = 100
# What limits and reports call figures that are measured beside any metric.
_TAKEN = ("top-1", "agreement", "error", "cosine", "largest-difference")


@dataclass(frozen=True)
class Metric:
    """A function, its name, and the file that it is in; "" where the caller gave the function itself."""

    name: str
    function: Callable[..., Any]
    path: str

    def __str__(self) -> str:
        return f"{self.name} of {self.path}" if self.path else self.name


def of(metric: str | Callable[..., object]) -> Metric:
    """The metric of file.py:function, or of a function. Raises UsageError where it is neither, or cannot run."""
    if callable(metric):
        return Metric(str(getattr(metric, "__name__", "metric")), metric, "")
    return _loaded(typed("metric", metric, "str"))


def _loaded(spec: str) -> Metric:
    path, colon, name = spec.rpartition(":")
    if not (colon and path and name.isidentifier()):
        raise UsageError(f"{spec!r} is no metric; write file.py:function")
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"{path} does not exist, or is no file; a metric is file.py:function")
    found = spec_from_file_location("onnxprune_metric", file)
    if found is None or found.loader is None:
        raise UsageError(f"{path} is no Python file; a metric is file.py:function")
    module = module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except RAISED as e:
        raise UsageError(f"{path} does not run: {_told(e, path)}") from e
    function = getattr(module, name, None)
    if not callable(function):
        functions = functions_in(module)
        near = nearest(name, functions)
        there = f"did you mean {near}?" if near else f"it has {', '.join(functions) or 'none'}"
        raise UsageError(f"{path} has no function {name!r}; {there}")
    return Metric(name, function, path)


def measured(metric: Metric, a: Answered) -> tuple[Score, ...]:
    """The numbers that the function gives. Raises RunError where it raises anything, or gives something else."""
    originals = None if a.originals is None else dict(a.originals)
    try:
        given = metric.function(dict(a.outputs), originals, a.labels)
    except RAISED as e:
        raise RunError(f"the metric {metric} raised {_told(e, metric.path)}") from e
    values = given if isinstance(given, Mapping) else {metric.name: given}
    if not values or len(values) > _MOST:
        raise RunError(f"the metric {metric} gave {len(values)} numbers; it gives one to {_MOST}")
    scores = tuple(_score(_named(k, metric), v, metric) for k, v in values.items())
    if len({s.name for s in scores}) < len(scores):
        raise RunError(f"the metric {metric} gave two numbers of one name: {', '.join(s.name for s in scores)}")
    return scores


def _named(key: object, metric: Metric) -> str:
    """The name of a number. Raises RunError for one by which limits and reports mean a figure of every evaluation."""
    name = str(key)
    if name.lower().rpartition(":")[2] in _TAKEN:
        raise RunError(
            f"the metric {metric} calls a number {shown(name)}, which every evaluation has a figure of its own for: "
            f"give it another name, such as {shown('my ' + name)}"
        )
    return name


def _score(key: str, value: Any, metric: Metric) -> Score:
    if hasattr(value, "item") and getattr(value, "size", 0) == 1:  # numpy's, torch's
        value = value.item()
    if type(value).__name__ == "bool" or not isinstance(value, Real):
        raise RunError(f"the metric {metric} gave {' '.join(shown(value).split())} for {key!r}; give a number")
    own = number(float(value))
    return Score(key, f"by {metric}", own, unit=NUMBER, why="" if own is not None else f"it is {value}")


def _told(error: BaseException, path: str) -> str:
    """An error and the line of the user's file that it came from, in one line."""
    line = line_of(error, Path(path)) if path else 0
    where = f" in line {line}" if line else ""
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    return f"{type(error).__name__}{where}" + (f": {text}" if text else "")
