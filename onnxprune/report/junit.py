"""A report as JUnit XML: a test case for every check and every gate, for the test view of a CI.

The format is that of the Ant task, as GitLab, Jenkins, GitHub's actions and Azure read it: a gate that is not kept is a
failure, what could not be read or run is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from onnxprune.measures.gates import as_typed
from onnxprune.report import view
from onnxprune.report.document import FAILED, REFUSED, Document
from onnxprune.report.points import said_of
from onnxprune.report.visible import made_visible

_CHECKS = (
    ("normalised_against_original", "normalised against original"),
    ("slice_against_oracle", "slice against masked original"),
)


@dataclass(frozen=True)
class Case:
    """A check that was made. problem: "" where it held, else "failure" or "error"."""

    name: str
    text: str
    problem: str = ""


def junit(document: Document) -> str:
    """The document as XML text; characters that XML does not know are written as Python writes them."""
    document = made_visible(document)
    cases = list(_cases(document))
    count = {kind: str(sum(c.problem == kind for c in cases)) for kind in ("failure", "error")}
    seconds = f"{_seconds(document):.3f}"
    totals = {"tests": str(len(cases)), "failures": count["failure"], "errors": count["error"], "time": seconds}
    suites = ElementTree.Element("testsuites", {"name": "onnxprune", **totals})
    name = f"onnxprune {document['kind']} {view.subject(document)}".rstrip()
    stamp = str(document.get("created", "")).partition("+")[0]
    suite = ElementTree.SubElement(suites, "testsuite", {"name": name, **totals, "skipped": "0", "timestamp": stamp})
    for case in cases:
        own = {"classname": f"onnxprune.{document['kind']}", "name": case.name, "time": "0.000"}
        element = ElementTree.SubElement(suite, "testcase", own)
        if case.problem:
            problem = ElementTree.SubElement(element, case.problem, {"message": case.text, "type": case.problem})
            problem.text = case.text
        else:
            ElementTree.SubElement(element, "system-out").text = case.text
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _cases(document: Document) -> Iterator[Case]:
    checks = document.get("checks") or {}
    for key, name in _CHECKS:
        if checks.get(key) is not None:
            held = checks[key] <= checks["tolerance"]
            text = f"{checks[key]:.1e}, at most {checks['tolerance']:.0e} allowed"
            yield Case(name, text, "" if held else "failure")
    gates = document.get("gates") or ()
    for gate in gates:
        yield Case(as_typed(gate["name"], gate["limit"]), gate["text"], "" if gate["held"] else "failure")
    status, reason = document["status"], str(document.get("reason") or "")
    if status == FAILED:
        yield Case(str(document["kind"]), reason, "error")
    elif status == REFUSED and all(g["held"] for g in gates):
        yield Case(str(document["kind"]), reason, "failure")
    elif status not in (REFUSED, FAILED):
        yield Case(str(document["kind"]), _said(document))


def _said(document: Document) -> str:
    """What a run that went through has found, in a line."""
    if document.get("points"):
        return said_of(document)[0]
    verdict: dict[str, Any] = document.get("verdict") or {}
    return str(verdict.get("text") or "done")


def _seconds(document: Document) -> float:
    return float((document.get("effort") or {}).get("seconds") or 0.0)
