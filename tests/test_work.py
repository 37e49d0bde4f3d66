"""A run that is ended and taken up again, and a large model's way, against the plain one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxprune import PruneConfig, prune, sweep
from onnxprune.allocation import trial_cuts
from onnxprune.calibration import by_blocks, input_moments
from onnxprune.errors import UsageError
from onnxprune.refit import lockstep
from onnxprune.runtime import instalments
from onnxprune.runtime.session import Session
from onnxprune.stages import select
from tests.topologies.text import Topology

Array = NDArray[Any]

BLOCKS = Topology(
    """(float[N,10,16] x) => (float[N,10,16] y) {
        a = MatMul(x, w0[16,24])
        s = Relu(a)
        g = MatMul(s, wg[24,40])
        u = MatMul(s, wu[24,40])
        r = Relu(g)
        m = Mul(r, u)
        d = MatMul(m, wd[40,24])
        t = Add(s, d)
        y = MatMul(t, w1[24,16])
    }""",
    (),
    opset=18,
)
SETTINGS = PruneConfig(ratio=0.4, fast=True)


def data() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((96, 10, 4)) @ rng.standard_normal((4, 16))
    return {"x": (mixed + 0.1 * rng.standard_normal(mixed.shape)).astype(np.float32)}


def run(**more: Any) -> Any:
    return prune(BLOCKS.model(), None, data(), config=SETTINGS, **more)


def content(model: onnx.ModelProto | None) -> bytes:
    assert model is not None
    return model.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("where", "calls"),
    [
        ((by_blocks.Blocks, "_keep"), 1),
        ((select.Selection, "__call__"), 1),
        ((trial_cuts.Trials, "__call__"), 1),
        ((lockstep, "fit_matrix"), 1),
    ],
    ids=["calibrate", "select", "allocate", "refit"],
)
def test_a_run_that_was_killed_goes_on_where_it_was(
    where: tuple[Any, str], calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where the second run computes anew what is there, or comes to another model than one that went through."""
    expected = content(run(work=tmp_path / "through").model)
    done: list[int] = []
    place, name = where
    plain: Callable[..., Any] = getattr(place, name)

    def killed(*arguments: Any, **named: Any) -> Any:
        done.append(1)
        if len(done) == calls + 1:
            raise KeyboardInterrupt
        return plain(*arguments, **named)

    monkeypatch.setattr(place, name, killed)
    monkeypatch.setattr("onnxprune.threads.cores", lambda: 1)  # one after the other, so that it is known which is done
    with pytest.raises(KeyboardInterrupt):
        run(work=tmp_path / "killed")
    before = len(done) - 1
    result = run(work=tmp_path / "killed")
    again = len(done) - 1 - before
    done.clear()
    monkeypatch.setattr(place, name, lambda *a, **k: (done.append(1), plain(*a, **k))[1])
    run(work=tmp_path / "other")
    assert again == len(done) - calls
    assert content(result.model) == expected
    assert any("taken from" in n for n in result.report.notes)


def test_a_finished_run_is_repeated_from_what_it_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where any of the long computations is done again."""
    first = run(work=tmp_path)
    for place, name in ((lockstep, "accumulate"), (trial_cuts.Trials, "__call__"), (input_moments.Gram, "update")):
        monkeypatch.setattr(place, name, lambda *_, **__: pytest.fail("it is there already"))
    assert content(run(work=tmp_path).model) == content(first.model)


def test_the_work_of_another_ratio_is_refused(tmp_path: Path) -> None:
    """Fails where a cut is finished with the fits of another one."""
    run(work=tmp_path)
    with pytest.raises(UsageError, match=r"holds the work of another run .not the same: ratio."):
        run(work=tmp_path, ratio=0.2)


def test_a_large_model_comes_out_as_a_small_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where instalments or blocks change what is selected, or what it is refitted to."""
    expected = run()
    x = data()["x"]
    plain = Session(expected.model).run({"x": x})["y"]
    opened: list[int] = []
    start = instalments.Instalments.__init__

    def counted(self: Any, *arguments: Any) -> None:
        opened.append(1)
        start(self, *arguments)

    monkeypatch.setattr(instalments.Instalments, "__init__", counted)
    monkeypatch.setattr(instalments, "WHOLE_BYTES", 0)
    monkeypatch.setattr(instalments, "PART_BYTES", 4 << 10)
    monkeypatch.setattr(by_blocks, "ALL_BYTES", 0)
    monkeypatch.setattr(by_blocks, "BLOCK_BYTES", 1)
    monkeypatch.setattr(trial_cuts, "_FED_BYTES", 0)
    monkeypatch.setattr(trial_cuts, "_AT_ONCE_BYTES", 0)
    monkeypatch.setattr("onnxprune.graph.tensor_files.SPILL_BYTES", 64)
    monkeypatch.setattr("onnxprune.graph.external.LARGE_BYTES", 0)
    found = run()
    assert len(opened) > 10
    assert found.plan.groups == expected.plan.groups
    slim = Session(found.model).run({"x": x})["y"]
    assert np.abs(slim - plain).max() < 1e-4 * np.abs(plain).max()


def test_a_sweep_goes_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a sweep knows no such folder, or its cuts take each other's fits."""
    ratios = [0.2, 0.4]

    def swept(folder: str, **more: Any) -> list[bytes]:
        result = sweep(BLOCKS.model(), tmp_path / folder, data(), config=SETTINGS, ratios=ratios, **more)
        assert any("taken from" in n for n in result.notes) == (folder == "again")
        return [(tmp_path / folder / f"model-{r:g}.onnx").read_bytes() for r in ratios]

    expected = swept("through")
    assert swept("first", work=tmp_path / "work") == expected
    monkeypatch.setattr(trial_cuts.Trials, "__call__", lambda *_: pytest.fail("it is there already"))
    monkeypatch.setattr(lockstep, "accumulate", lambda *_, **__: pytest.fail("it is there already"))
    assert swept("again", work=tmp_path / "work") == expected
