"""The accuracy benchmark: keys, runs taken up again, failures that stay alone, sources of data, tables and pages."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy import reading, sources, suites, tables, vit
from benchmarks.accuracy.__main__ import main, option
from benchmarks.accuracy.execute import Limits, execute
from benchmarks.accuracy.kits import Kit
from benchmarks.accuracy.networks import Folders, Networks
from benchmarks.accuracy.page import TABLES, render
from benchmarks.accuracy.runs import Run, append, missing, read
from onnxprune.runtime.session import ort
from tests import digits
from tests.compare import assert_same

KIT = """
import numpy as np
from pathlib import Path

def for_model(path, split):
    if Path(path).stem.startswith("stripes"):
        x = np.linspace(-1.0, 3.0, 20 * 3 * 12 * 10, dtype=np.float32).reshape(20, 3, 12, 10)
        return x, np.zeros(20, np.int64)
    data = np.load({folder!r} + "/digits_" + split + ".npz")
    return data["input"], data["label"] if "label" in data else np.zeros(len(data["input"]), np.int64)
"""
QUICK = ["--methods", "magnitude", "--refits", "none", "--samples", "16", "--ratios", "0.3"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A kit of the bundled model, and of a second one whose data has another shape."""
    models = tmp_path / "kit" / "models"
    models.mkdir(parents=True)
    for name in ("digits_resnet", "stripes_resnet"):
        shutil.copy(digits.path("resnet"), models / f"{name}.onnx")
    (tmp_path / "kit" / "kit.py").write_text(KIT.format(folder=str(digits.FOLDER)), encoding="utf-8")
    return tmp_path / "kit"


def row(run: Run, **found: Any) -> dict[str, Any]:
    """A row with figures that the test does not speak of."""
    usual = {"top1_before": 90.0, "top1_after": 89.0, "agreement": 95.0, "macs_left": 0.5, "params_left": 0.6}
    return run.row(usual | {"seconds": 2.0, "passes": 4.0, "given": run.samples, **found})


# runs


def test_a_key_is_stable():
    """Fails where a change of the code would orphan results that were measured before it."""
    run = Run("net", 0.5, options={"b": [1, 2], "a": None})
    assert run.key == "net 0.5 onnxprune default default seed 0 samples 1024 own a=null b=[1, 2]"
    assert run.key == replace(run, options={"a": None, "b": [1, 2]}).key
    assert run == Run("net", 0.5, options={"a": None, "b": [1, 2]})


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"ratio": 0.51},
        {"tool": "onnxsim"},
        {"method": "obs"},
        {"refit": "none"},
        {"seed": 1},
        {"samples": 16},
        {"source": "noise"},
        {"options": {"probes": 2}},
    ],
)
def test_what_differs_has_another_key(change: dict[str, Any]):
    assert replace(Run("net", 0.5), **change).key != Run("net", 0.5).key


def test_what_is_missing(tmp_path: Path):
    a, b, c = (Run("net", 0.5, seed=s) for s in range(3))
    results = tmp_path / "new" / "results.jsonl"
    assert read(results) == {}
    append(results, row(a, top1_after=1.0))
    append(results, b.row({"failure": "out of luck"}))
    with results.open("a", encoding="utf-8") as f:
        f.write('{"key": "net 0.5 onnx')  # stopped in the middle
    append(results, row(a, top1_after=2.0, loss=float("nan")))
    known = read(results)
    assert list(known) == [a.key, b.key]
    assert known[a.key]["top1_after"] == 2.0
    assert known[a.key]["loss"] is None
    assert missing([a, b, c, c], known, retry=False, again=False) == [c]
    assert missing([a, b, c], known, retry=True, again=False) == [b, c]
    assert missing([a, b, c], known, retry=False, again=True) == [a, b, c]


def _work(run: Run, folder: Path, threads: int) -> dict[str, Any]:
    """In a process of its own."""
    if run.method == "crash":
        os._exit(3)
    if run.method == "hang":
        time.sleep(600)
    if run.method == "refuse":
        raise ValueError(f"{folder.name}\nhas no such thing")
    return {"threads": threads, "sessions": ort.SessionOptions().intra_op_num_threads}


def test_a_failure_stays_alone(tmp_path: Path):
    """Fails where a crash or an error of one run ends or spoils the others."""
    runs = [Run("net", 0.5, method=m) for m in ("crash", "fine", "refuse")]
    rows = {r["method"]: r for r in execute(runs, tmp_path, Limits(jobs=2), _work)}
    assert rows["crash"]["failure"] == "crashed (exit status 3)"
    assert rows["refuse"]["failure"] == f"ValueError: {tmp_path.name} has no such thing"
    assert rows["fine"]["key"] == runs[1].key
    assert rows["fine"]["threads"] == rows["fine"]["cores"] == Limits(jobs=2).threads
    [hung] = execute([Run("net", 0.5, method="hang")], tmp_path, Limits(seconds=0.2), _work)
    assert hung["failure"] == "did not finish in 0 s"


def test_sessions_share_the_cores(tmp_path: Path):
    """Fails where onnxruntime takes all cores in each of several runs."""
    [found] = execute([Run("net", 0.5, method="fine")], tmp_path, Limits(jobs=64), _work)
    assert found["threads"] == Limits(jobs=64).threads == 1
    # Only a machine of one core leaves nothing to limit: onnxruntime counts all, whichever this process may use.
    assert found["sessions"] == (1 if (os.cpu_count() or 1) > 1 else 0)


def test_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs for real, and takes up where it was stopped."""
    results = tmp_path / "results.jsonl"
    arguments = [str(folder), "--out", str(results), *QUICK, "--jobs", "2"]
    main([*arguments, "--set", "round_to=2", "--models", "digits_*", "--refits", "none", "oops"])
    assert "2 of 2 runs to do" in capsys.readouterr().out
    good, bad = sorted(read(results).values(), key=lambda r: "failure" in r)
    assert bad["failure"].startswith("UsageError: refit 'oops' is unknown")
    assert good["options"] == {"round_to": 2}
    assert good["method_used"] == "magnitude"
    assert 0.6 < good["macs_left"] <= 0.7
    assert abs(good["top1_before"] - 100 * digits.top1(digits.path("resnet"))) < 1e-3
    assert 0.0 < good["top1_after"] <= good["top1_before"]
    assert 0.0 < good["output_error"] < 10.0
    assert good["given"] == 16
    before = results.read_bytes()
    main([*arguments, "--set", "round_to=2", "--models", "digits_*", "--refits", "none", "oops"])
    assert "0 of 2 runs to do" in capsys.readouterr().out
    assert results.read_bytes() == before


def test_the_command_line_says_what_is_wrong(folder: Path, tmp_path: Path):
    results = ["--out", str(tmp_path / "r.jsonl")]
    with pytest.raises(SystemExit, match="nothing to do"):
        main(results)
    with pytest.raises(SystemExit, match=r"no model of .* fits"):
        main([str(folder), *results, "--models", "none_*"])
    with pytest.raises(SystemExit, match=r"holds no kit\.py"):
        main([str(tmp_path), *results])
    with pytest.raises(SystemExit, match="KEY=VALUE"):
        option("round_to")
    assert [option(t) for t in ("a=8", "b=text", 'c=["x"]')] == [("a", 8), ("b", "text"), ("c", ["x"])]


# networks that are no classifiers of the kit


def test_what_is_missing_of_a_network_is_said(folder: Path, tmp_path: Path):
    """Of the kit first, as --make would not help; and such a network is in no suite."""
    made = tmp_path / "made"
    networks = Networks(Folders(folder, made))
    assert networks.missing("minilm") == f"minilm: {folder} holds no text.py"
    assert networks.missing("vit") == f"vit: {made} holds no vit/model.onnx; --make writes it"
    assert Networks(Folders(folder)).missing("ocr").endswith("(--made)")
    assert networks.models(["*"]) == ["digits_resnet", "stripes_resnet"]
    with pytest.raises(FileNotFoundError, match="--make writes it"):
        networks.path("decoder")


def test_a_network_that_is_made_is_a_row(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """For real, from a file that is no classifier of the kit to its line; the one that is missing is told."""
    made = tmp_path / "made"
    (made / "vit").mkdir(parents=True)
    shutil.copy(digits.path("resnet"), made / vit.FILE)
    for split in ("calib", "test"):
        shutil.copy(digits.FOLDER / f"digits_{split}.npz", made / "vit" / f"{split}.npz")
    results = tmp_path / "results.jsonl"
    given = [str(folder), "--made", str(made), "--out", str(results), *QUICK, "--models", "vit", "decoder"]
    main([*given, "--set", "fast=true"])
    assert "left out: decoder" in capsys.readouterr().out
    [found] = read(results).values()
    assert found["model"] == "vit"
    assert found["given"] == 16
    assert abs(found["top1_before"] - 100 * digits.top1(digits.path("resnet"))) < 1e-3
    assert found["version"] and found["commit"]
    main([*given[:-2], "vit", "--set", "fast=true", "--out", str(tmp_path / "other.jsonl"), "--also", str(results)])
    assert "0 of 1 runs to do" in capsys.readouterr().out


def test_sentences_are_judged_by_the_measure_of_the_kit(folder: Path, tmp_path: Path):
    (folder / "data").mkdir()
    (folder / "text.py").write_text(
        "def measure(pruned, original, file):\n"
        "    assert pruned.endswith('pruned.onnx') and original.endswith('minilm.onnx') and file.exists()\n"
        "    return {'error': 0.05, 'cosine': 0.9, 'nearest': 0.6, 'nearest10': 0.7}\n",
        encoding="utf-8",
    )
    ids = np.arange(60).reshape(20, 3)
    for split in ("calib", "test"):
        np.savez(folder / "data" / f"text_{split}.npz", input_ids=ids, attention_mask=ids + 100)
    (tmp_path / "minilm.onnx").touch()
    networks = Networks(Folders(folder, tmp_path))
    assert networks.missing("minilm") == ""
    given, again = (networks.own("minilm", 8, seed=1) for _ in range(2))
    assert given["input_ids"].shape == (8, 3)
    assert (given["attention_mask"] == given["input_ids"] + 100).all()  # the same texts of each input
    assert (given["input_ids"] == again["input_ids"]).all()
    found = networks.judged("minilm", tmp_path / "pruned.onnx")
    assert found == {"output_error": 0.05, "cosine": 0.9, "nearest": 60.0, "nearest10": 70.0}


def test_lines_are_read_as_ctc_wants_it():
    best = np.array([0, 2, 2, 0, 2, 1, 0, 0, 4, 3, 3])
    assert reading.read(best, ["a", "b", "c"]) == "bba c"
    pictures = reading.pictures(["def", "return x"])
    assert pictures.shape == (2, 3, 48, 320)
    assert -1 <= pictures.min() < -0.3 and 0.4 < pictures.max() <= 1
    assert (pictures == reading.pictures(["def", "return x"])).all()
    assert reading.read(np.array([4, 4, 4]), ["a", "b", "c"]) == " "


def test_a_vit_is_trained_and_written(tmp_path: Path):
    """Deterministic, and the file answers as the module does."""
    torch = pytest.importorskip("torch", reason="the network is trained with torch")
    from benchmarks.accuracy import vit_training as v
    from benchmarks.accuracy.kits import answers

    labels = np.arange(12) % 2
    x = np.random.default_rng(0).normal(2.0 * labels[:, None, None, None] - 1.0, 0.3, (12, 1, 8, 8)).astype(np.float32)
    sizes, schedule = v.Sizes(width=12, heads=2, inner=24, blocks=1, classes=2), v.Schedule(epochs=12, batch=6)
    first, again = (v.trained(x, labels, sizes, schedule) for _ in range(2))
    v.export(first, tmp_path / "model.onnx")
    with torch.no_grad():
        expected, other = (n(torch.from_numpy(x)).numpy() for n in (first, again))
    assert_same(expected, other, rtol=0.0, atol=0.0)
    assert_same(answers(tmp_path / "model.onnx", x), expected, rtol=1e-4, atol=1e-5)
    assert (expected.argmax(1) == labels).mean() > 0.8


# suites


def test_suites_choose_their_models(tmp_path: Path):
    """One export of each network unless all are wanted, and no MLP among the CNNs."""
    (tmp_path / "models").mkdir()
    (tmp_path / "kit.py").write_text("def for_model(path, split): ...", encoding="utf-8")
    exports = ["cifar10_resnet56_legacy_folded", "cifar10_resnet56_legacy_bn", "cifar10_resnet56_dynamo"]
    for name in (*exports, "mnist_mlp_legacy", "mnist_vggbn_legacy", "mnist_vggbn_dynamo", "kws_mlperftiny_dscnn"):
        (tmp_path / "models" / f"{name}.onnx").touch()
    kit = Kit(tmp_path)
    runs = list(suites.bars(kit, suites.Choice()))
    assert {(r.model, r.ratio) for r in runs} == {
        (exports[0], 0.5),
        (exports[0], 0.65),
        (exports[0], 0.75),
        ("kws_mlperftiny_dscnn", 0.3),
        ("mnist_vggbn_legacy", 0.5),
    }
    assert len(runs) == 5 * suites.BAR_SEEDS * len(suites.VARIANTS)
    everything = suites.bars(kit, suites.Choice(["cifar10_*"], exports="all", seeds=1))
    assert sorted({r.model for r in everything}) == sorted(exports)
    sizes = {r.samples for r in suites.calibration(kit, suites.Choice(["cifar10_*"])) if r.source == "own"}
    assert sizes == {16, 32, 64, 128, 256, 512, 1024, 2048}
    peers = list(suites.peers(kit, suites.Choice(["kws*", "mnist_*"])))
    assert {r.model for r in peers} == {"mnist_vggbn_legacy"}
    assert len({r.key for r in peers}) == len(peers)
    assert {r.tool for r in peers} == {"onnxprune", "torch-pruning", "onnxsim"}


# sources


@pytest.mark.parametrize("name", ["own", "noise", "stripes"])
def test_a_source_fits_the_model(folder: Path, name: str):
    kit = Kit(folder)
    like = kit.calib("digits_resnet")
    given = [sources.source(name)(kit, "digits_resnet", 16, seed) for seed in (0, 0, 1)]
    found, again, other = (inputs["input"] for inputs in given)
    assert found.shape == (16, *like.shape[1:])
    assert found.dtype == like.dtype
    assert np.array_equal(found, again)
    assert not np.array_equal(found, other)
    assert like.min() - 1e-5 <= found.min() < found.max() <= like.max() + 1e-5


def test_sources_without_data(folder: Path):
    kit = Kit(folder)
    assert sources.source("random")(kit, "digits_resnet", 16, 0) is None
    every = sources.source("own")(kit, "digits_resnet", 10**6, 0)
    assert len(every["input"]) == len(kit.calib("digits_resnet"))
    with pytest.raises(LookupError, match="no model of the kit starts with cats_"):
        sources.source("cats")(kit, "digits_resnet", 16, 0)


@pytest.mark.parametrize(("size", "wanted"), [(224, 32), (28, 32), (32, 28), (7, 7)])
def test_resizing(size: int, wanted: int):
    """As Pillow's bilinear filter."""
    from PIL import Image  # noqa: TID251  the oracle

    x = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    weights = sources.resize_weights(size, wanted)
    expected = np.asarray(Image.fromarray(x).resize((wanted, wanted), Image.Resampling.BILINEAR))
    assert_same(weights @ x @ weights.T, expected, rtol=0.0, atol=1e-4)


def test_ranges_are_mapped():
    """Black stays black and white stays white, whatever the two normalizations."""
    x = np.array([-2.0, 0.0, 2.0, 1.0], np.float32).reshape(1, 1, 2, 2)
    like = np.stack([np.array([[0.0, 255.0]]), np.array([[-1.0, 1.0]])]).reshape(1, 2, 1, 2)
    like = np.repeat(np.repeat(like, 2, axis=2), 1, axis=3)
    found = sources.brought(x, sources.ranges(x), like)
    share = np.array([[0.0, 0.5], [1.0, 0.75]])
    assert_same(found[0], np.stack([255.0 * share, 2.0 * share - 1.0]), rtol=1e-6, atol=1e-5)


# tables


def test_spread():
    assert tables.spread([]) == ""
    assert tables.spread([1.25]) == "1.25"
    assert tables.spread([1.0, 2.0, 4.5]) == f"2.50 ± {stdev([1.0, 2.0, 4.5]):.2f}"


def _line(text: str, start: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [c.strip() for c in line.strip("|").split("|")]


def test_bars_are_met_or_missed():
    """The mean decides, rows of other methods and data do not, and the mean over models is taken seed by seed; what
    several versions made stands in lines of its own."""
    net = Run("cifar10_resnet56_legacy_folded", 0.5)
    rows = [row(replace(net, seed=s), top1_after=90.0 - lost) for s, lost in enumerate((0.2, 0.4, 0.6))]
    rows += [row(replace(net, ratio=0.65, seed=s), top1_after=90.0 - lost) for s, lost in enumerate((3.0, 4.0))]
    strange = [{"method": "magnitude"}, {"source": "noise"}, {"samples": 64}, {"options": {"probes": 9}}]
    rows += [row(replace(net, **change), top1_after=0.0) for change in strange]
    for model, lost in (("mnist_a_legacy", (0.0, 1.0)), ("mnist_b_legacy", (1.0, 3.0)), ("mnist_mlp_legacy", (50.0,))):
        rows += [row(Run(model, 0.5, seed=s), top1_after=90.0 - v) for s, v in enumerate(lost)]
    rows = [{**r, "version": "0.9.0"} for r in rows]
    rows.append(row(replace(net, seed=2, ratio=0.65), top1_after=0.0, version="0.10.0"))
    rows.append(replace(net, seed=3).row({"failure": "crashed"}))
    text = tables.bars(rows)
    rows.append(row(replace(net, options={"fast": True}), top1_after=80.0))
    fast = [line for line in tables.bars(rows).splitlines() if "| fast | points of top-1 lost | 90.00 | 10.00" in line]
    assert len(fast) == 1
    lines = [_line(line, net.model) for line in text.splitlines() if line.startswith(f"| {net.model}")]
    assert [(x[1], x[4], x[6], x[7], x[8], x[10], x[13]) for x in lines] == [
        ("50%", "points of top-1 lost", "0.40 ± 0.20", "≤ 0.3", "**missed**", "3", "0.9.0"),
        ("50%", "plain passes", "4.00 ± 0.00", "≤ 40", "met", "3", "0.9.0"),
        ("65%", "points of top-1 lost", "3.50 ± 0.71", "≤ 2", "**missed**", "2", "0.9.0"),
        ("65%", "points of top-1 lost", "90.00", "≤ 2", "**missed**", "1", "0.10.0"),
    ]
    [pooled] = [_line(x, "mnist: mean over 2 networks") for x in text.splitlines() if x.startswith("| mnist: mean")]
    assert (pooled[6], pooled[8], pooled[10]) == ("1.25 ± 1.06", "**missed**", "2")
    unmeasured = [line for line in text.splitlines() if line.startswith("| `kws_mlperftiny_dscnn`")]
    assert [line.count("not measured") for line in unmeasured] == [1, 1]
    assert text.endswith(f"Without a result:\n\n- {replace(net, seed=3).key}: crashed")
    assert "--suite bars" in tables.bars([])


def test_bars_of_networks_that_are_no_classifiers():
    """Each bound is a line of its own, more is better where that is said, and what has no bound has no verdict."""
    usual = {"macs_left": 0.7, "seconds": 1.0, "passes": 9.0, "version": "1.0.0"}
    rows = [
        Run("minilm", 0.3, samples=512).row({"nearest10": 80.0, "output_error": 0.06, **usual}),
        Run("decoder", 0.3, samples=512).row({"perplexity_before": 20.0, "perplexity_after": 21.0, **usual}),
        Run("ocr", 0.3, samples=256).row({"read_before": 90.0, "read_after": 88.0, "output_error": 0.01, **usual}),
    ]
    lines = [[c.strip() for c in x.strip("|").split("|")] for x in tables.bars(rows).splitlines() if "1.0.0" in x]
    assert [(x[0], x[5], x[6], x[7], x[8]) for x in lines] == [
        ("minilm", "", "80.00", "≥ 78", "met"),
        ("minilm", "", "6.00", "≤ 5", "**missed**"),
        ("decoder", "20.00", "5.00", "≤ 10", "met"),
        ("ocr", "90.00", "2.00", "none", ""),
        ("ocr", "", "1.00", "none", ""),
    ]
    unmeasured = [x for x in tables.bars(rows).splitlines() if x.startswith("| `minilm` | 30% | 1,024 (bar: 2,048)")]
    assert [x.count("not measured") for x in unmeasured] == [1] * 4  # two bounds of two variants


def test_a_version_of_most_seeds_counts():
    net = Run("net", 0.5)
    rows = [row(replace(net, seed=s), version=v) for s, v in ((0, "0.9.0"), (1, "0.9.0"), (0, "0.10.0"), (0, "0.11.0"))]
    assert [r["version"] for r in tables.fullest(rows)] == ["0.9.0", "0.9.0"]
    assert [r["version"] for r in tables.fullest(rows[1:])] == ["0.11.0"]
    assert tables.fullest([]) == []


def test_transformers_stand_beside_their_peers():
    """By what their bars bound, and only where a peer was run; a share of the MACs that is no point is left out."""
    net, usual = Run("minilm", 0.3, samples=512), {"macs_left": 0.7, "params_left": 0.8, "seconds": 3.0}
    figures = {"nearest10": 80.0, "output_error": 0.06}
    rows = [net.row({**figures, **usual, "passes": 1.0}), replace(net, ratio=0.2).row({**figures, **usual})]
    assert "--suite peers" in tables.transformers(rows)
    flap = replace(net, tool="flap", method="variance", refit="bias")
    rows.append(flap.row({"nearest10": 50.0, "output_error": 0.2, **usual}))
    cells = [[c.strip() for c in x.strip("|").split("|")] for x in tables.transformers(rows).splitlines()[2:]]
    assert [(c[2], c[3], c[4], c[7]) for c in cells] == [
        ("onnxprune", "default", "", "of 10 nearest neighbours kept, %: 80.00; output error, %: 6.00"),
        ("flap", "variance", "bias", "of 10 nearest neighbours kept, %: 50.00; output error, %: 20.00"),
    ]


def test_other_tables():
    net = Run("cifar10_resnet56_legacy_folded", 0.5)
    rows = [row(net), row(replace(net, samples=16), top1_after=70.0), row(replace(net, source="noise"), top1_after=9.0)]
    rows.append(row(replace(net, source="imagenet"), top1_after=88.0, given=384))
    for refit, after in (("none", 50.0), ("lockstep", 89.5)):
        rows.append(row(replace(net, method="obs", refit=refit, options={"fast": True}), top1_after=after))
    rows.append(row(replace(net, method="obs", refit="scale"), top1_after=1.0))
    rows.append(row(replace(net, tool="onnxsim", method="wanda", refit="none"), top1_after=20.0))
    rows.append(replace(net, tool="onnxsim", method="magnitude", refit="none").row({"failure": "RuntimeError: no"}))
    rows.append(row(replace(net, seed=1), top1_after=0.0))
    assert _line(tables.methods(rows), net.model)[2:] == ["obs", "40.00", "", "", "0.50"]
    rows.append(row(replace(net, samples=16, options={"fast": True}), top1_after=69.0))
    full, fast = (line.split(" | ")[2:] for line in tables.calibration(rows).splitlines()[2:])
    assert full == ["default", "20.00", f"45.50 ± {stdev([1.0, 90.0]):.2f} |"]
    assert fast == ["fast", "21.00", " |"]
    kinds = [line.split(" | ")[2:6] for line in tables.sources(rows).splitlines()[2:]]
    assert kinds[1:] == [["imagenet", "384", "default", "2.00"], ["noise", "1,024", "default", "81.00"]]
    assert kinds[0][0] == "own"
    beside = tables.peers(rows)
    found = [line.split(" | ")[2:5] + line.split(" | ")[7:8] for line in beside.splitlines() if line.startswith("| c")]
    assert found == [["onnxprune", "default", "", "89.00"], ["onnxsim", "wanda", "none", "20.00"]]
    assert beside.endswith("own: RuntimeError: no")


def test_a_page_is_rendered_the_same_twice(tmp_path: Path):
    page = tmp_path / "page.md"
    every = "".join(f"<!-- table: {name} -->\n<!-- end -->\n" for name in TABLES)
    page.write_text(every, encoding="utf-8")
    words = Run("decoder", 0.3, samples=512, method="magnitude", refit="none", options={"fast": True})
    told = {"perplexity_before": 9.0, "perplexity_after": 9.5, "agreement": 90.0, "seconds": 1.0}
    rows = [words.row({**told, "macs_left": 0.7, "params_left": 0.7})]
    render(page, rows)  # none of the tables of classifiers asks for its top-1
    assert "9.50" in page.read_text(encoding="utf-8")
    page.write_text("a\n<!-- table: bars -->\n<!-- end -->\nb <!-- end --> c\n", encoding="utf-8")
    rows = [row(Run("kws_mlperftiny_dscnn", 0.3, samples=400))]
    render(page, rows)
    once = page.read_text(encoding="utf-8")
    assert once == f"a\n<!-- table: bars -->\n\n{tables.bars(rows)}\n\n<!-- end -->\nb <!-- end --> c\n"
    render(page, rows)
    assert page.read_text(encoding="utf-8") == once
    results = tmp_path / "results.jsonl"
    for found in rows:
        append(results, found)
    page.write_text(
        "<!-- table: bars -->\n\nold\n\n<!-- end -->\n<!-- plot: peers -->\nx\n<!-- end -->", encoding="utf-8"
    )
    main(["--out", str(results), "--render", str(page), "--only", "bars"])
    alone = f"<!-- table: bars -->\n\n{tables.bars(rows)}\n\n<!-- end -->\n<!-- plot: peers -->\nx\n<!-- end -->"
    assert page.read_text(encoding="utf-8") == alone
    with pytest.raises(SystemExit, match="no table 'dogs'"):
        main(["--out", str(results), "--render", str(page), "--only", "dogs"])
    page.write_text("<!-- table: cats -->\n<!-- end -->", encoding="utf-8")
    with pytest.raises(SystemExit, match="'cats'"):
        render(page, rows)


def test_plots(tmp_path: Path):
    pytest.importorskip("matplotlib")
    net = Run("cifar10_resnet56_legacy_folded", 0.5)
    rows = [row(replace(net, seed=s, samples=n)) for s in (0, 1) for n in (16, 1024)]
    rows += [row(replace(net, ratio=r, method=m, refit="none")) for r in (0.3, 0.5) for m in ("obs", "local")]
    rows = [{**r, "options": {"fast": True}} if r["refit"] == "none" else r for r in rows]
    rows += [row(replace(net, source="noise")), row(replace(net, tool="onnxsim", method="wanda", refit="none"))]
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- plot: {n} -->\n<!-- end -->\n" for n in ("methods", "calibration", "peers")))
    render(page, rows)
    links = [part.split(")")[0] for part in page.read_text(encoding="utf-8").split("](")[1:]]
    assert [link.split("-")[0] for link in links] == ["page/methods", "page/calibration", "page/peers"]
    first = {link: (tmp_path / link).read_bytes() for link in links}
    assert all(text.startswith(b"<?xml") for text in first.values())
    render(page, rows)
    assert {link: (tmp_path / link).read_bytes() for link in links} == first


def test_the_page_names_what_there_is():
    """Fails where the page in the docs asks for a table or a plot that is not made."""
    from benchmarks.accuracy.page import PLOTS
    from benchmarks.page import pattern

    text = (digits.FOLDER.parent / "docs" / "accuracy.md").read_text(encoding="utf-8")
    asked = [(kind, name) for _, kind, name, _ in pattern(("table", "plot")).findall(text)]
    assert sorted(asked) == sorted([*(("table", n) for n in TABLES), *(("plot", n) for n in PLOTS)])
    results = digits.FOLDER.parent / "docs" / "accuracy" / "results.jsonl"
    if results.exists():
        assert all(json.loads(line)["key"] for line in results.read_text(encoding="utf-8").splitlines())
