"""Reports as text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnxprune import inspect
from onnxprune.benchmark.measure import Bench, Comparison, Latency
from onnxprune.benchmark.profile import NodeTime
from onnxprune.channels.describe import PinnedDescription
from onnxprune.evaluation import Evaluation
from onnxprune.measures.figures import ERROR, Figure, Figures
from onnxprune.report import terminal, units
from onnxprune.report.summary import PinnedRow, Report
from onnxprune.report.terminal import Screen
from tests import digits
from tests.digits import pruned
from tests.report.documents import QUICK


@pytest.fixture
def report() -> Report:
    return replace(pruned("resnet", method="magnitude", refit="none").report, output="out.onnx", files=("out.onnx",))


def test_prune_report(report: Report):
    text = terminal.prune_report(report, Screen())
    for part in (
        *("before", "after", "removed", "MACs per sample", "parameters", "file size", "requested 50.0%"),
        *("held out", "normalised against original", "slice against masked original", "256 samples, 32 of them"),
        *("seed", "one plain pass", "peak memory", "written: out.onnx", "refit"),
    ):
        assert part in text
    for g in report.groups:
        assert (f"{g.channels_before} → {g.channels_after}" in text) or g.channels_before == g.channels_after
        assert (g.name in text) == (g.channels_before != g.channels_after)
    whole = sum(g.channels_before == g.channels_after for g in report.groups)
    assert f"{whole} unchanged: " in text


@pytest.mark.parametrize(
    ("screen", "verbose", "shown"),
    [(Screen(piped=True), True, True), (Screen(120), False, True), (Screen(), False, False)],
)
def test_what_each_group_saves_and_costs(report: Report, screen: Screen, verbose: bool, shown: bool):
    """Fails where a table is too narrow to say it, or -v leaves out a group that stays."""
    text = terminal.prune_report(report, screen, verbose=verbose)
    assert ("MACs saved" in text, "error alone" in text) == (shown, shown)
    for g in report.groups:
        assert (g.name in text) or not verbose
    assert ("error if cut" in text) == verbose


def test_what_tensorrt_refuses_is_told(report: Report):
    """Fails where nobody says that TensorRT's parser takes the result, or another target speaks of it."""
    told = pruned("resnet", **QUICK, target="tensorrt-fp16").report
    assert told.checks["tensorrt"] == []
    text = " ".join(terminal.prune_report(told, Screen()).split())
    assert "TensorRT's parser nothing refused (by its documentation)" in text
    assert "TensorRT" not in terminal.prune_report(report, Screen())
    refused = replace(told, checks={**told.checks, "tensorrt": ["a", "b"]})
    assert "2 refused: see the notes" in terminal.prune_report(refused, Screen())


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_width(report: Report, width: int):
    lines = terminal.prune_report(report, Screen(width)).splitlines()
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)


def test_times_stand_below_what_was_removed(report: Report):
    """Fails where the time of the report is another one than what was measured, or the machine is not named."""
    machine = {"processor": "AMD EPYC 0f", "providers": "CPUExecutionProvider", "threads": "2"}
    latency = {"batch": 4, "machine": machine, "before_seconds": 0.00125, "after_seconds": 0.0009, "measured": 0.72}
    latency |= {"predicted": 0.69, "layers": 9, "kinds": 5, "kinds_from_cache": 3}
    config = {**report.config, "budget": "latency"}
    timed = replace(report, config=config, achieved=0.28, requested=0.3, timing=latency)
    text = " ".join(terminal.prune_report(timed, Screen(200)).split())
    assert "latency removed 28.0%, requested 30.0%" in text
    assert "time of a run 1.25 ms → 0.9 ms (4 samples, CPUExecutionProvider, 2 threads, AMD EPYC 0f)" in text
    assert "69.0% of the original predicted, 72.0% measured (kinds of layers: 3 of 5 from earlier runs)" in text
    replayed = replace(timed, timing={**latency, "predicted": None, "batch": 1})
    text = " ".join(terminal.prune_report(replayed, Screen(200)).split())
    assert "(1 sample, " in text
    assert "predicted" not in text


def test_plain_text_has_no_control_codes(report: Report, monkeypatch: pytest.MonkeyPatch):
    """Fails where a log fills with colour codes because a variable in CI asks for them."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in terminal.prune_report(report, Screen())
    monkeypatch.delenv("FORCE_COLOR")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" in terminal.prune_report(report, Screen(colour=True))


def test_ascii(report: Report):
    assert terminal.prune_report(report, Screen(unicode=False)).isascii()


def test_pinned_axes_are_counted_by_reason(report: Report):
    rows = tuple(PinnedRow(f"w{i}", 0, 4, "Softmax", "it is normalised over", "nothing") for i in range(7))
    text = terminal.prune_report(replace(report, pinned=rows), Screen())
    line = next(x for x in text.splitlines() if "it is normalised over" in x)
    assert line.split()[-3:] == ["Softmax", "7", "28"]


@pytest.mark.parametrize("width", [40, 80, 100])
def test_remedies_stand_once_below_the_axes_that_they_would_free(report: Report, width: int):
    """Fails where a reason has no remedy on the screen, another one's, or the same sentence stands there twice."""
    rows = tuple(
        PinnedRow(f"w{i}", 0, 4, "Op", f"reason {i}", remedy)
        for i, remedy in enumerate(["export it anew", "nothing: it has to stay", "export it anew"])
    )
    found = replace(
        inspect(digits.path("resnet")),
        pinned=tuple(PinnedDescription(r.tensor, 0, 4, "node", "Op", r.reason, r.remedy) for r in rows),
    )
    screen = Screen(width)
    for text in (terminal.prune_report(replace(report, pinned=rows), screen), terminal.inspection(found, screen)):
        flat = " ".join(text.split())
        assert max(map(len, text.splitlines())) <= width
        assert [flat.count(x) for x in ("[1] export it anew", "[2] nothing: it has to stay", "[3]")] == [1, 1, 0]
        assert flat.count("export it anew") == 1
        assert [flat.count(f"[{i}]") for i in (1, 2)] == [3, 2]
        if width == 100:
            assert all(x in flat for x in ("reason 0 [1]", "reason 1 [2]", "reason 2 [1]"))


def test_names_are_not_markup(report: Report):
    """Fails where a name with brackets disappears, as rich would read it."""
    rows = (PinnedRow("w", 0, 4, "Op", "the axis [bold] of :smile:", "nothing"),)
    text = terminal.prune_report(replace(report, pinned=rows, notes=("[red] :+1:",)), Screen())
    assert "the axis [bold] of :smile:" in text
    assert "note: [red] :+1:" in text


def test_long_names_are_whole_where_no_window_limits_them(report: Report):
    """Fails where a name is folded or cut in a log, or a row takes more than a line anywhere."""
    names = ["front" + "x" * 150 + f"/back{i}" for i in range(3)]
    groups = tuple(replace(report.groups[1], name=n, channels_before=16, channels_after=8) for n in names)
    text = terminal.prune_report(replace(report, groups=groups), Screen(60, piped=True))
    assert all(any(line.split()[:1] == [n] for line in text.splitlines()) for n in names)
    text = terminal.prune_report(replace(report, groups=groups), Screen(60))
    rows = [x for x in text.splitlines() if "front" in x]
    assert len(rows) == 3
    assert all(len(x) <= 60 and "…" in x and f"/back{i}" in x and "16 → 8" in x for i, x in enumerate(rows))


def test_what_is_written_is_named(report: Report):
    files = ("out.onnx", "plan.json", "r.json", "out.0123.weights")
    text = terminal.prune_report(replace(report, files=files), Screen())
    assert "written: out.onnx, plan.json, r.json, out.0123.weights\n" in text


def test_nothing_prunable_and_everything_prunable():
    found = inspect(digits.path("resnet"))
    assert "99.9% of 42.7 k parameters and 100.0% of 1.12 M MACs can be pruned, in 6 groups" in terminal.inspection(
        found, Screen()
    )
    nothing = replace(found, groups=(), prunable=0)
    assert "no channel can be removed" in terminal.inspection(nothing, Screen())
    everything = replace(found, prunable=found.parameters, prunable_macs=found.macs, pinned=())
    text = terminal.inspection(everything, Screen())
    assert "100.0% of" in text
    assert "axes that stay" not in text


def test_many_consumers_are_counted():
    text = terminal.inspection(inspect(digits.path("resnet")), Screen(200))
    assert "/0/Conv, /3/conv2/Conv, /4/conv2/Conv => /3/conv1/Conv, /4/conv1/Conv, /5/conv1/Conv and 1 more" in text


def test_producers_and_consumers_are_whole_names_where_they_fit():
    """Fails where a name is cut to show another one, or a pipe gets a part of one."""
    found = inspect(digits.path("resnet"))
    narrow = terminal.inspection(found, Screen(100, piped=True))
    assert "/0/Conv and 2 more => /3/conv1/Conv and 3 more\n" in narrow
    assert "…" not in narrow
    assert max(map(len, terminal.inspection(found, Screen(80)).splitlines())) <= 80
    assert " /3/conv1/Conv => /3/conv2/Conv\n" in terminal.inspection(found, Screen(80))


@pytest.mark.parametrize("piped", [True, False])
def test_a_long_path_is_one_word_where_nobody_has_a_window(piped: bool):
    path = "/data/" + "x" * 90 + "/test.npz"
    full = Evaluation("slim.onnx", None, path, "", 500, None, None, None, None, ("kept",))
    assert (path in terminal.evaluation(full, Screen(80, piped=piped))) == piped


def test_evaluation_shows_what_was_measured():
    one = Figure(("y",), "", ERROR, 0.05)
    figures = Figures(0.05, (0.04, 0.06), "", 0.97, (one,), 500, held_out=True)
    full = Evaluation("slim.onnx", "model.onnx", "data.npz", "", 500, 0.98, 0.99, 0.97, 0.05, ("a note",), figures)
    text = terminal.evaluation(full, Screen())
    for part in ("98.00%", "99.00% (drop: 1.00 points)", "97.00%", "5.00%", "500 samples", "note: a note"):
        assert part in text
    nothing = dict.fromkeys(("against", "accuracy", "original_accuracy", "agreement", "output_error", "figures"))
    bare = replace(full, notes=(), **nothing)
    assert terminal.evaluation(bare, Screen()).split() == ["slim.onnx", "data", "data.npz,", "500", "samples"]


FIRST = Latency(
    "a.onnx",
    2e-3,
    3e-3,
    500.0,
    4096,
    0.5,
    (NodeTime("c1", "Conv", "", 3e-3, 1.0), NodeTime("r", "Relu", "", 1e-3, 2.0)),
)
SECOND = Latency("b.onnx", 1e-3, 1.5e-3, 1000.0, 2048, 0.4, (NodeTime("c1", "Conv", "", 1e-3, 1.0),))
BENCH = Bench(
    (FIRST, SECOND),
    Comparison(0.5, (0.48, 0.53), (0.49, 0.52)),
    *("CPUExecutionProvider", "onnxruntime 1.0", "model", "cpu"),
    **{"threads": 0, "batch": 4, "inputs": {"x": (4, 3)}, "data": "data.npz", "rounds": 100, "warmup": 10},
)


def test_benchmark_shows_two_models_beside_each_other():
    text = terminal.benchmark(replace(BENCH, notes=("a note",)), Screen())
    flat = " ".join(text.split())
    for part in (
        *("[1] a.onnx", "[2] b.onnx", "median 2 ms 1 ms", "samples per second 500 1000", "4.0 KiB 2.0 KiB"),
        *("0.500 × (95% interval in this run: 0.490 to 0.520) that of [1]", "half of the rounds: 0.480 to 0.530"),
        *("100 rounds, in turns, after 10 to warm up", "x 4x3 (batch 4; data.npz)", "note: a note"),
        *("Conv 3 ms 75.0% 1 1 ms 100.0% 1", "Relu 1 ms 25.0% 2", "c1 Conv 3 ms 1 ms"),
    ):
        assert part in flat
    assert "too close" not in text


@pytest.mark.parametrize(("threads", "said"), [(0, ""), (1, ", 1 thread"), (2, ", 2 threads")])
def test_threads_are_counted_in_words_that_fit(threads: int, said: str):
    text = " ".join(terminal.benchmark(replace(BENCH, threads=threads), Screen(200)).split())
    assert f"run by onnxruntime 1.0, CPUExecutionProvider{said} " in text + " "


def test_benchmark_of_one_model():
    text = terminal.benchmark(replace(BENCH, models=(replace(FIRST, nodes=()),), comparison=None), Screen())
    assert "[1]" not in text
    assert "operators" not in text
    assert "100 runs, after 10" in text


@pytest.mark.parametrize("interval", [None, (0.98, 1.03), (0.992, 0.994)])
def test_a_difference_that_was_not_measured_is_none(interval: tuple[float, float] | None):
    found = replace(BENCH, comparison=Comparison(0.99, (0.9, 1.1), interval))
    assert "too close, or too noisy, to tell the models apart" in terminal.benchmark(found, Screen())


def test_slow_nodes_are_shown_and_the_others_counted():
    nodes = tuple(NodeTime(f"node{i}", "Conv", "", 1e-3 * i, 1.0) for i in range(1, 16))
    text = terminal.benchmark(replace(BENCH, models=(replace(FIRST, nodes=nodes),), comparison=None), Screen())
    assert "node15 " in text
    assert "node5 " not in text
    assert "and 5 more" in text


@pytest.mark.parametrize("width", [40, 80, 100])
def test_width_of_a_benchmark(width: int):
    assert max(map(len, terminal.benchmark(BENCH, Screen(width)).splitlines())) <= width


def test_latency_of_a_pruned_model(report: Report):
    text = " ".join(terminal.prune_report(replace(report, latency=BENCH.as_dict()), Screen()).split())
    assert "latency, CPU 2 ms 1 ms 50.0%" in text
    assert "0.500 × (95% interval in this run: 0.490 to 0.520) of the original's, median of 100 rounds in turns" in text


@pytest.mark.parametrize(("seconds", "text"), [(2.51e-5, "0.0251 ms"), (0.01234, "12.3 ms"), (1.25, "1250 ms")])
def test_latency(seconds: float, text: str):
    assert units.latency(seconds) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"),
        (9999, "9999"),
        (10_000, "10 k"),
        (42_698, "42.7 k"),
        (559_104, "559 k"),
        (4.1e9, "4.1 G"),
        (1e12, "1000 G"),
    ],
)
def test_count(n: float, text: str):
    assert units.count(n) == text


@pytest.mark.parametrize(("n", "text"), [(10, "10 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (5 << 30, "5.0 GiB")])
def test_size(n: float, text: str):
    assert units.size(n) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.0123, "12 ms"), (3.44, "3.4 s"), (125.2, "2 min 05 s")])
def test_duration(seconds: float, text: str):
    assert units.duration(seconds) == text
