"""The report of a sweep: every form, made at once or from its JSON, and of sweeps that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from onnxprune import sweep
from onnxprune.cli import main
from onnxprune.errors import BudgetUnreachable
from onnxprune.report import document, points
from onnxprune.report.page import html
from tests import digits
from tests.report import documents
from tests.report.test_forms import check

RESNET, CALIB = (str(p) for p in (digits.path("resnet"), digits.CALIB))
QUICK = ("--calib", CALIB, "--samples", "64", "--method", "magnitude", "--refit", "none", "--ratios", "0.3,0.5")


def test_every_form_at_once_or_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where a form of a sweep is missing, is not by the schema, or differs when it is made from sweep.json."""
    folder, files = tmp_path / "cuts", [tmp_path / f"s{suffix}" for suffix in (".html", ".md", ".xml", ".json")]
    reports = [x for f in files for x in ("--report", str(f))]
    assert main(["sweep", RESNET, str(folder), *QUICK, "--keep", "best", *reports]) == 0
    written = "".join(capsys.readouterr().out.partition("written:")[2].split()).split(",")
    assert sorted(map(Path, written)) == sorted(p for p in tmp_path.rglob("*") if p.is_file())
    data = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    check(data)
    assert data["command"][:3] == ["onnxprune", "sweep", RESNET]
    assert [g["channels_before"] for g in data["groups"]] == [g["channels_after"] for g in data["groups"]]
    assert {c["group"] for c in data["curves"]} == set(range(len(data["groups"])))
    later = [tmp_path / f"later{f.suffix}" for f in files]
    assert main(["report", str(folder / "sweep.json"), *map(str, later)]) == 0
    for at_once, made in zip(files, later, strict=True):
        assert at_once.read_bytes() == made.read_bytes()
    text = files[1].read_text(encoding="utf-8")
    assert text == (folder / "sweep.md").read_text(encoding="utf-8")
    assert "| asked | removed | MACs |" in text


def test_no_cut_that_holds_is_a_refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where a report says that a sweep is done of which the command says that nothing holds."""
    files = [tmp_path / "s.json", tmp_path / "s.xml"]
    reports = [x for f in files for x in ("--report", str(f))]
    assert main(["sweep", RESNET, str(tmp_path / "cuts"), *QUICK, "--max-error", "1e-9", *reports]) == 3
    data = json.loads(files[0].read_text(encoding="utf-8"))
    check(data)
    assert (data["status"], data["reason"], data["exit_code"]) == ("refused", "no cut holds --max-error 1e-09", 3)
    assert len(list(ElementTree.parse(files[1]).iter("failure"))) == 1
    capsys.readouterr()


def test_a_sweep_that_is_refused_leaves_its_reports(tmp_path: Path):
    """Fails where nothing says why there is no table, or there is one."""
    report = tmp_path / "s.json"
    with pytest.raises(BudgetUnreachable) as e:
        sweep(RESNET, tmp_path / "cuts", CALIB, ratios=(0.999,), samples=64, report_file=report, command=("a", "b"))
    data = json.loads(report.read_text(encoding="utf-8"))
    check(data)
    assert (data["kind"], data["status"], data["reason"], data["command"]) == (
        "sweep",
        "refused",
        str(e.value),
        ["a", "b"],
    )
    assert sorted(tmp_path.iterdir()) == [report]


def test_a_sweep_of_version_0_4_0_is_read():
    """Fails where the JSON of a sweep that has a schema of its own is called no report."""
    made = documents.swept()
    older = {
        k: v for k, v in made.items() if k not in ("schema_version", "kind", "status", "reason", "exit_code", "effort")
    }
    older |= {"schema": 1, "seconds": {"load": 1.0}}
    read = document.read(json.dumps(older), "sweep.json")
    assert (read["kind"], read["status"], read["effort"]["seconds"]) == ("sweep", "done", 1.0)
    assert points.table_of(read) == points.table_of(made)
    assert "Error against cost" in html(read)


def test_a_sweep_shows_itself_in_a_notebook():
    """Fails where `repr` fills a screen, or a notebook shows no table, or scripts."""
    found = sweep(RESNET, None, CALIB, ratios=(0.3,), samples=64, method="magnitude", refit="none")
    assert repr(found).startswith(f"<sweep of {RESNET!r}: 1 ratio, ") and len(repr(found)) < 300
    shown = found._repr_html_()
    assert "<td>30%</td>" in shown
    assert "<script" not in shown


def test_the_table_and_the_slider_tell_the_points():
    """Fails where a column is of another point, an estimate stands for what was not measured, or a width is wrong."""
    made = documents.swept()
    heads, rows = points.table_of(made)
    assert heads == ["asked", "removed", "MACs", "parameters", "file size", "error", "agreement", "verdict"]
    assert [r[0] for r in rows] == ["original", *(f"{10 * i}%" for i in range(1, 8))]
    front = points.front(made)
    assert front is not None
    assert (front["first"], front["original"]) == (2, made["original"]["macs"])
    assert [p["size"] for p in front["points"]] == [p["size"]["macs"] for p in made["points"]]
    assert dict(front["points"][2]["texts"])["error"] == "2.00%"
    table = points.widths(made)
    assert table is not None
    for row in table[1]:
        own = [p["widths"].get(row[0]) for p in made["points"]]
        assert [int(n) for n, w in zip(row[2:], own, strict=True) if w is not None] == [w for w in own if w is not None]
    bare: dict[str, Any] = made | {"points": [{"ratio": 0.9, "why": "at most 80% can"}], "groups": []}
    assert (points.table_of(bare)[1][1], points.widths(bare)) == (["90%", "", "", "", "", "not made"], None)
    assert points.said_of(bare) == ["no cut has a good verdict", "90%: at most 80% can"]
