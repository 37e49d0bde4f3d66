"""The architectures of the paper through every method: which runs there are, what they give, what is said of them."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.paper import paper_networks, text_networks
from experiments.paper.ablation import Run
from experiments.paper.markup import wrapped
from experiments.paper.networks import Kit
from experiments.paper.paper_networks import ARCHITECTURES, EVERY_REFIT, SECTION, Architecture
from experiments.paper.records import Records
from onnxprune.methods import METHODS, with_scales
from tests import digits

PAGE = Path(__file__).resolve().parent.parent / "docs" / "paper.md"
KIT = """
import numpy as np
def for_model(path, split):
    data = np.load({folder!r} + f"/digits_{{split}}.npz")
    return data["input"][:64], data["label"][:64] if "label" in data else np.zeros(64)
"""


def test_every_method_has_its_runs():
    """Fails where a method of the table of methods, or a refit that it has, is left out on one of the networks."""
    runs = list(paper_networks.runs(False))
    every = {(m, f) for m in METHODS for f in ("lockstep", "least-squares")} | {(m, "greedy") for m in with_scales()}
    for a in ARCHITECTURES:
        assert a.refits[0] == "lockstep"
        expected = {(m, f) for m, f in every if f in a.refits}
        assert 0.5 in a.ratios
        for ratio in a.ratios:
            some = [(r.label, r.refit) for r in runs if (r.network, r.ratio, r.samples) == (a.name, ratio, a.samples)]
            assert sorted(some) == sorted(expected)
    assert len({(r.network, r.ratio, r.label, r.refit) for r in runs}) == len(runs)
    assert {r.samples for r in paper_networks.runs(True)} == {32}


def test_the_section_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Labels are used where weights were trained, and there alone; a refusal is a row with its reason."""
    (tmp_path / "kit.py").write_text(KIT.format(folder=str(digits.FOLDER)), encoding="utf-8")
    for folder, name in (("models", "resnet"), ("arch", "mobilenet")):
        (tmp_path / folder).mkdir()
        shutil.copy(digits.path(name), tmp_path / folder / f"{name}.onnx")
    known = (Architecture("resnet", "models", 32), Architecture("mobilenet", "arch", 32))
    chosen = [
        Run("resnet", 0.3, "local", "greedy", 0, 32),
        Run("mobilenet", 0.3, "magnitude", "least-squares", 0, 32),
        Run("mobilenet", 0.999, "magnitude", "least-squares", 0, 32),
    ]
    monkeypatch.setattr(paper_networks, "ARCHITECTURES", known)
    monkeypatch.setattr(paper_networks, "runs", lambda quick: iter(chosen))
    records = Records(tmp_path / "results.json")
    paper_networks.measure_all(Kit(tmp_path), records, True)
    rows = dict(records.rows(SECTION))
    trained, untrained, refused = (
        rows[k]
        for k in (
            "resnet 0.3 local greedy",
            "mobilenet 0.3 magnitude least-squares",
            "mobilenet 0.999 magnitude least-squares",
        )
    )
    assert trained["top1_before"] > 80.0
    assert trained["tests"] == 64
    assert "top1" not in untrained
    assert "top1_before" not in untrained
    assert untrained["tests"] == paper_networks.DRAWN
    assert 10.0 <= untrained["common"] <= 100.0
    assert untrained["macs_left"] <= 0.7
    assert "ratio" in refused["refused"]
    assert "agreement" not in refused
    said = text_networks.networks(records)
    assert refused["refused"] in said
    assert "Refused runs: 1;" in said


def test_random_inputs_fit_the_model():
    """Calibration and test are different samples, and the same ones every time."""
    first, again = (paper_networks.drawn(digits.path("resnet"), 5, 7) for _ in range(2))
    assert first.calib.shape == (5, *np.load(digits.CALIB)["input"].shape[1:])
    assert len(first.test) == len(first.labels) == 7
    assert np.array_equal(first.calib, again.calib)
    assert not np.array_equal(first.calib, first.test[:5])
    assert first.labels.max() < 0


# what is said of the rows


def row(method: str, refit: str, error: float, **other: Any) -> dict[str, Any]:
    trained = other.pop("trained", True)
    found = vars(Run(other.pop("network", "net"), 0.5, method, refit, 0, 8)) | {
        "trained": trained,
        "tests": 1000,
        "common": 20.0,
        "agreement": 90.0,
        "output_error": error,
        "macs_left": 0.5,
        "refit_kept": refit,
    }
    return {**found, **({"top1": 95.0, "top1_before": 97.0} if trained else {}), **other}


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Two networks, the second untrained; combined ends as global does."""
    found = Records(tmp_path / "results.json")
    errors = {"obs": 0.1, "local": 0.3, "global": 0.2, "combined": 0.2, "gfs": 1.5, "random": 0.25}
    errors |= {"gfs-outputs": 0.9, "taylor": 0.6, "magnitude": 0.7}
    rows = [row(m, "lockstep", e, network=n, trained=n == "net") for m, e in errors.items() for n in ("net", "other")]
    rows += [row("local", "least-squares", 0.4, top1=50.0), row("obs", "least-squares", 0.05)]
    rows += [row("local", "least-squares", 0.2, network="other", trained=False, refit_kept="none")]
    found.data[SECTION] = {f"{r['network']} {r['label']} {r['refit']}": r for r in rows}
    del found.data[SECTION]["other magnitude lockstep"]
    found.data[SECTION]["net gfs lockstep"]["top1"] = 30.0
    found.data[SECTION]["net combined lockstep"]["top1"] = 94.0
    return found


def test_what_rows_say(records: Records):
    """By hand. Fails where trained and random weights, or refits, are mixed, a tie counts as a victory, or the best
    of a few methods as the best of all."""
    cells = text_networks.cells_of(records)
    assert text_networks.lower(cells, "local", "gfs", "lockstep", trained=True) == (1, 1, 0)
    assert text_networks.lower(cells, "combined", "global", "lockstep", trained=True) == (1, 0, 1)
    assert text_networks.lower(cells, "local", "obs", "least-squares", trained=True) == (1, 0, 0)
    assert text_networks.lower(cells, "local", "obs", "least-squares", trained=False) == (0, 0, 0)
    assert text_networks.best(cells, "lockstep", trained=True) == Counter({"obs": 1})
    assert text_networks.best(cells, "lockstep", trained=False) == Counter()
    assert text_networks.not_above_parts(cells, "lockstep") == (2, 2)
    assert text_networks.walked(cells, trained=True) == (1, 2)
    assert text_networks.walked(cells, trained=False) == (0, 1)
    said = text_networks.networks(records)
    assert "loses with lockstep is 3.0 points of top-1 (combined, net, -50 %)" in said
    assert "(error of 1 or more): 2, namely gfs with lockstep on net (1)" in said
    assert "The largest error is 1.5 (gfs with lockstep" in said
    assert "did better on held-out samples: 1." in said
    assert "chosen at random in 2 of 3 pairs" in said
    assert "| combined against global | 0 of 1, 1 equal / 0 of 1, 1 equal | none / none | none / none |" in said
    assert "No run was refused." in said
    records.data[SECTION]["net combined lockstep"]["output_error"] = 0.21
    assert text_networks.not_above_parts(text_networks.cells_of(records), "lockstep") == (1, 2)


def test_untrained_networks_have_no_top1(records: Records):
    tables = text_networks.networks(records).split("\n\n")
    first, second = (k for k, block in enumerate(tables) if block.startswith("**") and "MACs**" in block)
    assert "top-1" in tables[first]
    assert "lockstep: top-1" in tables[first + 1]
    assert "random weights" in tables[second]
    assert "top-1" not in tables[second] + tables[second + 1]
    assert "| obs | 90.0 | 0.1 |" in tables[second + 1]
    assert "| magnitude |  |  |  |  |\n" in tables[second + 1]


def test_a_table_has_the_refits_of_its_network(records: Records):
    """A method that finds no coefficients has a dash for greedy, not an empty cell."""
    records.data[SECTION]["net local greedy"] = row("local", "greedy", 0.3)
    tables = text_networks.networks(records).split("\n\n")
    first, second = (block for block in tables if block.startswith("|  | lockstep: "))
    assert [r in first for r in EVERY_REFIT] == [True, True, True]
    assert [r in second for r in EVERY_REFIT] == [True, True, False]
    assert "| magnitude | 95.0 | 90.0 | 0.7 |  |  |  | - |  |  |" in first


def test_the_page_follows_from_its_results():
    """Section 11 as it stands in docs/paper.md. Fails where the one was changed without the other."""
    text = text_networks.networks(Records(PAGE.parent / "paper" / "results.json"))
    page = PAGE.read_text(encoding="utf-8")
    for block in text.split("\n\n"):
        assert wrapped(block) in page
