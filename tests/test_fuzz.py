"""The fuzzer: its mutators, its judge, and a bounded run of it through the command line."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import fuzz, fuzz_results
from benchmarks.fuzz_results import Chunk, kind
from benchmarks.page import put
from tests.fuzz import cases, models
from tests.fuzz.cases import KINDS, Case, left, spoken
from tests.fuzz.seeds import seed_model
from tests.fuzz.workers import Worker


def loudly(text: str) -> None:
    os.write(2, text.encode())


def die() -> None:
    os.kill(os.getpid(), signal.SIGFPE)


def sleep() -> None:
    while True:
        pass


def gorge() -> int:
    held = [np.ones(1 << 22) for _ in range(20)]
    return len(held)


def fail() -> None:
    raise KeyError("nothing")


@pytest.mark.parametrize("name", sorted(models.MUTATORS))
def test_mutators_change_models(name: str) -> None:
    """Fails where a mutator raises, or never changes anything."""
    changed = 0
    for seed in range(20):
        rng = np.random.default_rng([seed, len(name)])
        _, proto = seed_model(rng)
        before = proto.SerializeToString(deterministic=True)
        models.MUTATORS[name](proto, rng)
        changed += before != proto.SerializeToString(deterministic=True)
    assert changed


@pytest.mark.parametrize("name", sorted(models.BYTE_MUTATORS))
def test_mutators_change_bytes(name: str) -> None:
    """Fails where a mutator of bytes raises, or never changes anything."""
    blob = seed_model(np.random.default_rng(1))[1].SerializeToString() + b"Conv"
    assert any(models.BYTE_MUTATORS[name](blob, np.random.default_rng(s)) != blob for s in range(9))


@pytest.mark.parametrize("what", sorted(KINDS))
def test_a_case_is_its_seed(what: str, tmp_path: Path) -> None:
    """Fails where a failure that was found cannot be made again."""
    made: list[dict[str, bytes]] = []
    for name in ("a", "b"):
        folder = tmp_path / "same"
        folder.mkdir()
        case = KINDS[what](7, folder)
        made.append({p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()})
        folder.rename(tmp_path / name)
        assert case.commands
    assert made[0] == made[1]


def test_seeds_are_sound() -> None:
    """Fails where what is mutated is broken already: then no mutation is tried."""
    for seed in range(25):
        onnx.checker.check_model(seed_model(np.random.default_rng(seed))[1])


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_workers_say_what_happened() -> None:
    """Fails where a death, a hang, too much memory, an exception or a native line is not told from a result."""
    with Worker() as worker:
        assert worker.call(os.getpid).value not in (0, os.getpid())
        answer = worker.call(loudly, "a line")
        assert (answer.value, answer.stderr, answer.died, answer.error) == (None, "a line", "", "")
        assert "KeyError" in worker.call(fail).error
        assert worker.call(die).died == f"signal {int(signal.SIGFPE)}"
        assert worker.call(sleep, seconds=0.3).died == "hang"
        assert worker.call(gorge, most=400 << 20).died == "memory"
        assert worker.call(gorge).peak > 600 << 20


def test_the_judge_finds_what_is_wrong(tmp_path: Path) -> None:
    """Fails where some failure would be counted as an outcome."""
    fine = "onnxprune: error: x does not exist"
    assert not spoken(1, [fine], "")
    assert not spoken(0, [], "a report")
    assert spoken(1, [fine, fine], "")
    assert spoken(1, [], "")
    assert spoken(0, ["RuntimeWarning: overflow"], "")
    assert spoken(1, ["onnxprune: error: KeyError: 1: this is a defect, please report it"], "")
    assert spoken(4, ["onnxprune: error: the normalised model differs: please report this model"], "")
    assert spoken(70, [fine], "")
    assert spoken(1, ["onnxprune: error: \x1b[31mred"], "")
    case = Case("", (), tmp_path / "model.onnx", tmp_path / "out.onnx")
    (tmp_path / "out.onnx").touch()
    assert not left(case, set(), tmp_path, 0)
    assert left(case, set(), tmp_path, 4) == "left out.onnx"
    (tmp_path / ".out.onnx.1234").touch()
    assert left(case, {"out.onnx"}, tmp_path, 0)


def test_failures_are_counted_by_kind() -> None:
    """Fails where a failure falls into the wrong row of the table."""
    said = ["x: this is a defect", "hang", "memory", "signal 8", "left a", "the output has other inputs"]
    assert [kind(x) for x in said] == [
        "defect or traceback",
        "hang beyond 60 s",
        "more than 4 GiB",
        "killed by a signal",
        "file left",
        "other",
    ]


def test_an_output_that_is_not_the_model_is_found(tmp_path: Path) -> None:
    """Fails where exit 0 with another interface, or with a file that onnxruntime does not load, passes."""
    sound = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> a (float[2] x) => (float[2] y) { y = Relu(x) }'
    )
    paths = [str(tmp_path / name) for name in ("in.onnx", "other.onnx", "broken.onnx")]
    onnx.save(sound, paths[0])
    sound.graph.output[0].name = sound.graph.node[0].output[0] = "z"
    onnx.save(sound, paths[1])
    Path(paths[2]).write_bytes(b"nothing")
    assert cases.unlike(paths[0], paths[0]) == ""
    assert "other outputs" in cases.unlike(paths[0], paths[1])
    assert "does not load" in cases.unlike(paths[0], paths[2])


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize(("what", "count"), [("models", 40), ("plans", 10), ("data", 10)])
def test_a_bounded_run(what: str, count: int, tmp_path: Path) -> None:
    """Fails where a mutation ends in anything but an exit code with its one line; `benchmarks.fuzz` has many more."""
    codes = set()
    with Worker() as worker:
        for seed in range(count):
            folder = tmp_path / str(seed)
            folder.mkdir()
            case, verdict = cases.run(what, seed, folder, worker)
            assert not verdict.fault, f"{what} {seed}: {case.story}: {verdict.fault}"
            codes.add(verdict.codes[-1])
    assert {0, 1} <= codes


def test_a_table_goes_into_its_block_alone(tmp_path: Path) -> None:
    """Fails where one run's table replaces that of another."""
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- table: x -->\nold\n<!-- end -->\nb\n<!-- table: y -->\nkept\n<!-- end -->\n")
    put(page, "table", "x", "new")
    assert page.read_text() == "a\n<!-- table: x -->\nnew\n\n<!-- end -->\nb\n<!-- table: y -->\nkept\n<!-- end -->\n"
    with pytest.raises(SystemExit):
        put(page, "table", "z", "new")


def chunk(first: int, last: int, what: str = "plans", **fields: object) -> Chunk:
    count = last - first + 1
    given = {"codes": {"0": count}, "faults": {}, "slowest": (1.0, first), "largest": (1 << 30, first)}
    return Chunk(
        **{"what": what, "first": first, "last": last, **given, "seconds": 1800.0, "commits": ("a",), **fields}
    )


def test_chunks_are_summed_to_one_table_that_names_its_cases(tmp_path: Path) -> None:
    """Fails where a case counts twice or not at all, or where the table hides what was not run."""
    file = tmp_path / "folder" / "results.jsonl"
    failed = {"codes": {"0": 497, "1": 2}, "faults": {"700": "hang"}, "slowest": (60.5, 700)}
    for c in (chunk(2000, 2099, commits=("a", "b")), chunk(500, 999, **failed), chunk(0, 499), chunk(0, 9, "data")):
        fuzz_results.append(file, c)
    found = fuzz_results.read(file)
    text = fuzz_results.table([c for c in found if c.what == "plans"])
    assert "| plans, cases 0 to 999 and 2,000 to 2,099 | cases |" in text
    assert "| exit 0: described, or pruned and verified | 1,097 |" in text
    assert "| exit 1: refused, one line | 2 |" in text
    assert "| hang beyond 60 s | 1 |" in text
    assert "| all | 1,100 |" in text
    assert "Failed: 700 (hang beyond 60 s)." in text
    assert "Slowest: case 700, 60.5 s. Most memory: case 2,000, 1.00 GiB. The code of a, b; 1.5 hours" in text
    assert fuzz_results.recorded(found, "plans", 1000, 1999) == ""
    assert fuzz_results.recorded(found, "plans", 990, 2000) == "plans 500 to 999, plans 2,000 to 2,099"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(chunk(999, 1000), "overlap"), (chunk(0, 1999), "overlap"), (chunk(2000, 2009, codes={"0": 9}), "add up")],
)
def test_chunks_that_overlap_or_lack_cases_are_refused(wrong: Chunk, said: str, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    for c in (chunk(500, 999), wrong):
        fuzz_results.append(file, c)
    with pytest.raises(SystemExit, match=said):
        fuzz_results.read(file)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_run_in_chunks_gives_the_table_of_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails where the page is made from the last run alone, or where cases of before are run again."""
    monkeypatch.setattr(fuzz, "_CHUNK", 2)
    page, file = tmp_path / "page.md", tmp_path / "results.jsonl"
    page.write_text("<!-- table: fuzz-plans -->\n<!-- end -->\n<!-- table: fuzz-data -->\n<!-- end -->\n")
    given = ["--what", "data", "--workers", "1", "--keep", str(tmp_path / "keep"), "--results", str(file)]
    assert fuzz.main([*given, "--seed", "5", "--cases", "1"]) == 0
    assert fuzz.main([*given, "--seed", "0", "--cases", "3", "--output", str(page)]) == 0
    ranges = [(c.first, c.last) for c in fuzz_results.read(file)]
    assert ranges == [(5, 5), (0, 1), (2, 2)]
    made = page.read_text()
    assert "data, cases 0 to 2 and 5" in made
    assert "| all | 4 |" in made
    with pytest.raises(SystemExit):
        fuzz.main([*given, "--seed", "2", "--cases", "1"])
    assert "has data 2 already" in capsys.readouterr().err
    assert fuzz.main(["--render", str(file), "--output", str(page)]) == 0
    assert page.read_text() == made


def test_what_cases_share_is_made_before_there_are_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where two threads run the command line, and one takes the other's temporary folder away."""
    done: list[str] = []
    monkeypatch.setitem(cases.SHARED, "plans", lambda: done.append("shared"))  # type: ignore[misc]
    monkeypatch.setattr(fuzz, "chunk", lambda *_: done.append("cases"))
    list(fuzz.chunks("plans", 0, 501, 2, tmp_path))
    assert done == ["shared", "cases", "cases"]


def test_the_page_has_a_place_for_every_kind() -> None:
    """Fails where a run's table has no block to go to."""
    page = (Path(__file__).parents[1] / "docs" / "trust.md").read_text(encoding="utf-8")
    assert all(f"<!-- table: fuzz-{what} -->" in page for what in KINDS)
    assert "<!-- table: node-suite -->" in (Path(__file__).parents[1] / "docs" / "reach.md").read_text(encoding="utf-8")
