"""The answers to the reviews: fits, statistics measured anew, records, the document, and the cheap sections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import parser

from benchmarks.fits import exponent, fitted
from experiments.paper import algebra, alone, convergence, scaling, text_global, text_theorem
from experiments.paper.__main__ import OF_BUNDLED, SECTIONS, main
from experiments.paper.ablation import Run, packed
from experiments.paper.batchnorm import reestimated
from experiments.paper.comparisons import Cell, against, bar
from experiments.paper.document import TITLES, points, render, write
from experiments.paper.figures import draw, names
from experiments.paper.markup import number, table, wrapped
from experiments.paper.networks import Bundled, Network, Prepared
from experiments.paper.records import Records
from onnxprune import prune
from onnxprune.runtime.session import Session
from onnxprune.selection.quadratic import Quadratic
from tests import digits
from tests.compare import assert_same


@pytest.fixture(scope="module")
def network() -> Network:
    test = np.load(digits.TEST)
    return Network(digits.path("resnet"), np.load(digits.CALIB)["input"], test["input"], test["label"])


@pytest.fixture(scope="module")
def group(network: Network) -> str:
    """The name of a group that layers read."""
    prepared = Prepared.of(network, 16, method="local")
    return next(g.name for g in prepared.coupled.taken.channels.groups if len(prepared.consumers[g.index]) == 1)


# fits


@pytest.mark.parametrize(
    ("curve", "best", "key", "value"),
    [
        (lambda n: 3.0 / n, "1/n", "constant", np.log10(3.0)),
        (lambda n: 0.2 / n**2, "1/n²", "constant", np.log10(0.2)),
        (lambda n: 5.0 * np.exp(-0.3 * n), "exp(-cn)", "exponent", 0.3),
        (lambda n: 2.0 * n**-1.5, "n^-p", "exponent", 1.5),
    ],
)
def test_a_curve_is_told_by_its_rate(curve: Any, best: str, key: str, value: float):
    """Fails where a rate is fitted in the wrong variable, or its constant is read in another base."""
    n = np.arange(1, 30)
    noisy = curve(n) * np.exp(0.01 * np.random.default_rng(0).normal(size=n.size))
    found = fitted(n, noisy)
    # A power fits 1/n and 1/n² as well, with a constant more.
    allowed = {best, "n^-p"} if best.startswith("1/") else {best}
    assert found["best"] in allowed
    assert found[best]["residual"] < 0.01
    assert abs(found[best][key] - value) < 0.02


def test_what_is_rounding_does_not_count():
    n = np.arange(1, 40)
    d = np.maximum(np.exp(-1.0 * n), 1e-9)
    assert abs(fitted(n, d)["exp(-cn)"]["exponent"] - 1.0) < 1e-6
    assert "best" not in fitted([1, 2, 3], [1.0, 0.5, 0.3])
    assert_same(exponent([1, 2, 4], [3.0, 24.0, 192.0]), 3.0, rtol=1e-12, atol=0.0)


# batch normalization


def test_statistics_measured_anew():
    """Two nodes that share their statistics, the second behind the first: against numpy, in float64."""
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[b, 3, 5, 5] x) => (float[b, 3, 5, 5] y)
        <float[3] s = {1.5, 0.5, 2.0}, float[3] b = {0.1, -0.2, 0.3}, float[3] m = {0.0, 1.0, 2.0},
         float[3] v = {1.0, 2.0, 3.0}>
        {
            h = BatchNormalization(x, s, b, m, v)
            r = Relu(h)
            y = BatchNormalization(r, s, b, m, v)
        }
    """)
    x = np.random.default_rng(0).normal(1.0, 2.0, (50, 3, 5, 5)).astype(np.float32)
    scale, shift = (np.array(a).reshape(3, 1, 1) for a in ((1.5, 0.5, 2.0), (0.1, -0.2, 0.3)))

    def normalised(t: Any) -> Any:
        mean, var = t.mean(axis=(0, 2, 3)).reshape(3, 1, 1), t.var(axis=(0, 2, 3)).reshape(3, 1, 1)
        return (t - mean) / np.sqrt(var + 1e-5) * scale + shift

    expected = normalised(np.maximum(normalised(x.astype(np.float64)), 0.0))
    found = Session(reestimated(model, x, batch=16)).run({"x": x})["y"]
    assert_same(found.astype(np.float64), expected, rtol=1e-5, atol=0.0)
    before = Session(model).run({"x": x})["y"]
    assert np.abs(before - expected).max() > 0.1
    assert not any(t.name == "m:0" for t in model.graph.initializer)


# records, markup


def test_a_row_is_measured_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    records = Records(tmp_path / "paper" / "results.json")
    records.add("a", "x", lambda: {"v": np.float64(1 / 3), "inf": float("inf"), "n": np.arange(2)})
    records.add("a", "x", lambda: pytest.fail("measured twice"))
    again = Records(records.path)
    assert again.section("a") == {"x": {"v": 0.333333, "inf": None, "n": [0, 1]}}
    again.forget("a")
    assert Records(records.path).section("a") == {}
    assert capsys.readouterr().out == "a: x\n"


def test_markup():
    assert table(["a", "b"], [["x", 0.01234], [None, 12345.0]]).splitlines()[2:] == ["| x | 0.0123 |", "|  | 1.2e+04 |"]
    assert [number(x) for x in (0, 3, 12000, 1e-7, True)] == ["0", "3", "12,000", "1.0e-07", "True"]
    assert max(map(len, wrapped("word " * 100).splitlines())) <= 120
    assert wrapped("| " + "word " * 100).count("\n") == 0


def test_the_bar_compares_equal_seeds(tmp_path: Path):
    """Fails where a seed that only one method has decides, or rows with other options are mixed in."""
    records = Records(tmp_path / "results.json")
    rows = [("local", 0, 90.0, 0.2), ("local", 1, 99.0, 0.01), ("global", 0, 91.0, 0.1), ("combined", 0, 90.6, 0.08)]
    for label, seed, top1, error in (*rows, ("combined, convex", 0, 0.0, 9.0)):
        run = Run("net", 0.5, label, "lockstep", seed, 8)
        records.add("ablation", run.key, lambda r=run, t=top1, e=error: vars(r) | {"top1": t, "output_error": e})
    [found] = bar(records)
    assert (found.cell, found.seeds) == (Cell("net", 0.5, "lockstep"), 1)
    assert found.top1 == (90.0, 91.0, 90.6)
    assert abs(found.difference + 0.4) < 1e-9
    assert found.holds
    assert abs(found.excess + 0.2) < 1e-9


def test_differences_and_their_noise(tmp_path: Path):
    """Fails where answers to the same image are not paired, or a seed of one selection alone counts."""
    records = Records(tmp_path / "results.json")
    rng = np.random.default_rng(0)
    right = {(label, seed): rng.random(203) < 0.8 for label in ("local", "gfs") for seed in (0, 1, 2)}
    for (label, seed), bits in right.items():
        run = Run("net", 0.5, label, "none", seed, 8)
        error = {"local": 0.1, "gfs": 0.2 if seed else 0.05}[label]
        row = vars(run) | {"images": 203, "right": packed(bits), "output_error": error}
        if (label, seed) != ("gfs", 2):
            records.add("ablation", run.key, lambda row=row: row)
    [found] = against(records, "local", "gfs")
    gained = np.array([100.0 * right["local", s] - 100.0 * right["gfs", s] for s in (0, 1)])
    assert (found.cell, found.seeds, found.lower) == (Cell("net", 0.5, "none"), 2, 1)
    assert found.top1 == pytest.approx(gained.mean())
    by_image = float(np.var(gained.mean(axis=0), ddof=1)) / 203
    assert found.noise == pytest.approx(np.sqrt(by_image + np.var(gained.mean(axis=1), ddof=1) / 2))
    assert found.error == pytest.approx(1.0)
    assert against(records, "local", "obs") == []


def test_a_method_at_once_sees_no_cut():
    """Fails where a selection that is called "at once" selects in sequence after all."""
    options = {"ratio": 0.5, "samples": 64, "fast": True, "round_to": 1}
    plans = {}
    for label in ("gfs", "gfs, at once"):
        run = Run("net", 0.5, label, "none", 0, 64)
        result = prune(digits.path("resnet"), None, digits.CALIB, config=run.config.with_options(**options))
        plans[label] = (json.loads(result.plan.to_json()), result.report.effort.stages)
    assert "imitate" in plans["gfs"][1]
    assert "imitate" not in plans["gfs, at once"][1]
    assert plans["gfs"][0]["groups"] != plans["gfs, at once"][0]["groups"]


# the sections for real


def test_steps_of_two_discrepancies():
    """The better of both by the true one: where that is the local one, the steps are those of local imitation."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(40, 12)) for _ in range(2))
    local, output = (Quadratic.of_gram(m.T @ m) for m in (a, b))
    taken: list[str] = []
    steps = [s for s, _ in zip(convergence.mixed(local, output, local.at, taken), range(8), strict=False)]
    assert all(abs(local.at(s.coefficients) - s.loss) < 1e-9 for s in steps)
    pure = [s.loss for s, _ in zip(convergence.imitation.greedy(local), range(8), strict=False)]
    assert steps[-1].loss <= 1.5 * pure[-1]
    assert taken[1:].count("local") >= taken[1:].count("global")


def test_the_bound_holds(network: Network, group: str):
    """c of the theorem is positive, and not above what the steps reach."""
    row = convergence.constants(network, group, 64)
    assert 0.0 < row["bound"] <= row["measured"]


def test_cheap_sections(network: Network, group: str):
    small = network.few(100)
    same = algebra.equivalence(small)
    assert same["cut_against_inputs"] < 1e-4
    folded = algebra.parameters(small, group, 64)
    assert folded["difference"] < folded["tolerance"]
    assert folded["operators"][0].get("Mul", 0) == folded["operators"][1].get("Mul", 0)
    signs = algebra.interval(small, group, 64)
    assert_same(np.array(signs["feasible"]), np.array([-3 / 7, 1.0]), rtol=0.0, atol=2e-4)
    assert signs["losses"]["as implemented"]["d"][-1] < signs["losses"]["other sign"]["d"][-1]
    cuts = alone.measure(small, group, 64, by_network=16)["cuts"]
    methods = ("local", "global", "exact")
    assert {(c["method"], c["removed"]) for c in cuts} == {(m, s) for m in methods for s in alone.SHARES}
    assert all(c["least-squares"]["output_error"] < 1.0 for c in cuts)


def test_costs_are_measured():
    row = scaling.columns((64, 128))
    assert all(s > 0 for m in row["methods"].values() for s in m["mib"])


def test_the_document(tmp_path: Path, network: Network, group: str):
    """From results of a few sections: figures, tables and text; what was not measured is named with its command."""
    records = Records(tmp_path / "paper" / "results.json")
    records.add("convergence", f"digits, {group}", lambda: convergence.measure(network.few(50), group, 48, points=6))
    records.add("equivalence", "digits", lambda: algebra.equivalence(network.few(50)))
    write(records, tmp_path)
    text = (tmp_path / "paper.md").read_text(encoding="utf-8")
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert heads == ["## Start here", *(f"## {k}. {t}" for k, t in TITLES.items())]
    assert "--only ablation" in text
    assert len(points(records)) == text.split("\n## ")[0].count("\n|") - 2
    assert {part.split(")")[0] for part in text.split("](paper/")[1:]} == {*names(records).values(), "results.json"}
    assert str(tmp_path) not in text


def test_the_figures(tmp_path: Path, network: Network, group: str):
    """Equal results give equal files, and those that the text names."""
    pytest.importorskip("matplotlib")
    records = Records(tmp_path / "results.json")
    records.add("convergence", f"digits, {group}", lambda: convergence.measure(network.few(50), group, 48, points=6))
    for folder in ("a", "b"):
        draw(Records(records.path), tmp_path / folder)
    found, again = ({p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()} for folder in ("a", "b"))
    assert found == again
    assert set(found) == set(names(records).values())
    assert all(text.startswith(b"<?xml") for text in found.values())


# the page


PAGE = Path(__file__).resolve().parents[1] / "docs" / "paper.md"


@pytest.fixture(scope="module")
def results() -> Records:
    return Records(PAGE.parent / "paper" / "results.json")


def test_the_page_is_what_its_results_say(results: Records):
    """Fails where a figure, or a sentence, was changed on the page alone, and where results changed without it."""
    assert PAGE.read_text(encoding="utf-8") == render(results)
    drawn = {p.name for p in (PAGE.parent / "paper").iterdir()} - {"results.json"}
    assert drawn == set(names(results).values())


def test_the_page_from_a_clone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where a section asks for a folder of models, or its text for results that the bundled ones do not give."""
    some = ["equivalence", "constants", "interval", "convergence", "ablation"]
    main(["--bundled", "--quick", "--only", *some, "--output", str(tmp_path)])
    records = Records(tmp_path / "paper" / "results.json")
    assert set(records.data) == set(some)
    assert "**This page is reduced**" in (tmp_path / "paper.md").read_text(encoding="utf-8")
    assert {k.split(":")[0] for k in capsys.readouterr().out.splitlines()} == set(some)
    with pytest.raises(SystemExit):
        main(["somewhere", "--bundled", "--output", str(tmp_path)])


def test_every_section_says_whether_the_bundled_models_have_it():
    """Fails where a section that needs other models is offered with these."""
    assert set(OF_BUNDLED) <= set(SECTIONS)
    assert not {"batchnorm", "start"} & {k for k, f in {**SECTIONS, **OF_BUNDLED}.items() if f is not None}
    for quick in (False, True):
        scope = Bundled().scope(quick)
        used = {p.network for p in (*scope.places, *scope.mixed, *scope.folded, scope.interval)}
        for name in {*used, *scope.equal, scope.timed[0], scope.kept[0]}:
            assert Bundled().network(name).path.exists()


# what the text counts


def test_steps_against_log_1_over_epsilon():
    """Fails where a power of n passes for a logarithm."""
    n = np.arange(1, 20001)
    assert text_theorem.decades(np.exp(-0.3 * n).tolist()) == [8, 16, 24, 31]
    logarithm, square, line = (
        text_theorem.growth(text_theorem.decades(d.tolist())) for d in (np.exp(-0.03 * n), 1.0 / n**2, 1.0 / n)
    )
    assert logarithm is not None and logarithm < 1.05 < text_theorem.LIKE_A_LOGARITHM
    assert square is not None and square > text_theorem.LIKE_A_LOGARITHM
    assert_same(np.array([square, line]), np.array([10**0.5, 10.0]), rtol=0.1, atol=0.0)
    assert text_theorem.growth([3, 9, None, None]) is None
    assert text_theorem.fewest({"n": [1, 2, 3], "d": [0.5, 0.1, 0.01]}, 0.1, 4) == 2
    assert text_theorem.fewest({"n": [1, 2, 3], "d": [0.5, 0.1, 0.01]}, 0.001, 4) == 4


def test_who_wins_a_cut(tmp_path: Path):
    """Fails where a loss is counted as a win, a layer twice, or a constant above another as the better one."""

    def cut(method: str, removed: float, output: float) -> dict[str, Any]:
        error = {"output_error": output, "agreement": 1.0, "top1": 1.0}
        values = {"local": 0.1, "output": output, "gauss_newton": output}
        return {"method": method, "removed": removed, **values, **dict.fromkeys(alone.REFITS, error)}

    def curve(constant: float, exponent: float) -> dict[str, Any]:
        return {"fit": {"exp(-cn)": {"constant": constant, "exponent": exponent}}}

    records = Records(tmp_path / "results.json")
    cuts = [cut("local", 0.5, 0.2), cut("global", 0.5, 0.1), cut("local", 0.25, 0.1), cut("global", 0.25, 0.3)]
    row = {"cuts": cuts, "curves": {"local": curve(0.0, 0.2), "global": curve(-0.1, 0.1)}, "exact": {}}
    records.add("alone", "x", lambda: row)
    found = text_global.cuts_of(records)
    assert text_global.lower(found, "global", "output") == (1, 2)
    assert text_global.lower(found, "global", "greedy", 0.5) == (1, 1)
    assert text_global.lower(found, "global", "local") == (0, 2)
    assert text_global.lower(found, "exact", "output") == (0, 0)
    assert text_global.factors(found, "global", 0.5) == [0.5]
    assert text_global.median_of(found, "global", "none") == pytest.approx(1.75)
    fits = text_global.fits(records)
    assert text_global.better(fits, "global", "constant") == (1, 1)
    assert text_global.better(fits, "global", "exponent") == (0, 1)
    assert "1 of 2 cuts" in text_global.alone(records)
