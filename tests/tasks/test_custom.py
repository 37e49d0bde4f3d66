"""A user's own function: what it gets, what it may give, and one line for whatever goes wrong in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.errors import RunError, UsageError
from onnxprune.tasks import custom
from tests.tasks.scores import answered

A = answered(np.ones((2, 3)), np.zeros((2, 3)), np.array([1, 2]))
BARE = answered(np.ones((2, 3)))


def test_what_it_gets_and_gives():
    def own(outputs: Any, originals: Any, labels: Any) -> dict[str, float]:
        return {"sum": outputs["o"].sum(), "before": originals["o"].sum(), "labels": np.array([labels.sum()])}

    found = custom.measured(custom.of(own), A)
    assert [(s.name, s.value) for s in found] == [("sum", 6.0), ("before", 0.0), ("labels", 3.0)]
    nothing = custom.measured(custom.of(lambda outputs, originals, labels: float(originals is labels is None)), BARE)
    assert nothing[0].value == 1.0


def test_a_function_of_a_file(tmp_path: Path):
    file = tmp_path / "my metric.py"
    file.write_text("import numpy as np\ndef worst(y, y0, labels):\n    return np.abs(y['o'] - y0['o']).max()\n")
    (score,) = custom.measured(custom.of(f"{file}:worst"), A)
    assert (score.name, score.value) == ("worst", 1.0)
    assert str(file) in score.about


@pytest.mark.parametrize("name", ["top-1", "Agreement", "boxes:cosine"])
def test_a_name_that_is_taken(name: str):
    """Fails where a limit on a figure of every evaluation is held to a number that a user's function calls so."""
    with pytest.raises(RunError, match="give it another name"):
        custom.measured(custom.of(lambda *_: {name: 1.0}), A)
    with pytest.raises(RunError, match="two numbers of one name"):
        custom.measured(custom.of(lambda *_: {1: 1.0, "1": 2.0}), A)


def test_what_is_not_finite_is_not_measured():
    (score,) = custom.measured(custom.of(lambda *_: {"x": float("nan")}), A)
    assert (score.value, score.why) == (None, "it is nan")


@pytest.mark.parametrize(
    ("text", "spec", "match"),
    [
        ("", "metric.py", "write file.py:function"),
        ("", "metric.py:1", "write file.py:function"),
        ("", "missing.py:f", "does not exist"),
        ("", "metric.py:f", "has no function 'f'; it has none"),
        ("def mean(y, y0, labels): ...", "metric.py:meen", "did you mean mean"),
        ("x = (", "metric.py:f", "does not run: SyntaxError in line 1"),
        ("\n1 / 0", "metric.py:f", "does not run: ZeroDivisionError in line 2: division by zero"),
        ("import no_such_thing", "metric.py:f", "ModuleNotFoundError in line 1"),
    ],
)
def test_a_file_that_gives_none(tmp_path: Path, text: str, spec: str, match: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("metric.py").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match=match) as caught:
        custom.of(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("return y['p']", "metric f of metric.py raised KeyError in line 2: 'p'"),
        ("raise SystemExit(0)", "raised SystemExit in line 2: 0"),
        ("raise ValueError('two\\nlines')", "raised ValueError in line 2: two lines"),
        ("return 'good'", "gave 'good' for 'f'; give a number"),
        ("return None", "gave None"),
        ("return True", "gave True"),
        ("return y['o']", "give a number"),
        ("return {}", "gave 0 numbers"),
        ("return {i: i for i in range(200)}", "gave 200 numbers"),
    ],
)
def test_errors_in_it_are_one_line(tmp_path: Path, body: str, match: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("metric.py").write_text(f"def f(y, y0, labels):\n    {body}\n", encoding="utf-8")
    with pytest.raises(RunError, match=match) as caught:
        custom.measured(custom.of("metric.py:f"), A)
    assert "\n" not in str(caught.value)
