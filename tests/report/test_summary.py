"""The report as data."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from onnxprune.report.summary import Effort, Size
from onnxprune.stages.report import larger
from tests.digits import pruned


def test_json_has_no_infinity():
    """Fails where a strict reader refuses the report."""
    report = pruned("resnet", method="magnitude", refit="none").report
    wild = replace(report, output_error=math.inf, checks={"held_out_error": {"none": math.nan, "scale": -math.inf}})
    data = json.loads(wild.to_json(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    assert data["output_error"] is None
    assert data["checks"] == {"held_out_error": {"none": None, "scale": None}}


def test_effort():
    effort = Effort({"load": 1.0, "refit": 3.0}, 0.5, None)
    assert effort.seconds == 4.0
    assert effort.passes == 8.0
    assert math.isnan(Effort({"load": 1.0}, 0.0, None).passes)


def test_a_file_that_has_grown_is_told():
    """Fails where a result that is larger than its original passes for a slim one."""
    before, same, more = Size(10, 10, 1000), Size(5, 5, 1000), Size(5, 5, 1001)
    assert larger(before, same) == larger(before, Size(5, 5, 0)) == ()
    (note,) = larger(before, more)
    assert note.startswith("the file is 1 bytes larger than the original's")
