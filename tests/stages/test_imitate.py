"""Sequential selection: what it reports is what the written model does, and each cut sees those before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import prune
from onnxprune.calibration.regressions import consumers_of
from onnxprune.config import PruneConfig
from onnxprune.errors import NothingPrunable
from onnxprune.methods import METHODS
from onnxprune.numerics.arrays import Array
from onnxprune.objective import relative_error
from onnxprune.runtime import outputs, session
from onnxprune.selection import gfs, imitation
from onnxprune.selection.imitation import best_of_size
from onnxprune.selection.quadratic import Quadratic
from onnxprune.stages import calibrate, couple, imitate, imitate_group, load, refit, rewrite, select
from onnxprune.stages.allocate import allocate
from onnxprune.stages.answers import outputs_of
from onnxprune.stages.calibrate import Calibrated
from onnxprune.stages.couple import Coupled
from onnxprune.stages.goals import goals_of
from onnxprune.stages.imitate import Selected
from onnxprune.stages.load import Loaded
from onnxprune.stages.try_cuts import try_cuts
from onnxprune.surgery import replace_initializers, set_initializers
from tests.calibrated import every_position, samples_of, values
from tests.compare import assert_same
from tests.graphs import TABLE
from tests.prepared import prepare, prepare_row
from tests.topologies.text import Topology

RTOL = 1e-3
COUNT = 32
ROWS = (
    "plain",
    "residual",
    "dense_concat",
    "depthwise",
    "squeeze_excite",
    "grouped_few_large",
    "two_layouts",
    "option_a_shortcut",
    "kernel_square",
    "layer_norm_convolution",
    "attention_by_parts_positions",
)
# A masked group feeds one output, a group that layers alone read the other.
BRANCHES = """(float[N,6] x) => (float[N,4] y, float[N,5] z) {
    a = Gemm (x, w1[6,8], b1[8])
    n = LayerNormalization (a, s1[8], o1[8])
    y = Gemm (n, w2[8,4], b2[4])
    c = Gemm (x, w3[6,9], b3[9])
    t = Tanh (c)
    d = Gemm (t, w4[9,7], b4[7])
    e = Relu (d)
    z = Gemm (e, w5[7,5], b5[5])
}"""


@dataclass(frozen=True, eq=False)
class Run:
    """One run of the pipeline up to the choices."""

    settings: PruneConfig
    loaded: Loaded
    coupled: Coupled
    calibrated: Calibrated
    chosen: Selected
    masks: Mapping[int, Array]

    def rewritten(self) -> onnx.ModelProto:
        """The cut model as it would be written."""
        sliced = rewrite.rewrite(self.loaded, self.coupled, self.masks)
        found = refit.refit_weights(
            self.loaded, self.coupled, self.calibrated, self.masks, self.chosen.coefficients, sliced, self.settings
        )
        return found.candidates[self.settings.refit]

    def discrepancy(self, model: onnx.ModelProto) -> float:
        """Of a model's outputs on the held-out samples, by onnxruntime."""
        assert self.calibrated.goals is not None
        samples = self.loaded.held
        given = outputs_of(model, self.coupled, self.loaded, samples)
        return self.calibrated.goals.held.value(given, slice(0, len(samples)))


def run(model: onnx.ModelProto, data: Mapping[str, Array], **options: Any) -> Run:
    """Selection from input to output at uniform widths, of every method."""
    settings = PruneConfig(**({"uniform": 0.4, "round_to": 1} | options))
    loaded = load.load(model, data, settings)
    coupled = couple.couple(loaded, settings)
    calibrated = calibrate.calibrate(loaded, coupled, settings)
    if calibrated.goals is None:
        goals = goals_of(loaded, coupled, calibrated.reference, settings)
        calibrated = replace(calibrated, goals=goals)
    candidates = select.select(coupled, calibrated, settings)
    tried = try_cuts(loaded, coupled, calibrated, candidates, settings)
    masks, _ = allocate(loaded, coupled, calibrated, tried, settings)
    widths: dict[int, Sequence[int]] = {g: (int(mask.sum()),) for g, mask in masks.items()}
    chosen = imitate.in_sequence(loaded, coupled, calibrated, candidates, widths, settings)
    return Run(settings, loaded, coupled, calibrated, chosen, {**masks, **chosen.masks})


def run_row(name: str, **options: Any) -> Run:
    return run(TABLE[name].model(), samples_of(prepare_row(name), COUNT).arrays, **options)


def run_text(text: str, **options: Any) -> Run:
    row = Topology(text, ())
    model = row.model()
    return run(model, samples_of(prepare(model, row.feeds(2)), COUNT).arrays, **options)


@pytest.mark.parametrize(
    ("method", "refit"),
    [
        ("local", "greedy"),
        ("global", "least-squares"),
        ("combined", "none"),
        ("gfs", "greedy"),
        ("gfs-outputs", "scale"),
    ],
)
@pytest.mark.parametrize("name", ROWS)
def test_the_last_error_is_that_of_the_rewritten_model(name: str, method: str, refit: str) -> None:
    """Fails where the network in between is not the one that is written: another weight, mask, order or sample."""
    r = run_row(name, method=method, refit=refit)
    assert len(r.chosen.choices) == len(r.masks)
    found, expected = r.chosen.choices[-1].error, r.discrepancy(r.rewritten())
    assert_same(np.float64(found), np.float64(expected), rtol=RTOL, atol=1e-9)


def test_scaled_weights_are_judged_as_they_are_written() -> None:
    """As above, where a layer reads two groups: its factors are found together."""
    r = run_row("dense_concat", method="gfs", refit="scale")
    assert_same(np.float64(r.chosen.choices[-1].error), np.float64(r.discrepancy(r.rewritten())), rtol=RTOL, atol=0.0)


@pytest.mark.parametrize("saturates", [False, True], ids=["this_processor", "saturating"])
@pytest.mark.parametrize("method", ["local", "global"])
def test_quantized_models_are_judged_as_they_run(method: str, saturates: bool, monkeypatch: Any) -> None:
    """As above; sums in another order make steps of the rounding.

    Where integer kernels saturate, these steps would be anything: the model is judged by its nodes as written.
    """
    if saturates:
        monkeypatch.setattr(session, "saturates", lambda *_: True)
    r = run_row("quantized", method=method, refit="none")
    assert_same(np.float64(r.chosen.choices[-1].error), np.float64(r.discrepancy(r.rewritten())), rtol=0.03, atol=0.0)


@pytest.mark.parametrize(("method", "refit"), [("local", "greedy"), ("combined", "none")])
def test_outputs_behind_masked_groups_stay_cut(method: str, refit: str) -> None:
    """Fails where a cut that does not reach an output takes that of the original for it."""
    r = run_text(BRANCHES, method=method, refit=refit)
    assert len(r.chosen.choices) == 3
    assert_same(np.float64(r.chosen.choices[-1].error), np.float64(r.discrepancy(r.rewritten())), rtol=RTOL, atol=0.0)


@pytest.mark.parametrize("name", ["residual", "dense_concat", "two_layouts", "option_a_shortcut"])
def test_groups_are_cut_in_the_order_in_which_they_are_read(name: str) -> None:
    """Fails where a group is selected before one upstream of it."""
    r = run_row(name, method="local", refit="none")
    reads = [
        min(x.node.index for x in r.calibrated.gates if (channels.group_of[x.classes[x.classes >= 0]] == c.group).any())
        for channels in [r.coupled.taken.channels]
        for c in r.chosen.choices
    ]
    assert reads == sorted(reads)


@pytest.mark.parametrize("refit", ["none", "greedy"])
@pytest.mark.parametrize("name", ["plain", "residual", "dense_concat", "squeeze_excite", "grouped_few_large"])
def test_local_discrepancy_is_that_of_the_consumers_outputs(name: str, refit: str, monkeypatch: Any) -> None:
    """Fails where the quadratic is not that of the present inputs towards the original's outputs.

    Every position counts here. Measured by onnxruntime in the model with the cut of one consumer
    after the other: what one does to the inputs of the next is not the quadratic's.
    """
    for module in ("refit.reference", "calibration.input_moments"):
        monkeypatch.setattr(f"onnxprune.{module}.positions_for", lambda *_: 1 << 20)
    seen: list[tuple[int, Any, Any, onnx.ModelProto]] = []
    leave = imitate_group.LayersGroup.leave

    def watch(step: Any, choice: Any, weights: Any) -> None:
        before = onnx.ModelProto()
        before.CopyFrom(step.network.proto)
        seen.append((choice.group, step.local, choice, before))
        leave(step, choice, weights)

    monkeypatch.setattr(imitate_group.LayersGroup, "leave", watch)
    r = run_row(name, method="local", refit=refit)
    channels, layers = r.coupled.taken.channels, r.coupled.layers
    feeds = r.loaded.fit.arrays
    for g, quadratic, choice, model in seen:
        a = choice.coefficients if refit == "greedy" else choice.kept.astype(float)
        expected = 0.0
        for layer in consumers_of(channels, layers)[g]:
            weights = {k: w for k, w in channels.graph.constants.items() if k in layer.stored}
            stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name in weights}
            factor = np.ones(channels.classes.pinned.size)
            factor[channels.groups[g].units] = a
            columns = np.stack([layer.columns(i) for i in range(layer.groups)])
            by_column = np.where(columns < 0, 1.0, factor[np.maximum(columns, 0)])
            changed = replace_initializers(model, layer.weights(layer.matrix(stored) * by_column[:, :, None], stored))
            y = values(r.coupled.taken.proto, [layer.output], feeds)[layer.output]
            found = values(changed, [layer.output], feeds)[layer.output]
            at = every_position(layer, y)
            y, found = (layer.targets(v, at).astype(np.float64) for v in (y, found))
            power = sum(float(t.var(axis=0).sum()) for t in y)
            expected += sum(float(((s - t) ** 2).sum(axis=1).mean()) for s, t in zip(found, y, strict=True)) / power
        assert_same(np.float64(quadratic.at(a)), np.float64(expected), rtol=RTOL, atol=1e-9)


@pytest.mark.parametrize("name", ["plain", "residual", "grouped_few_large"])
def test_combined_takes_the_smaller_discrepancy(name: str, monkeypatch: Any) -> None:
    """Fails where the worse of both candidates is taken, or one of them never tried."""
    tried: dict[int, dict[str, float]] = {}
    cut_to = imitate.cut_to

    def watch(network: Any, step: Any, name: str, propose: Any, width: int) -> Any:
        found = cut_to(network, step, name, propose, width)
        tried.setdefault(step.group, {})[name] = step.compared(*found)  # on the samples for fitting too
        return found

    monkeypatch.setattr(imitate, "cut_to", watch)
    r = run_row(name, method="combined", refit="none")
    for c in r.chosen.choices:
        assert set(tried[c.group]) == {"local", "global"}
        assert tried[c.group][c.imitated] == min(tried[c.group].values())


def contributions(x: Array, w: Mapping[str, Array], kept: Array) -> Array:
    """What each channel of the second group adds to y, (units, samples, 2), with a mask on the first group."""
    return np.einsum("nu,um->unm", (x @ w["w1"] * kept) @ w["w2"], w["w3"]).astype(np.float64)


def test_a_group_sees_the_cuts_before_it() -> None:
    """Fails where a group is selected on the inputs of the original, or towards what the pruned network gives.

    Everything is linear, so that the quadratic is written out here; on the original's inputs other channels would stay.
    """
    text = """(float[N,8] x) => (float[N,2] y) {
        a = MatMul (x, w1[8,8])
        c = MatMul (a, w2[8,8])
        y = MatMul (c, w3[8,2])
    }"""
    others = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        w = {f"w{i}": rng.standard_normal((8, 2 if i == 3 else 8)).astype(np.float32) / 3 for i in (1, 2, 3)}
        model = Topology(text, ()).model()
        set_initializers(model, w)
        x = rng.standard_normal((96, 8)).astype(np.float32) + 0.5
        r = run(model, {"x": x}, method="local", refit="none", uniform=0.5)
        first, then = r.chosen.choices
        fit = r.loaded.fit.arrays["x"]
        present, before = (contributions(fit, w, kept) for kept in (first.kept, np.ones(8)))
        target = before.sum(axis=0)
        k = np.einsum("inm,jnm->ij", present, present)
        expected, _, _ = best_of_size(
            Quadratic(k, np.einsum("inm,nm->i", present, target), float((target**2).sum())), 4, free=True
        )
        alone, _, _ = best_of_size(Quadratic.of_gram(np.einsum("inm,jnm->ij", before, before)), 4, free=True)
        assert then.kept.tolist() == expected.tolist()
        others += expected.tolist() != alone.tolist()
    assert others


def labelled(scale: float) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Channel 0 carries the answer; the others make up nearly all of the outputs, alike for both classes."""
    text = """(float[N,4] x) => (float[N,2] y) {
        a = MatMul (x, w1[4,4])
        y = MatMul (a, w2[4,2])
    }"""
    model = Topology(text, ()).model()
    last = np.array([[0.5, -0.5], [scale, scale], [scale, scale], [scale, scale]], np.float32)
    set_initializers(model, {"w1": np.eye(4, dtype=np.float32), "w2": last})
    rng = np.random.default_rng(0)
    x = rng.standard_normal((96, 4)).astype(np.float32)
    x[:, 1:] = x[:, 1:2] + 0.1 * x[:, 1:]
    return model, {"x": x, "label": (x[:, 0] < 0).astype(np.int64)}


def test_labels_change_what_matters() -> None:
    """Fails where labels do not reach the selection: one channel alone tells the classes apart."""
    model, data = labelled(3.0)
    plain = run(model, {"x": data["x"]}, method="global", refit="greedy", uniform=0.75)
    told = run(model, data, method="global", refit="greedy", uniform=0.75, labels="label")
    (a,), (b,) = plain.chosen.choices, told.chosen.choices
    assert not a.kept[0]
    assert b.kept.tolist() == [True, False, False, False]


TOLERANCES = (0.02, 0.2, 1.0)


def within(name: str, **options: Any) -> list[float]:
    """The share of the MACs that goes at each tolerance; each result is run against the original."""
    data = samples_of(prepare_row(name), 64).arrays
    model = TABLE[name].model()
    found: list[float] = []
    for tolerance in TOLERANCES:
        try:
            result = prune(model, None, data, tolerance=tolerance, round_to=1, **options)
        except NothingPrunable as e:
            assert "give a larger one" in str(e)
            found.append(0.0)
            continue
        assert result.model is not None
        chosen_by = load.load(model, data, PruneConfig(tolerance=tolerance)).deciding
        y, y0 = (outputs.outputs_of(m, chosen_by) for m in (result.model, model))
        assert 0.0 < relative_error(y, y0) <= tolerance
        found.append(result.report.achieved)
    return found


@pytest.mark.parametrize("tolerance", [0.3, 0.03])
@pytest.mark.parametrize("method", ["local", "gfs"])
def test_each_layer_keeps_the_fewest_units_within_its_tolerance(method: str, tolerance: float) -> None:
    """Fails where the share is of anything but the layer's own output on the uncut network: written out by hand."""
    text = """(float[N,8] x) => (float[N,2] y) {
        a = MatMul (x, w1[8,8])
        c = MatMul (a, w2[8,8])
        y = MatMul (c, w3[8,2])
    }"""
    rng = np.random.default_rng(5)
    w = {f"w{i}": rng.standard_normal((8, 2 if i == 3 else 8)).astype(np.float32) / 3 for i in (1, 2, 3)}
    model = Topology(text, ()).model()
    set_initializers(model, w)
    x = rng.standard_normal((96, 8)).astype(np.float32) + 0.5
    options: dict[str, Any] = {"layer_tolerance": tolerance, "method": method, "round_to": 1, "fast": True}
    result = prune(model, None, {"x": x}, refit="none", **options)
    fit = load.load(model, {"x": x}, PruneConfig(**options)).fit.arrays["x"].astype(np.float64)
    layers = ((fit @ w["w1"], w["w2"]), (fit @ w["w1"] @ w["w2"], w["w3"]))
    imitate_by = {"local": lambda q: imitation.imitate(q, free=True), "gfs": gfs.select}[method]
    for (inputs, weights), row in zip(layers, result.report.groups, strict=True):
        parts = np.einsum("nu,um->unm", inputs, weights)
        path = imitate_by(Quadratic.of_gram(np.einsum("inm,jnm->ij", parts, parts)))
        discrepancy = path.floor + path.loss
        assert row.channels_after == next(n for n in range(1, 9) if discrepancy[n] <= tolerance * discrepancy[0])
    assert result.report.requested is None


@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_within_the_tolerance(method: str) -> None:
    """Fails where the outputs differ by more, where more may go than did at less, or where nothing ever goes."""
    found = within("plain", method=method, refit="least-squares")
    assert found == sorted(found)
    assert found[-1] > 0.2


@pytest.mark.parametrize("refit", ["lockstep", "greedy", "none"])
@pytest.mark.parametrize("name", ["residual", "layer_norm_convolution"])
def test_tolerances_of_greedy_methods(name: str, refit: str) -> None:
    """As above, over the refits."""
    found = within(name, method="combined", refit=refit)
    assert found == sorted(found)
    assert found[-1] > 0.1


@pytest.mark.parametrize("refit", ["greedy", "lockstep"])
@pytest.mark.parametrize("name", ["residual", "layer_norm_convolution"])
def test_a_replay_gives_the_same_bytes(name: str, refit: str, tmp_path: Path) -> None:
    """Fails where a plan does not hold all that the choices decided: masks and coefficients, bit by bit."""
    data = samples_of(prepare_row(name), COUNT).arrays
    model, saved = TABLE[name].model(), tmp_path / "plan.json"
    direct = prune(model, None, data, method="combined", refit=refit, ratio=0.3, round_to=1, plan_file=saved)
    again = prune(model, None, data, from_plan=saved)
    assert direct.model is not None
    assert again.model is not None
    assert again.model.SerializeToString(deterministic=True) == direct.model.SerializeToString(deterministic=True)
    assert again.plan.to_json() == direct.plan.to_json()


@pytest.mark.parametrize(
    ("method", "instead"), [("global", "local imitation"), ("combined", "local imitation"), ("taylor", "magnitude")]
)
def test_groups_without_a_gradient_are_reported(method: str, instead: str) -> None:
    """Fails where something stands in for what was asked for without a word, or a word is said without need."""
    text = """(float[N,6] x) => (float[N,5] y) {
        a = Gemm (x, w1[6,8], b1[8])
        q = Relu (a)
        c = Gemm (q, w2[8,7], b2[7])
        g = com.microsoft.SampleOp (c)
        d = Gemm (g, w3[7,6], b3[6])
        r = Relu (d)
        y = Gemm (r, w4[6,5], b4[5])
    }"""
    row = Topology(text, (), domains=("com.microsoft",))
    data = samples_of(prepare(row.model(), row.feeds(2)), COUNT).arrays
    options: dict[str, Any] = {"ratio": 0.1, "round_to": 1}
    notes = [n for n in prune(row.model(), None, data, method=method, **options).report.notes if "gradient" in n]
    (note,) = notes
    assert note.startswith(f"1 of 2 groups have no gradient, and {instead} stands in for them: ")
    assert "SampleOp" in note
    data = samples_of(prepare_row("plain"), COUNT).arrays
    report = prune(TABLE["plain"].model(), None, data, method=method, **options).report
    assert not any("gradient" in n for n in report.notes)
