"""The performance benchmark: what it makes, runs taken up again, and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.performance import __main__ as command
from benchmarks.performance import networks, tables
from benchmarks.performance.measure import Case, made, measure
from onnxprune.runtime.session import Session
from tests.compare import assert_same


def row(case: Case, passes: float = 4.0, peak: float = 1e9, **more: Any) -> dict[str, Any]:
    """A row with figures that the test does not speak of."""
    stages = dict.fromkeys(("calibrate", "select", "allocate", "refit"), passes / 4)
    usual = {"model_bytes": 100_000_000, "stages": stages, "plain_pass_seconds": 1.0, "seconds": passes}
    sizes = {"samples": case.samples, "width": case.width, "depth": case.depth, "options": [*case.options]}
    return {
        "key": case.key,
        "network": case.network,
        **sizes,
        **usual,
        "passes": passes,
        "peak_memory_bytes": peak,
        **more,
    }


# what is made


@pytest.mark.parametrize("depth", [1, 3])
def test_the_residual_cnn_is_valid_and_keeps_its_scale(tmp_path: Path, depth: int) -> None:
    """Fails where activations grow or vanish with depth, so that figures would be those of a broken network."""
    networks.residual_cnn(tmp_path / "cnn.onnx", width=8, depth=depth)
    model = onnx.load(tmp_path / "cnn.onnx")
    onnx.checker.check_model(model, full_check=True)
    networks.images(tmp_path / "x.npy", 5, networks.CNN_SIZE)
    out = Session(model).run({"input": np.load(tmp_path / "x.npy")})["output"]
    assert out.shape == (5, 10)
    assert 0.01 < out.std() < 10.0


def test_twice_the_width_is_four_times_the_weights(tmp_path: Path) -> None:
    """Fails where a size that the benchmark varies is not the one that it names."""
    count = {}
    for width in (32, 64):
        networks.residual_cnn(tmp_path / "cnn.onnx", width=width, depth=2)
        count[width] = sum(
            onnx.numpy_helper.to_array(t).size for t in onnx.load(tmp_path / "cnn.onnx").graph.initializer
        )
    assert 3.8 < count[64] / count[32] < 4.0


def test_images_are_smooth_standardised_and_seeded(tmp_path: Path) -> None:
    """Fails where the images are white noise, which no network was made for, or differ from run to run."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        networks.images(tmp_path / f"{name}.npy", 40, 16, seed)
    a, b, c = (np.load(tmp_path / f"{n}.npy") for n in "abc")
    assert_same(a, b, rtol=0.0, atol=0.0)
    assert not np.array_equal(a, c)
    assert_same(a.std(axis=(1, 2, 3)), np.ones(40, np.float32), rtol=1e-5, atol=0.0)
    steps = np.diff(a, axis=3).std() / a.std()
    assert steps < 0.9  # white noise has the root of two


def test_what_is_made_half_way_is_made_again(tmp_path: Path) -> None:
    """Fails where an interrupted export is taken for a network."""

    def broken(part: Path) -> None:
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "x", broken)
    assert not (tmp_path / "x").exists()
    assert made(tmp_path / "x", lambda part: part.write_text("whole") and None).read_text() == "whole"
    assert made(tmp_path / "x", broken).read_text() == "whole"


# runs


def test_a_run_says_what_it_cost(tmp_path: Path) -> None:
    """Fails where the program's report and the benchmark disagree on the names of what was measured."""
    found = measure(Case("cnn", 16, 16, 1, ("--seed", "3")), tmp_path, 600.0)
    assert "failure" not in found
    assert found["passes"] == pytest.approx(sum(found["stages"].values()) / found["plain_pass_seconds"], rel=1e-6)
    assert set(tables.STAGES) <= {*found["stages"]}
    assert found["peak_memory_bytes"] > 1e7
    assert found["processor_seconds"] > 0.0
    assert found["macs_left"] <= 0.5


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    """Fails where one run that fails ends the benchmark, or leaves no line."""
    found = measure(Case("cnn", 16, 16, 1, ("--round-to", "1000")), tmp_path, 600.0)
    assert "too narrow" in found["failure"]


def test_runs_are_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where what has a line is run again, or where a size is left out."""
    ran: list[Case] = []

    def fake(case: Case, work: Path, seconds: float) -> dict[str, Any]:
        ran.append(case)
        return row(case)

    monkeypatch.setattr(command, "measure", fake)
    arguments = [str(tmp_path), "--out", str(tmp_path / "r.jsonl"), "--suite", "growth", "--repeats", "2"]
    command.main(arguments)
    assert len(ran) == 2 * 7  # three sizes each, of which the least is the same
    assert len({c.key for c in ran}) == len(ran)
    command.main(arguments)
    assert len(ran) == 2 * 7
    command.main([*arguments, "--again"])
    assert len(ran) == 4 * 7
    command.main([*arguments, "--options", "--jobs", "2"])
    assert ran[-1].options == ("--jobs", "2")
    assert len(ran) == 6 * 7


# tables


def test_bars_are_met_or_missed() -> None:
    """Fails where a bar is read the wrong way round, or the limit of memory forgets the model."""
    good, slow, large = Case("resnet50", 256), Case("vgg16", 256), Case("vit_b_32", 256)
    text = tables.networks([row(good), row(slow, passes=10.1), row(large, peak=1.81e9)])
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()[2:]}
    assert lines["resnet50"].count("met") == 2
    assert lines["vgg16"].count("**missed**") == 1 and "| **missed** | 1,000" in lines["vgg16"]
    assert lines["vit_b_32"].rstrip(" |").endswith("**missed**")
    assert "1,800" in lines["vit_b_32"]


def test_a_failure_is_in_the_table() -> None:
    """Fails where a network that could not be run is left out of the page."""
    found = row(Case("vgg16", 256), failure="out of memory")
    assert "out of memory" in tables.networks([found])


def test_exponents_are_those_of_the_sizes() -> None:
    """Fails where several sizes are varied at once, or the exponent is of the wrong measure."""
    rows = []
    for width, depth, samples in ((16, 2, 128), (32, 2, 128), (64, 2, 128), (16, 4, 128), (16, 8, 128)):
        cost = (width / 16) ** 2 * (depth / 2) ** 1.5
        for repeat in range(3):
            rows.append(row(Case("cnn", samples, width, depth, repeat=repeat), passes=cost, peak=1e8 * depth))
    head, _, *lines = tables.growth(rows).splitlines()
    found = {line.split(" | ")[0].strip("| "): [c.strip(" |") for c in line.split(" | ")] for line in lines}
    column = [c.strip(" |") for c in head.split(" | ")].index("whole run")
    assert float(found["width"][column]) == pytest.approx(2.0)
    assert float(found["depth"][column]) == pytest.approx(1.5)
    assert float(found["depth"][-1]) == pytest.approx(1.0)
    assert "samples" not in found


def test_the_page_is_filled(tmp_path: Path) -> None:
    """Fails where the page of the documentation asks for a table that is not made."""
    page = tmp_path / "page.md"
    page.write_text(Path("docs/performance.md").read_text(encoding="utf-8"), encoding="utf-8")
    results = tmp_path / "r.jsonl"
    results.write_text(json.dumps(row(Case("resnet50", 256), passes=7.7)) + "\n", encoding="utf-8")
    command.main(["--out", str(results), "--render", str(page)])
    text = page.read_text(encoding="utf-8")
    assert "| resnet50 | 256 | 1.0 | 7.7 | 7.7 | met |" in text
    assert "Not measured yet" in text
    page.write_text("<!-- table: nothing -->\n<!-- end -->\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="'nothing'"):
        command.main(["--out", str(results), "--render", str(page)])
