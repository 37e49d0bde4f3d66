"""The forms of a report: JSON by its schema, Markdown, JUnit XML; of runs that are refused too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import onnx
import pytest

from onnxprune import BudgetUnreachable, CheckFailed, ModelError, NothingPrunable, OnnxPruneError, UsageError, prune
from onnxprune.cli import main
from onnxprune.errors import InputError
from onnxprune.report import document, templates
from onnxprune.report.files import FORMS, Reports, rendered
from onnxprune.report.junit import junit
from onnxprune.report.markdown import markdown
from tests import digits
from tests.report import documents
from tests.report.documents import QUICK

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report-schema.json").read_text(encoding="utf-8"))
RESNET, CALIB, TEST = (str(p) for p in (digits.path("resnet"), digits.CALIB, digits.TEST))


def strict(schema: Any) -> Any:
    """The schema that also refuses fields that it does not describe, where it describes any but those of the whole."""
    if isinstance(schema, list):
        return [strict(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    own = {k: strict(v) for k, v in schema.items()}
    if own.get("type") == "object" and "properties" in own and "$defs" not in own:
        own["additionalProperties"] = False
    if "$defs" in own:
        own["unevaluatedProperties"] = False
    return own


def check(data: dict[str, Any]) -> None:
    """Held against the schema as it is published, and as a full description."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for schema in (SCHEMA, strict(SCHEMA)):
        jsonschema.validate(data, schema, cls=jsonschema.Draft202012Validator)


@pytest.fixture
def done() -> dict[str, Any]:
    return documents.done()


def test_json_is_described_by_its_schema(done: dict[str, Any]):
    """Fails where a field is missing from the schema, or has another type than it says."""
    check(done)
    check(documents.older())
    check(json.loads(prune(digits.path("resnet"), None, digits.CALIB, dry_run=True, **QUICK).report.to_json()))
    with pytest.raises(jsonschema.ValidationError):
        check(done | {"brand_new": 1})
    with pytest.raises(jsonschema.ValidationError):
        check({k: v for k, v in done.items() if k != "groups"})


def test_curves_are_those_of_the_trials(done: dict[str, Any]):
    """Fails where a curve is of another group, misses what was tried or taken, or an error is left where all stay."""
    assert [c["group"] for c in done["curves"]] == list(range(len(done["groups"])))
    for c, g in zip(done["curves"], done["groups"], strict=True):
        assert {g["channels_before"], g["channels_after"], *c["tried"]} <= set(c["channels"])
        assert (c["channels"], c["errors"][-1], c["tried"] != []) == (sorted(c["channels"]), 0.0, True)
        saved = g["macs"][0] - g["macs"][1]
        assert (saved > 0) == (g["channels_after"] < g["channels_before"])
        # Of a group whose channels lie on one axis of two layers all MACs are a multiple of its channels.
        if g["producers"] == 1 == g["consumers"]:
            assert saved * g["channels_before"] == g["macs"][0] * (g["channels_before"] - g["channels_after"])


def test_eval_and_bench_write_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where a gate's outcome is not in the files, or they are not by the schema."""
    files = [tmp_path / f"e{suffix}" for suffix in (".json", ".md", ".xml")]
    reports = [x for f in files for x in ("--report", str(f))]
    args = ["eval", RESNET, "--against", RESNET, "--data", TEST, "--labels", "label", "--max-error", "5%"]
    assert main([*args, *reports]) == 0
    assert main([*args, *reports]) == 2  # they exist
    data = json.loads(files[0].read_text(encoding="utf-8"))
    check(data)
    (gate,) = data["gates"]
    assert (gate["name"], gate["limit"], gate["held"]) == ("--max-error", 0.05, True)
    assert data["command"] == ["onnxprune", *args, *reports]
    told = files[1].read_text(encoding="utf-8")
    assert f"| --max-error 0.05 | held | {gate['text']} |" in told
    assert (told.count("\n| top-1 |"), told.count("\n| agreement |")) == (1, 1)  # the task's scores have them too
    assert [c.get("name") for c in ElementTree.parse(files[2]).iter("testcase")] == ["--max-error 0.05", "eval"]
    assert main(["eval", RESNET, "--data", "missing.npz", "--labels", "label", *reports, "--overwrite"]) == 1
    data = json.loads(files[0].read_text(encoding="utf-8"))
    check(data)
    assert (data["status"], data["exit_code"], data["reason"]) == ("failed", 1, "missing.npz does not exist")
    assert len(list(ElementTree.parse(files[2]).iter("error"))) == 1
    files = [tmp_path / f"b{suffix}" for suffix in (".json", ".md", ".xml", ".html")]
    assert main(["bench", RESNET, RESNET, "--runs", "2", *(x for f in files for x in ("--report", str(f)))]) == 0
    check(json.loads(files[0].read_text(encoding="utf-8")))
    assert f"| {templates.markdown_text(RESNET)} |" in files[1].read_text(encoding="utf-8")
    (suite,) = ElementTree.parse(files[2]).iter("testsuite")
    assert suite.get("name") == f"onnxprune bench {RESNET} and {RESNET}"
    assert "samples per second" in files[3].read_text(encoding="utf-8")
    refused = ["bench", RESNET, RESNET, "--runs", "2", "--max-ratio", "1%", "--overwrite"]
    assert main([*refused, *(x for f in files for x in ("--report", str(f)))]) == 4
    for path in (files[1], files[3]):  # what was measured is what a failed gate is looked at for
        assert "samples per second" in path.read_text(encoding="utf-8")
    capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "error", "status"),
    [
        ({"max_error": 1e-6}, CheckFailed, "refused"),
        ({"ratio": 0.999}, BudgetUnreachable, "refused"),
        ({"exclude": ("nobody*",)}, UsageError, "failed"),
    ],
)
def test_a_refused_run_leaves_its_reports(tmp_path: Path, options: dict[str, Any], error: type, status: str):
    """Fails where a CI job that was refused has nothing to show, or anything but reports was written."""
    files = [tmp_path / f"r{suffix}" for suffix in FORMS]
    with pytest.raises(error) as e:
        prune(RESNET, tmp_path / "out.onnx", CALIB, report_file=files, plan_file=tmp_path / "p", **(QUICK | options))
    assert sorted(tmp_path.iterdir()) == sorted(files)
    data = json.loads(files[0].read_text(encoding="utf-8"))
    check(data)
    assert (data["status"], data["reason"], data["exit_code"]) == (status, str(e.value), error.exit_code)
    assert data["output"] is None
    assert data["calibration"]["samples"] == 256
    assert data["pinned"]
    # Of a gate everything is known that a run knows that it let through.
    assert ("before" in data) == (error is CheckFailed)
    suite = ElementTree.parse(tmp_path / "r.xml").getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("failures"), suite.get("errors")) == (("1", "0") if status == "refused" else ("0", "1"))


def test_a_model_that_cannot_be_pruned_or_read(tmp_path: Path):
    """Fails where the reasons why nothing was pruned are not in the report."""
    report = tmp_path / "r.json"
    text = '<ir_version: 10, opset_import: ["" : 17]> agraph (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }'
    model = onnx.parser.parse_model(text)
    with pytest.raises(NothingPrunable):
        prune(model, None, {"x": np.ones((4, 4), np.float32)}, report_file=report, ratio=0.5)
    data = json.loads(report.read_text(encoding="utf-8"))
    check(data)
    assert (data["error"], data["model"]) == ("NothingPrunable", "(in memory)")
    with pytest.raises(ModelError):
        prune(tmp_path / "none.onnx", None, report_file=report, ratio=0.5, overwrite=True)
    data = json.loads(report.read_text(encoding="utf-8"))
    check(data)
    assert (data["status"], data["model_sha256"], data["calibration"]) == ("failed", None, None)


@pytest.mark.parametrize("suffix", FORMS)
def test_a_refusal_replaces_reports_and_nothing_else(suffix: str, tmp_path: Path):
    """Fails where weights, say, that are called as a report are written over by the reason of the refusal."""
    report, seen = tmp_path / f"r{suffix}", list[str]()
    report.write_bytes(b"weights" * 1000)
    with pytest.raises(ModelError):
        prune(tmp_path / "none.onnx", None, report_file=report, ratio=0.5, overwrite=True, warn=seen.append)
    assert report.read_bytes() == b"weights" * 1000
    assert "is no earlier report, and stays" in seen[0]
    report.unlink()
    for kind in (RESNET, tmp_path / "none.onnx"):
        with pytest.raises(OnnxPruneError):
            prune(kind, None, report_file=report, ratio=0.999999, samples=2, overwrite=True)
    assert "none.onnx" in report.read_text(encoding="utf-8")


def test_a_suffix_of_no_form_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"'r\.pdf' by none: \.json: everything"):
        prune(RESNET, None, CALIB, report_file=[tmp_path / "a.json", tmp_path / "r.pdf"], **QUICK)
    assert not any(tmp_path.iterdir())
    assert Reports.of(None).paths == ()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "no report of onnxprune"),
        ('{"schema": "onnxprune-report", "schema_version": "2.0"}', "has version 2.0 of the schema"),
    ],
)
def test_what_is_no_report_is_refused(text: str, match: str):
    with pytest.raises(InputError, match=match):
        document.read(text, "r.json")


# what a model may bring in


@pytest.fixture
def evil() -> dict[str, Any]:
    return documents.evil(documents.done())


def test_hostile_names_stay_text_in_xml(evil: dict[str, Any]):
    """Fails where a control character makes the file invalid, or markup comes through."""
    root = ElementTree.fromstring(junit(evil))
    assert {e.tag for e in root.iter()} <= {"testsuites", "testsuite", "testcase", "failure", "system-out"}
    text = next(root.iter("failure")).text or ""
    assert "</script><img src=x onerror=alert(1)>" in text
    assert "\\x1b" in text


def cells(text: str) -> Iterator[int]:
    """The number of bars in each row of a table."""
    yield from (line.count("|") for line in text.splitlines() if line.startswith("|"))


def test_hostile_names_stay_text_in_markdown(done: dict[str, Any], evil: dict[str, Any]):
    """Fails where a name makes markup, a link, a mention, a cell or a line of its own."""
    text = markdown(evil)
    for mark in (
        "<img",
        "</script>",
        "`",
        "*_",
        "[a]",
        "http://",
        "\x1b",
        "\x00",
        "@me",
        "#1",
        "www.",
        "\u202e",
        ":tada",
    ):
        assert mark not in text.replace("&#", ""), mark
    assert set(cells(text)) <= set(cells(markdown(done))) | {4, 6}
    assert templates.markdown_text("conv_1.weight: 5 % (a, b)") == "conv_1.weight: 5 % (a, b)"


def test_every_form_is_written_whatever_the_names_hold(evil: dict[str, Any]):
    lone = evil | {"model": "\udc80"}
    for suffix in FORMS:
        assert rendered(lone, Path(f"r{suffix}")).decode("utf-8")


def test_the_outline_holds_every_multiplication(done: dict[str, Any]):
    """Fails where the drawing of the network loses a layer, or its widths are not those of the groups."""
    layers = done["layers"]
    assert [sum(x["macs"][i] for x in layers) for i in (0, 1)] == [done["before"]["macs"], done["after"]["macs"]]
    assert [x["kind"] for x in layers].count("join") == 4  # the sums of the residual blocks
    assert (layers[0]["kind"], layers[-1]["kind"]) == ("input", "output")
    assert all(s < i for i, x in enumerate(layers) for s in x["sources"])
    groups = done["groups"]
    changed = [x for x in layers if x["outputs"] and x["outputs"][0] != x["outputs"][1]]
    assert changed
    for x in changed:
        assert x["stays"] == ""
        assert x["outputs"] == [groups[x["group"]][f"channels_{when}"] for when in ("before", "after")]
    assert layers[-2]["stays"] == "the graph output 'logits' keeps its shape"
